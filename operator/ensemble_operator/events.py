"""Kubernetes events at transitions of conditions (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from ensemble_core.frozen import digest
from ensemble_operator.names import FIELD_MANAGER
from ensemble_operator.world import Manifest

LONGEST_NOTE = 1024  # bytes
LONGEST_NAME = 200


def transitions(body: Manifest, before: Sequence[Manifest], after: Sequence[Manifest], now: datetime) -> list[Manifest]:
    """An event for each condition with a message whose status or reason has changed, one of several that say the same.

    Its name tells the transition, so one that is made again, because the operator ended before it wrote the status,
    is no second event.
    """
    old = {condition["type"]: condition for condition in before}
    events: dict[str, Manifest] = {}
    # Degraded first: what makes it so is a warning, whatever other conditions have the same reason.
    for condition in sorted(after, key=lambda one: one["type"] != "Degraded"):
        previous = old.get(condition["type"])
        if _worth_telling(previous, condition):
            events.setdefault(condition["reason"], _event(body, previous, condition, now))
    return list(events.values())


def _worth_telling(before: Manifest | None, after: Manifest) -> bool:
    if not after["message"]:
        return False
    if before is None:
        return (after["type"], after["status"]) != ("Degraded", "False")
    return any(before[field] != after[field] for field in ("status", "reason"))


def _event(body: Manifest, before: Manifest | None, condition: Manifest, now: datetime) -> Manifest:
    metadata = body["metadata"]
    told = {field: condition[field] for field in ("type", "status", "reason", "observedGeneration")}
    left = [before[field] for field in ("status", "reason", "lastTransitionTime")] if before else []
    identity = digest({"uid": metadata["uid"], "from": left, "to": told})[:16]
    is_bad = (condition["type"], condition["status"]) == ("Degraded", "True")
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name'][:LONGEST_NAME]}.{identity}", "namespace": metadata["namespace"]},
        "type": "Warning" if is_bad else "Normal",
        "reason": condition["reason"][:128],
        "action": condition["type"],
        "note": _cut(condition["message"]),
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": FIELD_MANAGER,
        "reportingInstance": FIELD_MANAGER,
        "regarding": {
            "apiVersion": body["apiVersion"],
            "kind": body["kind"],
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
        },
    }


def _cut(text: str) -> str:
    content = text.encode()
    return text if len(content) <= LONGEST_NOTE else content[: LONGEST_NOTE - 3].decode(errors="ignore") + "…"
