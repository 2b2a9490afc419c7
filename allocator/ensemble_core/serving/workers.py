"""The parameter `workers` of the front model: the one schema that every averaging backend reads."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ensemble_core.allocation.plan import Plan, Worker
from ensemble_core.frozen import Frozen


class WorkerEntry(Frozen):
    model: str  # Triton model
    batch: int = Field(ge=1)  # samples per call at most
    share: float = Field(1.0, gt=0)  # of the member's samples, relative to its other workers
    input: Literal["INPUT", "SEG"] = "INPUT"  # takes the rows, or a reference to them in shared memory


class MemberEntry(Frozen):
    model: str  # id in the library, for messages
    weight: float = Field(gt=0)  # relative to the other members; the backend divides by their sum
    workers: tuple[WorkerEntry, ...] = Field(min_length=1)


class Workers(Frozen):
    members: tuple[MemberEntry, ...] = Field(min_length=1)


def workers_of(plan: Plan) -> Workers:
    """Who answers for which member, in the plan's order."""
    return Workers(
        members=tuple(
            MemberEntry(
                model=member.model_id,
                weight=member.weight,
                workers=tuple(_entry(plan, worker) for worker in plan.workers if worker.member == index),
            )
            for index, member in enumerate(plan.members)
        )
    )


def _entry(plan: Plan, worker: Worker) -> WorkerEntry:
    on_cpu = plan.device(worker.device).type == "cpu"
    return WorkerEntry(
        model=plan.model_name(worker),
        batch=worker.batch_size,
        share=worker.share,
        input="SEG" if on_cpu else "INPUT",
    )
