"""Whether the endpoint answers what the members predicted: the served ensemble is the selected one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ensemble_core.api.ensembledeployment import Serving
from ensemble_core.library.library import Library
from ensemble_core.library.records import Accuracy, Metrics
from ensemble_core.metrics import metrics
from ensemble_core.profiling.half import CHANGED, accuracy_of, words
from ensemble_core.report import CommandError
from ensemble_core.selection.result import MemberResult
from ensemble_core.serving.backends.averaging.routing import Combiner, Rule
from ensemble_core.serving.client import predict

TOLERANCE = 1e-5  # of the endpoint's answers
OFF = 0.01  # nats by which half precision may change cross-entropy: what changes it further are other members
CHANCE = 3.0  # standard deviations by which more samples may get another class than of those that members are judged by

Probabilities = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Answers:
    """What the endpoint said about the held-out samples.

    Args:
        samples: How many they are.
        largest_difference: Of any answer from the members' stored predictions, combined as the deployment says.
        problem: Why these are not the answers of those members; none if they are.
        accuracy: Of the answers beside those of the stored predictions, where members compute in half precision: by
            that they are judged then, not by how far they are.
        heldout: The ensemble's quality, where that is not the one that the selection tells.
    """

    samples: int
    largest_difference: float
    problem: str | None
    accuracy: Accuracy | None
    heldout: Metrics | None


def ask_heldout(
    url: str,
    model: str,
    folder: Path,
    libraries: Sequence[Library],
    members: Sequence[MemberResult],
    serving: Serving,
    in_half: bool = False,
) -> Answers:
    """Send the raw held-out samples as a client would, and compare.

    Args:
        url: The endpoint's gRPC address.
        model: Name of the front model.
        folder: With `images.npy` and `ids.npy` of the held-out split.
        libraries: The selection's sources.
        members: The ensemble.
        serving: How it is served.
        in_half: Whether members compute in half precision.

    Raises:
        CommandError: The samples are not those of the library.
    """
    images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
    ids = np.load(folder / "ids.npy", allow_pickle=False)
    if not np.array_equal(ids, libraries[0].ids("heldout")):
        raise CommandError(f"{folder / 'ids.npy'}: these are not the held-out samples of {libraries[0].store.url}")
    stored = [
        libraries[member.library].predictions(libraries[member.library].model(member.model_id), "heldout")
        for member in members
    ]
    weights = weights_of(members, serving)
    wanted = expected(stored, weights, serving)
    answers = predict(url, model, np.asarray(images))
    labels = libraries[0].labels("heldout")
    votes = serving.combiner == "vote"
    largest = largest_difference(answers, wanted, ~undecided(stored, TOLERANCE) if votes else slice(None))
    # Without numbers there is no accuracy: the difference is infinite then.
    accuracy = accuracy_of(labels, wanted, answers) if in_half and np.isfinite(largest) else None
    return Answers(
        samples=len(answers),
        largest_difference=largest,
        problem=_problem(largest, serving) if accuracy is None else _change(accuracy, votes),
        accuracy=accuracy,
        heldout=None if _as_selected(members, weights, serving) else metrics(wanted, labels),
    )


def _problem(largest: float, serving: Serving) -> str | None:
    if largest <= TOLERANCE:
        return None
    if not np.isfinite(largest):
        return "they are of another shape, or no finite numbers"
    return f"they differ from {in_words(serving)} by {largest:.1e}, more than {TOLERANCE:g}"


def _change(accuracy: Accuracy, votes: bool) -> str | None:
    """Why these are not the answers of members in half precision, which were judged by other samples; none if they are.

    Cross-entropy is not that of votes, of which one that is lost may be infinitely much.
    """
    usual = CHANGED * accuracy.samples
    most = max(1.0, usual + CHANCE * float(np.sqrt(usual))) / accuracy.samples
    off = abs(accuracy.half.cross_entropy - accuracy.float32.cross_entropy)
    if accuracy.changed <= most and (votes or off <= OFF):
        return None
    return f"{words(accuracy, 'held-out')}; {most:.1%} and {OFF} of cross-entropy, more or less, are allowed"


def weights_of(members: Sequence[MemberResult], serving: Serving) -> list[float]:
    """Of the members' answers, adding up to 1."""
    weights = [1.0 if serving.combiner == "average" else member.weight for member in members]
    return [weight / sum(weights) for weight in weights]


def expected(stored: Sequence[Probabilities], weights: Sequence[float], serving: Serving) -> Probabilities:
    """What the endpoint should answer, [N,C], by the members' stored predictions and the deployment's rule."""
    rule = Rule(votes=serving.combiner == "vote", logits=serving.scores == "logits")
    combiner = Combiner(len(stored[0]), stored[0].shape[1:], weights, rule)
    for member, predictions in enumerate(stored):
        combiner.add(member, 0, len(predictions), predictions)
    return combiner.result()


def undecided(stored: Sequence[Probabilities], tolerance: float) -> npt.NDArray[np.bool_]:
    """Samples for which a member's two best classes are so close that its vote may go to either, bool [N]."""
    gaps = [np.diff(np.partition(predictions, -2, axis=1)[:, -2:], axis=1)[:, 0] for predictions in stored]
    close: npt.NDArray[np.bool_] = np.min(gaps, axis=0) <= 2 * tolerance
    return close


def _as_selected(members: Sequence[MemberResult], weights: Sequence[float], serving: Serving) -> bool:
    """Whether the endpoint's answers are the weighted means that the selection was judged by."""
    selected = np.allclose(weights, [member.weight for member in members], rtol=0, atol=1e-12)
    return selected and serving.combiner != "vote" and serving.scores == "probabilities"


def in_words(serving: Serving) -> str:
    """What the endpoint's answers are."""
    found = "the members' vote" if serving.combiner == "vote" else "the members' average"
    return f"{found} of logits" if serving.scores == "logits" else found


def largest_difference(
    answers: Probabilities, wanted: Probabilities, rows: slice | npt.NDArray[np.bool_] = slice(None)
) -> float:
    """The largest absolute difference in these rows; infinite if shapes differ or an answer is not a number."""
    if answers.shape != wanted.shape or not np.isfinite(answers).all():
        return float("inf")
    return float(np.abs(answers.astype(np.float64) - wanted)[rows].max(initial=0.0))
