"""Check documents and name every wrong field; nothing is run or written."""

from __future__ import annotations

import argparse
from importlib.metadata import entry_points
from typing import Any

from ensemble_core.api.documents import Documents, check_references, load_documents
from ensemble_core.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="YAML file with one or more documents")


def run(arguments: argparse.Namespace) -> int:
    """One line for every valid document; UserError with all that is wrong in all files."""
    problems = []
    for file in arguments.files:
        try:
            documents = load_documents(file)
            check_references(documents)
            check_spaces(documents)
        except UserError as error:
            problems.append(str(error))
        else:
            print("\n".join(_lines(documents)))
    if problems:
        raise UserError("", "\n".join(problems))
    return 0


def check_spaces(documents: Documents) -> None:
    """UserError for hyperparameters that the trainer does not have, where it is installed."""
    for entry in entry_points(group="ensemble.commands", name="train"):
        try:
            trainer: Any = entry.load()
        except ModuleNotFoundError:
            return
        for name in documents.searches:
            trainer.check_space(documents, name)


def _lines(documents: Documents) -> list[str]:
    groups = (documents.searches, documents.selections, documents.deployments)
    return [f"{documents.file}: {item.kind} {name} is valid" for group in groups for name, item in group.items()]
