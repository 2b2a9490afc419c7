"""Train a library of models: the trials of an HPOSearch, on Ray.

Run again, it continues where it was; with nothing left to do it starts nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Set
from contextlib import contextmanager
from typing import Any

from ensemble_core.api.documents import Documents, load_documents
from ensemble_core.api.hposearch import HPOSearch
from ensemble_core.errors import UserError
from ensemble_core.library.library import Library, same_data
from ensemble_core.library.names import LIBRARY
from ensemble_core.library.store import Store, open_store
from ensemble_core.library.timeline import search_timeline
from ensemble_core.report import Report, add_report_arguments, run_reported
from ensemble_trainer.datasets import Dataset, load_dataset
from ensemble_trainer.driver import Driver, check_failures, has_work, say
from ensemble_trainer.outcome import final_summary, summary
from ensemble_trainer.search import Search, check_unchanged, remember
from ensemble_trainer.slots import check_resources, ray_address, ray_slots
from ensemble_trainer.space import SearchSpace, search_space
from ensemble_trainer.worker import MakeRun, Worker, dataset_cache, resnet_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_report_arguments(parser)
    parser.add_argument("--ray", metavar="ADDRESS", help="Ray cluster to use (RAY_ADDRESS, or one of its own)")


def run(arguments: argparse.Namespace) -> int:
    return run_reported(arguments, "train", lambda report: train(arguments, report))


def train(arguments: argparse.Namespace, report: Report, make_run: MakeRun = resnet_run) -> dict[str, Any]:
    """Bring the search to its end; returns the report's result."""
    document = load_documents(arguments.spec).search(arguments.name)
    address = ray_address(arguments.ray)
    with naming(f"{arguments.spec} (HPOSearch {document.metadata.name})"):
        search, deadline = open_search(document, local=address is None)
    if has_work(search, deadline):
        check_failures(search)
        search.begin()
        report.progress_of(lambda: progress(search, "starting Ray"))
        worker = Worker(search.name, search.spec, make_run)
        with ray_slots(worker, address) as slots:
            driver = Driver(search, slots, deadline)
            driver.changed = lambda: report.progress_of(lambda: progress(search, slots.note, driver.running()))
            driver.run()
    else:
        say(f"search {search.name}: nothing to do, {search.ended} of {search.spec.max_trial_count} trials have ended")
    search.drop_leftovers()
    check_failures(search)
    return result(search)


def progress(search: Search, note: str, running: Set[int] = frozenset()) -> dict[str, Any]:
    """The report's progress; `note` tells what slots wait for."""
    told = summary(search, tuple(search.spans), running)
    best = told["best"]
    notes = [f"best cross-entropy {best['metrics']['crossEntropy']:.4f}"] if best else []
    return {
        "stage": "train",
        "done": search.ended,
        "total": search.spec.max_trial_count,
        "note": "; ".join([*notes, note] if note else notes),
        "summary": told,
    }


def result(search: Search) -> dict[str, Any]:
    """The report's result; of a search that needed nothing the occupancy is that of the runs before."""
    search.look_again()
    spans = tuple(search.spans) or search_timeline(search.library, search.name)
    return {"digest": search.digest(), "summary": final_summary(search, spans)}


def open_search(document: HPOSearch, local: bool) -> tuple[Search, float | None]:
    """The search and the time after which no trial starts; its library is made if there is none.

    Nothing is written if anything is wrong with the specification, the data or the library.
    """
    name, spec = document.metadata.name, document.spec
    space, dataset, store = checked(document, local)
    store.check_writable()
    library = Library.create(store, dataset.header(), dataset.labels())
    began = remember(library, name, spec)
    library.keep_inputs_unasked(dataset.validation.images, f"{store.url}: validation samples")
    deadline = None if spec.max_duration_seconds is None else began + spec.max_duration_seconds
    return Search(library, name, spec, space), deadline


def check(documents: Documents, name: str) -> None:
    """UserError for what would keep the search of that name from beginning; writes at most the cache of the data."""
    document = documents.search(name)
    with naming(f"{documents.file} (HPOSearch {name})"):
        checked(document, local=ray_address(None) is None)


def check_space(documents: Documents, name: str) -> None:
    """UserError for hyperparameters that the trainer does not have or cannot take; reads nothing but the document."""
    with naming(f"{documents.file} (HPOSearch {name})"):
        search_space(documents.search(name).spec)


def checked(document: HPOSearch, local: bool) -> tuple[SearchSpace, Dataset, Store]:
    """What the search draws from, its data, and the place of its library; UserError if they do not go together."""
    name, spec = document.metadata.name, document.spec
    space = search_space(spec)
    if local:
        check_resources(spec)
    store = open_store(spec.library.storage, "spec.library.storage")
    dataset = load_dataset(spec.dataset, dataset_cache())
    header = dataset.header()
    if store.list(LIBRARY):
        library = Library.open(store)
        same_data(library.header, store.url, header, "the data set given")
        check_unchanged(library, name, spec)
    return space, dataset, store


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Put the document before fields that are named without it."""
    try:
        yield
    except UserError as error:
        if not error.where.startswith("spec."):
            raise
        raise UserError(f"{where}: {error.where}", error.problem) from error
