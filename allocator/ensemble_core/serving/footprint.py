"""What a serving pod needs: shared memory by the plan of segments, and memory in all.

Both are for `REQUESTS` requests of the plan's largest size at a time. More are served too, as far as memory goes: a
request that finds no room in /dev/shm is refused, and the server stays. With X and Y the bytes of one sample's input
and answer, and n samples in the largest request:

    /dev/shm   front model   REQUESTS · n · (X + Y), and per worker DEPTH answers of its batch size (b · Y); for one on
                             a GPU also DEPTH inputs (b · X)
               CPU worker    DEPTH · b · Y
               each          REGION_MIB, for no region is smaller and all grow in steps
    memory     all of /dev/shm
               server        BASE_MIB + 2 · REQUESTS · n · (X + Y), as received and as sent
               front model   BASE_MIB + 5 · REQUESTS · n · Y: sums in float64 and their copies
               CPU workers   what their profiles say
               each GPU      GPU_HOST_MIB of host memory, an estimate that no GPU has confirmed

The factors are upper bounds of what Triton 2.51 took with 1 to 8 requests at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ensemble_core.allocation.plan import Plan, Worker
from ensemble_core.serving.backends.averaging.routing import DEPTH

REQUESTS = 4
MIB = 1 << 20
REGION_MIB, BASE_MIB, GPU_HOST_MIB = 2, 64, 2048


def shared_memory_mib(plan: Plan) -> int:
    """Size of the pod's /dev/shm."""
    given, answer = _row_bytes(plan)
    requests = REQUESTS * plan.max_batch_size * (given + answer)
    on_gpu = [_on_gpu(plan, worker) for worker in plan.workers]
    chunks = [
        DEPTH * worker.batch_size * (answer + (given if gpu else answer))  # a CPU worker has its answers in its own too
        for worker, gpu in zip(plan.workers, on_gpu, strict=True)
    ]
    regions = REGION_MIB * (1 + on_gpu.count(False))
    return regions + math.ceil((requests + sum(chunks)) / MIB)


def memory_mib(plan: Plan, need: Callable[[Worker], float]) -> int:
    """Memory of the pod's server with /dev/shm; `need` is that of a worker on a CPU in MiB."""
    given, answer = _row_bytes(plan)
    requests = REQUESTS * plan.max_batch_size * (2 * (given + answer) + 5 * answer) / MIB
    workers = sum(need(worker) for worker in plan.workers if not _on_gpu(plan, worker))
    gpus = len({worker.device for worker in plan.workers if _on_gpu(plan, worker)})
    return shared_memory_mib(plan) + math.ceil(2 * BASE_MIB + requests + workers + gpus * GPU_HOST_MIB)


def _row_bytes(plan: Plan) -> tuple[int, int]:
    signature = plan.signature
    return math.prod(signature.input_shape) * np.dtype(signature.input_type).itemsize, 4 * signature.classes


def _on_gpu(plan: Plan, worker: Worker) -> bool:
    return plan.device(worker.device).type == "gpu"
