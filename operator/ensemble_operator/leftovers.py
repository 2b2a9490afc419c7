"""Objects that are to go but are still there: in the way of a desired one, or held back by something (pure)."""

from __future__ import annotations

from datetime import datetime

from ensemble_operator.differences import is_deleting
from ensemble_operator.readings import phase
from ensemble_operator.world import Manifest

LONG = 60.0  # seconds after which a person is told what to do; of a pod, from the end of its grace


def goes(manifest: Manifest, body: Manifest) -> bool:
    """Whether it is about to be gone: it is being deleted, or its owner was a namesake of the resource, which is."""
    owners = manifest["metadata"].get("ownerReferences") or ()
    namesake = (body["kind"], body["metadata"]["name"])
    orphan = any((one["kind"], one["name"]) == namesake and one["uid"] != body["metadata"]["uid"] for one in owners)
    return orphan or is_deleting(manifest)


def waits_for(manifest: Manifest, body: Manifest) -> str:
    """What is told while a desired object has to wait until this one of its name is gone."""
    return f"waits until {_told(manifest, body)}, is gone"


def stuck(manifest: Manifest, body: Manifest, now: datetime) -> str | None:
    """What a person should do about one that should be gone for long; none of one that may still go by itself."""
    since = manifest["metadata"].get("deletionTimestamp") or body["metadata"]["creationTimestamp"]
    if (now - datetime.fromisoformat(since)).total_seconds() < LONG:
        return None
    told = f"{_told(manifest, body)}, is still there"
    if manifest["kind"] == "Pod" and not has_ended(manifest):
        name, node = manifest["metadata"]["name"], (manifest.get("spec") or {}).get("nodeName", "")
        return f"{told}: bring back node {node}, or if that is off for good, `kubectl delete pod {name} --force`"
    if finalizers := ", ".join(manifest["metadata"].get("finalizers") or ()):
        return f"{told}: bring back what removes its finalizers {finalizers}, or remove them yourself"
    return f"{told}: delete it" if not is_deleting(manifest) else told


def has_ended(pod: Manifest) -> bool:
    """Whether none of a pod's containers runs any more, nor will."""
    return phase(pod) in ("Succeeded", "Failed")


def _told(manifest: Manifest, body: Manifest) -> str:
    place = f"{manifest['kind']} {manifest['metadata']['name']}"
    if is_deleting(manifest):
        return f"{place}, which is being deleted since {manifest['metadata']['deletionTimestamp']}"
    return f"{place}, left by an earlier {body['kind']} {body['metadata']['name']}"
