"""The endpoint's check finds what is wrong with answers."""

from __future__ import annotations

import numpy as np
import pytest

from ensemble_core.runner.check import largest_difference

WANTED = np.array([[0.25, 0.75], [0.5, 0.5]])


def test_equal_answers_do_not_differ():
    assert largest_difference(WANTED.astype(np.float32), WANTED) == 0.0


def test_the_largest_difference_counts():
    answers = WANTED.astype(np.float32)
    answers[1, 0] -= 0.125
    assert largest_difference(answers, WANTED) == 0.125


@pytest.mark.parametrize(
    "answers", [np.full((2, 2), np.nan, np.float32), np.full((1, 2), 0.5, np.float32), np.full((2, 3), 0.3, np.float32)]
)
def test_no_numbers_and_other_shapes_are_infinitely_far(answers):
    assert largest_difference(answers, WANTED) == float("inf")
