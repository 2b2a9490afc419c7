"""What is rendered and served: the members, the devices, and which worker runs which member where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ensemble_core.allocation.candidate import Candidate
from ensemble_core.api.ensembledeployment import EnsembleDeployment
from ensemble_core.engines import DEFAULT, OTHERS, Engine
from ensemble_core.frozen import Frozen
from ensemble_core.library.records import ModelId, Sha256, Signature

Engines = tuple[tuple[Engine | None, ...], ...]  # of each worker, [device][member]; empty if all are ONNX Runtime


def pins(needed: int, allowed: int, shared: bool) -> bool:
    """Whether members keep to the cores of their device.

    Args:
        needed: Cores of all devices, one for each GPU among them.
        allowed: Cores that this process may use.
        shared: Whether other pods may use them too.

    Every pod would choose the first of what it may use: on a node that pods share, all of them the same. There only
    cores are kept to that are no more than needed, which are those given to this pod alone. Elsewhere the kernel
    moves threads to what is idle, and gives each pod the share that it has requested when nothing is.
    """
    return not shared or allowed <= needed


class DeviceRow(Frozen):
    """A row of the matrix: a GPU by its ordinal in the container, or a group of CPU cores that no other row has."""

    name: str = Field(pattern=r"^(gpu|cpu)\d+$")  # gpu0, cpu0, …
    type: Literal["gpu", "cpu"]
    ordinal: int = Field(ge=0)
    cores: tuple[int, ...]  # of the machine, ascending; empty for a GPU
    pinned: bool = True  # whether members keep to these cores, or take as many threads and leave the rest to the kernel
    memory_mib: Annotated[float, Field(alias="memoryMiB", gt=0)]
    device_type: str  # as profiles name it


class Member(Frozen):
    """A column of the matrix: a model and its weight in the average."""

    model_id: ModelId  # unique in the plan
    weight: float = Field(gt=0, le=1)
    onnx: str  # absolute local path
    sha256: Sha256  # of the ONNX file


class Worker(Frozen):
    """An element of the matrix other than 0: one instance of a member on one device."""

    member: int = Field(ge=0)  # index in the plan's members
    device: str
    batch_size: int = Field(ge=1)
    share: float = Field(1.0, gt=0)  # of the member's samples, relative to its other workers
    engine: Engine = DEFAULT  # that runs it


class Answering(Frozen):
    """How the members' answers become one."""

    rule: Literal["average", "weighted", "vote"] = "weighted"
    scores: Literal["probabilities", "logits"] = "probabilities"  # what members answer
    routing: Literal["pull", "weights"] = "pull"  # free workers take the next chunk, or each gets its share
    quorum: int | None = Field(None, ge=1)  # members that every sample needs; all of them if none is given
    retries: int = Field(0, ge=0, le=100)  # calls for a chunk after one that failed, on another worker if there is one
    deadline_seconds: float = Field(60.0, gt=0)  # for a request


class Plan(Frozen):
    """Everything the renderer needs; nothing in it depends on the machine but paths and cores."""

    name: str  # of the deployment, and of the front model
    signature: Signature
    segment_size: int = Field(ge=1)  # samples
    max_batch_size: int = Field(ge=1)  # samples of one request at most
    members: tuple[Member, ...] = Field(min_length=1)
    devices: tuple[DeviceRow, ...] = Field(min_length=1)
    workers: tuple[Worker, ...] = Field(min_length=1)
    answering: Answering = Answering()

    @model_validator(mode="after")
    def refers_to_what_there_is(self) -> Self:
        if len({member.model_id for member in self.members}) < len(self.members):
            raise ValueError("two members have the same id")
        devices = {device.name for device in self.devices}
        if any(worker.device not in devices for worker in self.workers):
            raise ValueError("a worker is on a device that is not in the plan")
        for worker in self.workers:
            kind = self.device(worker.device).type
            if worker.engine not in (DEFAULT, *OTHERS[kind]):
                raise ValueError(f"{worker.engine} does not run on {worker.device}, which is a {kind.upper()}")
        if {worker.member for worker in self.workers} != set(range(len(self.members))):
            raise ValueError("every member needs a worker")
        if (self.answering.quorum or 0) > len(self.members):
            raise ValueError(f"a quorum of {self.answering.quorum} is more than all {len(self.members)} members")
        return self

    def answered_by_all(self, seconds: float) -> Self:
        """The same plan, whose every answer has all members at the first try, and so many seconds for it at least.

        What a quorum leaves out is work that a measurement would miss.
        """
        seconds = max(Answering().deadline_seconds, seconds)
        whole = self.answering.model_copy(update={"quorum": None, "retries": 0, "deadline_seconds": seconds})
        return self.model_copy(update={"answering": whole})

    @property
    def models(self) -> frozenset[str]:
        """Names of its Triton models: the front model and one for each worker."""
        return frozenset({self.name, *map(self.model_name, self.workers)})

    def on_cores(self, cores: Sequence[int], shared: bool) -> Self:
        """The same plan with other cores of equal number, in ascending order; ValueError if there are too few.

        Which cores a container may use, and whether others use them too, is known in that container alone.
        """
        pinned = pins(sum(max(1, len(device.cores)) for device in self.devices), len(cores), shared)
        left, devices = sorted(cores), []
        for device in self.devices:
            if len(device.cores) > len(left):
                needed = sum(len(device.cores) for device in self.devices)
                raise ValueError(f"needs {needed} cores; this process may use {len(cores)}")
            own, left = tuple(left[: len(device.cores)]), left[len(device.cores) :]
            devices.append(device.model_copy(update={"cores": own, "pinned": pinned}))
        return self.model_copy(update={"devices": tuple(devices)})

    def model_name(self, worker: Worker) -> str:
        """Name of the worker's Triton model; it ends with the engine if that is not ONNX Runtime."""
        engine = "" if worker.engine == DEFAULT else f"--{worker.engine}"
        return f"{self.members[worker.member].model_id}--{worker.device}--b{worker.batch_size}{engine}"

    def device(self, name: str) -> DeviceRow:
        return next(device for device in self.devices if device.name == name)


def plan_of(
    candidate: Candidate,
    members: Sequence[Member],
    devices: Sequence[DeviceRow],
    signature: Signature,
    deployment: EnsembleDeployment,
    engines: Engines = (),
) -> Plan:
    """The plan of a candidate, routed as it is; workers in the matrix's order, devices first."""
    serving, shares = deployment.spec.serving, candidate.shares
    return Plan(
        name=deployment.metadata.name,
        signature=signature,
        segment_size=serving.segment_size,
        max_batch_size=serving.max_batch_size,
        members=tuple(members),
        devices=tuple(devices),
        workers=tuple(
            Worker(
                member=member,
                device=devices[device].name,
                batch_size=batch_size,
                share=1.0 if shares is None else shares[device][member],
                engine=engines[device][member] or DEFAULT if engines else DEFAULT,
            )
            for device, member, batch_size in candidate.matrix.entries()
        ),
        answering=Answering(
            rule=serving.combiner,
            scores=serving.scores,
            routing=candidate.routing,
            quorum=serving.quorum,
            retries=serving.retries,
            deadline_seconds=serving.deadline_seconds,
        ),
    )
