"""As a script, `launch.py PARENT COMMAND...` becomes COMMAND, which the kernel kills when PARENT dies, however it dies.

With `-` for PARENT it outlives whoever started it: the container's runtime ends it.

COMMAND is Triton, and a guard looks after it. When it has ended, however it ended, what is left of the process group
that it leads is killed: a Python model that was being loaded would wait for its server for ever. When one of its
children is dead and not reaped for a while, it is killed itself: it waits for that child for ever, with requests and
loads that will never be answered.

A script of its own, because code between fork and exec is not safe in a process with threads, and because the guard
stays: it is to be small.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)
STUCK = "A model's process died, and the server waits for it: the server is ended."
LOOK_SECONDS, UNREAPED_SECONDS = 2.0, 10.0  # longer than whoever looks after the server's models takes to reload one


def main(parent: str, command: list[str]) -> None:
    if parent != "-":
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):  # it died before the call above
            sys.exit(1)
    leader = os.getpid()
    if os.fork() == 0:
        guard(leader)
    else:
        os.execv(command[0], command)


def guard(leader: int) -> None:
    """Wait until the leader has ended, or kill it if it is stuck; then kill its process group."""
    os.setpgid(0, 0)  # this process stays in the session, so that the leader's number is given to no other
    told = {signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, told)
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    since: dict[int, float] = {}
    while os.getppid() == leader:
        if signal.sigtimedwait(told, LOOK_SECONDS) is None:
            since = {pid: since.get(pid, time.monotonic()) for pid in dead_children(leader)}
            if any(time.monotonic() - moment >= UNREAPED_SECONDS for moment in since.values()):
                print(STUCK, file=sys.stderr, flush=True)
                os.kill(leader, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):  # nothing is left
        os.killpg(leader, signal.SIGKILL)


def dead_children(parent: int) -> list[int]:
    """Processes that a parent has started and not reaped since they ended. O(processes of the machine)."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{name}/stat") as stat:
            state, of = stat.read().rpartition(")")[2].split()[:2]
            if state in "ZX" and int(of) == parent:
                found.append(int(name))
    return found


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
