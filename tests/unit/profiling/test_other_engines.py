"""What is done with an engine's answers, and which stored profiles still count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ensemble_core.commands.profile import _sizes, table
from ensemble_core.errors import UserError
from ensemble_core.library.records import Accuracy, BatchProfile, Profile, Score
from ensemble_core.profiling.child import AGREEMENT, difference
from ensemble_core.profiling.measure import lacking

EXPECTED = [np.float32([[0.9, 0.1], [0.2, 0.8]]), np.float32([[0.5, 0.5]])]


def changed(by: float) -> list[Any]:
    return [EXPECTED[0] + np.float32([[0, by], [0, 0]]), EXPECTED[1]]


def test_answers_that_are_close_are_told_with_their_difference() -> None:
    found = difference(EXPECTED, changed(5e-6), 1e-5)
    assert found == {"largest_difference": pytest.approx(5e-6, rel=0.01), "agreement": 1.0}


def test_answers_that_differ_are_refused() -> None:
    found = difference(EXPECTED, changed(2e-5), 1e-5)
    assert found["refused"] == (
        "answers differ by up to 2e-05 from those of ONNX Runtime (1e-05 is allowed), with the same class for 100.0% "
        "of samples"
    )
    # Of large answers, as logits are, a part in so many.
    large = [1000 * each for each in EXPECTED]
    assert "refused" not in difference(large, [each + 5e-3 for each in large], 1e-5)
    assert "refused" in difference(large, [each + 2e-2 for each in large], 1e-5)


def test_answers_of_other_classes_are_refused_however_close() -> None:
    ties = [np.full((200, 2), 0.5, np.float32)]
    others = [ties[0].copy()]
    few, many = round(200 * (1 - AGREEMENT)), round(200 * (1 - AGREEMENT)) + 1
    others[0][:few, 1] += 1e-6
    assert "refused" not in difference(ties, others, 1e-5)
    others[0][:many, 1] += 1e-6
    assert "the same class for 98.5% of samples" in difference(ties, others, 1e-5)["refused"]


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (changed(np.nan), "no finite numbers"),
        (changed(np.inf), "no finite numbers"),
        ([EXPECTED[0][:, :1], EXPECTED[1]], "answers of shape (2, 1), not (2, 2)"),
    ],
)
def test_answers_that_cannot_be_compared_are_refused(answers: list[Any], words: str) -> None:
    assert words in difference(EXPECTED, answers, 1e-5)["refused"]


def test_a_model_without_answers_has_none_with_either_engine() -> None:
    nothing = [np.full((2, 2), np.nan, np.float32)]
    assert difference(nothing, nothing, 1e-5) == {"largest_difference": 0.0, "agreement": 1.0}


def profile(refused: str | None = None, *sizes: int) -> Profile:
    return Profile(
        model="m", model_sha256="a" * 64, device_type="x", engine="openvino", engine_version="1", cores=1,
        load_seconds=0.25, refused=refused, batches=tuple(map(batch, sizes)),
    )  # fmt: skip


def batch(size: int) -> BatchProfile:
    energy = 7 if size > 8 else None
    return BatchProfile(batch_size=size, passes=(0.5,), seconds=0.5, memory_mib=99.6, energy_joules=energy)


def test_what_a_stored_profile_lacks() -> None:
    wanted = {8, 32}
    assert lacking(None, "a" * 64, "1", wanted) == wanted
    assert lacking(profile(None, 8), "a" * 64, "1", wanted) == {32}
    assert lacking(profile(None, 8, 32, 64), "a" * 64, "1", wanted) == set()
    assert lacking(profile(None, 8, 32), "b" * 64, "1", wanted) == wanted
    assert lacking(profile(None, 8, 32), "a" * 64, "2", wanted) == wanted
    assert lacking(profile("no"), "a" * 64, "1", wanted) == set()
    assert lacking(profile("no"), "a" * 64, "2", wanted) == wanted


def test_a_profile_judged_by_other_samples_lacks_everything() -> None:
    judged = profile("no").model_copy(update={"inputs": "c" * 64})
    assert lacking(judged, "a" * 64, "1", {8}, "c" * 64) == set()
    assert lacking(judged, "a" * 64, "1", {8}, "d" * 64) == {8}
    assert lacking(profile(None, 8), "a" * 64, "1", {8}, "c" * 64) == {8}


def test_a_profile_without_measurements_says_why() -> None:
    with pytest.raises(ValueError, match="no batch size was measured"):
        profile()
    assert profile("no").batches == ()


def test_the_table_has_a_row_for_each_batch_size_and_says_what_an_engine_is_not_for() -> None:
    assert table([profile(None, 8, 32), profile("does not support Det")]) == [
        "MODEL  ENGINE    BATCH  SAMPLES/S  MS A BATCH  MIB  LOAD S  J FOR 2000",
        "m      openvino      8      4,000           2  100    0.25           -",
        "m      openvino     32      4,000           8  100    0.25           7",
        "m is not for openvino: does not support Det",
    ]
    accuracy = Accuracy(
        samples=800,
        float32=Score(cross_entropy=0.07171, error=0.0242),
        half=Score(cross_entropy=0.07196, error=0.02545),
        changed=0.00125,
    )
    half = profile(None, 8).model_copy(update={"engine": "openvino-bf16", "accuracy": accuracy})
    assert table([half])[2:] == [
        "m by openvino-bf16: cross-entropy 0.0720 (0.0717 in float32), error 2.54% (2.42%), "
        "another class for 0.12% of 800 validation samples"
    ]
    assert table([]) == []


def test_what_was_measured_beside_other_processes_is_marked_and_explained_once() -> None:
    """As much as lets a round be repeated when it is measured."""
    kept = profile(None, 8, 16, 32)
    loads = zip(kept.batches, (0.1, 0.11, 1.5), strict=True)
    busy = kept.model_copy(
        update={"batches": tuple(each.model_copy(update={"foreign_cores": cores}) for each, cores in loads)}
    )
    _, *rows, explained = table([busy])
    assert [row[-3:] for row in rows] == ["  -", "  *", "  *"]
    assert explained.startswith("* measured while other processes used more than 0.1 of the device's cores, ")
    assert "profiles/x in the library" in explained


def test_batch_sizes_to_compare() -> None:
    assert _sizes("") == ()
    assert _sizes("1, 32") == (1, 32)
    for wrong in ("0", "8,", "8,x", "5000", "-1"):
        with pytest.raises(UserError, match="must be a batch size from 1 to 4096"):
            _sizes(wrong)
