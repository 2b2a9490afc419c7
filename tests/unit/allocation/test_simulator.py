from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.problems import problem, problems, random_matrix, with_needs

from ensemble_core.allocation.candidate import Candidate
from ensemble_core.allocation.matrix import Matrix
from ensemble_core.allocation.model import Problem, pulled, route, upper_bound
from ensemble_core.allocation.objectives import truth_of
from ensemble_core.allocation.simulator import ALL_QUEUED, Load, Simulator, Truth, _Server, simulate
from ensemble_core.serving.backends.averaging.routing import Router

CLOSED = Load(in_flight=3, samples=1024, requests=24)


def test_one_worker_alone_is_as_fast_as_its_profile() -> None:
    alone = problem([2.0], 1)
    run = simulate(truth_of(alone), Candidate(Matrix(((32,),))), CLOSED)
    assert run.throughput == pytest.approx(1000 / 2.25)
    assert run.busy == pytest.approx((1.0,))
    assert run.latencies == pytest.approx([3 * 1024 * 2.25e-3] * len(run.latencies))


def test_two_workers_on_a_device_disturb_each_other() -> None:
    both = problem([2.0, 2.0], 1)
    run = simulate(truth_of(both), Candidate(Matrix(((32, 32),))), CLOSED)
    assert run.throughput == pytest.approx(1000 / 4.5 / 1.03, rel=1e-3)


def test_one_request_queued_at_once_is_the_makespan() -> None:
    alone = problem([2.0], 2)
    run = simulate(truth_of(alone), Candidate(Matrix(((32,), (32,)))), ALL_QUEUED)
    assert run.throughput == pytest.approx(2 * 1000 / 2.25)


def test_shares_are_kept() -> None:
    """A third to the first device although both are alike: the second, with two thirds, decides."""
    alike = problem([2.0], 2)
    run = simulate(truth_of(alike), Candidate(Matrix(((32,), (32,))), ((0.3333,), (0.6667,))), CLOSED)
    assert run.throughput == pytest.approx(1.5 * 1000 / 2.25, rel=0.05)
    assert run.busy[0] == pytest.approx(0.5, abs=0.05)


def test_devices_work_just_as_long_as_what_they_do_takes() -> None:
    """Requests come while the first device works and its second worker, with few of the samples, has nothing."""
    case = problem([2.0, 2.0], 2)
    calm = Problem(**{**vars(case), "interference": 0.0})
    candidate = Candidate(Matrix(((32, 32), (0, 32))), ((1.0, 0.05), (0.0, 0.95)))
    run = simulate(truth_of(calm), candidate, Load(samples=96, requests=400, rate=250))
    assert run.busy[0] / run.busy[1] == pytest.approx(1.05 / 0.95, rel=0.01)
    assert run.busy[1] == pytest.approx(250 * 0.95 * 2.25e-3, rel=0.25)  # as many as chance sends


def flat(devices: int, seconds: float = 0.01) -> Truth:
    """Devices on which a batch of a member takes equally long, whatever its size."""
    return Truth(
        np.full((devices, 1, 129), seconds), np.zeros((devices, 1, 129)), np.ones(devices), np.zeros((1, 1)), 0.0
    )


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from([8, 16, 32, 128]), st.floats(0.01, 1)), min_size=2, max_size=5),
    st.integers(1, 200),
    st.lists(st.integers(1, 400), min_size=1, max_size=6),
)
def test_samples_are_dealt_as_the_server_deals_them(
    workers: list[tuple[int, float]], segment: int, requests: list[int]
) -> None:
    matrix = Matrix(tuple((size,) for size, _ in workers))
    server = _Server(flat(len(workers)), Candidate(matrix, tuple((share,) for _, share in workers)), segment)
    router: Router[int] = Router(workers, segment, "weights")
    for number, samples in enumerate(requests):
        router.put(number, samples)
        server._hand_out(number, samples)
    for worker, queue in enumerate(server._queues):
        dealt = []
        while chunk := router.take(worker):
            dealt.append([chunk.item, chunk.stop - chunk.start])
        assert [list(each) for each in queue] == dealt


def test_a_segment_ends_a_batch() -> None:
    """Batches of 32 with segments of 40 are one of 32 and one of 8, which takes as long here."""
    run = simulate(flat(1), Candidate(Matrix(((32,),))), Load(3, 40, 30, segment=40))
    assert run.throughput == pytest.approx(40 / 0.02)
    assert simulate(flat(1), Candidate(Matrix(((32,),))), Load(3, 40, 30, segment=8)).throughput == pytest.approx(
        8 / 0.01
    )


def test_a_worker_pulls_two_batches_at_most() -> None:
    """The slow one holds on to its second batch, though the fast one is idle."""
    seconds = np.stack([np.full((1, 129), 1.0), np.full((1, 129), 0.1)])
    truth = Truth(seconds, np.zeros((2, 1, 129)), np.ones(2), np.zeros((1, 1)))
    both = Candidate(Matrix(((32,), (32,))))
    assert simulate(truth, both, Load(1, 4 * 32, 1)).latencies == pytest.approx([2.0])
    assert simulate(truth, both, Load(1, 14 * 32, 1)).latencies == pytest.approx([2.0])
    assert simulate(truth, both, Load(1, 2 * 32, 1)).latencies == pytest.approx([1.0])


def test_a_slow_client_waits_only_for_the_work() -> None:
    alone = problem([2.0], 1)
    run = simulate(truth_of(alone), Candidate(Matrix(((32,),))), Load(samples=32, requests=40, rate=44.4))
    assert run.throughput == pytest.approx(44.4, rel=0.4)
    assert np.median(run.latencies) == pytest.approx(0.072, rel=0.1)
    assert run.busy[0] < 0.2


@pytest.mark.parametrize("shares", [None, ((1 / 32,),) * 32])
def test_requests_that_all_end_at_one_moment(shares: tuple[tuple[float, ...], ...] | None) -> None:
    candidate = Candidate(Matrix(((8,),) * 32), shares)
    run = simulate(flat(32), candidate, Load(in_flight=32, samples=8, requests=24, segment=8))
    assert set(run.latencies.tolist()) == {0.01}
    assert run.throughput == pytest.approx(24 * 8 / 0.01)


def test_what_does_not_fit_serves_nothing_and_says_where() -> None:
    tight = problem([2.0, 2.0], 2, memory=50.0, need=30.0)
    bench = Simulator(with_needs(tight), CLOSED)
    measured = bench(Candidate(Matrix(((0, 8), (8, 8)))))
    assert (measured.samples_per_second, measured.device, measured.reason) == (0.0, 1, "out of memory")


def test_noise_is_that_of_the_seed_and_the_repeat() -> None:
    alone, candidate = problem([2.0], 1), Candidate(Matrix(((32,),)))
    bench = Simulator(truth_of(alone), CLOSED, noise=0.02, seed=1)
    values = [bench(candidate, repeat).samples_per_second for repeat in (0, 1, 0)]
    assert values[0] == values[2] != values[1]
    assert Simulator(truth_of(alone), CLOSED, noise=0.02, seed=2)(candidate).samples_per_second != values[0]


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(problems(), st.integers(0, 10_000))
def test_the_model_foresees_the_simulator(case: Problem, seed: int) -> None:
    """Weighted routing in a closed loop gives the linear program's value, pulling of a queue the filling's."""
    indices = case.indices(random_matrix(case, seed))
    routed = route(case, indices)
    lean = np.where(routed.rates > 0.02 * routed.throughput, indices, 0)
    routed = route(case, lean)
    weighted = simulate(truth_of(case), Candidate.weighted(case.matrix(lean), routed.rates), CLOSED).throughput
    assert 0.85 * routed.throughput <= weighted <= upper_bound(case) * 1.1
    queued = simulate(truth_of(case), Candidate(case.matrix(indices)), ALL_QUEUED).throughput
    assert queued == pytest.approx(pulled(case, indices), rel=0.05)
