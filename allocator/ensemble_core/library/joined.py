"""Several libraries of one data set, read as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble_core.errors import UserError
from ensemble_core.frozen import digest
from ensemble_core.library.library import Library, same_data
from ensemble_core.library.records import Header, ModelRecord, Split


@dataclass(frozen=True)
class JoinedModel:
    """A model and the index of the library that it is in."""

    library: int
    record: ModelRecord


@dataclass(frozen=True)
class Joined:
    """Libraries with the same samples; models of equal id are told apart by the library's index."""

    libraries: tuple[Library, ...]

    @property
    def header(self) -> Header:
        return self.libraries[0].header

    def labels(self, split: Split) -> NDArray[np.int64]:
        """True classes of a split's samples, shape (N,)."""
        return self.libraries[0].labels(split)

    def models(self) -> tuple[JoinedModel, ...]:
        """All models, by library and id; a copy of a model that an earlier library has is left out."""
        found: dict[str, JoinedModel] = {}
        for index, library in enumerate(self.libraries):
            for record in library.models():
                files = {key: file.sha256 for key, file in record.files.items()}
                found.setdefault(digest([record.id, files]), JoinedModel(index, record))
        return tuple(found.values())

    def predictions(self, model: JoinedModel, split: Split) -> NDArray[np.float32]:
        """As `Library.predictions`."""
        return self.libraries[model.library].predictions(model.record, split)

    def digest(self) -> str:
        """Changes when a model of any of the libraries comes, goes or changes."""
        return digest([library.digest() for library in self.libraries])


def join(libraries: Sequence[Library]) -> Joined:
    """Read libraries as one.

    Raises UserError that names two of them whose task, signature, class names or fingerprint differ.
    """
    if not libraries:
        raise UserError("sources", "must name at least one library")
    first = libraries[0]
    for other in libraries[1:]:
        same_data(other.header, other.store.url, first.header, first.store.url)
    return Joined(tuple(libraries))
