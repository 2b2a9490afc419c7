"""What a search has come to: counts, the best trial, and the Pareto front over its objectives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ensemble_core.api.hposearch import QUALITY, Objective
from ensemble_core.library.records import ModelRecord
from ensemble_trainer.search import Search, loss_of

MAX_FRONT = 100


def costs(record: ModelRecord, objectives: Sequence[Objective]) -> tuple[float, ...]:
    """One number per objective, lower is better; infinite where the record does not tell."""
    known = {"parameters": record.parameters, "flops": record.flops}
    values = []
    for objective in objectives:
        if objective.metric in QUALITY:
            values.append(loss_of(record.validation, objective.metric))
        else:
            value = known[objective.metric]
            values.append(float("inf") if value is None else float(value))
    return tuple(values)


def best_model(records: Iterable[ModelRecord], objectives: Sequence[Objective]) -> ModelRecord | None:
    """The model that is best by the first objective, then by the others, then by id."""
    return min(records, key=lambda record: (costs(record, objectives), record.id), default=None)


def pareto_front(points: Sequence[tuple[float, ...]]) -> list[int]:
    """Indices of the points that no other dominates, lowest first value first.

    A point dominates another if it is at least as good in all values and better in one; of equal ones the first stays.
    O(n log n + n·f) for n points and f on the front.
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i], i)):
        # Whatever dominates a point sorts before it.
        if not any(all(a <= b for a, b in zip(points[kept], points[index], strict=True)) for kept in front):
            front.append(index)
    return front


def thinned(front: Sequence[int], most: int = MAX_FRONT) -> list[int]:
    """At most `most` entries, evenly spread, both ends among them."""
    if len(front) <= most:
        return list(front)
    return [front[round(i * (len(front) - 1) / (most - 1))] for i in range(most)]


def summary(search: Search, occupancy: float | None, slots: int) -> dict[str, Any]:
    """The result's summary, bounded in size."""
    records, objectives = search.records, search.spec.objectives
    points = [costs(record, objectives) for record in records]
    best = best_model(records, objectives)
    failures: dict[str, int] = {}
    for trial in search.trials:
        if trial.failure is not None:
            failures[trial.failure.reason] = failures.get(trial.failure.reason, 0) + 1
    return {
        "trials": {
            "total": len(search.trials),
            "succeeded": len(records),
            "failed": sum(failures.values()),
            "unfinished": len(search.unfinished()),
        },
        "failures": failures,
        "objectives": [objective.metric for objective in objectives],
        "best": None if best is None else told(best, objectives),
        "front": [told(records[i], objectives) for i in thinned(pareto_front(points))],
        "models": len(search.library.models()),
        "occupancy": occupancy,
        "slots": slots,
        "attempt": search.attempt or search.library.newest_attempt(search.name),
    }


def told(record: ModelRecord, objectives: Sequence[Objective]) -> dict[str, Any]:
    """A model by id with the metrics of the objectives."""
    quality = record.validation.document()
    values = {**quality, "parameters": record.parameters, "flops": record.flops}
    return {"modelId": record.id, "metrics": {o.metric: values[o.metric] for o in objectives}}
