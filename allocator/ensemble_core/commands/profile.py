"""Measure what each model of an EnsembleSelection's sources costs, alone on a device."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ensemble_core.api.documents import load_documents
from ensemble_core.profiling.run import run_profiling
from ensemble_core.report import CommandError, Report, add_report_arguments, run_reported


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_report_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    return run_reported(arguments, "profile", lambda report: _profile(arguments, report))


def _profile(arguments: argparse.Namespace, report: Report) -> dict[str, Any]:
    documents = load_documents(arguments.spec)
    selection = documents.selection(arguments.name)
    profiled = run_profiling(
        documents,
        selection,
        lambda done, total, note: report.progress(stage="profiles", done=done, total=total, note=note),
    )
    print(f"{profiled.measured} models measured on {profiled.device_type}, {profiled.known} were known")
    if profiled.failures:
        for failure in profiled.failures:
            print(failure, file=sys.stderr)
        raise CommandError(f"{len(profiled.failures)} models could not be measured: {profiled.failures[0]}")
    summary = {"deviceType": profiled.device_type, "measured": profiled.measured, "known": profiled.known}
    return {"digest": None, "summary": summary}
