"""Small problems for the model, the search and the simulator."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from ensemble_core.allocation.matrix import Matrix
from ensemble_core.allocation.model import Floats, Problem
from ensemble_core.allocation.objectives import truth_of
from ensemble_core.allocation.simulator import Truth

SIZES = (8, 32)


def problem(
    milliseconds: list[float], devices: int, memory: float = 100.0, need: float = 30.0, sizes: tuple[int, ...] = SIZES
) -> Problem:
    """Like devices; members that take so long for a sample, and a batch 4 samples' time more; MiB of any worker."""
    each = np.array(milliseconds) / 1000
    batches = np.array(sizes)
    alone = batches / (each[:, None] * (batches + 4))
    shape = (devices, len(each), len(sizes))
    kinds, sides = ("x",) * devices, ("gpu",) * devices
    return Problem.of(
        sizes, kinds, sides, np.broadcast_to(alone, shape).copy(), np.full(shape, need), np.full(devices, memory)
    )


def with_needs(given: Problem, factor: Floats | float = 1.0) -> Truth:
    """Devices as the model believes, memory included, which may be more than it believes."""
    truth = truth_of(given)
    needs = np.zeros_like(truth.needs)
    needs[:, :, list(given.batch_sizes)] = given.needs * factor
    return Truth(truth.seconds, needs, truth.capacity, truth.pairs, truth.overlap)


@st.composite
def problems(draw: st.DrawFn, devices: int = 3, members: int = 3) -> Problem:
    times = draw(st.lists(st.floats(0.5, 10), min_size=1, max_size=members))
    return problem(times, draw(st.integers(1, devices)), memory=1000.0)


def random_matrix(given: Problem, seed: int) -> Matrix:
    random = np.random.default_rng(seed)
    indices = random.integers(0, len(given.batch_sizes) + 1, (given.devices, given.members))
    empty = ~(indices > 0).any(axis=0)
    indices[random.integers(0, given.devices), empty] = 1
    return given.matrix(indices)
