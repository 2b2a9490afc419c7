"""Ends what is left of a Ray cluster when the process that started it is gone, however it went.

    python reaper.py FOLDER SPARED        # waits for the end of its standard input

Ray's own processes mostly end by themselves, but some linger for a minute. They are known by their open files under
the cluster's folder; this file needs nothing but the standard library, so that it starts fast and stays small.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time

PATIENCE = 10.0  # seconds


def holders(folder: str, spared: int) -> list[int]:
    """Processes of this user but the spared one that have a file under `folder` open."""
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        # Processes end while they are looked at, and those of others do not show their files.
        with contextlib.suppress(OSError):
            links = os.scandir(f"/proc/{process}/fd")
            if any(_target(link.path).startswith(f"{folder}/") for link in links):
                found.append(int(process))
    return [process for process in found if process not in (os.getpid(), spared)]


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def reap(folder: str, spared: int) -> None:
    """Kill the holders until there are none, then remove the folder."""
    deadline = time.monotonic() + PATIENCE
    while (left := holders(folder, spared)) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.stdin.read()
    reap(sys.argv[1], int(sys.argv[2]))
