"""Jobs and RayJobs: how they are made, and what has become of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from ensemble_operator import reasons
from ensemble_operator.names import Component, Owner, metadata
from ensemble_operator.reports import MAX_MESSAGE, Report, clean, last_lines
from ensemble_operator.status import conditions_of
from ensemble_operator.world import Manifest

RAY_VERSION = "2.60.0"  # as in requirements/
BACKOFF_LIMIT = 3
USER_ERROR = 2  # exit code of a command that will not do better next time
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
        pods: Its pods.
        now: UTC.

    A report of success is final. Without its object a workload is lost if it had begun, and absent if it had not; while
    its pods run all the same, as when somebody took the object's labels away, it was lost only now.
    """
    if report is not None and report.state == "Succeeded":
        return Outcome("Succeeded")
    if child is None:
        runs = any(_phase(pod) == "Running" for pod in pods)
        lost = Outcome("Lost", reasons.LOST, "it was deleted", ended=now if runs else None)
        return Outcome("Absent") if report is None else lost
    return (_rayjob if child["kind"] == "RayJob" else _job)(child, report, pods, now)


def _job(child: Manifest, report: Report | None, pods: Sequence[Manifest], now: datetime) -> Outcome:
    conditions = _conditions(child)
    if "Complete" in conditions or "SuccessCriteriaMet" in conditions:
        return Outcome("Succeeded")
    failed = conditions.get("Failed") or conditions.get("FailureTarget")
    if failed:
        if report is not None and report.state == "Running" and report.progress.note.startswith(INTERRUPTED):
            outage = _outage(report)
            said = outage or str(failed.get("message", ""))
            return _lost(child, said, failed.get("lastTransitionTime"), blocked=bool(outage))
        return Outcome("Failed", message=_last_words(report, pods, str(failed.get("message", ""))))
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
        return Outcome("Failed", message=f"KubeRay refuses RayJob {_name(child)}: {said}")
    if job == "SUCCEEDED" and deployment == "Complete":
        return Outcome("Succeeded")
    if deployment in ("Complete", "Failed"):
        why = status.get("reason") or job
        return _lost(child, f"{why}: {said}" if said else why, _ended(status))
    if child["spec"].get("suspend") or deployment in ("Suspending", "Suspended"):
        return _queued(child)
    if deployment == "Running":
        trouble = pod_trouble(pods, now)
        return Outcome("Running", message=trouble.message if trouble else "")
    return _in_pods(child, None, pods, now)


def _in_pods(child: Manifest, report: Report | None, pods: Sequence[Manifest], now: datetime) -> Outcome:
    """Of a workload that may run: what its pods say."""
    trouble = pod_trouble(pods, now)
    if trouble is not None:
        return trouble
    if outage := _outage(report):
        again = f"{outage}; it is tried again, and continues where it was once that is over"
        return Outcome("Waiting", reasons.INTERRUPTED, again, blocked=True)
    live = [pod for pod in pods if _phase(pod) in ("Pending", "Running")]
    if child["kind"] == "Job" and any(_phase(pod) == "Running" for pod in live):
        return Outcome("Running")
    if any(_profiling(pod) for pod in live):
        return Outcome("Running", reasons.PROFILING, "models are being profiled")
    if report is not None and report.state == "Failed":
        return Outcome("Running", message=f"is tried again after: {_error(report)}")
    if live:
        return Outcome("Waiting", reasons.STARTING, "its pods are being started")
    overdue = _age(child, now) > PATIENCE
    kind, name = child["kind"], _name(child)
    advice = f"; `kubectl describe {kind.lower()} {name}` tells why" if overdue else ""
    return Outcome("Waiting", reasons.STARTING, f"{kind} {name} has no pod yet{advice}", blocked=overdue)


def _queued(child: Manifest) -> Outcome:
    queue = (child["metadata"].get("labels") or {}).get("kueue.x-k8s.io/queue-name")
    if queue:
        place = f"waits in Kueue's queue {queue}; `kubectl get workloads` shows its place"
        return Outcome("Waiting", reasons.QUEUED, place)
    place = f"{child['kind']} {_name(child)} is suspended by somebody else; it goes on once its spec.suspend is false"
    return Outcome("Waiting", reasons.QUEUED, place)


def _lost(child: Manifest, message: str, when: object, blocked: bool = False) -> Outcome:
    ended = read_time(when) or read_time(child["metadata"].get("creationTimestamp"))
    return Outcome("Lost", reasons.LOST, clean(message) or "it ended without a word", blocked, ended)


def _outage(report: Report | None) -> str:
    """What failed under a workload that is not at fault, storage for example; empty if nothing did, or not any more."""
    note = report.progress.note if report is not None and report.state == "Running" else ""
    return note.removeprefix(f"{INTERRUPTED}: ") if note.startswith(f"{INTERRUPTED}: ") else ""


def _ended(status: Mapping[str, Any]) -> object:
    return status.get("endTime") or (status.get("rayJobInfo") or {}).get("endTime")


def pod_trouble(pods: Sequence[Manifest], now: datetime) -> Outcome | None:
    """Why one of the pods does not start, in a person's words; none if all do, or may yet."""
    found = [trouble for pod in pods if _phase(pod) == "Pending" for trouble in _troubles(pod, now)]
    return min(found, key=lambda trouble: not trouble.blocked, default=None)


def trouble_in(pods: Sequence[Manifest], now: datetime) -> float | None:
    """Seconds until it is told of a pod that no node takes yet; none if there is no such pod."""
    waits = [wait for pod in pods if _phase(pod) == "Pending" and (wait := _without_node(pod, now)) is not None]
    return min(((ROOM_SEEN - wait).total_seconds() for wait in waits if wait < ROOM_SEEN), default=None)


def _without_node(pod: Manifest, now: datetime) -> timedelta | None:
    """How long the scheduler has found no node for a pod; none if it has not said so."""
    scheduled = _conditions(pod, "False").get("PodScheduled", {})
    if scheduled.get("reason") not in ("Unschedulable", "SchedulingGated"):
        return None
    since = read_time(scheduled.get("lastTransitionTime"))
    return ROOM_SEEN if since is None else now - since


_IMAGE = ("ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_CONFIG = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")


def _troubles(pod: Manifest, now: datetime) -> Iterator[Outcome]:
    waits = _without_node(pod, now)
    if waits is not None and waits >= ROOM_SEEN:
        said = clean(str(_conditions(pod, "False")["PodScheduled"].get("message", "")), 1024)
        advice = f"no node takes pod {_name(pod)}: {said} It waits for room; ask for less if there will be none"
        yield Outcome("Waiting", reasons.UNSCHEDULABLE, advice, blocked=waits > PATIENCE)
    for status in _container_statuses(pod):
        waiting = (status.get("state") or {}).get("waiting") or {}
        said = clean(f"{waiting.get('reason')}: {waiting.get('message', '')}", 1024)
        if waiting.get("reason") in _IMAGE:
            advice = f"image {status.get('image')} cannot be pulled ({said}); check its name and imagePullSecrets"
            yield Outcome("Waiting", reasons.IMAGE_PULL_FAILED, clean(advice), blocked=True)
        if waiting.get("reason") in _CONFIG:
            advice = f"container {status.get('name')} of pod {_name(pod)} cannot be started ({said})"
            yield Outcome("Waiting", reasons.CONTAINER_CONFIG_FAILED, clean(advice), blocked=True)


def _last_words(report: Report | None, pods: Sequence[Manifest], otherwise: str) -> str:
    """Why a Job failed: its own words, else those of its newest pod that failed."""
    if report is not None and report.state == "Failed":
        return _error(report)
    failed = [pod for pod in pods if _phase(pod) == "Failed"]
    for pod in sorted(failed, key=lambda one: one["metadata"].get("creationTimestamp", ""), reverse=True):
        if words := _words(pod):
            return words
    return clean(otherwise)


def _words(pod: Manifest) -> str:
    for status in _container_statuses(pod):
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


# --- readings of Kubernetes' objects --------------------------------------------------------------------------------


def has_begun(child: Manifest, pods: Iterable[Manifest]) -> bool:
    """Whether one of a workload's containers has ever started, as far as its object and its pods tell."""
    status = child.get("status") or {}
    counted = any(status.get(count) for count in ("ready", "succeeded", "failed"))
    states = [one for pod in pods for one in _container_statuses(pod)]
    return counted or any(one.get("lastState") or (one.get("state") or {}).keys() - {"waiting"} for one in states)


def pods_of(pods: Iterable[Manifest], label: str, value: str) -> list[Manifest]:
    """Those pods that carry a label of that value."""
    return [pod for pod in pods if (pod["metadata"].get("labels") or {}).get(label) == value]


def read_time(text: object) -> datetime | None:
    """A time as Kubernetes writes it, in UTC; none if it is none, or of another age."""
    try:
        time = datetime.fromisoformat(text) if isinstance(text, str) else None
        return time.astimezone(UTC) if time is not None and time.tzinfo is not None and time.year >= 1970 else None
    except (ValueError, OverflowError):
        return None


def _conditions(manifest: Manifest, status: str = "True") -> dict[str, Mapping[str, Any]]:
    return {condition["type"]: condition for condition in conditions_of(manifest) if condition.get("status") == status}


def _container_statuses(pod: Manifest) -> list[Mapping[str, Any]]:
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def _profiling(pod: Manifest) -> bool:
    return any(
        status.get("name") == "profile" and "running" in (status.get("state") or {})
        for status in _container_statuses(pod)
    )


def _phase(pod: Manifest) -> str:
    return str((pod.get("status") or {}).get("phase", "Pending"))


def _name(manifest: Manifest) -> str:
    return str(manifest["metadata"]["name"])


def _age(manifest: Manifest, now: datetime) -> timedelta:
    created = read_time(manifest["metadata"].get("creationTimestamp"))
    return timedelta(0) if created is None else now - created
