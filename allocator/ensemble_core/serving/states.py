"""What each worker of a plan is doing: ready, loading, out of memory, dead, or not loaded.

Workers of the thesis (section 8.3.3) tell that they are ready, or that their device has not enough memory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from ensemble_core.allocation.plan import Plan
from ensemble_core.allocation.shortage import workers_short_of_memory


class State(StrEnum):
    READY = "ready"
    LOADING = "loading"
    OUT_OF_MEMORY = "out of memory"
    DEAD = "dead"  # its process ended; the server does not know
    NOT_LOADED = "not loaded"


class ModelState(NamedTuple):
    """What Triton tells of a model."""

    state: str  # READY, LOADING, UNLOADING or UNAVAILABLE
    reason: str = ""  # of being unavailable


STATES = {"READY": State.READY, "LOADING": State.LOADING}


def worker_states(
    plan: Plan, told: Mapping[str, ModelState], dead: Collection[str] = (), failure: str = ""
) -> dict[str, State]:
    """The state of each worker by the name of its model (pure).

    Args:
        plan: With the workers.
        told: What the server tells of its models.
        dead: Models whose process has ended.
        failure: Why the last load failed, nothing if it did not: a process that was killed cannot tell the server.
    """
    names = [plan.model_name(worker) for worker in plan.workers]
    failures = [failure, *(f"{name}: {told[name].reason}" for name in names if name in told)]
    named = [workers_short_of_memory(each, plan) for each in failures]
    short = {plan.model_name(workers[0]) for workers in named if len(workers) == 1}

    def state(name: str) -> State:
        found = STATES.get(told[name].state, State.NOT_LOADED) if name in told else State.NOT_LOADED
        if found is State.READY:
            return State.DEAD if name in dead else State.READY
        return State.OUT_OF_MEMORY if found is State.NOT_LOADED and name in short else found

    return {name: state(name) for name in names}


def documents(plan: Plan, states: Mapping[str, State]) -> list[dict[str, Any]]:
    """`{modelId, device, batchSize, state}` of each worker, for reports."""
    return [
        {
            "modelId": plan.members[worker.member].model_id,
            "device": worker.device,
            "batchSize": worker.batch_size,
            "state": states[plan.model_name(worker)].value,
        }
        for worker in plan.workers
    ]
