"""Whether the endpoint answers what the members predicted: the served ensemble is the selected one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ensemble_core.library.library import Library
from ensemble_core.report import CommandError
from ensemble_core.selection.result import MemberResult
from ensemble_core.serving.client import predict

Probabilities = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Answers:
    """What the endpoint said about the held-out samples.

    Args:
        probabilities: Its answers, float32 [N,C].
        largest_difference: Of any of them from the weighted mean of the members' stored predictions.
    """

    probabilities: Probabilities
    largest_difference: float


def ask_heldout(
    url: str, model: str, folder: Path, libraries: Sequence[Library], members: Sequence[MemberResult]
) -> Answers:
    """Send the raw held-out samples as a client would, and compare.

    Args:
        url: The endpoint's gRPC address.
        model: Name of the front model.
        folder: With `images.npy` and `ids.npy` of the held-out split.
        libraries: The selection's sources.
        members: The ensemble.

    Raises:
        CommandError: The samples are not those of the library.
    """
    images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
    ids = np.load(folder / "ids.npy", allow_pickle=False)
    if not np.array_equal(ids, libraries[0].ids("heldout")):
        raise CommandError(f"{folder / 'ids.npy'}: these are not the held-out samples of {libraries[0].store.url}")
    answers = predict(url, model, np.asarray(images))
    return Answers(answers, largest_difference(answers, expected(libraries, members)))


def expected(libraries: Sequence[Library], members: Sequence[MemberResult]) -> npt.NDArray[np.float64]:
    """The weighted mean [N,C] of the members' stored held-out predictions."""
    parts = [
        member.weight
        * libraries[member.library]
        .predictions(libraries[member.library].model(member.model_id), "heldout")
        .astype(np.float64)
        for member in members
    ]
    total: npt.NDArray[np.float64] = np.sum(parts, axis=0)
    return total


def largest_difference(answers: Probabilities, wanted: npt.NDArray[np.float64]) -> float:
    """The largest absolute difference; infinite if shapes differ or an answer is not a number."""
    if answers.shape != wanted.shape or not np.isfinite(answers).all():
        return float("inf")
    return float(np.abs(answers - wanted).max(initial=0.0))
