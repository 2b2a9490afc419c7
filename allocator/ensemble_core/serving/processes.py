"""What /proc tells of the server's processes and of the machine's load."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ensemble_core.serving.installation import STUB

TICKS = os.sysconf("SC_CLK_TCK")
INSTANCE = re.compile(r"_\d+_\d+$")  # what Triton adds to a model's name


class Process(NamedTuple):
    pid: int
    state: str  # R, S, D, Z, …
    parent: int
    group: int
    cpu_seconds: float  # user and system, with the children that it has reaped
    started: int  # clock ticks since the machine's start
    code: int  # of its end, −N by signal N; 0 while it runs, and of another user's process

    @property
    def dead(self) -> bool:
        """Whether it has ended and waits to be reaped."""
        return self.state in "ZX"


def process(pid: int) -> Process | None:
    """A process, or none if it is gone."""
    try:
        fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    cpu_seconds = sum(map(int, fields[11:15])) / TICKS
    code = os.waitstatus_to_exitcode(int(fields[49]))
    return Process(pid, fields[0], int(fields[1]), int(fields[2]), cpu_seconds, int(fields[19]), code)


def group(leader: int) -> list[Process]:
    """The processes of a process group. O(processes of the machine)."""
    return [each for each in _everyone() if each.group == leader]


def dead_children(parent: int) -> list[Process]:
    """Processes that a parent has started and not reaped since they ended. O(processes of the machine)."""
    return [each for each in _everyone() if each.parent == parent and each.dead]


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and waits to be reaped does not."""
    found = process(pid)
    return found is not None and not found.dead


def ending(code: int) -> str:
    """How a process ended, in words; −N means by signal N, and 0 perhaps that it was another user's."""
    if code == 0:
        return "ended"
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def stubs(prefix: str, models: frozenset[str]) -> dict[str, int]:
    """Process ids of a server's Python models; of one that is just replaced, the new process.

    `prefix` begins the names of the server's shared memory, which its stubs are given. They are seen wherever this
    process sees them: it need not be the server's parent. O(processes of the machine).
    """
    found: dict[str, Process] = {}
    for pid in (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()):
        arguments = _arguments(pid)
        if not arguments[0].endswith(STUB) or not any(each.startswith(prefix) for each in arguments):
            continue
        if (stub := process(pid)) is not None and not stub.dead:
            for model in models.intersection(INSTANCE.sub("", each) for each in arguments):
                found[model] = max(stub, found.get(model, stub), key=lambda each: each.started)
    return {model: stub.pid for model, stub in found.items()}


def _everyone() -> Iterator[Process]:
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and (found := process(int(path.name))) is not None:
            yield found


def _arguments(pid: int) -> list[str]:
    try:
        return _text(f"/proc/{pid}/cmdline").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return [""]


def _text(path: str) -> str:
    """Of a file that has a process's name or arguments, which are any bytes."""
    return Path(path).read_bytes().decode(errors="replace")


def busy_seconds() -> float:
    """CPU seconds that the machine's cores have worked since it started."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / TICKS
