"""Spread an ensemble over devices so that it answers the most samples per second (EnsembleDeployment)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ensemble_core.allocation.candidate import ROUTING
from ensemble_core.allocation.harness import Bench, NoServerError, Triton
from ensemble_core.allocation.optimise import Benchmarks, benchmarks_at_most, find_allocation, stored_allocation
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
from ensemble_core.api.documents import load_documents
from ensemble_core.engines import DEFAULT, Engine
from ensemble_core.library.records import Accuracy
from ensemble_core.profiling.half import words
from ensemble_core.report import CommandError, Report, add_report_arguments, run_reported
from ensemble_core.serving import footprint
from ensemble_core.serving.load import QUIET

CLIENT_BUSY = 0.9  # of a core, from which the load generator may be what is measured


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
    for line in table(found):
        print(line)
    plan = allocated_plan(ensemble, subject, found)
    for (model, engine), accuracy in accuracies(plan, profiles).items():
        print(f"  {model} by {engine}: {words(accuracy)}")
    return {"digest": found.digest, "summary": summary(found, plan, profiles)}


def _tell(report: Report, text: str) -> None:
    report.progress(stage="profiles", note=text)
    print(text, flush=True)


def _optimise(ensemble: Ensemble, subject: Subject, profiles: Profiles, report: Report) -> AllocationResult:
    progress = Progress(report, benchmarks_at_most(subject))
    with Triton() as server:
        bench = Benchmarks(
            ensemble.results, subject, Bench(subject, ensemble.signature, pace_of(subject, profiles), server), progress
        )
        memory, speeds = memory_of(subject, profiles), speeds_of(subject, profiles)
        where = f"{ensemble.where}: spec.devices"
        return find_allocation(where, ensemble.results, subject, memory, speeds, bench)


class Progress:
    """Tells the report and the terminal of each benchmark."""

    def __init__(self, report: Report, total: int) -> None:
        self._report = report
        self._total = total
        self._best = 0.0
        report.progress(stage="benchmarks", done=0, total=total, note="starting the server")

    def __call__(self, benchmark: Benchmark) -> None:
        speed, done = benchmark.throughput.samples_per_second, benchmark.order + 1
        self._best = max(self._best, speed)
        self._report.progress(
            stage="benchmarks", done=done, total=self._total, note=f"best so far {self._best:,.0f} samples/s"
        )
        figure = with_spread(benchmark.throughput)
        print(f"benchmark {done} of at most {self._total}: {figure}, best {self._best:,.0f}", flush=True)
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


def table(found: AllocationResult) -> list[str]:
    """The matrix and its throughput as lines of text."""
    candidate, names = found.candidate, [member.model_id for member in found.members]
    width = max(len(row.name) for row in found.devices)
    cells = [
        [f"{size}{candidate.share(device, member) if size else ''}" for member, size in enumerate(row)]
        for device, row in enumerate(found.matrix)
    ]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]

    def line(head: str, texts: Sequence[str]) -> str:
        return f"  {head:<{width}}  " + "  ".join(f"{text:>{wide}}" for text, wide in zip(texts, widths, strict=True))

    best, start = found.throughput.samples_per_second, found.start.throughput.samples_per_second
    measured = f"{with_spread(found.throughput)} measured"
    gain = f" ({best / start - 1:+.0%} from the start)" if start and found.start.matrix != found.matrix else ""
    bound = f", {best / found.bound:.0%} of the bound by profiles" if found.bound else ""
    return [
        f"allocation {found.name}, budget {found.selection.budget_name}: {measured}{gain}{bound}, "
        f"{len(found.benchmarks)} matrices benchmarked",
        line("", names),
        *(line(device.name, row) for device, row in zip(found.devices, cells, strict=True)),
        *([f"  {ROUTING[candidate.routing]}"] if candidate.matrix.divided else []),
        *_other_engines(found),
    ]


def _other_engines(found: AllocationResult) -> list[str]:
    """Which workers run with another engine than ONNX Runtime."""
    workers: dict[Engine, list[str]] = {}
    for row, engines in zip(found.devices, found.engines, strict=False):
        for member, engine in zip(found.members, engines, strict=True):
            if engine not in (None, DEFAULT):
                workers.setdefault(engine, []).append(f"{member.model_id} on {row.name}")
    return [f"  {engine} runs {', '.join(own)}" for engine, own in workers.items()]
