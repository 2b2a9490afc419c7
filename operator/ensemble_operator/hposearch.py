"""HPOSearch: a RayJob, or a Job with Ray on one node, that fills a library."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence, Set
from typing import Annotated, Any, Literal

from pydantic import Field

from ensemble_core.api.common import Storage
from ensemble_core.api.ensembledeployment import EnsembleDeployment
from ensemble_core.api.ensembleselection import EnsembleSelection
from ensemble_core.api.hposearch import (
    HPOSearch,
    HPOSearchSpec,
    HPOSearchStatus,
    LibraryState,
    OptimalTrial,
    ParameterAssignment,
    ParetoPoint,
)
from ensemble_core.errors import UserError
from ensemble_operator import reasons, status, verdicts, workload
from ensemble_operator.identity import report_name, service_account, spec_name
from ensemble_operator.jobs import WorkerGroup, build_job, build_rayjob, read_time
from ensemble_operator.names import (
    APPLICATION,
    COMPONENT,
    LIBRARY_FINALIZER,
    OWNER_UID,
    Component,
    Owner,
    metadata,
    owner_of,
)
from ensemble_operator.pods import (
    Resources,
    command,
    container,
    pod_spec,
    report_env,
    shared_memory,
    spec_volume,
    template,
    token_volume,
    workload_container,
)
from ensemble_operator.reports import MOST, Finite, Number, Report, Untrusted, Word, typed
from ensemble_operator.settings import Settings
from ensemble_operator.storages import Resolved, reference, resolve
from ensemble_operator.verdicts import Verdicts
from ensemble_operator.workload import LOOK_AGAIN, Start, Wish, maps, remains
from ensemble_operator.world import Decision, Manifest, Ref, Verdict, World

TRAIN: Component = "train"
DELETE: Component = "delete"
DELETE_VERB = "delete"
DELETE_SECONDS = 3600
LOSSES = 3  # at the same place, after which a person should look
LEAST_SHARE = 0.0001  # of a GPU, for Ray
DASHBOARD_PORT = 8265
KUBERAY = ("kuberay-operator", "kuberay")  # names of its pods: installed by Helm, by kustomize
TERMINATED = "because it is being terminated"  # the server's words about a namespace
OBJECT_STORE_MIB = 100  # of Ray; models and data travel as files
SHARED_MEMORY_MIB = 512
# For all of Ray's processes: the driver's environment does not reach its workers.
RAY_ENV: tuple[Manifest, ...] = (
    {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
    # A trial without GPUs of its own sees those of its node.
    {"name": "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "value": "0"},
)
# The head runs Ray's control plane and the driver, which proposes trials and trains nothing.
HEAD = Resources(cpu=0.5, memory=2048, memory_limit=4096)
DELETER = Resources(cpu=0.1, memory=256, memory_limit=1024)

Engine = Literal["Job", "RayJob"]


class HPOSearchKind:
    """The kind, as the engine sees it."""

    model = HPOSearch
    plural = "hposearches"

    def references(self, resource: HPOSearch, body: Manifest) -> tuple[Ref, ...]:
        """Who may still need the library, once it is to be deleted."""
        if not (_is_deleting(body) and _deletes(resource)):
            return ()
        return Ref("EnsembleSelection", "*"), Ref("EnsembleDeployment", "*"), Ref("HPOSearch", "*")

    def decide(self, world: World[HPOSearch]) -> Decision:
        try:
            return _delete(world) if _is_deleting(world.body) else _train(world)
        except UserError as refused:
            way_out = "; spec.library.deletionPolicy: Retain lets the search go" if _is_deleting(world.body) else ""
            return workload.refused(world, f"{refused}{way_out}", _deletes(world.resource))


KIND = HPOSearchKind()


# --- training -------------------------------------------------------------------------------------------------------


def _train(world: World[HPOSearch]) -> Decision:
    spec, owner = world.resource.spec, owner_of(world.resource, world.body)
    wanted = workload.wish(TRAIN, "train", resolve([world.resource]), spec)
    known = workload.starts(world, TRAIN, "train")
    start = workload.current(world, wanted, known, go_on=not spec.suspend)
    engine = engine_of(spec, world.capabilities, start.engine)
    runs = start.outcome.active or start.outcome.state == "Absent"
    needs = workload.objects(owner, start, wanted.resolved, spec.service_account_name)
    fence = (network_policy(owner, engine),) if engine else ()
    build = train_rayjob if engine == "RayJob" else train_job
    job = build(owner, start, wanted.resolved, spec, world.settings)
    jobs = workload.runnable(world, start, job) if engine and runs and not spec.suspend else ()
    told, lost = teller([start, *known]), [] if spec.suspend else losses(start, known)
    conditions = conclude(world, start, engine)
    return Decision(
        objects=(*needs, *fence, *jobs),
        # A failed Job goes when the search is suspended: resumed, it is tried again.
        keep=workload.kept(start, known, failed=not spec.suspend).union(maps(told), *map(remains, lost)),
        conditions=_stalled(conditions, lost) if stalls(start, lost) else conditions,
        status={} if told is None else workload.told(lambda: content(world, start, told)),
        finalizer=_deletes(world.resource),
        again_after=_again(world, start),
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


def conclude(world: World[HPOSearch], start: Start, engine: Engine | None) -> Verdicts:
    """What is to be said of the search."""
    spec, outcome = world.resource.spec, start.outcome
    told = told_of(start.report, spec)
    if outcome.state == "Succeeded" and start.report is not None:
        return verdicts.ready(reasons.TRAINED, told)
    if outcome.state == "Succeeded":
        return verdicts.stopped(reasons.REPORT_MISSING, workload.report_missing(start), degraded=True)
    if spec.suspend:
        return verdicts.stopped(reasons.SUSPENDED, "what is trained is kept; spec.suspend: false continues", False)
    if outcome.state == "Failed":
        return verdicts.stopped(reasons.TRAINING_FAILED, f"{outcome.message}\n{workload.advice(start)}", True)
    if engine is None:
        advice = "spec.engine is rayjob, but the cluster has no RayJob; install KubeRay, or use engine: job"
        return verdicts.stopped(reasons.KUBERAY_MISSING, advice, degraded=True)
    if outcome.state == "Running":
        message = f"{told}; {outcome.message}" if outcome.message else told
        return verdicts.progressing(reasons.TRAINING, message)
    return workload.waiting(world, start)


def told_of(report: Report | None, spec: HPOSearchSpec) -> str:
    """The search in a line."""
    summary = summary_of(report)
    if report is None or summary is None:
        return f"0 of {spec.max_trial_count} trials have ended"
    parts = [f"{summary.trials.ended} of {spec.max_trial_count} trials have ended"]
    if report.state == "Running" and report.progress.note:
        parts.append(report.progress.note)
    elif summary.best is not None and summary.best.value is not None:
        parts.append(f"best {spec.objectives[0].metric} {summary.best.value:.4g} ({summary.best.model_id})")
    return "; ".join(parts)


def losses(start: Start, known: Sequence[Start]) -> list[Start]:
    """The last attempts that were lost, the newest first; what somebody deleted was not."""
    attempts = sorted((one for one in known if one.basis == start.basis), key=lambda one: -one.attempt)
    return [one for one in attempts if one.outcome.state == "Lost" and one.outcome.ended is not None][:LOSSES]


def stalls(start: Start, lost: Sequence[Start]) -> bool:
    """Whether attempt after attempt was lost, and no trial has ended since the first of these."""
    if len(lost) < LOSSES or not (start.outcome.active or start.outcome.state in ("Absent", "Lost")):
        return False
    *later, first = (_ended_trials(one.report) for one in lost)
    return max(*later, _ended_trials(start.report)) <= first


def _stalled(conditions: Verdicts, lost: Sequence[Start]) -> Verdicts:
    ready, progressing, degraded = conditions
    if degraded.status != "True":
        told = f"the last {len(lost)} attempts were lost at the same place: {lost[0].outcome.message}"
        degraded = Verdict("Degraded", "True", reasons.LOST, f"{told}; the search is tried again, ever more slowly")
    return ready, progressing, degraded


def _ended_trials(report: Report | None) -> int:
    summary = summary_of(report)
    return 0 if summary is None else summary.trials.ended


def _again(world: World[HPOSearch], start: Start) -> float | None:
    if start.outcome.state == "Lost":
        return max(workload.pause(world, start), 1.0)
    return LOOK_AGAIN if start.outcome.state == "Waiting" else None


# --- status ---------------------------------------------------------------------------------------------------------


class Trials(Untrusted):
    """Trials by state."""

    total: Number = 0
    pending: Number = 0
    running: Number = 0
    succeeded: Number = 0
    early_stopped: Number = 0
    failed: Number = 0

    @property
    def ended(self) -> int:
        return self.succeeded + self.early_stopped + self.failed


class Assignment(Untrusted):
    name: Word
    value: Word


class Best(Untrusted):
    """The best trial."""

    model_id: Word
    trial: Word = ""
    value: Finite | None = None
    parameters: Annotated[list[Assignment], Field(max_length=64)] = Field(default_factory=list)
    metrics: dict[str, Any] = Field(default_factory=dict)


class Point(Untrusted):
    """A model of the Pareto front."""

    model_id: Word
    values: Annotated[list[Finite | None], Field(max_length=4)]


class TrainSummary(Untrusted):
    """What `train` tells of a search, while it runs and at its end."""

    trials: Trials = Field(default_factory=Trials)
    best: Best | None = None
    front: Annotated[list[Point], Field(max_length=100)] = Field(default_factory=list)
    models: Number = 0
    library_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    occupancy: Annotated[Finite, Field(ge=0)] | None = None  # a share, give or take a rounding
    attempt: Number | None = None
    start_time: Word | None = None
    completion_time: Word | None = None


def summary_of(report: Report | None) -> TrainSummary | None:
    """The report's newest summary; none if it has none, or a wrong one."""
    if report is None:
        return None
    given = report.result.summary if report.state == "Succeeded" else report.progress.summary
    return typed(TrainSummary, given) if given else None


def teller(starts: Iterable[Start]) -> Start | None:
    """The first start that has told something of the library."""
    return next((start for start in starts if summary_of(start.report) is not None), None)


def content(world: World[HPOSearch], start: Start, told: Start) -> HPOSearchStatus:
    """The status from the newest summary: of this start, or until it has one of those before."""
    summary = summary_of(told.report) or TrainSummary()
    trials, runs = summary.trials, start.outcome.state == "Running"
    return HPOSearchStatus(
        start_time=_time(summary.start_time),
        completion_time=_time(summary.completion_time) if start.outcome.state == "Succeeded" else None,
        attempt=summary.attempt,
        progress=f"{trials.ended}/{world.resource.spec.max_trial_count}",
        trials=trials.total,
        trials_pending=trials.pending if runs else min(trials.pending + trials.running, MOST),
        trials_running=trials.running if runs else 0,
        trials_succeeded=trials.succeeded,
        trials_early_stopped=trials.early_stopped,
        trials_failed=trials.failed,
        current_optimal_trial=None if summary.best is None else _optimal(summary.best),
        pareto_front=tuple(
            ParetoPoint(model_id=point.model_id, values=tuple(value for value in point.values if value is not None))
            for point in summary.front
            if None not in point.values
        ),
        library=LibraryState(
            models=summary.models,
            digest=summary.library_digest,
            changed_time=_changed(world, summary.library_digest),
        ),
        occupancy_percent=None if summary.occupancy is None else round(100 * min(summary.occupancy, 1.0), 1),
    )


def _optimal(best: Best) -> OptimalTrial:
    return OptimalTrial(
        best_trial_name=best.trial or best.model_id,
        model_id=best.model_id,
        value=None if best.value is None else workload.brief(best.value),
        parameter_assignments=tuple(ParameterAssignment(name=p.name, value=p.value) for p in best.parameters),
        observation=workload.quality(best.metrics),
    )


def _changed(world: World[HPOSearch], digest: str | None) -> str:
    """When the library's digest was first seen as it is."""
    before = (world.body.get("status") or {}).get("library") or {}
    if digest == before.get("digest") and read_time(before.get("changedTime")) is not None:
        return str(before["changedTime"])
    return status.timestamp(world.now)


def _time(text: str | None) -> str | None:
    moment = read_time(text)
    return None if moment is None else status.timestamp(moment)


# --- builders -------------------------------------------------------------------------------------------------------


def train_job(owner: Owner, start: Start, resolved: Resolved, spec: HPOSearchSpec, settings: Settings) -> Manifest:
    """A Job with Ray on one node: all trials that run at a time share its pod."""
    volume, mount = shared_memory(SHARED_MEMORY_MIB)
    devices = ((spec.workers.gpu_resource_name, gpus_at_a_time(spec)),)
    main = workload_container(
        "ensemble",
        settings.trainer_image,
        settings,
        Resources(spec.parallel_trial_count * spec.resources_per_trial.cpu, spec.workers.memory_mib, None, devices),
        resolved,
        command=command([TRAIN], owner, report_name(start.child)),
        env=report_env(owner, start.attempt),
        mounts=[mount],
        reports=True,
    )
    volumes = [spec_volume(spec_name(start.child)), *resolved.volumes, token_volume(), volume]
    pod = pod_spec(
        settings,
        spec.pod_overrides,
        service_account(start.child, spec.service_account_name),
        [main],
        volumes=volumes,
    )
    made = template(owner, TRAIN, spec.pod_overrides, pod, child=start.child)
    return build_job(owner, TRAIN, start.child, made, annotations=start.annotations)


def gpus_at_a_time(spec: HPOSearchSpec) -> int:
    """GPUs for all trials that run at a time; a trial's share lies on one GPU."""
    gpu = spec.resources_per_trial.gpu
    if gpu >= 1 or gpu == 0:
        return round(spec.parallel_trial_count * gpu)
    per_gpu = math.floor(1 / max(gpu, LEAST_SHARE) + 1e-9)  # despite roundings
    return math.ceil(spec.parallel_trial_count / per_gpu)


def train_rayjob(owner: Owner, start: Start, resolved: Resolved, spec: HPOSearchSpec, settings: Settings) -> Manifest:
    """A RayJob: the driver runs on the head, which trains nothing and alone may report; workers train."""
    account = service_account(start.child, spec.service_account_name)
    volume, mount = shared_memory(SHARED_MEMORY_MIB)
    head = workload_container(
        "ray-head",
        settings.trainer_image,
        settings,
        HEAD,
        resolved,
        command=(),  # KubeRay's
        env=[*report_env(owner, start.attempt), *RAY_ENV],
        mounts=[mount],
        reports=True,
    )
    workers = spec.workers
    worker = container(
        "ray-worker",
        settings.trainer_image,
        settings,
        Resources(workers.cpu, workers.memory_mib, None, ((workers.gpu_resource_name, workers.gpu),)),
        env=[*resolved.env, *RAY_ENV],
        mounts=[*resolved.mounts, mount],
    )
    head_volumes = [spec_volume(spec_name(start.child)), *resolved.volumes, token_volume(), volume]
    # Resources of the overrides are for those who train.
    head_overrides = spec.pod_overrides.model_copy(update={"resources": None})
    store = {"object-store-memory": str(OBJECT_STORE_MIB * 1024 * 1024)}
    return build_rayjob(
        owner,
        TRAIN,
        start.child,
        template(
            owner,
            TRAIN,
            head_overrides,
            pod_spec(settings, head_overrides, account, [head], volumes=head_volumes),
            child=start.child,
        ),
        WorkerGroup(
            template(
                owner,
                TRAIN,
                spec.pod_overrides,
                pod_spec(settings, spec.pod_overrides, account, [worker], volumes=[*resolved.volumes, volume]),
                child=start.child,
            ),
            workers.replicas,
            {"num-cpus": str(workers.cpu), "num-gpus": str(workers.gpu), **store},
        ),
        shlex.join(command([TRAIN], owner, report_name(start.child), ["--ray", "auto"])),
        {"dashboard-host": "0.0.0.0", "num-cpus": "0", "num-gpus": "0", **store},
        annotations=start.annotations,
    )


def network_policy(owner: Owner, engine: Engine) -> Manifest:
    """Whoever reaches Ray's ports runs code: only pods of the same search do, and KubeRay its dashboard.

    Ray within a Job is reached by nobody. The name is one that no custom resource, and so nobody's child, can have.
    """
    kuberay = {"key": APPLICATION, "operator": "In", "values": list(KUBERAY)}
    mine = {OWNER_UID: owner.uid, COMPONENT: TRAIN}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(owner, TRAIN, f"{owner.name}.{TRAIN}"),
        "spec": {
            "podSelector": {"matchLabels": mine},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [{"podSelector": {"matchLabels": mine}}]},
                {
                    "from": [{"namespaceSelector": {}, "podSelector": {"matchExpressions": [kuberay]}}],
                    "ports": [{"protocol": "TCP", "port": DASHBOARD_PORT}],
                },
            ]
            if engine == "RayJob"
            else [],
        },
    }


# --- deletion -------------------------------------------------------------------------------------------------------


def _delete(world: World[HPOSearch]) -> Decision:
    """The end of a search: with `deletionPolicy: Delete` its library goes first, once nobody needs or writes it."""
    resource = world.resource
    if not _deletes(resource) or LIBRARY_FINALIZER not in world.body["metadata"].get("finalizers", ()):
        return _let_go(world, "the library stays")
    if _namespace_goes(world.body):
        return _let_go(world, "the namespace is being deleted, in which no Job can delete the library any more")
    if users := users_of(world):
        message = (
            f"the library is still used by {', '.join(users)}; delete these first,"
            " or set spec.library.deletionPolicy: Retain to keep the library"
        )
        return _held(world, verdicts.stopped(reasons.LIBRARY_IN_USE, message, degraded=True))
    owner, spec = owner_of(resource, world.body), resource.spec
    wanted = delete_wish(resource)
    known = workload.starts(world, DELETE, DELETE_VERB)
    if not known and _is_training(world):
        message = "waits until the pods that write the library have ended"
        return _held(world, verdicts.progressing(reasons.DELETING_LIBRARY, message))
    start = workload.current(world, wanted, known)
    if start.outcome.state == "Succeeded":
        return _let_go(world, "the library is deleted")
    runs = start.outcome.active or start.outcome.state == "Absent"
    job = delete_job(owner, start, wanted.resolved, spec, world.settings)
    return Decision(
        objects=(
            *workload.objects(owner, start, wanted.resolved, spec.service_account_name),
            *(workload.runnable(world, start, job) if runs else ()),
        ),
        keep=workload.kept(start, known),
        conditions=_conclude_deletion(world, start),
        status=workload.unchanged(world.body),
        finalizer=True,
        again_after=LOOK_AGAIN,
    )


def _conclude_deletion(world: World[HPOSearch], start: Start) -> Verdicts:
    outcome = start.outcome
    if outcome.state == "Failed":
        message = (
            f"{outcome.message}\n{workload.advice(start)},"
            " or set spec.library.deletionPolicy: Retain to leave what is left of the library"
        )
        return verdicts.stopped(reasons.LIBRARY_DELETION_FAILED, message, degraded=True)
    if outcome.state == "Waiting" and outcome.blocked:
        return workload.waiting(world, start)
    return verdicts.progressing(reasons.DELETING_LIBRARY, "the library is being deleted")


def _let_go(world: World[HPOSearch], message: str) -> Decision:
    """The search may go. Its children go with it, not before: without its Job the library would be deleted again."""
    conditions = verdicts.progressing(reasons.DELETING_LIBRARY, message)
    return Decision((), conditions, workload.unchanged(world.body), keep=frozenset(world.children))


def _held(world: World[HPOSearch], conditions: Verdicts) -> Decision:
    return Decision(
        (),
        conditions,
        workload.unchanged(world.body),
        finalizer=True,
        again_after=5.0 if world.deleting else LOOK_AGAIN,
    )


def users_of(world: World[HPOSearch]) -> list[str]:
    """The selections of the namespace that need models of this search, and the deployments that serve what they found.

    What cannot be read may, and so may a deployment whose selection is not there any more. Searches that share the
    library need none: of a shared library only this search's own models go.
    """
    storage = world.resource.spec.library.storage
    alive = {ref: manifest for ref, manifest in sorted(world.others.items()) if not _is_deleting(manifest)}
    sharing = {world.resource.metadata.name}
    for ref, manifest in alive.items():
        search = workload.parsed(HPOSearch, manifest) if ref.kind == "HPOSearch" else None
        sharing |= {ref.name} if search is not None and search.spec.library.storage == storage else set()
    selections = {ref: manifest for ref, manifest in alive.items() if ref.kind == "EnsembleSelection"}
    using = [ref for ref, manifest in selections.items() if _uses(manifest, storage, sharing)]
    harmless = {ref.name for ref in selections.keys() - using}
    deployments = {ref: manifest for ref, manifest in alive.items() if ref.kind == "EnsembleDeployment"}
    serving = [ref for ref, manifest in deployments.items() if _selection_of(manifest) not in harmless]
    return [f"{ref.kind} {ref.name}" for ref in (*using, *serving)]


def _selection_of(manifest: Manifest) -> str | None:
    deployment = workload.parsed(EnsembleDeployment, manifest)
    return None if deployment is None else deployment.spec.selection_ref.name


def _uses(manifest: Manifest, storage: Storage, sharing: Set[str]) -> bool:
    selection = workload.parsed(EnsembleSelection, manifest)
    if selection is None:
        return True
    sources = selection.spec.sources
    from_it = any(source.storage == storage or source.hpo_search_name in sharing for source in sources)
    return from_it or selection.spec.library == storage


def _is_training(world: World[HPOSearch]) -> bool:
    """Whether anything that writes the library is still there, or about to go."""
    alive = [one for kind in ("Job", "RayJob", "Pod") for one in world.of_kind(kind)]
    writes = any(one["metadata"]["labels"].get(COMPONENT) == TRAIN for one in alive if not _has_ended(one))
    return writes or any(ref.kind in ("Job", "RayJob", "Pod") for ref in world.deleting)


def _has_ended(manifest: Manifest) -> bool:
    return manifest["kind"] == "Pod" and (manifest.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def delete_wish(search: HPOSearch) -> Wish:
    """The library's deletion; of a search nothing else counts, for it may be what was refused."""
    return workload.wish(DELETE, DELETE_VERB, resolve([reference(search)]), search.spec)


def delete_job(owner: Owner, start: Start, resolved: Resolved, spec: HPOSearchSpec, settings: Settings) -> Manifest:
    """The Job that deletes a library; it gives up after a while."""
    main = workload_container(
        "ensemble",
        settings.trainer_image,
        settings,
        DELETER,
        resolved,
        command=command(["library", "delete"], owner, report_name(start.child)),
        env=report_env(owner, start.attempt),
        reports=True,
    )
    # Nothing of the overrides' resources: those are for training.
    overrides = spec.pod_overrides.model_copy(update={"resources": None})
    pod = pod_spec(
        settings,
        overrides,
        service_account(start.child, spec.service_account_name),
        [main],
        volumes=[spec_volume(spec_name(start.child)), *resolved.volumes, token_volume()],
    )
    made = template(owner, DELETE, overrides, pod, child=start.child)
    return build_job(
        Owner(owner.kind, owner.name, owner.namespace, owner.uid),  # not queued: it is small, and must not wait
        DELETE,
        start.child,
        made,
        annotations=start.annotations,
        deadline_seconds=DELETE_SECONDS,
    )


def _namespace_goes(body: Manifest) -> bool:
    """Whether the server has refused an object for that reason; holding on would hold the namespace for ever."""
    given = (body.get("status") or {}).get("conditions") or ()
    return any(one["reason"] == reasons.APPLY_FAILED and TERMINATED in one["message"] for one in given)


def _deletes(search: HPOSearch) -> bool:
    return search.spec.library.deletion_policy == "Delete"


def _is_deleting(body: Manifest) -> bool:
    return "deletionTimestamp" in body["metadata"]
