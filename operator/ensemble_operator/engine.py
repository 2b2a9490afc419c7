"""The running operator: a queue, its workers, the watches of children, and what the cluster is capable of."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from kubernetes.aio.client.configuration import Configuration

from ensemble_operator.cluster import BUILT_IN, CUSTOM, OPTIONAL, ApiError, KubernetesCluster
from ensemble_operator.kinds import KINDS
from ensemble_operator.logs import Log
from ensemble_operator.metrics import Metrics
from ensemble_operator.queue import Key, WorkQueue
from ensemble_operator.reconcile import Reconciler
from ensemble_operator.settings import Settings
from ensemble_operator.watch import Watches

CAPABILITIES_SECONDS = 60.0  # between two looks at what the cluster is capable of
RETRY_SECONDS = 2.0  # until the first of them succeeds
BURST_SECONDS = 0.1  # a child seldom changes alone: its owner is looked at once for all that happens in this time
GRACE_SECONDS = 15.0  # for what is under way when the operator is told to stop
SPREAD = 0.2  # slow timers vary by this share, so that resources are not looked at all at once


class Engine:
    """Looks at resources when something has happened.

    Args:
        kinds: Of ours, those that the cluster has; others that come later, or go, end the engine.
        ended: Called if the engine ends by itself, which it does for good reason or by mistake.
    """

    def __init__(
        self,
        configuration: Configuration,
        settings: Settings,
        metrics: Metrics,
        kinds: frozenset[str],
        ended: Callable[[], None],
        log: Log,
    ) -> None:
        self._settings, self._kinds, self._ended, self._log = settings, kinds, ended, log
        self._cluster = KubernetesCluster(configuration, observe=metrics.requested)
        self._capabilities: frozenset[str] = frozenset()
        self._generations: dict[Key, int] = {}
        self._queue = WorkQueue()
        self._reconciler = Reconciler(self._cluster, KINDS, settings, lambda: self._capabilities, metrics, log)
        self._watches = Watches(self._cluster, settings.namespaces, self._see_child, log)
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.restart = False
        metrics.depth = self._queue.depth

    def see(self, key: Key, version: str, generation: int | None) -> None:
        """A custom resource has come, changed or gone; of one that has gone the generation is none.

        Who depends on all of a kind is not woken by each status, only by specifications.
        """
        wide = self._generations.get(key) != generation
        if generation is None:
            self._generations.pop(key, None)
        else:
            self._generations[key] = generation
        if not self._reconciler.is_echo(key, version):
            self._queue.add(key)
        for dependent in self._reconciler.dependents.of(key, wide):
            self._queue.add(dependent, BURST_SECONDS)

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="engine")

    def healthy(self) -> bool:
        return self._task is not None and not self._task.done()

    async def stop(self) -> None:
        """End what is under way, for some seconds; then leave it: the next look makes up for it."""
        self._stop.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=GRACE_SECONDS)
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._watches.close()
        await self._cluster.close()

    def error(self) -> BaseException | None:
        """What has ended the engine, if it was an error."""
        ended = self._task is not None and self._task.done() and not self._task.cancelled()
        return self._task.exception() if ended and self._task is not None else None

    async def _run(self) -> None:
        try:
            self._set(await self._first_capabilities())
            async with asyncio.TaskGroup() as group:
                background = [
                    group.create_task(self._follow_capabilities()),
                    group.create_task(self._watches.broken()),
                ]
                await self._queue.run(self._handle, self._settings.workers, self._stop)
                for task in background:
                    task.cancel()
        finally:
            if not self._stop.is_set() or self.restart:
                self._ended()

    async def _handle(self, key: Key) -> float | None:
        after = await self._reconciler.handle(key)
        if after is None:
            self._queue.forget(key)
            return None
        return after * random.uniform(1 - SPREAD, 1 + SPREAD) if after >= self._settings.resync_seconds else after

    def _see_child(self, key: Key) -> None:
        self._queue.add(key, BURST_SECONDS)

    async def _first_capabilities(self) -> frozenset[str]:
        while True:
            try:
                return await self._cluster.capabilities()
            except ApiError as error:
                self._log.write("warning", f"the API server is not available: {error}")
                await asyncio.sleep(RETRY_SECONDS)

    async def _follow_capabilities(self) -> None:
        """A CRD that comes or goes is noticed; what depends on it is looked at again."""
        while True:
            await asyncio.sleep(CAPABILITIES_SECONDS * random.uniform(1 - SPREAD, 1))
            try:
                found = await self._cluster.capabilities()
            except ApiError as error:
                self._log.write("debug", f"cannot read what the cluster is capable of: {error}")
                continue
            if found & CUSTOM.keys() != self._kinds:
                self._log.write("warning", "our custom resource definitions have changed: starts anew")
                self.restart = True
                self._stop.set()
            elif found & OPTIONAL.keys() != self._capabilities:
                self._set(found)
                for key in self._reconciler.known():
                    self._queue.add(key, random.uniform(0, CAPABILITIES_SECONDS / 2))

    def _set(self, found: frozenset[str]) -> None:
        self._capabilities = found & OPTIONAL.keys()
        self._log.write("info", f"optional APIs: {', '.join(sorted(self._capabilities)) or 'none'}")
        self._watches.set_kinds([*BUILT_IN, *self._capabilities])
