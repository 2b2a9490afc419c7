"""A model of the server: what a matrix would give, from profiles of members that had their device to themselves.

Members on one device share it evenly while they have work (processor sharing), each neighbour costing all of them a
little. Two ways to hand out samples follow from that:

- **pull**: a free worker takes the next batch of its member. Its device's fair shares decide who gets how much, so an
  uneven split can be 20 % below what the devices could give.
- **weights**: each worker gets a fixed share of its member's samples. With the shares of the linear program below no
  device has more to do than it can, and the program's value is nearly reached.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog
from scipy.sparse import csr_array

from ensemble_core.allocation.matrix import Matrix

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
DeviceKind = Literal["gpu", "cpu"]

INTERFERENCE = 0.03  # of each neighbour on a device, until measurements tell


@dataclass(frozen=True, eq=False)
class Problem:
    """Members, devices and what is known of them. D devices, M members, B batch sizes.

    Args:
        batch_sizes: The allowed ones, ascending, length B.
        kinds: Type of each device, length D; devices of equal kind have equal speeds and needs.
        sides: Whether a device is a GPU, length D.
        speeds: Samples/s of a member alone on a device, shape (D, M, B).
        needs: MiB of a worker, shape (D, M, B).
        capacity: MiB of each device, length D.
        interference: Slowdown by each neighbour: k workers on a device make 1/(1 + interference·(k-1)) of what one
            after the other would.
    """

    batch_sizes: tuple[int, ...]
    kinds: tuple[str, ...]
    sides: tuple[DeviceKind, ...]
    speeds: Floats
    needs: Floats
    capacity: Floats
    interference: float

    @classmethod
    def of(
        cls,
        batch_sizes: tuple[int, ...],
        kinds: tuple[str, ...],
        sides: tuple[DeviceKind, ...],
        speeds: Floats,
        needs: Floats,
        capacity: Floats,
    ) -> Problem:
        return cls(batch_sizes, kinds, sides, speeds, needs, capacity, INTERFERENCE)

    @property
    def devices(self) -> int:
        return len(self.kinds)

    @property
    def members(self) -> int:
        return int(self.speeds.shape[1])

    def indices(self, matrix: Matrix) -> Indices:
        """The matrix with the place of each batch size, from 1, instead of itself; 0 stays."""
        place = {0: 0, **{size: index for index, size in enumerate(self.batch_sizes, start=1)}}
        return np.array([[place[size] for size in row] for row in matrix.batch_sizes], np.int64)

    def matrix(self, indices: Indices) -> Matrix:
        sizes = (0, *self.batch_sizes)
        return Matrix.of([[sizes[index] for index in row] for row in indices])

    def used(self, indices: Indices) -> Floats:
        """MiB that workers take on each device; any leading axes."""
        return np.asarray(picked(self.needs, indices).sum(axis=-1))

    def fits(self, indices: Indices) -> bool:
        return bool((self.used(indices) <= self.capacity + 1e-6).all())

    def alike(self, device: int) -> tuple[str, float]:
        """A key that devices share which the model cannot tell apart: kind and capacity."""
        return self.kinds[device], float(self.capacity[device])

    def on(self, devices: Indices) -> Problem:
        """The same members on some of the devices."""
        return replace(
            self,
            kinds=tuple(self.kinds[d] for d in devices),
            sides=tuple(self.sides[d] for d in devices),
            speeds=self.speeds[devices],
            needs=self.needs[devices],
            capacity=self.capacity[devices],
        )


def picked(values: Floats, indices: Indices) -> Floats:
    """Of (D, M, B) values those of the batch sizes in indices (…, D, M), 0 where a member is absent."""
    device, member = np.indices(indices.shape[-2:])
    return np.where(indices > 0, values[device, member, indices - 1], 0.0)


def crowding(workers: npt.NDArray[Any], interference: float) -> Floats:
    """What k workers on a device make together, relative to one alone."""
    return np.asarray(1 / (1 + interference * np.maximum(np.asarray(workers, float) - 1, 0)))


def upper_bound(problem: Problem) -> float:
    """Samples/s that no matrix exceeds in this model: joint memory and interference left out.

    The best division of the devices' time, each member at its fastest batch size that fits alone. One variable for
    each type of device and member.
    """
    first, counts = _types(problem)
    alone = np.where(problem.needs <= problem.capacity[:, None, None], problem.speeds, 0.0)[first].max(axis=2)
    members = problem.members
    scale = float(alone.max())
    if scale <= 0:
        return 0.0
    served = np.hstack([np.ones((members, 1)), *(-np.diag(row / scale) for row in alone)])
    spent = np.hstack([np.zeros((len(first), 1)), np.kron(np.eye(len(first)), np.ones(members))])
    cost = np.zeros(served.shape[1])
    cost[0] = -1
    limits = np.concatenate([np.zeros(members), counts])
    found = linprog(cost, A_ub=np.vstack([served, spent]), b_ub=limits, method="highs")
    return float(-found.fun * scale)


def _types(problem: Problem) -> tuple[Indices, Floats]:
    """First device of each type, and how many there are; devices of a type are alike."""
    keys = [problem.alike(device) for device in range(problem.devices)]
    unique = list(dict.fromkeys(keys))
    return np.array([keys.index(key) for key in unique]), np.array([float(keys.count(key)) for key in unique])


@dataclass(frozen=True, eq=False)
class Routed:
    """What weighted routing makes of a matrix.

    Args:
        throughput: Samples/s of the ensemble.
        rates: Samples/s of each worker, shape (D, M); those of a member add up to the throughput.
        busy: Share of its time that each device works, length D.
        worth: Of a sample/s more of each member, relative, length M; 0 for a member that could answer more anyway.
        price: Of a device's time, in the same unit, length D.
    """

    throughput: float
    rates: Floats
    busy: Floats
    worth: Floats
    price: Floats


def route(problem: Problem, indices: Indices) -> Routed:
    """The shares with which a matrix gives most, by a linear program over the devices' time."""
    speeds = picked(problem.speeds, indices)
    device, member = np.nonzero(indices)
    workers = len(device)
    counts = (indices > 0).sum(axis=1)
    scale = float(speeds.max())
    alone = np.flatnonzero(counts[device] == 1)
    own = speeds[device, member] * crowding(counts, problem.interference)[device] / scale
    index = np.arange(workers)
    rows = np.concatenate([np.arange(problem.members), member, problem.members + device])
    columns = np.concatenate([np.zeros(problem.members, int), 1 + index, 1 + index])
    values = np.concatenate([np.ones(problem.members), -own, np.ones(workers)])
    limits = np.concatenate([np.zeros(problem.members), np.ones(problem.devices)])
    cost = np.full(1 + workers, 1e-6)  # no more of a device's time than is needed
    cost[0] = -1
    cost[1 + alone] = 0.5e-6  # a worker that has its device to itself rather than one that would disturb others
    table = csr_array((values, (rows, columns)), shape=(len(limits), 1 + workers))
    found = linprog(cost, A_ub=table, b_ub=limits, method="highs")
    rates = np.zeros(indices.shape)
    rates[device, member] = found.x[1:] * own * scale
    throughput = float(found.x[0] * scale)
    sums = rates.sum(axis=0)
    rates *= throughput / np.where(sums > 0, sums, 1)
    busy = np.zeros(problem.devices)
    np.add.at(busy, device, found.x[1:])
    duals = -np.asarray(found.ineqlin.marginals)
    return Routed(throughput, rates, busy, duals[: problem.members] / scale, duals[problem.members :])


def shared(problem: Problem, indices: Indices, shares: Floats) -> float:
    """Samples/s of a matrix whose members' samples go to their workers in given shares, shape (D, M)."""
    slower = 1 / crowding((indices > 0).sum(axis=1), problem.interference)
    return float(1 / (slower * demand(problem.speeds, indices, shares)).max())


def demand(speeds: Floats, indices: Indices, shares: Floats) -> Floats:
    """Seconds that each device works for one sample of the ensemble, workers one after the other."""
    alone = picked(speeds, indices)
    return np.asarray(np.divide(shares, alone, out=np.zeros_like(alone), where=alone > 0).sum(axis=1))


def pulled(problem: Problem, indices: Indices) -> float:
    """Samples/s of a matrix whose workers pull, all samples queued at the start."""
    return float(1 / makespans(problem, indices[None])[0][0])


def makespans(problem: Problem, indices: Indices) -> tuple[Floats, Floats]:
    """Seconds for one sample of every member under processor sharing, and the mean over members of when each ends.

    Args:
        problem: Speeds and interference.
        indices: K matrices, shape (K, D, M).

    Returns:
        Two arrays of length K; infinite where a member is absent.

    Between two members' ends all rates are constant, so there are at most M steps of O(K·D·M).
    """
    return spans(picked(problem.speeds, indices), problem.interference)


def spans(speeds: Floats, interference: float) -> tuple[Floats, Floats]:
    """`makespans` for speeds (K, D, M) of the workers, 0 where there is none."""
    chains, _, members = speeds.shape
    present = (speeds > 0).astype(float)
    table = np.zeros(members + 1)
    counts = np.arange(1, members + 1)
    table[1:] = crowding(counts, interference) / counts
    left, active = np.ones((chains, members)), np.ones((chains, members))
    time, ends = np.zeros(chains), np.zeros(chains)
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(members):
            each = table[np.matmul(present, active[:, :, None])[..., 0].astype(np.int64)]
            rates = np.matmul(each[:, None, :], speeds)[:, 0, :]
            waits = np.where(active > 0, left / rates, np.inf)
            step = waits.min(axis=1)
            step = np.where(active.any(axis=1), step, 0.0)
            time += step
            left -= rates * step[:, None] * active
            done = (active > 0) & (waits <= step[:, None] * (1 + 1e-9))
            ends += time * done.sum(axis=1)
            active = np.where(done, 0.0, active)
            if not active.any():
                break
    return time, ends / members


def workers(indices: Indices) -> Iterator[tuple[int, int]]:
    """(device, member) of each worker."""
    yield from zip(*(axis.tolist() for axis in np.nonzero(indices)), strict=True)
