"""What differs between desired and observed objects (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from ensemble_core.api.common import GROUP
from ensemble_core.frozen import digest
from ensemble_operator.children import CHILDREN
from ensemble_operator.names import MANAGED_BY, OWNER_UID
from ensemble_operator.world import Decision, Manifest, Ref

APPLIED = f"{GROUP}/applied"
CREATE_ONLY = ("Job", "RayJob")
_QUANTITY = re.compile(r"(-?[0-9]+(?:[.][0-9]*)?)(?:(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)|[eE](-?[0-9]+))?")
_DECIMAL = {unit: Decimal(10) ** (3 * power) for power, unit in enumerate(("n", "u", "m", "", "k", *"MGTPE"), -3)}
_BINARY = {f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", 1)}


def ref(manifest: Manifest) -> Ref:
    return Ref(manifest["kind"], manifest["metadata"]["name"])


def stamped(manifest: Manifest) -> Manifest:
    """The same with an annotation that tells what was desired: fields that no longer are get noticed."""
    metadata = manifest["metadata"]
    annotations = {**(metadata.get("annotations") or {}), APPLIED: digest(manifest)}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def is_create_only(manifest: Manifest) -> bool:
    """Whether an object of its name, once there, is never touched: what Kueue writes into a Job is never reverted."""
    return manifest["kind"] in CREATE_ONLY or manifest.get("immutable") is True


def is_deleting(manifest: Manifest) -> bool:
    return "deletionTimestamp" in manifest["metadata"]


def controller_uid(manifest: Manifest) -> str | None:
    owners = manifest["metadata"].get("ownerReferences") or ()
    return next((owner["uid"] for owner in owners if owner.get("controller")), None)


def misplaced(manifest: Manifest, body: Manifest) -> str | None:
    """What is wrong with an object that a kind wants: it must be in the resource's namespace, and be its own."""
    metadata, owner = manifest["metadata"], body["metadata"]
    if manifest["kind"] not in CHILDREN[body["kind"]]:
        return "is of no kind that is read"
    labels = metadata.get("labels") or {}
    if metadata.get("namespace") != owner["namespace"]:
        return "is in another namespace"
    if controller_uid(manifest) != owner["uid"] or labels.get(OWNER_UID) != owner["uid"] or MANAGED_BY not in labels:
        return "has not its owner's reference and labels"
    return None


def differs(desired: Manifest, observed: Manifest) -> bool:
    """Whether a stamped object must be applied over the one that is there."""
    if is_create_only(desired):
        return False
    applied = (observed["metadata"].get("annotations") or {}).get(APPLIED)
    return applied != desired["metadata"]["annotations"][APPLIED] or not contains(observed, desired)


def contains(observed: Any, desired: Any) -> bool:
    """Whether everything desired is there; what the server or others have added does not matter.

    The server leaves out what is empty, zero or false, and writes quantities in its own way: `0.5` as `500m`.
    """
    if observed is None:
        return not desired
    if isinstance(desired, Mapping):
        return isinstance(observed, Mapping) and all(
            contains(observed.get(key), value) for key, value in desired.items()
        )
    if isinstance(desired, list | tuple):
        same_length = isinstance(observed, list) and len(observed) == len(desired)
        return same_length and all(map(contains, observed, desired))
    if desired is None or observed == desired:
        return True
    amount = quantity(desired)
    return amount is not None and amount == quantity(observed)


def quantity(value: object) -> Decimal | None:
    """The number that a Kubernetes quantity is, or none."""
    match = _QUANTITY.fullmatch(str(value)) if isinstance(value, str | int | float) else None
    if match is None or isinstance(value, bool):
        return None
    number, unit, exponent = match.groups()
    factor = Decimal(10) ** int(exponent) if exponent else {**_DECIMAL, **_BINARY}[unit or ""]
    return Decimal(number) * factor


def superfluous(decision: Decision, owned: Iterable[Manifest]) -> list[Manifest]:
    """Owned objects that are neither desired nor kept; in the order of their deletion, workloads first."""
    wanted = {ref(manifest) for manifest in decision.objects} | decision.keep
    return sorted((one for one in owned if ref(one) not in wanted), key=lambda one: (_last(one["kind"]), ref(one)))


def _last(kind: str) -> int:
    """What pods need goes after what starts pods."""
    return 0 if kind in (*CREATE_ONLY, "Deployment") else 1


def merge_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON merge patch (RFC 7396) that makes the one of the other."""
    patch: dict[str, Any] = dict.fromkeys(before.keys() - after.keys())
    for key, value in after.items():
        old = before.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            inner = merge_patch(old, value)
            patch |= {key: inner} if inner else {}
        elif key not in before or old != value:
            patch[key] = value
    return patch


def says_the_same(one: Any, other: Any) -> bool:
    """Whether they differ at most in fields that are empty in one and absent in the other: the server's defaults."""
    return bool(_without_empty(one) == _without_empty(other))


def _without_empty(value: Any) -> Any:
    if isinstance(value, Mapping):
        plain = {key: _without_empty(item) for key, item in value.items()}
        return {key: item for key, item in plain.items() if item not in (None, [], {})}
    return [_without_empty(item) for item in value] if isinstance(value, list | tuple) else value


def without_none(value: Any) -> Any:
    """The value as the server would store it: plain lists, no null fields."""
    if isinstance(value, Mapping):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return [without_none(item) for item in value] if isinstance(value, list | tuple) else value
