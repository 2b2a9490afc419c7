"""Allocators on the real server: heterogeneous ONNX members on two devices of one core each.

Each allocator runs as `ensemble allocate` runs it, on one server, by the same profiles, but with benchmarks of its own.
Then what they chose is measured again in rounds, one after the other, so that all meet the same disturbances; what
other processes disturb is repeated. Fails if the default is slower than another beyond the noise of these rounds.
`--small` tries everything with two members and few seconds, judges nothing and writes no results.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from scipy.stats import t as student

from ensemble_core.allocation.candidate import Candidate
from ensemble_core.allocation.harness import Bench, Triton
from ensemble_core.allocation.matrix import Matrix
from ensemble_core.allocation.optimise import find_allocation
from ensemble_core.allocation.plan import Member, Plan
from ensemble_core.allocation.prepare import (
    Ensemble,
    Profiles,
    memory_of,
    pace_of,
    profiled,
    speeds_of,
)
from ensemble_core.allocation.result import AllocationResult, Benchmark, SelectionOf, Subject, Throughput
from ensemble_core.allocation.stored import Benchmarks
from ensemble_core.api.common import Storage
from ensemble_core.api.ensembledeployment import EnsembleDeployment
from ensemble_core.api.load import saturating
from ensemble_core.commands.allocate import CLIENT_BUSY, with_spread
from ensemble_core.engines import DEFAULT as DEFAULT_ENGINE
from ensemble_core.errors import UserError
from ensemble_core.library.library import SERVABLE, Library
from ensemble_core.library.records import SPLITS, ModelRecord, Origin
from ensemble_core.library.splits import LabelledIds, make_header
from ensemble_core.library.store import open_store
from ensemble_core.metrics import metrics
from ensemble_core.serving.load import QUIET, WINDOWS, Measurement
from ensemble_trainer.procedural import CLASS_NAMES, draw
from networks import SIGNATURE, write
from results import table, write_section

DEFAULT, WORST_FIT, GREEDY = "guided", "worst-fit", "bounded-greedy"
DRAWING = (GREEDY, DEFAULT)  # algorithms whose draws depend on the seed
BEST_BATCH, OWN_SIZES = "best-batch", "worst-fit, fastest batch sizes"
MEMBERS = {
    2: ("residual", "plain"),  # as many as devices, so that best-batch is possible
    4: ("dense", "separable", "residual", "plain"),
    6: ("dense", "separable", "branched", "residual", "grouped", "plain"),
}
LABELLED = 40  # samples of a split: a library has some
CONFIDENCE = 0.99  # with which the default is below another before that counts
NEVER_BELOW = "The default is never below another beyond the noise"
LEAST_ROUNDS = 3  # undisturbed ones, without which there is no verdict
WHERE = "the benchmark: spec.devices"


@dataclass(frozen=True)
class Sizes:
    members: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    benchmarks: int
    seconds: float  # of a benchmark
    rounds: int
    attempts: int  # to measure without a disturbance
    seeds: int


FULL = Sizes((2, 4, 6), (8, 16, 32, 64, 128), benchmarks=12, seconds=2, rounds=5, attempts=4, seeds=1)
SMALL = Sizes((2,), (8, 32), benchmarks=3, seconds=0.2, rounds=2, attempts=1, seeds=1)


@dataclass(frozen=True)
class Spent:
    """Seconds of one benchmark: until the models are there, until it is measured, and in the windows measured."""

    change: float
    warm_up: float
    windows: float
    calm: bool  # no window was repeated

    @property
    def total(self) -> float:
        return self.change + self.warm_up + self.windows


PARTS = ("total", "change", "warm_up", "windows")


class Timed:
    """A server that keeps what its time was spent on."""

    def __init__(self, server: Triton) -> None:
        self._server = server
        self._change = 0.0
        self.spent: list[Spent] = []
        self.client_cores = 0.0

    def apply(self, plan: Plan) -> None:
        begin = time.perf_counter()
        self._server.apply(plan)
        self._change = time.perf_counter() - begin

    def clear(self) -> None:
        self._server.clear()

    def measure(
        self, plan: Plan, images: npt.NDArray[Any], seconds: float, in_flight: int, samples: int, deadline: float
    ) -> Measurement:
        begin = time.perf_counter()
        found = self._server.measure(plan, images, seconds, in_flight, samples, deadline)
        whole, windows = time.perf_counter() - begin, sum(window.seconds for window in found.windows)
        self.spent.append(Spent(self._change, whole - windows, windows, len(found.windows) <= WINDOWS))
        self.client_cores = max(self.client_cores, found.client_cores)
        return found


@dataclass(frozen=True)
class Chosen:
    """What an allocator came to: the candidate, how many benchmarks it made, and what they and all of it took."""

    name: str
    candidate: Candidate
    benchmarks: int = 0
    spent: tuple[Spent, ...] = ()
    seconds: float = 0.0
    seed: int = 0

    @property
    def label(self) -> str:
        return f"{self.name}, seed {self.seed}" if self.name in DRAWING else self.name


@dataclass
class Rounds:
    """Samples/s of the candidates, undisturbed, of the same rounds; and how often a disturbed figure was dropped."""

    rates: dict[Candidate, list[float]]
    foreign: float = 0.0  # most cores that others used in what counts
    repeated: int = 0
    dropped: int = 0  # rounds in which a candidate was never undisturbed


@dataclass(frozen=True)
class Outcome:
    """Everything about one ensemble."""

    names: tuple[str, ...]
    profiles: Profiles
    chosen: tuple[Chosen, ...]
    impossible: tuple[str, ...]  # why an algorithm could not be run
    rounds: Rounds
    bound: float
    client_cores: float
    server: str
    sizes: Sizes
    device: str


def make_library(folder: Path, names: Sequence[str]) -> Library:
    """A library with these networks; what it has already stays."""
    drawn = {split: draw(LABELLED, seed) for seed, split in enumerate(SPLITS)}
    labels = {
        split: LabelledIds(np.array([f"{split}-{index}" for index in range(LABELLED)]), drawn[split][1])
        for split in SPLITS
    }
    library = Library.create(open_store(Storage(path=str(folder))), make_header(SIGNATURE, CLASS_NAMES, labels), labels)
    present = {record.id for record in library.models()}
    for name in set(names) - present:
        with tempfile.TemporaryDirectory() as temporary:
            files = {SERVABLE: Path(temporary) / SERVABLE}
            write(name, files[SERVABLE])
            session = onnxruntime.InferenceSession(files[SERVABLE], providers=["CPUExecutionProvider"])
            for split in SPLITS:
                files[f"predictions-{split}.npy"] = Path(temporary) / f"predictions-{split}.npy"
                np.save(files[f"predictions-{split}.npy"], session.run(None, {"INPUT": drawn[split][0]})[0])
            scored = metrics(np.load(files["predictions-validation.npy"]), library.labels("validation"))
            record = ModelRecord(
                id=name, family=name, hyperparameters={}, validation=scored, servable=True, files={}, origin=Origin()
            )
            library.publish(record, files)
    return library


def deployment(algorithm: str, seed: int, sizes: Sizes) -> EnsembleDeployment:
    optimization = {
        "algorithm": algorithm,
        "seed": seed,
        "maxBenchmarks": sizes.benchmarks,
        "maxIter": sizes.benchmarks,  # as many as its benchmarks allow
        "batchSizes": list(sizes.batch_sizes),
        "secondsPerBenchmark": sizes.seconds,
    }
    devices = [{"name": "cores", "type": "cpu", "count": 2}]
    reference = {"name": "real", "budgetName": "all"}
    spec = {"selectionRef": reference, "devices": devices, "optimization": optimization}
    return EnsembleDeployment.model_validate({"metadata": {"name": "real"}, "spec": spec})


def ensemble_of(library: Library, names: Sequence[str], given: EnsembleDeployment) -> Ensemble:
    """The networks as an ensemble; it is not selected, for nobody trained them."""
    records = tuple(library.model(name) for name in names)
    return Ensemble(
        where=WHERE.removesuffix(": spec.devices"),
        deployment=given,
        selection=SelectionOf(name="real", budget_name="all", digest="0" * 64),
        members=tuple(
            Member(
                model_id=record.id,
                weight=1 / len(records),
                onnx=str(library.file(record, SERVABLE).resolve()),
                sha256=record.files[SERVABLE].sha256,
            )
            for record in records
        ),
        records=records,
        libraries=(library,) * len(records),
        results=library,
    )


class Kept:
    """Results of one allocator, in memory: it finds nothing that another has measured."""

    def __init__(self) -> None:
        self._results: dict[tuple[str, str], dict[str, Any]] = {}

    def result(self, kind: str, digest: str) -> dict[str, Any] | None:
        return self._results.get((kind, digest))

    def results(self, kind: str) -> dict[str, dict[str, Any]]:
        return {digest: content for (of, digest), content in self._results.items() if of == kind}

    def write_result(self, kind: str, digest: str, content: dict[str, Any]) -> dict[str, Any]:
        return self._results.setdefault((kind, digest), content)

    def delete_result(self, kind: str, digest: str) -> None:
        self._results.pop((kind, digest), None)


def allocate(
    algorithm: str,
    seed: int,
    library: Library,
    names: Sequence[str],
    sizes: Sizes,
    server: Timed,
    tell: Callable[[str], None],
) -> tuple[Chosen, AllocationResult]:
    """What `ensemble allocate` does once the members are profiled; UserError if the algorithm cannot."""
    ensemble = ensemble_of(library, names, deployment(algorithm, seed, sizes))
    subject, profiles = profiled(ensemble)

    def seen(benchmark: Benchmark) -> None:
        candidate, figure = benchmark.candidate, with_spread(benchmark.throughput)
        tell(f"  {figure}, others {benchmark.throughput.foreign_cores:.2f} cores: {matrix_text(candidate)}")

    kept, begin, before = Kept(), time.perf_counter(), len(server.spent)
    measure = Bench(subject, SIGNATURE, pace_of(subject, profiles), server)
    memory, speeds = memory_of(subject, profiles), speeds_of(subject, profiles)
    found = find_allocation(WHERE, kept, subject, memory, speeds, Benchmarks(kept, subject, measure, seen))
    seconds = time.perf_counter() - begin
    spent = tuple(server.spent[before:])
    return Chosen(algorithm, found.candidate, len(found.benchmarks), spent, seconds, seed), found


def with_fastest_sizes(matrix: Matrix, subject: Subject, profiles: Profiles) -> Candidate:
    """Workers where they are, each at the batch size that is fastest by profile: best-batch as far as it goes here."""
    speeds, sizes = speeds_of(subject, profiles), subject.deployment.spec.batch_sizes
    for device, member, _ in matrix.entries():
        matrix = matrix.replaced(device, member, max(sizes, key=lambda size: speeds.at(device, member, size)))
    return Candidate(matrix)


def compare(library: Library, count: int, sizes: Sizes, tell: Callable[[str], None]) -> Outcome:
    """Let all allocators choose for the ensemble of so many members, and measure what they chose."""
    names = MEMBERS[count]
    ensemble = ensemble_of(library, names, deployment(DEFAULT, 0, sizes))
    subject, profiles = profiled(ensemble)
    tell(f"{count} members are profiled")
    chosen: list[Chosen] = []
    impossible: list[str] = []
    with Triton() as triton:
        server = Timed(triton)
        for seed in range(sizes.seeds):
            for algorithm in DRAWING if seed else (WORST_FIT, BEST_BATCH, *DRAWING):
                try:
                    own, found = allocate(algorithm, seed, library, names, sizes, server, tell)
                except UserError as error:
                    impossible.append(error.problem)
                    continue
                chosen.append(own)
                speed = found.throughput.samples_per_second
                tell(f"{own.label}: {speed:.0f} samples/s after {own.benchmarks} benchmarks in {own.seconds:.0f} s")
        start = next(each.candidate.matrix for each in chosen if each.name == WORST_FIT)
        chosen.append(Chosen(OWN_SIZES, with_fastest_sizes(start, subject, profiles)))
        bench = Bench(subject, SIGNATURE, pace_of(subject, profiles), server)
        rounds = in_rounds(bench, [each.candidate for each in chosen], sizes, tell)
    return Outcome(
        names=names,
        profiles=profiles,
        chosen=tuple(chosen),
        impossible=tuple(impossible),
        rounds=rounds,
        bound=found.bound or 0.0,
        client_cores=server.client_cores,
        server=" ".join(found.server.document().values()),
        sizes=sizes,
        device=subject.devices[0].device_type,
    )


def in_rounds(
    bench: Callable[[Candidate], Throughput],
    candidates: Sequence[Candidate],
    sizes: Sizes,
    tell: Callable[[str], None],
) -> Rounds:
    """Measure each candidate once a round, beginning with another one in each; equal ones are measured once."""
    distinct = list(dict.fromkeys(candidates))
    rounds = Rounds({candidate: [] for candidate in distinct})
    for number in range(sizes.rounds):
        turn = number % len(distinct)
        found = {each: undisturbed(bench, each, sizes.attempts, rounds) for each in distinct[turn:] + distinct[:turn]}
        if any(each.foreign_cores > QUIET for each in found.values()) and sizes.attempts > 1:
            rounds.dropped += 1
            continue
        for candidate, each in found.items():
            rounds.rates[candidate].append(each.samples_per_second)
            rounds.foreign = max(rounds.foreign, each.foreign_cores)
        tell("  ".join(f"{found[each].samples_per_second:.0f}" for each in distinct))
    return rounds


def undisturbed(
    bench: Callable[[Candidate], Throughput], candidate: Candidate, attempts: int, rounds: Rounds
) -> Throughput:
    """The first figure without a disturbance, or the last of so many."""
    for _ in range(attempts):
        found = bench(candidate)
        if found.foreign_cores <= QUIET:
            break
        rounds.repeated += 1
    return found


def change(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """How much faster one is than another, and how sure that is, from figures of the same rounds.

    Returns:
        The mean of the logarithms of the ratios, and by how much it may be off with CONFIDENCE (one-sided).
    """
    logs = np.log(np.array(ours) / np.array(theirs))
    error = float(np.std(logs, ddof=1) / np.sqrt(len(logs)))
    return float(logs.mean()), float(student.ppf(CONFIDENCE, len(logs) - 1)) * error


def losses(chosen: Sequence[Chosen], rates: Mapping[Candidate, Sequence[float]]) -> list[str]:
    """Where the default is below another beyond the noise."""
    found = []
    for ours in (each for each in chosen if each.name == DEFAULT):
        for other in (each for each in chosen if each.name != DEFAULT):
            if ours.candidate != other.candidate:
                difference, error = change(rates[ours.candidate], rates[other.candidate])
                if difference + error < 0:
                    found.append(f"{ours.label}: {-difference:.1%} (±{error:.1%}) below {other.label}")
    return found


def report(outcome: Outcome) -> str:
    """The section of the results."""
    return "\n\n".join([head(outcome), members(outcome), table(HEAD, rows(outcome)), times(outcome), verdict(outcome)])


def head(outcome: Outcome) -> str:
    sizes, rounds = outcome.sizes, outcome.rounds
    shape = "×".join(map(str, SIGNATURE.input_shape))
    generator = "; it may be what was measured" if outcome.client_cores >= CLIENT_BUSY else ""
    sentences = [
        f"Real members ({', '.join(outcome.names)}; random weights) on 2 devices, {outcome.device}; {outcome.server}.",
        f"Requests of 128 images of {shape} uint8, {saturating(2)} in flight.",
        f"Each allocator had at most {sizes.benchmarks} benchmarks of {sizes.seconds:g} s of its own.",
        f"Then what they chose was measured in {sizes.rounds - rounds.dropped} rounds, one after the other.",
        f"While other processes used more than {QUIET:g} cores a figure was repeated: {rounds.repeated} times;",
        f"{rounds.dropped} rounds were dropped; others used {rounds.foreign:.2f} cores at most in what counts.",
        f"The load generator used {outcome.client_cores:.2f} of a core at most{generator}.",
        f"The LP bound by the profiles is {outcome.bound:.0f} samples/s.",
        *(f"{reason}." for reason in outcome.impossible),
    ]
    return " ".join(sentences)


def members(outcome: Outcome) -> str:
    cells = []
    for name, own in zip(outcome.names, outcome.profiles, strict=True):
        figures = own[outcome.device]
        engines = [figures.engines.get(size, DEFAULT_ENGINE) for size, _ in figures.times.points]
        speeds = ", ".join(f"{size / seconds:.0f} ({size})" for size, seconds in figures.times.points)
        memory = ", ".join(f"{mib:.0f}" for _, mib in figures.curve.points)
        cells.append([name, speeds, memory, ", ".join(sorted(set(engines)))])
    return table(["member alone", "samples/s (batch size)", "MiB", "engines"], cells)


HEAD = (
    "allocator", "benchmarks", "samples/s", "rounds", "× worst-fit", "× bounded-greedy (best)", "share of the bound",
    "routing", "batch sizes by device",
)  # fmt: skip


def rows(outcome: Outcome) -> Iterator[list[str]]:
    rates = outcome.rounds.rates
    middle = {candidate: median(own) for candidate, own in rates.items() if own}
    if not middle:  # every round was disturbed, which the verdict tells
        return
    worst = next(middle[each.candidate] for each in outcome.chosen if each.name == WORST_FIT)
    greedy = max(middle[each.candidate] for each in outcome.chosen if each.name == GREEDY)
    for each in outcome.chosen:
        own, speed = rates[each.candidate], middle[each.candidate]
        yield [
            f"**{each.label}**" if each.name == DEFAULT else each.label,
            str(each.benchmarks or "-"),
            f"{speed:.0f}",
            f"{min(own):.0f}–{max(own):.0f}",
            f"{speed / worst:.2f}",
            f"{speed / greedy:.2f}",
            f"{speed / outcome.bound:.2f}",
            each.candidate.routing if each.candidate.matrix.divided else "-",
            matrix_text(each.candidate),
        ]


def matrix_text(candidate: Candidate) -> str:
    """Batch sizes of the members on each device, with shares where samples are routed by them."""
    return " / ".join(
        " ".join(f"{size}{candidate.share(device, member) if size else ''}" for member, size in enumerate(row))
        for device, row in enumerate(candidate.matrix.batch_sizes)
    )


def times(outcome: Outcome) -> str:
    """What a benchmarked matrix takes."""
    lines = []
    for name in DRAWING:
        own = [each for each in outcome.chosen if each.name == name]
        spent = [benchmark for each in own for benchmark in each.spent]
        rest = sum(each.seconds - sum(one.total for one in each.spent) for each in own) / len(spent)
        calm = [each for each in spent if each.calm]
        middles = [median(getattr(each, part) for each in calm) for part in PARTS] if calm else [float("nan")] * 4
        lines.append([name, f"{len(calm)} of {len(spent)}", *(f"{middle:.1f}" for middle in middles), f"{rest:.2f}"])
    text = (
        "Seconds of a benchmarked matrix: medians of those in which no window had to be repeated, by what they were "
        "spent on; and what the allocator itself thinks for each, in the mean."
    )
    names = ["allocator", "undisturbed", "seconds", "change of models", "warm-up and end", "measured", "thinking"]
    return f"{text}\n\n{table(names, lines)}"


def verdict(outcome: Outcome) -> str:
    counted, rates = outcome.sizes.rounds - outcome.rounds.dropped, outcome.rounds.rates
    if counted < LEAST_ROUNDS:
        return f"No verdict: {counted} undisturbed rounds are too few."
    if lost := losses(outcome.chosen, rates):
        return f"The default is **below** another beyond the noise: {'; '.join(lost)}."
    slower = min(
        (each for each in outcome.chosen if each.name == DEFAULT), key=lambda each: median(rates[each.candidate])
    )
    against = [
        f"{gain:+.1%} (±{off:.1%}) {other.label}"
        for other in outcome.chosen
        if other.name != DEFAULT
        for gain, off in [change(rates[slower.candidate], rates[other.candidate])]
    ]
    return (
        f"{NEVER_BELOW}. Its slower choice against each, and how far that may be off with {CONFIDENCE:.0%} "
        f"confidence: {'; '.join(against)}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, nargs="+", choices=MEMBERS, help="ensembles of so many members alone")
    parser.add_argument("--seeds", type=int, help=f"of the draws; {FULL.seeds} by default")
    parser.add_argument("--library", type=Path, metavar="DIR", help="keeps networks and profiles for the next time")
    parser.add_argument("--print", action="store_true", help="leave RESULTS.md as it is")
    parser.add_argument("--small", action="store_true", help="try it with little; nothing is judged or written")
    arguments = parser.parse_args()
    sizes = SMALL if arguments.small else FULL
    sizes = replace(sizes, members=tuple(arguments.members or sizes.members), seeds=arguments.seeds or sizes.seeds)
    failed = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.library or Path(temporary)
        for count in sizes.members:
            outcome = compare(make_library(folder, MEMBERS[count]), count, sizes, lambda line: print(line, flush=True))
            text = report(outcome)
            print(text)
            if arguments.small:
                continue
            if not arguments.print:
                write_section(f"Allocation: {count} real members on two cores", "make bench-allocation", text)
            if not (said := verdict(outcome)).startswith(NEVER_BELOW):
                failed.append(f"{count} members: {said}")
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
