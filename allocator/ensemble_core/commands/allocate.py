"""Spread an ensemble over devices so that it answers the most samples per second (EnsembleDeployment)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ensemble_core.allocation.candidate import ROUTING
from ensemble_core.allocation.guided import passed_over
from ensemble_core.allocation.harness import Bench, NoServerError, Triton
from ensemble_core.allocation.objectives import Latency, Objective, ThroughputWithin, objective_of
from ensemble_core.allocation.optimise import benchmarks_at_most, find_allocation
from ensemble_core.allocation.plan import Plan, Worker
from ensemble_core.allocation.prepare import (
    Ensemble,
    Profiles,
    allocated_plan,
    find_ensemble,
    memory_of,
    overridden,
    pace_of,
    profiled,
    speeds_of,
)
from ensemble_core.allocation.result import AllocationResult, Benchmark, Subject, Throughput
from ensemble_core.allocation.stored import Benchmarks, stored_allocation
from ensemble_core.api.documents import load_documents
from ensemble_core.engines import DEFAULT, Engine
from ensemble_core.library.records import Accuracy
from ensemble_core.profiling.half import words
from ensemble_core.report import CommandError, Report, add_report_arguments, run_reported
from ensemble_core.serving import footprint
from ensemble_core.serving.load import QUIET

CLIENT_BUSY = 0.9  # of a core, from which the load generator may be what is measured
UNSURE = 0.5  # of a gain: if the noise of the two figures is more of it, it is not told in percent


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_report_arguments(parser)
    parser.add_argument("--budget", metavar="NAME", help="allocate the ensemble of another budget than the document's")
    add_selection_argument(parser)
    parser.add_argument("--max-benchmarks", type=int, metavar="N", help="benchmarks in all, whatever the document says")


def add_selection_argument(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """The option that names a stored result of the selection, in place of the one for what its libraries hold now."""
    text = "the stored result of the selection to use, whatever its libraries hold now"
    parser.add_argument("--selection", metavar="DIGEST", required=required, help=text)


def run(arguments: argparse.Namespace) -> int:
    return run_reported(arguments, "allocate", lambda report: _allocate(arguments, report))


def _allocate(arguments: argparse.Namespace, report: Report) -> dict[str, Any]:
    documents = load_documents(arguments.spec)
    deployment = overridden(documents.deployment(arguments.name), arguments.budget, arguments.max_benchmarks)
    ensemble = find_ensemble(documents, deployment, arguments.selection)
    try:
        subject, profiles = profiled(ensemble, lambda text: _tell(report, text))
        found = stored_allocation(ensemble.results, subject)
        if found is not None:
            print(f"allocation {found.name}: nothing has changed, allocations/{found.digest}.json stays")
        else:
            found = _optimise(ensemble, subject, profiles, report)
    except NoServerError as error:
        raise CommandError(f"there is no Triton server to measure: {error}") from error
    for line in table(found, objective_of(subject.deployment.spec)):
        print(line)
    plan = allocated_plan(ensemble, subject, found)
    for (model, engine), accuracy in accuracies(plan, profiles).items():
        print(f"  {model} by {engine}: {words(accuracy)}")
    return {"digest": found.digest, "summary": summary(found, plan, profiles)}


def _tell(report: Report, text: str) -> None:
    report.progress(stage="profiles", note=text)
    print(text, flush=True)


def _optimise(ensemble: Ensemble, subject: Subject, profiles: Profiles, report: Report) -> AllocationResult:
    ensemble.results.store.check_writable()
    progress = Progress(report, benchmarks_at_most(subject), objective_of(subject.deployment.spec))
    with Triton() as server:
        bench = Benchmarks(
            ensemble.results, subject, Bench(subject, ensemble.signature, pace_of(subject, profiles), server), progress
        )
        memory, speeds = memory_of(subject, profiles), speeds_of(subject, profiles)
        where = f"{ensemble.where}: spec.devices"
        return find_allocation(where, ensemble.results, subject, memory, speeds, bench)


class Progress:
    """Tells the report and the terminal of each benchmark."""

    def __init__(self, report: Report, total: int, objective: Objective) -> None:
        self._report = report
        self._total = total
        self._objective = objective
        self._best = Throughput(samples_per_second=0)
        report.progress(stage="benchmarks", done=0, total=total, note="starting the server")

    def __call__(self, benchmark: Benchmark) -> None:
        done = benchmark.order + 1
        self._best = max(self._best, benchmark.throughput, key=lambda each: self._objective.score(each.measured()))
        best = in_short(self._best, self._objective)
        self._report.progress(stage="benchmarks", done=done, total=self._total, note=f"best so far {best}")
        figure = in_full(benchmark.throughput, self._objective)
        print(f"benchmark {done} of at most {self._total}: {figure}; best {best}", flush=True)
        for line in remarks(benchmark.throughput):
            print(f"  {line}", flush=True)


def remarks(throughput: Throughput) -> list[str]:
    """What one should know of a measurement."""
    found = []
    if throughput.reason:
        found.append(f"could not be served: {throughput.reason}")
    if throughput.client_cores >= CLIENT_BUSY:
        found.append(
            f"the load generator used {throughput.client_cores:.2f} of the one core that it can use: "
            "the server could perhaps answer more"
        )
    if throughput.foreign_cores > QUIET:
        found.append(f"other processes used {throughput.foreign_cores:.2f} cores meanwhile: the figure may be too low")
    return found


def with_spread(throughput: Throughput) -> str:
    """Samples/s with half the range of what was measured of them."""
    return f"{throughput.samples_per_second:,.0f} samples/s ± {throughput.spread / 2:.1%}"


def in_full(throughput: Throughput, objective: Objective) -> str:
    """Samples/s with their spread, and the latency that the objective is about."""
    speed, latency = with_spread(throughput), in_milliseconds(throughput, objective)
    told = [latency, speed] if isinstance(objective, Latency) else [speed, latency]
    return ", ".join(filter(None, told))


def in_short(throughput: Throughput, objective: Objective) -> str:
    """What the objective goes by."""
    speed, latency = f"{throughput.samples_per_second:,.0f} samples/s", in_milliseconds(throughput, objective)
    if isinstance(objective, Latency):
        return latency or speed
    return f"{speed} at {latency}" if latency else speed


def in_milliseconds(throughput: Throughput, objective: Objective) -> str:
    """The percentile of latency that the objective is about; empty if it is about none, or nothing was answered."""
    seconds = objective.latency(throughput.measured())
    if objective.percentile is None or seconds is None:
        return ""
    number = f"{1000 * seconds:.3g}" if seconds < 1 else f"{1000 * seconds:,.0f}"
    told = f"p{objective.percentile} {number} ms"
    if isinstance(objective, ThroughputWithin) and seconds > objective.seconds:
        return f"{told}, over {1000 * objective.seconds:g} ms"
    return told


def gain(found: AllocationResult, objective: Objective) -> str:
    """By how much the objective is nearer than at the start; empty if that is what was found, or could not be served.

    Where the limit of latency was broken at the start, that is what has changed. Where noise could be half of the gain,
    what was measured at the start is told.
    """
    best, start = found.throughput, found.start.throughput
    if found.start.matrix == found.matrix or not start.samples_per_second:
        return ""
    now, before = objective.latency(best.measured()), objective.latency(start.measured())
    if isinstance(objective, ThroughputWithin):
        again = (each.throughput for each in found.benchmarks if each.matrix == found.start.matrix)
        slowest = max((start, *again), key=lambda each: objective.latency(each.measured()) or 0.0)
        if (objective.latency(slowest.measured()) or 0.0) > objective.seconds:  # once is enough to be refused
            return f" (from {in_short(slowest, objective)})"
    about, ratio = "", best.samples_per_second / start.samples_per_second
    if isinstance(objective, Latency) and now and before:
        about, ratio = f"p{objective.percentile} ", now / before
    if ratio * (best.spread + start.spread) / 2 > UNSURE * abs(ratio - 1):
        return f" (from {in_full(start, objective)} at the start)"
    return f" ({about}{ratio - 1:+.0%} from the start)"


def summary(found: AllocationResult, plan: Plan, profiles: Profiles) -> dict[str, Any]:
    """What a report holds: everything but the single benchmarks, and what a pod that serves it needs."""

    def need(worker: Worker) -> float:
        # Of the engine that the plan names: now, with more profiles, another may be chosen.
        own = profiles[worker.member][plan.device(worker.device).device_type]
        return own.memory(worker.engine, worker.batch_size)

    half = [
        {"modelId": model, "engine": engine, **accuracy.document()}
        for (model, engine), accuracy in accuracies(plan, profiles).items()
    ]
    return {
        **found.document(),
        **({"accuracy": half} if half else {}),
        "benchmarks": len(found.benchmarks),
        "sharedMemoryMiB": footprint.shared_memory_mib(plan),
        "memoryMiB": footprint.memory_mib(plan, need),
    }


def accuracies(plan: Plan, profiles: Profiles) -> dict[tuple[str, Engine], Accuracy]:
    """What half precision does to members, by member and engine, as far as workers of the plan compute so."""
    found = {}
    for worker in plan.workers:
        own = profiles[worker.member][plan.device(worker.device).device_type].accuracies
        if worker.engine in own:
            found[plan.members[worker.member].model_id, worker.engine] = own[worker.engine]
    return found


def table(found: AllocationResult, objective: Objective) -> list[str]:
    """The matrix and what the objective goes by, as lines of text."""
    candidate, names = found.candidate, [member.model_id for member in found.members]
    width = max(len(row.name) for row in found.devices)
    cells = [
        [f"{size}{candidate.share(device, member) if size else ''}" for member, size in enumerate(row)]
        for device, row in enumerate(found.matrix)
    ]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]

    def line(head: str, texts: Sequence[str]) -> str:
        return f"  {head:<{width}}  " + "  ".join(f"{text:>{wide}}" for text, wide in zip(texts, widths, strict=True))

    best, count = found.throughput.samples_per_second, len(found.benchmarks)
    measured = f"{in_full(found.throughput, objective)} measured{gain(found, objective)}"
    bound = f", {best / found.bound:.0%} of the bound by profiles" if found.bound else ""
    return [
        f"allocation {found.name}, budget {found.selection.budget_name}: {measured}{bound}, "
        f"{count} benchmark{'' if count == 1 else 's'}",
        *_beyond(found),
        *_passed_over(found, objective),
        line("", names),
        *(line(device.name, row) for device, row in zip(found.devices, cells, strict=True)),
        *([f"  {ROUTING[candidate.routing]}"] if candidate.matrix.divided else []),
        *_other_engines(found),
    ]


def _beyond(found: AllocationResult) -> list[str]:
    """What it means that more was measured than the profiles allow, beyond the noise."""
    measured = found.throughput
    if found.bound is None or measured.samples_per_second * (1 - measured.spread / 2) <= found.bound:
        return []
    folders = " and ".join(dict.fromkeys(f"profiles/{row.device_type}" for row in found.devices))
    return [
        "  more than the bound: when the members were profiled, the devices were slower than now; what is deleted of",
        f"  {folders} in their libraries, `ensemble profile` measures anew, before `select` and `allocate`",
    ]


def _passed_over(found: AllocationResult, objective: Objective) -> list[str]:
    """Why the incumbent stays where something was measured better, and what would tell whether it is."""
    if found.incumbent != found.candidate:
        return []
    candidates = dict.fromkeys(done.candidate for done in found.benchmarks)
    seen = {each: [throughput.measured() for throughput in found.measured(each)] for each in candidates}
    better = passed_over(found.candidate, seen, objective)
    if better is None:
        return []
    rival, lead = better
    figure = in_full(found.measured(rival)[-1], objective)
    more = "" if lead.repeated else "more benchmarks (maxBenchmarks) or "
    return [
        f"  the incumbent stays: another was measured {lead.gain:.1%} better ({figure}), and by the noise of these "
        "benchmarks",
        f"  it has to be more than {lead.least:.1%} better; {more}longer ones (secondsPerBenchmark) would tell",
    ]


def _other_engines(found: AllocationResult) -> list[str]:
    """Which workers run with another engine than ONNX Runtime."""
    workers: dict[Engine, list[str]] = {}
    for row, engines in zip(found.devices, found.engines, strict=False):
        for member, engine in zip(found.members, engines, strict=True):
            if engine not in (None, DEFAULT):
                workers.setdefault(engine, []).append(f"{member.model_id} on {row.name}")
    return [f"  {engine} runs {', '.join(own)}" for engine, own in workers.items()]
