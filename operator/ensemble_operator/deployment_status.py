"""What is to be said of a deployment: where its rollout stands, and what serves (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from ensemble_core.api.ensembledeployment import (
    EnsembleDeployment,
    EnsembleDeploymentStatus,
    LoadedModel,
    MatrixRow,
    Measurement,
)
from ensemble_operator import reasons, verdicts, workload
from ensemble_operator.deployment_aim import Aim, wish_of
from ensemble_operator.identity import report_name
from ensemble_operator.names import REVISION, Owner, text_hash
from ensemble_operator.readings import name_of, pods_of
from ensemble_operator.reports import MOST, Number, Report, Untrusted, Word, read_report, typed
from ensemble_operator.revisions import Look, Record
from ensemble_operator.rollout import Seen, Step, trouble
from ensemble_operator.serving import Allocation, child_of, endpoint, service_name
from ensemble_operator.verdicts import Verdicts
from ensemble_operator.world import Verdict, World


@dataclass(frozen=True)
class State:
    """Where the way to the target stands."""

    reason: str
    message: str
    goes_on: bool
    blocked: bool


def find_state(world: World[EnsembleDeployment], look: Look, aim: Aim) -> State:
    """Where the way to what should serve stands."""
    target, there = aim.target, look.there
    if target is None:
        return State(aim.reason, f"{aim.message}{_way_out(world, look, aim, aim.reason)}", aim.goes_on, aim.blocked)
    if target not in there:
        return State(reasons.ROLLING_OUT, f"a new revision, {target}, is being made", True, False)
    new = there[target]
    unreachable = f"; there is no Service {service_name(look.owner)} yet" if look.selected is None else ""
    counted = f"{new.answering} of {new.wanted} copies answer{unreachable}"
    if new.complete and look.selected == target and len(there) == 1:
        return State(reasons.SERVING, counted, False, False)
    pods = pods_of(world.of_kind("Pod"), REVISION, target)
    problem = None if new.complete else trouble(look.deployments[target], pods, world.now)
    if problem is not None:
        told = f"{counted}; {problem.message}{_way_out(world, look, aim, problem.reason)}"
        return State(problem.reason, told, not problem.blocked, problem.blocked)
    notes = [one.progress.note for one in _agent_reports(world, look.owner, look.records.get(target))]
    note = next((f"; the agent says: {said}" for said in notes if said), "")
    if new.expired and not new.proven:
        late = f"{counted} after {world.resource.spec.rollout.progress_deadline_seconds} s{note}"
        advice = f"see `kubectl logs deployment/{child_of(look.owner, target)} --all-containers`"
        slow = "raise rollout.progressDeadlineSeconds if it is only slow"
        return State(reasons.ROLLOUT_FAILED, f"{late}; {advice}, or {slow}", False, True)
    scales = new.proven and look.selected == target and set(there) == {target}
    reason = reasons.SCALING if scales else reasons.ROLLING_OUT
    return State(reason, f"{counted}{note}", True, False)


def _way_out(world: World[EnsembleDeployment], look: Look, aim: Aim, reason: str) -> str:
    """What else may be done where old copies hold the devices, or the quota, that new ones wait for."""
    old = look.there.get(look.selected or "") if look.selected != aim.target else None
    waits = reason in (reasons.INSUFFICIENT_DEVICES, reasons.QUEUED)
    if not waits or world.resource.spec.rollout.strategy == "Recreate" or old is None:
        return ""
    return "; the old copies hold devices until the new ones answer: rollout.strategy: Recreate gives them up first"


def conclude(world: World[EnsembleDeployment], look: Look, aim: Aim, state: State) -> Verdicts:
    """What is to be said.

    Ready tells whether requests are answered as the document asks: also while a newer selection of the same document is
    on its way, but not by a revision of an earlier document. It counts where the Service that is there sends them, not
    where it should: the name may be somebody else's.
    """
    if world.resource.spec.suspend:
        return verdicts.stopped(reasons.SUSPENDED, "no pod runs; spec.suspend: false starts them again", False)
    ready = Verdict("Ready", "False", state.reason, state.message)
    serving, record = look.there.get(look.selected or ""), look.records.get(look.selected or "")
    if serving is not None and serving.answering:
        as_asked = look.selected == aim.target or (record is not None and record.wish == wish_of(world))
        if as_asked:
            ready = Verdict("Ready", "True", reasons.SERVING, _serving(world, look, serving, record))
        else:
            ready = Verdict("Ready", "False", state.reason, f"{state.message}; requests are answered as before")
    return (
        ready,
        Verdict("Progressing", "True" if state.goes_on else "False", state.reason, state.message),
        Verdict("Degraded", "True", state.reason, state.message) if state.blocked else verdicts.fine(),
    )


def _serving(world: World[EnsembleDeployment], look: Look, serving: Seen, record: Record | None) -> str:
    """What is served, in a sentence."""
    spec = world.resource.spec.serving
    told = f"{serving.answering} of {serving.wanted} copies answer"
    told += f" at {endpoint(look.owner, look.service)}" if look.service is not None else ""
    summary = _summary(_agent_reports(world, look.owner, record))
    if summary.revivals:
        told += f"; the agent has revived dead models, {summary.revivals} times"
    if summary.repaired:
        told += f"; the agent has put models right that differed from the allocation, {summary.repaired} times"
    if spec.monitoring.service_monitor and "ServiceMonitor" not in world.capabilities:
        told += "; the cluster has no ServiceMonitor, so none is made"
    return told


# --- status ---------------------------------------------------------------------------------------------------------


class Loaded(Untrusted):
    model_id: Word
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class AgentSummary(Untrusted):
    """What an agent tells of the server beside it, or all agents of a revision of theirs."""

    loaded: Annotated[list[Loaded], Field(max_length=256)] = Field(default_factory=list)
    revivals: Number = 0
    repaired: Number = 0


def _agent_reports(world: World[EnsembleDeployment], owner: Owner, record: Record | None) -> list[Report]:
    """What the agents of a revision have told last, each under the name of its pod, of those pods that are there."""
    if record is None:
        return []
    config_map, text = world.child("ConfigMap", report_name(child_of(owner, record.revision))), text_hash(record.text)
    pods = pods_of(world.of_kind("Pod"), REVISION, record.revision)
    found = (read_report(config_map, "agent", text, owner.uid, key=name_of(pod)) for pod in pods)
    return [report for report in found if report is not None]


def _summary(reports: Iterable[Report]) -> AgentSummary:
    """Together: what the copy with most models has loaded, for one with less is starting or being repaired."""
    told = [one for report in reports if (one := typed(AgentSummary, report.progress.summary)) is not None]
    return AgentSummary(
        loaded=max((one.loaded for one in told), key=len, default=[]),
        revivals=min(sum(one.revivals for one in told), MOST),
        repaired=min(sum(one.repaired for one in told), MOST),
    )


def fields(world: World[EnsembleDeployment], look: Look, aim: Aim, step: Step) -> Mapping[str, Any]:
    """The status: of the revision that gets requests, or of the one that should."""
    record = look.records.get(step.selected or "")
    allocation = record.allocation if record else aim.served.allocation if aim.served else None
    deployment = look.deployments.get(step.selected or "", {})
    summary = _summary(_agent_reports(world, look.owner, record))
    content = EnsembleDeploymentStatus(
        endpoint=None if look.service is None else endpoint(look.owner, look.service),
        ready_replicas=None if step.selected is None else (deployment.get("status") or {}).get("readyReplicas", 0),
        loaded=tuple(LoadedModel(**one.model_dump()) for one in summary.loaded) if deployment else (),
    )
    return workload.filled(content if allocation is None else _with_allocation(content, allocation))


def _with_allocation(content: EnsembleDeploymentStatus, allocation: Allocation) -> EnsembleDeploymentStatus:
    speed = None if allocation.throughput is None else allocation.throughput.samples_per_second
    return content.model_copy(
        update={
            "members": len(allocation.members) or None,
            "member_ids": tuple(member.model_id for member in allocation.members),
            "matrix": _matrix(allocation),
            "performance": None
            if speed is None
            else Measurement(images_per_second=speed, obtained="measured", bound_images_per_second=allocation.bound),
            "throughput": None if speed is None else f"{speed:.0f} img/s",
            "selection_digest": allocation.selection.digest,
            "allocation_digest": allocation.digest,
        }
    )


def _matrix(allocation: Allocation) -> tuple[MatrixRow, ...]:
    """Its rows, as a document may have them; none if they are too many for a report."""
    if len(allocation.matrix) != len(allocation.devices):
        return ()
    complete = [*map(len, allocation.shares)] == [*map(len, allocation.matrix)]
    shares = allocation.shares if complete else (None,) * len(allocation.matrix)
    rows = zip(allocation.devices, allocation.matrix, shares, strict=True)
    return tuple(MatrixRow(device=device.name, batch_sizes=sizes, shares=own) for device, sizes, own in rows)
