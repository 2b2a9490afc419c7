"""Harm done to a served ensemble: it answers on, or comes back, or says what a person should do."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Sequence

import pytest
from tests.e2e.asking import asking
from tests.e2e.cluster import OURS, CommandError, Manifest, Namespace, Told, conditions, run, until
from tests.e2e.conftest import Images, Release, namespace_of
from tests.e2e.documents import CLAIM, deployment, gpus, search, selection
from tests.e2e.test_digits import READY_SECONDS, settled

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]

KIND, NAME = "EnsembleDeployment", "digits"
MADE = "app.kubernetes.io/managed-by=ensemble-operator"
SERVING = f"{MADE},app.kubernetes.io/component=serve"
CHILDREN = (
    "deployments,services,poddisruptionbudgets,networkpolicies,serviceaccounts,roles,rolebindings,jobs,pods,configmaps"
)
BACK_SECONDS = 300.0
TOLD_SECONDS = 240.0  # a pod that has no room is given a minute before a person is asked to look
QUIET_SECONDS = 60.0
REST_SECONDS = 10.0
REVIVED_SECONDS = 120.0
KILL = """
import os, pathlib, signal, sys
for line in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    try:
        program, *arguments = line.read_bytes().decode().split("\\0")
    except OSError:  # it has ended meanwhile
        continue
    if program.endswith("/" + sys.argv[1]) and any(one.startswith(sys.argv[2]) for one in arguments):
        os.kill(int(line.parent.name), signal.SIGKILL)
        print("killed")
        break
"""
REPORT_SECONDS = 360.0  # a report is written again every five minutes
NOWHERE = "registry.invalid/core:1"


@pytest.fixture(scope="module")
def share() -> int:
    """Half of the cluster's GPUs."""
    nodes = json.loads(run("kubectl", "get", "nodes", "--output=json"))["items"]
    count = sum(int(node["status"]["allocatable"].get("nvidia.com/gpu", 0)) for node in nodes)
    if count < 2:
        pytest.fail("the cluster needs at least two GPUs; the test bed has some in name")
    return count // 2


@pytest.fixture(scope="module")
def before() -> list[frozenset[str]]:
    """What was in the namespace before our resources."""
    return []


@pytest.fixture(scope="module")
def served(operator: Release, share: int, before: list[frozenset[str]]) -> Iterator[Namespace]:
    """An ensemble that two copies serve, which hold all GPUs of the cluster."""
    with namespace_of(f"e2e-{uuid.uuid4().hex[:8]}") as made:
        with operator.explained(made):
            made.apply(CLAIM)
            before.append(settled(made))
            made.apply(search(3), selection(), wanted(share))
            for kind, seconds in READY_SECONDS.items():
                made.wait_ready(kind, NAME, seconds)
            until("both copies answer", BACK_SECONDS, lambda: answering(made, 2))
        yield made


def wanted(share: int) -> Manifest:
    return deployment(podOverrides={"resources": gpus(share)}, serving={"replicas": 2})


def test_nothing_is_written_while_it_serves(served: Namespace, operator: Release) -> None:
    with operator.explained(served):
        first = until("everything is told", 120, lambda: versions_at_rest(served))
        assert {"EnsembleDeployment/digits", "Service/digits"} <= first.keys()
        time.sleep(QUIET_SECONDS)
        assert versions(served) == first


def test_evicted_copies_come_back_one_at_a_time(served: Namespace, operator: Release, images: Images) -> None:
    with operator.explained(served), asking(served, images) as asks:
        one, other = copies(served)
        served.evict(one)
        with pytest.raises(CommandError, match="disruption budget"):
            served.evict(other)
        until("another copy answers", BACK_SECONDS, lambda: answering(served, 2, without=one))
        assert other in copies(served)
        asks.check()


def test_children_deleted_by_hand_come_back(served: Namespace, operator: Release, images: Images) -> None:
    with operator.explained(served):
        [name] = [one["metadata"]["name"] for one in served.list("deployments", SERVING)]
        first, uids = served.get(KIND, NAME) or {}, uids_of(served, name)
        served.kubectl("delete", "service/digits", "poddisruptionbudget/digits", "networkpolicy/digits")
        served.kubectl("delete", f"configmap/{name}-report", f"configmap/{name}-spec", f"role/{name}")
        served.kubectl("delete", f"deployment/{name}")
        until("all of it is there again", 60, lambda: True if all_new(uids, uids_of(served, name)) else None)
        until("two copies answer", BACK_SECONDS, lambda: answering(served, 2))
        last = served.wait_ready(KIND, NAME, 60)
        assert last["status"]["endpoint"] == first["status"]["endpoint"]
        until("it is told what is loaded", 60, lambda: (served.get(KIND, NAME) or {})["status"].get("loaded"))
        with asking(served, images) as asks:
            asks.wait_answers(3, 60)
            asks.check()


def test_what_dies_in_a_pod_comes_back(served: Namespace, operator: Release, images: Images) -> None:
    """A member by the agent, or with its server if that waits for it; the server, and with it the front model, by the
    kubelet."""
    with operator.explained(served):
        [one, _] = copies(served)
        dies_and_comes_back(served, one, "triton_python_backend_stub", f"{NAME}-")  # members are named after the search
        dies_and_comes_back(served, one, "tritonserver", "--id=")
        with asking(served, images) as asks:
            asks.wait_answers(5, 60)
            asks.check()


def test_a_revision_without_devices_leaves_the_old_one_serving(
    served: Namespace, operator: Release, images: Images
) -> None:
    """And whatever becomes of the operator meanwhile; the way back needs no benchmark, the way forward is Recreate."""
    with operator.explained(served):
        old, jobs = copies(served), names(served, "jobs")
        with asking(served, images) as asks:
            served.patch(KIND, NAME, {"podOverrides": {"annotations": {"revision": "second"}}})
            told = Told("Degraded", "True", "InsufficientDevices", ("nvidia.com/gpu", "rollout.strategy: Recreate"))
            served.wait_told(KIND, NAME, told, TOLD_SECONDS)
            as_before = Told("Ready", "False", "InsufficientDevices", ("requests are answered as before",))
            served.wait_told(KIND, NAME, as_before, 1)
            operator.kill()
            operator.wait_back()
            served.wait_told(KIND, NAME, told, 60)
            asks.wait_answers(5, 60)
            served.patch(KIND, NAME, {"podOverrides": {"annotations": None}})
            served.wait_ready(KIND, NAME, 60)
            until("the new copies are gone", 60, lambda: copies(served) == old or None)
            assert names(served, "jobs") == jobs
            asks.check()
        change = {"podOverrides": {"annotations": {"revision": "second"}}, "rollout": {"strategy": "Recreate"}}
        served.patch(KIND, NAME, change)
        until("other copies answer", BACK_SECONDS, lambda: answering(served, 2, without=old[0]))
        served.wait_ready(KIND, NAME, 60)
        assert not set(copies(served)) & set(old)
        assert names(served, "jobs") == jobs
        served.patch(KIND, NAME, {"rollout": None})


@pytest.mark.nightly
def test_more_devices_than_the_cluster_has(served: Namespace, operator: Release, images: Images, share: int) -> None:
    with operator.explained(served), asking(served, images) as asks:
        old = copies(served)
        served.patch(KIND, NAME, {"podOverrides": {"resources": gpus(2 * share + 1)}})
        told = Told("Degraded", "True", "InsufficientDevices", ("Insufficient nvidia.com/gpu", "ask for less"))
        served.wait_told(KIND, NAME, told, TOLD_SECONDS)
        asks.wait_answers(5, 60)
        served.patch(KIND, NAME, {"podOverrides": {"resources": gpus(share)}})
        served.wait_ready(KIND, NAME, 60)
        assert copies(served) == old
        asks.check()


def test_an_image_that_cannot_be_pulled(served: Namespace, operator: Release, images: Images) -> None:
    with operator.explained(served), asking(served, images) as asks:
        old = copies(served)
        served.patch(KIND, NAME, {"podOverrides": {"resources": gpus(0)}, "serving": {"image": NOWHERE}})
        told = Told("Degraded", "True", "ImagePullFailed", (NOWHERE, "imagePullSecrets"))
        served.wait_told(KIND, NAME, told, TOLD_SECONDS)
        asks.wait_answers(5, 60)
        served.patch(KIND, NAME, {"serving": {"image": images.core}})
        served.wait_ready(KIND, NAME, READY_SECONDS[KIND])
        until("the old copies are gone", BACK_SECONDS, lambda: None if set(copies(served)) & set(old) else True)
        asks.check()


@pytest.mark.nightly
def test_a_report_that_is_changed_by_hand_is_put_right(served: Namespace, operator: Release) -> None:
    """Though nothing happens that the agent would have to tell."""
    with operator.explained(served):
        [name] = [one["metadata"]["name"] for one in served.list("deployments", SERVING)]
        [copy, _] = copies(served)
        text = (served.get("configmap", f"{name}-report") or {})["data"][copy]
        forged = json.dumps({"data": {copy: text.replace('"revivals": 0', '"revivals": 77')}})
        served.kubectl("patch", "configmap", f"{name}-report", "--type=merge", "--patch", forged)
        served.wait_told(KIND, NAME, Told("Ready", "True", "Serving", ("77 times",)), 30)
        until("the agent has told again", REPORT_SECONDS, lambda: None if "77 times" in ready_message(served) else True)


def test_foreground_deletion_ends(served: Namespace, operator: Release, before: list[frozenset[str]]) -> None:
    with operator.explained(served):
        ours = [f"{kind}/{NAME}" for kind in OURS]
        served.kubectl("delete", "--cascade=foreground", "--timeout=60s", *ours)
        served.wait_only(before[0], 120)


# --- what is looked at ----------------------------------------------------------------------------------------------


def copies(namespace: Namespace) -> list[str]:
    """Names of the serving pods that are not about to go."""
    return sorted(pod["metadata"]["name"] for pod in namespace.pods(SERVING))


def answering(namespace: Namespace, count: int, without: str = "") -> bool | None:
    """Whether exactly so many pods serve, all of them ready and none of that name."""
    pods = namespace.list("pods", SERVING)
    ready = [pod for pod in pods if is_ready(pod) and pod["metadata"]["name"] != without]
    return True if len(pods) == len(ready) == count else None


def is_ready(pod: Manifest) -> bool:
    return any((one["type"], one["status"]) == ("Ready", "True") for one in pod["status"].get("conditions", ()))


def dies_and_comes_back(namespace: Namespace, pod: str, program: str, argument: str) -> None:
    """End the process at once that runs a program with an argument that begins so, and wait for what is to follow."""
    before = repairs(namespace)
    until(f"{argument} is killed", REVIVED_SECONDS, lambda: kill(namespace, pod, program, argument) or None)
    until("that is noticed", REVIVED_SECONDS, lambda: repairs(namespace) > before or None)
    until("both copies answer", REVIVED_SECONDS, lambda: answering(namespace, 2))


def kill(namespace: Namespace, pod: str, program: str, argument: str) -> bool:
    """False if there is no such process now."""
    command = ("--container=triton", "--", "python", "-c", KILL, program, argument)
    return namespace.kubectl("exec", pod, *command).strip() == "killed"


def repairs(namespace: Namespace) -> int:
    """How often containers of the serving pods have ended by themselves, and agents have revived models."""
    pods = namespace.pods(SERVING)
    restarts = sum(one["restartCount"] for pod in pods for one in pod["status"]["containerStatuses"])
    [name] = [one["metadata"]["name"] for one in namespace.list("deployments", SERVING)]
    reports = (namespace.get("configmap", f"{name}-report") or {}).get("data", {}).values()
    return restarts + sum(json.loads(text)["progress"]["summary"]["revivals"] for text in reports)


def ready_message(namespace: Namespace) -> str:
    return str(conditions(namespace.get(KIND, NAME) or {})["Ready"]["message"])


def names(namespace: Namespace, kind: str) -> list[str]:
    return sorted(one["metadata"]["name"] for one in namespace.list(kind, MADE))


def versions_at_rest(namespace: Namespace) -> dict[str, str] | None:
    """None if something has been written within some seconds."""
    first = versions(namespace)
    time.sleep(REST_SECONDS)
    return first if versions(namespace) == first else None


def versions(namespace: Namespace) -> dict[str, str]:
    """Resource versions of our resources and of all that was made for them, but reports."""
    found: Sequence[Manifest] = [*namespace.list(",".join(OURS)), *namespace.list(CHILDREN, MADE)]
    kept = [one for one in found if not one["metadata"]["name"].endswith("-report")]
    return {f"{one['kind']}/{one['metadata']['name']}": one["metadata"]["resourceVersion"] for one in kept}


def uids_of(namespace: Namespace, name: str) -> dict[str, str]:
    """Of the objects that serve, by kind and name."""
    wanted = {f"Deployment/{name}", f"ConfigMap/{name}-report", f"ConfigMap/{name}-spec", f"Role/{name}"}
    wanted |= {f"{kind}/digits" for kind in ("Service", "PodDisruptionBudget", "NetworkPolicy")}
    found = {f"{one['kind']}/{one['metadata']['name']}": one for one in namespace.list(CHILDREN, MADE)}
    return {name: found[name]["metadata"]["uid"] for name in sorted(wanted & found.keys())}


def all_new(before: dict[str, str], now: dict[str, str]) -> bool:
    return before.keys() == now.keys() and not set(before.values()) & set(now.values())
