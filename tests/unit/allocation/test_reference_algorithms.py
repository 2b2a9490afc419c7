"""Best batch, latency mode and the paper's greedy: small cases whose answers are known."""

from __future__ import annotations

import pytest

from ensemble_core.allocation.algorithms import (
    DoesNotFitError,
    best_batch,
    latency_greedy,
    one_device_neighbours,
    paper_greedy,
)
from ensemble_core.allocation.matrix import Matrix
from ensemble_core.allocation.memory import Curve, Memory

SIZES = (8, 32)


def flat(capacity: tuple[float, ...], needs: tuple[float, ...]) -> Memory:
    """Members that need as much at every batch size."""
    return Memory(capacity, ("x",) * len(capacity), tuple({"x": Curve(((1, need), (1000, need)))} for need in needs))


def alike(device: int, member: int, size: int) -> float:
    """The second member is twice as slow; a large batch is worth half as much again."""
    return (1.5 if size == 32 else 1.0) / (1 + member)


def test_best_batch_gives_each_member_a_device_and_its_fastest_batch_size() -> None:
    memory = flat((100.0, 100.0, 100.0), (60.0, 60.0))
    assert best_batch(alike, memory, SIZES).rows() == [[32, 0], [0, 32], [0, 0]]


def test_best_batch_takes_a_smaller_one_where_the_fastest_does_not_fit() -> None:
    memory = Memory((100.0,), ("x",), ({"x": Curve(((8, 90.0), (32, 110.0)))},))
    assert best_batch(alike, memory, SIZES).rows() == [[8]]


def test_best_batch_needs_a_device_for_each_member() -> None:
    with pytest.raises(ValueError, match="2 members need as many devices; there are 1"):
        best_batch(alike, flat((100.0,), (10.0, 10.0)), SIZES)
    with pytest.raises(DoesNotFitError) as lack:
        best_batch(alike, flat((100.0, 5.0), (10.0, 10.0)), SIZES)
    assert (lack.value.member, lack.value.needed, lack.value.left) == (1, 10.0, 5.0)


def test_the_latency_mode_puts_the_slowest_first_and_evens_out() -> None:
    """Members of 1, 2 and 3 s: the third alone on a device, the other two together."""
    memory = flat((100.0, 100.0), (10.0, 10.0, 10.0))
    assert latency_greedy(alike, memory, 8).rows() == [[0, 0, 8], [8, 8, 0]]


def test_the_latency_mode_prefers_the_faster_device_while_it_has_memory() -> None:
    def first_is_ten_times_faster(device: int, member: int, size: int) -> float:
        return 10.0 if device == 0 else 1.0

    memory = flat((25.0, 100.0), (10.0, 10.0, 10.0))
    assert latency_greedy(first_is_ten_times_faster, memory, 8).rows() == [[8, 8, 0], [0, 0, 8]]
    with pytest.raises(DoesNotFitError) as lack:
        latency_greedy(alike, flat((15.0,), (10.0, 10.0)), 8)
    assert (lack.value.member, lack.value.left) == (0, 5.0)


def test_an_update_of_the_paper_changes_a_batch_size_or_a_device() -> None:
    start = Matrix(((8, 8), (0, 0), (0, 0)))
    found = one_device_neighbours(start, SIZES)
    assert len(found) == len(set(found)) == 2 * (len(SIZES) - 1 + 3 - 1)
    assert all(matrix.workers_of(member) == 1 for matrix in found for member in range(2))
    assert Matrix(((32, 8), (0, 0), (0, 0))) in found
    assert Matrix(((8, 0), (0, 0), (0, 8))) in found


def test_the_greedy_of_the_paper_keeps_every_member_on_one_device() -> None:
    asked: list[Matrix] = []

    def speed(matrix: Matrix) -> float:
        """Members apart and in large batches are fastest."""
        asked.append(matrix)
        crowded = max(sum(size > 0 for size in row) for row in matrix.batch_sizes)
        return sum(size for _, _, size in matrix.entries()) / crowded

    start = Matrix(((8, 8), (0, 0)))
    best = paper_greedy(start, SIZES, lambda matrix: True, speed, 100, seed=0)
    assert sorted(best.rows()) == [[0, 32], [32, 0]]
    assert all(matrix.workers_of(member) == 1 for matrix in asked for member in range(2))
    assert len(set(asked)) == len(asked)
    asked.clear()
    paper_greedy(start, SIZES, lambda matrix: True, speed, 3, seed=0)
    assert len(asked) == 3
