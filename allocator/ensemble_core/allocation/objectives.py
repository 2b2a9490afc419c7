"""What is wanted of a server, and what the model promises of a candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import numpy as np

from ensemble_core.allocation.candidate import Candidate, Measured
from ensemble_core.allocation.load import load_of
from ensemble_core.allocation.model import Problem, pulled, shared
from ensemble_core.allocation.simulator import Load, Truth, simulate
from ensemble_core.allocation.speeds import stretched
from ensemble_core.api.ensembledeployment import EnsembleDeploymentSpec

PERCENTILES = (50, 90, 99)  # of latency, as benchmarks tell them
OVER = 1e-9  # scores up to it are of candidates over a limit: below all others, the nearer to the limit the larger


def keeps_limit(score: float) -> bool:
    """Whether a candidate of this score can be served, and within the limit if there is one."""
    return score > OVER


class Objective(Protocol):
    """What is wanted."""

    saturated: ClassVar[bool]  # whether all devices that are needed have work all the time, as it is measured

    @property
    def percentile(self) -> int | None:
        """Of the latency that it is about, one of `PERCENTILES`; none if it is about none."""

    def latency(self, measured: Measured) -> float | None:
        """That percentile of what was measured, in seconds; none if there is none."""

    def score(self, measured: Measured) -> float:
        """Larger is better and 0 is worst: it could not be served. At most `OVER` if it breaks a limit."""

    def expected(self, problem: Problem, candidate: Candidate) -> float:
        """The score that the model promises, more than 0."""

    def views(self, problem: Problem) -> Sequence[Problem]:
        """The problem as candidates are looked for: one after the other, each for high throughput."""


@dataclass(frozen=True)
class Throughput:
    """Most samples/s."""

    saturated: ClassVar[bool] = True
    percentile: ClassVar[None] = None

    def latency(self, measured: Measured) -> float | None:
        return None

    def score(self, measured: Measured) -> float:
        return measured.samples_per_second

    def expected(self, problem: Problem, candidate: Candidate) -> float:
        indices = problem.indices(candidate.matrix)
        if candidate.shares is None:
            return pulled(problem, indices)
        return shared(problem, indices, np.array(candidate.shares))

    def views(self, problem: Problem) -> Sequence[Problem]:
        return (problem,)


@dataclass(frozen=True)
class Latency:
    """Shortest requests under a load.

    Args:
        percentile: One of 50, 90, 99.
        load: Of the clients.
    """

    saturated: ClassVar[bool] = False
    percentile: int
    load: Load

    def latency(self, measured: Measured) -> float | None:
        return _percentile(measured, self.percentile)

    def score(self, measured: Measured) -> float:
        seconds = self.latency(measured)
        return 0.0 if seconds is None else 1 / seconds

    def expected(self, problem: Problem, candidate: Candidate) -> float:
        latencies = simulate(truth_of(problem), candidate, self.load).latencies
        return float(1 / np.percentile(latencies, self.percentile))

    def views(self, problem: Problem) -> Sequence[Problem]:
        """Small batches are early back, large ones keep up with load: so the problem is seen with each largest size."""
        return tuple(up_to(problem, size) for size in problem.batch_sizes)


@dataclass(frozen=True)
class ThroughputWithin:
    """Most samples/s while requests stay within a latency; the shortest requests where they do not.

    Args:
        percentile: One of 50, 90, 99.
        seconds: Of that percentile at most.
        loads: Closed loops, of growing concurrency; the fastest within the limit counts.
    """

    saturated: ClassVar[bool] = False
    percentile: int
    seconds: float
    loads: tuple[Load, ...]

    def latency(self, measured: Measured) -> float | None:
        return _percentile(measured, self.percentile)

    def score(self, measured: Measured) -> float:
        seconds = self.latency(measured)
        return 0.0 if seconds is None else self._score(measured.samples_per_second, seconds)

    def expected(self, problem: Problem, candidate: Candidate) -> float:
        truth = truth_of(problem)
        runs = [simulate(truth, candidate, load) for load in self.loads]
        return max(self._score(run.throughput, float(np.percentile(run.latencies, self.percentile))) for run in runs)

    def _score(self, throughput: float, seconds: float) -> float:
        return throughput if seconds <= self.seconds else OVER * self.seconds / seconds

    def views(self, problem: Problem) -> Sequence[Problem]:
        return tuple(up_to(problem, size) for size in problem.batch_sizes)


def _percentile(measured: Measured, percentile: int) -> float | None:
    """In seconds; none if nothing was answered."""
    if measured.samples_per_second <= 0 or measured.latency is None:
        return None
    return measured.latency[PERCENTILES.index(percentile)]


def up_to(problem: Problem, size: int) -> Problem:
    """The problem without larger batch sizes."""
    needs = np.where(np.array(problem.batch_sizes) <= size, problem.needs, np.inf)
    return replace(problem, needs=needs)


def truth_of(problem: Problem) -> Truth:
    """Devices that are as the model believes."""
    sizes = np.array(problem.batch_sizes)
    counts = np.arange(sizes[-1] + 1)
    seconds = np.empty((problem.devices, problem.members, len(counts)))
    for device, member in np.ndindex(seconds.shape[:2]):
        seconds[device, member] = stretched(sizes, sizes / problem.speeds[device, member], counts)
    pairs = np.full((problem.members, problem.members), problem.interference)
    return Truth(seconds, np.zeros_like(seconds), problem.capacity, pairs)


def objective_of(spec: EnsembleDeploymentSpec) -> Objective:
    """What the spec wants, as the algorithms take it."""
    percentile = int(spec.optimization.latency.percentile[1:])
    loads = load_of(spec).ranking()
    match spec.optimization.objective:
        case "latency":
            return Latency(percentile, loads[0])
        case "throughput-within-latency":
            return ThroughputWithin(percentile, (spec.optimization.latency.milliseconds or 0.0) / 1000, loads)
        case _:
            return Throughput()
