from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
from tests.support.allocation import BOTH, Machine, allocate, routed

from ensemble_core.allocation.objectives import Latency, Objective, ThroughputWithin
from ensemble_core.allocation.objectives import Throughput as MostThroughput
from ensemble_core.allocation.result import Benchmark, Start, Subject, Throughput
from ensemble_core.allocation.simulator import Load
from ensemble_core.commands.allocate import Progress, gain, table
from ensemble_core.report import Report


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


@pytest.mark.parametrize(
    ("start", "best", "told"),
    [
        ((2827, 0.944), (14389, 0.02), " (from 2,827 samples/s ± 47.2% at the start)"),
        ((400, 0.04), (412, 0.04), " (from 400 samples/s ± 2.0% at the start)"),
        ((400, 0.01), (412, 0.01), " (+3% from the start)"),
        ((400, 0.2), (800, 0.02), " (+100% from the start)"),
    ],
)
def test_a_gain_that_noise_could_be_half_of_is_not_told_in_percent(
    start: tuple[float, float],
    best: tuple[float, float],
    told: str,
    results: Any,
    make_subject: Callable[..., Subject],
) -> None:
    before, now = (Throughput(samples_per_second=speed, spread=spread) for speed, spread in (start, best))
    found = allocate(results, make_subject(), Machine()).model_copy(
        update={"throughput": now, "start": Start(matrix=((8, 8), (0, 0)), throughput=before)}
    )
    assert gain(found, MostThroughput()) == told


def test_a_start_that_was_over_the_limit_once_is_told_so(results: Any, make_subject: Callable[..., Subject]) -> None:
    """Though it is within in the mean, and faster than what was found."""
    matrix, times = ((8, 8), (0, 0)), (80, 110)
    benchmarks = tuple(
        Benchmark(order=order, repeat=order, matrix=matrix, throughput=measured(400, 1, 1, milliseconds))
        for order, milliseconds in enumerate(times)
    )
    start = Start(matrix=matrix, throughput=measured(400, 1, 1, 95))
    found = allocate(results, make_subject(), Machine()).model_copy(
        update={"throughput": measured(372, 1, 1, 60), "start": start, "benchmarks": benchmarks}
    )
    assert gain(found, ThroughputWithin(99, 0.1, (LOAD,))) == " (from 400 samples/s at p99 110 ms, over 100 ms)"


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


@pytest.mark.parametrize(
    ("spread", "incumbent", "least", "repeats", "more"),
    [
        (0.534, 8080.0, "131.0", 1, "more benchmarks (maxBenchmarks) or "),
        (0.02, 14000.0, "15.0", 1, "more benchmarks (maxBenchmarks) or "),
        (0.534, 14000.0, "35.4", 4, ""),
    ],
)
def test_why_the_incumbent_stays_where_another_was_measured_better(
    spread: float,
    incumbent: float,
    least: str,
    repeats: int,
    more: str,
    results: Any,
    make_subject: Callable[..., Subject],
) -> None:
    """For the noise of a third, which alone differs by much."""
    figures = [("8", incumbent, 0.02), ("16", 15032.0, 0.02), ("32", 8500.0, spread)] * repeats
    benchmarks = tuple(
        Benchmark(
            order=order,
            repeat=1 + order // 3,
            matrix=((int(size), 8), (0, 0)),
            throughput=Throughput(samples_per_second=speed, spread=apart),
        )
        for order, (size, speed, apart) in enumerate(figures)
    )
    found = allocate(results, make_subject(), Machine()).model_copy(
        update={"benchmarks": benchmarks, "matrix": benchmarks[0].matrix, "bound": None}
    )
    assert table(found, MostThroughput())[1:3] == [
        f"  the incumbent stays: another was measured {15032 / incumbent - 1:.1%} better (15,032 samples/s ± 1.0%), "
        "and by the noise of these benchmarks",
        f"  it has to be more than {least}% better; {more}longer ones (secondsPerBenchmark) would tell",
    ]
    replaced = found.model_copy(update={"matrix": benchmarks[1].matrix})
    first_to_all = found.model_copy(
        update={"benchmarks": tuple(done.model_copy(update={"repeat": 0}) for done in benchmarks)}
    )
    behind = found.model_copy(update={"benchmarks": (benchmarks[1], *benchmarks), "matrix": benchmarks[1].matrix})
    for other in (replaced, first_to_all, behind):
        assert not any("incumbent" in line for line in table(other, MostThroughput()))


def test_a_single_benchmark_is_one(results: Any, make_subject: Callable[..., Subject]) -> None:
    found = allocate(results, make_subject(), Machine())
    assert table(found, MostThroughput())[0].endswith(f" {len(found.benchmarks)} benchmarks")
    one = found.model_copy(update={"benchmarks": found.benchmarks[:1]})
    assert table(one, MostThroughput())[0].endswith(" 1 benchmark")


class FakeReport:
    note = ""

    def progress(self, note: str, **_: object) -> None:
        self.note = note
