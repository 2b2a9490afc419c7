"""Write a split of an HPOSearch's data set as arrays: the samples in the form that models and endpoints take."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np

from ensemble_core.api.documents import load_documents
from ensemble_core.places import check_folder, make_folder
from ensemble_core.report import Report, add_report_arguments, run_reported
from ensemble_trainer.commands.train import naming
from ensemble_trainer.datasets import load_dataset
from ensemble_trainer.worker import dataset_cache

SPLITS = ("train", "validation", "heldout")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_report_arguments(parser)
    parser.add_argument("--split", choices=SPLITS, default="heldout", help="which part (heldout)")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="for images.npy, labels.npy and ids.npy")


def run(arguments: argparse.Namespace) -> int:
    return run_reported(arguments, "dataset", lambda report: _write(arguments, report))


def _write(arguments: argparse.Namespace, report: Report) -> dict[str, Any]:
    folder = check_folder("--output", Path(arguments.output))
    search = load_documents(arguments.spec).search(arguments.name)
    with naming(f"{arguments.spec} (HPOSearch {search.metadata.name})"):
        dataset = load_dataset(search.spec.dataset, dataset_cache())
    part = getattr(dataset, arguments.split)
    make_folder("--output", folder)
    for name, array in (("images", part.images), ("labels", part.labels), ("ids", part.ids)):
        scratch = folder / f".{name}.{os.getpid()}.npy"
        np.save(scratch, array, allow_pickle=False)
        scratch.replace(folder / f"{name}.npy")
    header = dataset.header()
    print(f"{len(part.labels)} samples of {arguments.split} in {folder}")
    return {"digest": header.fingerprint, "summary": {"samples": len(part.labels)}}
