"""What an allocation is, as the library stores it, and what its digest covers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from ensemble_core.allocation.candidate import Candidate, Measured
from ensemble_core.allocation.matrix import Matrix
from ensemble_core.allocation.plan import DeviceRow, Engines, Member
from ensemble_core.api.ensembledeployment import EnsembleDeployment
from ensemble_core.engines import DEFAULT, HALF, Engine
from ensemble_core.frozen import Frozen, digest
from ensemble_core.library.records import ModelId, Sha256

COMPUTATION = 3  # raised when algorithms, benchmarks or backends change, so that stored results are not found
Rows = tuple[tuple[int, ...], ...]  # batch sizes, [device][member], 0 = absent
Shares = tuple[tuple[float, ...], ...]  # of each member's samples, [device][member]


class Throughput(Frozen):
    """Samples per second, how they are known, and how much windows of the measurement differ."""

    samples_per_second: float = Field(ge=0)  # 0: the server could not load or run it
    spread: float = Field(0, ge=0)  # (largest - smallest) / median of the windows measured
    foreign_cores: float = Field(0, ge=0)  # CPU cores that other processes used meanwhile
    client_cores: float = Field(0, ge=0)  # CPU cores that the load generator used, one at most
    how: Literal["measured"] = "measured"
    reason: str | None = None  # of a 0
    memory: bool | None = None  # whether that tells of a lack of memory; none: served, or measured before that was told
    device: int | None = Field(None, ge=0)  # row that had too little memory, where the server tells
    latency_seconds: tuple[float, float, float] | None = None  # of a request: median, 90th and 99th percentile

    def measured(self) -> Measured:
        """As the algorithms take it."""
        return Measured(
            samples_per_second=self.samples_per_second,
            spread=self.spread,
            reason=self.reason,
            memory=bool(self.memory),
            device=self.device,
            latency=self.latency_seconds,
        )


class Benchmark(Frozen):
    """One matrix that was measured."""

    order: int = Field(ge=0)
    matrix: Rows
    throughput: Throughput
    shares: Shares | None = None  # none: free workers pull
    repeat: int = Field(0, ge=0)  # how often it had been measured before; from 1 where there is an incumbent

    @property
    def candidate(self) -> Candidate:
        return Candidate(Matrix(self.matrix), self.shares)


class Start(Frozen):
    matrix: Rows
    throughput: Throughput


class SelectionOf(Frozen):
    """Which ensemble is allocated."""

    name: str
    budget_name: str
    digest: Sha256


class AllocatedMember(Frozen):
    model_id: ModelId
    weight: float
    sha256: Sha256  # of the ONNX file


class ServerVersion(Frozen):
    name: str
    version: str
    engine: str  # that may run members, and its version; several are separated by commas
    averaging: Literal["native", "python"] | None = None  # which backend averages; none: measured before that was told


class AllocationResult(Frozen):
    """`allocations/<digest>.json`."""

    name: str  # of the deployment
    digest: Sha256
    selection: SelectionOf
    members: tuple[AllocatedMember, ...]  # columns of the matrix
    devices: tuple[DeviceRow, ...]  # rows
    device_fingerprint: Sha256
    matrix: Rows
    algorithm: str
    throughput: Throughput
    start: Start
    benchmarks: tuple[Benchmark, ...]  # in the order measured
    server: ServerVersion
    shares: Shares | None = None  # by which samples are routed; none: free workers pull
    bound: float | None = Field(None, ge=0)  # samples/s that no matrix exceeds by the members' profiles
    expected: float | None = Field(None, ge=0)  # samples/s of the matrix by the model, as measurements corrected it
    engines: Engines = ()  # that run the matrix
    conditions: Sha256 | None = None  # of its measurements, load and server among them; none: not told then

    @property
    def candidate(self) -> Candidate:
        """What was chosen: the matrix and its routing."""
        return Candidate(Matrix(self.matrix), self.shares)

    @property
    def incumbent(self) -> Candidate | None:
        """With what all others were compared, none if there was none."""
        first = next(iter(self.benchmarks), None)
        return first.candidate if first and first.repeat else None

    @property
    def replaced(self) -> Candidate | None:
        """The incumbent that something better was measured beside, none if it stayed or there was none."""
        return None if self.incumbent == self.candidate else self.incumbent

    def measured(self, candidate: Candidate) -> list[Throughput]:
        """What was measured of a candidate, each time."""
        return [done.throughput for done in self.benchmarks if done.candidate == candidate]

    @property
    def in_half(self) -> bool:
        """Whether a worker computes in half precision."""
        return any(engine in HALF for row in self.engines for engine in row)


def device_fingerprint(devices: Sequence[DeviceRow]) -> str:
    """Digest of what makes devices equal for a measurement: types in order and numbers of cores, not which cores."""
    return digest([[row.type, row.device_type, len(row.cores)] for row in devices])


@dataclass(frozen=True)
class Subject:
    """What is allocated, on what: everything that a measurement or an allocation depends on.

    Args:
        deployment: With the settings.
        selection: The ensemble it refers to.
        members: Its members.
        devices: The rows.
        server: That serves.
        load: Settings of the load, as JSON has them.
        chosen: The engines that run each member, by type of device and batch size; ONNX Runtime where none is named.
        judged_by: Digest of the validation samples by which half precision is judged for each member, none for one that
            cannot be judged; empty where nobody asked for half precision.
    """

    deployment: EnsembleDeployment
    selection: SelectionOf
    members: tuple[Member, ...]
    devices: tuple[DeviceRow, ...]
    server: ServerVersion
    load: dict[str, Any]
    chosen: tuple[Mapping[str, Mapping[int, Engine]], ...] = ()
    judged_by: tuple[str | None, ...] = ()

    def engines(self, matrix: Matrix) -> Engines:
        """The engine of each worker of a matrix; empty if all are ONNX Runtime."""
        if not self.chosen:
            return ()
        found: Engines = tuple(
            tuple(
                own[row.device_type].get(size, DEFAULT) if size else None
                for own, size in zip(self.chosen, sizes, strict=True)
            )
            for row, sizes in zip(self.devices, matrix.batch_sizes, strict=True)
        )
        return found if any(engine not in (None, DEFAULT) for row in found for engine in row) else ()

    def conditions(self) -> str:
        """Of everything that measurements depend on but the candidate: those under the same can be compared."""
        return digest(self._measured())

    def benchmark_digest(self, candidate: Candidate, repeat: int = 0) -> str:
        """Of everything that a measurement of a candidate depends on; names and weights do not matter.

        Repeats are a run's own: by them it compares, and those of another may be of another day.
        """
        content = {**self._measured(), "matrix": candidate.matrix.rows()}
        if candidate.shares is not None:
            content["shares"] = [list(row) for row in candidate.shares]
        if engines := self.engines(candidate.matrix):
            content["engines"] = [list(row) for row in engines]
        if repeat:
            content.update(repeat=repeat, run=self.digest())
        return digest(content)

    def digest(self) -> str:
        """Of everything that the allocation depends on; free memory, which changes by the minute, is left out."""
        spec = self.deployment.spec
        content = {
            **self._measured(),
            "name": self.deployment.metadata.name,
            "selection": self.selection.document(),
            "members": [member.model_dump(mode="json", exclude={"onnx"}) for member in self.members],
            "memoryMiB": [device.memory_mib for device in spec.devices],
            "optimization": spec.optimization.document(),
            "routing": spec.serving.routing,
        }
        if spec.batch_sizes != spec.optimization.batch_sizes:
            content["batchSizes"] = list(spec.batch_sizes)
        if self.judged_by:  # other samples may let other members compute in half precision
            content["judgedBy"] = list(self.judged_by)
        return digest(content)

    def _measured(self) -> dict[str, Any]:
        serving = self.deployment.spec.serving
        return {
            "computation": COMPUTATION,
            "models": [member.sha256 for member in self.members],
            "devices": device_fingerprint(self.devices),
            "segmentSize": serving.segment_size,
            "answering": [serving.combiner, serving.scores],
            "server": self.server.document(),
            "load": self.load,
        }
