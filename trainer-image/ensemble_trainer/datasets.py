"""The data set of a search: read once per node, divided with a seed, and shared by its processes as mapped files."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from ensemble_core.api.hposearch import Dataset as DatasetSpec
from ensemble_core.errors import UserError
from ensemble_core.frozen import canonical, digest
from ensemble_core.library.records import Header, Signature, Split
from ensemble_core.library.splits import LabelledIds, make_header
from ensemble_trainer import sources
from ensemble_trainer.sources import PARTS, Part, Source
from ensemble_trainer.splits import stratified

FORMAT = 1  # of the cache; a change makes it anew
BLOCK = 1 << 21  # values made float64 at a time


@dataclass(frozen=True)
class Dataset:
    """Three disjoint parts with the same classes, image shape and type."""

    train: Part
    validation: Part
    heldout: Part
    class_names: tuple[str, ...]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        height, width, channels = self.train.images.shape[1:]
        return int(height), int(width), int(channels)

    @property
    def input_type(self) -> Literal["uint8", "float32"]:
        return "uint8" if self.train.images.dtype == np.uint8 else "float32"

    @cached_property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel of the training samples; a constant channel has 1."""
        images, totals, squares = self.train.images, np.zeros(()), np.zeros(())
        blocks = -(-images.size // BLOCK)
        for block in np.array_split(images, min(blocks, len(images))):
            values = block.reshape(-1, block.shape[-1]).astype(np.float64)
            totals, squares = totals + values.sum(axis=0), squares + (values**2).sum(axis=0)
        count = images.size // images.shape[-1]
        mean = totals / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 0))
        std = np.where(std > 1e-6 * np.maximum(1, np.abs(mean)), std, 1)
        return tuple(mean.tolist()), tuple(std.tolist())

    def header(self) -> Header:
        """What every model trained on it has in common; its fingerprint is of the splits that models are scored on."""
        signature = Signature(input_type=self.input_type, input_shape=self.input_shape, classes=len(self.class_names))
        return make_header(signature, self.class_names, self.labels())

    def labels(self) -> dict[Split, LabelledIds]:
        """What models are scored against, as the library stores it."""
        return {split: LabelledIds(part.ids, part.labels) for split, part in self._scored().items()}

    def _scored(self) -> dict[Split, Part]:
        return {"validation": self.validation, "heldout": self.heldout}


def load_dataset(spec: DatasetSpec, cache: Path | None) -> Dataset:
    """Read, check and divide a data set.

    Args:
        spec: The source and how to divide what does not come divided. Percentages are of the samples that are not
            divided yet.
        cache: A folder of this node. The arrays are written there once and memory-mapped, so that processes share the
            pages; what is there is used as long as the source's files keep their size and time. Without it the arrays
            are in the memory of this process.

    Raises:
        UserError: missing or unreadable files, wrong shapes or types, NaN, labels outside the classes, fewer than two
            classes, an empty part.
    """
    if cache is None:
        with tempfile.TemporaryDirectory() as scratch:
            return _divided(_read(spec, _local(spec, Path(scratch))), spec)
    cache.mkdir(parents=True, exist_ok=True)
    path = _local(spec, cache)
    files = sources.source_digest_parts(path) if path is not None and path.exists() else []
    key = digest({"format": FORMAT, "spec": spec.document(), "path": str(path), "files": files})
    folder = cache / key
    with _locked(cache / f"{key}.lock"):
        if not folder.exists():
            dataset = _divided(_read(spec, path), spec)
            with _complete(folder) as scratch:
                _write(dataset, scratch)
    return _mapped(folder)


def _read(spec: DatasetSpec, path: Path | None) -> Source:
    if spec.builtin is not None:
        return sources.digits()
    if spec.procedural is not None:
        return sources.drawn(spec.procedural.samples, spec.procedural.seed)
    assert path is not None
    if spec.arrays is not None:
        return sources.arrays(path)
    return sources.image_folder(path, spec.image_size)


def _divided(source: Source, spec: DatasetSpec) -> Dataset:
    if len(source.class_names) < 2:
        found = "1 class" if source.class_names else "no samples"
        raise UserError(source.where, f"has {found}; classification needs at least 2")
    parts = dict(source.parts)
    percents = {"validation": spec.split.validation_percent, "heldout": spec.split.heldout_percent}
    missing = [name for name in percents if name not in parts]
    if missing:
        rest = parts["train"]
        chosen = stratified(rest.labels, tuple(percents[name] for name in missing), spec.split.seed)
        parts.update((name, rest.take(indices)) for name, indices in zip([*missing, "train"], chosen, strict=True))
    for name in PARTS:
        least = 2 if name == "train" else 1  # normalisation over a batch needs two
        if len(parts[name]) < least:
            count = len(parts[name])
            problem = f"the {name} split has {count} sample{'s' if count != 1 else ''}; it needs at least {least}"
            raise UserError(source.where, f"{problem} (spec.dataset.split)")
    return Dataset(parts["train"], parts["validation"], parts["heldout"], source.class_names)


# --- the node's cache -----------------------------------------------------------------------------------------------


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process of the node at a time; the lock ends with the process that holds it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _complete(folder: Path) -> Iterator[Path]:
    """A scratch folder that becomes `folder` when all is written: what exists is complete."""
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        yield scratch
        os.rename(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write(dataset: Dataset, folder: Path) -> None:
    for name in PARTS:
        part: Part = getattr(dataset, name)
        np.save(folder / f"{name}-images.npy", part.images)
        np.save(folder / f"{name}-labels.npy", part.labels)
        np.save(folder / f"{name}-ids.npy", part.ids)
    (folder / "classNames.json").write_bytes(canonical(list(dataset.class_names)))


def _mapped(folder: Path) -> Dataset:
    train, validation, heldout = (
        Part(
            # Copy-on-write: torch takes writable arrays only, and nobody writes.
            np.load(folder / f"{name}-images.npy", mmap_mode="c", allow_pickle=False),
            np.load(folder / f"{name}-labels.npy", allow_pickle=False),
            np.load(folder / f"{name}-ids.npy", allow_pickle=False),
        )
        for name in PARTS
    )
    names = json.loads((folder / "classNames.json").read_bytes())
    return Dataset(train, validation, heldout, tuple(names))


def _local(spec: DatasetSpec, cache: Path) -> Path | None:
    """The source as a local path; of a storage it is fetched once, so stored data sets must not change in place."""
    given = spec.arrays or spec.image_folder
    if given is None:
        return None
    if spec.storage is None:
        return Path(given)
    folder = cache / f"source-{digest({'storage': spec.storage.document(), 'path': given})}"
    with _locked(cache / f"{folder.name}.lock"):
        if not folder.exists():
            _fetch(spec, given.strip("/"), folder)
    return folder / given.strip("/")


def _fetch(spec: DatasetSpec, given: str, folder: Path) -> None:
    from ensemble_core.library.store import open_store

    assert spec.storage is not None
    store = open_store(spec.storage, "spec.dataset.storage")
    paths = [p for p in store.list(given) if p == given or p.startswith(f"{given}/")]
    if not paths:
        field = "arrays" if spec.arrays else "imageFolder"
        raise UserError(f"spec.dataset.{field}", f"{store.url} has nothing at {given}")
    with _complete(folder) as scratch:
        for path in paths:
            (scratch / path).parent.mkdir(parents=True, exist_ok=True)
            store.download(path, scratch / path)
