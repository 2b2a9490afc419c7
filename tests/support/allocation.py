"""A machine that measures by a formula, and what is allocated on it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ensemble_core.allocation.candidate import Candidate
from ensemble_core.allocation.matrix import Matrix
from ensemble_core.allocation.memory import Curve, Memory
from ensemble_core.allocation.optimise import find_allocation
from ensemble_core.allocation.result import AllocationResult, Subject, Throughput
from ensemble_core.allocation.speeds import BatchTimes, Speeds
from ensemble_core.allocation.stored import Benchmarks, stored_allocation
from ensemble_core.api.ensembledeployment import Routing, Serving

WHERE = "digits.yaml: spec.devices"
BOTH = [  # two members on two devices
    {"device": "cpu0", "batchSizes": [8, 8]},
    {"device": "cpu1", "batchSizes": [8, 8]},
]


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


class Timed(Machine):
    """Every matrix answers as late as its largest batch."""

    def __call__(self, candidate: Candidate) -> Throughput:
        seconds = max(size for _, _, size in candidate.matrix.entries()) / 100
        return super().__call__(candidate).model_copy(update={"latency_seconds": (seconds, seconds, seconds)})


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


def routed(subject: Subject, routing: Routing) -> Subject:
    spec = subject.deployment.spec.model_copy(update={"serving": Serving(routing=routing)})
    return replace(subject, deployment=subject.deployment.model_copy(update={"spec": spec}))
