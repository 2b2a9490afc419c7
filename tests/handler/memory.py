"""A cluster in memory, with the rules of the API server that the engine relies on, and faults at will."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from ensemble_operator.cluster import APIS, CUSTOM, MissingError, RefusedError
from ensemble_operator.status import timestamp
from ensemble_operator.world import Manifest

Place = tuple[str, str, str]
COUNTED = (*CUSTOM, "Deployment")  # kinds whose generation follows their spec


class Write(NamedTuple):
    """A request that would change the cluster."""

    verb: str
    kind: str
    name: str


class CrashError(BaseException):
    """The operator is killed here."""


Fault = Callable[[int, Write, str], None]


def nothing(index: int, write: Write, when: str) -> None:
    """No fault."""


def midnight() -> datetime:
    """No time passes."""
    return datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class MemoryCluster:
    """Implements `Cluster`.

    Args:
        fault: Called before and after each write with its index, itself, and `before` or `after`; may raise.
        on_read: Called before each read; may raise.
        clock: UTC.
    """

    fault: Fault = nothing
    on_read: Callable[[str, str], None] = lambda verb, kind: None
    clock: Callable[[], datetime] = midnight
    objects: dict[Place, Manifest] = field(default_factory=dict)
    events: dict[tuple[str, str], Manifest] = field(default_factory=dict)
    writes: list[Write] = field(default_factory=list)
    made: list[Place] = field(default_factory=list)
    _applied: dict[Place, Manifest] = field(default_factory=dict)
    version: int = 0

    # ------------------------------------------------------------ what the engine calls

    async def get(self, kind: str, namespace: str, name: str) -> Manifest:
        self.on_read("get", kind)
        return copied(self._find((kind, namespace, name)))

    async def select(self, kind: str, namespace: str, labels: Mapping[str, str]) -> list[Manifest]:
        self.on_read("list", kind)
        return [
            copied(one)
            for place, one in sorted(self.objects.items())
            if place[:2] == (kind, namespace) and labels.items() <= (one["metadata"].get("labels") or {}).items()
        ]

    async def apply(self, manifest: Manifest) -> Manifest:
        return self._write("apply", manifest["kind"], manifest["metadata"]["name"], lambda: self._apply(manifest))

    async def create(self, manifest: Manifest) -> Manifest:
        return self._write("create", manifest["kind"], manifest["metadata"]["name"], lambda: self._create(manifest))

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        def act() -> None:
            if self._find((kind, namespace, name))["metadata"]["uid"] != uid:
                raise RefusedError(409, "Conflict", "another uid")
            self.remove(kind, namespace, name)

        self._write("delete", kind, name, act)

    async def patch_status(self, body: Manifest, patch: Mapping[str, Any]) -> Manifest:
        return self._patch("status", body, {"status": patch})

    async def patch_finalizers(self, body: Manifest, finalizers: list[str]) -> Manifest:
        return self._patch("finalizers", body, {"metadata": {"finalizers": finalizers}})

    async def create_event(self, event: Manifest) -> None:
        place = (event["metadata"]["namespace"], event["metadata"]["name"])

        def act() -> None:
            self.events.setdefault(place, copy.deepcopy(event))

        self._write("event", "Event", event["reason"], act)

    # ------------------------------------------------------------ what tests call

    def put(self, manifest: Manifest) -> Manifest:
        """What a user, or a controller, makes or changes; the generation follows the spec."""
        place = place_of(manifest)
        old = self.objects.get(place)
        if old is None:
            return self._create(manifest)
        new = copy.deepcopy(manifest)
        new["metadata"] = {**old["metadata"], **manifest["metadata"]}
        return self._store(place, new)

    def change(self, kind: str, namespace: str, name: str, patch: Mapping[str, Any]) -> Manifest:
        """A JSON merge patch by somebody else."""
        place = (kind, namespace, name)
        return self._store(place, merged(self._find(place), patch))

    def remove(self, kind: str, namespace: str, name: str) -> None:
        """Delete, and collect what it owned; with finalizers it only begins."""
        place = (kind, namespace, name)
        one = self._find(place)
        if one["metadata"].get("finalizers"):
            self._store(place, merged(one, {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}))
            return
        del self.objects[place]
        self._applied.pop(place, None)
        uid = one["metadata"]["uid"]
        for other in list(self.objects):
            owners = self.objects[other]["metadata"].get("ownerReferences") or () if other in self.objects else ()
            if any(owner["uid"] == uid for owner in owners):
                self.remove(*other)

    def collect(self) -> None:
        """What the garbage collector removes in the end: objects whose owner is no more."""
        uids = {one["metadata"]["uid"] for one in self.objects.values()}
        for place, one in list(self.objects.items()):
            owners = one["metadata"].get("ownerReferences") or ()
            if owners and all(owner["uid"] not in uids for owner in owners):
                del self.objects[place]
                self._applied.pop(place, None)

    def names(self, *kinds: str) -> list[tuple[str, str]]:
        return sorted((kind, name) for kind, _, name in self.objects if not kinds or kind in kinds)

    # ------------------------------------------------------------ inside

    def _write(self, verb: str, kind: str, name: str, act: Callable[[], Any]) -> Any:
        index, write = len(self.writes), Write(verb, kind, name)
        self.writes.append(write)
        self.fault(index, write, "before")
        answer = copied(act())
        self.fault(index, write, "after")
        return answer

    def _find(self, place: Place) -> Manifest:
        if place not in self.objects:
            raise MissingError(f'{APIS[place[0]].plural} "{place[2]}" not found')
        return self.objects[place]

    def _create(self, manifest: Manifest) -> Manifest:
        place = place_of(manifest)
        if place in self.objects:
            raise RefusedError(409, "AlreadyExists", f'{APIS[place[0]].plural} "{place[2]}" already exists')
        self.made.append(place)
        given = {"uid": f"uid-{len(self.made)}", "generation": 1, "creationTimestamp": timestamp(self.clock())}
        metadata = {**manifest["metadata"], **given}
        return self._store(place, {**copy.deepcopy(manifest), "metadata": copy.deepcopy(metadata)})

    def _apply(self, manifest: Manifest) -> Manifest:
        place = place_of(manifest)
        before = self._applied.get(place, {})
        self._applied[place] = copy.deepcopy(manifest)
        if place not in self.objects:
            return self._create(manifest)
        return self._store(place, merged(without(self.objects[place], before, manifest), manifest))

    def _patch(self, verb: str, body: Manifest, patch: Manifest) -> Manifest:
        place = place_of(body)

        def act() -> Manifest:
            old = self._find(place)
            if old["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
                raise RefusedError(409, "Conflict", "the object has been modified")
            new = self._store(place, merged(old, patch))
            if "deletionTimestamp" in new["metadata"] and not new["metadata"].get("finalizers"):
                self.remove(*place)
            return new

        return self._write(verb, place[0], place[2], act)  # type: ignore[no-any-return]

    def _store(self, place: Place, manifest: Manifest) -> Manifest:
        old = self.objects.get(place)
        if old is not None:
            _refuse_immutable(old, manifest)
            if plain(old) == plain(manifest):
                return old
            if place[0] in COUNTED and old.get("spec") != manifest.get("spec"):
                manifest["metadata"]["generation"] = old["metadata"]["generation"] + 1
        if place[0] == "HPOSearch" and "status" in manifest:
            manifest["status"].setdefault("paretoFront", [])  # a default of the schema
        self.version += 1
        manifest["metadata"]["resourceVersion"] = str(self.version)
        self.objects[place] = manifest
        return manifest


def _refuse_immutable(old: Manifest, new: Manifest) -> None:
    if old.get("immutable") and (old.get("data"), True) != (new.get("data"), new.get("immutable")):
        raise RefusedError(422, "Invalid", "data: Forbidden: field is immutable when `immutable` is set")
    if old["kind"] == "Job" and old["spec"]["template"] != new["spec"]["template"]:
        raise RefusedError(422, "Invalid", "spec.template: field is immutable")


def copied(value: Any) -> Any:
    """A deep copy, by the way that objects take to a real server; faster than `deepcopy`."""
    return json.loads(json.dumps(value))


def place_of(manifest: Manifest) -> Place:
    return manifest["kind"], manifest["metadata"]["namespace"], manifest["metadata"]["name"]


def plain(manifest: Manifest) -> Manifest:
    """Without what changes by itself."""
    metadata = {key: value for key, value in manifest["metadata"].items() if key != "resourceVersion"}
    return {**manifest, "metadata": metadata}


def merged(document: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7396)."""
    if not isinstance(patch, Mapping):
        return copied(patch)
    result = copied(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def without(document: Any, before: Any, after: Any) -> Any:
    """Fields that the same manager applied before and does not any more go."""
    if not isinstance(document, dict) or not isinstance(before, Mapping):
        return document
    later = after if isinstance(after, Mapping) else {}
    return {
        key: without(value, before[key], later.get(key)) if key in before else value
        for key, value in document.items()
        if key not in before or key in later
    }
