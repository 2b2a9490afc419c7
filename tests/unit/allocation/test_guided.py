"""The default algorithm against brute force, against an incumbent, and in what it may ask."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.problems import problem, problems, random_matrix, with_needs

from ensemble_core.allocation.anneal import Effort, anneal, prune
from ensemble_core.allocation.calibrated import ENSEMBLES
from ensemble_core.allocation.candidate import Candidate, Measured
from ensemble_core.allocation.construct import construct
from ensemble_core.allocation.fewest import fewest_devices
from ensemble_core.allocation.guided import FAR, REPEATS, Ledger, chosen, confirm, guided, promised
from ensemble_core.allocation.matrix import Matrix
from ensemble_core.allocation.model import Problem, pulled, route, upper_bound
from ensemble_core.allocation.objectives import (
    OVER,
    Latency,
    Objective,
    Throughput,
    ThroughputWithin,
    keeps_limit,
    truth_of,
)
from ensemble_core.allocation.paper import calibrated_case, parse_devices
from ensemble_core.allocation.polish import polish
from ensemble_core.allocation.refit import fitted
from ensemble_core.allocation.simulator import Load, Simulator

LOAD = Load(in_flight=3, samples=256, requests=12)
SHORT = Effort(chains=8, moves=60)
BUSY = [HealthCheck.too_slow]  # on a machine with other work


def every_matrix(case: Problem) -> list[Matrix]:
    values = (0, *case.batch_sizes)
    rows = product(product(values, repeat=case.members), repeat=case.devices)
    return [Matrix(r) for r in rows if all(map(any, zip(*r, strict=True)))]


# --- construction, annealing, polishing


@settings(deadline=None, max_examples=25, suppress_health_check=BUSY)
@given(problems(devices=4), st.sampled_from([40.0, 70.0, 1000.0]))
def test_what_is_constructed_fits_and_gives_what_it_says(case: Problem, memory: float) -> None:
    tight = Problem(**{**vars(case), "capacity": np.full(case.devices, memory)})
    found = construct(tight)
    places = case.devices * int(memory // 30)
    if found is None:
        assert places < case.members
        return
    indices, throughput = found
    assert tight.fits(indices)
    assert (indices > 0).any(axis=0).all()
    assert throughput <= upper_bound(tight)
    assert route(tight, indices).throughput >= 0.95 * throughput


@settings(deadline=None, max_examples=10, suppress_health_check=BUSY)
@given(problems(), st.integers(0, 1000))
def test_annealing_and_polishing_keep_to_memory_and_never_lose(case: Problem, seed: int) -> None:
    start = case.indices(random_matrix(case, seed))
    capacity = case.used(start).max() + 10
    tight = Problem(**{**vars(case), "capacity": np.full(case.devices, capacity)})
    found = anneal(tight, [start], SHORT, seed)
    assert [each.tobytes() for each in found] == [each.tobytes() for each in anneal(tight, [start], SHORT, seed)]
    for each in found:
        assert tight.fits(each)
        assert (each > 0).any(axis=0).all()
        assert pulled(tight, prune(tight, each)) >= pulled(tight, each) * 0.999
    better = polish(tight, start)
    assert tight.fits(better)
    assert route(tight, better).throughput >= route(tight, start).throughput * (1 - 1e-9)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 3, 2)])
def test_devices_of_a_kind_with_unequal_memory(order: tuple[int, ...]) -> None:
    """Workers of the second member take 60 MiB: two of the devices are too small for it, one for any."""
    case = problem([2.0, 3.0], devices=4)
    needs = case.needs * np.array([1.0, 2.0])[:, None]
    uneven = Problem(**{**vars(case), "needs": needs, "capacity": np.array([20.0, 50.0, 70.0, 100.0])[list(order)]})
    found = construct(uneven)
    assert found is not None
    assert uneven.fits(found[0])
    best = max(
        route(uneven, uneven.indices(matrix)).throughput
        for matrix in every_matrix(Problem(**{**vars(uneven), "batch_sizes": (8, 32)}))
        if uneven.fits(uneven.indices(matrix))
    )
    assert route(uneven, found[0]).throughput >= 0.9 * best
    assert best <= upper_bound(uneven)


# --- the whole search


@pytest.mark.parametrize("times", [[2.0, 7.0], [1.0, 1.0, 6.0], [3.0]])
def test_as_good_as_the_best_of_all_on_small_cases(times: list[float]) -> None:
    case = problem(times, devices=2, memory=70.0)
    bench = Simulator(with_needs(case), LOAD)
    start = Candidate(case.matrix(np.array([[1] * len(times), [0] * len(times)]))) if len(times) < 3 else None
    found = guided(case, start, None, bench, Throughput(), 12, seed=0)
    assert found is not None
    assert len(bench.asked) <= 12
    fitting = [Candidate(matrix) for matrix in every_matrix(case) if case.fits(case.indices(matrix))]
    best = max(bench.exact(candidate).throughput for candidate in fitting)
    assert bench.exact(found.best).throughput >= 0.97 * best


@settings(deadline=None, max_examples=8, suppress_health_check=BUSY)
@given(problems(devices=2, members=2), st.integers(0, 1000), st.integers(1, 7))
def test_never_more_benchmarks_never_below_the_incumbent_and_always_the_same(
    case: Problem, seed: int, budget: int
) -> None:
    incumbent, start = Candidate(random_matrix(case, seed)), Candidate(random_matrix(case, seed + 1))
    runs = []
    for _ in range(2):
        bench = Simulator(truth_of(case), LOAD)
        found = guided(case, start, incumbent, bench, Throughput(), budget, seed)
        assert found is not None
        assert len(bench.asked) <= budget
        assert bench.asked[0] == (incumbent, 1)  # that was measured before, by whoever found it
        measured = [bench.exact(candidate).throughput for candidate, _ in bench.asked]
        chosen = bench.exact(found.best).throughput
        assert chosen >= measured[0]
        # What is hardly better does not replace the incumbent, least where too few benchmarks are left to repeat them.
        assert chosen >= max(measured) / (1 + FAR)
        runs.append((found.best, bench.asked))
    assert runs[0] == runs[1]


def test_what_is_hardly_better_does_not_replace_the_incumbent() -> None:
    case = problem([2.0], devices=1)
    incumbent = Candidate(Matrix(((8,),)))

    def bench(candidate: Candidate, repeat: int = 0) -> Measured:
        return Measured(100.0 if candidate == incumbent else 100.9)

    found = guided(case, None, incumbent, bench, Throughput(), 12, seed=0)
    assert found is not None
    assert found.best == incumbent


@pytest.mark.parametrize(("budget", "gain", "replaced"), [(3, 1.1, False), (3, 1.2, True), (12, 1.1, True)])
def test_few_benchmarks_replace_the_incumbent_by_what_is_far_better_alone(
    budget: int, gain: float, replaced: bool
) -> None:
    case = problem([2.0], devices=1)
    incumbent = Candidate(Matrix(((8,),)))

    def bench(candidate: Candidate, repeat: int = 0) -> Measured:
        return Measured(100.0 if candidate == incumbent else 100.0 * gain)

    found = guided(case, None, incumbent, bench, Throughput(), budget, seed=0)
    assert found is not None
    assert (found.best != incumbent) == replaced


def contest(truth: list[float], noise: float, seed: int, limit: int) -> tuple[Ledger, list[Candidate], Candidate]:
    """Candidates of such true samples/s, the incumbent first, each measured once and then as often as is confirmed.

    Noise is that of two windows together.
    """
    random = np.random.default_rng(seed)
    candidates = [Candidate(Matrix(((size,),))) for size in range(1, len(truth) + 1)]

    def bench(candidate: Candidate, repeat: int = 0) -> Measured:
        windows = truth[candidates.index(candidate)] * (1 + noise * 2**0.5 * random.standard_normal(2))
        return Measured(float(windows.mean()), spread=float(np.ptp(windows) / windows.mean()))

    ledger = Ledger(bench, Throughput(), limit, "auto", candidates[0])
    for candidate in candidates:
        ledger.ask(candidate)
    confirm(ledger)
    best = chosen(ledger)
    assert best is not None
    return ledger, candidates, best


@settings(deadline=None, suppress_health_check=BUSY)
@given(st.lists(st.floats(80, 120), min_size=1, max_size=6), st.sampled_from([0.0, 0.02, 0.1]), st.integers(0, 9999))
def test_an_incumbent_is_replaced_by_what_was_measured_often_or_is_far_better(
    rivals: list[float], noise: float, seed: int
) -> None:
    ledger, candidates, best = contest([100.0, *rivals], noise, seed, limit=12)
    assert ledger.made <= 12
    if best == candidates[0]:
        return
    first, *again = ledger.scores(best)
    mean, others = float(np.mean(again or [first])), ledger.scores(candidates[0])
    assert mean > np.mean(others)
    assert min(len(again), len(others)) >= REPEATS or mean > (1 + FAR) * np.mean(others)


@pytest.mark.parametrize(("noise", "middle", "spread"), [(0.02, 0.98, 0.015), (0.02, 1.0, 0.01), (0.04, 0.98, 0.015)])
def test_an_incumbent_is_hardly_ever_replaced_by_something_worse(noise: float, middle: float, spread: float) -> None:
    """The luckiest of five rivals looks better than it is."""
    random, worse = np.random.default_rng(0), 0
    for seed in range(500):
        rivals = (middle + spread * random.standard_normal(5)).tolist()
        _, candidates, best = contest([1.0, *rivals], noise, seed, limit=11)
        worse += best != candidates[0] and rivals[candidates.index(best) - 1] < 1
    assert worse <= 5


@pytest.mark.parametrize(("rivals", "limit"), [(1, 2), (2, 3), (2, 4), (5, 7)])
def test_few_benchmarks_hardly_ever_replace_the_incumbent_by_something_worse_however_noisy(
    rivals: int, limit: int
) -> None:
    """Nothing or little is measured twice: what windows differ tells the noise."""
    random, worse = np.random.default_rng(0), 0
    for seed in range(500):
        others = (0.98 + 0.015 * random.standard_normal(rivals)).tolist()
        _, candidates, best = contest([1.0, *others], 0.1, seed, limit)
        worse += best != candidates[0] and others[candidates.index(best) - 1] < 1
    assert worse <= 10


def test_an_incumbent_is_replaced_by_what_is_clearly_better() -> None:
    random, replaced = np.random.default_rng(0), 0
    for seed in range(200):
        _, candidates, best = contest([1.0, *(1.08 + 0.02 * random.standard_normal(5))], 0.02, seed, limit=11)
        replaced += best != candidates[0]
    assert replaced >= 170


def test_too_little_memory_is_a_lesson() -> None:
    """Workers need 15 % more than was measured: three do not fit on a device, and that is tried but once."""
    case = problem([4.0, 4.0, 4.0, 4.0], devices=2, memory=100.0, need=31.0)
    bench = Simulator(with_needs(case, 1.15), LOAD)
    start = Candidate(case.matrix(np.array([[1, 1, 0, 0], [0, 0, 1, 1]])))
    found = guided(case, start, None, bench, Throughput(), 12, seed=0)
    assert found is not None
    failures = [candidate for candidate, _ in bench.asked if bench.truth.full(candidate) is not None]
    assert len(failures) <= 1
    assert found.score > 0
    crowded = Candidate(case.matrix(np.array([[1, 1, 1, 0], [0, 0, 0, 1]])))
    learnt = fitted(case, {crowded: [Measured(0.0, reason="out of memory", device=0)]})
    assert not learnt.fits(learnt.indices(crowded.matrix))
    assert learnt.fits(learnt.indices(start.matrix))


def test_after_a_lesson_other_matrices_are_proposed() -> None:
    """Batches of 32 take more than there is: all that was proposed has them, and the search goes on without."""
    case = problem([2.0, 2.0], devices=4)
    case = Problem(**{**vars(case), "needs": case.needs * np.array([1.0, 3.0])})  # 30 and 90 of 100 MiB
    bench = Simulator(with_needs(case, 1.15), LOAD)
    start = Candidate(Matrix(((8, 0), (0, 8), (0, 0), (0, 0))))
    found = guided(case, start, None, bench, Throughput(), 12, seed=0)
    assert found is not None
    failures = [candidate for candidate, _ in bench.asked if bench.truth.full(candidate) is not None]
    assert len(failures) == 1
    assert bench.exact(found.best).throughput > 1.9 * bench.exact(start).throughput


def test_a_device_is_blamed_if_the_server_names_it_or_if_it_is_rather_full() -> None:
    case = problem([4.0, 4.0], devices=2, memory=100.0, need=40.0)
    light, heavy = (Candidate(Matrix(rows)) for rows in (((8, 0), (0, 8)), ((8, 8), (0, 8))))
    unclear = Measured(0.0, reason="killed by signal 9", memory=True)
    told = Measured(0.0, reason="out of memory", memory=True, device=0)
    assert (fitted(case, {light: [unclear]}).needs == case.needs).all()
    assert fitted(case, {light: [told]}).needs[0, 0, 0] == pytest.approx(40 * 1.5)
    for lesson in (unclear, told):
        assert fitted(case, {heavy: [lesson]}).needs[1, 0, 0] == pytest.approx(50.05)


def test_what_fails_for_another_reason_says_nothing_of_memory() -> None:
    case = problem([4.0, 4.0], devices=2, memory=100.0, need=40.0)
    heavy = Candidate(Matrix(((8, 8), (0, 8))))
    assert (fitted(case, {heavy: [Measured(0.0, reason="the server is gone")] * 2}).needs == case.needs).all()


def test_what_neighbours_cost_is_learnt_from_throughput_alone() -> None:
    """One request in flight: more devices are no faster, as if neighbours cost nothing where there are most of them."""
    case = problem([2.0, 2.0], devices=2)
    rows = [((8, 8), (0, 0)), ((8, 0), (0, 8)), ((8, 8), (8, 8)), ((32, 32), (0, 32))]
    seen = {Candidate(Matrix(each)): [Measured(100.0, latency=(0.1, 0.1, 0.1))] for each in rows}
    load = Load(in_flight=1, samples=8, requests=8)

    def bench(candidate: Candidate, repeat: int = 0) -> Measured:
        return seen[candidate][0]

    def learnt(objective: Objective) -> float:
        return Ledger(bench, objective, 9, "auto", seen=seen).learnt(case).interference

    assert learnt(Throughput()) != case.interference
    assert learnt(Latency(99, load)) == learnt(within(10)) == case.interference


@pytest.mark.parametrize("failing", [0, 1])
def test_an_incumbent_that_cannot_be_served_any_more_is_replaced(failing: int) -> None:
    """With the device that lacks memory told or not."""
    case = problem([2.0, 3.0], devices=2)
    incumbent = Candidate(Matrix(((32, 32), (0, 32))))

    def bench(candidate: Candidate, repeat: int = 0) -> Measured:
        if candidate == incumbent:
            return Measured(0.0, reason="out of memory", device=0 if failing else None)
        return Measured(100.0)

    found = guided(case, Candidate(Matrix(((8, 0), (0, 8)))), incumbent, bench, Throughput(), 6, seed=0)
    assert found is not None
    assert found.best != incumbent
    assert found.score == 100.0


def test_a_server_that_serves_nothing() -> None:
    case = problem([2.0, 3.0], devices=2)

    def bench(candidate: Candidate, repeat: int = 0) -> Measured:
        return Measured(0.0, reason="it died")

    assert guided(case, None, None, bench, Throughput(), 4, seed=0) is None


CROWDED = [
    Candidate(Matrix(((32, 32), (0, 32))), ((1.0, 0.3), (0.0, 0.7))),
    Candidate(Matrix(((32, 0), (32, 32))), ((0.6, 0.0), (0.4, 1.0))),
    Candidate(Matrix(((32, 32), (32, 32))), ((0.5, 0.5), (0.5, 0.5))),
    Candidate(Matrix(((32, 0), (0, 32)))),
]


def test_neighbours_that_disturb_are_learnt() -> None:
    case = problem([2.0, 2.0], devices=2)
    bench = Simulator(truth_of(replace(case, interference=0.2)), LOAD)
    seen = {candidate: [bench(candidate)] for candidate in CROWDED}
    assert fitted(case, seen).interference > 0.08
    few = {candidate: seen[candidate] for candidate in CROWDED[:3]}
    assert fitted(case, few).interference == case.interference


def test_what_is_slower_everywhere_tells_nothing_of_neighbours() -> None:
    case = problem([2.0, 2.0], devices=2)
    bench = Simulator(truth_of(replace(case, speeds=0.8 * case.speeds)), LOAD)
    assert fitted(case, {candidate: [bench(candidate)] for candidate in CROWDED}).interference == case.interference


def test_an_instance_of_the_study_comes_within_a_tenth_of_the_bound() -> None:
    case = calibrated_case("IMN4", parse_devices("4xV100-16GB,1xCPU"))
    assert case.members == ENSEMBLES["IMN4"]
    bench = Simulator(with_needs(case.problem), Load(in_flight=3, samples=1024, requests=16), noise=0.02, seed=3)
    found = guided(case.problem, None, None, bench, Throughput(), 12, seed=3)
    assert found is not None
    assert len(bench.asked) <= 12
    assert bench.exact(found.best).throughput >= 0.9 * upper_bound(case.problem)


# --- other objectives


def test_latency_prefers_small_batches_and_devices_apart() -> None:
    case = problem([2.0, 2.0], devices=2, sizes=(1, 8, 32))
    load = Load(in_flight=1, samples=1, requests=8)
    objective = Latency(99, load)
    bench = Simulator(truth_of(case), load)
    found = guided(case, None, None, bench, objective, 6, seed=0)
    assert found is not None
    rows = found.best.matrix.batch_sizes
    assert all(sum(size > 0 for size in row) == 1 for row in rows)
    assert 1 / found.score == pytest.approx(0.010)


def test_more_requests_in_flight_than_are_simulated() -> None:
    case, load = problem([2.0], devices=24), Load(in_flight=32, samples=8, requests=24)

    def bench(candidate: Candidate, repeat: int = 0) -> Measured:
        return Measured(100.0, latency=(0.1, 0.1, 0.1))

    assert guided(case, None, None, bench, Latency(99, load), 4, seed=0) is not None


def test_throughput_within_a_latency_keeps_the_limit() -> None:
    case = problem([2.0], devices=1, sizes=(8, 32))
    loads = tuple(Load(in_flight, 32, 12) for in_flight in (1, 2, 4))
    objective = ThroughputWithin(90, 0.2, loads)
    fast = Candidate(Matrix(((32,),)))
    assert objective.expected(case, fast) == pytest.approx(1000 / 2.25, rel=0.01)
    slow, slower = (ThroughputWithin(90, seconds, loads).expected(case, fast) for seconds in (0.05, 0.04))
    assert 0 < slower < slow
    assert not keeps_limit(slow)
    assert objective.score(Measured(400.0, latency=(0.1, 0.15, 0.3))) == 400.0
    near, far = (objective.score(Measured(400.0, latency=(0.1, seconds, 0.9))) for seconds in (0.21, 0.3))
    assert 0 < far < near
    assert not keeps_limit(near)
    assert objective.score(Measured(0.0, reason="it died")) == 0.0


def within(milliseconds: float) -> ThroughputWithin:
    return ThroughputWithin(90, milliseconds / 1000, (Load(1, 32, 12),))


def test_a_latency_that_the_server_keeps_and_the_model_does_not() -> None:
    """The model has no request under 30 ms; all that is measured is back in 9."""
    case = problem([2.0, 2.0], devices=2)

    def bench(candidate: Candidate, repeat: int = 0) -> Measured:
        return Measured(500.0, latency=(0.009, 0.009, 0.009))

    found = guided(case, Candidate(Matrix(((8, 0), (0, 8)))), None, bench, within(10), 6, seed=0)
    assert found is not None
    assert found.score == 500.0
    assert not keeps_limit(found.expected)


def test_the_search_goes_on_while_no_candidate_keeps_the_latency() -> None:
    """By the model, too, which promises less and less."""
    case = problem([2.0, 3.0, 4.0], devices=2)
    asked: list[Candidate] = []

    def bench(candidate: Candidate, repeat: int = 0) -> Measured:
        asked.append(candidate)
        seconds = 0.009 if len(asked) == 5 else 0.05
        return Measured(500.0, latency=(seconds, seconds, seconds))

    found = guided(case, None, None, bench, within(10), 12, seed=0)
    assert found is not None
    assert found.best == asked[4]
    assert len(set(asked[:5])) == 5


def test_the_shortest_requests_where_no_candidate_keeps_the_latency() -> None:
    """However many samples/s others give."""
    case = problem([2.0, 2.0], devices=2)
    start, incumbent = Candidate(Matrix(((8, 0), (0, 8)))), Candidate(Matrix(((8, 8), (0, 0))))

    def bench(candidate: Candidate, repeat: int = 0) -> Measured:
        seconds = 0.02 if candidate == incumbent else 0.05
        return Measured(10.0 if candidate == incumbent else 900.0, latency=(seconds, seconds, seconds))

    found = guided(case, start, incumbent, bench, within(10), 6, seed=0)
    assert found is not None
    assert found.best == incumbent


@pytest.mark.parametrize("with_incumbent", [False, True])
def test_what_would_be_refused_for_its_latency_is_not_measured_again(with_incumbent: bool) -> None:
    case = problem([2.0, 3.0, 4.0], devices=2)
    incumbent = Candidate(Matrix(((8, 8, 0), (0, 0, 8)))) if with_incumbent else None
    asked: list[Candidate] = []

    def bench(candidate: Candidate, repeat: int = 0) -> Measured:
        asked.append(candidate)
        return Measured(500.0, latency=(0.05, 0.05, 0.05))

    assert guided(case, None, incumbent, bench, within(10), 12, seed=0) is not None
    assert len(asked) == len(set(asked))


def test_one_measurement_over_the_latency_is_enough_to_lose() -> None:
    candidate = Candidate(Matrix(((8,),)))

    def bench(candidate: Candidate, repeat: int = 0) -> Measured:
        seconds = 0.2 if repeat == 1 else 0.05
        return Measured(330.0, latency=(seconds, seconds, seconds))

    ledger = Ledger(bench, within(100), 3, "auto")
    for score in (330.0, OVER / 2, OVER / 2):
        ledger.ask(candidate)
        assert ledger.score(candidate) == pytest.approx(score)


def test_no_more_devices_than_a_rate_needs() -> None:
    case = problem([2.0], devices=4)
    alone = upper_bound(problem([2.0], devices=1))
    for required, devices in ((0.9 * alone, 1), (1.1 * alone, 2), (2.9 * alone, 3)):
        bench = Simulator(truth_of(case), LOAD)
        found = fewest_devices(case, required, bench, 12, seed=0)
        assert found is not None
        assert found.score >= required
        assert sum(any(row) for row in found.best.matrix.batch_sizes) == devices
        assert len(bench.asked) <= 12
    unreachable = fewest_devices(case, 9 * alone, Simulator(truth_of(case), LOAD), 6, seed=0)
    assert unreachable is not None
    assert unreachable.score < 9 * alone


def test_a_number_of_devices_does_not_use_up_all_benchmarks() -> None:
    """All is 10 % slower than profiled, so that two devices promise what three give."""
    case = problem([2.0, 3.0, 4.0], devices=4)
    slower = Problem(**{**vars(case), "speeds": 0.9 * case.speeds})
    required = 0.97 * promised(case.on(np.arange(2)), Throughput(), "auto", 0)
    bench = Simulator(truth_of(slower), LOAD)
    found = fewest_devices(case, required, bench, 8, seed=0)
    assert found is not None
    assert found.score >= required
    assert len(bench.asked) <= 8
    tried = [sum(any(row) for row in candidate.matrix.batch_sizes) for candidate, _ in bench.asked]
    assert tried.count(2) == 4
    assert set(tried) == {2, 3}


def test_one_benchmark_is_for_the_fewest_devices_that_promise_enough() -> None:
    case = problem([2.0], devices=4)
    bench = Simulator(truth_of(case), LOAD)
    found = fewest_devices(case, 0.9 * upper_bound(problem([2.0], devices=1)), bench, 1, seed=0)
    assert found is not None
    assert sum(any(row) for row in found.best.matrix.batch_sizes) == len(bench.asked) == 1


def test_the_fewest_devices_are_those_with_the_most_memory() -> None:
    """Both members fit on the last device together, and on no other."""
    case = problem([2.0, 2.0], devices=3)
    uneven = Problem(**{**vars(case), "capacity": np.array([40.0, 40.0, 100.0])})
    required = 0.8 * upper_bound(problem([2.0, 2.0], devices=1))
    found = fewest_devices(uneven, required, Simulator(with_needs(uneven), LOAD), 12, seed=0)
    assert found is not None
    assert [any(row) for row in found.best.matrix.batch_sizes] == [False, False, True]
