"""What benchmarks teach the model: how members disturb each other, and what memory holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ensemble_core.allocation.candidate import Candidate, Measured
from ensemble_core.allocation.model import Floats, Problem, pulled, shared

Seen = Mapping[Candidate, Sequence[Measured]]

GRID = (0.0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3)  # of interference
ENOUGH = 4  # candidates for that
FULL = 0.5  # of a device's memory that must have been asked for if a failure that names none is to be blamed on it
MOST = 1.5  # by which memory estimates grow at most


def fitted(problem: Problem, seen: Seen, saturated: bool = True) -> Problem:
    """The problem with interference and needs as measurements correct them.

    Samples/s tell something of neighbours only where devices always had work.
    """
    return _with_memory(_by_throughput(problem, seen) if saturated else problem, seen)


def _by_throughput(problem: Problem, seen: Seen) -> Problem:
    """The interference with which the model is equally wrong about all candidates."""
    served = {c: float(np.mean([m.samples_per_second for m in ms])) for c, ms in seen.items()}
    served = {candidate: speed for candidate, speed in served.items() if speed > 0}
    if len(served) < ENOUGH:
        return problem
    options = [replace(problem, interference=value) for value in GRID]
    return min(options, key=lambda option: float(np.std([np.log(s / modelled(option, c)) for c, s in served.items()])))


def modelled(problem: Problem, candidate: Candidate) -> float:
    """Samples/s by the model."""
    indices = problem.indices(candidate.matrix)
    if candidate.shares is None:
        return pulled(problem, indices)
    return shared(problem, indices, np.array(candidate.shares))


def _with_memory(problem: Problem, seen: Seen) -> Problem:
    """Needs grown on every type of device by as much as it takes that what lacked memory would not have been tried."""
    growth: Floats = np.ones(problem.devices)
    for candidate, measurements in seen.items():
        for failed in (measured for measured in measurements if measured.short_of_memory):
            filled = problem.used(problem.indices(candidate.matrix)) / problem.capacity
            device = int(filled.argmax()) if failed.device is None else failed.device
            if failed.device is not None or filled[device] >= FULL:
                alike = np.array([kind == problem.kinds[device] for kind in problem.kinds])
                growth[alike] = np.maximum(growth[alike], min(MOST, 1.001 / filled[device]))
    return replace(problem, needs=problem.needs * growth[:, None, None])
