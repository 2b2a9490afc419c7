from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.problems import problem, problems, random_matrix

from ensemble_core.allocation.model import Problem, picked, pulled, route, shared, spans, upper_bound

few = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])


def test_members_on_one_device_share_its_time() -> None:
    """2 and 3 ms a sample in batches of 32 of which 4 are overhead; 3 % for the neighbour."""
    both = problem([2.0, 3.0], devices=1)
    indices = np.array([[2, 2]])
    expected = 1000 / (5.0 * 36 / 32) / 1.03
    assert route(both, indices).throughput == pytest.approx(expected, rel=1e-6)
    assert pulled(both, indices) == pytest.approx(1 / (2 * 2.25e-3 * 1.03 + 1.125e-3), rel=1e-6)
    assert upper_bound(both) == pytest.approx(expected * 1.03)


def test_shares_make_up_for_a_crowded_device() -> None:
    """A member on a device of its own and on one with another: by fair shares the other ends late."""
    crowded = problem([4.0, 2.0], devices=2)
    indices = np.array([[2, 2], [2, 0]])
    routed = route(crowded, indices)
    assert routed.rates.sum(axis=0) == pytest.approx([routed.throughput] * 2)
    assert routed.throughput > 1.05 * pulled(crowded, indices)
    assert routed.busy == pytest.approx([1.0, 1.0], abs=1e-3)
    shares = routed.rates / routed.throughput
    assert shared(crowded, indices, shares) == pytest.approx(routed.throughput, rel=1e-3)


def plain_span(speeds: np.ndarray, interference: float) -> float:
    """Progressive filling, written out."""
    left = dict.fromkeys(range(speeds.shape[1]), 1.0)
    time = 0.0
    while left:
        rates = dict.fromkeys(left, 0.0)
        for row in speeds:
            there = [m for m in left if row[m] > 0]
            for m in there:
                rates[m] += row[m] / len(there) / (1 + interference * (len(there) - 1))
        step = min(left[m] / rates[m] for m in left)
        time += step
        left = {m: rest for m in left if (rest := left[m] - rates[m] * step) > 1e-12}
    return time


@few
@given(problems(), st.integers(0, 10_000))
def test_many_spans_at_once_are_each_as_written_out(case: Problem, seed: int) -> None:
    matrices = [case.indices(random_matrix(case, seed + i)) for i in range(3)]
    speeds = np.stack([picked(case.speeds, indices) for indices in matrices])
    found, means = spans(speeds, case.interference)
    assert found == pytest.approx([plain_span(each, case.interference) for each in speeds])
    assert (means <= found + 1e-12).all()


@few
@given(problems(), st.integers(0, 10_000))
def test_no_routing_exceeds_the_bound_and_pulling_not_the_best_shares(case: Problem, seed: int) -> None:
    indices = case.indices(random_matrix(case, seed))
    routed = route(case, indices)
    assert routed.throughput <= upper_bound(case) * (1 + 1e-6)
    assert (routed.busy <= 1 + 1e-6).all()
    undisturbed = Problem.of(case.batch_sizes, case.kinds, case.sides, case.speeds, case.needs, case.capacity)
    calm = Problem(**{**vars(undisturbed), "interference": 0.0})
    assert pulled(calm, indices) <= route(calm, indices).throughput * (1 + 1e-5)


def test_the_bound_counts_devices_of_each_type() -> None:
    alike, pair = problem([2.0], 1), problem([2.0], 2)
    assert upper_bound(pair) == pytest.approx(2 * upper_bound(alike))
    slower = Problem(**{**vars(pair), "kinds": ("x", "y"), "speeds": pair.speeds * np.array([[[1.0]], [[0.5]]])})
    assert upper_bound(slower) == pytest.approx(1.5 * upper_bound(alike))


def test_the_bound_tells_devices_of_a_kind_apart_by_their_memory() -> None:
    """Workers take 30 MiB: a device of 20 holds none, wherever it is among those of its kind."""
    pair, alone = problem([2.0, 3.0], 3), problem([2.0, 3.0], 2)
    for capacity in ([20.0, 100.0, 100.0], [100.0, 20.0, 100.0], [100.0, 100.0, 20.0]):
        cramped = Problem(**{**vars(pair), "capacity": np.array(capacity)})
        assert upper_bound(cramped) == pytest.approx(upper_bound(alone))
