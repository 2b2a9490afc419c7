"""Allocators on simulated V100 nodes: `guided` with 12 benchmarks against the thesis's algorithms with up to 1000."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from ensemble_core.allocation.algorithms import (
    Bounds,
    DoesNotFitError,
    best_batch,
    bounded_greedy,
    worst_fit_decreasing,
)
from ensemble_core.allocation.calibrated import BATCH_SIZES, DEVICE_TYPES, NETWORKS, Network, curve, pace
from ensemble_core.allocation.candidate import Candidate
from ensemble_core.allocation.guided import guided
from ensemble_core.allocation.load import saturation
from ensemble_core.allocation.matrix import Matrix
from ensemble_core.allocation.memory import Memory
from ensemble_core.allocation.model import Floats, upper_bound
from ensemble_core.allocation.objectives import Throughput
from ensemble_core.allocation.paper import calibrated_case, parse_devices
from ensemble_core.allocation.simulator import Simulator, Truth
from ensemble_core.allocation.speeds import Speeds, problem_of
from results import table, versions, write_section

INSTANCES = (("IMN4", 4), ("IMN4", 8), ("IMN4", 16), ("IMN12", 6), ("IMN12", 8), ("IMN12", 12), ("IMN12", 16))
NOISE = 0.02  # of benchmarks, and of profiles
BENCHMARKS = 12
LARGE_MEMBERS, LARGE_DEVICES = 100, 256


@dataclass(frozen=True)
class Setting:
    """How the devices differ from what profiles tell.

    Args:
        name: For the table.
        pairs: Slowdown by a neighbour, drawn between the two for each pair of members.
        overlap: Share of a batch's overhead that passes beside other members' work.
        profiles: Relative standard deviation of profiled speeds.
        devices: Of the devices' own speeds.
        memory: Workers take up to so much more than was profiled.
    """

    name: str
    pairs: tuple[float, float] = (0.03, 0.03)
    overlap: float = 0.0
    profiles: float = NOISE
    devices: float = 0.0
    memory: float = 0.0


STUDY = Setting("as profiled")
HOSTILE = (
    Setting("70 % of the overhead on the host", overlap=0.7),
    Setting("neighbours cost up to 30 %, profiles and devices ±5 %", (0.0, 0.3), profiles=0.05, devices=0.05),
    Setting("up to 15 % more memory than profiled", memory=0.15),
)


@dataclass(frozen=True)
class Outcome:
    """Samples/s without noise of what each algorithm chose, and how many candidates guided measured.

    Args:
        again: What guided chose with its first choice for the incumbent, other noise and other draws, relative to that.
    """

    bound: float
    worst_fit: float
    best_batch: float
    greedy: float
    greedy_few: float
    guided: float
    again: float
    benchmarks: int
    failed: int
    seconds: float


def truth_of(
    members: tuple[Network, ...], kinds: tuple[str, ...], setting: Setting, random: np.random.Generator
) -> Truth:
    """The devices as they are."""
    counts = np.arange(BATCH_SIZES[-1] + 1, dtype=np.float64)
    types = [DEVICE_TYPES[kind] for kind in kinds]
    own = 1 + setting.devices * random.standard_normal(len(kinds))
    more = 1 + setting.memory * random.random(len(members))
    seconds = np.array(
        [[pace(n, t).seconds(counts) * factor for n in members] for t, factor in zip(types, own, strict=True)]
    )
    needs = np.array([[curve_at(n, counts) * m for n, m in zip(members, more, strict=True)] for _ in kinds])
    pairs = random.uniform(*setting.pairs, (len(members), len(members)))
    return Truth(seconds, needs, np.array([t.memory_mib for t in types]), pairs, setting.overlap)


def curve_at(network: Network, counts: Floats) -> Floats:
    points = curve(network).points
    return np.asarray(np.interp(counts, [size for size, _ in points], [mib for _, mib in points]))


def compare(ensemble: str, gpus: int, setting: Setting, seed: int, greedy: int) -> Outcome:
    """One instance, one seed."""
    random = np.random.default_rng([seed, gpus])
    case = calibrated_case(ensemble, parse_devices(f"{gpus}xV100-16GB,1xCPU"))
    members, kinds = tuple(NETWORKS[name] for name in case.members), case.problem.kinds
    truth = truth_of(members, kinds, setting, random)
    off = {
        kind: 1 + setting.profiles * random.standard_normal((len(members), len(BATCH_SIZES)))
        for kind in dict.fromkeys(kinds)
    }
    problem = replace(case.problem, speeds=case.problem.speeds * np.array([off[kind] for kind in kinds]))
    memory = Memory(tuple(problem.capacity), kinds, tuple(dict.fromkeys(kinds, curve(n)) for n in members))
    speeds = Speeds(kinds, tuple({k: pace(n, DEVICE_TYPES[k]) for k in dict.fromkeys(kinds)} for n in members))
    start = worst_fit_decreasing(memory, problem.sides, BATCH_SIZES[0])
    load = saturation(len(kinds))
    exact = Simulator(truth, load)

    def speed(candidate: Candidate) -> float:
        return 0.0 if truth.full(candidate) is not None else exact.exact(candidate).throughput

    bench = Simulator(truth, load, NOISE, seed)
    begin = time.perf_counter()
    found = guided(problem, Candidate(start), None, bench, Throughput(), BENCHMARKS, seed)
    seconds = time.perf_counter() - begin
    try:
        apart = speed(Candidate(best_batch(speeds.at, memory, BATCH_SIZES)))
    except (ValueError, DoesNotFitError):
        apart = float("nan")

    chosen = speed(found.best) if found else 0.0
    again = float("nan")
    if found and greedy:
        other = Simulator(truth, load, NOISE, seed + 1000)
        second = guided(problem, Candidate(start), found.best, other, Throughput(), BENCHMARKS, seed + 1000)
        again = speed(second.best) / chosen if second else 0.0

    def thesis(benchmarks: int) -> float:
        measured = Simulator(truth, load, NOISE, seed)

        def measure(matrix: Matrix) -> float:
            return measured(Candidate(matrix)).samples_per_second

        bounds = Bounds(100, benchmarks, benchmarks)  # as many iterations as its benchmarks allow
        # Memory is for the server to tell, as in the thesis: what does not fit costs a benchmark.
        return speed(Candidate(bounded_greedy(start, BATCH_SIZES, lambda matrix: True, measure, bounds, seed)))

    return Outcome(
        bound=upper_bound(case.problem),
        worst_fit=speed(Candidate(start)),
        best_batch=apart,
        greedy=thesis(greedy) if greedy else float("nan"),
        greedy_few=thesis(BENCHMARKS),
        guided=chosen,
        again=again,
        benchmarks=len(bench.asked),
        failed=sum(truth.full(candidate) is not None for candidate, _ in bench.asked),
        seconds=seconds,
    )


def compared(task: tuple[str, int, Setting, int, int]) -> Outcome:
    return compare(*task)


def rows_of(setting: Setting, outcomes: dict[tuple[str, int], list[Outcome]]) -> Iterator[list[str]]:
    for (ensemble, gpus), own in outcomes.items():
        yield [setting.name, f"{ensemble}, {gpus} GPUs, simulated", *_figures(own)]
    everything = [outcome for own in outcomes.values() for outcome in own]
    yield [setting.name, "mean of the shares, simulated", "", *_shares(everything)]


def _figures(own: list[Outcome]) -> list[str]:
    bound, mean = own[0].bound, float(np.mean([each.guided for each in own]))
    figures = [
        _mean([getattr(each, name) for each in own], ".0f")
        for name in ("worst_fit", "best_batch", "greedy_few", "greedy")
    ]
    least = min(each.guided for each in own) / bound
    counts = f"{np.mean([each.benchmarks for each in own]):.1f} ({np.mean([each.failed for each in own]):.1f})"
    return [
        f"{bound:.0f}",
        *figures,
        f"{mean:.0f}",
        f"{mean / bound:.3f} ({least:.3f})",
        _least([each.again for each in own]),
        counts,
        f"{_seconds(own):.0f}",
    ]


def _shares(everything: list[Outcome]) -> list[str]:
    shares = [
        _mean([getattr(each, name) / each.bound for each in everything], ".2f")
        for name in ("worst_fit", "best_batch", "greedy_few", "greedy")
    ]
    guided_shares = [each.guided / each.bound for each in everything]
    return [
        *shares,
        "",
        f"**{np.mean(guided_shares):.3f}** ({min(guided_shares):.3f})",
        _least([each.again for each in everything]),
        "",
        f"{_seconds(everything):.0f}",
    ]


def _mean(values: list[float], digits: str) -> str:
    """Of the values that there are: best-batch needs as many devices as members."""
    there = [value for value in values if np.isfinite(value)]
    return format(np.mean(there), digits) if there else "-"


def _least(values: list[float]) -> str:
    there = [value for value in values if np.isfinite(value)]
    return f"{min(there):.3f}" if there else "-"


def _seconds(own: list[Outcome]) -> float:
    return float(np.mean([each.seconds for each in own]))


def large() -> list[str]:
    """One plan of many members on many devices, one core: proposals and two simulated benchmarks."""
    random = np.random.default_rng(0)
    names = list(NETWORKS.values())
    members = [replace(names[i % len(names)], milliseconds=float(random.uniform(0.5, 8))) for i in range(LARGE_MEMBERS)]
    kinds = ("V100-16GB",) * LARGE_DEVICES
    of = DEVICE_TYPES[kinds[0]]
    memory = Memory((of.memory_mib,) * len(kinds), kinds, tuple({kinds[0]: curve(n)} for n in members))
    speeds = Speeds(kinds, tuple({kinds[0]: pace(n, of)} for n in members))
    problem = problem_of([of.side] * len(kinds), BATCH_SIZES, speeds, memory)
    truth = truth_of(tuple(members), kinds, STUDY, random)
    bench = Simulator(truth, replace(saturation(LARGE_DEVICES), requests=8 * LARGE_DEVICES))
    begin = time.process_time()
    found = guided(problem, None, None, bench, Throughput(), 2, 0)
    assert found is not None
    bound = upper_bound(problem)
    share = bench.exact(found.best).throughput / bound
    return [
        f"{LARGE_MEMBERS} × {LARGE_DEVICES}, simulated",
        f"{bound:.0f}",
        f"{share:.3f}",
        f"{time.process_time() - begin:.0f}",
    ]


HEAD = (
    "devices", "instance", "LP bound", "worst-fit", "best-batch", f"bounded-greedy@{BENCHMARKS}", "bounded-greedy@{}",
    f"guided@{BENCHMARKS}", "guided, share of the bound (least)", "again, relative (least)",
    "benchmarks (out of memory)", "seconds, simulation included",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--greedy", type=int, default=1000, help="benchmarks of the bounded greedy algorithm; 0 without"
    )
    parser.add_argument("--hostile", action="store_true", help="the settings in which profiles mislead, too")
    parser.add_argument("--large", action="store_true", help=f"plan {LARGE_MEMBERS} members on {LARGE_DEVICES} devices")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--print", action="store_true", help="leave RESULTS.md as it is")
    arguments = parser.parse_args()
    rows: list[list[str]] = []
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for setting in (STUDY, *(HOSTILE if arguments.hostile else ())):
            greedy = arguments.greedy if setting is STUDY else 0
            tasks = [(e, g, setting, seed, greedy) for e, g in INSTANCES for seed in range(arguments.seeds)]
            outcomes: dict[tuple[str, int], list[Outcome]] = {}
            for task, outcome in zip(tasks, pool.map(compared, tasks), strict=True):
                outcomes.setdefault((task[0], task[1]), []).append(outcome)
            rows += rows_of(setting, outcomes)
    text = (
        "Simulated throughout, by the thesis's networks on V100s (calibrated, not measured), plus one CPU. Samples/s, "
        f"mean of {arguments.seeds} seeds; one request of a segment more in flight than devices; "
        f"{NOISE:.0%} noise of benchmarks and profiles; bounded-greedy@N makes N benchmarks. "
        "Again: guided once more, its first choice for the incumbent, with other noise and draws. "
        f"The bound leaves joint memory and interference out. {versions('numpy', 'scipy')}.\n\n"
    ) + table([each.format(arguments.greedy) for each in HEAD], rows)
    if arguments.large:
        head = ("members × devices", "LP bound", "share reached", "seconds on one core")
        text += "\n\n" + table(head, [large()])
    print(text)
    if not arguments.print:
        write_section("Allocation: guided against the thesis's algorithms, simulated", "make bench-allocation", text)


if __name__ == "__main__":
    main()
