"""What is to be said of a deployment: where its rollout stands, and what serves (pure)."""

from __future__ import annotations

from collections.abc import Mapping
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
from ensemble_operator.jobs import pods_of
from ensemble_operator.names import REVISION, Owner, text_hash
from ensemble_operator.reports import Number, Report, Untrusted, Word, read_report, typed
from ensemble_operator.revisions import Look, Record
from ensemble_operator.rollout import Seen, Step, trouble
from ensemble_operator.serving import Allocation, child_of, endpoint
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
    counted = f"{new.answering} of {new.wanted} copies answer"
    if new.complete and look.selected == target and len(there) == 1:
        return State(reasons.SERVING, counted, False, False)
    pods = pods_of(world.of_kind("Pod"), REVISION, target)
    problem = None if new.complete else trouble(look.deployments[target], pods, world.now)
    if problem is not None:
        told = f"{counted}; {problem.message}{_way_out(world, look, aim, problem.reason)}"
        return State(problem.reason, told, not problem.blocked, problem.blocked)
    report = _agent_report(world, look.owner, look.records.get(target))
    note = f"; the agent says: {report.progress.note}" if report is not None and report.progress.note else ""
    if new.expired and not new.proven:
        late = f"{counted} after {world.resource.spec.rollout.progress_deadline_seconds} s{note}"
        advice = f"see `kubectl logs deployment/{child_of(look.owner, target)} --all-containers`"
        slow = "raise rollout.progressDeadlineSeconds if it is only slow"
        return State(reasons.ROLLOUT_FAILED, f"{late}; {advice}, or {slow}", False, True)
    reason = reasons.SCALING if new.proven and set(there) == {target} else reasons.ROLLING_OUT
    return State(reason, f"{counted}{note}", True, False)


def _way_out(world: World[EnsembleDeployment], look: Look, aim: Aim, reason: str) -> str:
    """What else may be done where old copies hold the devices that new ones wait for."""
    old = look.there.get(look.selected or "") if look.selected != aim.target else None
    if reason != reasons.INSUFFICIENT_DEVICES or world.resource.spec.rollout.strategy == "Recreate" or old is None:
        return ""
    return "; the old copies keep theirs until the new ones answer: rollout.strategy: Recreate gives them up first"


def conclude(world: World[EnsembleDeployment], look: Look, aim: Aim, step: Step, state: State) -> Verdicts:
    """What is to be said.

    Ready tells whether requests are answered as the document asks: also while a newer selection of the same document is
    on its way, but not by a revision of an earlier document.
    """
    if world.resource.spec.suspend:
        return verdicts.stopped(reasons.SUSPENDED, "no pod runs; spec.suspend: false starts them again", False)
    ready = Verdict("Ready", "False", state.reason, state.message)
    serving, record = look.there.get(step.selected or ""), look.records.get(step.selected or "")
    if serving is not None and serving.answering:
        as_asked = step.selected == aim.target or (record is not None and record.wish == wish_of(world))
        if as_asked:
            ready = Verdict("Ready", "True", reasons.SERVING, _serving(world, look, serving, record))
        else:
            ready = Verdict("Ready", "False", state.reason, f"{state.message}; requests are answered as before")
    return (
        ready,
        Verdict("Progressing", "True" if state.goes_on else "False", state.reason, state.message),
        Verdict("Degraded", "True", state.reason, state.message)
        if state.blocked
        else Verdict("Degraded", "False", reasons.AS_EXPECTED, ""),
    )


def _serving(world: World[EnsembleDeployment], look: Look, serving: Seen, record: Record | None) -> str:
    """What is served, in a sentence."""
    spec = world.resource.spec.serving
    told = f"{serving.answering} of {serving.wanted} copies answer at {endpoint(look.owner, spec)}"
    summary = _summary(_agent_report(world, look.owner, record))
    if summary is not None and summary.revivals:
        told += f"; the agent has revived dead models, {summary.revivals} times"
    if summary is not None and summary.repaired:
        told += f"; the agent has put models right that differed from the allocation, {summary.repaired} times"
    if spec.monitoring.service_monitor and "ServiceMonitor" not in world.capabilities:
        told += "; the cluster has no ServiceMonitor, so none is made"
    return told


# --- status ---------------------------------------------------------------------------------------------------------


class Loaded(Untrusted):
    model_id: Word
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class AgentSummary(Untrusted):
    """What the agent tells of the server beside it."""

    loaded: Annotated[list[Loaded], Field(max_length=256)] = Field(default_factory=list)
    revivals: Number = 0
    repaired: Number = 0


def _agent_report(world: World[EnsembleDeployment], owner: Owner, record: Record | None) -> Report | None:
    """What an agent of a revision has told last.

    All copies of a revision write the same report, so it is that of one of them: what each has loaded is the same, and
    if it is not, the one that repairs it tells.
    """
    if record is None:
        return None
    config_map = world.child("ConfigMap", report_name(child_of(owner, record.revision)))
    return read_report(config_map, "agent", text_hash(record.text), owner.uid)


def _summary(report: Report | None) -> AgentSummary | None:
    return None if report is None else typed(AgentSummary, report.progress.summary)


def fields(world: World[EnsembleDeployment], look: Look, aim: Aim, step: Step) -> Mapping[str, Any]:
    """The status: of the revision that gets requests, or of the one that should."""
    record = look.records.get(step.selected or "")
    allocation = record.allocation if record else aim.served.allocation if aim.served else None
    deployment = look.deployments.get(step.selected or "", {})
    summary = _summary(_agent_report(world, look.owner, record))
    content = EnsembleDeploymentStatus(
        endpoint=None if step.selected is None else endpoint(look.owner, world.resource.spec.serving),
        ready_replicas=None if step.selected is None else (deployment.get("status") or {}).get("readyReplicas", 0),
        loaded=tuple(LoadedModel(**one.model_dump()) for one in summary.loaded) if summary and deployment else (),
    )
    return workload.filled(content if allocation is None else _with_allocation(content, allocation))


def _with_allocation(content: EnsembleDeploymentStatus, allocation: Allocation) -> EnsembleDeploymentStatus:
    speed = None if allocation.throughput is None else allocation.throughput.samples_per_second
    fits = len(allocation.matrix) == len(allocation.devices)
    rows = zip(allocation.devices, allocation.matrix, strict=True) if fits else ()
    return content.model_copy(
        update={
            "members": len(allocation.members) or None,
            "member_ids": tuple(member.model_id for member in allocation.members),
            "matrix": tuple(MatrixRow(device=device.name, batch_sizes=sizes) for device, sizes in rows),
            "performance": None
            if speed is None
            else Measurement(images_per_second=speed, obtained="measured", bound_images_per_second=allocation.bound),
            "throughput": None if speed is None else f"{speed:.0f} img/s",
            "selection_digest": allocation.selection.digest,
            "allocation_digest": allocation.digest,
        }
    )
