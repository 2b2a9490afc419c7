"""How the benchmark of real members judges, without a server."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from ensemble_core.allocation.candidate import Candidate
from ensemble_core.allocation.matrix import Matrix
from ensemble_core.allocation.result import Throughput
from networks import NETWORKS
from real_members import DEFAULT, FULL, GREEDY, WORST_FIT, Chosen, change, in_rounds, losses

FIRST, SECOND, THIRD = (Candidate(Matrix(((size, 0), (0, size)))) for size in (8, 16, 32))
SIZES = replace(FULL, rounds=3, attempts=2)


def figures(*cores: float, speed: float = 100) -> Iterable[Throughput]:
    """As many, with so many cores used by others meanwhile."""
    return (Throughput(samples_per_second=speed, foreign_cores=foreign) for foreign in cores)


def test_each_candidate_is_measured_once_a_round_beginning_with_another() -> None:
    asked: list[Candidate] = []

    def bench(candidate: Candidate) -> Throughput:
        asked.append(candidate)
        return Throughput(samples_per_second=len(asked))

    found = in_rounds(bench, [FIRST, SECOND, FIRST, THIRD], SIZES, lambda _: None)
    assert asked == [FIRST, SECOND, THIRD, SECOND, THIRD, FIRST, THIRD, FIRST, SECOND]
    assert found.rates == {FIRST: [1, 6, 8], SECOND: [2, 4, 9], THIRD: [3, 5, 7]}


def test_what_others_disturb_is_repeated_and_a_round_that_stays_disturbed_does_not_count() -> None:
    answers = iter([*figures(0.01), *figures(0.5, 0.02), *figures(0.03), *figures(0.5, 0.5), *figures(0, 0)])
    found = in_rounds(lambda _: next(answers), [FIRST, SECOND], SIZES, lambda _: None)
    assert found.rates == {FIRST: [100, 100], SECOND: [100, 100]}
    assert (found.repeated, found.dropped, found.foreign) == (3, 1, 0.02)


def test_a_change_is_as_sure_as_the_rounds_agree() -> None:
    """All of a round meet the same disturbances, so it is ratios that count."""
    assert change([110, 55, 220], [100, 50, 200]) == pytest.approx((0.0953, 0), abs=1e-4)
    difference, error = change([110, 100, 90], [100, 100, 100])
    assert abs(difference) < error


@pytest.mark.parametrize(
    ("default", "told"),
    [
        ([100, 101, 99], []),
        ([90, 91, 89], ["guided, seed 0: 10.5% (±2.5%) below worst-fit"]),
        ([70, 99, 120], []),  # lower, but not beyond the noise
    ],
)
def test_the_default_loses_where_it_is_below_another_beyond_the_noise(default: list[float], told: list[str]) -> None:
    chosen = [Chosen(WORST_FIT, FIRST), Chosen(GREEDY, SECOND), Chosen(DEFAULT, SECOND)]
    assert losses(chosen, {FIRST: [100, 100.5, 99.5], SECOND: default}) == told


def test_the_networks_answer_in_the_signature_and_are_always_the_same() -> None:
    first, again = (NETWORKS["separable"]().SerializeToString() for _ in range(2))
    assert first == again
