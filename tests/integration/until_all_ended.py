"""As a script, `until_all_ended.py COMMAND...` runs a command and ends when nothing of it is left.

The command leads a session of its own.
What the command leaves behind becomes this process's child, however it detached itself; so this process ends exactly
when the last descendant has. Its exit code is the command's, 128 + N if signal N killed it.
"""

from __future__ import annotations

import ctypes
import os
import sys

PR_SET_CHILD_SUBREAPER = 36


def main(command: list[str]) -> int:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    child = os.posix_spawn(command[0], command, os.environ, setsid=True)
    statuses: dict[int, int] = {}
    while True:
        try:
            ended, status = os.wait()
        except ChildProcessError:
            break
        statuses[ended] = os.waitstatus_to_exitcode(status)
    code = statuses[child]
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
