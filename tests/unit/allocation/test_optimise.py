from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.support.allocation import BOTH, KilledError, Machine, Timed, allocate, found_by, routed

from ensemble_core.allocation.candidate import Candidate
from ensemble_core.allocation.matrix import Matrix
from ensemble_core.allocation.optimise import benchmarks_at_most
from ensemble_core.allocation.result import AllocationResult, Benchmark, Subject, Throughput
from ensemble_core.allocation.stored import Benchmarks, stored_allocation
from ensemble_core.api.ensembledeployment import Routing, Serving
from ensemble_core.errors import UserError


def test_the_result_tells_everything(results: Any, make_subject: Callable[..., Subject]) -> None:
    subject = make_subject(maxBenchmarks=9)
    machine = Machine()
    seen: list[Benchmark] = []
    bench = Benchmarks(results, subject, machine, seen.append)
    found = found_by(results, subject, bench)
    assert found.start.matrix == ((8, 0), (0, 8))
    assert [b.order for b in found.benchmarks] == list(range(9))
    assert [b.matrix for b in found.benchmarks] == [matrix.batch_sizes for matrix in machine.measured]
    assert tuple(seen) == found.benchmarks
    assert found.throughput == max((b.throughput for b in found.benchmarks), key=lambda t: t.samples_per_second)
    assert found.throughput.samples_per_second > found.start.throughput.samples_per_second
    assert (found.throughput.how, found.algorithm, found.name) == ("measured", "bounded-greedy", "digits")
    assert stored_allocation(results, subject) == found
    assert AllocationResult.model_validate(found.document()) == found


def test_worst_fit_measures_its_matrix_once(results: Any, make_subject: Callable[..., Subject]) -> None:
    subject = make_subject(algorithm="worst-fit")
    machine = Machine()
    found = allocate(results, subject, machine)
    assert machine.measured == [Matrix(found.start.matrix)] == [Matrix(found.matrix)]
    assert benchmarks_at_most(subject) == 1


def test_nothing_is_written_when_the_starting_matrix_cannot_be_served(
    results: Any, make_subject: Callable[..., Subject]
) -> None:
    subject = make_subject(members=1, devices=1, maxBenchmarks=3)

    def refuse(candidate: Candidate) -> Throughput:
        return Throughput(samples_per_second=0, reason="the server died twice")

    bench = Benchmarks(results, subject, refuse, lambda benchmark: None)
    with pytest.raises(UserError, match="even at the smallest batch size: the server died twice"):
        found_by(results, subject, bench)
    assert results.count("allocations") == 0
    assert len(bench.done) == 1  # no other matrix needs less


class Cramped(Machine):
    """No two members fit on a device, though profiles say so; the server tells which device is full."""

    def __init__(self, tells: bool) -> None:
        super().__init__()
        self.tells = tells

    def __call__(self, candidate: Candidate) -> Throughput:
        found = super().__call__(candidate)
        full = next((d for d, row in enumerate(candidate.matrix.batch_sizes) if sum(map(bool, row)) > 1), None)
        if full is None:
            return found
        return Throughput(samples_per_second=0, reason="too much", device=full if self.tells else None)


def test_guided_ends_at_once_when_its_start_fails_but_not_for_want_of_memory(
    results: Any, make_subject: Callable[..., Subject]
) -> None:
    """Of three devices the first has the most memory, so both small members begin there; apart they are served."""
    subject = make_subject(algorithm="guided", devices=3, maxBenchmarks=12)
    devices = (subject.devices[0].model_copy(update={"memory_mib": 2000.0}), *subject.devices[1:])
    subject = replace(subject, devices=devices)
    unclear = Cramped(tells=False)
    with pytest.raises(UserError, match="even at the smallest batch size: too much"):
        allocate(results, subject, unclear)
    assert len(unclear.measured) == 1
    assert results.files == {}
    lesson = Cramped(tells=True)
    found = allocate(results, subject, lesson)
    assert lesson.measured[0] == Matrix(found.start.matrix) == Matrix(((8, 8), (0, 0), (0, 0)))
    assert found.start.throughput == Throughput(samples_per_second=0, reason="too much", device=0)
    assert all(sum(map(bool, row)) <= 1 for row in found.matrix)
    assert found.throughput.samples_per_second > 0


def test_guided_goes_on_when_its_start_lacks_memory_on_a_device_that_is_not_told(
    results: Any, make_subject: Callable[..., Subject]
) -> None:
    subject = make_subject(algorithm="guided", devices=3, maxBenchmarks=12)
    devices = (subject.devices[0].model_copy(update={"memory_mib": 2000.0}), *subject.devices[1:])

    class Killed(Cramped):
        def __call__(self, candidate: Candidate) -> Throughput:
            return super().__call__(candidate).model_copy(update={"memory": True})

    machine = Killed(tells=False)
    found = allocate(results, replace(subject, devices=devices), machine)
    assert machine.measured[0] == Matrix(found.start.matrix) == Matrix(((8, 8), (0, 0), (0, 0)))
    assert found.start.throughput == Throughput(samples_per_second=0, reason="too much", memory=True)
    assert all(sum(map(bool, row)) <= 1 for row in found.matrix)


def test_a_start_that_fails_beside_an_incumbent_that_is_served_ends_nothing(
    results: Any, make_subject: Callable[..., Subject]
) -> None:
    rows = [{"device": "cpu0", "batchSizes": [32, 0]}, {"device": "cpu1", "batchSizes": [0, 32]}]
    subject = make_subject(algorithm="guided", maxBenchmarks=4, matrix=rows)

    class Odd(Machine):
        def __call__(self, candidate: Candidate) -> Throughput:
            found = super().__call__(candidate)
            small = candidate.matrix.batch_sizes == ((8, 0), (0, 8))
            return Throughput(samples_per_second=0, reason="an odd one") if small else found

    found = allocate(results, subject, Odd())
    assert found.start.throughput.reason == "an odd one"
    assert found.throughput.samples_per_second > 0


def test_a_matrix_that_could_not_be_served_is_measured_again_by_the_next_run(
    results: Any, make_subject: Callable[..., Subject]
) -> None:
    subject = make_subject(algorithm="worst-fit")

    def refuse(candidate: Candidate) -> Throughput:
        return Throughput(samples_per_second=0, reason="out of memory")

    bench = Benchmarks(results, subject, refuse, lambda benchmark: None)
    with pytest.raises(UserError, match="out of memory"):
        found_by(results, subject, bench)
    assert allocate(results, subject, Machine()).throughput.samples_per_second > 0


# --- the default algorithm, and the others by name


@pytest.mark.parametrize("killed_after", [0, 1, 2])
def test_a_killed_guided_run_continues(results: Any, make_subject: Callable[..., Subject], killed_after: int) -> None:
    subject = make_subject(algorithm="guided", maxBenchmarks=5)
    whole = Machine()
    undisturbed = allocate(type(results)(), subject, whole)
    first, second = Machine(dies_after=killed_after), Machine()
    with pytest.raises(KilledError):
        allocate(results, subject, first)
    assert allocate(results, subject, second) == undisturbed
    assert first.measured + second.measured == whole.measured
    assert len(whole.measured) <= 5


class Slower(Machine):
    """A machine on another day."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.part = 1 - by

    def __call__(self, candidate: Candidate) -> Throughput:
        found = super().__call__(candidate)
        return found.model_copy(update={"samples_per_second": self.part * found.samples_per_second})


@pytest.mark.parametrize("slowdown", [0.05, 0.25])
@pytest.mark.parametrize("settings", [{"seed": 1, "maxBenchmarks": 6}, {"maxBenchmarks": 8}])
def test_another_run_compares_the_incumbent_by_what_it_measures_itself(
    results: Any, make_subject: Callable[..., Subject], settings: dict[str, int], slowdown: float
) -> None:
    """What was found the day before would look better than what serves, and only because that day was a better one."""
    before = allocate(results, make_subject(algorithm="guided", maxBenchmarks=6), Machine())
    today = Slower(slowdown)
    found = allocate(results, make_subject(algorithm="guided", **settings), today)
    assert found.benchmarks[0].candidate == before.candidate
    assert [Matrix(done.matrix) for done in found.benchmarks] == today.measured
    assert {done.candidate for done in found.benchmarks} & {done.candidate for done in before.benchmarks[1:]}
    speed = Machine()(found.candidate).samples_per_second
    assert speed >= before.throughput.samples_per_second
    assert found.throughput.samples_per_second == pytest.approx((1 - slowdown) * speed)


def test_a_killed_run_with_an_incumbent_continues(results: Any, make_subject: Callable[..., Subject]) -> None:
    allocate(results, make_subject(algorithm="guided", maxBenchmarks=3), Machine())
    subject, whole, same = make_subject(algorithm="guided", maxBenchmarks=4), Machine(), type(results)()
    same.files = dict(results.files)
    undisturbed = allocate(same, subject, whole)
    first, second = Machine(dies_after=1), Machine()
    with pytest.raises(KilledError):
        allocate(results, subject, first)
    assert allocate(results, subject, second) == undisturbed
    assert first.measured == [Matrix(undisturbed.benchmarks[0].matrix)]
    assert first.measured + second.measured == whole.measured


def test_guided_tells_bound_and_expectation_and_beats_its_start(
    results: Any, make_subject: Callable[..., Subject]
) -> None:
    subject = make_subject(algorithm="guided", maxBenchmarks=8)
    found = allocate(results, subject, Machine())
    assert found.algorithm == "guided"
    assert found.start.matrix == ((8, 0), (0, 8))
    assert found.throughput.samples_per_second > found.start.throughput.samples_per_second
    # Two devices for two members that take 0.3 and 0.6 s for 32 samples.
    assert found.bound == pytest.approx(2 * 32 / 0.9)
    assert found.expected is not None
    assert benchmarks_at_most(subject) == 8


@pytest.mark.parametrize(
    ("algorithm", "matrix", "benchmarks"),
    [("best-batch", ((32, 0), (0, 32)), 1), ("latency-greedy", ((0, 8), (8, 0)), 1), ("paper-greedy", None, 6)],
)
def test_reference_algorithms_by_name(
    results: Any,
    make_subject: Callable[..., Subject],
    algorithm: str,
    matrix: tuple[tuple[int, ...], ...] | None,
    benchmarks: int,
) -> None:
    subject = make_subject(algorithm=algorithm, maxBenchmarks=6)
    machine = Machine()
    found = allocate(results, subject, machine)
    assert found.algorithm == algorithm
    assert len(machine.measured) == benchmarks == benchmarks_at_most(subject)
    assert matrix is None or found.matrix == matrix
    assert (found.shares, found.expected) == (None, None)


@pytest.mark.parametrize(
    ("serving", "sizes"),
    [
        ({"segment_size": 128}, (8, 16, 32, 64, 128)),
        ({"segment_size": 64}, (8, 16, 32, 64)),
        ({"max_batch_size": 24}, (8, 16, 24)),
        ({"segment_size": 4}, (4,)),
    ],
)
@pytest.mark.parametrize("algorithm", ["guided", "paper-greedy", "best-batch"])
def test_no_batch_is_larger_than_can_be_filled(
    results: Any, make_subject: Callable[..., Subject], serving: dict[str, int], sizes: tuple[int, ...], algorithm: str
) -> None:
    subject = make_subject(algorithm=algorithm, maxBenchmarks=9, batchSizes=[8, 16, 32, 64, 128])
    spec = subject.deployment.spec.model_copy(update={"serving": Serving(**serving)})
    subject = replace(subject, deployment=subject.deployment.model_copy(update={"spec": spec}))
    assert spec.batch_sizes == sizes
    machine = Machine()
    found = allocate(results, subject, machine)
    assert max(size for row in found.matrix for size in row) == sizes[-1]
    assert {size for matrix in machine.measured for row in matrix.rows() for size in row} <= {0, *sizes}


def test_best_batch_without_enough_devices(results: Any, make_subject: Callable[..., Subject]) -> None:
    with pytest.raises(
        UserError, match=r"optimization.algorithm: best-batch: 3 members need as many devices; there are 2"
    ):
        allocate(results, make_subject(members=3, algorithm="best-batch"), Machine())


def test_what_cannot_be_reached_is_told(results: Any, make_subject: Callable[..., Subject]) -> None:
    subject = make_subject(
        algorithm="guided", objective="fewest-devices", requiredSamplesPerSecond=1e6, maxBenchmarks=4
    )
    with pytest.raises(
        UserError, match=r"requiredSamplesPerSecond: 1e\+06 cannot be reached: the fastest of \d matrices"
    ):
        allocate(results, subject, Machine())
    assert results.count("allocations") == 0


def test_what_few_devices_do_not_reach_is_told_with_their_number(
    results: Any, make_subject: Callable[..., Subject]
) -> None:
    """One device of three promises 27 samples/s and gives 20, and the one benchmark is made."""
    subject = make_subject(
        algorithm="guided", objective="fewest-devices", requiredSamplesPerSecond=27, maxBenchmarks=1, devices=3
    )

    def measure(candidate: Candidate) -> Throughput:
        return Throughput(samples_per_second=20.0)

    with pytest.raises(UserError) as refused:
        found_by(results, subject, Benchmarks(results, subject, measure, lambda benchmark: None))
    assert refused.value.problem == (
        "27 is not reached: the fastest of 1 matrices, on 1 of 3 devices at most, gives 20; "
        "raise maxBenchmarks to go on"
    )


@pytest.mark.parametrize("algorithm", ["guided", "worst-fit", "bounded-greedy"])
def test_a_latency_that_no_matrix_keeps_is_told(
    results: Any, make_subject: Callable[..., Subject], algorithm: str
) -> None:
    def subject(milliseconds: float) -> Subject:
        latency = {"percentile": "p90", "milliseconds": milliseconds}
        return make_subject(algorithm=algorithm, objective="throughput-within-latency", latency=latency)

    with pytest.raises(UserError) as refused:
        allocate(results, subject(70), Timed())
    assert refused.value.where == "digits.yaml: spec.optimization.latency.milliseconds"
    assert refused.value.problem.startswith("70 ms cannot be kept: the lowest p90 of ")
    assert " is 80 ms" in refused.value.problem
    assert results.count("allocations") == 0
    found = allocate(results, subject(80), Timed())
    assert {size for row in found.matrix for size in row} <= {0, 8}


def test_what_was_over_the_latency_is_measured_again_by_the_next_run(
    results: Any, make_subject: Callable[..., Subject]
) -> None:
    limit = {"milliseconds": 100, "percentile": "p90"}
    subject = make_subject(algorithm="guided", objective="throughput-within-latency", latency=limit, maxBenchmarks=6)

    class Busy(Machine):
        seconds = 0.5

        def __call__(self, candidate: Candidate) -> Throughput:
            return super().__call__(candidate).model_copy(update={"latency_seconds": (self.seconds,) * 3})

    machine = Busy()
    with pytest.raises(UserError, match="100 ms cannot be kept"):
        allocate(results, subject, machine)
    assert results.files == {}
    machine.seconds = 0.01
    assert allocate(results, subject, machine).throughput.latency_seconds == (0.01,) * 3


def test_a_killed_run_finds_also_what_was_over_the_latency(results: Any, make_subject: Callable[..., Subject]) -> None:
    limit = {"milliseconds": 1, "percentile": "p90"}
    subject = make_subject(algorithm="guided", objective="throughput-within-latency", latency=limit, maxBenchmarks=6)
    first, second = Timed(dies_after=2), Timed()
    with pytest.raises(KilledError):
        allocate(results, subject, first)
    with pytest.raises(UserError, match="1 ms cannot be kept"):
        allocate(results, subject, second)
    assert len(first.measured) == 2
    assert not set(first.measured) & set(second.measured)
    assert results.files == {}


def test_what_was_over_a_latency_that_others_allowed_is_measured_again(
    results: Any, make_subject: Callable[..., Subject]
) -> None:
    """Both runs ask for matrices under the same load, so the second finds what the first has measured."""

    def within(milliseconds: float) -> Subject:
        limit = {"milliseconds": milliseconds, "percentile": "p90"}
        return make_subject(algorithm="worst-fit", objective="throughput-within-latency", latency=limit)

    class Busy(Machine):
        seconds = 0.5

        def __call__(self, candidate: Candidate) -> Throughput:
            return super().__call__(candidate).model_copy(update={"latency_seconds": (self.seconds,) * 3})

    machine = Busy()
    allocate(results, within(1000), machine)
    with pytest.raises(UserError, match="100 ms cannot be kept"):
        allocate(results, within(100), machine)
    machine.seconds = 0.01
    assert allocate(results, within(100), machine).throughput.latency_seconds == (0.01,) * 3


@pytest.mark.parametrize("benchmarks", [1, 8])
def test_what_gave_too_little_is_measured_again_by_the_next_run(
    results: Any, make_subject: Callable[..., Subject], benchmarks: int
) -> None:
    subject = make_subject(
        algorithm="guided", objective="fewest-devices", requiredSamplesPerSecond=27, maxBenchmarks=benchmarks, devices=3
    )

    class Busy(Machine):
        speed = 20.0

        def __call__(self, candidate: Candidate) -> Throughput:
            return super().__call__(candidate).model_copy(update={"samples_per_second": self.speed})

    machine = Busy()
    with pytest.raises(UserError, match=r"requiredSamplesPerSecond: 27 (is not|cannot be) reached"):
        allocate(results, subject, machine)
    assert results.files == {}
    machine.speed = 30.0
    found = allocate(results, subject, machine)
    assert found.throughput.samples_per_second == 30.0
    assert sum(any(row) for row in found.matrix) == 1


# --- routing


class Favouring(Machine):
    """Twice as fast when samples are routed in one of the ways."""

    def __init__(self, routing: str) -> None:
        super().__init__()
        self.routing = routing
        self.asked: list[Candidate] = []

    def __call__(self, candidate: Candidate) -> Throughput:
        self.asked.append(candidate)
        found = super().__call__(candidate)
        factor = 2 if candidate.routing == self.routing and candidate.matrix.divided else 1
        return found.model_copy(update={"samples_per_second": factor * found.samples_per_second})


@pytest.mark.parametrize("favoured", ["pull", "weights"])
def test_both_ways_of_routing_are_measured_and_the_better_is_chosen(
    results: Any, make_subject: Callable[..., Subject], favoured: str
) -> None:
    machine = Favouring(favoured)
    found = allocate(results, make_subject(algorithm="guided", maxBenchmarks=12, matrix=BOTH), machine)
    assert {candidate.routing for candidate in machine.asked if candidate.matrix.divided} == {"pull", "weights"}
    assert found.candidate.routing == favoured
    assert found.candidate.matrix.divided


@pytest.mark.parametrize(
    "settings", [{"algorithm": "guided", "matrix": BOTH}, {"algorithm": "guided"}, {"algorithm": "bounded-greedy"}]
)
@pytest.mark.parametrize(("allowed", "favoured"), [("pull", "weights"), ("weights", "pull")])
def test_a_way_of_routing_that_is_asked_for_is_the_only_one(
    results: Any, make_subject: Callable[..., Subject], settings: dict[str, Any], allowed: Routing, favoured: str
) -> None:
    """Also if the library has an allocation that is routed in the other way, and faster."""
    before = allocate(results, make_subject(algorithm="guided", maxBenchmarks=12, matrix=BOTH), Favouring(favoured))
    assert before.candidate.routing == favoured
    found = allocate(results, routed(make_subject(maxBenchmarks=9, **settings), allowed), Favouring(favoured))
    measured = [benchmark.candidate for benchmark in found.benchmarks if benchmark.candidate.matrix.divided]
    assert {candidate.routing for candidate in measured} == {allowed}
