"""Progress of a run: bars on a terminal, lines in a log."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

LINE_SECONDS = 5.0  # at most one line per stage in this time, where there is no terminal


class Show:
    """Draws the stages of a run on the console; a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._last_line = 0.0

    def __enter__(self) -> Show:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def stage(self, title: str) -> StageShow:
        return StageShow(self, title)

    def say(self, line: str) -> None:
        """A line of a stage's own output."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def table(self, table: Table) -> None:
        self.console.print(table)


class StageShow:
    """One stage's bar, or its lines."""

    def __init__(self, show: Show, title: str) -> None:
        self._show, self._title = show, title
        self._task = show._bars.add_task(title, total=None, note="")
        self._printed, self._last = 0.0, ""

    def seen(self, report: dict[str, Any]) -> None:
        """Draw a report: `progress` holds `done`, `total` and a `note`."""
        progress = report.get("progress", {})
        done, total, note = progress.get("done", 0), progress.get("total"), progress.get("note", "")
        self._show._bars.update(self._task, completed=done, total=total, note=note)
        line = f"{self._title}: {done}/{total if total is not None else '?'} {note}".rstrip()
        finished = report["state"] != "Running"
        if self._show.console.is_terminal or line == self._last or not total:
            return
        if finished or time.monotonic() - self._printed > LINE_SECONDS:
            self._show.say(line)
            self._printed, self._last = time.monotonic(), line

    def end(self) -> None:
        """The stage is done."""
        total = self._show._bars.tasks[self._task].total or 1
        self._show._bars.update(self._task, completed=total, total=total)
        if not self._show.console.is_terminal:
            self._show.say(f"{self._title}: done")
