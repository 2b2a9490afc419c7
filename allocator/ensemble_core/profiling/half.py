"""Whether an engine of half precision may run a model: by the validation samples that its library keeps.

Such an engine changes answers on purpose. What counts is whether the model is still as good, by what selections go by,
and on how many samples it changes its mind.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_core.engines import HALF
from ensemble_core.errors import UserError
from ensemble_core.library.inputs import REPRODUCED
from ensemble_core.library.library import Library
from ensemble_core.library.records import Accuracy, KeptInputs, ModelRecord, Score
from ensemble_core.metrics import metrics

TOLERANCE = 0.001  # by which cross-entropy, in nats, and error may be worse than in float32; error by one sample always
CHANGED = 0.01  # share of samples that may get another class
ALLOWED = f"{TOLERANCE} more of either and {CHANGED:.0%} are allowed"
LEAST_SAMPLES = 100  # that judge: of fewer, one that gets another class is more than CHANGED already
NO_INPUTS = (
    "keeps no validation samples, by which half precision is checked: run `ensemble train` of its search again, or "
    "`ensemble library inputs`"
)

Floats = NDArray[np.float32]


class OtherSamplesError(UserError):
    """The samples that a library keeps are not those that a model was scored on."""


@dataclass(frozen=True)
class Truth:
    """Validation samples of a library, and what is known of a model's answers to them.

    Args:
        where: The library, for messages.
        inputs: A `.npy` of the samples, (n, …).
        sha256: Of that file.
        labels: True classes, (n,).
        predictions: The model's stored predictions for them, (n, C).
    """

    where: str
    inputs: Path
    sha256: str
    labels: NDArray[np.int64]
    predictions: Floats


def truth_of(library: Library, record: ModelRecord) -> Truth:
    """What a model is judged by; UserError if its library keeps no validation samples, or too few."""
    kept = _judges(library)
    rows = np.array(kept.rows)
    return Truth(
        where=f"{library.store.url}/{kept.file.path}",
        inputs=library.samples(kept),
        sha256=kept.file.sha256,
        labels=library.labels("validation")[rows],
        predictions=library.predictions(record, "validation")[rows],
    )


def judged_by(library: Library, engine: str) -> str | None:
    """Digest of the samples by which a library's models are judged with an engine, none if it computes in float32.

    UserError if the library keeps none, or too few.
    """
    return _judges(library).file.sha256 if engine in HALF else None


def _judges(library: Library) -> KeptInputs:
    kept = library.inputs()
    if kept is None:
        raise UserError(library.store.url, NO_INPUTS)
    if len(kept.rows) < LEAST_SAMPLES:
        problem = f"keeps {len(kept.rows)} validation samples; half precision is checked by {LEAST_SAMPLES} at least"
        raise UserError(library.store.url, problem)
    return kept


def judge(model: str, truth: Truth, float32: Floats, half: Floats) -> dict[str, Any]:
    """What a profile says of a model's answers (n, C) in half precision; `refused` says why, if it is not used.

    OtherSamplesError if the answers in float32 are not the stored predictions: then the labels are of other samples.
    """
    largest = _distance(float32, truth.predictions)
    if not largest <= REPRODUCED:
        raise OtherSamplesError(
            truth.where,
            f"these validation samples do not go with the predictions of {model}, which in float32 answers to them by "
            f"up to {largest:.2g} otherwise ({REPRODUCED:g} is allowed): `ensemble library inputs` replaces them",
        )
    if half.shape != float32.shape or not np.isfinite(half).all():
        return {"refused": "answers that are no finite numbers"}
    accuracy = accuracy_of(truth.labels, float32, half)
    found: dict[str, Any] = {"accuracy": accuracy, "largest_difference": _distance(half, float32)}
    if too_far(accuracy):
        found["refused"] = f"{words(accuracy)}; {ALLOWED}"
    return found


def accuracy_of(labels: NDArray[np.int64], float32: Floats, half: Floats) -> Accuracy:
    """Of answers (n, C) in float32 and in half precision, given the true classes (n,)."""
    return Accuracy(
        samples=len(half),
        float32=_score(float32, labels),
        half=_score(half, labels),
        changed=float((half.argmax(axis=1) != float32.argmax(axis=1)).mean()),
    )


def too_far(accuracy: Accuracy) -> bool:
    """Whether a model is worse in half precision than is allowed, or another one."""
    half, float32 = accuracy.half, accuracy.float32
    more_errors = round((half.error - float32.error) * accuracy.samples)
    return not (
        half.cross_entropy <= float32.cross_entropy + TOLERANCE
        and more_errors <= max(1, TOLERANCE * accuracy.samples)
        and accuracy.changed <= CHANGED
    )


def words(accuracy: Accuracy, split: str = "validation") -> str:
    """An accuracy as people read it."""
    half, float32 = accuracy.half, accuracy.float32
    return (
        f"cross-entropy {half.cross_entropy:.4f} ({float32.cross_entropy:.4f} in float32), "
        f"error {half.error:.2%} ({float32.error:.2%}), another class for {accuracy.changed:.2%} "
        f"of {accuracy.samples} {split} samples"
    )


def _distance(one: Floats, other: Floats) -> float:
    """The largest difference; infinite if shapes differ or there is none, for one is no number."""
    if one.shape != other.shape:
        return float("inf")
    largest = float(np.abs(one - other).max(initial=0.0))
    return largest if np.isfinite(largest) else float("inf")


def _score(answers: Floats, labels: NDArray[np.int64]) -> Score:
    found = metrics(answers, labels)
    return Score(cross_entropy=found.cross_entropy, error=found.error)
