"""Tells people what a server does while it serves: in place on a terminal, else a line now and then."""

from __future__ import annotations

import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Self, TextIO

from ensemble_core.allocation.plan import Plan
from ensemble_core.serving import exposition
from ensemble_core.serving.errors import ServingError, SilentError
from ensemble_core.serving.exposition import Between, Snapshot
from ensemble_core.serving.server import TritonServer
from ensemble_core.serving.view import View, lines, summary_line, view_of

WINDOW_SECONDS = 10.0  # that numbers are of; also between two lines in a log
LOOK_SECONDS = 1.0  # between two looks, on a terminal


class Screen:
    """Lines that are always the last ones on a terminal, each time with what is new; elsewhere what is said only."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._height = out, 0
        self._lock = threading.Lock()
        self.terminal = out.isatty()

    def say(self, text: str) -> None:
        """Print something that stays."""
        with self._lock:
            self._out.write(f"{self._erased()}{text}\n")
            self._out.flush()

    def show(self, shown: Sequence[str]) -> None:
        """Print lines in place of those shown before, as far as there is room."""
        size = shutil.get_terminal_size()
        cut = [line[: size.columns - 1] for line in shown[: size.lines - 1]]
        with self._lock:
            self._out.write(self._erased() + "".join(f"{line}\n" for line in cut))
            self._out.flush()
            self._height = len(cut)

    def _erased(self) -> str:
        height, self._height = self._height, 0
        return f"\x1b[{height}F\x1b[J" if height else ""


class Live:
    """A context in which a thread looks at a server.

    Args:
        server: That serves, or is going to serve, the plan.
        tell: Called with each view.
    """

    def __init__(self, server: TritonServer, plan: Plan, screen: Screen, tell: Callable[[View], None]) -> None:
        self._server, self._plan, self._screen, self._tell = server, plan, screen, tell
        self._snapshots: deque[Snapshot] = deque()
        self._told = len(server.incidents)
        self._eventful = False
        self._silent = False  # it was told that the server does not answer
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        pause = LOOK_SECONDS if self._screen.terminal else WINDOW_SECONDS
        while True:
            self._look()
            if self._stop.wait(pause):
                return

    def _look(self) -> None:
        for incident in self._server.incidents[self._told :]:
            self._told += 1
            self._screen.say(incident)
        try:
            address = f"{self._server.address}:{self._server.ports.metrics}"
            self._snapshots.append(exposition.read(address, time.monotonic()))
        except SilentError as error:
            return self._say_silent(True, f"the server does not answer: {error}")
        except ServingError:  # it is started again, which the incidents tell
            return
        self._say_silent(False, "the server answers again")
        while len(self._snapshots) > 2 and self._snapshots[-1].seconds - self._snapshots[1].seconds >= WINDOW_SECONDS:
            self._snapshots.popleft()
        if len(self._snapshots) > 1:
            between = Between(self._snapshots[0], self._snapshots[-1])
            self._show(view_of(self._plan, self._server.states(self._plan), between))

    def _say_silent(self, silent: bool, text: str) -> None:
        """Say a change, once."""
        if silent != self._silent:
            self._silent = silent
            self._screen.say(text)

    def _show(self, view: View) -> None:
        self._tell(view)
        if self._screen.terminal:
            self._screen.show(lines(view))
        elif view.eventful or self._eventful:  # and once when it is over
            self._screen.say(summary_line(view))
        self._eventful = view.eventful
