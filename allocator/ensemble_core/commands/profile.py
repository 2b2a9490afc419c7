"""Measure what each model of an EnsembleSelection's sources costs, alone on a device."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from ensemble_core.api.documents import load_documents
from ensemble_core.errors import UserError
from ensemble_core.library.records import BatchProfile, Profile
from ensemble_core.profiling.child import FOREIGN_CORES, SAMPLES
from ensemble_core.profiling.half import words
from ensemble_core.profiling.run import Progress, run_profiling
from ensemble_core.report import CommandError, Report, add_report_arguments, run_reported
from ensemble_core.runner.show import Show
from ensemble_core.runner.wording import counted

COMPARED = "1,8,32,128"
MOST_SAMPLES = 4096  # of a batch
HEAD = ("MODEL", "ENGINE", "BATCH", "SAMPLES/S", "MS A BATCH", "MIB", "LOAD S", f"J FOR {SAMPLES}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_report_arguments(parser)
    text = f"measure with every engine that the device has, at these batch sizes too (default {COMPARED})"
    parser.add_argument("--compare", nargs="?", const=COMPARED, default="", metavar="SIZES", help=text)


def run(arguments: argparse.Namespace) -> int:
    return run_reported(arguments, "profile", lambda report: _profile(arguments, report))


def _profile(arguments: argparse.Namespace, report: Report) -> dict[str, Any]:
    documents = load_documents(arguments.spec)
    selection = documents.selection(arguments.name)
    sizes = _sizes(arguments.compare)
    with _shown(report, arguments.report is None) as progress:
        profiled = run_profiling(documents, selection, progress, sizes)
    for line in table(profiled.profiles):
        print(line)
    for remark in profiled.remarks:
        print(remark)
    print(f"{counted(profiled.measured, 'model')} measured on {profiled.device_type}, {profiled.known} were known")
    if profiled.failures:
        for failure in profiled.failures:
            print(failure, file=sys.stderr)
        raise CommandError(f"{counted(len(profiled.failures), 'model')} could not be measured: {profiled.failures[0]}")
    summary = {"deviceType": profiled.device_type, "measured": profiled.measured, "known": profiled.known}
    return {"digest": None, "summary": summary}


@contextmanager
def _shown(report: Report, shown: bool) -> Iterator[Progress]:
    """What tells the report of progress, and the terminal too if nobody asked for reports."""

    def told(done: int, total: int, note: str) -> None:
        report.progress(stage="profiles", done=done, total=total, note=note)

    if not shown:
        yield told
        return
    with Show(Console(stderr=True)) as show:
        stage = show.stage("profile")

        def told_and_drawn(done: int, total: int, note: str) -> None:
            told(done, total, note)
            stage.seen({"state": "Running", "progress": {"done": done, "total": total, "note": note}})

        yield told_and_drawn


def _sizes(text: str) -> tuple[int, ...]:
    sizes = [part.strip() for part in text.split(",")] if text else []
    for size in sizes:
        if not (size.isdecimal() and 1 <= int(size) <= MOST_SAMPLES):
            raise UserError(
                "--compare", f"{size!r} must be a batch size from 1 to {MOST_SAMPLES}, such as in {COMPARED}"
            )
    return tuple(map(int, sizes))


def table(profiles: Sequence[Profile]) -> list[str]:
    """Models, engines and batch sizes as lines of text; a dash where the device tells no energy.

    After the thesis, section 5.5. What was measured while other processes took cores is marked, for figures may be of
    several days. What half precision does to a model has a line, and so has what an engine is not used for, with the
    reason.
    """
    measured = [(profile, batch) for profile in profiles for batch in profile.batches]
    rows = [HEAD, *(_row(profile, batch) for profile, batch in measured)]
    marks = ["", *("  *" if batch.foreign_cores > FOREIGN_CORES else "" for _, batch in measured)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = [
        "  ".join(
            f"{cell:<{width}}" if column < 2 else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + mark
        for row, mark in zip(rows, marks, strict=True)
    ]
    refused = [
        f"{profile.model} is not for {profile.engine}: {profile.refused}" for profile in profiles if profile.refused
    ]
    half = [
        f"{profile.model} by {profile.engine}: {words(profile.accuracy)}"
        for profile in profiles
        if profile.accuracy and not profile.refused
    ]
    return [*(lines if len(rows) > 1 else []), *_disturbed(measured), *half, *refused]


def _disturbed(measured: Sequence[tuple[Profile, BatchProfile]]) -> list[str]:
    """What the mark at the end of a row means, and how such figures are measured anew."""
    kinds = dict.fromkeys(profile.device_type for profile, batch in measured if batch.foreign_cores > FOREIGN_CORES)
    return [
        f"* measured while other processes used more than {FOREIGN_CORES:g} of the device's cores, which may have "
        f"slowed it; what is deleted of profiles/{kind} in the library is measured anew"
        for kind in kinds
    ]


def _row(profile: Profile, batch: BatchProfile) -> tuple[str, ...]:
    return (
        profile.model,
        profile.engine,
        str(batch.batch_size),
        f"{SAMPLES / batch.seconds:,.0f}",
        f"{1000 * batch.seconds * batch.batch_size / SAMPLES:.3g}",
        f"{batch.memory_mib:.0f}",
        f"{profile.load_seconds:.2f}",
        "-" if batch.energy_joules is None else f"{batch.energy_joules:.3g}",
    )
