"""Run the three documents of a file on this machine: search, profile, select, allocate, serve, check, report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from ensemble_core.api.documents import Documents, check_references, load_documents
from ensemble_core.commands.serve import check_ports
from ensemble_core.places import check_folder, make_folder
from ensemble_core.report import CommandError
from ensemble_core.runner.preflight import check_machine, check_searches
from ensemble_core.runner.relocate import relocate
from ensemble_core.runner.run import Run, Workspace
from ensemble_core.runner.show import Show
from ensemble_core.runner.stages import StageFailed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="YAML file with an EnsembleDeployment and what it refers to")
    parser.add_argument("--output", metavar="FOLDER", help="for everything that the run makes (runs/FILE's stem)")
    parser.add_argument("--serve", action="store_true", help="keep the endpoint up after the report, until Ctrl-C")


def run(arguments: argparse.Namespace) -> int:
    """0 if every stage succeeded and the endpoint answers what the members' predictions give; else what failed says."""
    file = Path(arguments.file)
    output = Path(arguments.output or Path("runs") / file.stem).resolve()
    documents = _checked(file, output)
    make_folder("--output", output)
    console = Console()
    try:
        with Show(console) as show:
            Run(documents, Workspace(output), show).execute(arguments.serve)
    except StageFailed as failed:
        print(f"ensemble run: {failed}", file=sys.stderr)
        return failed.code
    except CommandError as failed:
        print(f"ensemble run: {failed}", file=sys.stderr)
        return failed.exit_code
    return 0


def _checked(file: Path, output: Path) -> Documents:
    """The documents, their libraries below `output`; UserError for all that can be known before the first stage."""
    documents = load_documents(file)
    check_references(documents, complete=True)
    deployment = documents.deployment()
    check_ports(f"{file}: EnsembleDeployment {deployment.metadata.name}", deployment.spec.serving)
    check_machine(documents)
    check_folder("--output", output)
    documents = relocate(documents, file.resolve().parent, output)
    check_searches(documents)
    return documents
