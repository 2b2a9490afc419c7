"""When half precision may run a model: by its accuracy on validation samples, not by how far answers are."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemble_core import engines
from ensemble_core.library.records import Accuracy, Score
from ensemble_core.profiling import child
from ensemble_core.profiling.half import CHANGED, TOLERANCE, OtherSamplesError, Truth, judge, too_far

SAMPLES = 1000
LABELS = np.arange(SAMPLES) % 2


def answers(right: float, wrong: int = 0) -> Any:
    """Of two classes: the true one gets `right`, but for the first samples."""
    given = np.full(SAMPLES, right, np.float32)
    given[:wrong] = 1 - right
    rows = np.stack([given, 1 - given], axis=1)
    return np.where(LABELS[:, None] == 0, rows, rows[:, ::-1]).astype(np.float32)


def truth(predictions: Any) -> Truth:
    return Truth("library/inputs.npy", Path("inputs.npy"), "0" * 64, LABELS, predictions)


def judged(float32: Any, half: Any) -> dict[str, Any]:
    return judge("m", truth(float32), float32, half)


def test_a_model_that_stays_as_good_is_used_however_far_its_answers_are() -> None:
    found = judged(answers(0.8), answers(0.95))
    assert "refused" not in found
    assert found["largest_difference"] == pytest.approx(0.15, abs=1e-6)
    accuracy = found["accuracy"]
    assert (accuracy.samples, accuracy.changed) == (SAMPLES, 0.0)
    assert (accuracy.float32.error, accuracy.half.error) == (0.0, 0.0)
    assert accuracy.float32.cross_entropy == pytest.approx(-np.log(0.8), abs=1e-6)
    assert accuracy.half.cross_entropy == pytest.approx(-np.log(0.95), abs=1e-6)


@pytest.mark.parametrize(
    ("samples", "entropy", "errors", "changed", "refused"),
    [
        (4000, 0.0, 0, 0.0, False),
        (4000, 0.999 * TOLERANCE, 4, CHANGED, False),
        (4000, -0.1, -400, 0.0, False),
        (4000, 1.001 * TOLERANCE, 0, 0.0, True),
        (4000, 0.0, 5, 0.0, True),
        (4000, -0.1, -400, 1.001 * CHANGED, True),
        (960, 0.0, 1, 0.0, False),  # fewer samples cannot tell 0.001: one error more is allowed
        (960, 0.0, 2, 0.0, True),
    ],
)
def test_what_is_too_far(samples: int, entropy: float, errors: int, changed: float, refused: bool) -> None:
    half = Score(cross_entropy=0.5 + entropy, error=0.2 + errors / samples)
    accuracy = Accuracy(samples=samples, float32=Score(cross_entropy=0.5, error=0.2), half=half, changed=changed)
    assert too_far(accuracy) is refused


def test_a_model_that_gets_worse_is_refused_with_both_scores() -> None:
    found = judged(answers(0.8), answers(0.8, wrong=20))
    assert found["accuracy"].changed == 0.02
    assert found["refused"] == (
        "cross-entropy 0.2509 (0.2231 in float32), error 2.00% (0.00%), another class for 2.00% of 1000 validation "
        "samples; 0.001 more of either and 1% are allowed"
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_answers_that_are_no_numbers_are_refused(value: float) -> None:
    half = answers(0.8)
    half[3] = value
    assert judged(answers(0.8), half) == {"refused": "answers that are no finite numbers"}


@pytest.mark.parametrize("float32", [answers(0.8)[::-1].copy(), answers(0.8)[:, :1], answers(0.8) * np.nan])
def test_samples_to_which_the_model_answers_otherwise_than_it_predicted_are_an_error(float32: Any) -> None:
    with pytest.raises(OtherSamplesError, match=r"^library/inputs\.npy: these validation samples do not go with the"):
        judge("m", truth(answers(0.8)), float32, answers(0.8))
    judge("m", truth(answers(0.8)), answers(0.8005), answers(0.8))  # of another engine, trained there


def test_an_engine_that_the_cpu_does_not_have_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "cpu_precisions", lambda: frozenset({"FP32", "BF16"}))
    assert engines.version_of("openvino-bf16") == engines.version_of("openvino") is not None
    assert engines.why_not("openvino-bf16") is None
    assert engines.version_of("openvino-fp16") is None
    assert engines.why_not("openvino-fp16") == "this CPU does not compute in FP16"
    with pytest.raises(engines.NotInstalledError, match="the engine openvino-fp16 is not here"):
        engines.loader("openvino-fp16")
    monkeypatch.setattr(engines, "_tensorrt_version", lambda: None)
    assert engines.why_not("tensorrt-fp16") == "tensorrt is not installed"


def test_what_must_reproduce_the_predictions_is_computed_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On GPUs ONNX Runtime may compute float32 in TF32."""
    places: list[tuple[str, int | None, tuple[int, ...]]] = []

    def loader(engine: engines.Engine) -> engines.Loader:
        def load(path: Path, place: engines.Place) -> engines.Model:
            places.append((engine, place.gpu, place.cores))
            return engines.Model(np.dtype(np.uint8), (1,), lambda rows: np.ones((len(rows), 2), np.float32))

        return load

    monkeypatch.setattr(engines, "loader", loader)
    monkeypatch.setattr(child, "_gpu_memory", lambda gpu: 0.0)
    monkeypatch.setattr(child, "metered", lambda gpu: lambda: None)
    np.save(tmp_path / "inputs.npy", np.zeros((10, 1), np.uint8))
    core = min(os.sched_getaffinity(0))
    settings = child.Settings("m.onnx", "uint8", [1], [core], 0, [4], "tensorrt-fp16")
    child.measure(replace(settings, inputs=str(tmp_path / "inputs.npy"), answers=str(tmp_path)))
    assert places == [("tensorrt-fp16", 0, ()), ("onnxruntime", None, (core,))]
    assert np.load(tmp_path / "float32.npy").shape == (10, 2)
