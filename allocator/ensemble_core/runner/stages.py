"""Stages of a run: each is a command in a process of its own, watched through its report."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAM = (sys.executable, "-P", "-m", "ensemble_core.cli")  # -P: a file of the working folder is no module
STOP_SECONDS = 30.0  # a stage that was asked to stop is killed after this time
OUTPUT_SECONDS = 5.0  # for the last lines of a stage that has ended; a process that it left may hold its output open
POLL_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # loaded before any fork: a child of a process with threads must not load anything


@dataclass(frozen=True)
class Stage:
    """One command of a run: `ensemble VERB ARGUMENTS`, shown under its title.

    `owner` tells its reports from those of an earlier run's stage that is still dying.
    """

    title: str
    verb: str
    arguments: tuple[str, ...]
    report: Path
    owner: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(eq=False)  # a frozen exception could not be raised through a context manager
class StageFailed(Exception):  # noqa: N818 - it names what happened
    """A stage ended with another exit code than 0 (−N: by signal N); `problem` is what its report tells."""

    stage: Stage
    ending: int
    problem: str = ""

    @property
    def code(self) -> int:
        """Exit code of the run."""
        return self.ending if self.ending > 0 else 1

    def __str__(self) -> str:
        ending = f"ended with exit code {self.ending}"
        if self.ending < 0:
            ending = f"was killed by signal {-self.ending}"
        return f"{self.stage.title}: " + (
            self.problem or f"`ensemble {self.stage.verb}` {ending}; the same command continues"
        )


Seen = Callable[[dict[str, Any]], None]
Said = Callable[[str], None]


class Running:
    """A stage's process, and the thread that passes on its output."""

    def __init__(self, process: subprocess.Popen[str], said: Said) -> None:
        self._process, self._said = process, said
        self._stopping = False
        self._output = threading.Thread(target=self._pass_on, daemon=True)
        self._output.start()

    def code(self) -> int | None:
        """Exit code, or none while it runs."""
        return self._process.poll()

    def ended_within(self, seconds: float) -> bool:
        """Whether it ends in this time."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self) -> int:
        """Interrupt it if it still runs, kill it if it does not end, and return its exit code.

        What an interrupted stage says is not passed on: the run tells of the interruption.
        """
        if self._process.poll() is None:
            self._stopping = True
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
        code = self._process.wait()
        self._output.join(OUTPUT_SECONDS)
        return code

    def _pass_on(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                if not self._stopping:
                    self._said(line.rstrip("\n"))


def start(stage: Stage, said: Said) -> Running:
    """Start a stage; each line of its output goes to `said` from a thread. It is interrupted if this process dies."""
    parent = os.getpid()

    def die_with_parent() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it, and so would the stage
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)

    stage.report.parent.mkdir(parents=True, exist_ok=True)
    stage.report.unlink(missing_ok=True)
    process = subprocess.Popen(
        [*PROGRAM, stage.verb, *stage.arguments, "--report", f"file:{stage.report}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "ENSEMBLE_OWNER_UID": stage.owner},
        start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on
        preexec_fn=die_with_parent,
    )
    return Running(process, said)


def follow(stage: Stage, seen: Seen, said: Said) -> dict[str, Any]:
    """Run a stage to its end and return its last report.

    Args:
        stage: What to run.
        seen: Called with each new report.
        said: Called with each line of output.

    Raises:
        StageFailed: It ended with another exit code than 0.
    """
    running, sequence = start(stage, said), -1
    try:
        while running.code() is None:
            report = read_report(stage)
            if report and report["sequence"] != sequence:
                sequence = report["sequence"]
                seen(report)
            time.sleep(POLL_SECONDS)
    finally:
        code = running.stop()
    report = read_report(stage)
    if code != 0:
        raise StageFailed(stage, code, problem_of(report))
    if report.get("state") != "Succeeded":
        raise StageFailed(stage, 1, f"its last report could not be stored in {stage.report}")
    seen(report)
    return report


def read_report(stage: Stage) -> dict[str, Any]:
    """The newest report of a stage, empty before the first."""
    try:
        content: dict[str, Any] = json.loads(stage.report.read_text())
    except FileNotFoundError:
        return {}
    return content if content.get("ownerUid") == stage.owner else {}


def problem_of(report: dict[str, Any]) -> str:
    """Field and message of a failed stage's report; empty if it tells none."""
    error = report.get("error", {})
    return ": ".join(error[key] for key in ("field", "message") if error.get(key))
