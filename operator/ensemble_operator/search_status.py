"""What a search tells: its report's summary, and the status that is made of it (pure)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field

from ensemble_core.api.hposearch import (
    HPOSearch,
    HPOSearchSpec,
    HPOSearchStatus,
    LibraryState,
    OptimalTrial,
    ParameterAssignment,
    ParetoPoint,
)
from ensemble_operator import status, workload
from ensemble_operator.readings import read_time
from ensemble_operator.reports import MOST, Finite, Number, Report, Untrusted, Word, typed
from ensemble_operator.workload import Start
from ensemble_operator.world import World


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


def told_of(start: Start, told: Start | None, spec: HPOSearchSpec) -> str:
    """The search in a line: what `told` has said of the library, and what `start` is at."""
    summary = summary_of(None if told is None else told.report) or TrainSummary()
    parts = [f"{summary.trials.ended} of {spec.max_trial_count} trials have ended"]
    if start.report is not None and start.report.state == "Running" and start.report.progress.note:
        parts.append(start.report.progress.note)
    elif summary.best is not None and summary.best.value is not None:
        parts.append(f"best {spec.objectives[0].metric} {summary.best.value:.4g} ({summary.best.model_id})")
    return "; ".join(parts)


def ended_trials(report: Report | None) -> int:
    summary = summary_of(report)
    return 0 if summary is None else summary.trials.ended


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
