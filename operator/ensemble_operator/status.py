"""Conditions of a custom resource: from verdicts, and from what was there before (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from ensemble_operator.differences import without_none
from ensemble_operator.world import Manifest, Verdict

LONGEST_MESSAGE = 4096


def timestamp(now: datetime) -> str:
    return now.strftime("%Y-%m-%dT%H:%M:%SZ")


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


def status(body: Manifest, verdicts: Iterable[Verdict], fields: Mapping[str, Any], now: datetime) -> Manifest:
    """The whole status now."""
    generation = body["metadata"]["generation"]
    merged = conditions(before(body), verdicts, generation, now)
    plain: Manifest = without_none(fields)
    return {**plain, "observedGeneration": generation, "conditions": merged}


def before(body: Manifest) -> list[Manifest]:
    """The conditions that a resource has."""
    found: list[Manifest] = (body.get("status") or {}).get("conditions") or []
    return found


def degraded(verdicts: Iterable[Verdict], reason: str, message: str) -> tuple[Verdict, ...]:
    """These verdicts, but Degraded."""
    broken = Verdict("Degraded", "True", reason, message)
    return tuple(broken if verdict.type == "Degraded" else verdict for verdict in verdicts)


def stopped(body: Manifest, reason: str, message: str) -> tuple[Verdict, ...]:
    """Verdicts where nothing can be concluded: Ready as it was for this specification, nothing progresses, Degraded."""
    ready = next((condition for condition in before(body) if condition["type"] == "Ready"), None)
    # What was ready for an earlier specification may still be there, but nobody may take it for the present one's.
    outdated = ready and ready["status"] == "True" and ready["observedGeneration"] != body["metadata"]["generation"]
    return (
        Verdict("Ready", ready["status"], ready["reason"], ready["message"])
        if ready and not outdated
        else Verdict("Ready", "False", reason, message),
        Verdict("Progressing", "False", reason, message),
        Verdict("Degraded", "True", reason, message),
    )
