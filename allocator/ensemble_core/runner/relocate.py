"""Puts the libraries that a run writes under its output folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import yaml

from ensemble_core.api.common import Storage
from ensemble_core.api.documents import Documents
from ensemble_core.api.ensembleselection import EnsembleSelection, Source
from ensemble_core.api.hposearch import HPOSearch


def relocate(documents: Documents, folder: Path, output: Path) -> Documents:
    """The documents with each library path below `folder` moved below `output`.

    Args:
        documents: As loaded, with absolute paths.
        folder: That of the file, absolute: what was relative in the file is below it.
        output: The run's output folder, absolute.

    Libraries are what searches fill and what selections name as `spec.library`; a source that is one of them moves
    with it, others stay where they are.
    """
    written = {search.spec.library.storage.path for search in documents.searches.values()}
    written |= {s.spec.library.path for s in documents.selections.values() if s.spec.library}

    def moved(storage: Storage) -> Storage:
        if storage.path is None or storage.path not in written or not Path(storage.path).is_relative_to(folder):
            return storage
        return storage.model_copy(update={"path": str(output / Path(storage.path).relative_to(folder))})

    def move_search(search: HPOSearch) -> HPOSearch:
        library = search.spec.library.model_copy(update={"storage": moved(search.spec.library.storage)})
        return search.model_copy(update={"spec": search.spec.model_copy(update={"library": library})})

    def move_source(source: Source) -> Source:
        return source.model_copy(update={"storage": moved(source.storage)}) if source.storage else source

    def move_selection(selection: EnsembleSelection) -> EnsembleSelection:
        spec = selection.spec
        library = moved(spec.library) if spec.library else None
        update = {"library": library, "sources": tuple(map(move_source, spec.sources))}
        return selection.model_copy(update={"spec": spec.model_copy(update=update)})

    return replace(
        documents,
        searches={name: move_search(search) for name, search in documents.searches.items()},
        selections={name: move_selection(selection) for name, selection in documents.selections.items()},
    )


def dump(documents: Documents) -> str:
    """The documents as YAML that loads as they are."""
    every = [*documents.searches.values(), *documents.selections.values(), *documents.deployments.values()]
    text: str = yaml.safe_dump_all([each.document() for each in every], sort_keys=False)
    return text
