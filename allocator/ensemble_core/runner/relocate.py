"""Puts the libraries that a run writes below its output folder, and tells them so that the folder can be moved."""

from __future__ import annotations

from collections.abc import Callable
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

    def moved(path: str) -> str:
        if path not in written or not Path(path).is_relative_to(folder):
            return path
        return str(output / Path(path).relative_to(folder))

    return _with_paths(documents, moved)


def dump(documents: Documents, folder: Path) -> str:
    """The documents as YAML for a file in `folder`, from which they load as they are; paths below it are relative."""

    def told(path: str) -> str:
        return str(Path(path).relative_to(folder)) if Path(path).is_relative_to(folder) else path

    told_relative = _with_paths(documents, told)
    every = [
        *told_relative.searches.values(),
        *told_relative.selections.values(),
        *told_relative.deployments.values(),
    ]
    text: str = yaml.safe_dump_all([each.document() for each in every], sort_keys=False)
    return text


def _with_paths(documents: Documents, change: Callable[[str], str]) -> Documents:
    """The documents with the paths of all library storages changed."""

    def storage(given: Storage) -> Storage:
        return given if given.path is None else given.model_copy(update={"path": change(given.path)})

    def search(given: HPOSearch) -> HPOSearch:
        library = given.spec.library.model_copy(update={"storage": storage(given.spec.library.storage)})
        return given.model_copy(update={"spec": given.spec.model_copy(update={"library": library})})

    def source(given: Source) -> Source:
        return given.model_copy(update={"storage": storage(given.storage)}) if given.storage else given

    def selection(given: EnsembleSelection) -> EnsembleSelection:
        spec = given.spec
        update = {
            "library": storage(spec.library) if spec.library else None,
            "sources": tuple(map(source, spec.sources)),
        }
        return given.model_copy(update={"spec": spec.model_copy(update=update)})

    return replace(
        documents,
        searches={name: search(given) for name, given in documents.searches.items()},
        selections={name: selection(given) for name, given in documents.selections.items()},
    )
