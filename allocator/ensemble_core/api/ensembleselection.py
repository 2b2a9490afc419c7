"""EnsembleSelection: members from libraries, under budgets."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints

from ensemble_core.api.common import (
    API_VERSION,
    Count,
    Digest,
    Metadata,
    Name,
    Quality,
    ShortText,
    Status,
    Storage,
    Text,
    Time,
    Workload,
)
from ensemble_core.api.rules import Rule, Ruled, exactly_one, unique, value_at
from ensemble_core.frozen import Frozen


class Source(Ruled):
    """A library: that of a search in the same namespace, or a storage."""

    rules = (exactly_one(("hpoSearchName", "storage")),)

    hpo_search_name: Name | None = Field(None, description="Name of an HPOSearch.")
    storage: Storage | None = Field(None, description="A library of any origin.")


BEST_SINGLE = "best-single"  # instead of a budget's name: the best single model by validation, whatever it costs
_LIMITS = ("inferenceTimeSeconds", "memoryMiB", "parametersMillions")
Limit = Annotated[float, Field(gt=0, le=1e12)]


class Budget(Ruled):
    """Limits for one ensemble; all that are given hold."""

    rules = (
        Rule(
            "",
            f"must have at least one of {', '.join(_LIMITS)}",
            " || ".join(f"has(self.{limit})" for limit in _LIMITS),
            lambda budget: any(limit is not None for limit in budget.limits().values()),
        ),
        Rule(
            "name",
            f"must not be {BEST_SINGLE}, which stands for the best single model",
            f"self.name != '{BEST_SINGLE}'",
            lambda budget: budget.name != BEST_SINGLE,
        ),
    )

    name: Name = Field(description="Name of the budget.")
    inference_time_seconds: Limit | None = Field(
        None, description="Seconds to predict 2000 samples, summed over members, each alone on the device."
    )
    memory_mib: Annotated[Limit | None, Field(alias="memoryMiB")] = Field(
        None, description="Memory in MiB, summed over members."
    )
    parameters_millions: Limit | None = Field(None, description="Millions of weights, summed over members.")

    def limits(self) -> dict[str, float | None]:
        """All limits by the name they have in documents; none where there is no limit."""
        return {name: value_at(self, name) for name in _LIMITS}


# Part of a path in the library.
DeviceType = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][-A-Za-z0-9_.]*$", min_length=1, max_length=128)]


class Cost(Frozen):
    """On what the measured costs were, or are to be, measured."""

    device_type: DeviceType | None = Field(
        None, description="Device type as profiles name it; by default that of the machine that profiles."
    )
    cores_per_device: int = Field(1, ge=1, le=256, description="CPU cores of the device, where it is a CPU.")
    engine: Literal["onnxruntime"] = Field("onnxruntime", description="Engine that runs the models.")
    batch_size: int = Field(32, ge=1, le=4096, description="Samples per call.")


class UpdatePolicy(Frozen):
    """When the selection runs again in a cluster."""

    mode: Literal["OnLibraryChange", "Once"] = Field(
        "OnLibraryChange", description="`Once` keeps the first result until the spec changes."
    )
    settle_seconds: int = Field(
        60,
        ge=0,
        le=86_400,
        description="Seconds that the library of a running search must be unchanged before it is selected from. "
        "Searches tell every 10 seconds at most: with less than that, each news of a search may be selected from.",
    )
    poll_interval_seconds: int = Field(
        300, ge=10, le=86_400, description="Seconds between two looks at storages without an HPOSearch."
    )


class EnsembleSelectionSpec(Workload):
    """Which models are candidates, and what the ensembles may cost."""

    rules = (
        unique("budgets", "name"),
        Rule(
            "sources",
            "must not have a library twice",
            "self.sources.all(a, self.sources.exists_one(b, b == a))",
            lambda spec: all(spec.sources.count(source) == 1 for source in spec.sources),
        ),
    )

    sources: tuple[Source, ...] = Field(
        min_length=1, max_length=16, description="Libraries of one data set; they are joined."
    )
    library: Storage | None = Field(None, description="The library that keeps the result; by default the first source.")
    algorithm: Literal["smobf"] = Field(
        "smobf", description="How members are picked; `smobf` is the greedy multi-objective one of the paper."
    )
    budgets: tuple[Budget, ...] = Field(min_length=1, max_length=100, description="One ensemble is picked for each.")
    cost: Cost = Field(default_factory=Cost, description="Which measurements count.")
    weights: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        (0.1, 0.01, 0.001),
        min_length=1,
        max_length=32,
        description="Weights of cost against cross-entropy; the best run is kept.",
    )
    keep_top_percent: float = Field(
        20,
        gt=0,
        le=100,
        description="Share of the models that takes part, best validation cross-entropy first, in percent.",
    )
    keep_at_least: int = Field(20, ge=1, le=100_000, description="Models that take part at least.")
    combiner: Literal["average"] = Field("average", description="How members' probabilities are combined.")
    metric: Literal["crossEntropy"] = Field("crossEntropy", description="What is minimised on the validation split.")
    update_policy: UpdatePolicy = Field(
        default_factory=UpdatePolicy, description="When the selection runs again in a cluster."
    )


class SelectedCost(Frozen):
    """What models cost together."""

    inference_time_seconds: float | None = Field(None, ge=0, description="Seconds to predict 2000 samples.")
    memory_mib: Annotated[float | None, Field(alias="memoryMiB")] = Field(None, ge=0, description="Memory in MiB.")
    parameters_millions: float | None = Field(None, ge=0, description="Millions of weights.")


class SelectedMember(Frozen):
    """A model of an ensemble."""

    library: Count = Field(description="Index of its source in `spec.sources`.")
    model_id: ShortText = Field(description="The model.")
    weight: float = Field(ge=0, le=1, description="Its share of the average.")


class SelectedBudget(Frozen):
    """The ensemble that was picked for a budget."""

    name: Name = Field(description="Name of the budget.")
    members: tuple[SelectedMember, ...] = Field(
        (), max_length=256, description="The ensemble; empty if none fits. Of many large ensembles the first members."
    )
    member_count: Count | None = Field(None, description="How many members the ensemble has, listed or not.")
    validation: Quality | None = Field(None, description="Metrics on the validation split.")
    heldout: Quality | None = Field(None, description="Metrics on the held-out split.")
    cost: SelectedCost | None = Field(None, description="What the ensemble costs.")
    reason: Text | None = Field(None, description="Why there is no ensemble.")


class FrontPoint(Frozen):
    """An ensemble that no other beats in both cross-entropy and cost."""

    members: Count = Field(description="Number of members.")
    cross_entropy: float = Field(ge=0, description="On the validation split, in nats.")
    cost: SelectedCost = Field(description="What the ensemble costs.")


class EnsembleSelectionStatus(Status):
    """What was picked."""

    summary: ShortText | None = Field(None, description="Members of each budget's ensemble: `small 3, large 5`.")
    cross_entropy: float | None = Field(None, ge=0, description="Best of the budgets on the validation split, in nats.")
    digest: Digest | None = Field(None, description="Digest of the result in the library.")
    library_digests: tuple[Digest, ...] = Field((), max_length=16, description="Of the sources it was picked from.")
    completion_time: Time | None = Field(None, description="When it was picked.")
    budgets: tuple[SelectedBudget, ...] = Field((), max_length=100, description="One ensemble for each budget.")
    front: tuple[FrontPoint, ...] = Field((), max_length=100, description="Cross-entropy against cost.")


class EnsembleSelection(Frozen):
    """Picks ensembles from libraries, one for each budget."""

    columns: ClassVar[tuple[dict[str, Any], ...]] = (
        {"name": "Ensembles", "type": "string", "jsonPath": ".status.summary"},
        {"name": "Best", "type": "number", "jsonPath": ".status.crossEntropy"},
    )

    api_version: Literal["ensemble-operator.io/v1alpha1"] = API_VERSION  # type: ignore[assignment]
    kind: Literal["EnsembleSelection"] = "EnsembleSelection"
    metadata: Metadata
    spec: EnsembleSelectionSpec
