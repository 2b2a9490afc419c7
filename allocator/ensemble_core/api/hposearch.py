"""HPOSearch: a library of models, trained under asynchronous Hyperband."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints, ValidationInfo, field_validator

from ensemble_core.api.common import (
    API_VERSION,
    Count,
    Digest,
    ListedValue,
    Metadata,
    Path,
    Quality,
    ResourceName,
    Seed,
    ShortText,
    Status,
    Storage,
    Time,
    Workload,
    resolved,
)
from ensemble_core.api.rules import Rule, Ruled, exactly_one, immutable, unique, value_at
from ensemble_core.frozen import Frozen


class SearchLibrary(Frozen):
    """The library that a search fills."""

    storage: Storage = Field(description="Where the library is.")
    deletion_policy: Literal["Retain", "Delete"] = Field(
        "Retain", description="What happens to the library when the search is deleted."
    )


class Split(Ruled):
    """Seeded, stratified split of data that comes without one."""

    rules = (
        Rule(
            "heldoutPercent",
            "and validationPercent must leave samples for training: below 100 together",
            "self.validationPercent + self.heldoutPercent < 100",
            lambda split: split.validation_percent + split.heldout_percent < 100,
        ),
    )

    validation_percent: int = Field(20, ge=1, le=80, description="Share of the samples for validation, in percent.")
    heldout_percent: int = Field(
        20, ge=1, le=80, description="Share of the samples held out for the final figures, in percent."
    )
    seed: Seed = Field(0, description="Seed of the split.")


class Procedural(Frozen):
    """A seeded set of drawn 64×64×3 images in 20 classes, for loads that small real sets cannot make."""

    samples: int = Field(4000, ge=200, le=1_000_000, description="Number of images.")
    seed: Seed = Field(0, description="Seed of the images.")


_INSIDE = r"^[A-Za-z0-9_][-A-Za-z0-9_.=+@]*(/[A-Za-z0-9_][-A-Za-z0-9_.=+@]*)*$"


def _inside_storage(field: str) -> Rule:
    def holds(dataset: Dataset) -> bool:
        path = value_at(dataset, field)
        return dataset.storage is None or path is None or re.fullmatch(_INSIDE, path) is not None

    cel = f"!has(self.storage) || !has(self.{field}) || self.{field}.matches('{_INSIDE}')"
    return Rule(field, "must be a relative path inside the storage, without parts that start with a dot", cel, holds)


class Dataset(Ruled):
    """Exactly one source of labelled images, and how it is split."""

    rules = (
        exactly_one(("builtin", "procedural", "arrays", "imageFolder")),
        Rule(
            "storage",
            "is only for arrays and imageFolder",
            "!has(self.storage) || has(self.arrays) || has(self.imageFolder)",
            lambda d: d.storage is None or d.arrays is not None or d.image_folder is not None,
        ),
        Rule(
            "imageSize",
            "is only for imageFolder",
            "!has(self.imageSize) || has(self.imageFolder)",
            lambda d: d.image_size is None or d.image_folder is not None,
        ),
        Rule(
            "storage",
            "is missing: a cluster has no local files",
            "has(self.storage) || !(has(self.arrays) || has(self.imageFolder))",
        ),
        _inside_storage("arrays"),
        _inside_storage("imageFolder"),
    )

    builtin: Literal["digits"] | None = Field(
        None, description="A real data set that needs no download: scikit-learn's 8×8 digits."
    )
    procedural: Procedural | None = Field(None, description="A seeded procedural image set.")
    storage: Storage | None = Field(
        None, description="Where `arrays` or `imageFolder` is; without it they are local, which clusters refuse."
    )
    arrays: Path | None = Field(
        None,
        description="An `.npz` file, or a folder of `.npy` files, with `images` [N,H,W,C] or [N,H,W] and `labels` [N];"
        " optional `classNames`. A local path is relative to the folder of the document's file.",
    )
    image_folder: Path | None = Field(
        None, description="A folder with one folder of images per class; paths as for `arrays`."
    )
    image_size: int | None = Field(
        None, ge=4, le=1024, description="Side in pixels to which the images of `imageFolder` are resized."
    )
    split: Split = Field(default_factory=Split, description="Split into training, validation and held-out samples.")

    @field_validator("arrays", "image_folder", mode="after")
    @classmethod
    def _resolve_local(cls, path: str | None, info: ValidationInfo) -> str | None:
        return path if path is None or info.data.get("storage") else resolved(path, info)


Metric = Literal["crossEntropy", "error", "macroF1", "top5Error", "parameters", "flops"]
QUALITY = ("crossEntropy", "error", "macroF1", "top5Error")


class Objective(Frozen):
    """What trials are compared by."""

    metric: Metric = Field(description="What is compared; quality is measured on the validation split.")


class HyperbandSettings(Frozen):
    """Settings of `async-hyperband`."""

    grace_epochs: int = Field(1, ge=1, le=10_000, description="Epochs before the first decision of the first bracket.")
    reduction_factor: int = Field(
        3, ge=2, le=10, description="Rungs are this factor apart; one in this many trials goes on."
    )
    brackets: int = Field(
        1, ge=1, le=8, description="Brackets; bracket s makes its first decision at graceEpochs · reductionFactor^s."
    )

    def last_first_rung(self) -> int:
        """Epochs before the first decision of the last bracket."""
        return int(self.grace_epochs * self.reduction_factor ** (self.brackets - 1))


class Algorithm(Frozen):
    """How trials are proposed and stopped."""

    name: Literal["async-hyperband", "random"] = Field(
        "async-hyperband", description="`async-hyperband` stops weak trials early; `random` trains all to the end."
    )
    settings: HyperbandSettings = Field(
        default_factory=HyperbandSettings, description="Settings of `async-hyperband`; `random` has none."
    )


Bound = Annotated[float, Field(ge=-1e12, le=1e12)]


class FeasibleSpace(Ruled):
    """The values that may be proposed."""

    rules = (
        Rule(
            "max",
            "must be at least min: the space is empty",
            "!has(self.min) || !has(self.max) || self.min <= self.max",
            lambda s: s.min is None or s.max is None or s.min <= s.max,
        ),
        Rule(
            "min",
            "must be above 0 under logUniform",
            "self.distribution != 'logUniform' || !has(self.min) || self.min > 0.0",
            lambda s: s.distribution != "logUniform" or s.min is None or s.min > 0,
        ),
        Rule(
            "step",
            "must be absent under logUniform",
            "self.distribution != 'logUniform' || !has(self.step)",
            lambda s: s.distribution != "logUniform" or s.step is None,
        ),
        Rule(
            "list",
            "must not have a value twice",
            "!has(self.list) || self.list.all(a, self.list.exists_one(b, string(b) == string(a)))",
            lambda s: s.list is None or len({str(v) for v in s.list}) == len(s.list),
        ),
    )

    min: Bound | None = Field(None, description="Lowest value, included; by default the trainer's.")
    max: Bound | None = Field(None, description="Highest value, included; by default the trainer's.")
    step: int | None = Field(None, ge=1, le=10**9, description="Distance between the values of an `int`.")
    list: tuple[ListedValue, ...] | None = Field(
        None,
        min_length=1,
        max_length=32,
        description="Values of a `categorical` or `discrete` parameter; numbers with a fraction in quotes.",
    )
    distribution: Literal["uniform", "logUniform"] = Field("uniform", description="How values of a range are drawn.")


class Condition(Frozen):
    """The parameter counts only if another has one of these values."""

    parameter: Annotated[str, StringConstraints(min_length=1, max_length=40)] = Field(
        description="Name of another parameter of this list, `categorical` or `discrete`, that has no condition itself."
    )
    in_: tuple[ListedValue, ...] = Field(
        alias="in", min_length=1, max_length=16, description="Values of the other parameter, out of its list."
    )


def _is_range(parameter: Parameter) -> bool:
    return parameter.parameter_type in ("double", "int")


def _whole_for_int(field: str) -> Rule:
    def holds(parameter: Parameter) -> bool:
        bound = value_at(parameter.feasible_space, field)
        return parameter.parameter_type != "int" or bound is None or float(bound).is_integer()

    space = f"self.feasibleSpace.{field}"
    cel = f"self.parameterType != 'int' || !has({space}) || double(int({space})) == {space}"
    return Rule(f"feasibleSpace.{field}", "must be a whole number for an int", cel, holds)


def _only_with(field: str, types: tuple[str, ...]) -> Rule:
    """The field of the feasible space is for parameters of these types only."""
    return Rule(
        f"feasibleSpace.{field}",
        f"is only for {' and '.join(types)}",
        f"!has(self.feasibleSpace.{field}) || self.parameterType in {list(types)}",
        lambda p: getattr(p.feasible_space, field) is None or p.parameter_type in types,
    )


class Parameter(Ruled):
    """A hyperparameter with the values that may be proposed."""

    rules = (
        _only_with("min", ("double", "int")),
        _only_with("max", ("double", "int")),
        _only_with("step", ("int",)),
        _only_with("list", ("discrete", "categorical")),
        Rule(
            "feasibleSpace.list",
            "is missing: discrete and categorical parameters have one",
            "has(self.feasibleSpace.list) || self.parameterType in ['double', 'int']",
            lambda p: p.feasible_space.list is not None or _is_range(p),
        ),
        Rule(
            "feasibleSpace.list",
            "must hold numbers only for a discrete parameter",
            "self.parameterType != 'discrete' || !has(self.feasibleSpace.list) || self.feasibleSpace.list.all(v,"
            " type(v) == int || string(v).matches('^[-+]?[0-9]+([.][0-9]+)?([eE][-+]?[0-9]+)?$'))",
            lambda p: (
                p.parameter_type != "discrete"
                or all(not isinstance(value, str) for value in p.feasible_space.list or ())
            ),
        ),
        Rule(
            "feasibleSpace.distribution",
            "must be uniform for a list",
            "self.feasibleSpace.distribution == 'uniform' || self.parameterType in ['double', 'int']",
            lambda p: p.feasible_space.distribution == "uniform" or _is_range(p),
        ),
        _whole_for_int("min"),
        _whole_for_int("max"),
    )

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=40)] = Field(
        description="Name of the hyperparameter; the trainer's documentation lists them."
    )
    parameter_type: Literal["double", "int", "discrete", "categorical"] = Field(
        description="`double` and `int` have a range; `discrete`, numbers, and `categorical`, words, have a list."
    )
    feasible_space: FeasibleSpace = Field(description="Values that may be proposed.")
    condition: Condition | None = Field(None, description="When the parameter counts.")


class Trainer(Frozen):
    """What is trained."""

    family: Literal["resnet"] = Field(
        "resnet", description="Family of networks; `resnet` has blocks v1, v2 and next in four stages."
    )
    max_epochs: int = Field(27, ge=1, le=100_000, description="Epochs of a trial that is never stopped.")
    stem: Literal["auto", "small", "large"] = Field(
        "auto",
        description="First convolution: `small` 3×3 stride 1, `large` 7×7 stride 2; `auto` is `small` below 64 pixels.",
    )


class ResourcesPerTrial(Ruled):
    """What one trial occupies."""

    rules = (
        Rule(
            "gpu",
            "must be a whole number, or a fraction of one GPU",
            "self.gpu <= 1.0 || double(int(self.gpu)) == self.gpu",
            lambda r: r.gpu <= 1 or r.gpu.is_integer(),
        ),
    )

    cpu: float = Field(1, gt=0, le=256, description="CPU cores per trial.")
    gpu: float = Field(0, ge=0, le=16, description="GPUs per trial; a fraction shares a GPU among trials.")


class Workers(Frozen):
    """Ray worker pods of a RayJob, or the one pod of a Job, with cores and GPUs for all trials that run at a time."""

    replicas: int = Field(1, ge=0, le=1024, description="Worker pods of a RayJob.")
    cpu: int = Field(4, ge=1, le=256, description="CPU cores of each worker pod of a RayJob.")
    gpu: int = Field(0, ge=0, le=16, description="GPUs of each worker pod of a RayJob.")
    gpu_resource_name: ResourceName = Field("nvidia.com/gpu", description="Resource name of the GPUs.")
    memory_mib: Annotated[int, Field(alias="memoryMiB")] = Field(
        8192, ge=256, le=16_777_216, description="Memory of each worker pod, or of the one pod of a Job, in MiB."
    )


def _first_rungs_within_max_epochs() -> Rule:
    """CEL has no power, but indices: a list of r^0 … r^7 stands for it."""
    powers = ", ".join(" * ".join(["r"] * exponent) or "1" for exponent in range(8))
    cel = (
        "self.algorithm.name != 'async-hyperband' || [self.algorithm.settings].all(s, [s.reductionFactor].all(r,"
        f" s.graceEpochs * [{powers}][s.brackets - 1] <= self.trainer.maxEpochs))"
    )
    return Rule(
        "algorithm.settings",
        "must let every bracket decide in time: graceEpochs · reductionFactor^(brackets - 1) at most trainer.maxEpochs",
        cel,
        lambda spec: (
            spec.algorithm.name != "async-hyperband"
            or spec.algorithm.settings.last_first_rung() <= spec.trainer.max_epochs
        ),
    )


def _condition_of_nothing(spec: HPOSearchSpec) -> object:
    """The first condition on a parameter, or on a value of one, that is not there; none if there is no such."""
    lists = {p.name: p.feasible_space.list or () for p in spec.parameters if p.condition is None}
    given = [p.condition for p in spec.parameters if p.condition is not None]
    broken = (one for one in given if not set(one.in_) <= set(lists.get(one.parameter, ())))
    return next((f"{one.parameter} in {', '.join(map(str, one.in_))}" for one in broken), None)


class HPOSearchSpec(Workload):
    """What is searched, for how long, and on what."""

    rules = (
        Rule(
            "objectives",
            f"must begin with a metric of quality: {', '.join(QUALITY)}",
            f"self.objectives[0].metric in {list(QUALITY)}",
            lambda spec: spec.objectives[0].metric in QUALITY,
        ),
        unique("objectives", "metric"),
        unique("parameters", "name"),
        Rule(
            "parameters",
            "must have conditions only on values of a categorical or discrete parameter of the list that has no"
            " condition itself",
            "self.parameters.all(p, !has(p.condition) || self.parameters.exists(q, q.name == p.condition.parameter"
            " && !has(q.condition) && has(q.feasibleSpace.list)"
            " && p.condition.__in__.all(v, v in q.feasibleSpace.list)))",
            lambda spec: _condition_of_nothing(spec) is None,
            _condition_of_nothing,
        ),
        _first_rungs_within_max_epochs(),
        Rule("maxTrialCount", "can only be raised", "self.maxTrialCount >= oldSelf.maxTrialCount"),
        immutable("library.storage"),
        immutable("dataset"),
        immutable("task"),
        immutable("objectives"),
        immutable("algorithm"),
        immutable("parameters"),
        immutable("trainer"),
        immutable("seed"),
    )

    library: SearchLibrary = Field(description="The library that the search fills.")
    dataset: Dataset = Field(description="Labelled samples.")
    task: Literal["classification"] = Field("classification", description="What is learnt.")
    objectives: tuple[Objective, ...] = Field(
        (Objective(metric="crossEntropy"),),
        min_length=1,
        max_length=4,
        description="The first decides, and is one of quality; the others are reported in the Pareto front.",
    )
    algorithm: Algorithm = Field(default_factory=Algorithm, description="How trials are proposed and stopped.")
    parameters: tuple[Parameter, ...] = Field(
        (),
        max_length=40,
        description="Spaces of the trainer's parameters; what is not named keeps the trainer's default space.",
    )
    trainer: Trainer = Field(default_factory=Trainer, description="What is trained.")
    parallel_trial_count: int = Field(2, ge=1, le=4096, description="Trials that run at a time.")
    max_trial_count: int = Field(ge=1, le=100_000, description="Trials in all, failed ones included; may be raised.")
    max_failed_trial_count: int = Field(
        3, ge=0, le=100_000, description="Failed trials that are tolerated; one more ends the search."
    )
    max_duration_seconds: int | None = Field(
        None, ge=1, le=31_536_000, description="No trial starts after this many seconds."
    )
    resources_per_trial: ResourcesPerTrial = Field(
        default_factory=ResourcesPerTrial, description="What one trial occupies."
    )
    workers: Workers = Field(default_factory=Workers, description="Pods in a cluster.")
    engine: Literal["auto", "rayjob", "job"] = Field(
        "auto",
        description="In a cluster: a RayJob, or a Job with Ray on one node; `auto` is a RayJob where KubeRay is.",
    )
    seed: Seed = Field(0, description="Seed of proposals, brackets, initial weights and batches.")

    @property
    def trials_at_a_time(self) -> int:
        """How many trials ever run at a time: no more than there are in all."""
        return min(self.parallel_trial_count, self.max_trial_count)


class ParameterAssignment(Frozen):
    """A hyperparameter's value."""

    name: ShortText = Field(description="Name of the hyperparameter.")
    value: ShortText = Field(description="Its value as text.")


class OptimalTrial(Frozen):
    """The best trial by the first objective."""

    best_trial_name: ShortText = Field(description="Name of the trial.")
    model_id: ShortText | None = Field(None, description="The model it left in the library.")
    value: float | None = Field(None, description="Value of the first objective on the validation split.")
    parameter_assignments: tuple[ParameterAssignment, ...] = Field((), max_length=64, description="Hyperparameters.")
    observation: Quality | None = Field(None, description="Metrics on the validation split.")


class ParetoPoint(Frozen):
    """A model that no other beats in all objectives."""

    model_id: ShortText = Field(description="The model.")
    values: tuple[float, ...] = Field(max_length=4, description="Values of the objectives, in their order.")


class LibraryState(Frozen):
    """What the library holds."""

    models: Count = Field(0, description="Number of models.")
    size_mib: Annotated[int | None, Field(alias="sizeMiB")] = Field(None, ge=0, le=2**53, description="Size in MiB.")
    digest: Digest | None = Field(None, description="Changes when a model comes or goes.")
    changed_time: Time | None = Field(None, description="When the digest was seen to change last.")


class HPOSearchStatus(Status):
    """How the search goes."""

    start_time: Time | None = Field(None, description="When the first trial started.")
    completion_time: Time | None = Field(None, description="When the last trial ended.")
    attempt: Count | None = Field(
        None, description="How often the search has been started; older starts are fenced off."
    )
    progress: ShortText | None = Field(None, description="Trials that ended, of those in all: `12/40`.")
    trials: Count | None = Field(None, description="Trials so far.")
    trials_pending: Count | None = Field(None, description="Trials that were proposed and wait.")
    trials_running: Count | None = Field(None, description="Trials that run.")
    trials_succeeded: Count | None = Field(None, description="Trials that were trained to the end.")
    trials_early_stopped: Count | None = Field(
        None, description="Trials that were stopped early; they left a model too."
    )
    trials_failed: Count | None = Field(None, description="Trials that failed.")
    current_optimal_trial: OptimalTrial | None = Field(None, description="The best trial.")
    pareto_front: tuple[ParetoPoint, ...] = Field((), max_length=100, description="Best models by all objectives.")
    library: LibraryState | None = Field(None, description="What the library holds.")
    occupancy_percent: float | None = Field(None, ge=0, le=100, description="Share of the slots' time that was used.")


class HPOSearch(Frozen):
    """Trains a library of models on the cluster's devices."""

    columns: ClassVar[tuple[dict[str, Any], ...]] = (
        {"name": "Trials", "type": "string", "jsonPath": ".status.progress"},
        {"name": "Best", "type": "number", "jsonPath": ".status.currentOptimalTrial.value"},
        {"name": "Models", "type": "integer", "jsonPath": ".status.library.models"},
    )

    api_version: Literal["ensemble-operator.io/v1alpha1"] = API_VERSION  # type: ignore[assignment]
    kind: Literal["HPOSearch"] = "HPOSearch"
    metadata: Metadata
    spec: HPOSearchSpec
