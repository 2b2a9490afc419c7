"""Run the three documents of a file on this machine: search, profile, select, allocate, serve, check, report."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from ensemble_core.api.documents import Documents, check_references, load_documents
from ensemble_core.commands.serve import check_ports
from ensemble_core.errors import UserError
from ensemble_core.report import CommandError
from ensemble_core.runner.relocate import relocate
from ensemble_core.runner.run import Run, Workspace
from ensemble_core.runner.show import Show
from ensemble_core.runner.stages import StageFailed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="YAML file with an EnsembleDeployment and what it refers to")
    parser.add_argument("--output", metavar="FOLDER", help="for everything that the run makes (runs/FILE's stem)")
    parser.add_argument("--serve", action="store_true", help="keep the endpoint up after the report, until Ctrl-C")


def run(arguments: argparse.Namespace) -> int:
    """0 if every stage succeeded and the endpoint's answers are the members' average; else the failed stage's code."""
    file = Path(arguments.file)
    documents = _checked(file)
    output = Path(arguments.output or Path("runs") / file.stem).resolve()
    documents = relocate(documents, file.resolve().parent, output)
    console = Console()
    try:
        with Show(console) as show:
            Run(documents, Workspace(output), show).execute(arguments.serve)
    except StageFailed as failed:
        console.print(str(failed), style="bold red", markup=False)
        return failed.code
    except CommandError as failed:
        console.print(str(failed), style="bold red", markup=False)
        return failed.exit_code
    return 0


def _checked(file: Path) -> Documents:
    """The documents; UserError if anything is wrong that can be known before the first stage."""
    documents = load_documents(file)
    check_references(documents, complete=True)
    deployment = documents.deployment()
    sources = documents.selection(deployment.spec.selection_ref.name).spec.sources
    if not any(source.hpo_search_name for source in sources):
        problem = "needs a source with hpoSearchName: the endpoint is checked with that search's held-out samples"
        instead = "; for libraries without a search call `ensemble profile`, `select`, `allocate` and `serve`"
        raise UserError(
            f"{file}: EnsembleSelection {deployment.spec.selection_ref.name}: spec.sources", problem + instead
        )
    check_ports(f"{file}: EnsembleDeployment {deployment.metadata.name}", deployment.spec.serving)
    return documents
