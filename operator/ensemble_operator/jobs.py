"""Jobs and RayJobs: how they are made, and what has become of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from ensemble_operator import reasons
from ensemble_operator.differences import is_deleting
from ensemble_operator.names import KUEUE_LABELS, Component, Owner, metadata
from ensemble_operator.readings import (
    conditions_by_type,
    container_statuses,
    has_begun,
    name_of,
    phase,
    read_time,
)
from ensemble_operator.reports import MAX_MESSAGE, Report, clean, last_lines
from ensemble_operator.world import Manifest

RAY_VERSION = "2.60.0"  # as in requirements/
BACKOFF_LIMIT = 3
USER_ERROR = 2  # exit code of a command that will not do better next time
DEADLINE = "DeadlineExceeded"  # of a Job: whatever else is told of it, it is not to go on
INTERRUPTED = "interrupted"  # the note of a workload that was cut off from outside
PATIENCE = timedelta(seconds=60)  # with a pod that has no room, before a person is asked to look
ROOM_SEEN = timedelta(seconds=5)  # in which the scheduler sees that there is room by now

State = Literal["Absent", "Waiting", "Running", "Succeeded", "Failed", "Lost"]


@dataclass(frozen=True)
class Outcome:
    """What has become of a workload.

    Args:
        state: `Lost` ended without a verdict of its own, by no fault of the work: it continues from the library.
        reason: Of the condition, where the state does not say all.
        message: For people.
        blocked: Nothing will change unless a person acts.
        ended: When it was lost.
    """

    state: State
    reason: str = ""
    message: str = ""
    blocked: bool = False
    ended: datetime | None = None

    @property
    def active(self) -> bool:
        """Whether it may still come to something by itself."""
        return self.state in ("Waiting", "Running")

    @property
    def wanted(self) -> bool:
        """Whether there should be a Job or RayJob: it has not ended, or not begun."""
        return self.active or self.state == "Absent"


# --- builders -------------------------------------------------------------------------------------------------------


def build_job(
    owner: Owner,
    component: Component,
    child: str,
    template: Manifest,
    *,
    annotations: Mapping[str, str] | None = None,
    deadline_seconds: int | None = None,
) -> Manifest:
    """A Job of one pod. A pod that is evicted or preempted does not count as a failure, a user's mistake is final."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(owner, component, child, child=child, extra_labels=owner.queue, annotations=annotations),
        "spec": {
            "backoffLimit": BACKOFF_LIMIT,
            "completions": 1,
            "parallelism": 1,
            **({"activeDeadlineSeconds": deadline_seconds} if deadline_seconds else {}),
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [USER_ERROR]}},
                ]
            },
            "template": template,
        },
    }


@dataclass(frozen=True)
class WorkerGroup:
    """Like worker pods of a Ray cluster."""

    template: Manifest
    replicas: int
    start_params: Mapping[str, str]


def build_rayjob(
    owner: Owner,
    component: Component,
    child: str,
    head: Manifest,
    workers: WorkerGroup,
    entrypoint: str,
    head_start_params: Mapping[str, str],
    *,
    annotations: Mapping[str, str] | None = None,
) -> Manifest:
    """A RayJob whose cluster ends with it. KubeRay never tries again: attempts are ours, and continue."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": metadata(owner, component, child, child=child, extra_labels=owner.queue, annotations=annotations),
        "spec": {
            "entrypoint": entrypoint,
            "submissionMode": "HTTPMode",
            "shutdownAfterJobFinishes": True,
            "backoffLimit": 0,
            "rayClusterSpec": {
                "rayVersion": RAY_VERSION,
                # Whoever reaches Ray's ports runs code: KubeRay makes a token of each cluster's own.
                "authOptions": {"mode": "token"},
                "headGroupSpec": {"rayStartParams": dict(head_start_params), "template": head},
                "workerGroupSpecs": [
                    {
                        "groupName": "workers",
                        "replicas": workers.replicas,
                        "minReplicas": workers.replicas,
                        "maxReplicas": max(workers.replicas, 1),
                        "rayStartParams": dict(workers.start_params),
                        "template": workers.template,
                    }
                ]
                if workers.replicas
                else [],
            },
        },
    }


# --- what has become of it ------------------------------------------------------------------------------------------


def outcome(child: Manifest | None, report: Report | None, pods: Sequence[Manifest], now: datetime) -> Outcome:
    """What has become of a Job or RayJob.

    Args:
        child: As it is in the cluster; none if there is none.
        report: Its own; a verdict in it is the best there is.
        pods: Its pods, those that are being deleted among them.
        now: UTC.

    A report of success is final. Without its object a workload is lost if it had begun, and absent if it had not; while
    its pods run all the same, as when somebody took the object's labels away, it was lost only now.
    """
    if report is not None and report.state == "Succeeded":
        return Outcome("Succeeded")
    if child is None:
        runs = any(phase(pod) == "Running" and not is_deleting(pod) for pod in pods)
        lost = Outcome("Lost", reasons.LOST, "it was deleted", ended=now if runs else None)
        return Outcome("Absent") if report is None else lost
    return (_rayjob if child["kind"] == "RayJob" else _job)(child, report, pods, now)


def _job(child: Manifest, report: Report | None, pods: Sequence[Manifest], now: datetime) -> Outcome:
    conditions = conditions_by_type(child, "True")
    if "Complete" in conditions or "SuccessCriteriaMet" in conditions:
        return Outcome("Succeeded")
    failed = conditions.get("Failed") or conditions.get("FailureTarget")
    if failed:
        said = str(failed.get("message", ""))
        if failed.get("reason") != DEADLINE and _is_interrupted(report):
            return _lost(child, report, said, failed.get("lastTransitionTime"))
        said = "; ".join(filter(None, (said, _outage(report))))
        return Outcome("Failed", message=_last_words(report, pods) or clean(said))
    if child["spec"].get("suspend"):
        return _queued(child)
    return _in_pods(child, report, pods, now)


def _rayjob(child: Manifest, report: Report | None, pods: Sequence[Manifest], now: datetime) -> Outcome:
    if report is not None and report.state == "Failed":
        return Outcome("Failed", message=_error(report))
    status = child.get("status") or {}
    deployment, job = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    said = last_lines(str(status.get("message", "")))
    if deployment == "ValidationFailed":
        return Outcome("Failed", message=f"KubeRay refuses RayJob {name_of(child)}: {said}")
    if job == "SUCCEEDED" and deployment == "Complete":
        return Outcome("Succeeded")
    if deployment in ("Complete", "Failed"):
        why = status.get("reason") or job
        return _lost(child, report, f"{why}: {said}" if said else why, _ended(status))
    if child["spec"].get("suspend") or deployment in ("Suspending", "Suspended"):
        return _queued(child)
    if deployment == "Running":
        trouble = pod_trouble(pods, now)
        return Outcome("Running", message=trouble.message if trouble else "")
    return _in_pods(child, report, pods, now)


def _in_pods(child: Manifest, report: Report | None, pods: Sequence[Manifest], now: datetime) -> Outcome:
    """Of a workload that may run: what its pods say."""
    trouble = pod_trouble(pods, now)
    if trouble is not None:
        return trouble
    if outage := _outage(report):
        again = f"{outage}; it is tried again, and continues where it was once that is over"
        return Outcome("Waiting", reasons.INTERRUPTED, again, blocked=True)
    live = [pod for pod in pods if phase(pod) in ("Pending", "Running") and not is_deleting(pod)]
    if child["kind"] == "Job" and any(phase(pod) == "Running" for pod in live):
        return Outcome("Running")
    if any(_profiling(pod) for pod in live):
        return Outcome("Running", reasons.PROFILING, "models are being profiled")
    if words := _last_words(report, pods):
        return Outcome("Running", message=f"is tried again after: {words}")
    if live:
        return Outcome("Waiting", reasons.STARTING, "its pods are being started")
    for pod in filter(is_deleting, pods):
        return _ending(pod, now)
    return _without_pod(child, report is not None or has_begun(child, pods), now)


def _ending(pod: Manifest, now: datetime) -> Outcome:
    """Of a workload whose next pod is made when this one is gone."""
    due = read_time(pod["metadata"]["deletionTimestamp"])
    if due is None or now - due <= PATIENCE:
        return Outcome("Waiting", reasons.STARTING, f"pod {name_of(pod)} is being ended; the next one continues")
    node = (pod.get("spec") or {}).get("nodeName", "")
    late = f"pod {name_of(pod)} on node {node} was to end by {due:%H:%M:%S} UTC and has not"
    advice = f"if that node is gone for good, `kubectl delete pod {name_of(pod)} --force` lets the next one continue"
    return Outcome("Waiting", reasons.STARTING, f"{late}; {advice}", blocked=True)


def _without_pod(child: Manifest, begun: bool, now: datetime) -> Outcome:
    """Of a workload that may run and has no pod: not yet, or between two of them."""
    kind, name = child["kind"], name_of(child)
    advice = f"`kubectl describe {_told_by(child)}` tells why"
    if begun:
        return Outcome("Waiting", reasons.STARTING, f"{kind} {name} has no pod now; if that lasts, {advice}")
    # Kubernetes sets the start anew when a queue lets a Job go.
    since = read_time((child.get("status") or {}).get("startTime")) or _created(child)
    overdue = since is not None and now - since > PATIENCE
    told = f"{kind} {name} has no pod yet" + (f"; {advice}" if overdue else "")
    return Outcome("Waiting", reasons.STARTING, told, blocked=overdue)


def _told_by(child: Manifest) -> str:
    """The objects whose events tell why a workload has no pod: of a RayJob its cluster's too, which makes the pods."""
    kind, name = child["kind"].lower(), name_of(child)
    cluster = clean(str((child.get("status") or {}).get("rayClusterName") or ""))
    return f"{kind}/{name} raycluster/{cluster}" if cluster else f"{kind} {name}"


def _queued(child: Manifest) -> Outcome:
    suspended = f"{child['kind']} {name_of(child)} is suspended by somebody else"
    place = _place(child) or f"{suspended}; it goes on once its spec.suspend is false"
    return Outcome("Waiting", reasons.QUEUED, place)


def _place(manifest: Manifest) -> str:
    """Where an object waits; empty if Kueue does not queue it."""
    queue = (manifest["metadata"].get("labels") or {}).get(KUEUE_LABELS[0])
    return f"waits in Kueue's queue {queue}; `kubectl describe workloads` tells why" if queue else ""


def _lost(child: Manifest, report: Report | None, message: str, when: object) -> Outcome:
    outage = _outage(report)
    said = clean(outage or message) or "it ended without a word"
    return Outcome("Lost", reasons.LOST, said, blocked=bool(outage), ended=read_time(when) or _created(child))


def _is_interrupted(report: Report | None) -> bool:
    return report is not None and report.state == "Running" and report.progress.note.startswith(INTERRUPTED)


def _outage(report: Report | None) -> str:
    """What failed under a workload that is not at fault, storage for example; empty if nothing did, or not any more."""
    note = report.progress.note if report is not None and report.state == "Running" else ""
    return note.removeprefix(f"{INTERRUPTED}: ") if note.startswith(f"{INTERRUPTED}: ") else ""


def _ended(status: Mapping[str, Any]) -> object:
    return status.get("endTime") or (status.get("rayJobInfo") or {}).get("endTime")


def pod_trouble(pods: Sequence[Manifest], now: datetime) -> Outcome | None:
    """Why one of the pods does not start, in a person's words; none if all do, or may yet."""
    starting = [pod for pod in pods if phase(pod) == "Pending" and not is_deleting(pod)]
    found = [trouble for pod in starting for trouble in _troubles(pod, now)]
    return min(found, key=lambda trouble: not trouble.blocked, default=None)


def trouble_in(pods: Sequence[Manifest], now: datetime) -> float | None:
    """Seconds until it is told of a pod that no node takes yet; none if there is no such pod."""
    waits = [wait for pod in pods if phase(pod) == "Pending" and (wait := _without_node(pod, now)) is not None]
    return min(((ROOM_SEEN - wait).total_seconds() for wait in waits if wait < ROOM_SEEN), default=None)


def _without_node(pod: Manifest, now: datetime) -> timedelta | None:
    """How long the scheduler has found no node for a pod; none if it has not said so."""
    scheduled = conditions_by_type(pod, "False").get("PodScheduled", {})
    if scheduled.get("reason") != "Unschedulable":
        return None
    since = read_time(scheduled.get("lastTransitionTime"))
    return ROOM_SEEN if since is None else now - since


_IMAGE = ("ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_CLAIM = re.compile(r'persistentvolumeclaim "([^"]+)"', re.IGNORECASE)
_CONFIG = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")


def _troubles(pod: Manifest, now: datetime) -> Iterator[Outcome]:
    if conditions_by_type(pod, "False").get("PodScheduled", {}).get("reason") == "SchedulingGated":
        gates = ", ".join(gate["name"] for gate in (pod.get("spec") or {}).get("schedulingGates") or ())
        held = f"pod {name_of(pod)} is held until its scheduling gates are gone: {gates}"
        yield Outcome("Waiting", reasons.QUEUED, _place(pod) or clean(held))
    waits = _without_node(pod, now)
    if waits is not None and waits >= ROOM_SEEN:
        yield _homeless(pod, waits > PATIENCE)
    for status in container_statuses(pod):
        waiting = (status.get("state") or {}).get("waiting") or {}
        said = clean(f"{waiting.get('reason')}: {waiting.get('message', '')}", 1024)
        if waiting.get("reason") in _IMAGE:
            advice = f"image {status.get('image')} cannot be pulled ({said}); check its name and imagePullSecrets"
            yield Outcome("Waiting", reasons.IMAGE_PULL_FAILED, clean(advice), blocked=True)
        if waiting.get("reason") in _CONFIG:
            advice = f"container {status.get('name')} of pod {name_of(pod)} cannot be started ({said})"
            yield Outcome("Waiting", reasons.CONTAINER_CONFIG_FAILED, clean(advice), blocked=True)


def _homeless(pod: Manifest, blocked: bool) -> Outcome:
    """Of a pod that no node takes: for want of a claim, which no room helps, or of room."""
    said = clean(str(conditions_by_type(pod, "False")["PodScheduled"].get("message", "")), 1024)
    # The scheduler appends the error of a preemption that it tried in vain.
    sentence = (said.removesuffix(" not found") if said.endswith(". not found") else said).rstrip(".")
    told = f"no node takes pod {name_of(pod)}: {sentence}."
    if "persistentvolumeclaim" not in said.lower():
        advice = f"{told} It waits for room; ask for less if there will be none"
        return Outcome("Waiting", reasons.UNSCHEDULABLE, advice, blocked)
    volumes = (pod.get("spec") or {}).get("volumes") or ()
    mounted = [one["persistentVolumeClaim"]["claimName"] for one in volumes if "persistentVolumeClaim" in one]
    claims = " ".join(_CLAIM.findall(said) or dict.fromkeys(mounted))
    advice = f"{told} Make the claim, or see what is wrong with it: `kubectl describe pvc {claims}`"
    return Outcome("Waiting", reasons.CLAIM_NOT_READY, advice, blocked)


def _last_words(report: Report | None, pods: Sequence[Manifest]) -> str:
    """Why a Job, or its last try, failed: its own words, else those of its newest pod that failed; or empty."""
    if report is not None and report.state == "Failed":
        return _error(report)
    failed = [pod for pod in pods if phase(pod) == "Failed"]
    newest_first = sorted(failed, key=lambda one: one["metadata"].get("creationTimestamp", ""), reverse=True)
    return next((words for pod in newest_first if (words := _words(pod))), "")


def _words(pod: Manifest) -> str:
    for status in container_statuses(pod):
        ended = (status.get("state") or {}).get("terminated") or {}
        if ended.get("exitCode"):
            return ending(f"container {status.get('name')}", ended)
    return clean(str((pod.get("status") or {}).get("message", "")))


def ending(container: str, ended: Mapping[str, Any]) -> str:
    """How a container ended, with the last lines of its log."""
    if ended.get("reason") == "OOMKilled":
        return f"{container} needed more memory than its limit; raise podOverrides.resources.limits.memory"
    log = last_lines(str(ended.get("message", "")))
    return f"{container} ended with code {ended.get('exitCode')}" + (f"\n{log}" if log else "")


def _error(report: Report) -> str:
    return clean(report.error.text(), 2 * MAX_MESSAGE) or "it failed without a word"


def _profiling(pod: Manifest) -> bool:
    return any(
        status.get("name") == "profile" and "running" in (status.get("state") or {})
        for status in container_statuses(pod)
    )


def _created(child: Manifest) -> datetime | None:
    return read_time(child["metadata"].get("creationTimestamp"))
