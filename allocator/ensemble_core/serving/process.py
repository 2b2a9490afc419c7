"""The process `tritonserver`: started, waited for, ended, with nothing left behind."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from threading import Event

from ensemble_core.serving import installation, launch, processes, sharedmemory
from ensemble_core.serving.control import Control
from ensemble_core.serving.errors import ServingError
from ensemble_core.serving.installation import CONTROL_HEADER, Ports
from ensemble_core.serving.waiting import Check, DeadProcesses

START_SECONDS, LOAD_SECONDS, STOP_SECONDS = 60.0, 300.0, 15.0
STARTS = 3  # with ports of our choice
LOG_LINES, COMPLAINTS = 25, 4
ROUTINE = re.compile(r"I\d{4} |[+|]|\s*$")  # information, tables, and nothing


class ServerProcess:
    """A tritonserver on the models of a folder, which can be started again after it has ended.

    It leads a process group with its Python models, which ends with it. The kernel kills it when the thread that
    started it ends. That thread starts and ends it; any thread may ask about it. Who has not its key, which is random,
    can neither load nor unload models, nor change traces and logs.

    Args:
        folder: Holds `models/` and `backends/`; the log is written there.
        address: What the endpoints listen on.
        wanted: Their ports; 0 means a free one, which stays the same from then on.
        stopping: When set, waiting ends with a ServingError.
    """

    def __init__(self, folder: Path, address: str, wanted: Ports, stopping: Event) -> None:
        self.ports = wanted
        self._folder, self._address, self._stopping = folder, address, stopping
        self._prefix, self._key = sharedmemory.new_prefix(), secrets.token_hex(32)
        self._process: subprocess.Popen[bytes] | None = None
        self._begin = 0  # of what it prints, in the log

    @property
    def control(self) -> Control:
        return Control(self._address, self.ports.http, LOAD_SECONDS, {CONTROL_HEADER: self._key})

    @property
    def pid(self) -> int | None:
        process = self._process  # once, for the other thread may replace it in between
        return None if process is None else process.pid

    def ended(self) -> int | None:
        """How it ended, −N by signal N; none while it runs."""
        process = self._process
        return 0 if process is None else process.poll()

    def start(self) -> None:
        """Start and wait until it takes requests; ServingError with the end of its log if it does not."""
        wanted = self.ports
        for last in (attempt == STARTS for attempt in range(1, STARTS + 1)):
            self.ports = choose(wanted)
            try:
                return self._start()
            except ServingError:
                self.end()
                if last or 0 not in wanted.numbers():  # a free port may have been taken in the meantime
                    self.ports = wanted
                    raise

    def signal_end(self) -> None:
        """Ask it to end, if it runs."""
        if (process := self._process) is not None:
            process.terminate()

    def kill(self) -> None:
        """Kill it and its models' processes: whoever waits for it, waits no more."""
        if (process := self._process) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def watch(self, models: frozenset[str]) -> Check:
        """A check that raises StuckError once a model's process that is waited for is dead."""
        return DeadProcesses(self.pid or 0, self._prefix, models)

    def end(self) -> None:
        """End the process group and remove its shared memory; nothing happens if it has ended."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
            self.kill()
            self._process.wait()
            self._process = None
        sharedmemory.sweep(self._prefix)

    def group(self) -> list[processes.Process]:
        """Its processes, those of its Python models included."""
        return [] if (leader := self.pid) is None else processes.group(leader)

    def stubs(self, models: frozenset[str]) -> dict[str, int]:
        """The process of each of the models that is a Python model."""
        return {} if self.pid is None else processes.stubs(self._prefix, models)

    def log_tail(self) -> str:
        """The last lines that it has printed."""
        log = self._folder / "server.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:]) if log.exists() else ""

    def log_since_start(self) -> str:
        """All that it has printed since it was last started."""
        log = self._folder / "server.log"
        return log.read_bytes()[self._begin :].decode(errors="replace") if log.exists() else ""

    def log_size(self) -> int:
        """Bytes that it has printed so far."""
        log = self._folder / "server.log"
        return log.stat().st_size if log.exists() else 0

    def complaints(self, since: int) -> str:
        """The last lines, after so many bytes, that tell more than what it does; each once."""
        log = (self._folder / "server.log").read_bytes()[since:].decode(errors="replace")
        lines = dict.fromkeys(line for line in log.splitlines() if not ROUTINE.match(line))
        return "\n".join([*lines][-COMPLAINTS:])

    def _start(self) -> None:
        arguments = installation.command(
            self._folder, self._address, self.ports, self._prefix, self._key, installation.LOCALLY_CONTROLLED
        )
        self._begin = self.log_size()
        with open(self._folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-IS", launch.__file__, str(os.getpid()), *arguments],
                env=installation.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal is for this process, which then ends the server
            )
        deadline = time.monotonic() + START_SECONDS
        while not (self.control.ready() and self.control.identity() == self._prefix):
            if self._process.poll() is not None:
                raise ServingError(f"the server does not start\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise ServingError(f"the server is not ready after {START_SECONDS:g} s\n{self.log_tail()}")
            if self._stopping.wait(0.05):
                raise ServingError("stopped before it was ready")


def choose(wanted: Ports) -> Ports:
    """The wanted ports, with free ones in place of zeros."""
    with contextlib.ExitStack() as held:
        numbers = []
        for number in wanted.numbers():
            if number == 0:
                free = held.enter_context(socket.create_server(("127.0.0.1", 0)))
                number = free.getsockname()[1]
            numbers.append(number)
        return Ports(*numbers)


def in_use(address: str, port: int) -> bool:
    """Whether somebody listens on a port."""
    try:
        socket.create_server((address, port)).close()  # with SO_REUSEADDR: connections that linger do not count
    except OSError:
        return True
    return False
