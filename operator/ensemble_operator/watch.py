"""Watches of children: what happens to an object that the operator made brings its owner into the queue."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from typing import NoReturn

from ensemble_operator.cluster import CUSTOM, ApiError, Change, ExpiredError, MissingError, Source
from ensemble_operator.logs import Log
from ensemble_operator.names import FIELD_MANAGER, MANAGED_BY, OWNER_KIND, OWNER_NAME
from ensemble_operator.queue import Key
from ensemble_operator.world import Manifest

SELECTOR = f"{MANAGED_BY}={FIELD_MANAGER}"
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
BETWEEN_STREAMS = 1.0  # seconds; a server that ends each at once costs little


def owner_key(manifest: Manifest) -> Key | None:
    """The custom resource that an object's labels name."""
    metadata = manifest["metadata"]
    labels = metadata.get("labels") or {}
    kind, name = labels.get(OWNER_KIND), labels.get(OWNER_NAME)
    return Key(kind, metadata["namespace"], name) if kind and kind in CUSTOM and name else None


class Watch:
    """Lists and watches objects of one kind.

    It remembers owner and resource version of each object, so that after a gap it tells what changed in between, and
    nothing else.

    Args:
        tell: Called with the owner's key.
    """

    def __init__(self, source: Source, kind: str, namespace: str | None, tell: Callable[[Key], None], log: Log) -> None:
        self._source, self._kind, self._namespace, self._tell = source, kind, namespace, tell
        self._log = log
        self._known: dict[tuple[str, str], tuple[Key, str]] = {}
        self._pause = FIRST_PAUSE

    async def run(self) -> None:
        """Until cancelled; a server that fails is asked again, ever more slowly."""
        while True:
            try:
                await self._follow(await self._list())
            except ApiError as error:
                level = "debug" if isinstance(error, ExpiredError | MissingError) else "warning"
                self._log.write(level, f"cannot watch {self._kind}: {error}", namespace=self._namespace)
            pause, self._pause = self._pause, min(self._pause * 2, LONGEST_PAUSE)
            await asyncio.sleep(pause * (1 + random.random()) / 2)

    async def _list(self) -> str:
        objects, version = await self._source.snapshot(self._kind, self._namespace, SELECTOR)
        found = {_place(one): (key, _version(one)) for one in objects if (key := owner_key(one)) is not None}
        for place in self._known.keys() | found.keys():
            before, after = self._known.get(place), found.get(place)
            if before != after:
                for key in {seen[0] for seen in (before, after) if seen is not None}:
                    self._tell(key)
        self._known = found
        return version

    async def _follow(self, version: str) -> NoReturn:
        """Watch from that version on; a stream that just ends is taken up again."""
        while True:
            async for change in self._source.changes(self._kind, self._namespace, SELECTOR, version):
                self._pause = FIRST_PAUSE
                version = _version(change.object)
                if change.type != "BOOKMARK":
                    self._see(change)
            self._pause = FIRST_PAUSE
            await asyncio.sleep(BETWEEN_STREAMS)

    def _see(self, change: Change) -> None:
        key = owner_key(change.object)
        if key is None:
            return
        if change.type == "DELETED":
            self._known.pop(_place(change.object), None)
        else:
            self._known[_place(change.object)] = (key, _version(change.object))
        self._tell(key)


class Watches:
    """One watch for each kind and namespace, as many as there are kinds.

    Args:
        namespaces: Those that are watched; empty means all.
    """

    def __init__(self, source: Source, namespaces: Iterable[str], tell: Callable[[Key], None], log: Log) -> None:
        self._source, self._tell, self._log = source, tell, log
        self._namespaces: tuple[str | None, ...] = tuple(namespaces) or (None,)
        self._tasks: dict[tuple[str, str | None], asyncio.Task[None]] = {}

    def set_kinds(self, kinds: Iterable[str]) -> None:
        """Watch these kinds, and no other."""
        wanted = {(kind, namespace) for kind in kinds for namespace in self._namespaces}
        for place in self._tasks.keys() - wanted:
            self._tasks.pop(place).cancel()
        for kind, namespace in sorted(wanted - self._tasks.keys(), key=str):
            watch = Watch(self._source, kind, namespace, self._tell, self._log)
            self._tasks[kind, namespace] = asyncio.create_task(watch.run(), name=f"watch {kind} {namespace or ''}")

    async def broken(self) -> None:
        """Ends, with its error, when a watch has an error that it does not expect."""
        while True:
            done = [task for task in self._tasks.values() if task.done() and not task.cancelled()]
            for task in done:
                task.result()
            await asyncio.sleep(1)

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()


def _place(manifest: Manifest) -> tuple[str, str]:
    return manifest["metadata"]["namespace"], manifest["metadata"]["name"]


def _version(manifest: Manifest) -> str:
    return str(manifest["metadata"]["resourceVersion"])
