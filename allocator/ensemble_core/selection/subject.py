"""A selection with all that its result depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ensemble_core.api.common import Storage
from ensemble_core.api.documents import Documents
from ensemble_core.api.ensembleselection import EnsembleSelection
from ensemble_core.frozen import digest
from ensemble_core.library.joined import Joined, join
from ensemble_core.library.library import Library
from ensemble_core.library.store import Store, open_store
from ensemble_core.selection.pool import Pool, Request, make_pool
from ensemble_core.selection.result import SourceLibrary

COMPUTATION = 1  # raised when the same inputs give another result, so that stored ones are not found
# What the picks depend on; the rest of the spec says where results go and how pods run.
_DECIDING = {"algorithm", "budgets", "cost", "weights", "keep_top_percent", "keep_at_least", "combiner", "metric"}


@dataclass(frozen=True)
class Subject:
    """A selection with all that its result depends on; made without reading any prediction.

    Args:
        selection: The document.
        joined: Its sources.
        pool: Their models.
        storages: Where the sources are, as JSON has it.
    """

    selection: EnsembleSelection
    joined: Joined
    pool: Pool
    storages: tuple[Any, ...]

    def digest(self) -> str:
        """Of the deciding fields, the data, and every model with its record and profile."""
        models = [*self.pool.candidates, *(candidate for candidate, _ in self.pool.left_out)]
        return digest(
            {
                "computation": COMPUTATION,
                "spec": self.selection.spec.model_dump(mode="json", by_alias=True, include=_DECIDING),
                "sources": self.storages,
                "fingerprint": self.joined.header.fingerprint,
                "models": sorted([candidate.identity() for candidate in models], key=str),
            }
        )

    def sources(self) -> tuple[SourceLibrary, ...]:
        """Where the sources are, and what they hold."""
        pairs = zip(self.storages, self.joined.libraries, strict=True)
        return tuple(SourceLibrary(storage=storage, digest=library.digest()) for storage, library in pairs)


def open_sources(where: str, storages: Sequence[Storage]) -> list[Store]:
    """The stores of `spec.sources`; `where` is file and document."""
    return [open_store(storage, f"{where}: spec.sources[{i}].storage") for i, storage in enumerate(storages)]


def make_subject(documents: Documents, selection: EnsembleSelection) -> Subject:
    """Open the sources of a selection and find the cost of every model; UserErrors as of `make_pool`."""
    storages = documents.source_storages(selection)
    spec = selection.spec
    command = f"ensemble profile --spec {documents.file} --name {selection.metadata.name}"
    where = f"{documents.file}: EnsembleSelection {selection.metadata.name}"
    joined = join([Library.open(store) for store in open_sources(where, storages)])
    request = Request(where, command, spec.cost, spec.budgets)
    pool = make_pool(joined, request)
    return Subject(selection, joined, pool, tuple(storage.document() for storage in storages))
