"""EnsembleDeployment: a Job that spreads an ensemble over devices, and Deployments that serve it one after another.

What should serve is a revision, found in three steps: the ensemble that the selection has now, its allocation, and the
pods made of both. A revision's own ConfigMap remembers its allocation, so that a document that was there before finds
its revision again without a Job.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any

from pydantic import Field, ValidationError

from ensemble_core.api.ensembledeployment import (
    EnsembleDeployment,
    EnsembleDeploymentSpec,
    EnsembleDeploymentStatus,
    LoadedModel,
    MatrixRow,
    Measurement,
)
from ensemble_core.api.ensembleselection import BEST_SINGLE, EnsembleSelection, EnsembleSelectionStatus
from ensemble_core.api.hposearch import HPOSearch
from ensemble_core.errors import UserError
from ensemble_core.frozen import digest
from ensemble_operator import reasons, verdicts, workload
from ensemble_operator.identity import report_name, service_account, spec_name
from ensemble_operator.jobs import PATIENCE, build_job, pods_of, read_time
from ensemble_operator.names import BASIS, CHILD, COMPONENT, REVISION, Component, Owner, owner_of, text_hash
from ensemble_operator.pods import (
    SPEC_KEY,
    command,
    pod_spec,
    report_env,
    shared_memory,
    spec_volume,
    template,
    token_volume,
    workload_container,
)
from ensemble_operator.reports import Number, Report, Untrusted, Word, read_report, typed
from ensemble_operator.rollout import Seen, Step, next_step, seen, trouble
from ensemble_operator.serving import (
    ALLOCATION_KEY,
    STORAGES_KEY,
    WISH,
    Allocation,
    Served,
    build_autoscaler,
    build_deployment,
    build_disruption_budget,
    build_identity,
    build_network_policy,
    build_record,
    build_service,
    build_service_monitor,
    child_of,
    device_pod,
    endpoint,
    image,
    read_storages,
    service_name,
)
from ensemble_operator.settings import Settings
from ensemble_operator.storages import Resolved, reference, resolve
from ensemble_operator.verdicts import Verdicts
from ensemble_operator.workload import LOOK_AGAIN, Start, Wish, maps
from ensemble_operator.world import Decision, Manifest, Ref, Verdict, World

ALLOCATE: Component = "allocate"
REMEMBERED = 2  # revisions
RUNS_AGAIN = (reasons.SELECTING, reasons.PROFILING)


class EnsembleDeploymentKind:
    """The kind, as the engine sees it."""

    model = EnsembleDeployment
    plural = "ensembledeployments"

    def references(self, resource: EnsembleDeployment, body: Manifest) -> tuple[Ref, ...]:
        """The selection, and the searches of which it names some."""
        return Ref("EnsembleSelection", resource.spec.selection_ref.name), Ref("HPOSearch", "*")

    def decide(self, world: World[EnsembleDeployment]) -> Decision:
        try:
            return _decide(world)
        except UserError as refused:
            return workload.refused(world, str(refused))


KIND = EnsembleDeploymentKind()


def _decide(world: World[EnsembleDeployment]) -> Decision:
    spec, look = world.resource.spec, look_at(world)
    aim = find_aim(world, look)
    if spec.suspend:
        step = Step(frozenset(), look.selected)
    else:
        step = next_step(spec.rollout.strategy, aim.target, look.there, look.selected, aim.devices_needed)
        if aim.as_before and not step.revisions and rebuilt(world, look, step.selected) is not None:
            step = Step(frozenset({step.selected or ""}), step.selected)
    state = find_state(world, look, aim)
    return Decision(
        objects=(*aim.objects, *desired(world, look, aim, step)),
        keep=aim.keep | _kept(world, look, step, aim.target),
        conditions=conclude(world, look, aim, step, state),
        status=fields(world, look, aim, step),
        again_after=aim.again_after or (LOOK_AGAIN if state.goes_on and not spec.suspend else None),
    )


# --- what there is --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """What the ConfigMap of a revision remembers.

    Args:
        text: The documents that its pods read.
        resolved: The same with what their storages need; none in a record that does not tell.
        basis: What its allocation was found for.
        wish: The part of the deployment's own document that it was made for.
        created: As Kubernetes writes it.
    """

    revision: str
    text: str
    resolved: Resolved | None
    allocation: Allocation
    basis: str
    wish: str
    created: str


@dataclass(frozen=True)
class Look:
    """What there is of a deployment.

    Args:
        records: By revision, the newest first.
        deployments: By revision.
        selected: The revision that the Service sends requests to; none if there is no Service.
    """

    owner: Owner
    records: Mapping[str, Record]
    deployments: Mapping[str, Manifest]
    selected: str | None

    @property
    def there(self) -> dict[str, Seen]:
        return {revision: seen(deployment) for revision, deployment in self.deployments.items()}

    def record_of(self, basis: str) -> Record | None:
        """The newest record of an allocation for this basis."""
        return next((record for record in self.records.values() if record.basis == basis), None)


def look_at(world: World[EnsembleDeployment]) -> Look:
    """What there is, by revision."""
    owner = owner_of(world.resource, world.body)
    records = [record for manifest in world.of_kind("ConfigMap") if (record := _record(owner, manifest)) is not None]
    newest = sorted(records, key=lambda record: (record.created, record.revision), reverse=True)
    deployments = {_revision(one): one for one in world.of_kind("Deployment")}
    service = world.child("Service", service_name(owner)) or {}
    return Look(
        owner=owner,
        records={record.revision: record for record in newest},
        deployments={revision: one for revision, one in deployments.items() if revision},
        selected=((service.get("spec") or {}).get("selector") or {}).get(REVISION),
    )


def _record(owner: Owner, manifest: Manifest) -> Record | None:
    """The record in a ConfigMap; none if it is no record."""
    metadata, data = manifest["metadata"], manifest.get("data") or {}
    revision, notes = _revision(manifest), metadata.get("annotations") or {}
    if not revision or metadata["name"] != spec_name(child_of(owner, revision)):
        return None
    try:
        allocation = Allocation.model_validate(json.loads(data.get(ALLOCATION_KEY, "")))
    except ValueError:
        return None
    created = metadata.get("creationTimestamp") or ""
    text = data.get(SPEC_KEY, "")
    resolved = read_storages(text, data.get(STORAGES_KEY, ""))
    return Record(revision, text, resolved, allocation, notes.get(BASIS, ""), notes.get(WISH, ""), created)


def rebuilt(world: World[EnsembleDeployment], look: Look, revision: str | None) -> Served | None:
    """What a revision is made of, from its record; none if its pods would be others now."""
    record = look.records.get(revision or "")
    if record is None or record.resolved is None:
        return None
    served = Served(look.owner, world.resource.spec, world.settings, record.resolved, record.allocation)
    return served if served.revision() == revision else None


def _revision(manifest: Manifest) -> str:
    return str(manifest["metadata"]["labels"].get(REVISION, ""))


# --- what should serve ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Aim:
    """What should serve; or why it is not known, and what is done to find out.

    Args:
        served: What should serve.
        basis: What its allocation is found for.
        reason, message: Of the condition, while it is not known.
        goes_on: Whether something is under way that will tell.
        blocked: Whether a person should look.
        objects: Of the Job that finds the allocation.
        keep: Of that Job and of earlier ones.
        devices_needed: That Job has waited for devices in vain.
        as_before: What served before should serve on, also if somebody has deleted it.
    """

    served: Served | None = None
    basis: str = ""
    reason: str = ""
    message: str = ""
    goes_on: bool = True
    blocked: bool = False
    objects: tuple[Manifest, ...] = ()
    keep: frozenset[Ref] = frozenset()
    devices_needed: bool = False
    as_before: bool = False
    again_after: float | None = None

    @cached_property
    def target(self) -> str | None:
        """The revision that should serve."""
        return self.served.revision() if self.served else None


@dataclass(frozen=True)
class Ensemble:
    """The ensemble that a selection has now.

    Args:
        digest: Of the selection's result.
        again: Whether the selection is at work on another one.
    """

    selection: EnsembleSelection
    searches: tuple[HPOSearch, ...]
    digest: str
    again: bool


def find_aim(world: World[EnsembleDeployment], look: Look) -> Aim:
    """What should serve.

    Raises:
        UserError: a storage that no pod can have.
    """
    ensemble = find_ensemble(world)
    if isinstance(ensemble, Ensemble):
        return find_allocation(world, look, ensemble)
    # While it is not known what to optimise, what was optimised before is not given up.
    own = [ref for ref, one in world.children.items() if one["metadata"]["labels"].get(COMPONENT) == ALLOCATE]
    return replace(ensemble, keep=frozenset(own), as_before=True)


def find_ensemble(world: World[EnsembleDeployment]) -> Ensemble | Aim:
    """The ensemble that is referred to, or why there is none."""
    name, budget = world.resource.spec.selection_ref.name, world.resource.spec.selection_ref.budget_name
    manifest = world.others.get(Ref("EnsembleSelection", name))
    if manifest is None:
        message = f"waits: there is no EnsembleSelection {name} in this namespace"
        return Aim(reason=reasons.SELECTION_MISSING, message=message)
    selection, status = workload.parsed(EnsembleSelection, manifest), _status(manifest)
    if selection is None or status is None or status.digest is None:
        return Aim(reason=reasons.SELECTION_NOT_READY, message=f"waits for EnsembleSelection {name}{_why(manifest)}")
    chosen = {one.name: one for one in status.budgets}
    if budget != BEST_SINGLE and budget not in chosen:
        wanted = [one.name for one in selection.spec.budgets]
        if budget in wanted:
            message = f"waits for the ensemble of the budget {budget} of EnsembleSelection {name}{_why(manifest)}"
            return Aim(reason=reasons.SELECTION_NOT_READY, message=message)
        known = f"EnsembleSelection {name} has no budget {budget}; there is {', '.join([*wanted, BEST_SINGLE])}"
        return _stuck(reasons.BUDGET_UNKNOWN, known)
    if budget != BEST_SINGLE and not chosen[budget].members:
        why = chosen[budget].reason or "no reason is given"
        return _stuck(reasons.NO_ENSEMBLE, f"the budget {budget} of EnsembleSelection {name} has no ensemble: {why}")
    searches = {source.hpo_search_name: None for source in selection.spec.sources if source.hpo_search_name}
    found = {one: world.others.get(Ref("HPOSearch", one)) for one in searches}
    parsed = {one: workload.parsed(HPOSearch, body) for one, body in found.items() if body is not None}
    missing = [one for one in searches if parsed.get(one) is None]
    if missing:
        message = f"waits: EnsembleSelection {name} names HPOSearch {', '.join(missing)}, which is missing or not valid"
        return Aim(reason=reasons.SELECTION_NOT_READY, message=message)
    references = tuple(reference(search) for search in parsed.values() if search is not None)
    return Ensemble(selection, references, status.digest, _runs_again(manifest))


def _stuck(reason: str, message: str) -> Aim:
    """Nothing will change unless a person acts."""
    return Aim(reason=reason, message=message, goes_on=False, blocked=True)


def _status(manifest: Manifest) -> EnsembleSelectionStatus | None:
    try:
        return EnsembleSelectionStatus.model_validate(manifest.get("status") or {})
    except ValidationError:
        return None


def _conditions(manifest: Manifest) -> dict[str, Manifest]:
    return {one["type"]: one for one in (manifest.get("status") or {}).get("conditions") or ()}


def _why(manifest: Manifest) -> str:
    """What a selection that has no result says itself."""
    message = _conditions(manifest).get("Ready", {}).get("message", "")
    return f": {message}" if message else ""


def _runs_again(manifest: Manifest) -> bool:
    """Whether a selection is at work on another result: the one it has may belong to an earlier document of it."""
    progressing = _conditions(manifest).get("Progressing", {})
    stale = (manifest.get("status") or {}).get("observedGeneration") != manifest["metadata"].get("generation")
    return stale or (progressing.get("status") == "True" and progressing.get("reason") in RUNS_AGAIN)


def find_allocation(world: World[EnsembleDeployment], look: Look, ensemble: Ensemble) -> Aim:
    """The revision of an ensemble's allocation; or the Job that finds the allocation."""
    spec, owner = world.resource.spec, look.owner
    resolved = resolve([wanted_part(world.resource), ensemble.selection, *ensemble.searches])
    basis = basis_of(world, ensemble)
    known = workload.starts(world, ALLOCATE, ALLOCATE)
    start = workload.current(world, Wish(ALLOCATE, ALLOCATE, resolved, basis, basis), known, go_on=not spec.suspend)
    found = _found(world, look, start, ensemble.digest)
    if found is not None:
        text, allocation = found
        served = Served(owner, spec, world.settings, replace(resolved, text=text), allocation)
        return Aim(served, basis, keep=workload.kept(start, known) | maps(start))
    if start.outcome.state == "Absent" and not start.created and ensemble.again:
        message = f"waits for EnsembleSelection {ensemble.selection.metadata.name}, which is at work on a new result"
        return Aim(reason=reasons.SELECTION_NOT_READY, message=message, keep=workload.kept(start, known))
    runs = (start.outcome.active or start.outcome.state == "Absent") and not spec.suspend
    job = build_optimise_job(owner, start, resolved, spec, world.settings, ensemble.digest)
    return replace(
        _progress_of(world, start),
        objects=(
            *workload.objects(owner, start, resolved, spec.service_account_name),
            *(workload.runnable(world, start, job) if runs else ()),
        ),
        keep=workload.kept(start, known),
    )


def wanted_part(deployment: EnsembleDeployment) -> EnsembleDeployment:
    """The part of the document that the commands read: changing the rest makes no new allocation."""
    spec = deployment.spec
    return EnsembleDeployment.model_validate(
        {
            "metadata": {"name": deployment.metadata.name},
            "spec": {
                "selectionRef": spec.selection_ref,
                "devices": spec.devices,
                "optimization": spec.optimization,
                "serving": {"segmentSize": spec.serving.segment_size, "maxBatchSize": spec.serving.max_batch_size},
            },
        }
    )


def basis_of(world: World[EnsembleDeployment], ensemble: Ensemble) -> str:
    """Names everything that an allocation depends on.

    Of the selection that is its result and where the libraries are: the rest of its document is in the result. The
    image has the server that is measured, and `podOverrides` say on which nodes.
    """
    spec, overrides = world.resource.spec, world.resource.spec.pod_overrides
    selection = ensemble.selection.spec
    return digest(
        [
            wanted_part(world.resource).document(),
            ensemble.digest,
            [source.document() for source in selection.sources],
            None if selection.library is None else selection.library.document(),
            [search.spec.library.storage.document() for search in ensemble.searches],
            image(spec, world.settings),
            overrides.model_dump(
                mode="json", include={"node_selector", "tolerations", "affinity", "resources", "runtime_class_name"}
            ),
        ]
    )


def wish_of(world: World[EnsembleDeployment]) -> str:
    """Names the part of the deployment's own document that pods depend on."""
    spec = world.resource.spec
    serving = spec.serving
    return digest(
        [
            wanted_part(world.resource).document(),
            spec.pod_overrides.document(),
            spec.service_account_name,
            serving.image,
            [serving.http_port, serving.grpc_port, serving.metrics_port],
        ]
    )


def _found(
    world: World[EnsembleDeployment], look: Look, start: Start, selection_digest: str
) -> tuple[str, Allocation] | None:
    """The allocation for a start's basis, and the documents that it was found for: of a revision, or of a report."""
    record = look.record_of(start.basis)
    if record is not None:
        return record.text, record.allocation
    config_map = world.child("ConfigMap", spec_name(start.child))
    if config_map is None or start.report is None or start.report.state != "Succeeded":
        return None
    allocation = typed(Allocation, start.report.result.summary)
    if allocation is None or allocation.selection.digest != selection_digest:
        return None
    return (config_map.get("data") or {}).get(SPEC_KEY, ""), allocation


def _progress_of(world: World[EnsembleDeployment], start: Start) -> Aim:
    """What is to be said of the Job that finds the allocation."""
    outcome = start.outcome
    if outcome.state == "Succeeded":
        return _stuck(reasons.REPORT_MISSING, workload.report_missing(start))
    if outcome.state == "Failed":
        return _stuck(reasons.OPTIMISATION_FAILED, f"{outcome.message}\n{workload.advice(start)}")
    if outcome.state == "Running":
        message = "; ".join(part for part in (_told(start.report), outcome.message) if part)
        return Aim(reason=reasons.OPTIMISING, message=message)
    if outcome.reason == reasons.UNSCHEDULABLE:
        return Aim(
            reason=reasons.INSUFFICIENT_DEVICES,
            message=f"{outcome.message}; it is to find out how the ensemble is spread best over the devices",
            goes_on=not outcome.blocked,
            blocked=outcome.blocked,
            devices_needed=outcome.blocked,
            again_after=LOOK_AGAIN,
        )
    queued = outcome.reason == reasons.QUEUED and _old(world, start)
    ready, progressing, degraded = workload.waiting(world, start)
    return Aim(
        reason=ready.reason,
        message=ready.message,
        goes_on=progressing.status == "True",
        blocked=degraded.status == "True",
        devices_needed=queued,
        again_after=max(workload.pause(world, start), 1.0) if outcome.state == "Lost" else LOOK_AGAIN,
    )


def _told(report: Report | None) -> str:
    if report is None or not report.progress.total:
        return "the allocation is being optimised"
    progress = report.progress
    return f"benchmark {progress.done} of at most {progress.total}" + (f", {progress.note}" if progress.note else "")


def _old(world: World[EnsembleDeployment], start: Start) -> bool:
    created = read_time(start.created)
    return created is not None and world.now - created > PATIENCE


# --- builders -------------------------------------------------------------------------------------------------------


def build_optimise_job(
    owner: Owner, start: Start, resolved: Resolved, spec: EnsembleDeploymentSpec, settings: Settings, selection: str
) -> Manifest:
    """The Job that runs `ensemble allocate` on the devices that will serve."""
    needs = device_pod(spec)
    shared, shared_mount = shared_memory(needs.memory_limit or needs.memory)
    main = workload_container(
        "ensemble",
        image(spec, settings),
        settings,
        needs,
        resolved,
        command=command((ALLOCATE,), owner, report_name(start.child), ("--selection", selection)),
        env=report_env(owner, start.attempt),
        mounts=[shared_mount],
        reports=True,
    )
    pod = pod_spec(
        settings,
        spec.pod_overrides,
        service_account(start.child, spec.service_account_name),
        [main],
        volumes=[spec_volume(spec_name(start.child)), *resolved.volumes, token_volume(), shared],
    )
    made = template(owner, ALLOCATE, spec.pod_overrides, pod, child=start.child)
    return build_job(owner, ALLOCATE, start.child, made, annotations=start.annotations)


def desired(world: World[EnsembleDeployment], look: Look, aim: Aim, step: Step) -> Iterator[Manifest]:
    """The target's objects, and those that all revisions share; what something needs comes before it."""
    owner, serving, selected = look.owner, world.resource.spec.serving, step.selected
    target = aim.target
    runs = target is not None and target in step.revisions
    if aim.served is not None:
        yield build_record(aim.served, aim.basis, wish_of(world))
    if aim.served is not None and runs:
        yield from build_identity(aim.served)
    if selected is not None:
        yield build_network_policy(owner)
    if aim.served is not None and target is not None and runs:
        yield build_deployment(aim.served, replicas_of(world.resource.spec, look, target))
    for revision in sorted(step.revisions - {target}):
        if (served := rebuilt(world, look, revision)) is not None:
            yield from build_identity(served)
            yield build_deployment(served, replicas_of(world.resource.spec, look, revision))
    if selected is None:
        return
    yield build_service(owner, serving, selected)
    yield build_disruption_budget(owner, selected)
    if serving.autoscaling is not None and selected in step.revisions:
        yield build_autoscaler(owner, serving.autoscaling, selected)
    if serving.monitoring.service_monitor and "ServiceMonitor" in world.capabilities:
        yield build_service_monitor(owner, serving.monitoring.interval_seconds)


def replicas_of(spec: EnsembleDeploymentSpec, look: Look, revision: str) -> int:
    """Copies of a revision.

    Under an autoscaler the number is the one that is there, and a new revision begins with as many as the one that it
    replaces. It is repeated rather than left out, for the API server resets a field that its only owner leaves out.
    """
    scaling = spec.serving.autoscaling
    if scaling is None:
        return spec.serving.replicas
    there = [look.deployments[one] for one in {revision, look.selected or ""} & look.deployments.keys()]
    largest = max((one["spec"].get("replicas", 1) for one in there), default=scaling.min_replicas)
    return int(min(max(largest, scaling.min_replicas), scaling.max_replicas))


def _kept(world: World[EnsembleDeployment], look: Look, step: Step, target: str | None) -> frozenset[Ref]:
    """What stays of revisions other than the target: all that still run, and the memory of the last ones."""
    running = step.revisions - {target}
    needed = {one for one in (target, step.selected, *step.revisions) if one in look.records or one == target}
    others = [one for one in look.records if one not in needed]
    memory = needed.union(others[: max(0, REMEMBERED - len(needed))])
    children = {child_of(look.owner, one): one for one in memory | running if one is not None}
    return frozenset(
        ref
        for ref, manifest in world.children.items()
        if (revision := children.get(manifest["metadata"]["labels"].get(CHILD, ""))) is not None
        and (revision in running or ref.kind == "ConfigMap")
    )


# --- conclusions ----------------------------------------------------------------------------------------------------


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
        return State(aim.reason, aim.message, aim.goes_on, aim.blocked)
    if target not in there:
        return State(reasons.ROLLING_OUT, "a new revision is made", True, False)
    new = there[target]
    counted = f"{new.answering} of {new.wanted} copies answer"
    if new.complete and look.selected == target and len(there) == 1:
        return State(reasons.SERVING, counted, False, False)
    pods = pods_of(world.of_kind("Pod"), REVISION, target)
    problem = None if new.complete else trouble(look.deployments[target], pods, world.now)
    if problem is not None:
        return State(problem.reason, f"{counted}; {problem.message}", not problem.blocked, problem.blocked)
    report = _agent_report(world, look.owner, look.records.get(target))
    note = f"; the agent says: {report.progress.note}" if report is not None and report.progress.note else ""
    if new.expired and not new.proven:
        seconds = world.resource.spec.rollout.progress_deadline_seconds
        return State(reasons.ROLLOUT_FAILED, f"{counted} after {seconds} s{note}", False, True)
    reason = reasons.SCALING if new.proven and set(there) == {target} else reasons.ROLLING_OUT
    return State(reason, f"{counted}{note}", True, False)


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
