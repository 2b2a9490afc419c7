"""What a library keeps of allocations: every benchmark as soon as it is made, and what was found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, Protocol

from ensemble_core.allocation.candidate import Candidate, Measured
from ensemble_core.allocation.result import AllocationResult, Benchmark, Subject, Throughput
from ensemble_core.errors import UserError
from ensemble_core.library.parsing import validated

Kind = Literal["allocations", "benchmarks"]
Measure = Callable[[Candidate], Throughput]
Seen = Callable[[Benchmark], None]


class Results(Protocol):
    """The part of a library that keeps results by content."""

    def result(self, kind: Kind, digest: str) -> dict[str, Any] | None: ...

    def results(self, kind: Kind) -> dict[str, dict[str, Any]]: ...

    def write_result(self, kind: Kind, digest: str, content: dict[str, Any]) -> dict[str, Any]: ...

    def delete_result(self, kind: Kind, digest: str) -> None: ...


class Benchmarks:
    """Measures candidates, each once in the life of the library, repeats once in that of the run; keeps their order.

    A killed run that starts again asks for the same candidates in the same order and finds them measured. One that
    could not be served is not kept, and nothing of a run that did not find what is wanted: what was in the way, other
    processes perhaps, may be gone the next time.
    """

    def __init__(self, results: Results, subject: Subject, measure: Measure, seen: Seen) -> None:
        self._results = results
        self._subject = subject
        self._measure = measure
        self._seen = seen
        self.done: list[Benchmark] = []

    def __call__(self, candidate: Candidate, repeat: int = 0) -> Measured:
        throughput = self._stored(candidate, repeat)
        benchmark = Benchmark(
            order=len(self.done),
            matrix=candidate.matrix.batch_sizes,
            throughput=throughput,
            shares=candidate.shares,
            repeat=repeat,
        )
        self.done.append(benchmark)
        self._seen(benchmark)
        return throughput.measured()

    def of(self, candidate: Candidate) -> Throughput | None:
        """What was measured of a candidate, together: the mean, and the largest difference; none if nothing was."""
        own = [b.throughput for b in self.done if b.candidate == candidate]
        if len(own) < 2:
            return own[0] if own else None
        rates = [each.samples_per_second for each in own]
        mean = sum(rates) / len(rates)
        spread = max(max(each.spread for each in own), (max(rates) - min(rates)) / mean if mean else 0.0)
        told = [each.latency_seconds for each in own if each.latency_seconds]
        latency = tuple(sum(column) / len(told) for column in zip(*told, strict=True)) or None
        return own[-1].model_copy(update={"samples_per_second": mean, "spread": spread, "latency_seconds": latency})

    def forget(self) -> None:
        """Delete all that was measured, or found measured."""
        for done in self.done:
            self._results.delete_result("benchmarks", self._subject.benchmark_digest(done.candidate, done.repeat))

    def _stored(self, candidate: Candidate, repeat: int) -> Throughput:
        key = self._subject.benchmark_digest(candidate, repeat)
        stored = self._results.result("benchmarks", key)
        if stored is None:
            throughput = self._measure(candidate)
            if throughput.samples_per_second == 0:
                return throughput
            content = {"matrix": candidate.matrix.rows(), "throughput": throughput.document()}
            if candidate.shares is not None:
                content["shares"] = [list(row) for row in candidate.shares]
            stored = self._results.write_result("benchmarks", key, content)
        return benchmarked(key, stored, f"benchmarks/{key}.json")


def benchmarked(key: str, content: dict[str, Any], where: str) -> Throughput:
    """What a stored benchmark measured; UserError if it is none."""
    return validated(Throughput, content.get("throughput"), f"{where}: throughput")


def checked_allocation(key: str, content: dict[str, Any], where: str) -> AllocationResult:
    """A stored allocation; UserError if it is none, or not the one of that digest."""
    found = validated(AllocationResult, content, where)
    if found.digest != key:
        raise UserError(where, "is not the result that its name says")
    return found


def stored_allocation(results: Results, subject: Subject) -> AllocationResult | None:
    """What an earlier run found for the same subject."""
    key = subject.digest()
    stored = results.result("allocations", key)
    return None if stored is None else checked_allocation(key, stored, f"allocations/{key}.json")


def allocated_elsewhere(results: Results, subject: Subject) -> AllocationResult | None:
    """What an earlier run found for the same subject on other devices."""
    for key, content in sorted(results.results("allocations").items()):
        found = validated(AllocationResult, content, f"allocations/{key}.json")
        if replace(subject, devices=found.devices).digest() == found.digest:
            return found
    return None
