"""EnsembleSelection: a Job that picks ensembles from libraries, again when these have grown and settled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ensemble_core.api.ensembleselection import EnsembleSelection, EnsembleSelectionSpec
from ensemble_core.api.hposearch import HPOSearch
from ensemble_core.errors import UserError
from ensemble_operator import polls, reasons, verdicts, workload
from ensemble_operator.identity import report_name
from ensemble_operator.names import Component, Owner, owner_of
from ensemble_operator.pods import (
    Resources,
    command,
    report_env,
    workload_container,
)
from ensemble_operator.readings import read_time
from ensemble_operator.reports import Report
from ensemble_operator.selection_status import fields, result_of
from ensemble_operator.settings import Settings
from ensemble_operator.storages import Document, Resolved, named_searches, reference
from ensemble_operator.verdicts import Verdicts
from ensemble_operator.workload import LOOK_AGAIN, Start, Wish, maps
from ensemble_operator.world import Decision, Manifest, Others, Ref, World

SELECT: Component = "select"
MEMORY_MIB = 2048  # of both containers: predictions are mapped, models are loaded one at a time
MEMORY_LIMIT_MIB = 8192


class EnsembleSelectionKind:
    """The kind, as the engine sees it."""

    model = EnsembleSelection

    def references(self, resource: EnsembleSelection, body: Manifest, read: Others) -> tuple[Ref, ...]:
        """The searches whose libraries are sources."""
        return tuple(Ref("HPOSearch", name) for name in named_searches(resource.spec))

    def decide(self, world: World[EnsembleSelection]) -> Decision:
        try:
            return _decide(world)
        except UserError as refused:
            return workload.refused(world, str(refused))


KIND = EnsembleSelectionKind()


# --- sources --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sources:
    """What is known of the searches among the sources.

    Args:
        searches: As documents; empty while one of them is missing or wrong.
        digests: Of their libraries.
        problem: Why the selection cannot start with them yet; empty if it can.
        settles_in: Seconds until they have settled, if nothing comes between.
    """

    searches: tuple[HPOSearch, ...] = ()
    digests: tuple[str, ...] = ()
    problem: str = ""
    settles_in: float | None = None


class _Source(NamedTuple):
    search: HPOSearch | None
    digest: str = ""
    problem: str = ""
    settles_in: float | None = None


def sources_of(world: World[EnsembleSelection]) -> Sources:
    """The searches among the sources, as they are now."""
    found = [_source(world, name) for name in named_searches(world.resource.spec)]
    waits = [one.settles_in for one in found if one.settles_in is not None]
    return Sources(
        searches=tuple(one.search for one in found if one.search is not None),
        digests=tuple(one.digest for one in found),
        problem="; ".join(one.problem for one in found if one.problem),
        settles_in=max(waits, default=None),
    )


def _source(world: World[EnsembleSelection], name: str) -> _Source:
    manifest = world.others.get(Ref("HPOSearch", name))
    if manifest is None:
        return _Source(None, problem=f"there is no HPOSearch {name} in this namespace")
    search = workload.parsed(HPOSearch, manifest)
    if search is None:
        return _Source(None, problem=f"HPOSearch {name} is not valid")
    library = (manifest.get("status") or {}).get("library") or {}
    digest = str(library.get("digest") or "")
    if not digest or not library.get("models"):
        return _Source(search, digest, f"HPOSearch {name} has no models yet")
    if workload.is_ready(manifest):
        return _Source(search, digest)
    settle = world.resource.spec.update_policy.settle_seconds
    changed = read_time(library.get("changedTime"))
    left = settle if changed is None else settle - (world.now - changed).total_seconds()
    if left <= 0:
        return _Source(search, digest)
    problem = f"HPOSearch {name} still grows: its library must be unchanged for {settle} s"
    return _Source(search, digest, problem, left)


# --- the decision ---------------------------------------------------------------------------------------------------


def _decide(world: World[EnsembleSelection]) -> Decision:
    spec, owner = world.resource.spec, owner_of(world.resource, world.body)
    sources, known = sources_of(world), workload.starts(world, SELECT, SELECT)
    unready = verdicts.progressing(reasons.SOURCES_NOT_READY, f"waits: {sources.problem}")
    complete = len(sources.searches) == len(named_searches(spec))
    documents: list[Document] = [world.resource, *map(reference, sources.searches)]
    mine = workload.hash_of(documents, spec) if complete else None
    if mine is None or spec.suspend:
        message = "nothing is selected until spec.suspend is false"
        stopped = verdicts.stopped(reasons.SUSPENDED, message, degraded=False)
        valid = _valid(world, last_result(known), mine)
        return _idle(world, known, valid, stopped if spec.suspend else unready, None if spec.suspend else LOOK_AGAIN)
    seen = next((one.seen for one in known if one.spec_hash == mine), "")
    wanted = _wish(world, documents, sources, seen)
    start = choose(world, wanted, known, sources)
    if start is None:
        valid = _valid(world, last_result(known), mine)
        return _idle(world, known, valid, unready, sources.settles_in or LOOK_AGAIN)
    poll = polls.poll_of(world, start, documents)
    if poll is not None and (seen := polls.news(spec, start, poll)):
        wanted = _wish(world, documents, sources, seen)
        start = choose(world, wanted, known, sources) or start
    resolved, last = wanted.resolved, last_result([start, *known])
    job = select_job(owner, start, resolved, spec, world.settings)
    conditions = conclude(world, start, _valid(world, last, mine), sources)
    goes_on = poll is not None and not start.outcome.wanted
    return Decision(
        objects=(
            *workload.objects(owner, start, resolved, spec.service_account_name),
            *(workload.runnable(world, start, job) if start.outcome.wanted else ()),
            *(polls.objects(world, owner, poll, resolved) if poll is not None and goes_on else ()),
        ),
        keep=workload.kept(start, known) | maps(last) | maps(poll),
        conditions=polls.told(world, poll, conditions) if poll is not None and goes_on else conditions,
        status=fields(world, last),
        again_after=workload.look_again(world, _again(world, start, sources)),
    )


def _valid(world: World[EnsembleSelection], last: Start | None, mine: str | None) -> Start | None:
    """The last result, if it is what the specification asks for as it is now.

    Args:
        mine: Names the specification with the searches in it; none while one of them is missing. Then it is not known
            what is asked for, and what was ready for the specification still is.
    """
    if last is None:
        return None
    return last if (last.spec_hash == mine if mine is not None else workload.is_ready(world.body)) else None


def _wish(world: World[EnsembleSelection], documents: Sequence[Document], sources: Sources, seen: str) -> Wish:
    """A selection from what the searches have, and from what has been seen of storages."""
    policy, spec = world.resource.spec.update_policy, world.resource.spec
    digests = () if policy.mode == "Once" else sources.digests
    return workload.wish(SELECT, SELECT, documents, spec, digests, "" if policy.mode == "Once" else seen)


def choose(world: World[EnsembleSelection], wanted: Wish, known: Sequence[Start], sources: Sources) -> Start | None:
    """What should run or has run; none while the sources are not ready for the first time.

    What runs for this specification may end before newer sources count: libraries that grow all the time would
    otherwise never be selected from.
    """
    same_spec = [start for start in known if start.spec_hash == wanted.spec_hash]
    underway = next((start for start in same_spec if start.outcome.active), None)
    if underway is not None:
        return underway
    done = next((start for start in same_spec if start.outcome.state == "Succeeded"), None)
    if done is not None and (world.resource.spec.update_policy.mode == "Once" or sources.problem):
        return done
    return None if sources.problem else workload.current(world, wanted, known)


def last_result(known: Sequence[Start]) -> Start | None:
    """The first start that has a result."""
    return next((start for start in known if result_of(start.report) is not None), None)


def _idle(
    world: World[EnsembleSelection],
    known: Sequence[Start],
    last: Start | None,
    conditions: Verdicts,
    again_after: float | None = None,
) -> Decision:
    """Nothing runs; what was found stays.

    Args:
        last: With the result that makes the selection ready all the same.
    """
    return Decision(
        (),
        _beside(last, conditions),
        fields(world, last_result(known)),
        keep=maps(last_result(known)) | maps(known[0] if known else None),
        again_after=again_after,
    )


def _again(world: World[EnsembleSelection], start: Start, sources: Sources) -> float | None:
    waits = [sources.settles_in] if sources.settles_in else []
    if start.outcome.state == "Lost":
        waits.append(max(workload.pause(world, start), 1.0))
    if start.outcome.state == "Waiting":
        waits.append(LOOK_AGAIN)
    return min(waits, default=None)


def conclude(world: World[EnsembleSelection], start: Start, last: Start | None, sources: Sources) -> Verdicts:
    """What is to be said of the selection; a result that is there stays ready while a newer one is found."""
    outcome = start.outcome
    if outcome.state == "Succeeded" and result_of(start.report) is None:
        missing = verdicts.stopped(reasons.REPORT_MISSING, workload.report_missing(start), degraded=True)
        return _beside(last if last is not start else None, missing)
    if outcome.state == "Succeeded":
        updating = (reasons.SOURCES_NOT_READY, f"waits to select again: {sources.problem}") if sources.problem else None
        return _selected(start, updating)
    if outcome.state == "Failed":
        message = f"{outcome.message}\n{workload.advice(start)}"
        return _beside(last, verdicts.stopped(reasons.SELECTION_FAILED, message, degraded=True))
    if outcome.state == "Running":
        reason = reasons.PROFILING if outcome.reason == reasons.PROFILING else reasons.SELECTING
        return _beside(last, verdicts.progressing(reason, outcome.message or _told(start.report)))
    return _beside(last, workload.waiting(world, start))


def _selected(start: Start, updating: tuple[str, str] | None) -> Verdicts:
    result = result_of(start.report)
    assert result is not None
    none = [f"budget {budget.name} has no ensemble: {budget.reason}" for budget in result.budgets if not budget.members]
    message = "; ".join([result.line(), *none])
    if none and len(none) == len(result.budgets):
        return verdicts.stopped(reasons.NO_ENSEMBLE, message, degraded=True)
    return verdicts.ready(reasons.SELECTED, message, updating)


def _beside(last: Start | None, now: Verdicts) -> Verdicts:
    """The present conditions, but Ready if there is an earlier result."""
    if last is None:
        return now
    return (_selected(last, None)[0], *now[1:])


def _told(report: Report | None) -> str:
    if report is None or not report.progress.stage:
        return "ensembles are being selected"
    progress = report.progress
    return f"{progress.stage}: {progress.done} of {progress.total}" + (f"; {progress.note}" if progress.note else "")


# --- builders -------------------------------------------------------------------------------------------------------


def is_measured(spec: EnsembleSelectionSpec) -> bool:
    """Whether a budget limits what only a measurement on the device tells."""
    return any(
        limit is not None for budget in spec.budgets for limit in (budget.inference_time_seconds, budget.memory_mib)
    )


def select_job(
    owner: Owner, start: Start, resolved: Resolved, spec: EnsembleSelectionSpec, settings: Settings
) -> Manifest:
    """The Job that selects, on the device type that the costs are of; models that lack a profile are measured first."""
    resources = Resources(spec.cost.cores_per_device, MEMORY_MIB, MEMORY_LIMIT_MIB)
    profile = workload_container(
        "profile",
        settings.core_image,
        settings,
        resources,
        resolved,
        command=command(["profile"], owner),
        env=report_env(owner, start.attempt),
    )
    select = workload_container(
        "ensemble",
        settings.core_image,
        settings,
        resources,
        resolved,
        command=command([SELECT], owner, report_name(start.child)),
        env=report_env(owner, start.attempt),
        reports=True,
    )
    before = [profile] if is_measured(spec) else []
    return workload.reporting_job(owner, start, resolved, spec, settings, select, init_containers=before)
