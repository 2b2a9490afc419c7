"""What a search has come to: counts, the best trial, and the Pareto front over its objectives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from datetime import UTC, datetime
from typing import Any

from ensemble_core.api.hposearch import QUALITY, Objective
from ensemble_core.library.records import ModelRecord
from ensemble_core.library.timeline import Span, occupancy
from ensemble_trainer.search import Search, Trial, loss_of

MAX_FRONT = 100
MAX_TEXT = 253  # what the API's status takes
STATES = ("pending", "running", "succeeded", "earlyStopped", "failed")


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


def summary(search: Search, spans: Sequence[Span], running: Set[int] = frozenset()) -> dict[str, Any]:
    """How far a search has come, bounded in size; any thread may ask while its driver goes on.

    Args:
        search: The search.
        spans: What its slots did.
        running: Numbers of the trials that run.
    """
    records, trials, objectives = tuple(search.records), tuple(search.trials), search.spec.objectives
    states = Counter(state_of(trial, search.rule.limit, running) for trial in trials)
    points = [costs(record, objectives) for record in records]
    # By the first objective, then by the others, then by id.
    best = min(range(len(records)), key=lambda i: (points[i], records[i].id), default=None)
    slots = 1 + max((span.slot for span in spans), default=0)
    return {
        "trials": {"total": len(trials), **{state: states[state] for state in STATES}},
        "failures": dict(Counter(trial.failure.reason for trial in trials if trial.failure is not None)),
        "objectives": [objective.metric for objective in objectives],
        "best": None if best is None else told_best(records[best], objectives),
        "front": [
            {"modelId": records[i].id, "values": values(records[i], objectives)} for i in thinned(pareto_front(points))
        ],
        "models": search.models,
        "libraryDigest": search.digest(),
        "occupancy": occupancy(spans, slots),
        "slots": slots,
        "attempt": search.attempt or search.library.newest_attempt(search.name),
        "startTime": rfc3339(search.began),
        "completionTime": None,
    }


def final_summary(search: Search, spans: Sequence[Span]) -> dict[str, Any]:
    """The result's summary, of a search that has ended."""
    last = max((span.finished_at for span in spans), default=None)
    return {**summary(search, spans), "completionTime": None if last is None else rfc3339(last)}


def state_of(trial: Trial, limit: int, running: Set[int]) -> str:
    """One of STATES: `succeeded` was trained for `limit` epochs, `earlyStopped` for fewer; both left a model."""
    if trial.failure is not None:
        return "failed"
    if trial.ended:
        return "succeeded" if trial.epochs >= limit else "earlyStopped"
    return "running" if trial.number in running else "pending"


def told_best(record: ModelRecord, objectives: Sequence[Objective]) -> dict[str, Any]:
    """The best model: the trial it comes from, the first objective's value, hyperparameters as text, metrics."""
    parameters = [{"name": name, "value": str(value)[:MAX_TEXT]} for name, value in record.hyperparameters.items()]
    return {
        "modelId": record.id,
        "trial": record.id,  # a trial and its model have one name
        "value": values(record, objectives)[0],
        "parameters": parameters,
        "metrics": {**record.validation.document(), "parameters": record.parameters, "flops": record.flops},
    }


def values(record: ModelRecord, objectives: Sequence[Objective]) -> list[Any]:
    """The objectives' metrics as the user named them; none where the record does not tell."""
    known = {**record.validation.document(), "parameters": record.parameters, "flops": record.flops}
    return [known[objective.metric] for objective in objectives]


def rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
