"""The Pareto front against brute force; occupancy by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_core.library.timeline import Span, occupancy
from ensemble_trainer.outcome import pareto_front, thinned

POINTS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 2)), max_size=25)


@given(POINTS)
def test_the_front_is_what_nothing_dominates(points: list[tuple[int, int, int]]) -> None:
    def dominated(i: int) -> bool:
        return any(
            all(a <= b for a, b in zip(other, points[i], strict=True)) and (other != points[i] or j < i)
            for j, other in enumerate(points)
            if j != i
        )

    front = pareto_front([tuple(map(float, point)) for point in points])
    assert sorted(front) == [i for i in range(len(points)) if not dominated(i)]
    assert [points[i] for i in front] == sorted(points[i] for i in front)


@given(st.integers(0, 1000), st.integers(2, 100))
def test_a_long_front_keeps_its_ends(length: int, most: int) -> None:
    kept = thinned(range(length), most)
    assert len(kept) == min(length, most)
    assert kept == sorted(set(kept))
    if length:
        assert (kept[0], kept[-1]) == (0, length - 1)


def span(slot: int, trial: int, begin: float, end: float, attempt: int = 1) -> Span:
    return Span(slot, trial, attempt, begin, end, "epoch 1")


def test_occupancy_counts_until_the_last_trial_is_submitted() -> None:
    spans = [span(0, 0, 0, 4), span(1, 1, 1, 3), span(1, 2, 5, 30), span(0, 0, 4, 6)]
    # Window 0 to 5, two slots: busy 4 + 1 and 2.
    assert occupancy(spans, 2) == pytest.approx(7 / 10)


def test_time_between_attempts_does_not_count() -> None:
    spans = [span(0, 0, 0, 5), span(0, 1, 5, 6), span(0, 1, 1000, 1003, 2), span(0, 2, 1004, 1009, 2)]
    assert occupancy(spans, 1) == pytest.approx((5 + 3) / (5 + 4))


def test_no_time_has_no_occupancy() -> None:
    assert occupancy([], 2) is None
    assert occupancy([span(0, 0, 1, 2)], 2) is None
