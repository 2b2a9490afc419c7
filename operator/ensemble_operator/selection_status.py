"""What a selection tells: its report's result, and the status that is made of it (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from ensemble_core.api.common import Quality
from ensemble_core.api.ensembleselection import (
    EnsembleSelection,
    EnsembleSelectionStatus,
    FrontPoint,
    SelectedBudget,
    SelectedCost,
    SelectedMember,
)
from ensemble_operator import status, workload
from ensemble_operator.readings import read_time
from ensemble_operator.reports import Finite, Number, Report, Untrusted, Word, clean, typed
from ensemble_operator.workload import Start
from ensemble_operator.world import World


class Member(Untrusted):
    """A model of an ensemble."""

    library: Number
    model_id: Word
    weight: Annotated[float, Field(ge=0, le=1)]


class Budget(Untrusted):
    """The ensemble of a budget."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=40)]
    members: Annotated[list[Member], Field(max_length=256)] = Field(default_factory=list)
    member_count: Number
    validation: dict[str, Any] | None = None
    heldout: dict[str, Any] | None = None
    cost: dict[str, Any] | None = None
    reason: str | None = None


class Point(Untrusted):
    """An ensemble of the front."""

    members: Number
    cross_entropy: Annotated[Finite, Field(ge=0)]
    cost: dict[str, Any]


class Source(Untrusted):
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class SelectSummary(Untrusted):
    """What `select` tells at its end."""

    budgets: Annotated[list[Budget], Field(max_length=100)] = Field(default_factory=list)
    front: Annotated[list[Point], Field(max_length=100)] = Field(default_factory=list)
    sources: Annotated[list[Source], Field(max_length=16)] = Field(default_factory=list)

    def line(self) -> str:
        """`small 3, large 5`."""
        if not self.budgets:
            return "more ensembles than the report has room for; they are in the library"
        return clean(", ".join(f"{budget.name} {budget.member_count}" for budget in self.budgets), 253)


def result_of(report: Report | None) -> SelectSummary | None:
    """The result in a report; none if it has none, or a wrong one."""
    if report is None or report.state != "Succeeded" or report.result.digest is None:
        return None
    return typed(SelectSummary, report.result.summary)


def fields(world: World[EnsembleSelection], start: Start | None) -> Mapping[str, Any]:
    """The status of a start that has a result."""
    summary = result_of(start.report) if start is not None else None
    if start is None or start.report is None or summary is None:
        return {}
    digest = start.report.result.digest
    return workload.told(lambda: _content(summary, digest, _completed(world, digest)))


def _content(summary: SelectSummary, digest: str | None, completed: str) -> EnsembleSelectionStatus:
    budgets = tuple(map(_budget, summary.budgets))
    entropies = [b.validation.cross_entropy for b in budgets if b.validation and b.validation.cross_entropy is not None]
    return EnsembleSelectionStatus(
        summary=summary.line(),
        cross_entropy=workload.brief(min(entropies)) if entropies else None,
        digest=digest,
        library_digests=tuple(source.digest for source in summary.sources),
        completion_time=completed,
        budgets=budgets,
        front=tuple(
            FrontPoint(members=point.members, cross_entropy=point.cross_entropy, cost=cost)
            for point in summary.front
            if (cost := typed(SelectedCost, point.cost)) is not None
        ),
    )


def _completed(world: World[EnsembleSelection], digest: str | None) -> str:
    """When the result was first seen."""
    before = world.body.get("status") or {}
    if digest == before.get("digest") and read_time(before.get("completionTime")) is not None:
        return str(before["completionTime"])
    return status.timestamp(world.now)


def _budget(budget: Budget) -> SelectedBudget:
    return SelectedBudget(
        name=budget.name,
        members=tuple(
            SelectedMember(library=member.library, model_id=member.model_id, weight=member.weight)
            for member in budget.members
        ),
        member_count=budget.member_count,
        validation=_quality(budget.validation),
        heldout=_quality(budget.heldout),
        cost=None if budget.cost is None else typed(SelectedCost, budget.cost),
        reason=(clean(budget.reason, 1024) or None) if budget.reason else None,
    )


def _quality(metrics: Mapping[str, Any] | None) -> Quality | None:
    return None if metrics is None else workload.quality(metrics)
