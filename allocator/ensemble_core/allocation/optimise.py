"""Find an allocation: the algorithm, with every measurement stored as soon as it is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ensemble_core.allocation.algorithms import (
    Bounds,
    DeviceKind,
    DoesNotFitError,
    best_batch,
    bounded_greedy,
    latency_greedy,
    paper_greedy,
    worst_fit_decreasing,
)
from ensemble_core.allocation.candidate import Benchmark as Ask
from ensemble_core.allocation.candidate import Candidate, Measured
from ensemble_core.allocation.construct import construct
from ensemble_core.allocation.fewest import fewest_devices
from ensemble_core.allocation.guided import guided, unchanged
from ensemble_core.allocation.load import load_of
from ensemble_core.allocation.matrix import Matrix
from ensemble_core.allocation.memory import Memory
from ensemble_core.allocation.model import Problem, upper_bound
from ensemble_core.allocation.objectives import Latency, Objective, ThroughputWithin, keeps_limit, up_to
from ensemble_core.allocation.objectives import Throughput as MostThroughput
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
from ensemble_core.allocation.speeds import Speeds, problem_of
from ensemble_core.errors import UserError
from ensemble_core.library.parsing import validated

Kind = Literal["allocations", "benchmarks"]
Measure = Callable[[Candidate], Throughput]
Seen = Callable[[Benchmark], None]

SHARES_OFF = 0.02  # from 1, that the sum of a member's shares may be: people round


@dataclass(frozen=True)
class _Choice:
    """What an algorithm chose, and the samples/s that the corrected model gives it, if one was asked."""

    best: Candidate
    expected: float | None = None


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
    where: str,
    results: Results,
    subject: Subject,
    memory: Memory,
    speeds: Speeds,
    bench: Benchmarks,
) -> AllocationResult:
    """Run the algorithm of the spec and store what it finds.

    Args:
        where: File and field of the list of devices, for messages.
        results: Where allocations are kept.
        subject: What is allocated, on what.
        memory: Capacities of the subject's devices and needs of its members.
        speeds: Of its members alone on its devices.
        bench: Of the same subject.

    Raises:
        UserError: the devices cannot hold the members, the spec's own matrix is not one for them, the algorithm needs
            more devices, the server could serve none of the candidates, none gives what is required, or none keeps to
            the latency.
    """
    problem = problem_of([row.type for row in subject.devices], subject.deployment.spec.batch_sizes, speeds, memory)
    incumbent = _incumbent(where, results, subject, memory, problem)
    start = _start(where, subject, memory, problem, incumbent)
    ask = _unless_hopeless(where, bench, start)
    if subject.deployment.spec.optimization.algorithm == "guided":
        choice = _guided(problem, start, incumbent, ask, subject)
    else:
        choice = _by_reference(where, problem, subject, memory, speeds, start, ask)
    if choice is None:
        raise _nothing_served(where, bench)
    found = _result(subject, start, choice, bench, problem)
    _refuse_what_falls_short(where, subject, bench, found)
    return _parsed(subject, results.write_result("allocations", found.digest, found.document()))


def _unless_hopeless(where: str, bench: Benchmarks, start: Candidate | None) -> Ask:
    """The benchmark, which ends the run if the smallest workers fail, on a start that routing has no part in."""

    def ask(candidate: Candidate, repeat: int = 0) -> Measured:
        measured = bench(candidate, repeat)
        if candidate == start and not candidate.matrix.divided and not measured.short_of_memory:
            _refuse_if_hopeless(where, bench)
        return measured

    return ask


def _refuse_what_falls_short(where: str, subject: Subject, bench: Benchmarks, found: AllocationResult) -> None:
    """Refuse what cannot be served, does not give what is required, or breaks the limit of latency."""
    optimization = subject.deployment.spec.optimization
    reached, required = found.throughput.samples_per_second, optimization.required_samples_per_second
    if reached == 0:
        raise _nothing_served(where, bench)
    if optimization.objective == "fewest-devices" and required is not None and reached < required:
        bench.forget()
        told = _not_reached(required, reached, bench, optimization.max_benchmarks)
        raise UserError(_field(where, "optimization.requiredSamplesPerSecond"), told)
    _refuse_if_too_slow(where, subject, bench, found.candidate)


def _nothing_served(where: str, bench: Benchmarks) -> UserError:
    if not bench.done:
        return UserError(where, "no matrix was found that the devices can hold; add devices or memoryMiB")
    reason = bench.done[0].throughput.reason
    return UserError(where, f"the server could serve none of {len(bench.done)} matrices; the first: {reason}")


def _not_reached(required: float, reached: float, bench: Benchmarks, limit: int) -> str:
    """What was tried for a rate: where benchmarks ended before all devices were used, it may be reached yet."""
    devices, tried = len(bench.done[0].matrix), len({done.candidate for done in bench.done})
    most = max(sum(any(row) for row in done.matrix) for done in bench.done)
    if most == devices or len(bench.done) < limit:
        return f"{required:g} cannot be reached: the fastest of {tried} matrices gives {reached:,.0f}"
    return (
        f"{required:g} is not reached: the fastest of {tried} matrices, on {most} of {devices} devices at most, gives "
        f"{reached:,.0f}; raise maxBenchmarks to go on"
    )


def _refuse_if_too_slow(where: str, subject: Subject, bench: Benchmarks, best: Candidate) -> None:
    """Refuse the best candidate if one of its measurements is over the latency allowed: so are all others, then."""
    objective = objective_of(subject)
    if not isinstance(objective, ThroughputWithin):
        return
    latencies: dict[Candidate, float] = {}  # the longest of each candidate
    for done in bench.done:
        if (seconds := objective.latency(done.throughput.measured())) is not None:
            latencies[done.candidate] = max(seconds, latencies.get(done.candidate, 0.0))
    if latencies.get(best, 0.0) > objective.seconds:
        bench.forget()
        problem = (
            f"{1000 * objective.seconds:g} ms cannot be kept: the lowest p{objective.percentile} of {len(latencies)} "
            f"matrices is {1000 * min(latencies.values()):,.3g} ms; allow more, add devices, or choose a smaller budget"
        )
        raise UserError(_field(where, "optimization.latency.milliseconds"), problem)


def _refuse_if_hopeless(where: str, bench: Benchmarks) -> None:
    """Refuse members of which the smallest workers cannot be served, though memory is not what they lack.

    All other matrices have as many workers at least, or larger batches: they would fail for the same reason, one after
    the other.
    """
    if all(each.throughput.samples_per_second == 0 for each in bench.done):
        reason = bench.done[-1].throughput.reason
        raise UserError(where, f"the server cannot serve the members even at the smallest batch size: {reason}")


def objective_of(subject: Subject) -> Objective:
    """What the spec wants, as the algorithms take it."""
    optimization = subject.deployment.spec.optimization
    percentile = int(optimization.latency.percentile[1:])
    loads = load_of(subject.deployment.spec).ranking()
    match optimization.objective:
        case "latency":
            return Latency(percentile, loads[0])
        case "throughput-within-latency":
            return ThroughputWithin(percentile, (optimization.latency.milliseconds or 0.0) / 1000, loads)
        case _:
            return MostThroughput()


def _start(
    where: str, subject: Subject, memory: Memory, problem: Problem, incumbent: Candidate | None
) -> Candidate | None:
    """Worst-fit-decreasing; for the default algorithm, where that fails, what is constructed, or the incumbent alone.

    Raises:
        UserError: worst-fit-decreasing fails, and nothing else is known to fit.
    """
    spec, routing = subject.deployment.spec.optimization, subject.deployment.spec.serving.routing
    try:
        return Candidate(starting_matrix(where, subject, memory))
    except UserError:
        if spec.algorithm != "guided":
            raise
        built = construct(up_to(problem, problem.batch_sizes[0]))
        if built is not None:
            return unchanged(problem, problem.matrix(built[0]), routing)
        if incumbent is None or spec.objective == "fewest-devices":
            raise
        return None


def _guided(
    problem: Problem,
    start: Candidate | None,
    incumbent: Candidate | None,
    bench: Ask,
    subject: Subject,
) -> _Choice | None:
    """What the default algorithm finds; none if nothing could be served."""
    spec, routing = subject.deployment.spec.optimization, subject.deployment.spec.serving.routing
    if spec.objective == "fewest-devices":
        required = spec.required_samples_per_second or 0.0
        found = fewest_devices(problem, required, bench, spec.max_benchmarks, spec.seed, routing)
    else:
        objective = objective_of(subject)
        found = guided(problem, start, incumbent, bench, objective, spec.max_benchmarks, spec.seed, routing)
    if found is None:
        return None
    return _Choice(found.best, found.expected if keeps_limit(found.expected) else None)


def _by_reference(
    where: str,
    problem: Problem,
    subject: Subject,
    memory: Memory,
    speeds: Speeds,
    start: Candidate | None,
    bench: Ask,
) -> _Choice:
    """What a reference algorithm finds, routed as all of its matrices were."""
    assert start is not None  # all these begin with worst-fit-decreasing
    objective, routing = objective_of(subject), subject.deployment.spec.serving.routing

    def score(matrix: Matrix) -> float:
        return objective.score(bench(unchanged(problem, matrix, routing)))

    return _Choice(unchanged(problem, _reference(where, subject, memory, speeds, start.matrix, score), routing))


def _reference(
    where: str, subject: Subject, memory: Memory, speeds: Speeds, start: Matrix, score: Callable[[Matrix], float]
) -> Matrix:
    """The matrix of a reference algorithm; what it chose without benchmarks is measured."""
    spec, sizes = subject.deployment.spec.optimization, subject.deployment.spec.batch_sizes
    match spec.algorithm:
        case "bounded-greedy":
            bounds = Bounds(spec.max_neighs, spec.max_iter, spec.max_benchmarks)
            return bounded_greedy(start, sizes, memory.fits, score, bounds, spec.seed)
        case "paper-greedy":
            return paper_greedy(start, sizes, memory.fits, score, spec.max_benchmarks, spec.seed)
        case "best-batch":
            try:
                matrix = best_batch(speeds.at, memory, sizes)
            except ValueError as error:
                raise UserError(_field(where, "optimization.algorithm"), f"best-batch: {error}") from None
            except DoesNotFitError as lack:
                raise _does_not_fit(where, subject, lack) from lack
        case "latency-greedy":
            try:
                matrix = latency_greedy(speeds.at, memory, sizes[0])
            except DoesNotFitError as lack:
                raise _does_not_fit(where, subject, lack) from lack
        case _:
            matrix = start
    score(matrix)
    return matrix


def _incumbent(where: str, results: Results, subject: Subject, memory: Memory, problem: Problem) -> Candidate | None:
    """The matrix that the spec gives, or the best allocation that the library has for such members and devices.

    Those measured under the same load, by the same server, come first, by the objective; the others by samples/s. What
    was replaced is behind all that was not: it may have been measured on a better day. Reference algorithms have none.
    """
    if subject.deployment.spec.optimization.algorithm != "guided":
        return None
    routing = subject.deployment.spec.serving.routing
    if subject.deployment.spec.optimization.matrix:
        matrix, shares = given_matrix(where, subject, memory), given_shares(where, subject)
        return unchanged(problem, matrix, routing) if shares is None else Candidate.weighted(matrix, shares)
    models = [member.sha256 for member in subject.members]
    allowed = set(subject.deployment.spec.batch_sizes)
    known = [
        found
        for key, content in sorted(results.results("allocations").items())
        if (found := validated(AllocationResult, content, f"allocations/{key}.json"))
        and [member.sha256 for member in found.members] == models
        and found.device_fingerprint == device_fingerprint(subject.devices)
        and {size for row in found.matrix for size in row if size} <= allowed
        and (routing in ("auto", found.candidate.routing) or not found.candidate.matrix.divided)
        and memory.fits(found.candidate.matrix)
    ]
    comparable = [found for found in known if found.conditions == subject.conditions()]
    objective = objective_of(subject)
    if comparable:
        lost = {found.replaced for found in comparable}
        standing = [found for found in comparable if found.candidate not in lost] or comparable
        return max(standing, key=lambda found: objective.score(found.throughput.measured())).candidate
    fastest = max(known, key=lambda found: found.throughput.samples_per_second, default=None)
    return None if fastest is None else fastest.candidate


def given_matrix(where: str, subject: Subject, memory: Memory) -> Matrix:
    """The spec's own matrix.

    Raises:
        UserError: it names an unknown device or one twice, has another number of members or a batch size that is not
            allowed, leaves a member out, or exceeds a device's memory.
    """
    spec = subject.deployment.spec.optimization
    field = _field(where, "optimization.matrix")
    names = [row.name for row in subject.devices]
    rows = {name: [0] * len(subject.members) for name in names}
    for index, row in enumerate(spec.matrix):
        if row.device not in rows:
            raise UserError(f"{field}[{index}].device", f"{row.device} is none of the devices {', '.join(names)}")
        if any(row.device == before.device for before in spec.matrix[:index]):
            raise UserError(f"{field}[{index}].device", f"{row.device} has a row already")
        if len(row.batch_sizes) != len(subject.members):
            problem = f"has {len(row.batch_sizes)} entries for {len(subject.members)} members"
            raise UserError(f"{field}[{index}].batchSizes", problem)
        for size in row.batch_sizes:
            if size and size not in subject.deployment.spec.batch_sizes:
                allowed = ", ".join(map(str, subject.deployment.spec.batch_sizes))
                raise UserError(f"{field}[{index}].batchSizes", f"{size} is not among batchSizes: 0, {allowed}")
        rows[row.device] = list(row.batch_sizes)
    absent = [
        m.model_id
        for m, column in zip(subject.members, zip(*rows.values(), strict=True), strict=True)
        if not any(column)
    ]
    if absent:
        raise UserError(field, f"{', '.join(absent)} would be on no device")
    matrix = Matrix.of([rows[name] for name in names])
    for device, excess in memory.overflows(matrix):
        lacks = subject.devices[device]
        raise UserError(field, f"takes {excess:.0f} MiB more than the {lacks.memory_mib:.0f} MiB of {lacks.name}")
    return matrix


def given_shares(where: str, subject: Subject) -> npt.NDArray[np.float64] | None:
    """Shares of the samples in the spec's own matrix, shape (D, M); none if it has none.

    Raises:
        UserError: only some rows have shares, a member has one where it is not or none where it is, a member's do not
            add up to 1, or no shares are allowed.
    """
    given, field = subject.deployment.spec.optimization.matrix, _field(where, "optimization.matrix")
    if not any(row.shares for row in given):
        return None
    if subject.deployment.spec.serving.routing == "pull":
        raise UserError(field, "has shares, which serving.routing: pull does not allow")
    rows = {row.name: np.zeros(len(subject.members)) for row in subject.devices}
    for index, row in enumerate(given):
        shares = np.array(row.shares or [0.0] * len(row.batch_sizes))
        for member, size, share in zip(subject.members, row.batch_sizes, shares, strict=True):
            if (size > 0) != (share > 0):
                problem = f"{share:g} of {member.model_id}, whose batch size there is {size}"
                raise UserError(f"{field}[{index}].shares", problem)
        rows[row.device] = shares
    found = np.array(list(rows.values()))
    for member, total in zip(subject.members, found.sum(axis=0), strict=True):
        if abs(total - 1) > SHARES_OFF:
            raise UserError(field, f"the shares of {member.model_id} add up to {total:g}, not to 1")
    return found


def _field(where: str, name: str) -> str:
    """A field of the same spec as the list of devices."""
    return f"{where.removesuffix('devices')}{name}"


def benchmarks_at_most(subject: Subject) -> int:
    """How many benchmarks a run makes at most, for progress bars."""
    optimization = subject.deployment.spec.optimization
    return 1 if optimization.algorithm in ("worst-fit", "best-batch", "latency-greedy") else optimization.max_benchmarks


def starting_matrix(where: str, subject: Subject, memory: Memory) -> Matrix:
    """Worst-fit-decreasing at the smallest batch size.

    Raises:
        UserError: the devices cannot hold the members; says which, where, and by how much.
    """
    spec = subject.deployment.spec
    kinds: list[DeviceKind] = [row.type for row in subject.devices]
    batch_size = spec.batch_sizes[0]
    try:
        return worst_fit_decreasing(memory, kinds, batch_size)
    except DoesNotFitError as lack:
        raise _does_not_fit(where, subject, lack) from lack


def _does_not_fit(where: str, subject: Subject, lack: DoesNotFitError) -> UserError:
    spec, row = subject.deployment.spec, subject.devices[lack.device]
    return UserError(
        f"{where}[{group_of(spec.devices, row)}]",
        f"the devices cannot hold the members: {subject.members[lack.member].model_id} needs {lack.needed:.0f} MiB "
        f"at batch size {spec.batch_sizes[0]}, but {row.name} has {lack.left:.0f} of {row.memory_mib:.0f} "
        f"MiB left, {lack.needed - lack.left:.0f} MiB too few; add devices or memoryMiB, or choose a smaller budget",
    )


def _result(
    subject: Subject,
    start: Candidate | None,
    choice: _Choice,
    bench: Benchmarks,
    problem: Problem,
) -> AllocationResult:
    first, begun = bench.done[0], bench.of(start) if start else None
    best, measured = choice.best, bench.of(choice.best)
    assert measured is not None  # no algorithm chooses what it has not measured
    # Under a load that is not the largest, samples/s say nothing about the devices.
    saturated = subject.deployment.spec.optimization.objective != "latency"
    return AllocationResult(
        name=subject.deployment.metadata.name,
        digest=subject.digest(),
        selection=subject.selection,
        members=tuple(AllocatedMember(model_id=m.model_id, weight=m.weight, sha256=m.sha256) for m in subject.members),
        devices=subject.devices,
        device_fingerprint=device_fingerprint(subject.devices),
        matrix=best.matrix.batch_sizes,
        algorithm=subject.deployment.spec.optimization.algorithm,
        throughput=measured,
        start=Start(
            matrix=start.matrix.batch_sizes if start and begun else first.matrix, throughput=begun or first.throughput
        ),
        benchmarks=tuple(bench.done),
        server=subject.server,
        shares=best.shares,
        bound=upper_bound(problem) if saturated else None,
        expected=choice.expected if saturated else None,
        engines=subject.engines(best.matrix),
        conditions=subject.conditions(),
    )
