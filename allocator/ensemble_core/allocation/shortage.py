"""Which worker and device had too little memory, where a server failed for that: a lesson for the next matrix."""

from __future__ import annotations

import re

from ensemble_core.allocation.plan import Plan, Worker
from ensemble_core.outofmemory import lacks_memory


def workers_short_of_memory(reason: str, plan: Plan) -> tuple[Worker, ...]:
    """The workers that a failure names, if it tells of memory; of several it was one."""
    if not lacks_memory(reason):
        return ()
    return tuple(worker for worker in plan.workers if _names(reason, plan.model_name(worker)))


def _names(reason: str, model: str) -> bool:
    """Whether it names a model, and not one whose name ends or begins with that."""
    return re.search(rf"(?<![\w.-]){re.escape(model)}\b", reason) is not None


def with_workers(reason: str, plan: Plan) -> str:
    """A failure, and before it who ran out of memory, if it tells that."""
    short = [
        f"{plan.members[worker.member].model_id} on {worker.device} with batches of {worker.batch_size}"
        for worker in workers_short_of_memory(reason, plan)
    ]
    who = f"one of {', '.join(short)}" if len(short) > 1 else "".join(short)
    return f"out of memory: {who}; {reason}" if short else reason


def short_of_memory(reason: str, plan: Plan) -> int | None:
    """Row of the one device whose workers a failure names, if it tells of memory; none if it does not."""
    named = {worker.device for worker in workers_short_of_memory(reason, plan)}
    rows = [row for row, device in enumerate(plan.devices) if device.name in named]
    return rows[0] if len(rows) == 1 else None
