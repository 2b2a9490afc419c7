from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.support.allocation import WHERE, Machine, Timed, allocate, memory_of, speeds_of

from ensemble_core.allocation.candidate import Candidate
from ensemble_core.allocation.matrix import Matrix
from ensemble_core.allocation.memory import Curve, Memory
from ensemble_core.allocation.optimise import find_allocation
from ensemble_core.allocation.result import AllocationResult, Subject, Throughput
from ensemble_core.allocation.start import starting_matrix
from ensemble_core.allocation.stored import Benchmarks
from ensemble_core.errors import UserError


def test_devices_that_cannot_hold_the_members(make_subject: Callable[..., Subject]) -> None:
    subject = make_subject(members=3, memory_mib=150.0)
    with pytest.raises(UserError) as refused:
        starting_matrix(WHERE, subject, memory_of(subject, need=100.0))
    assert refused.value.where == f"{WHERE}[0]"
    problem = refused.value.problem
    assert "m-0002 needs 100 MiB at batch size 8" in problem
    assert "cpu0 has 50 of 150 MiB left, 50 MiB too few" in problem


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
    monkeypatch.setattr("ensemble_core.allocation.start.construct", lambda problem: None)
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
        ([{"device": "cpu0", "batchSizes": [8]}], "matrix[0].batchSizes", "has 1 entries for 2 members"),
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
