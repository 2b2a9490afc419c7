"""Keys of custom resources that wait to be looked at: each once, never two workers on one, slower after failures."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple

FIRST_PAUSE = 0.5  # seconds after the first failure; doubles with each
LONGEST_PAUSE = 300.0


class Key(NamedTuple):
    """A custom resource."""

    kind: str
    namespace: str
    name: str


class RetryError(Exception):
    """A key's handling came to no end and is to be tried again.

    Args:
        after: Seconds until then at least.
    """

    def __init__(self, after: float | None = None) -> None:
        super().__init__()
        self.after = after


class WorkQueue:
    """Hands keys to workers.

    A key that is added while it waits is handled once; one that is added while it is handled is handled again. Of
    several times for which a key is asked, the earliest counts.
    """

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        self._draw = draw  # uniform in [0, 1)
        self._waiting: deque[Key] = deque()
        self._queued: set[Key] = set()
        self._handled: set[Key] = set()
        self._again: set[Key] = set()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}
        self._filled = asyncio.Event()

    def depth(self) -> int:
        """Keys that could be handled now but wait for a worker."""
        return len(self._waiting)

    def add(self, key: Key, after: float = 0.0) -> None:
        """Handle the key, now or after some seconds."""
        if after > 0:
            self._set_timer(key, after)
            return
        self._drop_timer(key)
        if key in self._handled:
            self._again.add(key)
        elif key not in self._queued:
            self._queued.add(key)
            self._waiting.append(key)
            self._filled.set()

    def forget(self, key: Key) -> None:
        """The resource is gone: no timer and no count of failures remains."""
        self._drop_timer(key)
        self._failures.pop(key, None)

    async def run(self, handle: Callable[[Key], Awaitable[float | None]], workers: int, stop: asyncio.Event) -> None:
        """Work until told to stop; then end what is begun.

        Args:
            handle: Its answer is the number of seconds after which the key is handled again, none for never; RetryError
                makes it longer with each failure.
        """
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._work(handle, stop)) for _ in range(workers)]
            await stop.wait()
            self._filled.set()
            for task in tasks:
                await task
        for timer in self._timers.values():
            timer.cancel()

    async def _work(self, handle: Callable[[Key], Awaitable[float | None]], stop: asyncio.Event) -> None:
        while not stop.is_set():
            if not self._waiting:
                self._filled.clear()
                await self._filled.wait()
                continue
            key = self._waiting.popleft()
            self._queued.discard(key)
            self._handled.add(key)
            try:
                after = await handle(key)
                self._failures.pop(key, None)
            except RetryError as retry:
                after = max(self._pause(key), retry.after or 0.0)
            finally:
                self._handled.discard(key)
            if key in self._again:
                self._again.discard(key)
                self.add(key)
            elif after is not None:
                self.add(key, after)

    def _pause(self, key: Key) -> float:
        """Twice as long after each failure, from half of it to all of it."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        longest: float = min(FIRST_PAUSE * 2 ** min(failures - 1, 20), LONGEST_PAUSE)
        return longest * (1 + self._draw()) / 2

    def _set_timer(self, key: Key, after: float) -> None:
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer is not None and timer.when() <= loop.time() + after:
            return
        self._drop_timer(key)
        self._timers[key] = loop.call_later(after, self.add, key)

    def _drop_timer(self, key: Key) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
