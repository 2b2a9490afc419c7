"""Labels and ids of a library's splits, and the header that fixes them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_core.errors import UserError
from ensemble_core.frozen import digest
from ensemble_core.library.records import SPLITS, Header, Signature, Split


@dataclass(frozen=True)
class LabelledIds:
    """The samples of a split, in order: ids, strings of shape (N,); labels, int64 of shape (N,)."""

    ids: NDArray[np.str_]
    labels: NDArray[np.int64]


def make_header(signature: Signature, class_names: Sequence[str], splits: Mapping[Split, LabelledIds]) -> Header:
    """The header of a library of models for these samples.

    Raises UserError if a split is missing or empty, labels leave the classes, or ids repeat.
    """
    names = tuple(class_names)
    if len(names) != signature.classes or len(set(names)) < len(names):
        raise UserError("classNames", f"must be {signature.classes} different names, not {names}")
    for split in SPLITS:
        check_split(splits[split], signature.classes, split)
    digests = {split: split_digest(splits[split]) for split in SPLITS}
    return Header(
        signature=signature,
        class_names=names,
        fingerprint=fingerprint(names, digests),
        samples={split: len(splits[split].labels) for split in SPLITS},
        splits=digests,
    )


def fingerprint(class_names: Sequence[str], splits: Mapping[Split, str]) -> str:
    """What two libraries must share for their models to be combined."""
    return digest({"classNames": list(class_names), "splits": dict(splits)})


def split_digest(split: LabelledIds) -> str:
    """SHA-256 of the ordered labels and ids, the same on every machine."""
    labels = np.ascontiguousarray(split.labels, dtype="<i8").tobytes()
    return hashlib.sha256(labels + "\0".join(split.ids.tolist()).encode()).hexdigest()


def check_split(split: LabelledIds, classes: int, where: str) -> None:
    """Raise a UserError that begins with `where` unless the split can be scored against."""
    ids, labels = split.ids, split.labels
    if labels.ndim != 1 or ids.shape != labels.shape:
        raise UserError(where, f"labels {labels.shape} and ids {ids.shape} must be of one shape (N,)")
    if not len(labels):
        raise UserError(where, "has no samples")
    if labels.dtype != np.int64 or ids.dtype.kind != "U":
        raise UserError(where, f"labels must be int64 and ids strings, not {labels.dtype} and {ids.dtype}")
    if (wrong := outside(labels, classes)) is not None:
        raise UserError(where, f"label {labels[wrong]} of sample {wrong} is outside the classes 0 to {classes - 1}")
    if len(np.unique(ids)) < len(ids):
        raise UserError(where, "ids repeat")


def outside(labels: NDArray[Any], classes: int) -> int | None:
    """Index of the first label outside 0 … classes-1, or None."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    return int(wrong[0]) if len(wrong) else None
