"""Matrices built from a wanted throughput: as many exclusive devices as a member fills, the rest packed and split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import reduce

import numpy as np

from ensemble_core.allocation.model import Floats, Indices, Problem, upper_bound

BISECTIONS = 14
SPLITS = 8  # bisections of the part of a member that still fits a device
SMALLEST_PART = 0.02  # of a member's rest that is worth another worker
EXACT = 3  # members on one device up to which all batch sizes are tried together


def construct(problem: Problem) -> tuple[Indices, float] | None:
    """The matrix for the largest throughput that the packing reaches, with that throughput; none if nothing fits.

    Bisection between 0 and the upper bound. CPUs serve only if there is no GPU, or if the GPUs cannot hold all members.
    """
    gpus = np.flatnonzero([side == "gpu" for side in problem.sides])
    everything = np.arange(problem.devices)
    for devices in [gpus, everything] if 0 < len(gpus) < problem.devices else [everything]:
        part = problem.on(devices)
        found = _largest(part)
        if found is not None:
            indices = np.zeros((problem.devices, problem.members), np.int64)
            indices[devices] = found[0]
            return indices, found[1]
    return None


def _largest(problem: Problem) -> tuple[Indices, float] | None:
    high = upper_bound(problem) * (1 - 1e-3)
    if high <= 0 or (best := pack(problem, high * 1e-6)) is None:
        return None
    if (found := pack(problem, high)) is not None:
        return found, high
    low = 0.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        found = pack(problem, middle)
        low, high = (low, middle) if found is None else (middle, high)
        best = best if found is None else found
    return best, low


@dataclass
class _Bin:
    """A device being filled: its members with the samples/s that each must answer there."""

    device: int
    members: list[int] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    full: float = 0.0  # share of its time


def pack(problem: Problem, throughput: float) -> Indices | None:
    """A matrix whose devices can answer so many samples/s of every member one after the other; none if none is found.

    Members that fill devices of their own get them, the fastest devices first, and of those the ones with the least
    memory that holds the member. Of the rest the largest goes to the device that it fills best (best fit); one that
    fits nowhere is split.
    """
    speeds = problem.speeds
    fastest = _fastest(problem)
    alone = np.where(problem.needs <= problem.capacity[:, None, None], speeds, 0.0).max(axis=2)
    pace = [float(own.max(axis=1).mean()) for own in speeds]
    order = sorted(range(problem.devices), key=lambda d: (-pace[d], problem.capacity[d]))
    indices = np.zeros((problem.devices, problem.members), np.int64)
    rest: list[tuple[int, float]] = []
    empty = list(order)
    loads = {m: throughput / max(speeds[order[0], m, fastest[order[0], m]], 1e-300) for m in range(problem.members)}
    for member in sorted(loads, key=lambda m: -loads[m]):
        left = throughput
        for device in [each for each in empty if alone[each, member] > 0]:
            if left < alone[device, member] * (1 - 1e-9):
                break
            empty.remove(device)
            indices[device, member] = fastest[device, member] + 1
            left -= float(alone[device, member])
        if left > 1e-3 * throughput:
            rest.append((member, left))
    bins = [_Bin(device) for device in empty]
    rest.sort(key=lambda item: -item[1] / max(float(speeds[order[0], item[0]].max()), 1e-300))
    while rest:
        member, rate = rest.pop(0)
        into = _best_bin(problem, bins, member, rate)
        if into is None:
            into, part = _largest_part(problem, bins, member, rate)
            if into is None or part < SMALLEST_PART * rate:
                return None
            if rate - part > 1e-3 * throughput:
                rest.insert(0, (member, rate - part))
            rate = part
        into.members.append(member)
        into.rates.append(rate)
        filled = batches(problem, into.device, into.members, into.rates)
        into.full = 2.0 if filled is None else filled[0]
    for each in bins:
        if each.members:
            filled = batches(problem, each.device, each.members, each.rates)
            if filled is None:
                return None
            indices[each.device, each.members] = [batch + 1 for batch in filled[1]]
    return indices if (indices > 0).any(axis=0).all() else None


def _fastest(problem: Problem) -> Indices:
    """Index of the fastest batch size of each member that fits alone on each device, shape (D, M)."""
    fits = problem.needs <= problem.capacity[:, None, None]
    return np.asarray(np.where(fits, problem.speeds, -1.0).argmax(axis=2), np.int64)


def _to_try(problem: Problem, bins: list[_Bin], member: int) -> Iterator[_Bin]:
    """Devices that the member is not on; of those that are empty and alike only the first."""
    seen = set()
    for each in bins:
        alike = problem.alike(each.device)
        if member not in each.members and (each.members or alike not in seen):
            yield each
            if not each.members:
                seen.add(alike)


def _best_bin(problem: Problem, bins: list[_Bin], member: int, rate: float) -> _Bin | None:
    """The device that is fullest with the member on it."""
    best, fullest = None, 0.0
    for each in _to_try(problem, bins, member):
        filled = batches(problem, each.device, [*each.members, member], [*each.rates, rate])
        if filled is not None and fullest < filled[0] <= 1 + 1e-9:
            best, fullest = each, filled[0]
    return best


def _largest_part(problem: Problem, bins: list[_Bin], member: int, rate: float) -> tuple[_Bin | None, float]:
    best, most = None, 0.0
    for each in _to_try(problem, bins, member):
        members = [*each.members, member]
        if batches(problem, each.device, members, [*each.rates, 0.0]) is None:
            continue
        low, high = 0.0, rate
        for _ in range(SPLITS):
            middle = (low + high) / 2
            filled = batches(problem, each.device, members, [*each.rates, middle])
            low, high = (middle, high) if filled is not None and filled[0] <= 1 + 1e-9 else (low, middle)
        if low > most:
            best, most = each, low
    return best, most


def batches(
    problem: Problem, device: int, members: list[int], rates: list[float]
) -> tuple[float, tuple[int, ...]] | None:
    """Batch sizes (their places) with which members answer their rates in the least of a device's time, and that time.

    None if they do not fit. All combinations for a few members, else upgrades by time gained per MiB.
    """
    needs, cost = problem.needs[device], _seconds(problem, device, members, rates)
    capacity = float(problem.capacity[device]) + 1e-6
    if len(members) <= EXACT:
        taken = reduce(np.add.outer, list(needs[members]))
        total = np.where(taken <= capacity, reduce(np.add.outer, list(cost)), np.inf)
        best = int(total.argmin())
        if total.flat[best] == np.inf:
            return None
        return float(total.flat[best]), tuple(int(place) for place in np.unravel_index(best, total.shape))
    return _upgraded(needs[members], cost, capacity)


def _upgraded(needs: Floats, cost: Floats, capacity: float) -> tuple[float, tuple[int, ...]] | None:
    sizes = [int(row.argmin()) for row in needs]
    rows = range(len(sizes))
    used = float(sum(needs[i, sizes[i]] for i in rows))
    if used > capacity:
        return None
    while True:
        gains = [
            ((cost[i, sizes[i]] - cost[i, b]) / max(more, 1e-9), i, b, more)
            for i in rows
            for b in range(needs.shape[1])
            if cost[i, b] < cost[i, sizes[i]] * (1 - 1e-9)
            and used + (more := needs[i, b] - needs[i, sizes[i]]) <= capacity
        ]
        if not gains:
            return float(sum(cost[i, sizes[i]] for i in rows)), tuple(sizes)
        _, row, size, more = max(gains)
        sizes[row] = size
        used += float(more)


def _seconds(problem: Problem, device: int, members: list[int], rates: list[float]) -> Floats:
    """Share of the device's time that each member's rate takes at each batch size, neighbours' disturbance included."""
    slower = 1 + problem.interference * (len(members) - 1)
    with np.errstate(divide="ignore"):
        return np.asarray(slower * np.array(rates)[:, None] / problem.speeds[device, members])
