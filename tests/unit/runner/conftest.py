from __future__ import annotations

from collections.abc import Callable

import pytest

from ensemble_core.library.records import Metrics
from ensemble_core.library.timeline import Span
from ensemble_core.runner.facts import (
    Endpoint,
    EnsembleFacts,
    MatrixFacts,
    ModelFacts,
    PathFacts,
    RunFacts,
)

BUDGETS = (("small", 0.1), ("medium", 0.4), ("large", 2.0))


def metrics(error: float) -> Metrics:
    return Metrics(cross_entropy=3 * error, error=error, macro_f1=1 - error, top5_error=error / 9)


def model(trial: int) -> ModelFacts:
    early = trial % 3 == 0
    return ModelFacts(
        id=f"digits-{trial:04d}",
        family="resnet",
        hyperparameters={"learningRate": 0.001 + trial / 12345, "batchSize": 16 + trial},
        epochs=1 if early else 9,
        parameters=20_000 + trial,
        cost=0.01 * (1 + trial % 7),
        validation=metrics(0.02 + trial / 1000 + (0.3 if early else 0)),
        kept=not early,
        stopped_early=early,
    )


def ensemble(name: str, limit: float, members: tuple[str, ...], deployed: bool) -> EnsembleFacts:
    return EnsembleFacts(
        name=name,
        budget={"inferenceTimeSeconds": limit},
        members=members,
        weights=tuple(1 / len(members) for _ in members),
        validation=metrics(0.018),
        heldout=metrics(0.016),
        cost=limit * 0.9,
        throughput=1234.5,
        deployed=deployed,
    )


def path(budget: str, limit: float, weight: float, members: tuple[str, ...]) -> PathFacts:
    steps = tuple(
        (name, 0.09 - 0.01 * step - weight / 50, limit * 0.9 * (step + 1) / len(members))
        for step, name in enumerate(members)
    )
    return PathFacts(budget, weight, steps, won=weight == 0.01)


def spans(models: int, slots: int) -> tuple[Span, ...]:
    found = []
    for trial in range(models):
        start, slot = 1_700_000_000.0 + 4 * (trial // slots), trial % slots
        found.append(Span(slot, trial, 1, start, start + 3, "epochs 1-1"))
        last = "failed: Diverged" if trial == 5 else "export"
        found.append(Span(slot, trial, 1, start + 3.1, start + 3.9, last))
    return tuple(found)


def matrices(members: tuple[str, ...], count: int) -> tuple[MatrixFacts, ...]:
    return tuple(
        MatrixFacts(
            devices=("gpu0", "cpu0"),
            members=members,
            batch_sizes=(tuple(8 for _ in members), (16 * (index + 1), *(0 for _ in members[1:]))),
            throughput=0.0 if index == 2 else 1000.0 + index,
            spread=0.02,
        )
        for index in range(count)
    )


@pytest.fixture
def make_facts() -> Callable[..., RunFacts]:
    """Facts of a run with some models over some slots and three budgets, the last one served."""

    def make(models: int = 32, slots: int = 2) -> RunFacts:
        library = tuple(model(trial) for trial in range(models))
        names = tuple(found.id for found in library if found.kept) or (library[0].id,)
        chosen = {name: names[: 2 + index] for index, (name, _) in enumerate(BUDGETS)}
        return RunFacts(
            title="digits",
            finished_at=1_700_000_400.0,
            seconds=312.4,
            dataset="scikit-learn digits",
            machine="a machine with 2 cores",
            versions={"ensemble": "0.1.0", "triton": "2.60.0"},
            samples={"validation": 450, "heldout": 450},
            failed_trials=1,
            models=library,
            best_single=EnsembleFacts(
                "best single model", None, names[:1], (1.0,), metrics(0.02), metrics(0.024), 0.03, 5000.0
            ),
            ensembles=tuple(ensemble(name, limit, chosen[name], name == "large") for name, limit in BUDGETS),
            front=((0.01, 0.08, 1), (0.05, 0.06, 2), (0.3, 0.05, 4)),
            paths=tuple(
                path(name, limit, weight, chosen[name]) for name, limit in BUDGETS for weight in (0.1, 0.01, 0.001)
            ),
            spans=spans(models, slots),
            slots=slots,
            occupancy=0.94,
            matrices=matrices(chosen["large"], 8),
            best_matrix=7,
            endpoint=Endpoint(
                "digits", "127.0.0.1:8000", "127.0.0.1:8001", "UINT8", (8, 8, 1), tuple("0123456789"), 6e-8, 450
            ),
            documents="kind: HPOSearch\n",
        )

    return make
