"""What a selection found, as the library keeps it: `selections/<digest>.json`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from ensemble_core.api.common import Storage
from ensemble_core.api.ensembleselection import BEST_SINGLE
from ensemble_core.frozen import Frozen
from ensemble_core.library.records import Metrics, ModelId, Sha256

WEIGHTS_OFF = 1e-6  # from 1, that the sum of an ensemble's weights may be: rounding


class Costs(Frozen):
    """Costs of a model or an ensemble (the sum over its members), or a budget's limits; none: not known, no limit."""

    inference_time_seconds: float | None = None  # for 2000 samples
    memory_mib: Annotated[float | None, Field(alias="memoryMiB")] = None
    parameters_millions: float | None = None


class SourceLibrary(Frozen):
    """A library that was selected from; `digest` is of its records at that time."""

    storage: Storage
    digest: Sha256


class CostBasis(Frozen):
    """On what the measured costs were measured; no device type if no budget limits a measured cost."""

    device_type: str | None = None
    engine: str
    batch_size: int


class ModelReference(Frozen):
    library: int = Field(ge=0)  # index among the sources
    model_id: ModelId


class Single(ModelReference):
    """A model with its figures."""

    servable: bool
    cost: Costs
    validation: Metrics
    heldout: Metrics


class MemberResult(Single):
    weight: float = Field(gt=0, le=1)  # of its probabilities in the ensemble's


class StepResult(ModelReference):
    """A model that was added, and what the ensemble was then."""

    score: float
    cross_entropy: float
    cost: Costs


class PathResult(Frozen):
    w: float
    steps: tuple[StepResult, ...]


class BudgetResult(Frozen):
    """The ensemble of one budget, or the reason why there is none."""

    name: str
    limits: Costs
    members: tuple[MemberResult, ...] = ()
    validation: Metrics | None = None
    heldout: Metrics | None = None
    cost: Costs | None = None
    reason: str | None = None
    weight: float | None = None  # the w whose path won
    paths: tuple[PathResult, ...] = ()

    @model_validator(mode="after")
    def weights_add_up_to_1(self) -> Self:
        total = sum(member.weight for member in self.members)
        if self.members and abs(total - 1) > WEIGHTS_OFF:
            each = ", ".join(f"{member.model_id} {member.weight:g}" for member in self.members)
            raise ValueError(f"the members' weights add up to {total:g}, not to 1: {each}")
        return self


class FrontPoint(Frozen):
    """An ensemble that no other one met is better than in cost and validation cross-entropy."""

    members: tuple[ModelReference, ...]
    cross_entropy: float
    cost: Costs


class ModelResult(ModelReference):
    """A model of the sources; `kept` by the pruning of at least one budget, `reason` if it could not take part."""

    servable: bool
    cost: Costs
    cross_entropy: float | None = None  # validation
    kept: bool = False
    reason: str | None = None


class SelectionResult(Frozen):
    """One run of a selection. The digest covers what the picks depend on: not the name, nor how pods run."""

    name: str  # of the selection that computed it first
    digest: Sha256
    spec_hash: Sha256
    fingerprint: Sha256  # of the sources' data
    sources: tuple[SourceLibrary, ...]
    cost: CostBasis
    combiner: str
    best_single: Single  # by validation cross-entropy, whatever it costs
    budgets: tuple[BudgetResult, ...]
    front: tuple[FrontPoint, ...] = Field(max_length=100)
    models: tuple[ModelResult, ...]

    def budget(self, name: str) -> BudgetResult | None:
        """The budget of that name."""
        return next((budget for budget in self.budgets if budget.name == name), None)

    def members(self, name: str) -> tuple[MemberResult, ...]:
        """Members of a budget's ensemble, or of `best-single` that model alone; empty if there is none."""
        if name == BEST_SINGLE:
            return (MemberResult(**dict(self.best_single), weight=1),)
        budget = self.budget(name)
        return budget.members if budget else ()
