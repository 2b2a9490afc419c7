"""What a deployment should serve: the ensemble that its selection has now, spread as its allocation says.

Where the allocation is not known, a Job finds it, on the devices that will serve.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from pydantic import ValidationError

from ensemble_core.api.ensembledeployment import EnsembleDeployment, EnsembleDeploymentSpec
from ensemble_core.api.ensembleselection import (
    BEST_SINGLE,
    EnsembleSelection,
    EnsembleSelectionStatus,
)
from ensemble_core.api.hposearch import HPOSearch
from ensemble_core.frozen import digest
from ensemble_operator import reasons, workload
from ensemble_operator.identity import report_name, spec_name
from ensemble_operator.jobs import PATIENCE
from ensemble_operator.names import COMPONENT, Component, Owner
from ensemble_operator.pods import (
    SPEC_KEY,
    command,
    report_env,
    shared_memory,
    workload_container,
)
from ensemble_operator.readings import conditions_by_type, read_time
from ensemble_operator.reports import Report, typed
from ensemble_operator.revisions import Look
from ensemble_operator.serving import Allocation, Served, device_pod, image
from ensemble_operator.settings import Settings
from ensemble_operator.storages import Resolved, named_searches, reference, resolve
from ensemble_operator.workload import LOOK_AGAIN, Start, Wish, maps
from ensemble_operator.world import Manifest, Ref, World

ALLOCATE: Component = "allocate"
# Of `serving`.
READ_BY_COMMANDS = {
    *("segment_size", "max_batch_size"),
    *("combiner", "scores", "routing", "quorum", "retries", "deadline_seconds"),
}
RUNS_AGAIN = (reasons.SELECTING, reasons.PROFILING)


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
        return self.served.revision if self.served else None


@dataclass(frozen=True)
class Ensemble:
    """The ensemble that a selection has now.

    Args:
        digest: Of the selection's result.
        waits: Why nothing new should be begun with it; empty if it is that of the selection's present document, and
            no other is about to take its place.
    """

    selection: EnsembleSelection
    searches: tuple[HPOSearch, ...]
    digest: str
    waits: str = ""


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
    stopped = ("Job",) if world.resource.spec.suspend else ()
    return replace(ensemble, keep=frozenset(ref for ref in own if ref.kind not in stopped), as_before=True)


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
        if outdated := _outdated(manifest):
            return Aim(reason=reasons.SELECTION_NOT_READY, message=outdated)
        why = chosen[budget].reason or "no reason is given"
        return _stuck(reasons.NO_ENSEMBLE, f"the budget {budget} of EnsembleSelection {name} has no ensemble: {why}")
    searches = named_searches(selection.spec)
    found = {one: world.others.get(Ref("HPOSearch", one)) for one in searches}
    parsed = {one: workload.parsed(HPOSearch, body) for one, body in found.items() if body is not None}
    missing = [one for one in searches if parsed.get(one) is None]
    if missing:
        message = f"waits: EnsembleSelection {name} names HPOSearch {', '.join(missing)}, which is missing or not valid"
        return Aim(reason=reasons.SELECTION_NOT_READY, message=message)
    references = tuple(reference(search) for search in parsed.values() if search is not None)
    return Ensemble(selection, references, status.digest, _waits(manifest))


def _stuck(reason: str, message: str) -> Aim:
    """Nothing will change unless a person acts."""
    return Aim(reason=reason, message=message, goes_on=False, blocked=True)


def _status(manifest: Manifest) -> EnsembleSelectionStatus | None:
    try:
        return EnsembleSelectionStatus.model_validate(manifest.get("status") or {})
    except ValidationError:
        return None


def _why(manifest: Manifest) -> str:
    """What a selection that has no result says itself."""
    message = conditions_by_type(manifest).get("Ready", {}).get("message", "")
    return f": {message}" if message else ""


def _waits(manifest: Manifest) -> str:
    """Why nothing new should be begun with the result that a selection has; empty if it may be."""
    if outdated := _outdated(manifest):
        return outdated
    progressing, name = conditions_by_type(manifest).get("Progressing", {}), manifest["metadata"]["name"]
    if progressing.get("status") == "True" and progressing.get("reason") in RUNS_AGAIN:
        return f"waits for EnsembleSelection {name}, which is at work on a new result"
    return ""


def _outdated(manifest: Manifest) -> str:
    """Whether a selection's result is of an earlier document, in words; empty if it is of the present one.

    With other sources or limits it says nothing of the present one.
    """
    ready, name = conditions_by_type(manifest).get("Ready", {}), manifest["metadata"]["name"]
    # No budget has an ensemble, but there is a best single model.
    empty = ready.get("reason") == reasons.NO_ENSEMBLE
    if workload.is_ready(manifest) or (empty and workload.is_told_now(manifest, ready)):
        return ""
    return f"waits until EnsembleSelection {name} has a result of its present specification{_why(manifest)}"


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
    if start.outcome.state == "Absent" and not start.created and ensemble.waits:
        kept = workload.kept(start, known)
        return Aim(reason=reasons.SELECTION_NOT_READY, message=ensemble.waits, keep=kept, as_before=True)
    runs = start.outcome.wanted and not spec.suspend
    job = build_optimise_job(owner, start, resolved, spec, world.settings, ensemble.digest)
    return replace(
        _progress_of(world, start),
        objects=(
            *workload.objects(owner, start, resolved, spec.service_account_name),
            *(workload.runnable(world, start, job) if runs else ()),
        ),
        # A failed Job goes when the deployment is suspended: resumed, it is tried again.
        keep=workload.kept(start, known, failed=not spec.suspend),
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
                "serving": spec.serving.model_dump(include=READ_BY_COMMANDS),
            },
        }
    )


def basis_of(world: World[EnsembleDeployment], ensemble: Ensemble) -> str:
    """Names everything that an allocation depends on.

    Of the selection that is its result and where the libraries are: the rest of its document is in the result. The
    image has the server that is measured, and `podOverrides` say on which nodes. What is as by default is left out, so
    that a release that adds a field optimises nothing again.
    """
    spec, overrides = world.resource.spec, world.resource.spec.pod_overrides
    selection = ensemble.selection.spec
    return digest(
        [
            wanted_part(world.resource).essence(),
            ensemble.digest,
            [source.essence() for source in selection.sources],
            None if selection.library is None else selection.library.essence(),
            [search.spec.library.storage.essence() for search in ensemble.searches],
            image(spec, world.settings),
            overrides.model_dump(
                mode="json",
                include={"node_selector", "tolerations", "affinity", "resources", "runtime_class_name"},
                exclude_defaults=True,
            ),
        ]
    )


def wish_of(world: World[EnsembleDeployment]) -> str:
    """Names the part of the deployment's own document that pods depend on."""
    spec = world.resource.spec
    serving = spec.serving
    return digest(
        [
            wanted_part(world.resource).essence(),
            spec.pod_overrides.essence(),
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
    return workload.reporting_job(owner, start, resolved, spec, settings, main, volumes=[shared])
