"""Waits for what a server is asked, and sees when it can never answer: Triton waits for ever for a dead process."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from ensemble_core.serving import processes
from ensemble_core.serving.errors import StuckError

LOOK_SECONDS = 0.2
UNNOTICED_SECONDS = 2.0  # after which a dead process is one that the server has not noticed, and never will

Answer = TypeVar("Answer")
Check = Callable[[Collection[str]], None]


def ask_all(calls: Mapping[str, Callable[[], Answer]], check: Check) -> list[Answer]:
    """Make calls about models, all at once, and wait for all answers; an error of a call is raised after that.

    `check` is called meanwhile with the models that are waited for. What it raises ends the wait, but not the calls.
    """
    pool = ThreadPoolExecutor(len(calls) or 1)
    try:
        asked = {model: pool.submit(call) for model, call in calls.items()}
        while waiting := [model for model, answer in asked.items() if not answer.done()]:
            check(waiting)
            wait(asked.values(), LOOK_SECONDS)
        return [answer.result() for answer in asked.values()]
    finally:
        pool.shutdown(wait=False)


class DeadProcesses:
    """A check that raises StuckError once a process that a server has started for a model is dead and stays so.

    Args:
        server: Its process id.
        prefix: Of the names of its shared memory.
        models: That it has or is to load.
    """

    def __init__(self, server: int, prefix: str, models: Collection[str]) -> None:
        self._server, self._prefix, self._models = server, prefix, frozenset(models)
        self._old = {dead.pid for dead in processes.dead_children(server)}
        self._names: dict[int, str] = {}  # of processes that were seen alive
        self._since: dict[int, float] = {}  # when they were first seen dead

    def __call__(self, waiting: Collection[str]) -> None:
        living = processes.stubs(self._prefix, self._models)
        self._names.update({pid: model for model, pid in living.items()})
        now = time.monotonic()
        for dead in processes.dead_children(self._server):
            if dead.pid not in self._old and now - self._since.setdefault(dead.pid, now) >= UNNOTICED_SECONDS:
                name = self._names.get(dead.pid) or _one_of(sorted(set(waiting) - set(living)))
                raise StuckError(f"{name}: its process {processes.ending(dead.code)} before it could answer")


def _one_of(models: list[str]) -> str:
    """Who it may be: a process that ended at once was never seen alive, and tells no name."""
    return models[0] if len(models) == 1 else f"one of {', '.join(models)}"
