"""Figures for final picks; the only place where held-out predictions are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemble_core.frozen import digest
from ensemble_core.library.records import Metrics, Split
from ensemble_core.metrics import Floating, metrics
from ensemble_core.selection.front import front
from ensemble_core.selection.pool import Candidate
from ensemble_core.selection.result import (
    BudgetResult,
    CostBasis,
    Costs,
    FrontPoint,
    MemberResult,
    ModelReference,
    ModelResult,
    PathResult,
    SelectionResult,
    Single,
    StepResult,
)
from ensemble_core.selection.smobf import Floats, Pick, Step
from ensemble_core.selection.subject import Subject

FRONT_POINTS = 100

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Evaluation:
    """Figures for final picks; the first place where held-out predictions are read.

    Args:
        subject: What was selected from.
        alone: Validation cross-entropy of each candidate, shape (M,).
        picks: One per budget.
    """

    subject: Subject
    alone: Floats
    picks: tuple[Pick, ...]

    def result(self, progress: Progress) -> SelectionResult:
        """Everything that the library keeps of the selection."""
        subject, spec = self.subject, self.subject.selection.spec
        singles = self._singles(progress)
        return SelectionResult(
            name=subject.selection.metadata.name,
            digest=subject.digest(),
            spec_hash=digest(spec.document()),
            fingerprint=subject.joined.header.fingerprint,
            sources=subject.sources(),
            cost=CostBasis(
                device_type=subject.pool.device_type, engine=spec.cost.engine, batch_size=spec.cost.batch_size
            ),
            combiner=spec.combiner,
            best_single=singles[self._best_single()],
            budgets=tuple(self._budget(index, singles) for index in range(len(self.picks))),
            front=self._front(),
            models=self._models(),
        )

    def _best_single(self) -> int:
        """By validation cross-entropy; equal ones: the cheapest in the limited costs, then the first id."""
        return int(np.lexsort((*self.subject.pool.costs()[::-1], self.alone))[0])

    def _singles(self, progress: Progress) -> dict[int, Single]:
        rows = sorted({row for pick in self.picks for row in pick.members} | {self._best_single()})
        singles = {}
        for done, row in enumerate(rows):
            progress("held-out figures", done, len(rows))
            candidate = self._candidate(row)
            singles[row] = Single(
                library=candidate.model.library,
                model_id=candidate.id,
                servable=candidate.model.record.servable,
                cost=candidate.cost,
                validation=self._metrics((row,), "validation"),
                heldout=self._metrics((row,), "heldout"),
            )
        progress("held-out figures", len(rows), len(rows))
        return singles

    def _metrics(self, rows: Sequence[int], split: Split) -> Metrics:
        """Of the members' mean; their predictions are mapped one at a time. O(members·N·C)."""
        total: Floating | None = None
        for row in sorted(rows):
            own = self.subject.joined.predictions(self._candidate(row).model, split)
            total = own.astype(np.float64) if total is None else np.add(total, own, out=total)
        assert total is not None
        return metrics(total / len(rows), self.subject.joined.labels(split))

    def _budget(self, index: int, singles: dict[int, Single]) -> BudgetResult:
        pick, budget = self.picks[index], self.subject.selection.spec.budgets[index]
        limits = Costs.model_validate(budget.model_dump(exclude={"name"}))
        if not pick.members:
            return BudgetResult(name=budget.name, limits=limits, reason=self._reason(index))
        weight = 1 / len(pick.members)
        return BudgetResult(
            name=budget.name,
            limits=limits,
            members=tuple(MemberResult(**dict(singles[row]), weight=weight) for row in pick.members),
            validation=self._metrics(pick.members, "validation"),
            heldout=self._metrics(pick.members, "heldout"),
            cost=self._cost(pick.members),
            weight=pick.weight,
            paths=tuple(PathResult(w=path.weight, steps=self._steps(path.steps)) for path in pick.paths),
        )

    def _steps(self, steps: Sequence[Step]) -> tuple[StepResult, ...]:
        return tuple(
            StepResult(
                **dict(self._reference(step.row)),
                score=step.score,
                cross_entropy=step.cross_entropy,
                cost=self._cost([s.row for s in steps[: index + 1]]),
            )
            for index, step in enumerate(steps)
        )

    def _reason(self, index: int) -> str:
        """Why no model fits a budget: for each limit that none keeps, the cheapest model and the limit."""
        pool = self.subject.pool
        costs, limits = pool.costs(), pool.limits[index]
        sentences = []
        for name, row, limit in zip(pool.quantities, costs, limits, strict=True):
            cheapest = int(row.argmin())
            if row[cheapest] > limit:
                unit = _UNITS[name]
                model = self._candidate(cheapest).id
                sentences.append(
                    f"the cheapest model {model} costs {row[cheapest]:.4g} {unit}, the budget is {limit:g} {unit}"
                )
        return "; ".join(sentences) or "each model exceeds one of the limits: " + ", ".join(
            f"{limit:g} {_UNITS[name]}"
            for name, limit in zip(pool.quantities, limits, strict=True)
            if np.isfinite(limit)
        )

    def _front(self) -> tuple[FrontPoint, ...]:
        """Of all ensembles on all paths, and all models alone."""
        met: dict[tuple[int, ...], float] = {(row,): float(value) for row, value in enumerate(self.alone)}
        for steps in (path.steps for pick in self.picks for path in pick.paths):
            for length in range(2, len(steps) + 1):
                met.setdefault(tuple(sorted(s.row for s in steps[:length])), steps[length - 1].cross_entropy)
        ensembles, costs = list(met), self.subject.pool.costs()
        spent = np.array([costs[:, members].sum(axis=1) for members in ensembles])
        points = np.column_stack([spent, list(met.values())])
        return tuple(
            FrontPoint(
                members=tuple(self._reference(row) for row in ensembles[index]),
                cross_entropy=met[ensembles[index]],
                cost=self._cost(ensembles[index]),
            )
            for index in front(points, FRONT_POINTS)
        )

    def _models(self) -> tuple[ModelResult, ...]:
        kept = {row for pick in self.picks for row in pick.kept}
        taking_part: list[tuple[Candidate, dict[str, Any]]] = [
            (candidate, {"cross_entropy": float(self.alone[row]), "kept": row in kept})
            for row, candidate in enumerate(self.subject.pool.candidates)
        ]
        left_out: list[tuple[Candidate, dict[str, Any]]] = [
            (candidate, {"reason": reason}) for candidate, reason in self.subject.pool.left_out
        ]
        return tuple(
            ModelResult(
                library=candidate.model.library,
                model_id=candidate.id,
                servable=candidate.model.record.servable,
                cost=candidate.cost,
                **values,
            )
            for candidate, values in (*taking_part, *left_out)
        )

    def _candidate(self, row: int) -> Candidate:
        return self.subject.pool.candidates[row]

    def _reference(self, row: int) -> ModelReference:
        candidate = self._candidate(row)
        return ModelReference(library=candidate.model.library, model_id=candidate.id)

    def _cost(self, rows: Sequence[int]) -> Costs:
        """The sum over members, of what is known of all of them."""
        values = {name: [getattr(self._candidate(row).cost, name) for row in rows] for name in Costs.model_fields}
        return Costs(**{name: None if None in costs else sum(costs) for name, costs in values.items()})


_UNITS = {
    "inference_time_seconds": "s",
    "memory_mib": "MiB",
    "parameters_millions": "million parameters",
}
