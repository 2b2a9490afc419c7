"""The status of a custom resource: as it is, and as verdicts make it (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from ensemble_operator.differences import without_none
from ensemble_operator.world import Manifest, Verdict

LONGEST_MESSAGE = 4096
OF_EVERY_KIND = ("conditions", "observedGeneration")


def timestamp(now: datetime) -> str:
    return now.strftime("%Y-%m-%dT%H:%M:%SZ")


def conditions_of(manifest: Manifest) -> list[Manifest]:
    """The conditions that an object has."""
    found: list[Manifest] = (manifest.get("status") or {}).get("conditions") or []
    return found


def fields_of(body: Manifest) -> dict[str, Any]:
    """The status that a custom resource has, without what every kind's has."""
    return {field: value for field, value in (body.get("status") or {}).items() if field not in OF_EVERY_KIND}


def status(body: Manifest, verdicts: Iterable[Verdict], fields: Mapping[str, Any], now: datetime) -> Manifest:
    """The whole status now."""
    generation = body["metadata"]["generation"]
    merged = conditions(conditions_of(body), verdicts, generation, now)
    plain: Manifest = without_none(fields)
    return {**plain, "observedGeneration": generation, "conditions": merged}


def conditions(
    before: Sequence[Manifest], verdicts: Iterable[Verdict], generation: int, now: datetime
) -> list[Manifest]:
    """The conditions now; the time of each is when its status changed last."""
    old = {condition["type"]: condition for condition in before}
    return [_condition(old.get(verdict.type), verdict, generation, now) for verdict in verdicts]


def _condition(before: Manifest | None, verdict: Verdict, generation: int, now: datetime) -> Manifest:
    same = before is not None and before["status"] == verdict.status
    message = verdict.message
    return {
        "type": verdict.type,
        "status": verdict.status,
        "reason": verdict.reason,
        "message": message if len(message) <= LONGEST_MESSAGE else f"{message[: LONGEST_MESSAGE - 1]}…",
        "lastTransitionTime": before["lastTransitionTime"] if before is not None and same else timestamp(now),
        "observedGeneration": generation,
    }
