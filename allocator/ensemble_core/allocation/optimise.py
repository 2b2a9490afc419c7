"""Find an allocation: the algorithm, with every measurement stored as soon as it is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ensemble_core.allocation.algorithms import (
    Bounds,
    DoesNotFitError,
    best_batch,
    bounded_greedy,
    latency_greedy,
    paper_greedy,
)
from ensemble_core.allocation.candidate import Benchmark as Ask
from ensemble_core.allocation.candidate import Candidate, Measured
from ensemble_core.allocation.fewest import fewest_devices
from ensemble_core.allocation.guided import guided, unchanged
from ensemble_core.allocation.matrix import Matrix
from ensemble_core.allocation.memory import Memory
from ensemble_core.allocation.model import Problem, upper_bound
from ensemble_core.allocation.objectives import ThroughputWithin, keeps_limit, objective_of
from ensemble_core.allocation.result import AllocatedMember, AllocationResult, Start, Subject, device_fingerprint
from ensemble_core.allocation.speeds import Speeds, problem_of
from ensemble_core.allocation.start import does_not_fit, field_of, incumbent_of, start_of
from ensemble_core.allocation.stored import Benchmarks, Results, checked_allocation
from ensemble_core.errors import UserError


@dataclass(frozen=True)
class _Choice:
    """What an algorithm chose, and the samples/s that the corrected model gives it, if one was asked."""

    best: Candidate
    expected: float | None = None


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
    incumbent = incumbent_of(where, results, subject, memory, problem)
    start = start_of(where, subject, memory, problem, incumbent)
    ask = _unless_hopeless(where, bench, start)
    if subject.deployment.spec.optimization.algorithm == "guided":
        choice = _guided(problem, start, incumbent, ask, subject)
    else:
        choice = _by_reference(where, problem, subject, memory, speeds, start, ask)
    if choice is None:
        raise _nothing_served(where, bench)
    found = _result(subject, start, choice, bench, problem)
    _refuse_what_falls_short(where, subject, bench, found)
    kept = results.write_result("allocations", found.digest, found.document())
    return checked_allocation(found.digest, kept, f"allocations/{found.digest}.json")


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
        raise UserError(field_of(where, "optimization.requiredSamplesPerSecond"), told)
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
    objective = objective_of(subject.deployment.spec)
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
        raise UserError(field_of(where, "optimization.latency.milliseconds"), problem)


def _refuse_if_hopeless(where: str, bench: Benchmarks) -> None:
    """Refuse members of which the smallest workers cannot be served, though memory is not what they lack.

    All other matrices have as many workers at least, or larger batches: they would fail for the same reason, one after
    the other.
    """
    if all(each.throughput.samples_per_second == 0 for each in bench.done):
        reason = bench.done[-1].throughput.reason
        raise UserError(where, f"the server cannot serve the members even at the smallest batch size: {reason}")


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
        objective = objective_of(subject.deployment.spec)
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
    objective, routing = objective_of(subject.deployment.spec), subject.deployment.spec.serving.routing

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
                raise UserError(field_of(where, "optimization.algorithm"), f"best-batch: {error}") from None
            except DoesNotFitError as lack:
                raise does_not_fit(where, subject, lack) from lack
        case "latency-greedy":
            try:
                matrix = latency_greedy(speeds.at, memory, sizes[0])
            except DoesNotFitError as lack:
                raise does_not_fit(where, subject, lack) from lack
        case _:
            matrix = start
    score(matrix)
    return matrix


def benchmarks_at_most(subject: Subject) -> int:
    """How many benchmarks a run makes at most, for progress bars."""
    optimization = subject.deployment.spec.optimization
    return 1 if optimization.algorithm in ("worst-fit", "best-batch", "latency-greedy") else optimization.max_benchmarks


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
