"""Reading labelled images as the user has them: arrays, folders of images, and the built-in sets.

Everything here checks and never repairs: what cannot be used is a UserError that names the file and the field in it.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from ensemble_core.errors import UserError
from ensemble_trainer import procedural

Array = npt.NDArray[Any]
PARTS = ("train", "validation", "heldout")


@dataclass(frozen=True)
class Part:
    """Labelled samples: images [N,H,W,C] uint8 or float32, labels int64 [N], ids str [N]."""

    images: Array
    labels: npt.NDArray[np.int64]
    ids: npt.NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Array) -> Part:
        return Part(self.images[indices], self.labels[indices], self.ids[indices])


@dataclass(frozen=True)
class Source:
    """Samples with the parts that came divided; `train` alone when nothing did."""

    where: str
    parts: Mapping[str, Part]
    class_names: tuple[str, ...]


def digits() -> Source:
    """scikit-learn's digits, 1797 images [8,8,1] with its own values 0..16 as uint8."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = bunch.images.astype(np.uint8)[..., None]
    part = Part(images, bunch.target.astype(np.int64), numbered("digits", len(images)))
    return Source("spec.dataset.builtin", {"train": part}, tuple(str(name) for name in bunch.target_names))


def drawn(samples: int, seed: int) -> Source:
    """The procedural set of `procedural.draw`."""
    images, labels = procedural.draw(samples, seed)
    part = Part(images, labels, numbered(f"procedural-{seed}", samples))
    return Source("spec.dataset.procedural", {"train": part}, procedural.CLASS_NAMES)


def numbered(prefix: str, count: int) -> npt.NDArray[np.str_]:
    return np.array([f"{prefix}-{i:06d}" for i in range(count)])


# --- arrays ---------------------------------------------------------------------------------------------------------


def arrays(path: Path) -> Source:
    """An `.npz`, or a folder of `.npy` files and `classNames.json`.

    Fields: `images` [N,H,W,C] or [N,H,W], `labels` [N], optional `ids` [N] and `classNames` [classes]; the same with
    the suffix `_validation` or `_heldout` for samples that come divided.
    """
    fields = _Fields(path)
    parts = {}
    for name in PARTS:
        suffix = "" if name == "train" else f"_{name}"
        given = [f for f in ("images", "labels") if fields.has(f + suffix)]
        if name == "train" or given:
            parts[name] = _array_part(fields, suffix, name)
    shapes = {(*part.images.shape[1:], part.images.dtype) for part in parts.values()}
    if len(shapes) > 1:
        raise UserError(fields.where("images"), "the parts' images differ in shape or type")
    return Source(str(path), parts, _class_names(fields, parts))


class _Fields:
    """The named arrays of an `.npz` file or of a folder."""

    def __init__(self, path: Path) -> None:
        self.path, self.folder = path, path.is_dir()
        if not path.exists():
            raise UserError("spec.dataset.arrays", f"{path} does not exist")
        if self.folder:
            self.names = {file.stem for file in path.glob("*.npy")}
            return
        wrong = "is neither an .npz file nor a folder of .npy files"
        try:
            if not zipfile.is_zipfile(path):
                raise UserError(str(path), wrong)
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                self.names = set(archive.files)
        except (ValueError, OSError, AttributeError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(str(path), f"{wrong} ({error})") from error

    def has(self, name: str) -> bool:
        return name in self.names

    def where(self, name: str) -> str:
        return str(self.path / f"{name}.npy") if self.folder else f"{self.path}: {name}"

    def read(self, name: str) -> Array:
        if not self.has(name):
            raise UserError(self.where(name), f"is missing; there are: {', '.join(sorted(self.names)) or 'no arrays'}")
        try:
            if self.folder:
                array: Array = np.load(self.path / f"{name}.npy", mmap_mode="c", allow_pickle=False)
                return array
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                return np.asarray(archive[name])
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            pickled = "holds Python objects (pickle), which are never loaded; save it as an array of numbers or texts"
            told = pickled if "allow_pickle" in str(error) else f"cannot be read: {error}"
            raise UserError(self.where(name), told) from error


def _array_part(fields: _Fields, suffix: str, name: str) -> Part:
    images = _images(fields.read(f"images{suffix}"), fields.where(f"images{suffix}"))
    labels = fields.read(f"labels{suffix}")
    where = fields.where(f"labels{suffix}")
    if labels.shape != (len(images),):
        raise UserError(where, f"has shape {list(labels.shape)}; {len(images)} images need [{len(images)}]")
    if not np.issubdtype(labels.dtype, np.integer):
        raise UserError(where, f"has type {labels.dtype}; labels are integers from 0")
    if fields.has(f"ids{suffix}"):
        ids = fields.read(f"ids{suffix}").astype(str)
        if ids.shape != labels.shape or len(set(ids.tolist())) != len(ids):
            raise UserError(fields.where(f"ids{suffix}"), f"must be {len(labels)} different ids")
    else:
        ids = numbered(name if suffix else "sample", len(labels))
    return Part(images, labels.astype(np.int64), ids)


def _images(images: Array, where: str) -> Array:
    if images.ndim not in (3, 4) or 0 in images.shape[1:]:
        raise UserError(where, f"has shape {list(images.shape)}; it must be [N,H,W,C] or [N,H,W]")
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise UserError(where, f"has type {images.dtype}; allowed: uint8 or floating point")
    if images.dtype != np.uint8:
        with np.errstate(over="ignore"):  # becomes infinite, which the next lines find
            images = images.astype(np.float32, copy=False)
        finite = np.isfinite(images.reshape(len(images), -1)).all(axis=1)
        if not finite.all():
            raise UserError(where, f"sample {int(np.argmin(finite))} contains NaN, or values beyond float32")
    return images[..., None] if images.ndim == 3 else images


def _class_names(fields: _Fields, parts: Mapping[str, Part]) -> tuple[str, ...]:
    names = _given_class_names(fields)
    known = len(names) if names else max((int(p.labels.max(initial=-1)) for p in parts.values()), default=-1) + 1
    for part, samples in parts.items():
        where = fields.where("labels" if part == "train" else f"labels_{part}")
        outside = np.flatnonzero((samples.labels < 0) | (samples.labels >= known))
        if len(outside):
            index = int(outside[0])
            raise UserError(where, f"sample {index} has label {samples.labels[index]}, outside the {known} classes")
    if names:
        return names
    present = np.unique(np.concatenate([p.labels for p in parts.values()]))
    if len(present) != known:
        absent = next(i for i in range(known) if i not in present)
        problem = f"has no sample of class {absent}, but of {known - 1}; number classes from 0 or give classNames"
        raise UserError(fields.where("labels"), problem)
    return tuple(str(i) for i in range(known))


def _given_class_names(fields: _Fields) -> tuple[str, ...]:
    file = fields.path / "classNames.json"
    where = str(file)
    if fields.folder and file.exists():
        try:
            names = json.loads(file.read_text())
        except ValueError as error:
            raise UserError(where, f"is not JSON: {error}") from error
    elif fields.has("classNames"):
        where, names = fields.where("classNames"), fields.read("classNames").tolist()
    else:
        return ()
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names) or len(set(names)) != len(names):
        raise UserError(where, "must be a list of different names")
    return tuple(names)


# --- folders of images ----------------------------------------------------------------------------------------------


def image_folder(path: Path, size: int | None) -> Source:
    """One folder of images per class, the classes in the order of their names; images become RGB uint8.

    Hidden files are ignored; any other file must be an image. All get `size`×`size` pixels; without it they must agree.
    """
    if not path.is_dir():
        raise UserError("spec.dataset.imageFolder", f"{path} is not a folder")
    folders = sorted(f for f in path.iterdir() if f.is_dir() and not f.name.startswith("."))
    files = [(f, label) for label, folder in enumerate(folders) for f in _files(folder)]
    if not files:
        raise UserError(str(path), "has no folders with images, one per class")
    images = [_decode(file, size) for file, _ in files]
    height, width, _ = images[0].shape
    for image, (file, _) in zip(images, files, strict=True):
        if image.shape != images[0].shape:
            found = f"{image.shape[1]}×{image.shape[0]} pixels, others {width}×{height}"
            raise UserError(str(file), f"has {found}; set spec.dataset.imageSize to resize all")
    ids = np.array([file.relative_to(path).as_posix() for file, _ in files])
    part = Part(np.stack(images), np.array([label for _, label in files], np.int64), ids)
    return Source(str(path), {"train": part}, tuple(folder.name for folder in folders))


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file() and not f.name.startswith("."))


def _decode(file: Path, size: int | None) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(file) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(str(file), f"is not an image that can be read: {error}") from error
    if size is not None:
        upright = upright.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(upright)


def source_digest_parts(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of a file, or of every file below a folder: what a cached copy depends on."""
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    return [(str(f.relative_to(path.parent)), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
