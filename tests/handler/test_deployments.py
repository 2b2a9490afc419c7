"""A real deployment under the real engine, where the server refuses some of its objects."""

from __future__ import annotations

from tests.handler.bench import Bench, Step
from tests.handler.memory import Write
from tests.handler.test_crashes_of_deployments import DEPLOYMENT, FIRST, answer, port, stage
from tests.support.stage import SPEC

from ensemble_operator.cluster import RefusedError
from ensemble_operator.queue import RetryError
from ensemble_operator.world import Manifest

HERE = "http://digits.lab.svc:8000"


def looks(bench: Bench, *steps: Step) -> None:
    """Go through these steps, looking often enough after each, though some looks go wrong."""
    for step in steps:
        step(bench)
        for _ in range(6):
            try:
                bench.look()
            except RetryError:
                continue


def taken(bench: Bench, kind: str, version: str) -> None:
    """Somebody else has an object of the deployment's name."""
    spec = {"ports": [{"name": "80-80", "port": 80}], "selector": {"app": "digits"}} if kind == "Service" else {}
    metadata = {"name": "digits", "namespace": "lab"}
    bench.cluster.put({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec})


def status(bench: Bench) -> Manifest:
    found: Manifest = bench.cluster.objects[DEPLOYMENT]["status"]
    return found


def told(bench: Bench, kind: str) -> tuple[str, str]:
    condition = bench.condition(kind)
    return condition["status"], condition["reason"]


def refuse_service(bench: Bench) -> None:
    def refuse(index: int, write: Write, when: str) -> None:
        if write == Write("apply", "Service", "digits"):
            raise RefusedError(422, "Invalid", "spec.ports: quota")

    bench.cluster.fault = refuse


def test_a_service_of_somebody_else_is_not_announced() -> None:
    bench = stage()
    taken(bench, "Service", "v1")
    looks(bench, *FIRST)
    assert told(bench, "Ready") == ("False", "NameTaken")
    assert told(bench, "Degraded") == ("True", "NameTaken")
    assert "Service digits belongs to somebody else" in bench.condition("Ready")["message"]
    assert "endpoint" not in status(bench)

    bench.cluster.remove("Service", "lab", "digits")
    bench.settle()
    assert told(bench, "Ready") == ("True", "Serving")
    assert told(bench, "Degraded") == ("False", "AsExpected")
    assert status(bench)["endpoint"] == HERE


def test_requests_are_answered_also_without_a_disruption_budget() -> None:
    bench = stage()
    taken(bench, "PodDisruptionBudget", "policy/v1")
    looks(bench, *FIRST)
    assert told(bench, "Ready") == ("True", "Serving")
    assert told(bench, "Degraded") == ("True", "NameTaken")
    assert status(bench)["endpoint"] == HERE


def test_a_service_that_was_there_serves_though_it_cannot_be_changed() -> None:
    bench = stage().live(FIRST)
    refuse_service(bench)
    looks(bench, lambda bench: bench.change(serving=SPEC["serving"] | {"service": {"type": "NodePort"}}))
    assert told(bench, "Ready") == ("True", "Serving")
    assert told(bench, "Degraded") == ("True", "ApplyFailed")
    assert status(bench)["endpoint"] == HERE


def test_requests_are_answered_as_before_while_the_service_cannot_be_switched() -> None:
    bench = stage().live(FIRST)
    refuse_service(bench)
    looks(bench, port(9000), answer)
    assert told(bench, "Ready") == ("False", "ApplyFailed")
    assert status(bench)["endpoint"] == HERE
    assert len(bench.cluster.names("Deployment")) == 2

    bench.cluster.fault = lambda index, write, when: None
    bench.settle()
    assert told(bench, "Ready") == ("True", "Serving")
    assert status(bench)["endpoint"] == "http://digits.lab.svc:9000"
    assert len(bench.cluster.names("Deployment")) == 1
