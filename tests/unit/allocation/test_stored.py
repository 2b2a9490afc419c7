from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.support.allocation import KilledError, Machine, allocate, found_by, routed

from ensemble_core.allocation.candidate import Candidate
from ensemble_core.allocation.matrix import Matrix
from ensemble_core.allocation.result import AllocationResult, Subject, Throughput
from ensemble_core.allocation.stored import (
    Benchmarks,
    allocated_elsewhere,
    benchmarked,
    checked_allocation,
    stored_allocation,
)
from ensemble_core.errors import UserError


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


def test_stored_allocations_and_benchmarks_are_checked_as_they_are_read(
    results: Any, make_subject: Callable[..., Subject]
) -> None:
    found = allocate(results, make_subject(maxBenchmarks=2), Machine())
    assert checked_allocation(found.digest, found.document(), "file") == found
    assert {benchmarked(*stored, "file") for stored in results.results("benchmarks").items()} == {
        each.throughput for each in found.benchmarks
    }
    with pytest.raises(UserError, match="is not the result that its name says"):
        checked_allocation("0" * 64, found.document(), "file")


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


def test_records_from_before_lacks_of_memory_were_told_are_read() -> None:
    stored = {"samplesPerSecond": 0, "reason": "it died"}
    assert not Throughput.model_validate(stored).measured().short_of_memory
    assert Throughput.model_validate({**stored, "device": 1}).measured().short_of_memory
    assert "memory" not in Throughput(samples_per_second=9.0).document()


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


def test_what_was_measured_is_known_however_routing_was_asked_for(
    results: Any, make_subject: Callable[..., Subject]
) -> None:
    first, second = Machine(), Machine()
    allocate(results, make_subject(maxBenchmarks=5), first)
    allocate(results, routed(make_subject(maxBenchmarks=5), "pull"), second)
    assert (len(first.measured), second.measured) == (5, [])
