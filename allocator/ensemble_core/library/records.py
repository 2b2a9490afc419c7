"""The JSON files of a model library, format 1, as frozen types."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from ensemble_core.frozen import Frozen

FORMAT = 1
Split = Literal["validation", "heldout"]
SPLITS: tuple[Split, ...] = ("validation", "heldout")
ModelId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][-a-z0-9.]{0,99}$")]


def _inside(path: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][-A-Za-z0-9_.]*(/[A-Za-z0-9_][-A-Za-z0-9_.]*)*", path):
        raise ValueError("must be a relative path inside the library, without parts that begin with a dot")
    return path


RelativePath = Annotated[str, AfterValidator(_inside)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class FileDigest(Frozen):
    """A file beside the record: its path relative to the library's root, its digest and size."""

    path: RelativePath
    sha256: Sha256
    bytes: int = Field(ge=0)


class Signature(Frozen):
    """What every servable model of the library takes and gives."""

    input_type: Literal["uint8", "float32"]
    input_shape: tuple[int, ...] = Field(min_length=1, max_length=4)  # of one sample, [H,W,C] for images
    classes: int = Field(ge=2)


class Header(Frozen):
    """`library.json`: what all models of the library have in common."""

    format: Literal[1] = 1
    task: Literal["classification"] = "classification"
    signature: Signature
    class_names: tuple[str, ...]
    fingerprint: Sha256  # of the class names and the digests of the splits
    samples: dict[Split, int]
    splits: dict[Split, Sha256]  # of each split's ordered ids and labels, so that one can be checked without the other


class KeptInputs(Frozen):
    """`splits/validation/inputs.json`: samples of the validation split, for engines to be judged by."""

    file: FileDigest  # an array (n, …) of the models' input type
    rows: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)  # which samples of the split, ascending
    fingerprint: Sha256  # of the library


class Metrics(Frozen):
    cross_entropy: float  # mean, nats, probabilities clipped at 1e-15
    error: float = Field(ge=0, le=1)
    macro_f1: Annotated[float, Field(alias="macroF1", ge=0, le=1)]
    top5_error: Annotated[float, Field(alias="top5Error", ge=0, le=1)]


class Origin(Frozen):
    """Where a model comes from: a trial of a search, or an import (no search)."""

    search: str | None = None
    trial: int | None = None
    attempt: int = 1
    rung: int | None = None  # epoch of the last rung


class ModelRecord(Frozen):
    """`models/<model>/record.json`: facts that no device changes; written last."""

    id: ModelId
    family: str
    hyperparameters: dict[str, Any]
    validation: Metrics
    parameters: int | None = Field(None, ge=0)
    flops: int | None = Field(None, ge=0)  # multiply-adds × 2 for one sample
    epochs: float = Field(0, ge=0)
    origin: Origin
    servable: bool
    fingerprint: Sha256 | None = None  # of the library it was published to, set there
    files: dict[
        str, FileDigest
    ]  # keys: model.onnx, model.safetensors, architecture.json, predictions-validation.npy, predictions-heldout.npy


class Rung(Frozen):
    """A trial's value at a rung, and what was decided; written before it is acted on."""

    epoch: int = Field(ge=1)
    sequence: int = Field(ge=0)  # the driver's count over all events of the search
    value: float | None  # lower is better; none: not a number
    goes_on: bool
    metrics: Metrics | None = None
    started_at: float  # of the call that reached the rung, Unix seconds
    finished_at: float
    slot: int
    attempt: int = Field(1, ge=1)  # of the search, in which it was recorded


class SearchStart(Frozen):
    """`searches/<search>/spec.json`: what defines the search, and when it was started first."""

    spec: dict[str, Any]
    started_at: float


class Claim(Frozen):
    """`trials/<trial>/claim-<attempt>.json`: who may write, what was proposed, and the rungs taken over."""

    trial: int = Field(ge=0)
    attempt: int = Field(ge=1)
    sequence: int = Field(ge=0)
    parameters: dict[str, Any]
    bracket: int = Field(ge=0)
    sampler_attributes: dict[str, Any] = Field(default_factory=dict)
    study_attributes: dict[str, Any] = Field(default_factory=dict)
    rungs: tuple[Rung, ...] = ()


class Failure(Frozen):
    """`trials/<trial>/<attempt>/failure.json`: why a trial has ended without a model."""

    sequence: int = Field(ge=0)
    reason: Literal["Diverged", "Raised", "OutOfMemory", "Lost"]
    message: str
    parameters: dict[str, Any]
    started_at: float
    finished_at: float
    slot: int
    attempt: int = Field(1, ge=1)


class Export(Frozen):
    """`trials/<trial>/<attempt>/export.json`: when and where a trial's model was exported; written before the model."""

    started_at: float  # Unix seconds
    finished_at: float
    slot: int
    attempt: int = Field(1, ge=1)


class BatchProfile(Frozen):
    batch_size: int = Field(ge=1)
    passes: tuple[float, ...]  # seconds for 2000 samples, warm
    seconds: float = Field(gt=0)  # their median
    memory_mib: Annotated[float, Field(alias="memoryMiB", ge=0)]  # peak resident memory of the process
    foreign_cores: float = Field(0, ge=0)  # mean number of the device's cores that other processes took meanwhile
    energy_joules: float | None = Field(None, ge=0)  # for 2000 samples, where the device tells


class Score(Frozen):
    """Of a model on validation samples."""

    cross_entropy: float
    error: float = Field(ge=0, le=1)


class Accuracy(Frozen):
    """What half precision does to a model, by validation samples."""

    samples: int = Field(ge=1)
    float32: Score
    half: Score
    changed: float = Field(ge=0, le=1)  # share of the samples that get another class


class Profile(Frozen):
    """`profiles/<deviceType>/<engine>/<model>.json`: one model alone on a device."""

    model: ModelId
    model_sha256: Annotated[Sha256, Field(alias="modelSha256")]
    device_type: str
    engine: str
    engine_version: str
    cores: int
    load_seconds: float = Field(ge=0)
    batches: tuple[BatchProfile, ...]
    largest_difference: float | None = Field(None, ge=0)  # of answers from ONNX Runtime's, to seeded samples
    agreement: float | None = Field(None, ge=0, le=1)  # share of those samples with the same class
    accuracy: Accuracy | None = None  # of an engine of half precision; the difference is then of the same samples
    inputs: Sha256 | None = None  # the file of those samples
    refused: str | None = None  # why this engine is not used for the model

    @model_validator(mode="after")
    def was_measured_or_refused(self) -> Self:
        if not self.batches and self.refused is None:
            raise ValueError("no batch size was measured")
        return self
