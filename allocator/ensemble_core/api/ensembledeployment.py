"""EnsembleDeployment: an ensemble, spread over devices and served."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints

from ensemble_core.api.common import (
    API_VERSION,
    Annotations,
    Count,
    Digest,
    Metadata,
    Name,
    Port,
    ResourceName,
    Seed,
    ShortText,
    Status,
    Text,
    Workload,
)
from ensemble_core.api.ensembleselection import BEST_SINGLE
from ensemble_core.api.rules import Rule, Ruled, none_of, unique
from ensemble_core.frozen import Frozen


class SelectionRef(Frozen):
    """An ensemble."""

    name: Name = Field(description="Name of an EnsembleSelection in the same namespace.")
    budget_name: Name = Field(
        description=f"Which of its budgets; `{BEST_SINGLE}` for the best single model instead of an ensemble."
    )


class Device(Frozen):
    """Like devices of one pod on one node: the rows of the allocation matrix."""

    name: Name = Field(description="Name of the group of devices.")
    type: Literal["gpu", "cpu"] = Field(description="GPUs, or disjoint groups of CPU cores.")
    count: int = Field(1, ge=1, le=64, description="Number of devices.")
    resource_name: ResourceName = Field("nvidia.com/gpu", description="Resource name of the GPUs; a MIG slice is one.")
    cores_per_device: int = Field(1, ge=1, le=256, description="CPU cores of each device of type `cpu`.")
    memory_mib: Annotated[int | None, Field(alias="memoryMiB")] = Field(
        None,
        ge=64,
        le=16_777_216,
        description="Memory of each device in MiB; by default what the GPU has, or an equal share of the machine's.",
    )


class MatrixRow(Ruled):
    """A device and what it runs."""

    rules = (
        Rule(
            "shares",
            "must be as many as batchSizes",
            "!has(self.shares) || self.shares.size() == self.batchSizes.size()",
            lambda row: row.shares is None or len(row.shares) == len(row.batch_sizes),
        ),
    )

    device: ShortText = Field(description="Name of the device: `gpu0`, `cpu1`.")
    batch_sizes: tuple[Count, ...] = Field(
        min_length=1, max_length=256, description="Batch size of each member there; 0 is none."
    )
    shares: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = Field(
        None,
        max_length=256,
        description="Which part of each member's samples goes there, those of a member adding up to 1; none if devices "
        "that are free take the next ones.",
    )

    @property
    def all_shares(self) -> tuple[float, ...]:
        """One for each batch size, 0 where none is given."""
        return self.shares or (0.0,) * len(self.batch_sizes)


BATCH_SIZES = (8, 16, 32, 64, 128)
SHARES_OFF = 0.02  # from 1, that the sum of a member's shares may be: people round


class LatencyGoal(Frozen):
    """Which latency counts, and under which load."""

    percentile: Literal["p50", "p90", "p99"] = Field("p99", description="Of the time of a request.")
    milliseconds: float | None = Field(
        None, gt=0, le=3_600_000, description="What it may be at most, for `throughput-within-latency`."
    )
    requests_in_flight: int = Field(
        1, ge=1, le=1024, description="Requests that are in the server all the time, for `latency`."
    )
    samples_per_request: int = Field(
        1, ge=1, le=65_536, description="Samples of a request; no more than a segment has."
    )


class Optimization(Ruled):
    """How the allocation is found."""

    rules = (
        Rule(
            "batchSizes",
            "must ascend",
            "self.batchSizes.isSorted() && self.batchSizes.all(a, self.batchSizes.exists_one(b, b == a))",
            lambda o: list(o.batch_sizes) == sorted(set(o.batch_sizes)),
        ),
        Rule(
            "objective",
            "needs latency.milliseconds",
            "self.objective != 'throughput-within-latency' || (has(self.latency) && has(self.latency.milliseconds))",
            lambda o: o.objective != "throughput-within-latency" or o.latency.milliseconds is not None,
        ),
        Rule(
            "objective",
            "needs requiredSamplesPerSecond",
            "self.objective != 'fewest-devices' || has(self.requiredSamplesPerSecond)",
            lambda o: o.objective != "fewest-devices" or o.required_samples_per_second is not None,
        ),
        Rule(
            "objective",
            "needs the algorithm guided",
            "self.objective != 'fewest-devices' || self.algorithm == 'guided'",
            lambda o: o.objective != "fewest-devices" or o.algorithm == "guided",
        ),
        Rule(
            "matrix",
            "needs the algorithm guided, and an objective for all devices",
            "self.matrix.size() == 0 || (self.algorithm == 'guided' && self.objective != 'fewest-devices')",
            lambda o: not o.matrix or (o.algorithm == "guided" and o.objective != "fewest-devices"),
        ),
        Rule(
            "matrix",
            "must have as many batchSizes in every row",
            "self.matrix.all(r, r.batchSizes.size() == self.matrix[0].batchSizes.size())",
            lambda o: len({len(row.batch_sizes) for row in o.matrix}) <= 1,
        ),
        none_of("matrix", "must have one row of a device at most", lambda o: repeated_devices(o.matrix)),
        none_of("matrix", "must have a batch size above 0 for every member", lambda o: absent_members(o.matrix)),
        none_of("matrix", "must have a share above 0 just where there is a batch size", lambda o: stray_shares(o)),
        none_of("matrix", "must have shares that add up to 1 for every member", lambda o: wrong_sums(o)),
    )

    objective: Literal["throughput", "latency", "throughput-within-latency", "fewest-devices"] = Field(
        "throughput",
        description="The most samples per second; the shortest requests; the most samples per second while requests "
        "stay within a latency; or as few devices as give `requiredSamplesPerSecond`.",
    )
    algorithm: Literal["guided", "bounded-greedy", "worst-fit", "best-batch", "latency-greedy", "paper-greedy"] = Field(
        "guided",
        description="`guided`: few benchmarks of what a model of the server proposes. For reference: `worst-fit` "
        "(thesis, chapter 8, Algorithm 1), `bounded-greedy` from there (Algorithm 2), `best-batch` (a device for each "
        "member), `latency-greedy` (data flow applications), `paper-greedy` (each member on one device).",
    )
    mode: Literal["measured"] = Field("measured", description="Matrices are benchmarked on the real server.")
    latency: LatencyGoal = Field(default_factory=LatencyGoal, description="For the objectives that are about latency.")
    required_samples_per_second: float | None = Field(None, gt=0, le=1e12, description="For `fewest-devices`.")
    matrix: tuple[MatrixRow, ...] = Field(
        (),
        max_length=1024,
        description="An allocation to begin with, as the status has it: a row for each of the devices `gpu0`, … and "
        "`cpu0`, …, numbered in the order of `devices`, that has members; batch sizes of `batchSizes`; every member "
        "somewhere. It stays unless another is faster beyond the noise of benchmarks.",
    )
    max_neighs: int = Field(100, ge=1, le=10_000, description="Neighbours drawn per iteration of `bounded-greedy`.")
    max_iter: int = Field(10, ge=1, le=1000, description="Iterations of `bounded-greedy`.")
    max_benchmarks: int = Field(12, ge=1, le=10_000, description="Benchmarks in all.")
    batch_sizes: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(
        BATCH_SIZES,
        min_length=1,
        max_length=16,
        description="Batch sizes that an entry of the matrix may have, ascending. No batch is larger than a segment or "
        "a request, so the default ends there.",
    )
    engines: tuple[Literal["openvino", "openvino-bf16", "openvino-fp16", "tensorrt", "tensorrt-fp16"], ...] = Field(
        ("openvino", "tensorrt"),
        max_length=8,
        description="Engines that may run a member in the place of ONNX Runtime, where they are installed, faster "
        "beyond the noise of measurements, and answer the same: `openvino` on CPUs, `tensorrt` on GPUs. Those of half "
        "precision, `openvino-bf16`, `openvino-fp16` and `tensorrt-fp16`, answer about the same: they run members "
        "that are no worse with them on the library's validation samples.",
    )
    seconds_per_benchmark: float = Field(
        2, ge=0.1, le=600, description="Length of the measured window of one benchmark in seconds."
    )
    seed: Seed = Field(0, description="Seed of the draws.")

    @property
    def has_shares(self) -> bool:
        """Whether the matrix says who gets which part of the samples."""
        return any(row.shares for row in self.matrix)


def repeated_devices(matrix: Sequence[MatrixRow]) -> Iterator[str]:
    devices = [row.device for row in matrix]
    return (f"[{index}].device {name}" for index, name in enumerate(devices) if devices.index(name) < index)


def absent_members(matrix: Sequence[MatrixRow]) -> Iterator[str]:
    columns = zip(*(row.batch_sizes for row in matrix), strict=False)  # another rule is about their lengths
    return (f"batchSizes[{member}] of all rows" for member, column in enumerate(columns) if not any(column))


def stray_shares(optimization: Optimization) -> Iterator[str]:
    """Where one row has shares, all have; a row without them is of devices that run nothing."""
    matrix = optimization.matrix if optimization.has_shares else ()
    return (
        f"[{index}] ({row.device}) has share {share:g} at batchSizes[{member}] {size}"
        for index, row in enumerate(matrix)
        for member, (size, share) in enumerate(zip(row.batch_sizes, row.all_shares, strict=True))
        if (size > 0) != (share > 0)
    )


def wrong_sums(optimization: Optimization) -> Iterator[str]:
    columns = zip(*(row.all_shares for row in optimization.matrix), strict=False)
    sums = map(sum, columns) if optimization.has_shares else ()
    return (f"shares[{member}] {total:g}" for member, total in enumerate(sums) if abs(total - 1) > SHARES_OFF)


Routing = Literal["auto", "pull", "weights"]


class ServingService(Frozen):
    """The Kubernetes Service."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = Field("ClusterIP", description="Type of the Service.")
    annotations: Annotations = Field(default_factory=dict, description="Annotations of the Service.")


class Autoscaling(Ruled):
    """A HorizontalPodAutoscaler on the time that requests wait."""

    rules = (
        Rule(
            "maxReplicas",
            "must be at least minReplicas",
            "self.minReplicas <= self.maxReplicas",
            lambda a: a.min_replicas <= a.max_replicas,
        ),
    )

    min_replicas: int = Field(1, ge=1, le=1024, description="Copies of the serving pod at least.")
    max_replicas: int = Field(ge=1, le=1024, description="Copies of the serving pod at most.")
    target_queue_milliseconds: int = Field(
        50, ge=1, le=600_000, description="Mean milliseconds that a request may wait before there are more copies."
    )


class Monitoring(Frozen):
    """How Prometheus finds the metrics."""

    service_monitor: bool = Field(False, description="Make a ServiceMonitor of the Prometheus operator.")
    interval_seconds: int = Field(30, ge=1, le=3600, description="Seconds between two scrapes.")


class Serving(Ruled):
    """How the ensemble is served."""

    rules = (
        Rule(
            "",
            "must have different httpPort, grpcPort and metricsPort",
            "self.httpPort != self.grpcPort && self.httpPort != self.metricsPort && self.grpcPort != self.metricsPort",
            lambda s: len({s.http_port, s.grpc_port, s.metrics_port}) == 3,
        ),
    )

    image: Text | None = Field(None, description="Image of the Triton server, when not the operator's default.")
    replicas: int = Field(1, ge=1, le=1024, description="Copies of the serving pod, unless `autoscaling` is given.")
    segment_size: int = Field(128, ge=1, le=65_536, description="Samples per segment of a request.")
    max_batch_size: int = Field(4096, ge=1, le=1_000_000, description="Samples per request at most.")
    combiner: Literal["average", "weighted", "vote"] = Field(
        "weighted",
        description="How members' answers become one: their mean, `weighted` by the selection's weights, or a `vote`, "
        "in which each gives its weight to its best class.",
    )
    scores: Literal["probabilities", "logits"] = Field(
        "probabilities", description="What members answer; logits become probabilities before they are combined."
    )
    routing: Routing = Field(
        "auto",
        description="How a member's samples are divided among its devices: a free one takes the next (`pull`), each "
        "gets its share by the allocation (`weights`), or whichever of the two benchmarks find better (`auto`).",
    )
    quorum: int | None = Field(
        None, ge=1, le=256, description="Members that every sample needs; all of them by default."
    )
    retries: int = Field(
        0, ge=0, le=100, description="Calls after one that failed, on another device if the member is on one."
    )
    deadline_seconds: float = Field(
        60,
        gt=0,
        le=86_400,
        description="Seconds after which a request is answered if the quorum is there, and fails if not.",
    )
    http_port: Port = Field(8000, description="Port of the HTTP endpoint.")
    grpc_port: Port = Field(8001, description="Port of the gRPC endpoint.")
    metrics_port: Port = Field(8002, description="Port of the metrics endpoint.")
    service: ServingService = Field(default_factory=ServingService, description="The Kubernetes Service.")
    autoscaling: Autoscaling | None = Field(None, description="Makes copies as load asks for; none if absent.")
    monitoring: Monitoring = Field(default_factory=Monitoring, description="How Prometheus finds the metrics.")


class Rollout(Frozen):
    """How a new allocation replaces the old."""

    strategy: Literal["BlueGreen", "Recreate"] = Field(
        "BlueGreen",
        description="`BlueGreen` keeps the old pods until new ones, on spare devices, answer; `Recreate` needs none.",
    )
    progress_deadline_seconds: int = Field(
        600, ge=10, le=86_400, description="Seconds after which a rollout has failed."
    )


class EnsembleDeploymentSpec(Workload):
    """Which ensemble is served on which devices."""

    rules = (
        unique("devices", "name"),
        Rule(
            "optimization.batchSizes",
            "must be at most serving.segmentSize and serving.maxBatchSize, or the default",
            f"self.optimization.batchSizes == {list(BATCH_SIZES)} || "
            "self.optimization.batchSizes.all(b, b <= self.serving.segmentSize && b <= self.serving.maxBatchSize)",
            lambda s: s.optimization.batch_sizes == BATCH_SIZES or s.optimization.batch_sizes[-1] <= s.largest_batch,
        ),
        Rule(
            "optimization.latency.samplesPerRequest",
            "must be at most serving.segmentSize and serving.maxBatchSize",
            "self.optimization.latency.samplesPerRequest <= self.serving.segmentSize && "
            "self.optimization.latency.samplesPerRequest <= self.serving.maxBatchSize",
            lambda s: s.optimization.latency.samples_per_request <= s.largest_batch,
        ),
        Rule(  # the largest of each row: a look at each of 262,144 batch sizes is more than an API server allows
            "optimization.matrix",
            "must have no batch above serving.segmentSize and serving.maxBatchSize",
            "self.optimization.matrix.all(r, r.batchSizes.size() == 0 || "
            "r.batchSizes.max() <= [self.serving.segmentSize, self.serving.maxBatchSize].min())",
            lambda s: not too_large(s),
            lambda s: too_large(s)[0],
        ),
        Rule(
            "optimization.matrix",
            "must have no shares where serving.routing is pull",
            "self.serving.routing != 'pull' || self.optimization.matrix.all(r, !has(r.shares))",
            lambda s: s.serving.routing != "pull" or not s.optimization.has_shares,
        ),
        none_of("optimization.matrix", "must be of devices that there are", lambda s: unknown_devices(s)),
        none_of(
            "optimization.matrix",
            "must have batch sizes of optimization.batchSizes, or 0",
            lambda s: unknown_sizes(s),
        ),
    )

    selection_ref: SelectionRef = Field(description="The ensemble.")
    devices: tuple[Device, ...] = Field(min_length=1, max_length=16, description="Devices of one pod.")
    optimization: Optimization = Field(default_factory=Optimization, description="How the allocation is found.")
    serving: Serving = Field(default_factory=Serving, description="How the ensemble is served.")
    rollout: Rollout = Field(default_factory=Rollout, description="How a new allocation replaces the old.")

    @property
    def largest_batch(self) -> int:
        """That can be filled, a whole segment: batches are cut from segments, and segments from requests."""
        return min(self.serving.segment_size, self.serving.max_batch_size)

    @property
    def device_names(self) -> tuple[str, ...]:
        """Rows of the matrix: GPUs first, then groups of cores, each in the order of `devices`."""
        counts = {kind: sum(device.count for device in self.devices if device.type == kind) for kind in ("gpu", "cpu")}
        return tuple(f"{kind}{ordinal}" for kind, count in counts.items() for ordinal in range(count))

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """That workers may have, ascending: the default ends with the largest that can be filled."""
        return tuple(sorted({min(size, self.largest_batch) for size in self.optimization.batch_sizes}))


def unknown_devices(spec: EnsembleDeploymentSpec) -> Iterator[str]:
    names = spec.device_names
    return (
        f"[{index}].device {row.device} is none of {shortened(names)}"
        for index, row in enumerate(spec.optimization.matrix)
        if row.device not in names
    )


def shortened(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) <= 8 else [*names[:7], "…", names[-1]])


def unknown_sizes(spec: EnsembleDeploymentSpec) -> Iterator[str]:
    """But those that are too large, which another rule is about."""
    allowed = {0, *spec.batch_sizes}
    return (
        f"[{index}] ({row.device}) has {size}"
        for index, row in enumerate(spec.optimization.matrix)
        for size in row.batch_sizes
        if size not in allowed and size <= spec.largest_batch
    )


def too_large(spec: EnsembleDeploymentSpec) -> list[int]:
    """Batch sizes in the spec's own matrix that cannot be filled."""
    return [size for row in spec.optimization.matrix for size in row.batch_sizes if size > spec.largest_batch]


class Measurement(Frozen):
    """A figure and how it was obtained."""

    images_per_second: float | None = Field(None, ge=0, description="Throughput.")
    latency_milliseconds: float | None = Field(None, ge=0, description="Median time of a request of one segment.")
    obtained: Literal["measured", "modelled"] = Field(description="On the real server, or by a model of it.")
    bound_images_per_second: float | None = Field(
        None, ge=0, description="What the devices could give if the server cost nothing."
    )


class LoadedModel(Frozen):
    """A model that the server really has loaded."""

    model_id: ShortText = Field(description="The model.")
    digest: Digest = Field(description="SHA-256 of its file.")


class EnsembleDeploymentStatus(Status):
    """What is served, where and how fast."""

    members: Count | None = Field(None, description="Number of members that are served.")
    member_ids: tuple[ShortText, ...] = Field((), max_length=256, description="The members: columns of the matrix.")
    matrix: tuple[MatrixRow, ...] = Field((), max_length=1024, description="The allocation.")
    performance: Measurement | None = Field(None, description="Throughput and latency of one pod.")
    throughput: ShortText | None = Field(None, description="The throughput for people: `305 img/s`.")
    endpoint: Annotated[str, StringConstraints(max_length=1024)] | None = Field(None, description="URL of the service.")
    ready_replicas: Count | None = Field(None, description="Copies of the serving pod that answer.")
    selection_digest: Digest | None = Field(None, description="Of the selection that is served.")
    allocation_digest: Digest | None = Field(None, description="Of the allocation that is served.")
    loaded: tuple[LoadedModel, ...] = Field((), max_length=256, description="What is really loaded.")


class EnsembleDeployment(Frozen):
    """Spreads an ensemble over devices and serves it."""

    columns: ClassVar[tuple[dict[str, Any], ...]] = (
        {"name": "Models", "type": "integer", "jsonPath": ".status.members"},
        {"name": "Throughput", "type": "string", "jsonPath": ".status.throughput"},
        {"name": "Endpoint", "type": "string", "jsonPath": ".status.endpoint"},
    )

    api_version: Literal["ensemble-operator.io/v1alpha1"] = API_VERSION  # type: ignore[assignment]
    kind: Literal["EnsembleDeployment"] = "EnsembleDeployment"
    metadata: Metadata
    spec: EnsembleDeploymentSpec
