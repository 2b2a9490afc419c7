"""The reference algorithms, each by name, pure but for the benchmark they are given.

Source: Pochelu 2022 (thesis): worst-fit-decreasing with priority to GPUs (section 8.3.5, Algorithm 1), bounded greedy
optimisation (Algorithm 2), the best batch strategy (section 8.4.3), the allocation of data flow applications (section
8.2.1); Pochelu et al. 2022 (paper): its Algorithm 1, in which a member is on one device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ensemble_core.allocation.matrix import ABSENT, Matrix, neighbours
from ensemble_core.allocation.memory import Memory

Bench = Callable[[Matrix], float]  # samples/s, or another score; 0 if it could not be served
Neighbourhood = Callable[[Matrix, Sequence[int]], tuple[Matrix, ...]]
DeviceKind = Literal["gpu", "cpu"]
UNBOUNDED = 1_000_000_000


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
    start: Matrix,
    batch_sizes: Sequence[int],
    fits: Callable[[Matrix], bool],
    bench: Bench,
    bounds: Bounds,
    seed: int,
    neighbourhood: Neighbourhood = neighbours,
) -> Matrix:
    """Move to the fastest of some neighbours until none is faster.

    Args:
        start: A matrix that fits.
        batch_sizes: The allowed ones.
        fits: Whether a matrix fits into memory; one that does not counts as 0 samples/s and is not benchmarked.
        bench: Called at most once for a matrix and at most `max_benchmarks` times.
        bounds: Limits.
        seed: Of the draws; equal inputs and measurements give equal draws.
        neighbourhood: Of a matrix; by default all that differ in one element.

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
        neighs = neighbourhood(best, batch_sizes)
        drawn = [neighs[i] for i in random.permutation(len(neighs))[: bounds.max_neighs]]
        for matrix in filter(fits, drawn):
            if matrix not in speeds and len(speeds) < bounds.max_benchmarks:
                speeds[matrix] = bench(matrix)
        fastest = max(drawn, key=lambda matrix: speeds.get(matrix, 0.0), default=best)
        if speeds.get(fastest, 0.0) <= speeds[best]:
            break
        best = fastest
    return best


def paper_greedy(
    start: Matrix,
    batch_sizes: Sequence[int],
    fits: Callable[[Matrix], bool],
    bench: Bench,
    max_benchmarks: int,
    seed: int,
) -> Matrix:
    """Move to the fastest of all neighbours until none is faster; every member stays on one device.

    Args:
        start: A matrix that fits, with one worker for each member.
        batch_sizes: The allowed ones.
        fits: Whether a matrix fits into memory.
        bench: Called at most once for a matrix and at most `max_benchmarks` times, in an order drawn by the seed.
        max_benchmarks: Matrices measured in all, the start included.
        seed: Of that order, which matters only where the bound cuts an iteration short.

    Source: paper, Algorithm 1 ("Refine GPUs allocation to speed up"): an update changes the batch size of a member or
    its device, (D + B)·M neighbours.
    """
    bounds = Bounds(UNBOUNDED, UNBOUNDED, max_benchmarks)
    return bounded_greedy(start, batch_sizes, fits, bench, bounds, seed, one_device_neighbours)


def one_device_neighbours(matrix: Matrix, batch_sizes: Sequence[int]) -> tuple[Matrix, ...]:
    """Matrices in which one member has another batch size, or is on another device with the same: M·(B - 1 + D - 1)."""
    found = []
    for device, member, present in matrix.entries():
        found += [matrix.replaced(device, member, size) for size in batch_sizes if size != present]
        without = [list(row) for row in matrix.batch_sizes]
        without[device][member] = ABSENT
        for other in range(matrix.devices):
            if other != device:
                moved = [list(row) for row in without]
                moved[other][member] = present
                found.append(Matrix.of(moved))
    return tuple(found)


def best_batch(speed: Callable[[int, int, int], float], memory: Memory, batch_sizes: Sequence[int]) -> Matrix:
    """Member i alone on device i, at the batch size that is fastest there: the strategy BBS.

    Args:
        speed: Samples/s of (device, member, batch size) alone.
        memory: Capacities and needs.
        batch_sizes: The allowed ones.

    Raises:
        ValueError: there are more members than devices.
        DoesNotFitError: a member does not fit its device.

    Source: thesis, section 8.4.3: as many devices as members, B·M benchmarks of members alone.
    """
    members = len(memory.curves)
    if members > len(memory.capacity):
        raise ValueError(f"{members} members need as many devices; there are {len(memory.capacity)}")
    placed = [[ABSENT] * members for _ in memory.capacity]
    for member in range(members):
        fitting = [size for size in batch_sizes if memory.need(member, member, size) <= memory.capacity[member]]
        if not fitting:
            needed = memory.need(member, member, batch_sizes[0])
            raise DoesNotFitError(member, member, needed, memory.capacity[member])
        placed[member][member] = max(fitting, key=lambda size: speed(member, member, size))
    return Matrix.of(placed)


def latency_greedy(speed: Callable[[int, int, int], float], memory: Memory, batch_size: int) -> Matrix:
    """Place each member once, the slowest first, where the answers of those placed so far are back the earliest.

    Args:
        speed: Samples/s of (device, member, batch size) alone.
        memory: Capacities and needs.
        batch_size: Of every member, the smallest allowed: in data flow applications samples come one by one.

    Returns:
        A matrix that fits, one worker for each member. Ties go to the first device. M·D evaluations.

    Raises:
        DoesNotFitError: no device has enough left for a member.

    Members on one device answer one after the other, so a device's answers are back after the sum of their times.
    Source: thesis, section 8.2.1, Algorithm 1: members sorted by their speed on a default device (the first), each on
    the fastest device that is available.
    """
    members, devices = range(len(memory.curves)), range(len(memory.capacity))
    placed = [[ABSENT] * len(members) for _ in devices]
    left, back = list(memory.capacity), [0.0 for _ in devices]
    for member in sorted(members, key=lambda m: speed(0, m, batch_size)):
        needs = [memory.need(device, member, batch_size) for device in devices]
        available = [device for device in devices if needs[device] <= left[device]]
        if not available:
            closest = min(devices, key=lambda d: needs[d] - left[d])
            raise DoesNotFitError(member, closest, needs[closest], left[closest])
        ends = {device: back[device] + batch_size / speed(device, member, batch_size) for device in available}
        device = min(available, key=lambda d: ends[d])
        placed[device][member] = batch_size
        left[device] -= needs[device]
        back[device] = ends[device]
    return Matrix.of(placed)
