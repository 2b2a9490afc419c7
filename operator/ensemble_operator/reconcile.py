"""One look at a custom resource: read, decide, write what differs, tell.

Everything is concluded from what is in the cluster, so a look that is cut off anywhere is made up for by the next.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from pydantic import ValidationError

from ensemble_core.errors import UserError
from ensemble_operator import leftovers, reasons
from ensemble_operator.children import CHILDREN
from ensemble_operator.cluster import OPTIONAL, ApiError, Cluster, MissingError, RefusedError, UnavailableError
from ensemble_operator.dependents import ALL, Dependents
from ensemble_operator.differences import (
    CREATE_ONLY,
    controller_uid,
    differs,
    is_create_only,
    is_deleting,
    merge_patch,
    misplaced,
    ref,
    says_the_same,
    stamped,
    superfluous,
)
from ensemble_operator.events import transitions
from ensemble_operator.logs import Log
from ensemble_operator.metrics import Metrics
from ensemble_operator.names import LIBRARY_FINALIZER, OWNER_UID
from ensemble_operator.queue import Key, RetryError
from ensemble_operator.settings import Settings
from ensemble_operator.status import conditions_of, fields_of, status
from ensemble_operator.verdicts import Verdicts, degraded, held_up, undecided
from ensemble_operator.world import Decision, Kind, Manifest, Ref, World

GONE_SOON = 5.0  # seconds until it is looked whether an object that is being deleted has gone
STARTS_PODS = (*CREATE_ONLY, "Deployment")
TOLD_PROBLEMS = 5
LETS_GO = "spec.library.deletionPolicy: Retain lets the search go"

Problem = tuple[str, str]  # reason and message


class NameTakenError(Exception):
    """An object of a name that is wanted belongs to somebody else."""


class GoingError(Exception):
    """An object of a name that is wanted is still being deleted."""

    def __init__(self, manifest: Manifest) -> None:
        super().__init__()
        self.manifest = manifest


class Result(NamedTuple):
    """How a look ended.

    Args:
        name: For the metrics.
        again_after: Seconds until the next one; if it is a retry, at least.
        retry: Whether something went wrong that may be right later: the next look comes ever more slowly.
    """

    name: str
    again_after: float | None = None
    retry: bool = False


class Patience(NamedTuple):
    """A wish to be looked at again, and since when it is repeated while nothing changes."""

    wish: float
    since: datetime


@dataclass(frozen=True)
class Applied:
    """What came of the desired objects.

    Args:
        written: How many were written.
        going: The first of those in the way: of a desired name, and still being deleted.
        problem: The first, if the server refused some.
    """

    written: int = 0
    going: Manifest | None = None
    problem: Problem | None = None


class Reconciler:
    """Looks at resources.

    Args:
        kinds: By name.
        capabilities: Optional APIs that the cluster has now.
        clock: UTC.
    """

    def __init__(
        self,
        cluster: Cluster,
        kinds: Mapping[str, Kind[Any]],
        settings: Settings,
        capabilities: Callable[[], frozenset[str]],
        metrics: Metrics,
        log: Log,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._cluster, self._kinds, self._settings = cluster, kinds, settings
        self._capabilities, self._metrics, self._log, self._clock = capabilities, metrics, log, clock
        self.dependents = Dependents()
        self._written: dict[Key, str] = {}
        self._known: set[Key] = set()
        self._failing: set[Key] = set()
        self._patience: dict[Key, Patience] = {}

    async def handle(self, key: Key) -> float | None:
        """Look once; the seconds until the next look, none if the resource is gone.

        Raises:
            RetryError: something went wrong that may be right later.
        """
        started = time.perf_counter()
        try:
            result = await self._look(key)
        except Exception as error:
            result = self._broken_off(key, error)
        self._metrics.reconciled(key.kind, result.name, time.perf_counter() - started)
        if result.retry:
            self._metrics.failed(key.kind, result.name)
            raise RetryError(result.again_after)
        self._failing.discard(key)
        return result.again_after

    def known(self) -> list[Key]:
        """The resources that were there when they were looked at last."""
        return sorted(self._known)

    def is_echo(self, key: Key, version: str) -> bool:
        """Whether this version of the resource is what the last look itself wrote, from what it had read."""
        return self._written.get(key) == version

    async def _look(self, key: Key) -> Result:
        try:
            body = await self._cluster.get(*key)
        except MissingError:
            return self._forget(key)
        body["metadata"].pop("managedFields", None)
        if is_deleting(body) and LIBRARY_FINALIZER not in _finalizers(body):
            return self._forget(key)  # its children go with it
        self._known.add(key)
        self._metrics.tell(key, body.get("status") or {})
        try:
            return await self._reconcile(self._kinds[key.kind], body)
        except Exception as error:
            if isinstance(error, ApiError) and not _lasts(error):
                raise
            return await self._tell(body, error)

    async def _reconcile(self, kind: Kind[Any], body: Manifest) -> Result:
        try:
            resource = parsed(kind, body)
        except UserError as invalid:
            return await self._refuse(body, str(invalid))
        world = await self._read(kind, resource, body)
        decision = kind.decide(world)
        _check(decision, body)
        return await self._carry_out(body, world, decision)

    def _broken_off(self, key: Key, error: Exception) -> Result:
        """How a look ended that an error broke off; only the log tells of it."""
        log = self._log.of(key)
        match error:
            case MissingError():
                return Result("changed", GONE_SOON)  # deleted meanwhile
            case UnavailableError():
                level = "debug" if key in self._failing else "warning"  # once, until it answers again
                log.write(level, f"the API server is not available: {error}")
                self._failing.add(key)
                return Result("unavailable", error.retry_after, retry=True)
            case RefusedError() if not _lasts(error):
                log.write("debug", f"somebody else was faster: {error}")
                return Result("conflict", retry=True)
            case RefusedError():
                log.write("error", f"the API server refuses: {error}")
                return Result("refused", retry=True)
            case _:
                log.write("error", "failed unexpectedly", error)
                return Result("error", retry=True)

    async def _tell(self, body: Manifest, error: Exception) -> Result:
        """Tell in the status of an error with which nothing can be decided, or not carried out."""
        log = self._log.of(_key(body))
        if isinstance(error, RefusedError):
            name, reason, message = "refused", reasons.APPLY_FAILED, str(error)
            log.write("error", f"the API server refuses: {error}")
        else:
            name, reason = "error", reasons.INTERNAL_ERROR
            message = f"{type(error).__name__}: {error}; the operator's log has more"
            log.write("error", "failed unexpectedly", error)
        await self._conclude(body, undecided(body, reason, message), fields_of(body))
        return Result(name, retry=True)

    async def _refuse(self, body: Manifest, message: str) -> Result:
        """Tell of a specification that is wrong; one that is being deleted is held only if its library is to go."""
        if is_deleting(body):
            if not _says_delete(body):
                await self._let_go(body)
                return Result("changed", GONE_SOON)
            message += f"; {LETS_GO}"
        await self._conclude(body, undecided(body, reasons.INVALID_SPEC, message), fields_of(body))
        return Result("invalid", self._settings.resync_seconds)

    async def _let_go(self, body: Manifest) -> None:
        """Take our finalizer away."""
        remaining = [one for one in _finalizers(body) if one != LIBRARY_FINALIZER]
        await self._cluster.patch_finalizers(body, remaining)

    def _forget(self, key: Key) -> Result:
        self.dependents.replace(key, ())
        self._metrics.forget(key)
        self._known.discard(key)
        self._failing.discard(key)
        self._written.pop(key, None)
        self._patience.pop(key, None)
        return Result("gone")

    async def _read(self, kind: Kind[Any], resource: Any, body: Manifest) -> World[Any]:
        metadata, capabilities = body["metadata"], self._capabilities()
        labels = {OWNER_UID: metadata["uid"]}
        kinds = [kind for kind in CHILDREN[body["kind"]] if kind not in OPTIONAL or kind in capabilities]
        lists, others = await asyncio.gather(
            asyncio.gather(*(self._cluster.select(kind, metadata["namespace"], labels) for kind in kinds)),
            self._others(kind, resource, body),
        )
        found = [one for objects in lists for one in objects if _belongs(one, metadata["uid"])]
        return World(
            resource=resource,
            body=body,
            children={ref(one): one for one in found if not is_deleting(one)},
            deleting={ref(one): one for one in found if is_deleting(one)},
            others=others,
            capabilities=capabilities,
            now=self._clock(),
            settings=self._settings,
        )

    async def _others(self, kind: Kind[Any], resource: Any, body: Manifest) -> dict[Ref, Manifest]:
        """What the resource refers to, and what that refers to.

        Before anything is read it is noted that the resource depends on it: a change in between wakes it.
        """
        found: dict[Ref, Manifest] = {}
        first = asked = new = frozenset(kind.references(resource, body, found))
        while True:
            self.dependents.replace(_key(body), first, asked - first)
            if not new:
                return found
            lists = await asyncio.gather(*(self._referred(body["metadata"]["namespace"], one) for one in sorted(new)))
            found |= {ref(one): one for objects in lists for one in objects}
            new = frozenset(kind.references(resource, body, found)) - asked
            asked |= new

    async def _referred(self, namespace: str, reference: Ref) -> list[Manifest]:
        try:
            if reference.name == ALL:
                return await self._cluster.select(reference.kind, namespace, {})
            return [await self._cluster.get(reference.kind, namespace, reference.name)]
        except MissingError:
            return []

    async def _carry_out(self, body: Manifest, world: World[Any], decision: Decision) -> Result:
        key = _key(body)
        if decision.finalizer and LIBRARY_FINALIZER not in _finalizers(body) and not is_deleting(body):
            body = await self._cluster.patch_finalizers(body, [*_finalizers(body), LIBRARY_FINALIZER])
        applied = await self._apply(decision, world)
        deleted = superfluous(decision, (one for one in world.children.values() if one["kind"] != "Pod"))
        refusals = [await self._delete(key, one) for one in deleted]
        refused = next((one for one in (applied.problem, *refusals) if one), None)
        verdicts = decision.conditions
        if applied.going is not None:
            verdicts = held_up(verdicts, leftovers.waits_for(applied.going, body))
        if problem := refused or _stuck(applied.going, decision, world):
            verdicts = degraded(verdicts, *problem)
        written, body = await self._conclude(body, verdicts, decision.status)
        if not decision.finalizer and LIBRARY_FINALIZER in _finalizers(body):
            await self._let_go(body)
        if refused:
            return Result("refused", retry=True)
        changed = bool(applied.written or deleted or written)
        return Result("changed" if changed else "unchanged", self._next(world, decision, applied, changed))

    def _next(self, world: World[Any], decision: Decision, applied: Applied, changed: bool) -> float:
        """Seconds until the next look: as wished, but as long again as the same was wished already in vain."""
        slow, wish = self._settings.resync_seconds, GONE_SOON if applied.going else decision.again_after
        if _held_back(world):
            wish = min(wish or slow, leftovers.LONG)
        key, now = _key(world.body), self._clock()
        if wish is None:
            self._patience.pop(key, None)
            return slow
        known = self._patience.get(key)
        if known is None or changed or known.wish != wish:
            known = self._patience[key] = Patience(wish, now)
        return min(max(known.wish, (now - known.since).total_seconds()), slow)

    async def _apply(self, decision: Decision, world: World[Any]) -> Applied:
        """Write the objects in order; what starts pods only if everything before it is there."""
        written, key = 0, _key(world.body)
        going: Manifest | None = None
        problem: Problem | None = None
        complete = True
        for desired in map(stamped, decision.objects):
            if desired["kind"] in STARTS_PODS and not complete:
                continue
            try:
                done = await self._put(desired, world)
            except GoingError as error:
                going = going or error.manifest
            except NameTakenError as taken:
                problem = problem or (reasons.NAME_TAKEN, str(taken))
            except ApiError as error:
                if self._may_pass(key, error):
                    raise
                refusal = self._problem(key, "apply", desired, error)
                problem = problem or refusal
                if isinstance(error, RefusedError) and error.namespace_goes():
                    break
            else:
                if done:
                    self._log.of(key).write("info", f"applied {desired['kind']} {desired['metadata']['name']}")
                written += done
                continue
            complete = complete and ref(desired) in world.children
        return Applied(written, going, problem)

    def _may_pass(self, key: Key, error: ApiError) -> bool:
        """Whether a write that failed may go well at the next look, so that nobody is told; not time after time."""
        if isinstance(error, UnavailableError):
            return not error.is_failure() or key not in self._failing
        return isinstance(error, RefusedError) and error.is_race()

    def _problem(self, key: Key, verb: str, manifest: Manifest, error: ApiError) -> Problem:
        """What is told of an object that could not be written."""
        told = f"{manifest['kind']} {manifest['metadata']['name']}: {error}"
        self._log.of(key).write("warning", f"cannot {verb} {told}")
        return reasons.APPLY_FAILED, told

    async def _put(self, desired: Manifest, world: World[Any]) -> bool:
        """Write an object unless it is there as desired; GoingError if it must wait until an old one is gone."""
        place = ref(desired)
        observed = world.children.get(place)
        if observed is None:
            observed = await self._unlisted(place, world.body)
        if observed is not None and not differs(desired, observed):
            return False
        if is_create_only(desired):
            await self._cluster.create(desired)
        else:
            await self._cluster.apply(desired)
        return True

    async def _unlisted(self, place: Ref, body: Manifest) -> Manifest | None:
        """An object of ours of that name, without our labels; an error if it is about to go, or somebody else's."""
        try:
            found = await self._cluster.get(place.kind, body["metadata"]["namespace"], place.name)
        except MissingError:
            return None
        if leftovers.goes(found, body):
            raise GoingError(found)
        if controller_uid(found) != body["metadata"]["uid"]:
            raise NameTakenError(f"{place.kind} {place.name} belongs to {_owner(found)}; delete or rename one of them")
        return found

    async def _delete(self, key: Key, manifest: Manifest) -> Problem | None:
        metadata = manifest["metadata"]
        try:
            await self._cluster.delete(manifest["kind"], metadata["namespace"], metadata["name"], metadata["uid"])
        except MissingError:
            return None
        except ApiError as error:
            if self._may_pass(key, error):
                raise
            return self._problem(key, "delete", manifest, error)
        self._log.of(key).write("info", f"deleted {manifest['kind']} {metadata['name']}")
        return None

    async def _conclude(self, body: Manifest, verdicts: Verdicts, fields: Mapping[str, Any]) -> tuple[bool, Manifest]:
        """Write status and events if they differ; whether they did, and the resource as it is then."""
        now, key, old = self._clock(), _key(body), body.get("status") or {}
        new = status(body, verdicts, fields, now)
        if says_the_same(new, old):
            return False, body
        log = self._log.of(key)
        # Before the status: an operator that ends in between makes the same events again, which are then there.
        for event in transitions(body, conditions_of(body), new["conditions"], now):
            log.write("info", f"{event['reason']}: {event['note']}")
            try:
                await self._cluster.create_event(event)
            except ApiError as error:
                log.write("debug", f"the event is not written: {error}")
        written = await self._cluster.patch_status(body, merge_patch(old, new))
        self._written[key] = written["metadata"]["resourceVersion"]
        self._metrics.tell(key, new)
        return True, written


def parsed(kind: Kind[Any], body: Manifest) -> Any:
    """The resource as its API model; UserError that names the wrong fields."""
    metadata = {
        field: body["metadata"][field] for field in ("name", "namespace", "labels") if field in body["metadata"]
    }
    given = {"apiVersion": body["apiVersion"], "kind": body["kind"], "metadata": metadata, "spec": body.get("spec")}
    try:
        return kind.model.model_validate_json(json.dumps(given), strict=True)
    except ValidationError as error:
        problems = [f"{_path(one['loc'])}: {one['msg']}" for one in error.errors(include_url=False)[:TOLD_PROBLEMS]]
        raise UserError("", "; ".join(problems)) from None


def _path(location: tuple[int | str, ...]) -> str:
    steps = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return re.sub(r"^\.", "", "".join(steps))


def _check(decision: Decision, body: Manifest) -> None:
    """A kind that wants what is not its own is wrong; nothing of it is written."""
    for manifest in decision.objects:
        if problem := misplaced(manifest, body):
            raise ValueError(f"{manifest['kind']} {manifest['metadata']['name']} {problem}")


def _lasts(error: ApiError) -> bool:
    """Whether the server has refused for good, and not because somebody else was faster, or it is not available."""
    return isinstance(error, RefusedError) and not error.is_race()


def _says_delete(body: Manifest) -> bool:
    """Whether a specification that cannot be read asks for its library to be deleted."""
    value: Any = body
    for field in ("spec", "library", "deletionPolicy"):
        value = value.get(field) if isinstance(value, dict) else None
    return bool(value == "Delete")


def _key(body: Manifest) -> Key:
    return Key(body["kind"], body["metadata"]["namespace"], body["metadata"]["name"])


def _finalizers(body: Manifest) -> list[str]:
    found: list[str] = body["metadata"].get("finalizers") or []
    return found


def _belongs(manifest: Manifest, uid: str) -> bool:
    """Pods belong to the objects that made them; of everything else labels alone prove nothing."""
    return manifest["kind"] == "Pod" or controller_uid(manifest) == uid


def _owner(manifest: Manifest) -> str:
    """Who an object belongs to that is not ours."""
    owners = manifest["metadata"].get("ownerReferences") or ()
    return next((f"{one['kind']} {one['name']}" for one in owners if one.get("controller")), "somebody else")


def _held_back(world: World[Any]) -> list[Manifest]:
    """What is being deleted and may be held back; nobody waits for a pod but who is being deleted and still held."""
    pods = is_deleting(world.body)
    return [one for ref, one in sorted(world.deleting.items()) if pods or ref.kind != "Pod"]


def _stuck(in_the_way: Manifest | None, decision: Decision, world: World[Any]) -> Problem | None:
    """What is told of an object that should be gone for long; where all else is well, also of one in nobody's way."""
    fine = decision.conditions[2].status != "True"
    others = _held_back(world) if fine else []
    found = (leftovers.stuck(one, world.body, world.now) for one in (in_the_way, *others) if one is not None)
    return next(((reasons.APPLY_FAILED, told) for told in found if told), None)
