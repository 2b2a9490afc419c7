from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_core.allocation.algorithms import (
    Bench,
    Bounds,
    DeviceKind,
    DoesNotFitError,
    bounded_greedy,
    worst_fit_decreasing,
)
from ensemble_core.allocation.matrix import Matrix, neighbours
from ensemble_core.allocation.memory import Curve, Memory

SIZES = (8, 32)
WIDE = Bounds(max_neighs=10_000, max_iter=100, max_benchmarks=10_000)


class Counting:
    """A benchmark that remembers what it was asked."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.asked: list[Matrix] = []

    def __call__(self, matrix: Matrix) -> float:
        self.asked.append(matrix)
        return self.bench(matrix)


def always(matrix: Matrix) -> bool:
    return True


def random_speed(seed: int) -> Bench:
    """Any speed for any matrix, the same each time."""
    return lambda matrix: float(np.random.default_rng([seed, *np.ravel(matrix.batch_sizes)]).random())


def unimodal_speed(matrix: Matrix) -> float:
    """Each element helps on its own, so every matrix but the best has a faster neighbour."""
    worth = {0: 0.0, 8: 2.0, 32: 1.0}
    return 1 + sum((1 + d + m) * worth[size] for d, m, size in matrix.entries())


def every_matrix(devices: int, members: int) -> list[Matrix]:
    rows = product(product((0, *SIZES), repeat=members), repeat=devices)
    return [Matrix(r) for r in rows if all(map(any, zip(*r, strict=True)))]


# --- worst-fit-decreasing


def plain_worst_fit(capacity: list[float], kinds: list[DeviceKind], sizes: list[float]) -> list[list[int]] | None:
    """The pseudo-code of the thesis, line by line, at batch size 1."""
    A = np.zeros((len(sizes), len(capacity)), int)

    def remaining(d: int) -> float:
        return capacity[d] - sum(sizes[m] for m in range(len(sizes)) if A[m, d])

    def more_remaining_memory(kind: str) -> int | None:
        devices = [d for d in range(len(capacity)) if kinds[d] == kind]
        return max(devices, key=remaining) if devices else None

    for m in sorted(range(len(sizes)), key=lambda m: (-sizes[m], m)):
        for d in (more_remaining_memory("gpu"), more_remaining_memory("cpu")):
            if d is None:
                continue
            A[m, d] = 1
            if remaining(d) >= 0:
                break
            A[m, d] = 0
        else:
            return None
    return [[int(value) for value in row] for row in A.T]


@given(
    st.lists(st.tuples(st.integers(1, 40), st.sampled_from(["gpu", "cpu"])), min_size=1, max_size=4),
    st.lists(st.integers(1, 30), min_size=1, max_size=6),
)
def test_worst_fit_is_the_pseudo_code(devices: list[tuple[int, DeviceKind]], sizes: list[int]) -> None:
    devices.sort(key=lambda device: device[1], reverse=True)
    capacity, kinds = [float(c) for c, _ in devices], [k for _, k in devices]
    needs = [float(size) for size in sizes]
    memory = Memory(tuple(capacity), ("x",) * len(capacity), tuple({"x": Curve(((1, need),))} for need in needs))
    expected = plain_worst_fit(capacity, kinds, needs)
    if expected is None:
        with pytest.raises(DoesNotFitError) as lack:
            worst_fit_decreasing(memory, kinds, 1)
        assert lack.value.needed > lack.value.left
    else:
        matrix = worst_fit_decreasing(memory, kinds, 1)
        assert matrix.rows() == expected
        assert memory.fits(matrix)


def test_a_cpu_is_used_only_when_no_gpu_has_space(make_memory: Callable[..., Memory]) -> None:
    memory = make_memory((100.0, 100.0, 1000.0), (80.0, 70.0, 25.0, 10.0))
    matrix = worst_fit_decreasing(memory, ["gpu", "gpu", "cpu"], 1)
    # The third goes to the second GPU (30 left); the fourth fits the first (20 left).
    assert matrix.rows() == [[1, 0, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0]]
    crowded = make_memory((100.0, 100.0, 1000.0), (80.0, 70.0, 60.0))
    assert worst_fit_decreasing(crowded, ["gpu", "gpu", "cpu"], 1).rows()[2] == [0, 0, 1]


def test_worst_fit_that_fails_says_what_lacks_least_where(make_memory: Callable[..., Memory]) -> None:
    with pytest.raises(DoesNotFitError) as lack:
        worst_fit_decreasing(make_memory((100.0, 90.0), (80.0, 70.0, 60.0)), ["cpu", "cpu"], 1)
    # The third member (60) finds 20 and 20 left.
    assert (lack.value.member, lack.value.device, lack.value.needed, lack.value.left) == (2, 0, 60.0, 20.0)


# --- bounded greedy


@pytest.mark.parametrize(("devices", "members"), [(1, 1), (2, 1), (1, 2), (2, 2), (3, 1)])
def test_greedy_finds_the_best_of_all_on_a_unimodal_landscape(devices: int, members: int) -> None:
    everything = every_matrix(devices, members)
    start = Matrix.of([[32] * members, *[[0] * members] * (devices - 1)])
    found = bounded_greedy(start, SIZES, always, unimodal_speed, WIDE, seed=0)
    assert unimodal_speed(found) == max(map(unimodal_speed, everything))


@given(
    start=st.sampled_from(every_matrix(2, 2)),
    landscape=st.integers(0, 1000),
    bounds=st.builds(Bounds, st.integers(1, 12), st.integers(1, 5), st.integers(1, 30)),
    seed=st.integers(0, 5),
    capacity=st.integers(1, 4),
)
def test_greedy_keeps_its_promises(start: Matrix, landscape: int, bounds: Bounds, seed: int, capacity: int) -> None:
    def fits(matrix: Matrix) -> bool:
        return matrix == start or all(sum(size > 0 for size in row) <= capacity for row in matrix.batch_sizes)

    speed = random_speed(landscape)
    bench = Counting(speed)
    found = bounded_greedy(start, SIZES, fits, bench, bounds, seed)
    assert speed(found) >= speed(start)
    assert speed(found) == speed(start) or fits(found)
    assert found in bench.asked
    assert len(bench.asked) <= bounds.max_benchmarks
    assert len(set(bench.asked)) == len(bench.asked)
    assert all(map(fits, bench.asked))
    again = Counting(speed)
    assert bounded_greedy(start, SIZES, fits, again, bounds, seed) == found
    assert again.asked == bench.asked


@given(landscape=st.integers(0, 200))
def test_unbounded_greedy_ends_where_no_neighbour_is_faster(landscape: int) -> None:
    speed = random_speed(landscape)
    found = bounded_greedy(Matrix(((8, 8), (0, 0))), SIZES, always, speed, WIDE, seed=0)
    assert all(speed(other) <= speed(found) for other in neighbours(found, SIZES))


def test_one_iteration_moves_to_the_fastest_neighbour_drawn() -> None:
    start = Matrix(((8, 8), (0, 0)))
    bench = Counting(random_speed(3))
    found = bounded_greedy(start, SIZES, always, bench, Bounds(3, 1, 100), seed=1)
    assert len(bench.asked) == 4
    assert found == max(bench.asked, key=bench.bench)


def test_a_plateau_stops() -> None:
    bench = Counting(lambda matrix: 1.0)
    start = Matrix(((8,), (0,)))
    assert bounded_greedy(start, SIZES, always, bench, WIDE, seed=0) == start
    assert len(bench.asked) == 1 + len(neighbours(start, SIZES))


def test_matrices_that_do_not_fit_are_drawn_but_not_benchmarked() -> None:
    bench = Counting(unimodal_speed)
    start = Matrix(((8,), (0,)))
    assert bounded_greedy(start, SIZES, lambda matrix: matrix == start, bench, WIDE, seed=0) == start
    assert bench.asked == [start]


def test_a_start_that_could_not_be_served_is_left() -> None:
    start = Matrix(((8,), (0,)))
    found = bounded_greedy(start, SIZES, always, lambda m: 0.0 if m == start else unimodal_speed(m), WIDE, seed=0)
    assert unimodal_speed(found) > 0
    assert found != start


def test_many_devices_get_a_chance_each() -> None:
    """With 6 devices, 1 member and max_iter 2, D - M = 5 iterations put the member on all of them."""
    start = Matrix.of([[8], *[[0]] * 5])
    found = bounded_greedy(start, (8,), always, unimodal_speed, Bounds(100, 2, 1000), seed=0)
    assert found.workers_of(0) == 6
    assert Bounds(100, 2, 1000).iterations(start) == 5
    assert Bounds(100, 9, 1000).iterations(start) == 9


def test_other_seeds_draw_other_neighbours() -> None:
    start = Matrix(((8, 8), (0, 0)))

    def asked(seed: int) -> tuple[Matrix, ...]:
        bench = Counting(unimodal_speed)
        bounded_greedy(start, SIZES, always, bench, Bounds(2, 1, 100), seed)
        return tuple(bench.asked)

    assert len({asked(seed) for seed in range(10)}) > 1
