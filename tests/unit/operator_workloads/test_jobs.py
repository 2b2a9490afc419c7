from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ensemble_operator.jobs import (
    RAY_VERSION,
    WorkerGroup,
    build_job,
    build_rayjob,
    outcome,
    pod_trouble,
    trouble_in,
)
from ensemble_operator.names import Owner
from ensemble_operator.readings import read_time
from ensemble_operator.reports import Report

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
QUEUE = {"kueue.x-k8s.io/queue-name": "gpus"}
OWNER = Owner("HPOSearch", "digits", "lab", "uid-1", QUEUE)
TEMPLATE = {"metadata": {}, "spec": {}}
LONG_AGO, JUST_NOW, NOW_ITSELF = "2026-01-01T11:00:00Z", "2026-01-01T11:59:55Z", "2026-01-01T11:59:58Z"


def report(state: str, note: str = "", message: str = "") -> Report:
    return Report.model_validate(
        {
            "schemaVersion": 1,
            "verb": "train",
            "specHash": "",
            "attempt": 1,
            "ownerUid": "",
            "state": state,
            "progress": {"note": note},
            "error": {"message": message},
        }
    )


def job(*conditions: str, suspend: bool = False, labels: Any = None, **details: Any) -> dict[str, Any]:
    found = [{"type": kind, "status": "True", **details} for kind in conditions]
    metadata = {"name": "x", "creationTimestamp": JUST_NOW, "labels": labels or {}}
    return {"kind": "Job", "metadata": metadata, "spec": {"suspend": suspend}, "status": {"conditions": found}}


def rayjob(deployment: str = "", job: str = "", suspend: bool = False, **status: Any) -> dict[str, Any]:
    metadata = {"name": "x", "creationTimestamp": JUST_NOW, "labels": {}}
    told = {"jobDeploymentStatus": deployment, "jobStatus": job, **status}
    return {"kind": "RayJob", "metadata": metadata, "spec": {"suspend": suspend}, "status": told}


def pod(phase: str = "Running", **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "x-0", "creationTimestamp": JUST_NOW}, "status": {"phase": phase, **status}}


def ending(due: str, phase: str = "Running", **status: Any) -> dict[str, Any]:
    """A pod that was to be gone by then."""
    made = pod(phase, **status)
    made["metadata"]["deletionTimestamp"] = due
    made["spec"] = {"nodeName": "node-7"}
    return made


def old(child: dict[str, Any], **status: Any) -> dict[str, Any]:
    child["metadata"]["creationTimestamp"] = LONG_AGO
    child["status"] |= status
    return child


def gated(**labels: str) -> dict[str, Any]:
    words = {"reason": "SchedulingGated", "message": "Scheduling is blocked due to non-empty scheduling gates"}
    made = pod("Pending", conditions=[{"type": "PodScheduled", "status": "False", **words}])
    made["metadata"]["labels"] = labels
    made["metadata"]["creationTimestamp"] = LONG_AGO
    made["spec"] = {"schedulingGates": [{"name": "kueue.x-k8s.io/admission"}, {"name": "other"}]}
    return made


OUT_OF_MEMORY = {"reason": "OOMKilled", "exitCode": 137}


def state(name: str, container: str = "ensemble", **state: Any) -> dict[str, Any]:
    return {"containerStatuses": [{"name": container, "image": "trainer:9", "state": {name: state}}]}


def unschedulable(since: str, words: str = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.") -> dict[str, Any]:
    reason = {"reason": "Unschedulable", "message": words, "lastTransitionTime": since}
    return {"conditions": [{"type": "PodScheduled", "status": "False", **reason}]}


def without_claim(since: str, words: str) -> dict[str, Any]:
    made = pod("Pending", **unschedulable(since, f"0/1 nodes are available: {words} not found"))
    claims = [{"name": name, "persistentVolumeClaim": {"claimName": name}} for name in ("libraries", "datasets")]
    made["spec"] = {"volumes": [{"name": "tmp", "emptyDir": {}}, *claims]}
    return made


# What is there; then state, reason, whether a person must act, and words of the message.
TABLE: dict[str, tuple[Any, Any, list[Any], tuple[str, str, bool], str]] = {
    "nothing": (None, None, [], ("Absent", "", False), ""),
    "deleted by hand": (None, report("Running"), [], ("Lost", "Lost", False), "it was deleted"),
    "failed and deleted": (None, report("Failed"), [], ("Lost", "Lost", False), "it was deleted"),
    "done and deleted": (None, report("Succeeded"), [], ("Succeeded", "", False), ""),
    "job done": (job("Complete"), report("Running"), [], ("Succeeded", "", False), ""),
    "job about to be done": (job("SuccessCriteriaMet"), None, [], ("Succeeded", "", False), ""),
    "job reports success": (job(), report("Succeeded"), [pod()], ("Succeeded", "", False), ""),
    "job failed": (
        job("Failed", message="BackoffLimitExceeded"),
        report("Failed", message="no such folder"),
        [],
        ("Failed", "", False),
        "no such folder",
    ),
    "job failed without a word": (job("Failed", message="too often"), None, [], ("Failed", "", False), "too often"),
    "job ended from outside": (
        job("Failed", message="too often", lastTransitionTime=LONG_AGO),
        report("Running", note="interrupted"),
        [],
        ("Lost", "Lost", False),
        "too often",
    ),
    "job failed for want of storage": (
        job("Failed", message="too often", lastTransitionTime=LONG_AGO),
        report("Running", note="interrupted: /mnt/storage: is full"),
        [],
        ("Lost", "Lost", True),
        "/mnt/storage: is full",
    ),
    "job waits for storage": (
        job(),
        report("Running", note="interrupted: /mnt/storage: is full"),
        [pod("Failed")],
        ("Waiting", "Interrupted", True),
        "/mnt/storage: is full; it is tried again",
    ),
    "job tries whether there is storage": (
        job(),
        report("Running", note="interrupted: /mnt/storage: is full"),
        [pod("Failed"), pod()],
        ("Waiting", "Interrupted", True),
        "/mnt/storage: is full; it is tried again",
    ),
    "job goes on elsewhere": (job(), report("Running", note="interrupted"), [pod()], ("Running", "", False), ""),
    "job out of memory": (
        job("FailureTarget"),
        report("Running"),
        [pod("Failed", **state("terminated", reason="OOMKilled", exitCode=137))],
        ("Failed", "", False),
        "more memory than its limit; raise podOverrides.resources.limits.memory",
    ),
    "job crashed": (
        job("Failed"),
        None,
        [pod("Failed", **state("terminated", exitCode=1, message="Traceback\nKeyError: 3\n"))],
        ("Failed", "", False),
        "container ensemble ended with code 1\nTraceback\nKeyError: 3",
    ),
    "job evicted": (
        job("Failed"),
        None,
        [pod("Failed", reason="Evicted", message="The node was low on resource: ephemeral-storage.")],
        ("Failed", "", False),
        "low on resource: ephemeral-storage",
    ),
    "job queued": (job(suspend=True, labels=QUEUE), None, [], ("Waiting", "Queued", False), "queue gpus"),
    "job suspended": (job("Suspended", suspend=True), None, [], ("Waiting", "Queued", False), "by somebody else"),
    "job without a pod": (job(), None, [], ("Waiting", "Starting", False), "Job x has no pod yet"),
    "job runs": (job(), None, [pod()], ("Running", "", False), ""),
    "job profiles": (
        job(),
        None,
        [pod("Pending", initContainerStatuses=[{"name": "profile", "state": {"running": {}}}])],
        ("Running", "Profiling", False),
        "being profiled",
    ),
    "job tries again": (
        job(),
        report("Failed", message="disk full"),
        [pod("Failed"), pod("Pending")],
        ("Running", "", False),
        "tried again after: disk full",
    ),
    "job was never reported on, and is tried again": (
        old(job()),
        report("Running"),
        [pod("Failed", **state("terminated", **OUT_OF_MEMORY))],
        ("Running", "", False),
        "is tried again after: container ensemble needed more memory than its limit",
    ),
    "job starts again": (
        old(job()),
        report("Running"),
        [pod("Failed", **state("terminated", **OUT_OF_MEMORY)), pod("Pending")],
        ("Running", "", False),
        "is tried again after: container ensemble needed more memory than its limit",
    ),
    "job is moved to another node": (
        old(job()),
        report("Running", note="interrupted"),
        [ending(JUST_NOW)],
        ("Waiting", "Starting", False),
        "pod x-0 is being ended; the next one continues",
    ),
    "job is moved, and its next pod starts": (
        old(job()),
        report("Running", note="interrupted"),
        [ending(LONG_AGO), pod("Pending")],
        ("Waiting", "Starting", False),
        "its pods are being started",
    ),
    "a pod that is being ended needs no room": (
        old(job()),
        None,
        [ending(JUST_NOW, "Pending", **unschedulable(LONG_AGO))],
        ("Waiting", "Starting", False),
        "is being ended",
    ),
    "job on a dead node": (
        old(job()),
        report("Running"),
        [ending(LONG_AGO)],
        ("Waiting", "Starting", True),
        "pod x-0 on node node-7 was to end by 11:00:00 UTC and has not; if that node is gone for good, `kubectl delete"
        " pod x-0 --force` lets the next one continue",
    ),
    "job between two pods": (
        old(job()),
        report("Running", note="interrupted"),
        [],
        ("Waiting", "Starting", False),
        "Job x has no pod now; if that lasts, `kubectl describe job x` tells why",
    ),
    "job between two pods, without a word": (
        old(job(), failed=1),
        None,
        [],
        ("Waiting", "Starting", False),
        "Job x has no pod now",
    ),
    "job out of the queue": (
        old(job(), startTime=JUST_NOW),
        None,
        [],
        ("Waiting", "Starting", False),
        "Job x has no pod yet",
    ),
    "pods in the queue": (
        job(),
        None,
        [gated(**{"kueue.x-k8s.io/queue-name": "gpus"})],
        ("Waiting", "Queued", False),
        "waits in Kueue's queue gpus; `kubectl describe workloads` tells why",
    ),
    "pods held by somebody else": (
        rayjob("Initializing"),
        None,
        [gated()],
        ("Waiting", "Queued", False),
        "pod x-0 is held until its scheduling gates are gone: kueue.x-k8s.io/admission, other",
    ),
    "job starts": (job(), None, [pod("Pending")], ("Waiting", "Starting", False), "being started"),
    "no room, says the scheduler, which may not have looked again": (
        job(),
        None,
        [pod("Pending", **unschedulable(NOW_ITSELF))],
        ("Waiting", "Starting", False),
        "being started",
    ),
    "no room yet": (
        job(),
        None,
        [pod("Pending", **unschedulable(JUST_NOW))],
        ("Waiting", "Unschedulable", False),
        "1 Insufficient nvidia.com/gpu",
    ),
    "no room": (
        job(),
        None,
        [pod("Pending", **unschedulable(LONG_AGO))],
        ("Waiting", "Unschedulable", True),
        "no node takes pod x-0: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
    ),
    "no room, without a full stop": (
        job(),
        None,
        [pod("Pending", **unschedulable(LONG_AGO, "node(s) had taints"))],
        ("Waiting", "Unschedulable", True),
        "no node takes pod x-0: node(s) had taints. It waits for room; ask for less if there will be none",
    ),
    "no claim": (
        job(),
        None,
        [without_claim(LONG_AGO, 'persistentvolumeclaim "libraries" not found.')],
        ("Waiting", "ClaimNotReady", True),
        'no node takes pod x-0: 0/1 nodes are available: persistentvolumeclaim "libraries" not found. Make the claim,'
        " or see what is wrong with it: `kubectl describe pvc libraries`",
    ),
    "no claim yet": (
        job(),
        None,
        [without_claim(JUST_NOW, 'persistentvolumeclaim "libraries" not found.')],
        ("Waiting", "ClaimNotReady", False),
        "Make the claim",
    ),
    "a claim without a volume": (
        rayjob("Initializing"),
        None,
        [without_claim(LONG_AGO, "pod has unbound immediate PersistentVolumeClaims.")],
        ("Waiting", "ClaimNotReady", True),
        "unbound immediate PersistentVolumeClaims. Make the claim, or see what is wrong with it: `kubectl describe pvc"
        " libraries datasets`",
    ),
    "a claim that goes": (
        job(),
        None,
        [without_claim(LONG_AGO, 'persistentvolumeclaim "datasets" is being deleted.')],
        ("Waiting", "ClaimNotReady", True),
        "is being deleted. Make the claim, or see what is wrong with it: `kubectl describe pvc datasets`",
    ),
    "no image": (
        job(),
        None,
        [pod("Pending", **state("waiting", reason="ImagePullBackOff", message="Back-off"))],
        ("Waiting", "ImagePullFailed", True),
        "image trainer:9 cannot be pulled (ImagePullBackOff: Back-off); check its name and imagePullSecrets",
    ),
    "no secret": (
        rayjob("Initializing"),
        None,
        [pod("Pending", **state("waiting", reason="CreateContainerConfigError", message='secret "s3" not found'))],
        ("Waiting", "ContainerConfigFailed", True),
        'secret "s3" not found',
    ),
    "rayjob is new": (rayjob(), None, [], ("Waiting", "Starting", False), "RayJob x has no pod yet"),
    "rayjob starts": (rayjob("Initializing"), None, [pod()], ("Waiting", "Starting", False), "being started"),
    "rayjob runs": (rayjob("Running", "RUNNING"), None, [pod()], ("Running", "", False), ""),
    "rayjob waits for workers": (
        rayjob("Running", "RUNNING"),
        None,
        [pod(), pod("Pending", **unschedulable(LONG_AGO))],
        ("Running", "", False),
        "no node takes pod",
    ),
    "rayjob queued": (rayjob("Suspended", suspend=True), None, [], ("Waiting", "Queued", False), ""),
    "rayjob preempted": (rayjob("Suspending"), report("Running"), [pod()], ("Waiting", "Queued", False), ""),
    "rayjob done": (rayjob("Complete", "SUCCEEDED"), None, [], ("Succeeded", "", False), ""),
    "rayjob says it failed": (
        rayjob("Running", "RUNNING"),
        report("Failed", message="11 trials failed"),
        [],
        ("Failed", "", False),
        "11 trials failed",
    ),
    "rayjob stopped": (rayjob("Complete", "STOPPED"), report("Running"), [], ("Lost", "Lost", False), "STOPPED"),
    "rayjob lost its driver": (
        rayjob("Failed", "FAILED", reason="AppFailed", message="exit code 137", endTime=LONG_AGO),
        report("Running"),
        [],
        ("Lost", "Lost", False),
        "AppFailed: exit code 137",
    ),
    "rayjob failed for want of storage": (
        rayjob("Failed", "FAILED", reason="AppFailed", message="exit code 1", endTime=LONG_AGO),
        report("Running", note="interrupted: s3://b: No space left"),
        [],
        ("Lost", "Lost", True),
        "s3://b: No space left",
    ),
    "rayjob starts anew where there was no storage": (
        rayjob("Initializing"),
        report("Running", note="interrupted: s3://b: No space left"),
        [pod()],
        ("Waiting", "Interrupted", True),
        "s3://b: No space left; it is tried again",
    ),
    "rayjob lost its head": (
        rayjob("Failed", "RUNNING", reason="JobStatusCheckTimeoutExceeded"),
        report("Running"),
        [],
        ("Lost", "Lost", False),
        "JobStatusCheckTimeoutExceeded",
    ),
    "rayjob refused": (
        rayjob("ValidationFailed", message="name too long"),
        None,
        [],
        ("Failed", "", False),
        "KubeRay refuses RayJob x: name too long",
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_outcomes(case: str) -> None:
    child, told, pods, expected, words = TABLE[case]
    found = outcome(child, told, pods, NOW)
    assert (found.state, found.reason, found.blocked) == expected
    assert words in found.message
    assert found.active == (found.state in ("Waiting", "Running"))


def test_when_it_is_told_that_there_is_no_room() -> None:
    fresh, told = pod("Pending", **unschedulable(NOW_ITSELF)), pod("Pending", **unschedulable(JUST_NOW))
    assert trouble_in([told, fresh, pod()], NOW) == 3.0
    assert trouble_in([told, pod(), pod("Pending"), gated()], NOW) is None
    assert pod_trouble([fresh], NOW) is None
    assert pod_trouble([fresh], NOW + timedelta(seconds=3)) is not None


def test_the_time_of_a_loss_is_known() -> None:
    lost = outcome(rayjob("Failed", endTime=LONG_AGO), None, [], NOW)
    assert lost.ended == NOW - timedelta(hours=1)
    # Without a word about it the attempt's own beginning: attempts follow each other ever more slowly in any case.
    assert outcome(rayjob("Failed"), None, [], NOW).ended == read_time(JUST_NOW)
    assert read_time("yesterday") is read_time(None) is read_time("2026-01-01T11:00:00") is None
    assert read_time("0001-01-01T00:00:00Z") is read_time("9999-12-31T23:59:59-10:00") is None
    assert read_time("2026-01-01T13:00:00+02:00") == NOW - timedelta(hours=1)


def test_a_job_without_its_labels_gets_no_second_driver_while_its_pod_runs() -> None:
    told = report("Running")
    assert outcome(None, told, [pod()], NOW).ended == NOW
    assert outcome(None, told, [pod("Succeeded")], NOW).ended is None


def test_a_job_that_gets_no_pod_for_a_minute_needs_a_person() -> None:
    overdue = outcome(job(), None, [], NOW + timedelta(minutes=2))
    assert overdue.blocked
    assert "`kubectl describe job x` tells why" in overdue.message


def test_why_a_rayjob_has_no_pod_is_told_by_its_cluster() -> None:
    late = NOW + timedelta(minutes=2)
    found = outcome(rayjob("Initializing", rayClusterName="x-abcde"), None, [], late)
    assert found.blocked
    assert found.message == "RayJob x has no pod yet; `kubectl describe rayjob/x raycluster/x-abcde` tells why"
    assert outcome(rayjob(), None, [], late).message.endswith("`kubectl describe rayjob x` tells why")
    begun = outcome(rayjob("Initializing", rayClusterName="x-abcde"), report("Running"), [], NOW)
    assert "if that lasts, `kubectl describe rayjob/x raycluster/x-abcde` tells why" in begun.message


def test_what_needs_a_person_is_told_first() -> None:
    pods = [pod("Pending", **unschedulable(JUST_NOW)), pod("Pending", **state("waiting", reason="ErrImagePull"))]
    trouble = pod_trouble(pods, NOW)
    assert trouble is not None
    assert trouble.reason == "ImagePullFailed"
    assert pod_trouble([pod()], NOW) is None


def test_a_job_has_one_pod_and_knows_whose_fault_a_failure_is() -> None:
    made = build_job(OWNER, "train", "x", TEMPLATE, annotations={"a": "b"}, deadline_seconds=60)
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert made["metadata"]["annotations"] == {"a": "b"}
    assert made["spec"] == {
        "backoffLimit": 3,
        "completions": 1,
        "parallelism": 1,
        "activeDeadlineSeconds": 60,
        "podFailurePolicy": {
            "rules": [
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2]}},
            ]
        },
        "template": TEMPLATE,
    }


def test_a_rayjob_is_never_retried_by_kuberay_and_leaves_no_cluster() -> None:
    group = WorkerGroup(TEMPLATE, 3, {"num-cpus": "4"})
    spec = build_rayjob(OWNER, "train", "x", TEMPLATE, group, "ensemble train", {"num-cpus": "0"})["spec"]
    cluster = spec.pop("rayClusterSpec")
    assert spec == {
        "entrypoint": "ensemble train",
        "submissionMode": "HTTPMode",
        "shutdownAfterJobFinishes": True,
        "backoffLimit": 0,
    }
    (workers,) = cluster["workerGroupSpecs"]
    assert (workers["replicas"], workers["minReplicas"], workers["maxReplicas"]) == (3, 3, 3)


def test_ray_is_that_of_the_images() -> None:
    pins = (Path(__file__).parents[3] / "requirements/dev.txt").read_text()
    assert re.findall(r"^ray(?:\[\w+\])?==(\S+)", pins, re.MULTILINE) == [RAY_VERSION]
