"""The fewest devices that give a required throughput."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from ensemble_core.allocation.candidate import Benchmark, Candidate, Measured
from ensemble_core.allocation.guided import Found, guided, promised
from ensemble_core.allocation.matrix import Matrix
from ensemble_core.allocation.model import Indices, Problem, upper_bound
from ensemble_core.allocation.objectives import Throughput
from ensemble_core.api.ensembledeployment import Routing

PROMISE = 0.95  # of what is required that the model must promise of a number of devices


@dataclass(frozen=True)
class _Lifted:
    """A benchmark of candidates for some of the devices: the others get nothing."""

    bench: Benchmark
    chosen: tuple[int, ...]
    devices: int

    def __call__(self, candidate: Candidate, repeat: int = 0) -> Measured:
        measured = self.bench(self.lift(candidate), repeat)
        device = None if measured.device not in self.chosen else self.chosen.index(measured.device)
        return replace(measured, device=device)

    def lift(self, candidate: Candidate) -> Candidate:
        matrix = np.zeros((self.devices, candidate.matrix.members), np.int64)
        matrix[list(self.chosen)] = candidate.matrix.batch_sizes
        if candidate.shares is None:
            return Candidate(Matrix.of(matrix.tolist()))
        shares = np.zeros(matrix.shape)
        shares[list(self.chosen)] = candidate.shares
        return Candidate(Matrix.of(matrix.tolist()), tuple(tuple(row) for row in shares.tolist()))


def fewest_devices(
    problem: Problem, required: float, bench: Benchmark, max_benchmarks: int, seed: int, routing: Routing = "auto"
) -> Found | None:
    """The candidate on the fewest devices that was measured to give what is required, or else the fastest measured.

    Args:
        problem: What profiles tell.
        required: Samples/s.
        bench: Called at most `max_benchmarks` times.
        max_benchmarks: Of all numbers of devices together; half of what is left for each, so that the next has some.
        seed: Of the draws.
        routing: The only way in which samples are routed, or `auto` for that which is measured to be better.

    Returns:
        None if nothing could be served. Numbers of devices of which the model does not promise enough are passed over,
        so that fewer would do only where the model is wrong.
    """
    left, fastest = max_benchmarks, None
    for chosen in _subsets(problem):
        part = problem.on(chosen)
        everything = len(chosen) == problem.devices
        if not everything and upper_bound(part) < required:
            continue
        if not everything and promised(part, Throughput(), routing, seed) < PROMISE * required:
            continue
        if left == 0:
            break
        counted = _Counted(_Lifted(bench, tuple(chosen.tolist()), problem.devices))
        most = left if everything else max(1, left // 2)
        found = guided(part, None, None, counted, Throughput(), most, seed, routing, required)
        left -= counted.calls
        if found is None:
            continue
        found = Found(counted.bench.lift(found.best), found.score, found.expected)
        if found.score >= required:
            return found
        if fastest is None or found.score > fastest.score:
            fastest = found
    return fastest


@dataclass
class _Counted:
    bench: _Lifted
    calls: int = 0

    def __call__(self, candidate: Candidate, repeat: int = 0) -> Measured:
        self.calls += 1
        return self.bench(candidate, repeat)


def _subsets(problem: Problem) -> Iterator[Indices]:
    """Choices of devices, fewer before more; of a kind those with the most memory, which can do all that others can."""
    kinds = list(dict.fromkeys(problem.kinds))
    order = sorted(range(problem.devices), key=lambda device: -problem.capacity[device])  # of equal ones the first
    rows = {kind: [device for device in order if problem.kinds[device] == kind] for kind in kinds}
    counts = [counts for counts in product(*(range(len(rows[kind]) + 1) for kind in kinds)) if any(counts)]
    # Of equal numbers those with more of the first kinds come first: GPUs are the first rows.
    for numbers in sorted(counts, key=lambda numbers: (sum(numbers), [-number for number in numbers])):
        chosen = [row for kind, number in zip(kinds, numbers, strict=True) for row in rows[kind][:number]]
        yield np.array(sorted(chosen))
