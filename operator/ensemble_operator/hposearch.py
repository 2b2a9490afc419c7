"""HPOSearch: a RayJob, or a Job with Ray on one node, that fills a library."""

from __future__ import annotations

from collections.abc import Sequence

from ensemble_core.api.hposearch import HPOSearch, HPOSearchSpec
from ensemble_core.errors import UserError
from ensemble_operator import reasons, verdicts, workload
from ensemble_operator.differences import is_deleting
from ensemble_operator.library_deletion import deletes_library, end_search
from ensemble_operator.names import owner_of
from ensemble_operator.search_status import content, ended_trials, summary_of, teller, told_of
from ensemble_operator.training import TRAIN, Engine, network_policy, train_job, train_rayjob
from ensemble_operator.verdicts import Verdicts
from ensemble_operator.workload import LOOK_AGAIN, Start, maps, remains
from ensemble_operator.world import Decision, Manifest, Others, Ref, World

LOSSES = 3  # at the same place, after which a person should look


class HPOSearchKind:
    """The kind, as the engine sees it."""

    model = HPOSearch

    def references(self, resource: HPOSearch, body: Manifest, read: Others) -> tuple[Ref, ...]:
        """Who may still need the library, once it is to be deleted."""
        if not (is_deleting(body) and deletes_library(resource)):
            return ()
        return Ref("EnsembleSelection", "*"), Ref("EnsembleDeployment", "*"), Ref("HPOSearch", "*")

    def decide(self, world: World[HPOSearch]) -> Decision:
        try:
            return end_search(world) if is_deleting(world.body) else _train(world)
        except UserError as refused:
            way_out = "; spec.library.deletionPolicy: Retain lets the search go" if is_deleting(world.body) else ""
            return workload.refused(world, f"{refused}{way_out}", deletes_library(world.resource))


KIND = HPOSearchKind()


def _train(world: World[HPOSearch]) -> Decision:
    spec, owner = world.resource.spec, owner_of(world.resource, world.body)
    wanted = workload.wish(TRAIN, "train", [world.resource], spec)
    known = workload.starts(world, TRAIN, "train")
    start = workload.current(world, wanted, known, go_on=not spec.suspend)
    engine = engine_of(spec, world.capabilities, start.engine)
    needs = workload.objects(owner, start, wanted.resolved, spec.service_account_name)
    fence = (network_policy(owner, engine),) if engine else ()
    build = train_rayjob if engine == "RayJob" else train_job
    job = build(owner, start, wanted.resolved, spec, world.settings)
    jobs = workload.runnable(world, start, job) if engine and start.outcome.wanted and not spec.suspend else ()
    told, lost = teller([start, *known]), [] if spec.suspend else losses(start, known)
    conditions = conclude(world, start, told, engine)
    return Decision(
        objects=(*needs, *fence, *jobs),
        # A failed Job goes when the search is suspended: resumed, it is tried again.
        keep=workload.kept(start, known, failed=not spec.suspend).union(maps(told), *map(remains, lost)),
        conditions=_stalled(conditions, lost) if stalls(start, lost) else conditions,
        status={} if told is None else workload.told(lambda: content(world, start, told)),
        finalizer=deletes_library(world.resource),
        again_after=workload.look_again(world, _again(world, start)),
    )


def engine_of(spec: HPOSearchSpec, capabilities: frozenset[str], present: str | None) -> Engine | None:
    """What runs the search: what runs it already, else as the specification says; none if KubeRay is not there.

    Raises:
        UserError: a RayJob on whose workers no trial fits.
    """
    if present is not None:
        return "RayJob" if present == "RayJob" else "Job"
    if spec.engine == "job" or (spec.engine == "auto" and ("RayJob" not in capabilities or not spec.workers.replicas)):
        return "Job"
    if "RayJob" not in capabilities:
        return None
    trial, workers = spec.resources_per_trial, spec.workers
    if not workers.replicas:
        raise UserError("spec.workers.replicas", "0 leaves nobody to train; give a RayJob at least 1")
    if trial.cpu > workers.cpu:
        raise UserError("spec.workers.cpu", f"{workers.cpu} is less than the {trial.cpu:g} of a trial")
    if trial.gpu > workers.gpu:
        raise UserError("spec.workers.gpu", f"{workers.gpu} is less than the {trial.gpu:g} of a trial")
    return "RayJob"


def conclude(world: World[HPOSearch], start: Start, told: Start | None, engine: Engine | None) -> Verdicts:
    """What is to be said of the search; `told` is the start that has told last how far it is."""
    spec, outcome = world.resource.spec, start.outcome
    line = told_of(start, told, spec)
    if outcome.state == "Succeeded" and summary_of(start.report) is not None:
        return verdicts.ready(reasons.TRAINED, line)
    if outcome.state == "Succeeded":
        return verdicts.stopped(reasons.REPORT_MISSING, workload.report_missing(start), degraded=True)
    if spec.suspend:
        return verdicts.stopped(reasons.SUSPENDED, "what is trained is kept; spec.suspend: false continues", False)
    if outcome.state == "Failed":
        return verdicts.stopped(reasons.TRAINING_FAILED, f"{outcome.message}\n{_advice(start)}", True)
    if engine is None:
        advice = "spec.engine is rayjob, but the cluster has no RayJob; install KubeRay, or use engine: job"
        return verdicts.stopped(reasons.KUBERAY_MISSING, advice, degraded=True)
    if outcome.state == "Running":
        message = f"{line}; {outcome.message}" if outcome.message else line
        return verdicts.progressing(reasons.TRAINING, message)
    return workload.waiting(world, start)


def _advice(start: Start) -> str:
    """How to have a failed search tried again: most of what decides on its models cannot be changed."""
    return f"{workload.advice(start)}; if a field is wrong that cannot be changed, make a new HPOSearch"


def losses(start: Start, known: Sequence[Start]) -> list[Start]:
    """The last attempts that were lost, the newest first; what somebody deleted was not."""
    attempts = sorted((one for one in known if one.basis == start.basis), key=lambda one: -one.attempt)
    return [one for one in attempts if one.outcome.state == "Lost" and one.outcome.ended is not None][:LOSSES]


def stalls(start: Start, lost: Sequence[Start]) -> bool:
    """Whether attempt after attempt was lost, and no trial has ended since the first of these."""
    if len(lost) < LOSSES or not (start.outcome.wanted or start.outcome.state == "Lost"):
        return False
    *later, first = (ended_trials(one.report) for one in lost)
    return max(*later, ended_trials(start.report)) <= first


def _stalled(conditions: Verdicts, lost: Sequence[Start]) -> Verdicts:
    if conditions[2].status == "True":
        return conditions
    told = f"the last {len(lost)} attempts were lost at the same place: {lost[0].outcome.message}"
    return verdicts.degraded(conditions, reasons.LOST, f"{told}; the search is tried again, ever more slowly")


def _again(world: World[HPOSearch], start: Start) -> float | None:
    if start.outcome.state == "Lost":
        return max(workload.pause(world, start), 1.0)
    return LOOK_AGAIN if start.outcome.state == "Waiting" else None
