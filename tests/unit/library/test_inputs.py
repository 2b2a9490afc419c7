"""Validation samples in a library: which are kept, and which are refused when they are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_core.errors import UserError
from ensemble_core.library import Library, LocalStore
from ensemble_core.library.inputs import MOST_BYTES, MOST_SAMPLES, RECORD, drawn
from ensemble_core.library.records import Header, KeptInputs

SAMPLES = np.arange(12 * 64, dtype=np.uint8).reshape(12, 8, 8, 1)


@given(st.integers(1, 3 * MOST_SAMPLES), st.integers(1, MOST_BYTES))
def test_what_is_kept_is_bounded_and_the_same_every_time(total: int, sample_bytes: int) -> None:
    rows = drawn(total, sample_bytes)
    assert len(rows) == min(total, MOST_SAMPLES, MOST_BYTES // sample_bytes)
    assert rows.tolist() == sorted(set(rows.tolist())) == drawn(total, sample_bytes).tolist()
    assert 0 <= rows[0] <= rows[-1] < total


def test_a_part_stands_for_the_whole_though_samples_are_in_the_order_of_their_classes() -> None:
    labels = np.repeat(np.arange(10), 10_000)
    counts = np.bincount(labels[drawn(len(labels), 1000)], minlength=10)
    assert counts.sum() == MOST_SAMPLES
    assert counts.min() > 0.8 * MOST_SAMPLES / 10


def test_samples_are_read_back_mapped(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemble_core.library.inputs.MOST_SAMPLES", 5)
    kept = library.keep_inputs(SAMPLES, "inputs")
    opened = Library.open(library.store)
    assert opened.inputs() == kept
    assert len(kept.rows) == 5
    assert np.array_equal(np.load(opened.samples(kept), mmap_mode="r"), SAMPLES[list(kept.rows)])
    assert opened.verify() == []


def test_a_library_without_inputs_is_whole(library: Library) -> None:
    assert library.inputs() is None
    assert library.verify() == []


def test_others_take_their_place_and_who_reads_the_first_is_not_disturbed(library: Library) -> None:
    first = library.keep_inputs(SAMPLES, "inputs")
    second = library.keep_inputs(SAMPLES[::-1], "inputs")
    assert library.inputs() == second != first
    assert np.array_equal(np.load(library.samples(first)), SAMPLES)


def test_what_models_cannot_take_is_refused_and_nothing_is_written(library: Library) -> None:
    for wrong in (SAMPLES[:11], SAMPLES.astype(np.float32), SAMPLES[..., 0]):
        with pytest.raises(UserError, match=r"^inputs: is .*; it must be uint8 \(12, 8, 8, 1\)$"):
            library.keep_inputs(wrong, "inputs")
    assert not library.store.list("splits/validation/inputs")


def test_what_was_removed_is_gone_and_comes_back_only_when_asked(library: Library) -> None:
    assert library.wants_inputs()
    for samples in (SAMPLES, SAMPLES[::-1]):
        library.keep_inputs(samples, "inputs")
    assert not library.wants_inputs()
    assert len(library.store.list("splits/validation/inputs-")) == 2
    library.remove_inputs()
    assert not library.store.list("splits/validation/inputs")  # what was replaced is gone, too
    assert library.inputs() is None
    assert not library.wants_inputs()
    library.remove_inputs()
    assert library.verify() == []
    kept = library.keep_inputs(SAMPLES, "inputs")
    assert library.inputs() == kept
    library.store.delete(RECORD)
    assert library.wants_inputs()


def _told(library: Library) -> str:
    """The one thing that is wrong with the library."""
    (told,) = Library.open(library.store).verify()
    return told.removeprefix(f"{library.store.url}/")


def test_damaged_samples_are_told(library: Library) -> None:
    kept = library.keep_inputs(SAMPLES, "inputs")
    data = library.store.read(kept.file.path)
    library.store.write(kept.file.path, data[:-1])
    assert (
        _told(library) == f"{kept.file.path}: is truncated: it has {len(data) - 1} bytes, its record says {len(data)}"
    )
    library.store.write(kept.file.path, data[:-1] + b"x")
    assert _told(library).startswith(f"{kept.file.path}: is corrupt")
    library.store.delete(kept.file.path)
    assert _told(library) == f"{kept.file.path}: is missing"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"fingerprint": "0" * 64}, "fingerprint: is of another library"),
        ({"rows": (*range(11), 12)}, "rows: must ascend within the split"),
        ({"rows": (*range(11), 0)}, "rows: must ascend within the split"),
        ({"rows": ()}, "rows: "),
    ],
)
def test_a_record_that_cannot_be_is_told(library: Library, change: dict[str, object], told: str) -> None:
    kept = library.keep_inputs(SAMPLES, "inputs")
    library.store.write(RECORD, kept.model_copy(update=change).model_dump_json(by_alias=True).encode())
    assert _told(library).startswith(f"{RECORD}: {told}")


def test_a_record_of_other_numbers_or_places_is_told(library: Library) -> None:
    kept = library.keep_inputs(SAMPLES, "inputs")

    def write(changed: KeptInputs) -> None:
        library.store.write(RECORD, changed.model_dump_json(by_alias=True).encode())

    write(kept.model_copy(update={"rows": kept.rows[:11]}))
    assert _told(library) == f"{kept.file.path}: is uint8 (12, 8, 8, 1); it must be uint8 (11, 8, 8, 1)"
    write(kept.model_copy(update={"file": kept.file.model_copy(update={"path": "splits/validation/labels.npy"})}))
    assert _told(library).startswith(f"{RECORD}: file.path: splits/validation/labels.npy must begin with")


def test_inputs_go_along_into_a_library_that_has_none(library: Library, tmp_path: Path, header: Header) -> None:
    other = Library.create(LocalStore(tmp_path / "other"), header, library.splits())
    other.copy_inputs(library)
    assert other.inputs() is None
    kept = library.keep_inputs(SAMPLES, "inputs")
    other.copy_inputs(library)
    assert other.inputs() == kept
    assert other.verify() == []
    other.remove_inputs()
    other.copy_inputs(library)
    assert other.inputs() is None
    other.keep_inputs(SAMPLES, "inputs")
    library.keep_inputs(SAMPLES[::-1], "inputs")
    other.copy_inputs(library)
    assert other.inputs() == kept


def test_a_copy_that_is_removed_while_it_is_made_is_gone(
    library: Library, tmp_path: Path, header: Header, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Library.create(LocalStore(tmp_path / "other"), header, library.splits())
    library.keep_inputs(SAMPLES, "inputs")
    upload = LocalStore.upload

    def removed_after(store: LocalStore, path: str, source: Path) -> None:
        upload(store, path, source)
        Library.open(store).remove_inputs()

    monkeypatch.setattr(LocalStore, "upload", removed_after)
    other.copy_inputs(library)
    assert other.store.list("splits/validation/inputs") == ()
    assert not other.wants_inputs()
