"""The endpoint's check finds what is wrong with answers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from ensemble_core.api.ensembledeployment import EnsembleDeployment, Serving
from ensemble_core.library.library import Library
from ensemble_core.library.records import Metrics
from ensemble_core.report import CommandError
from ensemble_core.runner import check
from ensemble_core.runner.check import ask_heldout, expected, in_words, largest_difference
from ensemble_core.runner.facts import RunFacts
from ensemble_core.runner.run import _judge_answers
from ensemble_core.selection.result import Costs, MemberResult

WANTED = np.array([[0.25, 0.75], [0.5, 0.5]], np.float32)
# Of three members, [member][sample][class].
STORED = np.array(
    [[[0.9, 0.1], [0.6, 0.4]], [[0.2, 0.8], [0.7, 0.3]], [[0.4, 0.6], [0.1, 0.9]]],
    np.float32,
)
LABELS = np.array([0, 0])
WEIGHTS = (0.5, 0.25, 0.25)
METRICS = Metrics(cross_entropy=1, error=0.5, macro_f1=0.5, top5_error=0)


class FakeLibrary:
    """The part of a library that the check reads."""

    def __init__(self, stored: np.ndarray, labels: np.ndarray) -> None:
        self._stored = stored
        self._labels = labels

    def ids(self, split: str) -> np.ndarray:
        return np.arange(len(self._labels)).astype(str)

    def labels(self, split: str) -> np.ndarray:
        return self._labels

    def model(self, model_id: str) -> str:
        return model_id

    def predictions(self, record: str, split: str) -> np.ndarray:
        return self._stored[int(record)]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What the check finds of answers to members whose stored predictions are known."""

    def asked(
        answers: list[list[float]] | np.ndarray,
        stored: np.ndarray = STORED,
        labels: np.ndarray = LABELS,
        in_half: bool = False,
        **serving: str,
    ) -> check.Answers:
        library = FakeLibrary(stored, labels)
        np.save(tmp_path / "images.npy", np.zeros((len(labels), 1), np.uint8))
        np.save(tmp_path / "ids.npy", library.ids("heldout"))
        monkeypatch.setattr(check, "predict", lambda url, model, images: np.array(answers, np.float32))
        return ask_heldout("", "", tmp_path, [cast(Library, library)], members(), served(**serving), in_half)

    return asked


def served(**serving: str) -> Serving:
    content = {
        "metadata": {"name": "a"},
        "spec": {
            "selectionRef": {"name": "a", "budgetName": "b"},
            "devices": [{"name": "c", "type": "cpu"}],
            "serving": serving,
        },
    }
    return EnsembleDeployment.model_validate(content).spec.serving


def members() -> list[MemberResult]:
    return [
        MemberResult(
            library=0,
            model_id=str(index),
            servable=True,
            cost=Costs(),
            validation=METRICS,
            heldout=METRICS,
            weight=weight,
        )
        for index, weight in enumerate(WEIGHTS)
    ]


def softmax(numbers: np.ndarray) -> np.ndarray:
    powers = np.exp(numbers.astype(np.float64))
    return powers / powers.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize(
    ("serving", "answers"),
    [
        ({}, np.tensordot(WEIGHTS, STORED, 1)),
        ({"combiner": "average"}, STORED.mean(axis=0)),
        ({"combiner": "vote"}, [[0.5, 0.5], [0.75, 0.25]]),
        ({"scores": "logits"}, np.tensordot(WEIGHTS, softmax(STORED), 1)),
        ({"combiner": "average", "scores": "logits"}, softmax(STORED).mean(axis=0)),
    ],
)
def test_answers_are_compared_with_the_members_combined_as_the_deployment_says(ask, serving, answers) -> None:
    assert ask(answers, **serving).largest_difference < 1e-6
    wrong = np.array(answers)
    wrong[1, 1] += 0.125
    assert ask(wrong, **serving).largest_difference == pytest.approx(0.125, abs=1e-6)
    assert ask(answers, **serving).problem is None
    told = ask(wrong, **serving).problem
    assert told is not None
    assert re.fullmatch(r"they differ from the members' \w+( of logits)? by 1\.[23]e-01, more than 1e-05", told)


MANY = np.arange(400) % 4


def trained() -> np.ndarray:
    """Stored predictions of three members for 400 samples, the first the best, [member][sample][class]."""
    random = np.random.default_rng(0)
    logits = [quality * np.eye(4)[MANY] + random.normal(0, 1, (400, 4)) for quality in (6.0, 3.0, 2.0)]
    return softmax(np.array(logits)).astype(np.float32)


@pytest.mark.parametrize("serving", [{}, {"combiner": "vote"}])
def test_members_in_half_precision_are_judged_by_classes_and_scores_however_far_single_answers_are(
    ask, serving
) -> None:
    stored = trained()
    rounded = stored.astype(np.float16).astype(np.float32)
    sample = int(np.abs(stored[0].max(axis=1) - 0.6).argmin())  # one that the best is not sure about
    rounded[0, sample] = softmax(np.log(rounded[0, sample]) + 2 * np.eye(4)[rounded[0, sample].argmax()])
    answers = expected(list(rounded), WEIGHTS, served(**serving))
    found = ask(answers, stored, MANY, in_half=True, **serving)
    assert found.problem is None
    assert found.accuracy is not None
    assert found.accuracy.samples == 400
    if not serving:
        assert found.largest_difference > 0.1
        assert ask(answers, stored, MANY).problem is not None  # in float32 nothing may be so far


@pytest.mark.parametrize(
    ("places", "weights"),
    [((1, 1, 2), WEIGHTS), ((0, 0, 0), WEIGHTS), ((0, 1, 2), (0.25, 0.25, 0.5)), ((0, 1, 2), (0, 0.5, 0.5))],
)
def test_a_wrong_member_or_wrong_weights_are_found_in_half_precision_too(ask, places, weights) -> None:
    stored = trained()
    wrong = expected([stored[place] for place in places], weights, served())
    found = ask(wrong, stored, MANY, in_half=True)
    assert found.problem is not None
    assert found.problem.endswith("of 400 held-out samples; 2.5% and 0.01 of cross-entropy, more or less, are allowed")
    assert found.accuracy is not None


@pytest.mark.parametrize("serving", [{}, {"combiner": "vote"}])
@pytest.mark.parametrize(("samples", "chance"), [(10_000, 130), (400, 10), (50, 2), (8, 1)])
def test_on_other_samples_chance_may_change_more_classes_than_where_members_were_judged(
    ask, samples: int, chance: int, serving: dict[str, str]
) -> None:
    """A lost vote costs as much cross-entropy as there can be."""
    stored = np.tile(np.array([0.501, 0.499], np.float32), (3, samples, 1))
    answers = expected(list(stored), WEIGHTS, served(**serving))
    for changed, alright in ((chance, True), (chance + 1, False)):
        given = answers.copy()
        given[:changed] = given[:changed, ::-1]
        assert (ask(given, stored, np.zeros(samples, int), in_half=True, **serving).problem is None) is alright


@pytest.mark.parametrize(("half", "alright"), [(0.908, True), (0.892, True), (0.92, False), (0.88, False)])
def test_half_precision_hardly_changes_cross_entropy(ask, half: float, alright: bool) -> None:
    stored = np.tile(np.array([0.9, 0.1], np.float32), (3, 400, 1))
    answers = np.tile([half, 1 - half], (400, 1))
    assert (ask(answers, stored, np.zeros(400, int), in_half=True).problem is None) is alright


@pytest.mark.parametrize("answers", [np.full((400, 4), np.nan), np.full((400, 3), 1 / 3), np.full((1, 4), 0.25)])
def test_no_numbers_and_other_shapes_are_a_problem_in_half_precision_too(ask, answers) -> None:
    found = ask(answers, trained(), MANY, in_half=True)
    assert (found.problem, found.accuracy) == ("they are of another shape, or no finite numbers", None)


def test_the_quality_of_what_is_served_is_told_where_the_selection_judged_another_combination(ask) -> None:
    assert ask(np.tensordot(WEIGHTS, STORED, 1)).heldout is None
    voted = ask([[0.5, 0.5], [0.75, 0.25]], combiner="vote").heldout
    assert voted.cross_entropy == pytest.approx(-(np.log(0.5) + np.log(0.75)) / 2)
    assert voted.error == 0
    assert ask(STORED.mean(axis=0), combiner="average").heldout.error == 0.5


def test_a_vote_between_two_equal_classes_may_go_to_either(ask) -> None:
    """What a member answers differs a little between engines."""
    close = STORED.copy()
    close[0, 0] = [0.500001, 0.499999]
    assert ask([[0, 1], [0.75, 0.25]], close, combiner="vote").largest_difference == 0
    assert ask([[0.5, 0.5], [0.25, 0.75]], close, combiner="vote").largest_difference == 0.5


@pytest.mark.parametrize(
    ("serving", "told"),
    [
        ({}, "the members' average"),
        ({"combiner": "vote"}, "the members' vote"),
        ({"scores": "logits"}, "the members' average of logits"),
    ],
)
def test_what_answers_are_is_told_in_words(serving, told) -> None:
    assert in_words(served(**serving)) == told


def test_a_run_ends_by_what_the_check_found_and_not_by_how_far_answers_are(make_facts: Callable[..., RunFacts]) -> None:
    far = replace(make_facts().endpoint, largest_difference=0.3)
    _judge_answers(far)
    with pytest.raises(CommandError, match=r"^the endpoint's answers are not those of the members: they are worse$"):
        _judge_answers(replace(far, problem="they are worse"))


def test_equal_answers_do_not_differ():
    assert largest_difference(WANTED.copy(), WANTED) == 0.0


def test_the_largest_difference_counts():
    answers = WANTED.copy()
    answers[1, 0] -= 0.125
    assert largest_difference(answers, WANTED) == 0.125


@pytest.mark.parametrize(
    "answers", [np.full((2, 2), np.nan, np.float32), np.full((1, 2), 0.5, np.float32), np.full((2, 3), 0.3, np.float32)]
)
def test_no_numbers_and_other_shapes_are_infinitely_far(answers):
    assert largest_difference(answers, WANTED) == float("inf")
