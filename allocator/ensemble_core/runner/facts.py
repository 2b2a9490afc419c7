"""What a finished run knows: gathered from the libraries, shown in the table and on the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ensemble_core.library.records import Accuracy, Metrics
from ensemble_core.library.timeline import Span


@dataclass(frozen=True)
class ModelFacts:
    """One model of the library; `cost` in seconds per 2000 samples, none if not profiled."""

    id: str
    family: str
    hyperparameters: dict[str, object]
    epochs: float
    parameters: int | None
    cost: float | None
    validation: Metrics
    kept: bool  # took part in the selection after pruning
    stopped_early: bool


@dataclass(frozen=True)
class EnsembleFacts:
    """A budget's ensemble, or the best single model (`budget` none)."""

    name: str
    budget: dict[str, float] | None  # limits as in the document
    members: tuple[str, ...]
    weights: tuple[float, ...]
    validation: Metrics | None  # none when no ensemble fits, with a reason
    heldout: Metrics | None
    cost: float | None
    throughput: float | None  # samples/s, measured on the real server
    reason: str | None = None
    deployed: bool = False


@dataclass(frozen=True)
class PathFacts:
    """SMOBF's steps for one budget and weight: (model added, cross-entropy, cost) after each."""

    budget: str
    weight: float
    steps: tuple[tuple[str, float, float], ...]
    won: bool


@dataclass(frozen=True)
class MatrixFacts:
    devices: tuple[str, ...]
    members: tuple[str, ...]
    batch_sizes: tuple[tuple[int, ...], ...]  # [device][member], 0 = absent
    throughput: float  # samples/s; 0: it does not run
    spread: float  # half the range of the measurement's windows, relative to their median: throughput ± that share
    routing: Literal["pull", "weights"] = "pull"  # free workers take the next batch, or each gets its share


@dataclass(frozen=True)
class Endpoint:
    model: str
    http: str  # HOST:PORT
    grpc: str
    input_type: str  # Triton's name: UINT8, FP32
    input_shape: tuple[int, ...]  # of one sample
    classes: tuple[str, ...]
    largest_difference: float  # of the answers from `combined`, by the members' stored held-out predictions
    samples: int  # held-out samples that were sent
    problem: str | None = None  # why these are not the members' answers, none if they are
    accuracy: Accuracy | None = None  # beside float32, where members compute in half precision: what they are judged by
    combined: str = "the members' average"  # what its answers are
    heldout: Metrics | None = None  # the quality of its answers, where the selection's figures are not those


@dataclass(frozen=True)
class RunFacts:
    title: str
    finished_at: float
    seconds: float
    dataset: str
    machine: str
    versions: dict[str, str]
    samples: dict[str, int]  # validation, heldout
    failed_trials: int
    models: tuple[ModelFacts, ...]
    best_single: EnsembleFacts
    ensembles: tuple[EnsembleFacts, ...]
    front: tuple[tuple[float, float, int], ...]  # cost, validation cross-entropy, members
    paths: tuple[PathFacts, ...]
    spans: tuple[Span, ...]
    slots: int
    occupancy: float | None
    matrices: tuple[MatrixFacts, ...]  # in the order they were benchmarked
    best_matrix: int
    endpoint: Endpoint
    documents: str  # the YAML that made it
