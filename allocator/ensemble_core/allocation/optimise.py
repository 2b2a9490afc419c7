"""Find an allocation: the algorithm, with every measurement stored as soon as it is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, Protocol

from ensemble_core.allocation.algorithms import (
    Bounds,
    DeviceKind,
    DoesNotFitError,
    bounded_greedy,
    worst_fit_decreasing,
)
from ensemble_core.allocation.matrix import Matrix
from ensemble_core.allocation.memory import Memory
from ensemble_core.allocation.result import (
    AllocatedMember,
    AllocationResult,
    Benchmark,
    Start,
    Subject,
    Throughput,
    device_fingerprint,
)
from ensemble_core.allocation.rows import group_of
from ensemble_core.errors import UserError
from ensemble_core.library.parsing import validated

Kind = Literal["allocations", "benchmarks"]
Measure = Callable[[Matrix], Throughput]
Seen = Callable[[Benchmark], None]


class Results(Protocol):
    """The part of a library that keeps results by content."""

    def result(self, kind: Kind, digest: str) -> dict[str, Any] | None: ...

    def results(self, kind: Kind) -> dict[str, dict[str, Any]]: ...

    def write_result(self, kind: Kind, digest: str, content: dict[str, Any]) -> dict[str, Any]: ...


class Benchmarks:
    """Measures matrices, each once in the life of the library, and remembers their order.

    A killed run that starts again asks for the same matrices in the same order and finds them measured. That a matrix
    could not be served is not kept: what was in the way, other processes' memory perhaps, may be gone the next time.
    """

    def __init__(self, results: Results, subject: Subject, measure: Measure, seen: Seen) -> None:
        self._results = results
        self._subject = subject
        self._measure = measure
        self._seen = seen
        self.done: list[Benchmark] = []

    def __call__(self, matrix: Matrix) -> float:
        """Samples/s; 0 if the server cannot load or run it."""
        throughput = self._stored(matrix)
        benchmark = Benchmark(order=len(self.done), matrix=matrix.batch_sizes, throughput=throughput)
        self.done.append(benchmark)
        self._seen(benchmark)
        return throughput.samples_per_second

    def of(self, matrix: Matrix) -> Throughput:
        """A measurement already made."""
        return next(done.throughput for done in self.done if done.matrix == matrix.batch_sizes)

    def _stored(self, matrix: Matrix) -> Throughput:
        key = self._subject.benchmark_digest(matrix)
        stored = self._results.result("benchmarks", key)
        if stored is None:
            throughput = self._measure(matrix)
            if throughput.samples_per_second == 0:
                return throughput
            content = {"matrix": matrix.rows(), "throughput": throughput.document()}
            stored = self._results.write_result("benchmarks", key, content)
        return validated(Throughput, stored.get("throughput"), f"benchmarks/{key}.json: throughput")


def stored_allocation(results: Results, subject: Subject) -> AllocationResult | None:
    """What an earlier run found for the same subject."""
    stored = results.result("allocations", subject.digest())
    return None if stored is None else _parsed(subject, stored)


def allocated_elsewhere(results: Results, subject: Subject) -> AllocationResult | None:
    """What an earlier run found for the same subject on other devices."""
    for key, content in sorted(results.results("allocations").items()):
        found = validated(AllocationResult, content, f"allocations/{key}.json")
        if replace(subject, devices=found.devices).digest() == found.digest:
            return found
    return None


def _parsed(subject: Subject, content: dict[str, Any]) -> AllocationResult:
    return validated(AllocationResult, content, f"allocations/{subject.digest()}.json")


def find_allocation(
    where: str, results: Results, subject: Subject, memory: Memory, bench: Benchmarks
) -> AllocationResult:
    """Run the algorithm of the spec and store what it finds.

    Args:
        where: File and field of the list of devices, for messages.
        results: Where allocations are kept.
        subject: What is allocated, on what.
        memory: Capacities of the subject's devices and needs of its members.
        bench: Of the same subject.

    Raises:
        UserError: the devices cannot hold the members, or the server cannot serve the starting matrix. All others have
            its workers and more, or larger batches: they would fail one after the other for the same reason.
    """
    start = starting_matrix(where, subject, memory)
    optimization = subject.deployment.spec.optimization

    def served(matrix: Matrix) -> float:
        speed = bench(matrix)
        if speed == 0 and matrix == start:
            problem = f"the server cannot serve the members even at the smallest batch size: {bench.of(start).reason}"
            raise UserError(where, problem)
        return speed

    if optimization.algorithm == "worst-fit":
        served(start)
        best = start
    else:
        bounds = Bounds(optimization.max_neighs, optimization.max_iter, optimization.max_benchmarks)
        best = bounded_greedy(start, optimization.batch_sizes, memory.fits, served, bounds, optimization.seed)
    result = _result(subject, start, best, bench)
    return _parsed(subject, results.write_result("allocations", result.digest, result.document()))


def benchmarks_at_most(subject: Subject) -> int:
    """How many benchmarks a run makes at most, for progress bars."""
    optimization = subject.deployment.spec.optimization
    return 1 if optimization.algorithm == "worst-fit" else optimization.max_benchmarks


def starting_matrix(where: str, subject: Subject, memory: Memory) -> Matrix:
    """Worst-fit-decreasing at the smallest batch size.

    Raises:
        UserError: the devices cannot hold the members; says which, where, and by how much.
    """
    spec = subject.deployment.spec
    kinds: list[DeviceKind] = [row.type for row in subject.devices]
    batch_size = spec.optimization.batch_sizes[0]
    try:
        return worst_fit_decreasing(memory, kinds, batch_size)
    except DoesNotFitError as lack:
        row = subject.devices[lack.device]
        raise UserError(
            f"{where}[{group_of(spec.devices, row)}]",
            f"the devices cannot hold the members: {subject.members[lack.member].model_id} needs {lack.needed:.0f} MiB "
            f"at batch size {batch_size}, but {row.name} has {lack.left:.0f} of {row.memory_mib:.0f} MiB left, "
            f"{lack.needed - lack.left:.0f} MiB too few; add devices or memoryMiB, or choose a smaller budget",
        ) from lack


def _result(subject: Subject, start: Matrix, best: Matrix, bench: Benchmarks) -> AllocationResult:
    return AllocationResult(
        name=subject.deployment.metadata.name,
        digest=subject.digest(),
        selection=subject.selection,
        members=tuple(AllocatedMember(model_id=m.model_id, weight=m.weight, sha256=m.sha256) for m in subject.members),
        devices=subject.devices,
        device_fingerprint=device_fingerprint(subject.devices),
        matrix=best.batch_sizes,
        algorithm=subject.deployment.spec.optimization.algorithm,
        throughput=bench.of(best),
        start=Start(matrix=start.batch_sizes, throughput=bench.of(start)),
        benchmarks=tuple(bench.done),
        server=subject.server,
    )
