"""A real deployment under the real engine, killed at every write of its life."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.handler import lives
from tests.handler.bench import KEY, Bench, Step, resource, search
from tests.handler.memory import MemoryCluster
from tests.support.stage import DIGESTS, MEMBERS, SELECTION, SPEC, summary

from ensemble_operator.ensembledeployment import KIND
from ensemble_operator.names import REVISION
from ensemble_operator.queue import Key

DEPLOYMENT = Key("EnsembleDeployment", "lab", "digits")
ENSEMBLE = Key("EnsembleSelection", "lab", "digits")


@dataclass
class WatchedCluster(MemoryCluster):
    """Looks after each write of the operator whether requests are answered that could be.

    Args:
        gaps: Writes after which the Service sent requests to no pod, though there were pods that answer.
    """

    gaps: list[str] = field(default_factory=list)

    def _write(self, *args: Any) -> Any:
        try:
            return super()._write(*args)
        finally:
            if answering(self) and service(self) not in answering(self):
                self.gaps.append(f"{self.writes[-1]}: {service(self)} instead of {answering(self)}")


def answering(cluster: MemoryCluster) -> set[str]:
    """Revisions with pods that take requests."""
    deployments = [one for place, one in cluster.objects.items() if place[0] == "Deployment"]
    return {
        one["metadata"]["labels"][REVISION] for one in deployments if one.get("status", {}).get("availableReplicas")
    }


def service(cluster: MemoryCluster) -> str | None:
    """The revision that gets requests."""
    found = cluster.objects.get(("Service", "lab", "digits"))
    return None if found is None else found["spec"]["selector"][REVISION]


def stage() -> Bench:
    """A search and a selection without a result."""
    bench = lives.stand(KIND, DEPLOYMENT, WatchedCluster(), "ServiceMonitor")
    bench.cluster.put(search())
    bench.cluster.put(resource(ENSEMBLE, SELECTION))
    return bench


def begin(bench: Bench, **spec: Any) -> None:
    bench.cluster.put(resource(DEPLOYMENT, SPEC | spec))


def begin_recreate(bench: Bench) -> None:
    begin(bench, rollout={"strategy": "Recreate"})


def begin_scaled(bench: Bench) -> None:
    scaling = {"minReplicas": 1, "maxReplicas": 3, "targetQueueMilliseconds": 50}
    begin(bench, serving={"autoscaling": scaling, "monitoring": {"serviceMonitor": True}})


def select(number: int) -> Step:
    """The selection has this result."""

    def tell(bench: Bench) -> None:
        ready = {"type": "Ready", "status": "True", "reason": "Selected", "message": "small 2"}
        status = {
            "observedGeneration": 1,
            "digest": DIGESTS[number],
            "budgets": [{"name": "small", "members": MEMBERS}],
            "conditions": [ready | {"observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        }
        bench.cluster.change(*ENSEMBLE, {"status": status})

    return tell


def run(bench: Bench) -> None:
    bench.tell("Running", "allocate", progress={"stage": "allocate", "done": 1, "total": 9})


def optimise(bench: Bench) -> None:
    """The Job has found an allocation."""
    command = bench.workload()["spec"]["template"]["spec"]["containers"][0]["command"]
    found = summary(command[command.index("--selection") + 1])
    bench.tell("Succeeded", "allocate", result={"digest": found["digest"], "summary": found})
    bench.end()


def fail(bench: Bench) -> None:
    bench.tell("Failed", "allocate", error={"message": "no"})
    bench.end("Failed")


def answer(bench: Bench) -> None:
    """All pods of all Deployments take requests."""
    for kind, name in bench.cluster.names("Deployment"):
        one = bench.cluster.objects[kind, "lab", name]
        copies = one["spec"]["replicas"]
        status = {
            "observedGeneration": one["metadata"]["generation"],
            "availableReplicas": copies,
            "readyReplicas": copies,
            "conditions": [{"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}],
        }
        bench.cluster.change(kind, "lab", name, {"status": status})


def batches(largest: int | None) -> Step:
    """Another document, for which another allocation must be found; none for the default."""
    return lambda bench: bench.change(serving={"maxBatchSize": largest})


def port(number: int) -> Step:
    """Another document, of which the same allocation serves."""
    return lambda bench: bench.change(serving={"httpPort": number})


def scale(bench: Bench) -> None:
    bench.change(serving={"replicas": 3})


FIRST = (begin, select(0), run, optimise, answer)
LIVES: dict[str, tuple[Step, ...]] = {
    "whole": (
        *FIRST,
        *(select(1), run, optimise, answer),
        *(batches(64), optimise, answer),
        *(batches(None), answer),
        *(lives.suspend, lives.resume, answer, lives.delete),
    ),
    "selected back": (*FIRST, select(1), optimise, answer, select(0), answer),
    "selected back before it answers": (*FIRST, select(1), optimise, select(0)),
    "selected on before it answers": (*FIRST, select(1), optimise, select(2), optimise, answer),
    "selected on while it is optimised": (*FIRST, select(1), run, select(2), optimise, answer),
    "without another allocation": (*FIRST, port(8100), answer, scale, answer, port(8000), answer),
    "recreated": (begin_recreate, select(0), optimise, answer, select(1), optimise, answer, select(0), answer),
    "with an autoscaler": (begin_scaled, select(0), optimise, answer, select(1), optimise, answer),
    "suspended while it is optimised": (
        begin,
        select(0),
        run,
        lives.suspend,
        lives.resume,
        lives.wait,
        optimise,
        answer,
    ),
    "suspended while it is rolled out": (*FIRST, select(1), optimise, lives.suspend, lives.resume, answer),
    "tried again": (begin, select(0), run, fail, lives.lose, lives.wait, optimise, answer),
}
# How many Jobs there are to be, each with its own name.
RUNS = {
    "whole": 3,
    "selected back": 2,
    "selected back before it answers": 2,
    "selected on before it answers": 3,
    "selected on while it is optimised": 3,
    "without another allocation": 1,
    "recreated": 2,
    "with an autoscaler": 2,
    "suspended while it is optimised": 2,
    "suspended while it is rolled out": 2,
    "tried again": 2,
}
OTHERS = {KEY, ENSEMBLE}


def gaps(bench: Bench) -> list[str]:
    assert isinstance(bench.cluster, WatchedCluster)
    return bench.cluster.gaps


@pytest.mark.parametrize("life", LIVES)
def test_the_lives_are_what_they_are_meant_to_be(life: str) -> None:
    bench = stage().live(LIVES[life])
    jobs = lives.made(bench, "Job")
    assert len(set(jobs)) == len(jobs) == RUNS[life]
    assert lives.strangers(bench) == []
    assert gaps(bench) == []
    if lives.delete in LIVES[life]:
        assert set(bench.cluster.objects) == OTHERS
        return
    assert bench.condition("Ready")["status"] == "True"
    assert bench.condition("Progressing")["status"] == "False"
    assert len(bench.cluster.names("Deployment")) == 1
    assert answering(bench.cluster) == {service(bench.cluster)}


@pytest.mark.parametrize("life", LIVES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_any_write(life: str, when: str) -> None:
    for bench, found, expected, where in lives.killed(stage, LIVES[life], when):
        assert found == expected, where
        assert gaps(bench) == [], where


@pytest.mark.parametrize("life", LIVES)
def test_killed_after_every_write(life: str) -> None:
    bench, whole = lives.killed_all_the_time(stage, LIVES[life]), stage().live(LIVES[life])
    assert lives.timeless(bench.cluster.objects) == lives.timeless(whole.cluster.objects)
    assert lives.made(bench, "Job") == lives.made(whole, "Job")
    assert gaps(bench) == []


@pytest.mark.parametrize("life", ["whole", "recreated"])
def test_deleted_at_any_write(life: str) -> None:
    for bench, where in lives.deleted_at_any_write(stage, LIVES[life]):
        assert set(bench.cluster.objects) == OTHERS, where
