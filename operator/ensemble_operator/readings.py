"""What Kubernetes' own objects tell, as far as several modules ask (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from ensemble_operator.status import conditions_of
from ensemble_operator.world import Manifest


def name_of(manifest: Manifest) -> str:
    return str(manifest["metadata"]["name"])


def read_time(text: object) -> datetime | None:
    """A time as Kubernetes writes it, in UTC; none if it is none, or of another age."""
    try:
        time = datetime.fromisoformat(text) if isinstance(text, str) else None
        return time.astimezone(UTC) if time is not None and time.tzinfo is not None and time.year >= 1970 else None
    except (ValueError, OverflowError):
        return None


def conditions_by_type(manifest: Manifest, status: str | None = None) -> dict[str, Manifest]:
    """The conditions of an object, by type; those of one status alone if it is given."""
    return {one["type"]: one for one in conditions_of(manifest) if status in (None, one.get("status"))}


def phase(pod: Manifest) -> str:
    return str((pod.get("status") or {}).get("phase", "Pending"))


def container_statuses(pod: Manifest) -> list[Mapping[str, Any]]:
    """Of a pod's containers, those that run before the others first."""
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def pods_of(pods: Iterable[Manifest], label: str, value: str) -> list[Manifest]:
    """Those pods that carry a label of that value."""
    return [pod for pod in pods if (pod["metadata"].get("labels") or {}).get(label) == value]


def has_begun(child: Manifest, pods: Iterable[Manifest]) -> bool:
    """Whether one of a workload's containers has ever started, as far as its object and its pods tell."""
    status = child.get("status") or {}
    counted = any(status.get(count) for count in ("ready", "succeeded", "failed"))
    states = [one for pod in pods for one in container_statuses(pod)]
    return counted or any(one.get("lastState") or (one.get("state") or {}).keys() - {"waiting"} for one in states)
