"""As a script, `launch.py PARENT COMMAND...` becomes COMMAND, which the kernel kills when PARENT dies, however it dies.

When COMMAND has ended, however it ended, what is left of the process group that it leads is killed: a Python model that
was being loaded would wait for its server for ever.

A script of its own, because code between fork and exec is not safe in a process with threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)


def main(parent: int, command: list[str]) -> None:
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call above
        sys.exit(1)
    leader = os.getpid()
    if os.fork() == 0:
        guard(leader)
    else:
        os.execv(command[0], command)


def guard(leader: int) -> None:
    """Wait until the leader has ended, then kill its process group."""
    os.setpgid(0, 0)  # this process stays in the session, so that the leader's number is given to no other
    told = {signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, told)
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    while os.getppid() == leader:
        signal.sigwait(told)
    with contextlib.suppress(ProcessLookupError):  # nothing is left
        os.killpg(leader, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
