"""Write the files from which a pod serves an allocated ensemble without its library (EnsembleDeployment)."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

from ensemble_core.allocation.harness import NoServerError
from ensemble_core.allocation.prepare import allocated_plan, allocation_of, find_ensemble, subject_of
from ensemble_core.api.documents import load_documents
from ensemble_core.commands.allocate import add_selection_argument
from ensemble_core.errors import OutageError
from ensemble_core.places import check_folder, make_folder
from ensemble_core.report import add_spec_arguments
from ensemble_core.serving import rendered


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec_arguments(parser)
    add_selection_argument(parser, required=True)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="new, empty, or rendered before")


def run(arguments: argparse.Namespace) -> int:
    check_folder("--output", arguments.output)
    rendered.open_to_group()
    documents = load_documents(arguments.spec)
    deployment = documents.deployment(arguments.name)
    ensemble = find_ensemble(documents, deployment, arguments.selection)
    try:
        subject = subject_of(ensemble)
    except NoServerError as error:
        raise OutageError(f"there is no Triton server to serve from: {error}") from error
    found = allocation_of(documents, ensemble, subject)
    content = rendered.Rendered(
        spec_hash=hashlib.sha256(Path(arguments.spec).read_bytes()).hexdigest(),
        selection=arguments.selection,
        allocation=found.digest,
        plan=allocated_plan(ensemble, subject, found),
    )
    plan = rendered.write(make_folder("--output", arguments.output), content).plan
    print(f"{plan.name}: {len(plan.members)} members, {len(plan.workers)} workers in {arguments.output}")
    return 0
