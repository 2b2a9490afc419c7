"""Samples of the validation split as models take them, by which engines that compute with less precision are judged.

A library has a bounded part of them, or none. They come whole or not at all: the record, written last, names the file
by its content, so that whoever replaces them disturbs no reader.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_core.errors import UserError
from ensemble_core.library.cache import Verifier
from ensemble_core.library.parsing import load_array, parse
from ensemble_core.library.records import FileDigest, Header, KeptInputs
from ensemble_core.library.store import Store

RECORD = "splits/validation/inputs.json"
FILES = "splits/validation/inputs-"  # begins the path of each file of samples
DECLINED = "splits/validation/no-inputs.json"  # says that nobody is to keep any unasked
MOST_SAMPLES = 4096
MOST_BYTES = 64 * 2**20
# By how much answers to the samples may differ from a model's stored predictions: those may be of another engine, but
# not of other samples.
REPRODUCED = 1e-3


def drawn(total: int, sample_bytes: int) -> NDArray[np.int64]:
    """Which of a split's samples are kept: indices, ascending; all of them, or as many as the bounds allow.

    Splits have an order, often that of the classes: the first samples would not stand for the rest, a seeded draw does.
    """
    count = max(1, min(total, MOST_SAMPLES, MOST_BYTES // sample_bytes))
    return np.sort(np.random.default_rng(0).permutation(total)[:count])


class Inputs:
    """The part of a library that keeps inputs."""

    store: Store
    header: Header
    _verifier: Verifier

    def inputs(self) -> KeptInputs | None:
        """Which samples of the validation split are there, none if they were never given."""
        where = f"{self.store.url}/{RECORD}"
        try:
            kept = parse(KeptInputs, self.store.read(RECORD), where)
        except FileNotFoundError:
            return None
        if kept.fingerprint != self.header.fingerprint:
            raise UserError(where, "fingerprint: is of another library, with other samples or classes")
        if list(kept.rows) != sorted(set(kept.rows)) or kept.rows[-1] >= self.header.samples["validation"]:
            raise UserError(where, "rows: must ascend within the split")
        if not kept.file.path.startswith(FILES):
            raise UserError(where, f"file.path: {kept.file.path} must begin with {FILES}")
        return kept

    def samples(self, kept: KeptInputs) -> Path:
        """A verified local `.npy` of the samples in the order of `kept.rows`; read-only."""
        file = self._verifier.file(kept.file)
        check_samples(load_array(file, self._inputs_at(kept)), len(kept.rows), self.header, self._inputs_at(kept))
        return file

    def keep_inputs(self, samples: NDArray[Any], where: str) -> KeptInputs:
        """Keep a bounded part of the validation split's samples, (N, …) in the order of its labels, in place of others.

        UserError that begins with `where`, and nothing is written, unless they are of the models' input type and shape.
        """
        kept = self._keep(samples, where)
        self.store.delete(DECLINED)
        return kept

    def keep_inputs_unasked(self, samples: NDArray[Any], where: str) -> None:
        """Keep samples as `keep_inputs` does, unless some are there or somebody has removed them, or does meanwhile."""
        if self.wants_inputs():
            self._keep(samples, where)
            self._remove_declined()

    def _keep(self, samples: NDArray[Any], where: str) -> KeptInputs:
        total = self.header.samples["validation"]
        check_samples(samples, total, self.header, where)
        rows = drawn(total, samples[:1].nbytes)
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(samples[rows]), allow_pickle=False)
        data = buffer.getvalue()
        sha256 = hashlib.sha256(data).hexdigest()
        file = FileDigest(path=f"{FILES}{sha256[:16]}.npy", sha256=sha256, bytes=len(data))
        self.store.write(file.path, data)
        return self._write_inputs(KeptInputs(file=file, rows=rows.tolist(), fingerprint=self.header.fingerprint))

    def wants_inputs(self) -> bool:
        """Whether samples are to be kept unasked: there are none, and nobody has removed them."""
        return self.inputs() is None and not self.store.list(DECLINED)

    def remove_inputs(self) -> None:
        """Delete the samples, those that others have replaced too, and keep none unasked.

        Stopped at any point, the same again deletes the rest.
        """
        self.store.write(DECLINED, b"{}")
        self.store.delete(RECORD)
        for path in self.store.list(FILES):
            self.store.delete(path)

    def copy_inputs(self, source: Inputs) -> None:
        """Take those of another library of the same data, if it has any and this one has none and may have some."""
        kept = source.inputs()
        if kept is not None and self.wants_inputs():
            self.store.upload(kept.file.path, source.samples(kept))
            self._write_inputs(kept)
            self._remove_declined()

    def _remove_declined(self) -> None:
        """Remove what was kept unasked while somebody removed samples, who may have looked before it was there."""
        if self.store.list(DECLINED):
            self.remove_inputs()

    def _write_inputs(self, kept: KeptInputs) -> KeptInputs:
        self.store.write(RECORD, kept.model_dump_json(by_alias=True).encode())
        return kept

    def _inputs_at(self, kept: KeptInputs) -> str:
        return f"{self.store.url}/{kept.file.path}"


def check_samples(samples: NDArray[Any], count: int, header: Header, where: str) -> None:
    """Raise a UserError that begins with `where` unless these are so many samples as the library's models take them."""
    wanted = (count, *header.signature.input_shape)
    if samples.dtype != np.dtype(header.signature.input_type) or samples.shape != wanted:
        raise UserError(where, f"is {samples.dtype} {samples.shape}; it must be {header.signature.input_type} {wanted}")
