"""How one revision of a served ensemble replaces another: which Deployments there should be, and which gets requests.

A revision is a Deployment whose pods never change. Every call looks at what there is and names the next step, so that a
rollout continues wherever the operator was interrupted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

from ensemble_operator import reasons
from ensemble_operator.jobs import ending, pod_trouble
from ensemble_operator.readings import conditions_by_type, container_statuses, name_of, phase
from ensemble_operator.reports import clean
from ensemble_operator.world import Manifest

Strategy = Literal["BlueGreen", "Recreate"]


@dataclass(frozen=True)
class Seen:
    """What a Deployment's status says.

    Args:
        wanted: Copies that there should be.
        answering: Copies that take requests.
        complete: Every copy that there should be takes requests.
        proven: It has taken requests, if maybe not now.
        expired: Its deadline passed before that.
        created: Time of creation as the API server writes it.
    """

    wanted: int
    answering: int
    complete: bool
    proven: bool
    expired: bool
    created: str


@dataclass(frozen=True)
class Step:
    """What should be now.

    Args:
        revisions: Those that have a Deployment.
        selected: The one that the Service sends requests to; none if there is nothing to send them to.
    """

    revisions: frozenset[str]
    selected: str | None


def seen(deployment: Manifest) -> Seen:
    """What the status of a Deployment says about the spec that it has now."""
    status = deployment.get("status") or {}
    reason = conditions_by_type(deployment).get("Progressing", {}).get("reason")
    known = status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0)
    wanted, answering = deployment["spec"].get("replicas", 1), status.get("availableReplicas", 0)
    return Seen(
        wanted=wanted,
        answering=answering,
        complete=known and answering >= wanted,
        # Kubernetes keeps this reason when pods fail later: it tells what has worked from what never did.
        proven=answering > 0 or reason == "NewReplicaSetAvailable",
        expired=reason == "ProgressDeadlineExceeded",
        created=deployment["metadata"].get("creationTimestamp", ""),
    )


def current(there: Mapping[str, Seen], selected: str | None) -> str | None:
    """The revision that serves, or did before it broke; none if no revision has ever answered.

    Args:
        there: Revisions that have a Deployment.
        selected: The one that the Service sends requests to. If it is not there, as when somebody deleted the Service,
            the best that is there takes its place.
    """
    if selected is not None and selected in there and there[selected].proven:
        return selected
    proven = [name for name, one in there.items() if one.proven]
    return max(proven, key=lambda name: (_worth(there[name]), there[name].created, name), default=None)


def next_step(
    strategy: Strategy,
    target: str | None,
    there: Mapping[str, Seen],
    selected: str | None,
    devices_needed: bool = False,
) -> Step:
    """The next step of a rollout.

    Args:
        strategy: `BlueGreen` sends requests to the new revision once all its copies answer, and removes the old one
            after that; `Recreate` removes the old one first.
        target: The revision that should serve; none while it is not known which.
        there: Revisions that have a Deployment.
        selected: The one that the Service sends requests to.
        devices_needed: The target cannot be found without the devices that the old revision holds.

    Returns:
        A step with at most two revisions. A revision that has never answered and is not the target is never kept: it
        serves nobody, and holds devices.
    """
    old = current(there, selected)
    if target is None:
        gone = strategy == "Recreate" and devices_needed
        return Step(frozenset() if old is None or gone else frozenset({old}), old or selected)
    if old in (None, target):
        return Step(_with(target, there, frozenset()), target)
    if strategy == "Recreate":
        return Step(frozenset(), old)  # which gets requests until it is gone
    return Step(_with(target, there, frozenset({old})), target if _better(target, old, there) else old)


def _with(target: str, there: Mapping[str, Seen], others: frozenset[str]) -> frozenset[str]:
    """The target beside the others; a new one waits until there is room for it."""
    return others | {target} if target in there or len(there) < 2 else others


def _better(target: str, old: str, there: Mapping[str, Seen]) -> bool:
    """Whether requests should go to the target from now on."""
    new = there.get(target)
    return new is not None and new.answering > 0 and (new.complete or there[old].answering == 0)


def _worth(one: Seen) -> tuple[bool, bool]:
    return one.complete, one.answering > 0


# --- what is in the way ---------------------------------------------------------------------------------------------


class Trouble(NamedTuple):
    """Why copies of a revision do not answer.

    Args:
        blocked: It has lasted, or will not pass by itself. Kubernetes tries on all the same.
    """

    reason: str
    message: str
    blocked: bool


def trouble(deployment: Manifest, pods: Sequence[Manifest], now: datetime) -> Trouble | None:
    """What is wrong with a revision's pods, in the words of the scheduler or of the container; none if nothing is.

    Args:
        deployment: The revision's.
        pods: Its pods.
        now: UTC.
    """
    failed = reasons.PODS_FAILING if seen(deployment).proven else reasons.ROLLOUT_FAILED
    waiting = pod_trouble(pods, now)
    if waiting is not None and waiting.reason == reasons.UNSCHEDULABLE:
        return Trouble(reasons.INSUFFICIENT_DEVICES, waiting.message, waiting.blocked)
    if waiting is not None and waiting.reason in (reasons.QUEUED, reasons.CLAIM_NOT_READY):
        return Trouble(waiting.reason, waiting.message, waiting.blocked)
    if waiting is not None:
        return Trouble(failed, waiting.message, waiting.blocked)
    if (words := next(_crashes(pods), None)) is not None:
        return Trouble(failed, words, True)
    if (refused := conditions_by_type(deployment, "True").get("ReplicaFailure")) is not None:
        return Trouble(failed, clean(f"its pods cannot be made: {refused.get('message', '')}"), True)
    return None


def _crashes(pods: Iterable[Manifest]) -> Iterator[str]:
    """The last words of containers that ended and do not answer again yet."""
    for pod in pods:
        if phase(pod) not in ("Pending", "Running"):
            continue
        for container in container_statuses(pod):
            state, last = container.get("state") or {}, container.get("lastState") or {}
            ended = state.get("terminated") or last.get("terminated") or {}
            loops = (state.get("waiting") or {}).get("reason") == "CrashLoopBackOff"
            if not container.get("ready") and (loops or ended.get("exitCode")):
                yield ending(f"container {container.get('name')} of pod {name_of(pod)}", ended)
