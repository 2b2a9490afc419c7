"""How a matrix is found: worst-fit-decreasing and bounded greedy, pure but for the benchmark they are given.

Source: Pochelu 2022 (thesis), section 8.3.5: Algorithm 1, worst-fit-decreasing with priority to GPUs; Algorithm 2,
bounded greedy optimisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ensemble_core.allocation.matrix import ABSENT, Matrix, neighbours
from ensemble_core.allocation.memory import Memory

Bench = Callable[[Matrix], float]  # samples/s; 0 if it could not be served
DeviceKind = Literal["gpu", "cpu"]


@dataclass(eq=False)  # a frozen exception could not be raised through a context manager
class DoesNotFitError(Exception):
    """A member fits on no device that is left to it.

    Args:
        member: Its index.
        device: Index of the device that lacks the least memory for it.
        needed: MiB of the member there, at the smallest batch size.
        left: MiB left there under the members placed before.
    """

    member: int
    device: int
    needed: float
    left: float


@dataclass(frozen=True)
class Bounds:
    """Limits of the greedy search.

    Args:
        max_neighs: Neighbours drawn in an iteration.
        max_iter: Iterations; D - M if that is more, so that every device has a chance of being used.
        max_benchmarks: Matrices measured in all, the start included.
    """

    max_neighs: int
    max_iter: int
    max_benchmarks: int

    def iterations(self, matrix: Matrix) -> int:
        return max(self.max_iter, matrix.devices - matrix.members)


def worst_fit_decreasing(memory: Memory, kinds: Sequence[DeviceKind], batch_size: int) -> Matrix:
    """Place each member once, the largest first, on the device with the most memory left; on a GPU while one has space.

    Args:
        memory: Capacities and needs.
        kinds: Type of each device, length D.
        batch_size: Of every member, the smallest allowed.

    Returns:
        A matrix that fits, one worker for each member. Members of equal size go in their order, devices with equally
        much left likewise. O(M·(D+M)).

    Raises:
        DoesNotFitError: neither a GPU nor a CPU has enough left for a member.

    Members are ordered by what they take on the first device that may hold them: a GPU if there is one.
    Source: thesis, Algorithm 1 (pseudo-code in chapter 8, "Worst-fit-decreasing with a priority to GPUs").
    """
    groups = [[d for d, kind in enumerate(kinds) if kind == side] for side in ("gpu", "cpu")]
    first = next(group[0] for group in groups if group)
    members = range(len(memory.curves))
    placed = [[ABSENT] * len(members) for _ in kinds]
    left = list(memory.capacity)
    for member in sorted(members, key=lambda m: -memory.need(first, m, batch_size)):
        roomiest = [max(group, key=lambda d: left[d]) for group in groups if group]
        needs = {device: memory.need(device, member, batch_size) for device in roomiest}
        device = next((d for d in roomiest if needs[d] <= left[d]), None)
        if device is None:
            closest = min(roomiest, key=lambda d: needs[d] - left[d])
            raise DoesNotFitError(member, closest, needs[closest], left[closest])
        placed[device][member] = batch_size
        left[device] -= needs[device]
    return Matrix.of(placed)


def bounded_greedy(
    start: Matrix, batch_sizes: Sequence[int], fits: Callable[[Matrix], bool], bench: Bench, bounds: Bounds, seed: int
) -> Matrix:
    """Move to the fastest of some neighbours until none is faster.

    Args:
        start: A matrix that fits.
        batch_sizes: The allowed ones.
        fits: Whether a matrix fits into memory; one that does not counts as 0 samples/s and is not benchmarked.
        bench: Called at most once for a matrix and at most `max_benchmarks` times.
        bounds: Limits.
        seed: Of the draws; equal inputs and measurements give equal draws.

    Returns:
        The last matrix moved to, as measured never slower than the start. Ties go to the neighbour drawn first.

    Once `max_benchmarks` matrices are measured the iteration ends with those it has. Neighbours are visited in the
    order drawn even when all of them are, so that this bound prefers no device.
    Source: thesis, Algorithm 2 (section 8.3.5), with D - M iterations where that is more (section 8.3.6).
    """
    random = np.random.default_rng(seed)
    speeds: dict[Matrix, float] = {start: bench(start)}
    best = start
    for _ in range(bounds.iterations(start)):
        if len(speeds) >= bounds.max_benchmarks:
            break
        neighs = neighbours(best, batch_sizes)
        drawn = [neighs[i] for i in random.permutation(len(neighs))[: bounds.max_neighs]]
        for matrix in filter(fits, drawn):
            if matrix not in speeds and len(speeds) < bounds.max_benchmarks:
                speeds[matrix] = bench(matrix)
        fastest = max(drawn, key=lambda matrix: speeds.get(matrix, 0.0), default=best)
        if speeds.get(fastest, 0.0) <= speeds[best]:
            break
        best = fastest
    return best
