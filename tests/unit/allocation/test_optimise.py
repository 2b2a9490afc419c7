from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from ensemble_core.allocation.candidate import Candidate
from ensemble_core.allocation.matrix import Matrix
from ensemble_core.allocation.memory import Curve, Memory
from ensemble_core.allocation.objectives import Latency, Objective, ThroughputWithin
from ensemble_core.allocation.objectives import Throughput as MostThroughput
from ensemble_core.allocation.optimise import (
    Benchmarks,
    allocated_elsewhere,
    benchmarks_at_most,
    find_allocation,
    starting_matrix,
    stored_allocation,
)
from ensemble_core.allocation.result import AllocationResult, Benchmark, Start, Subject, Throughput
from ensemble_core.allocation.simulator import Load
from ensemble_core.allocation.speeds import BatchTimes, Speeds
from ensemble_core.api.ensembledeployment import Routing, Serving
from ensemble_core.commands.allocate import Progress, table
from ensemble_core.errors import UserError
from ensemble_core.report import Report

WHERE = "digits.yaml: spec.devices"


class KilledError(Exception):
    pass


class Machine:
    """Measures by a formula; dies after some measurements."""

    def __init__(self, dies_after: int = 10**9) -> None:
        self.measured: list[Matrix] = []
        self.dies_after = dies_after

    def __call__(self, candidate: Candidate) -> Throughput:
        if len(self.measured) == self.dies_after:
            raise KilledError
        self.measured.append(candidate.matrix)
        speed = sum((10 + d + 2 * m) * size for d, m, size in candidate.matrix.entries())
        return Throughput(samples_per_second=float(speed), spread=0.01)


def memory_of(subject: Subject, need: float = 100.0) -> Memory:
    curves = tuple({"cpu-test-1c": Curve(((8, need), (32, need)))} for _ in subject.members)
    return Memory(
        tuple(row.memory_mib for row in subject.devices), tuple(row.device_type for row in subject.devices), curves
    )


def speeds_of(subject: Subject) -> Speeds:
    times = tuple(
        {"cpu-test-1c": BatchTimes(((8, 0.1 * (1 + m)), (32, 0.3 * (1 + m))))} for m in range(len(subject.members))
    )
    return Speeds(tuple(row.device_type for row in subject.devices), times)


def found_by(results: Any, subject: Subject, bench: Benchmarks) -> AllocationResult:
    return find_allocation(WHERE, results, subject, memory_of(subject), speeds_of(subject), bench)


def allocate(results: Any, subject: Subject, machine: Machine) -> AllocationResult:
    stored = stored_allocation(results, subject)
    if stored is not None:
        return stored
    bench = Benchmarks(results, subject, machine, lambda benchmark: None)
    return found_by(results, subject, bench)


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


def test_a_second_run_measures_nothing(results: Any, make_subject: Callable[..., Subject]) -> None:
    subject = make_subject(maxBenchmarks=12)
    found = allocate(results, subject, Machine())
    again = Machine()
    assert allocate(results, subject, again) == found
    assert again.measured == []


@pytest.mark.parametrize("killed_after", [0, 1, 5, 11])
def test_a_killed_run_continues_and_measures_only_what_is_missing(
    results: Any, make_subject: Callable[..., Subject], killed_after: int
) -> None:
    subject = make_subject(maxBenchmarks=12)
    undisturbed = allocate(type(results)(), subject, Machine())
    first, second = Machine(dies_after=killed_after), Machine()
    with pytest.raises(KilledError):
        allocate(results, subject, first)
    assert results.count("benchmarks") == killed_after
    assert results.count("allocations") == 0
    assert allocate(results, subject, second) == undisturbed
    assert not set(first.measured) & set(second.measured)
    assert len(first.measured) + len(second.measured) == 12


def test_an_allocation_on_other_devices_is_told_apart_from_other_settings(
    results: Any, make_subject: Callable[..., Subject]
) -> None:
    subject = make_subject(maxBenchmarks=2)
    found = allocate(results, subject, Machine())
    faster = tuple(row.model_copy(update={"device_type": "cpu-fast-1c"}) for row in subject.devices)
    elsewhere = replace(subject, devices=faster)
    assert stored_allocation(results, elsewhere) is None
    assert allocated_elsewhere(results, elsewhere) == found
    assert allocated_elsewhere(results, replace(make_subject(maxBenchmarks=3), devices=faster)) is None


def test_more_benchmarks_reuse_those_that_are_there(results: Any, make_subject: Callable[..., Subject]) -> None:
    allocate(results, make_subject(maxBenchmarks=4), Machine())
    more = Machine()
    found = allocate(results, make_subject(maxBenchmarks=6), more)
    assert len(found.benchmarks) == 6
    assert len(more.measured) == 2


def test_what_a_measurement_depends_on_changes_its_digest(make_subject: Callable[..., Subject]) -> None:
    candidate = Candidate(Matrix(((8, 0), (0, 8))))
    subject = make_subject()
    row = subject.devices[0]
    other_cores = (row.model_copy(update={"cores": (7,), "memory_mib": 5.0}), subject.devices[1])
    other_type = (row.model_copy(update={"device_type": "cpu-other-1c"}), subject.devices[1])
    model = (subject.members[0].model_copy(update={"sha256": "f" * 64}), subject.members[1])
    assert replace(subject, devices=other_cores).benchmark_digest(candidate) == subject.benchmark_digest(candidate)
    assert replace(subject, devices=other_cores).digest() == subject.digest()
    for changed in (
        replace(subject, devices=other_type),
        replace(subject, members=model),
        replace(subject, load={"seconds": 2.0}),
        replace(subject, server=subject.server.model_copy(update={"version": "2.60.0"})),
    ):
        assert changed.benchmark_digest(candidate) != subject.benchmark_digest(candidate)
        assert changed.digest() != subject.digest()
    assert make_subject(maxIter=3).digest() != subject.digest()
    assert make_subject(maxIter=3).benchmark_digest(candidate) == subject.benchmark_digest(candidate)


def test_devices_that_cannot_hold_the_members(make_subject: Callable[..., Subject]) -> None:
    subject = make_subject(members=3, memory_mib=150.0)
    with pytest.raises(UserError) as refused:
        starting_matrix(WHERE, subject, memory_of(subject, need=100.0))
    assert refused.value.where == f"{WHERE}[0]"
    problem = refused.value.problem
    assert "m-0002 needs 100 MiB at batch size 8" in problem
    assert "cpu0 has 50 of 150 MiB left, 50 MiB too few" in problem


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


def test_records_from_before_lacks_of_memory_were_told_are_read() -> None:
    stored = {"samplesPerSecond": 0, "reason": "it died"}
    assert not Throughput.model_validate(stored).measured().short_of_memory
    assert Throughput.model_validate({**stored, "device": 1}).measured().short_of_memory
    assert "memory" not in Throughput(samples_per_second=9.0).document()


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


def test_a_run_that_was_stopped_and_wakes_up_later_changes_nothing(
    results: Any, make_subject: Callable[..., Subject]
) -> None:
    subject = make_subject(maxBenchmarks=5)
    first: list[AllocationResult] = []

    def measure_while_another_run_ends(candidate: Candidate) -> Throughput:
        if not first:
            first.append(allocate(results, subject, Machine()))
        return Throughput(samples_per_second=1.0)

    bench = Benchmarks(results, subject, measure_while_another_run_ends, lambda benchmark: None)
    before = dict(results.files)
    assert found_by(results, subject, bench) == first[0]
    assert before == {}
    assert bench.done[0].throughput == first[0].benchmarks[0].throughput
    assert stored_allocation(results, subject) == first[0]


@pytest.mark.parametrize("kind", ["allocations", "benchmarks"])
def test_a_stored_result_that_was_tampered_with_is_refused(
    results: Any, make_subject: Callable[..., Subject], kind: str
) -> None:
    subject = make_subject(algorithm="worst-fit")
    allocate(results, subject, Machine())
    results.files = {key: "{}" for key in results.files if key[0] == kind}
    with pytest.raises(UserError, match=rf"{kind}/[0-9a-f]{{64}}\.json"):
        allocate(results, subject, Machine())


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


def test_the_fastest_allocation_of_the_library_is_the_incumbent(
    results: Any, make_subject: Callable[..., Subject]
) -> None:
    """A machine on which nothing is as fast as what was found before."""
    before = allocate(results, make_subject(maxBenchmarks=30, maxIter=9), Machine())

    class Slow(Machine):
        def __call__(self, candidate: Candidate) -> Throughput:
            found = super().__call__(candidate)
            known = candidate.matrix.batch_sizes == before.matrix
            return found if known else found.model_copy(update={"samples_per_second": 1.0})

    found = allocate(results, make_subject(algorithm="guided", maxBenchmarks=6, seed=5), Slow())
    assert found.benchmarks[0].matrix == before.matrix
    assert found.matrix == before.matrix
    assert found.throughput.samples_per_second >= before.throughput.samples_per_second


def test_the_incumbent_is_the_best_by_the_objective_of_those_measured_alike(
    results: Any, make_subject: Callable[..., Subject]
) -> None:
    """Small batches answer early; large ones give more samples/s, also in an allocation for another load."""

    def subject(objective: str, batch_sizes: list[int], load: int) -> Subject:
        made = make_subject(algorithm="worst-fit", objective=objective, batchSizes=batch_sizes)
        return replace(made, load={"requests": load})

    small = allocate(results, subject("latency", [8], 1), Timed())
    allocate(results, subject("latency", [32], 1), Timed())
    allocate(results, subject("throughput", [32], 3), Timed())
    again = make_subject(algorithm="guided", objective="latency", maxBenchmarks=1, seed=1)
    found = allocate(results, replace(again, load={"requests": 1}), Timed())
    assert [each.candidate for each in found.benchmarks] == [small.candidate]
    other = allocate(results, replace(again, load={"requests": 2}), Timed())
    assert {size for row in other.benchmarks[0].matrix for size in row} == {0, 32}


def test_what_was_replaced_is_not_the_incumbent_again_though_it_was_measured_on_a_better_day(
    results: Any, make_subject: Callable[..., Subject]
) -> None:
    before = allocate(results, make_subject(algorithm="guided", maxBenchmarks=6), Machine())

    class Changed(Machine):
        def __call__(self, candidate: Candidate) -> Throughput:
            part = 0.2 if candidate == before.candidate else 0.5
            found = super().__call__(candidate)
            return found.model_copy(update={"samples_per_second": part * found.samples_per_second})

    better = allocate(results, make_subject(algorithm="guided", maxBenchmarks=12), Changed())
    assert better.candidate != before.candidate
    assert better.throughput.samples_per_second < before.throughput.samples_per_second
    again = allocate(results, make_subject(algorithm="guided", maxBenchmarks=12, seed=1), Changed())
    assert again.benchmarks[0].candidate == better.candidate


NEEDS = (300.0, 300.0, 200.0, 200.0, 200.0)  # on two devices of 600 MiB: worst-fit-decreasing parts the large ones


def tight(subject: Subject) -> Memory:
    curves = tuple({"cpu-test-1c": Curve(((8, need), (32, need)))} for need in NEEDS)
    return replace(memory_of(subject), curves=curves)


def test_members_that_fit_though_worst_fit_finds_no_room(results: Any, make_subject: Callable[..., Subject]) -> None:
    subject = make_subject(members=5, memory_mib=600.0, algorithm="guided", maxBenchmarks=3)
    bench = Benchmarks(results, subject, Machine(), lambda benchmark: None)
    with pytest.raises(UserError, match="cannot hold the members"):
        starting_matrix(WHERE, subject, tight(subject))
    found = find_allocation(WHERE, results, subject, tight(subject), speeds_of(subject), bench)
    assert found.start.matrix == found.benchmarks[0].matrix
    assert {size for row in found.start.matrix for size in row} == {0, 8}
    assert tight(subject).fits(Matrix(found.matrix))


def test_the_matrix_of_the_spec_alone_where_no_other_is_found(
    results: Any, make_subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ensemble_core.allocation.optimise.construct", lambda problem: None)
    rows = [{"device": "cpu0", "batchSizes": [8, 8, 0, 0, 0]}, {"device": "cpu1", "batchSizes": [0, 0, 8, 8, 8]}]
    settings: dict[str, Any] = {"members": 5, "memory_mib": 600.0, "algorithm": "guided", "maxBenchmarks": 1}

    def run(subject: Subject) -> AllocationResult:
        bench = Benchmarks(results, subject, Machine(), lambda benchmark: None)
        return find_allocation(WHERE, results, subject, tight(subject), speeds_of(subject), bench)

    with pytest.raises(UserError, match="cannot hold the members"):
        run(make_subject(**settings))
    found = run(make_subject(**settings, matrix=rows))
    assert found.matrix == found.start.matrix == ((8, 8, 0, 0, 0), (0, 0, 8, 8, 8))


def test_the_other_algorithms_begin_with_worst_fit(results: Any, make_subject: Callable[..., Subject]) -> None:
    subject = make_subject(members=5, memory_mib=600.0)
    bench = Benchmarks(results, subject, Machine(), lambda benchmark: None)
    with pytest.raises(UserError, match="cannot hold the members"):
        find_allocation(WHERE, results, subject, tight(subject), speeds_of(subject), bench)


def test_a_matrix_of_the_spec_is_measured_first(results: Any, make_subject: Callable[..., Subject]) -> None:
    rows = [{"device": "cpu1", "batchSizes": [32, 32]}]
    subject = make_subject(algorithm="guided", maxBenchmarks=4, matrix=rows)
    found = allocate(results, subject, Machine())
    assert found.benchmarks[0].matrix == ((0, 0), (32, 32))
    assert found.benchmarks[1].matrix == found.start.matrix == ((8, 0), (0, 8))


def test_a_matrix_of_the_spec_is_routed_by_its_shares(results: Any, make_subject: Callable[..., Subject]) -> None:
    """Here ones that people have rounded."""
    rows = [
        {"device": "cpu0", "batchSizes": [32, 0], "shares": [0.33, 0]},
        {"device": "cpu1", "batchSizes": [32, 32], "shares": [0.66, 1]},
    ]
    found = allocate(results, make_subject(algorithm="guided", maxBenchmarks=4, matrix=rows), Machine())
    assert found.benchmarks[0].matrix == ((32, 0), (32, 32))
    assert found.benchmarks[0].shares == ((0.3333, 0.0), (0.6667, 1.0))


@pytest.mark.parametrize(
    ("rows", "where", "problem"),
    [
        ([{"device": "gpu0", "batchSizes": [8, 8]}], "matrix[0].device", "gpu0 is none of the devices cpu0, cpu1"),
        (
            [{"device": "cpu0", "batchSizes": [8, 8]}, {"device": "cpu0", "batchSizes": [8, 8]}],
            "matrix[1].device",
            "cpu0 has a row already",
        ),
        ([{"device": "cpu0", "batchSizes": [8]}], "matrix[0].batchSizes", "has 1 entries for 2 members"),
        ([{"device": "cpu0", "batchSizes": [8, 9]}], "matrix[0].batchSizes", "9 is not among batchSizes: 0, 8, 32"),
        ([{"device": "cpu0", "batchSizes": [8, 0]}], "matrix", "m-0001 would be on no device"),
        (
            [
                {"device": "cpu0", "batchSizes": [8, 0], "shares": [1, 0]},
                {"device": "cpu1", "batchSizes": [0, 8], "shares": [0, 0.9]},
            ],
            "matrix",
            "the shares of m-0001 add up to 0.9, not to 1",
        ),
        (
            [
                {"device": "cpu0", "batchSizes": [8, 0], "shares": [0, 0]},
                {"device": "cpu1", "batchSizes": [0, 8], "shares": [1, 1]},
            ],
            "matrix[0].shares",
            "0 of m-0000, whose batch size there is 8",
        ),
        (
            [{"device": "cpu0", "batchSizes": [8, 0], "shares": [1, 0]}, {"device": "cpu1", "batchSizes": [0, 8]}],
            "matrix[1].shares",
            "0 of m-0001, whose batch size there is 8",
        ),
        ([{"device": "cpu0", "batchSizes": [8, 8]}], "matrix", "takes 50 MiB more than the 150 MiB of cpu0"),
    ],
)
def test_a_matrix_that_is_none_for_the_devices(
    results: Any, make_subject: Callable[..., Subject], rows: list[dict[str, Any]], where: str, problem: str
) -> None:
    subject = make_subject(algorithm="guided", matrix=rows, memory_mib=150.0)
    with pytest.raises(UserError) as refused:
        allocate(results, subject, Machine())
    assert refused.value.where == f"digits.yaml: spec.optimization.{where}"
    assert problem in refused.value.problem
    assert results.files == {}


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


class Timed(Machine):
    """Every matrix answers as late as its largest batch."""

    def __call__(self, candidate: Candidate) -> Throughput:
        seconds = max(size for _, _, size in candidate.matrix.entries()) / 100
        return super().__call__(candidate).model_copy(update={"latency_seconds": (seconds, seconds, seconds)})


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


def test_shares_and_repeats_are_measurements_of_their_own(make_subject: Callable[..., Subject]) -> None:
    subject, matrix = make_subject(), Matrix(((8, 8), (8, 0)))
    pull, weighted = Candidate(matrix), Candidate(matrix, ((0.5, 1.0), (0.5, 0.0)))
    keys = {subject.benchmark_digest(candidate, repeat) for candidate in (pull, weighted) for repeat in (0, 1)}
    assert len(keys) == 4
    assert subject.benchmark_digest(pull) == subject.benchmark_digest(pull, 0)


def test_repeats_are_a_runs_own(make_subject: Callable[..., Subject]) -> None:
    candidate = Candidate(Matrix(((8, 8), (8, 0))))
    runs = [make_subject(), make_subject(seed=1), make_subject(maxBenchmarks=9)]
    assert len({run.benchmark_digest(candidate) for run in runs}) == 1
    assert len({run.benchmark_digest(candidate, 1) for run in runs}) == 3
    assert make_subject().benchmark_digest(candidate, 1) == runs[0].benchmark_digest(candidate, 1)


def test_repeats_are_told_together(results: Any, make_subject: Callable[..., Subject]) -> None:
    values = iter((100.0, 110.0))

    def measure(candidate: Candidate) -> Throughput:
        rate = next(values)
        return Throughput(samples_per_second=rate, spread=0.01, latency_seconds=(1 / rate, 0.25, 30 / rate))

    bench = Benchmarks(results, make_subject(), measure, lambda benchmark: None)
    candidate = Candidate(Matrix(((8, 8), (0, 0))))
    assert [bench(candidate, repeat).samples_per_second for repeat in (0, 1)] == [100.0, 110.0]
    together = bench.of(candidate)
    assert together is not None
    assert (together.samples_per_second, together.spread) == (105.0, pytest.approx(10 / 105))
    assert together.latency_seconds == pytest.approx(((1 / 100 + 1 / 110) / 2, 0.25, (30 / 100 + 30 / 110) / 2))
    assert [done.repeat for done in bench.done] == [0, 1]
    assert bench.of(Candidate(Matrix(((8, 0), (0, 8))))) is None


# --- routing

BOTH = [{"device": "cpu0", "batchSizes": [8, 8]}, {"device": "cpu1", "batchSizes": [8, 8]}]


def routed(subject: Subject, routing: Routing) -> Subject:
    spec = subject.deployment.spec.model_copy(update={"serving": Serving(routing=routing)})
    return replace(subject, deployment=subject.deployment.model_copy(update={"spec": spec}))


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


def test_what_was_measured_is_known_however_routing_was_asked_for(
    results: Any, make_subject: Callable[..., Subject]
) -> None:
    first, second = Machine(), Machine()
    allocate(results, make_subject(maxBenchmarks=5), first)
    allocate(results, routed(make_subject(maxBenchmarks=5), "pull"), second)
    assert (len(first.measured), second.measured) == (5, [])


def test_the_table_tells_shares_and_routing(results: Any, make_subject: Callable[..., Subject]) -> None:
    subject = make_subject(algorithm="guided", maxBenchmarks=2, matrix=BOTH)
    found = allocate(results, routed(subject, "weights"), Machine())
    shares = ((0.25, 0.5), (0.75, 0.5))
    told = found.model_copy(update={"shares": shares, "matrix": ((8, 32), (8, 32)), "bound": None})
    assert table(told, MostThroughput())[1:] == [
        "         m-0000    m-0001",
        "  cpu0  8 (25%)  32 (50%)",
        "  cpu1  8 (75%)  32 (50%)",
        "  each worker gets its share of the samples",
    ]
    assert table(told.model_copy(update={"shares": None}), MostThroughput())[-1] == "  free workers pull the next batch"
    apart = told.model_copy(update={"shares": None, "matrix": ((8, 0), (0, 32))})
    assert table(apart, MostThroughput())[-1] == "  cpu1       0      32"


def measured(samples_per_second: float, *milliseconds: float) -> Throughput:
    latency = tuple(each / 1000 for each in milliseconds) or None
    return Throughput(samples_per_second=samples_per_second, spread=0.02, latency_seconds=latency)


SLOW, FAST = measured(400, 2, 10, 25), measured(300, 1.5, 5, 2000)
LOAD = Load(1, 1, 24)
ABOUT = (
    (MostThroughput(), SLOW, FAST, "300 samples/s ± 1.0% measured (-25% from the start)", "400 samples/s"),
    (Latency(90, LOAD), SLOW, FAST, "p90 5 ms, 300 samples/s ± 1.0% measured (p90 -50% from the start)", "p90 5 ms"),
    (Latency(99, LOAD), FAST, SLOW, "p99 25 ms, 400 samples/s ± 1.0% measured (p99 -99% from the start)", "p99 25 ms"),
    (
        ThroughputWithin(50, 0.01, (LOAD,)),
        FAST,
        SLOW,
        "400 samples/s ± 1.0%, p50 2 ms measured (+33% from the start)",
        "400 samples/s at p50 2 ms",
    ),
    (
        ThroughputWithin(99, 0.1, (LOAD,)),
        FAST,
        SLOW,
        "400 samples/s ± 1.0%, p99 25 ms measured (from 300 samples/s at p99 2,000 ms, over 100 ms)",
        "400 samples/s at p99 25 ms",
    ),
    (Latency(90, LOAD), measured(0), SLOW, "p90 10 ms, 400 samples/s ± 1.0% measured", "p90 10 ms"),
)


@pytest.mark.parametrize(("objective", "start", "found", "told", "best"), ABOUT)
def test_what_the_objective_is_about_is_told(
    objective: Objective,
    start: Throughput,
    found: Throughput,
    told: str,
    best: str,
    results: Any,
    make_subject: Callable[..., Subject],
    capsys: pytest.CaptureFixture[str],
) -> None:
    allocation = allocate(results, make_subject(), Machine()).model_copy(
        update={"throughput": found, "start": Start(matrix=((8, 8), (0, 0)), throughput=start), "bound": None}
    )
    assert f": {told}, " in table(allocation, objective)[0]
    report = FakeReport()
    progress = Progress(cast(Report, report), 2, objective)
    for order, throughput in enumerate((start, found)):
        progress(Benchmark(order=order, matrix=((8,),), throughput=throughput))
    assert report.note == f"best so far {best}"
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"benchmark 2 of at most 2: {told.partition(' measured')[0]}; best {best}"


def test_what_is_above_the_bound_is_explained(results: Any, make_subject: Callable[..., Subject]) -> None:
    found = allocate(results, make_subject(), Machine()).model_copy(
        update={"throughput": measured(123), "bound": 100.0}
    )
    told = table(found, MostThroughput())
    assert ", 123% of the bound by profiles, " in told[0]
    assert told[1].startswith("  more than the bound: when the members were profiled, the devices were slower")
    assert "profiles/cpu-test-1c in their libraries" in told[2]
    for other in (found.model_copy(update={"bound": 122.5}), found.model_copy(update={"bound": None})):
        assert "bound:" not in table(other, MostThroughput())[1]


def test_a_single_benchmark_is_one(results: Any, make_subject: Callable[..., Subject]) -> None:
    found = allocate(results, make_subject(), Machine())
    assert table(found, MostThroughput())[0].endswith(f" {len(found.benchmarks)} benchmarks")
    one = found.model_copy(update={"benchmarks": found.benchmarks[:1]})
    assert table(one, MostThroughput())[0].endswith(" 1 benchmark")


class FakeReport:
    note = ""

    def progress(self, note: str, **_: object) -> None:
        self.note = note
