"""Selection as a command does it: join the libraries, pick, and only then look at held-out data."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from ensemble_core.api.documents import Documents
from ensemble_core.api.ensembleselection import EnsembleSelection
from ensemble_core.errors import UserError
from ensemble_core.frozen import digest
from ensemble_core.library.library import Library, same_data
from ensemble_core.library.parsing import parse, validated
from ensemble_core.library.records import SPLITS
from ensemble_core.library.splits import LabelledIds
from ensemble_core.library.store import open_store
from ensemble_core.selection.evaluation import Evaluation, Progress
from ensemble_core.selection.pool import Pool
from ensemble_core.selection.result import SelectionResult
from ensemble_core.selection.smobf import Pick, Settings, TrueClass, cross_entropies, select
from ensemble_core.selection.subject import Subject, make_subject

Tell = Callable[[UserError], None]

KIND: Literal["selections"] = "selections"


def find_result(documents: Documents, selection: EnsembleSelection) -> SelectionResult | None:
    """The selection's result for what the libraries hold now, if it was computed."""
    subject = make_subject(documents, selection)
    output = _output(documents, subject)
    return None if output is None else _known(output, subject, _not_told)


def read_result(documents: Documents, selection: EnsembleSelection, key: str) -> SelectionResult:
    """The selection's result of that digest, whatever its libraries hold now.

    Raises:
        UserError: the selection's library has no such result, or it is another selection's, or of other data.
    """
    where, name = "--selection", selection.metadata.name
    if not re.fullmatch("[0-9a-f]{64}", key):
        raise UserError(where, f"{key!r} must be a digest: 64 hexadecimal digits")
    library = Library.open(open_store(documents.result_storage(selection)))
    content = library.result(KIND, key)
    if content is None:
        raise UserError(where, f"{library.store.url} has no {KIND}/{key}.json; run `ensemble select --name {name}`")
    found = checked_result(key, content, f"{library.store.url}/{KIND}/{key}.json", library.header.fingerprint)
    # Equal selections share their results, which have the name of the first.
    if found.name != name and found.spec_hash != digest(selection.spec.document()):
        raise UserError(where, f"{key} is a result of the selection {found.name}, not of {name}")
    sources = len(documents.source_storages(selection))
    if len(found.sources) != sources:
        raise UserError(where, f"{key} was selected from {len(found.sources)} libraries; {name} names {sources}")
    return found


def checked_result(key: str, content: dict[str, Any], where: str, fingerprint: str) -> SelectionResult:
    """A stored result; UserError if it is none, or not the one of that digest, or of data with another fingerprint."""
    found = validated(SelectionResult, content, where)
    if found.digest != key or found.fingerprint != fingerprint:
        raise UserError(where, "is not the result that its name says")
    return found


def _not_told(problem: UserError) -> None:
    """Whoever looks for a result that is not found is sent to `ensemble select`, which tells."""


def run_selection(
    documents: Documents, selection: EnsembleSelection, progress: Progress, tell: Tell = _not_told
) -> tuple[SelectionResult, bool]:
    """The selection's result, and whether it had to be computed; a known one is read and nothing is written.

    Args:
        documents: The file with the selection and the searches it refers to.
        selection: One of its selections.
        progress: Called with a stage's name, how much of it is done, and of how much.
        tell: Called with what is wrong with a stored result that may be of another selection; it is passed over.
    """
    subject = make_subject(documents, selection)
    output = _output(documents, subject)
    key = subject.digest()
    known = None if output is None else _known(output, subject, tell)
    if known is not None:
        return known, False
    open_store(documents.result_storage(selection)).check_writable()
    true_class = subject.pool.true_class(subject.joined, lambda done, total: progress("predictions", done, total))
    progress("picks", 0, 1)
    picks = pick(subject.pool, true_class, selection)
    progress("picks", 1, 1)
    result = Evaluation(subject, cross_entropies(true_class), picks).result(progress)
    library = output or _create_output(documents, subject)
    return _parsed(library, key, library.write_result(KIND, key, result.document())), True


def pick(pool: Pool, true_class: TrueClass, selection: EnsembleSelection) -> tuple[Pick, ...]:
    """One pick per budget, from validation arrays alone: there is no way from here to held-out data."""
    spec = selection.spec
    settings = Settings(spec.weights, spec.keep_top_percent, spec.keep_at_least)
    return select(true_class, pool.costs(), pool.limits, settings)


def _output(documents: Documents, subject: Subject) -> Library | None:
    """The library that keeps the result, if it exists yet."""
    storage = documents.result_storage(subject.selection)
    location = storage.document()
    if location in subject.storages:
        return subject.joined.libraries[subject.storages.index(location)]
    store = open_store(storage)
    if "library.json" not in store.list("library.json"):
        return None
    library = Library.open(store)
    same_data(library.header, store.url, subject.joined.header, subject.joined.libraries[0].store.url)
    return library


def _create_output(documents: Documents, subject: Subject) -> Library:
    first = subject.joined.libraries[0]
    labels = {split: LabelledIds(first.ids(split), first.labels(split)) for split in SPLITS}
    return Library.create(open_store(documents.result_storage(subject.selection)), first.header, labels)


def _known(library: Library, subject: Subject, tell: Tell) -> SelectionResult | None:
    """The stored result of a subject, with its sources where they are now.

    A digest covers where the sources were. So that folders may be copied and moved, a result of other places counts
    too, if its digest is that of this very subject with its sources there.
    """
    if (found := _stored(library, subject.digest())) is not None:
        return found
    stored = _readable(library, tell)
    places = [tuple(source.storage.document() for source in result.sources) for result in stored.values()]
    for place in {str(place): place for place in places if len(place) == len(subject.storages)}.values():
        if (found := stored.get(replace(subject, storages=place).digest())) is not None:
            return found.model_copy(update={"sources": subject.sources()})
    return None


def _readable(library: Library, tell: Tell) -> dict[str, SelectionResult]:
    """All stored results that can be read, by digest; what is wrong with any other is told."""
    found = {}
    for path, data in sorted(library.store.read_many(library.store.list(f"{KIND}/")).items()):
        try:
            result = parse(SelectionResult, data, f"{library.store.url}/{path}")
        except UserError as problem:
            tell(problem)
        else:
            found[path.removeprefix(f"{KIND}/").removesuffix(".json")] = result
    return found


def _stored(library: Library, key: str) -> SelectionResult | None:
    content = library.result(KIND, key)
    return None if content is None else _parsed(library, key, content)


def _parsed(library: Library, key: str, content: dict[str, Any]) -> SelectionResult:
    return validated(SelectionResult, content, f"{library.store.url}/{KIND}/{key}.json")
