"""Whether a server failed for want of memory, and on which device: a lesson for the next matrix."""

from __future__ import annotations

import re

from ensemble_core.allocation.plan import Plan

# Of CUDA, ONNX Runtime, C++ and Python; and the kernel kills who takes more than there is.
WORDS = re.compile(
    r"out.?of.?memory|bad.?alloc|memory.?error|cannot allocate|failed to allocate|killed by signal 9\b", re.IGNORECASE
)


def short_of_memory(reason: str, plan: Plan) -> int | None:
    """Row of the one device whose workers a failure names, if it tells of memory; none if it does not."""
    if not WORDS.search(reason):
        return None
    named = {worker.device for worker in plan.workers if re.search(rf"{re.escape(plan.model_name(worker))}\b", reason)}
    rows = [row for row, device in enumerate(plan.devices) if device.name in named]
    return rows[0] if len(rows) == 1 else None
