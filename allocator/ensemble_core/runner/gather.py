"""Reads what a run has made out of its libraries: the facts for table and page."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from ensemble_core.allocation.result import AllocationResult
from ensemble_core.api.documents import Documents
from ensemble_core.api.ensembleselection import BEST_SINGLE
from ensemble_core.api.hposearch import HPOSearch
from ensemble_core.devices import cpu_model
from ensemble_core.library.library import Library
from ensemble_core.library.records import ModelRecord
from ensemble_core.library.store import open_store
from ensemble_core.library.timeline import search_timeline
from ensemble_core.runner.facts import Endpoint, EnsembleFacts, MatrixFacts, ModelFacts, PathFacts, RunFacts
from ensemble_core.runner.relocate import dump
from ensemble_core.selection.result import BudgetResult, ModelReference, SelectionResult


@dataclass(frozen=True)
class Made:
    """What the stages of a run have made.

    Args:
        documents: That made it.
        result: Of the selection.
        allocations: By name of the budget, and of the best single model.
        endpoint: What the server answered.
        occupancy: Of the search's slots.
        began: Unix seconds.
        folder: Of the run's output.
    """

    documents: Documents
    result: SelectionResult
    allocations: Mapping[str, AllocationResult]
    endpoint: Endpoint
    occupancy: float | None
    began: float
    folder: Path


def run_facts(made: Made) -> RunFacts:
    """Everything that table and page show; reads records and rungs of the libraries, no arrays."""
    result, deployment = made.result, made.documents.deployment()
    deployed = deployment.spec.selection_ref.budget_name
    trained = made.documents.source_searches(made.documents.selection(deployment.spec.selection_ref.name))
    libraries = [Library.open(open_store(source.storage)) for source in result.sources]
    speeds = {name: found.throughput.samples_per_second for name, found in made.allocations.items()}
    matrices, best = matrix_facts(made.allocations[deployed])
    searches = [(Library.open(open_store(search.spec.library.storage)), name) for name, search in trained.items()]
    spans = tuple(span for library, name in searches for span in search_timeline(library, name))
    now = time.time()
    return RunFacts(
        title=deployment.metadata.name,
        finished_at=now,
        seconds=now - made.began,
        dataset=dataset_of(trained.values()),
        machine=f"{cpu_model()}, {len(os.sched_getaffinity(0))} cores",
        versions=versions(),
        samples={str(split): count for split, count in libraries[0].header.samples.items()},
        failed_trials=sum(len(library.failures(name)) for library, name in searches),
        models=model_facts(libraries, result),
        best_single=as_served(single_facts(result, speeds.get(BEST_SINGLE), deployed == BEST_SINGLE), made.endpoint),
        ensembles=tuple(
            as_served(ensemble_facts(b, speeds.get(b.name), b.name == deployed), made.endpoint) for b in result.budgets
        ),
        front=front_facts(result),
        paths=path_facts(result),
        spans=spans,
        slots=1 + max((span.slot for span in spans), default=0),
        occupancy=made.occupancy,
        matrices=matrices,
        best_matrix=best,
        endpoint=made.endpoint,
        documents=dump(made.documents, made.folder),
    )


def dataset_of(searches: Iterable[HPOSearch]) -> str:
    """What the models were trained on, in a few words."""
    names = []
    for search in searches:
        data = search.spec.dataset
        given = data.builtin or data.arrays or data.image_folder
        names.append(str(given) if given else f"{data.procedural.samples} procedural images" if data.procedural else "")
    return ", ".join(names)


PACKAGES = ("torch", "ray", "optuna", "onnxruntime", "numpy", "nvidia-pytriton")


def model_facts(libraries: Sequence[Library], result: SelectionResult) -> tuple[ModelFacts, ...]:
    """Every model of the sources, with the cost that the selection counted."""
    records = [{record.id: record for record in library.models()} for library in libraries]
    most = {library.store.url: _most_epochs(library.models()) for library in libraries}
    facts = []
    for model in result.models:
        record = records[model.library][model.model_id]
        facts.append(
            ModelFacts(
                id=record.id,
                family=record.family,
                hyperparameters=record.hyperparameters,
                epochs=record.epochs,
                parameters=record.parameters,
                cost=model.cost.inference_time_seconds,
                validation=record.validation,
                kept=model.kept,
                stopped_early=record.epochs < most[libraries[model.library].store.url],
            )
        )
    return tuple(facts)


def _most_epochs(records: Iterable[ModelRecord]) -> float:
    return max((record.epochs for record in records), default=0)


def single_facts(result: SelectionResult, throughput: float | None, deployed: bool) -> EnsembleFacts:
    """The best single model by validation, as an ensemble of one."""
    single = result.best_single
    return EnsembleFacts(
        name="best single",
        budget=None,
        members=(single.model_id,),
        weights=(1.0,),
        validation=single.validation,
        heldout=single.heldout,
        cost=single.cost.inference_time_seconds,
        throughput=throughput,
        deployed=deployed,
    )


def ensemble_facts(budget: BudgetResult, throughput: float | None, deployed: bool) -> EnsembleFacts:
    """A budget's ensemble, or why there is none."""
    return EnsembleFacts(
        name=budget.name,
        budget={name: value for name, value in budget.limits.document().items() if value is not None},
        members=tuple(member.model_id for member in budget.members),
        weights=tuple(member.weight for member in budget.members),
        validation=budget.validation,
        heldout=budget.heldout,
        cost=budget.cost.inference_time_seconds if budget.cost else None,
        throughput=throughput,
        reason=budget.reason,
        deployed=deployed,
    )


def as_served(ensemble: EnsembleFacts, endpoint: Endpoint) -> EnsembleFacts:
    """The same, of the quality that it is served with if it is the one that is served."""
    if not ensemble.deployed or endpoint.heldout is None:
        return ensemble
    return replace(ensemble, heldout=endpoint.heldout)


def front_facts(result: SelectionResult) -> tuple[tuple[float, float, int], ...]:
    """Cost, validation cross-entropy and number of members of each point, cheapest first.

    Where budgets limit other quantities too, the selection's front has points that only those keep on it; here are
    those that no other one beats in seconds and cross-entropy.
    """
    points = sorted(
        (point.cost.inference_time_seconds, point.cross_entropy, len(point.members))
        for point in result.front
        if point.cost.inference_time_seconds is not None
    )
    best = itertools.accumulate((entropy for _, entropy, _ in points), min, initial=math.inf)
    return tuple(point for point, before in zip(points, best, strict=False) if point[1] < before)


def path_facts(result: SelectionResult) -> tuple[PathFacts, ...]:
    """SMOBF's steps per budget and weight."""
    return tuple(
        PathFacts(
            budget=budget.name,
            weight=path.w,
            steps=tuple((s.model_id, s.cross_entropy, s.cost.inference_time_seconds or 0.0) for s in path.steps),
            won=path.w == budget.weight,
        )
        for budget in result.budgets
        for path in budget.paths
    )


def matrix_facts(allocation: AllocationResult) -> tuple[tuple[MatrixFacts, ...], int]:
    """The benchmarked matrices in order, and the index of the best."""
    devices = tuple(device.name for device in allocation.devices)
    members = tuple(member.model_id for member in allocation.members)
    facts = tuple(
        MatrixFacts(
            devices, members, b.matrix, b.throughput.samples_per_second, b.throughput.spread / 2, b.candidate.routing
        )
        for b in allocation.benchmarks
    )
    best = next(index for index, b in enumerate(allocation.benchmarks) if b.candidate == allocation.candidate)
    return facts, best


def versions() -> dict[str, str]:
    """Of the packages that made the figures, where they are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except ModuleNotFoundError:  # importlib.metadata.PackageNotFoundError is one
            continue
    return found


def different_members(result: SelectionResult) -> int:
    """How many different ensembles the budgets have."""

    def key(members: Sequence[ModelReference]) -> tuple[tuple[int, str], ...]:
        return tuple(sorted((member.library, member.model_id) for member in members))

    return len({key(budget.members) for budget in result.budgets if budget.members})
