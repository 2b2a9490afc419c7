"""Simulated annealing on the model of the server: many chains at once, so that a step is a few array operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ensemble_core.allocation.model import Floats, Indices, Problem, makespans, picked, spans

TARDINESS = 0.05  # worth of the members' mean end against the last one's: without it most moves would be level
HOT, COLD = 0.02, 2e-4  # temperatures: relative worsening that is accepted with probability 1/e


@dataclass(frozen=True)
class Effort:
    """How long to search: so many chains, with so many proposed moves each."""

    chains: int = 40
    moves: int = 2000


def anneal(problem: Problem, starts: Sequence[Indices], effort: Effort, seed: int) -> list[Indices]:
    """The best matrix of every chain, best first, each once.

    Args:
        problem: Speeds, needs, capacity.
        starts: Matrices that fit; the chains share them evenly.
        effort: How long to search.
        seed: Of the moves.

    A move sets one element, moves a worker to another device, with another member in its place or not, puts a member in
    another's place, or swaps two workers; none leaves a member without a worker or a device without enough memory. CPUs
    that no start uses stay unused beside GPUs. O(chains·moves·M·D·M).
    """
    random = np.random.default_rng(seed)
    state = np.stack([starts[chain % len(starts)] for chain in range(effort.chains)])
    allowed = _allowed(problem, starts)
    speeds, used = picked(problem.speeds, state), problem.used(state)
    score = _score(problem, speeds)
    best, best_score = state.copy(), score.copy()
    chains = np.arange(effort.chains)
    cooling = (COLD / HOT) ** (1 / max(1, effort.moves))
    temperature = HOT
    for _ in range(effort.moves):
        temperature *= cooling
        proposed = _proposals(problem, state, allowed, random)
        touched = np.any(proposed != state, axis=(1, 2)) & np.all((proposed > 0).any(axis=1), axis=1)
        used_then = problem.used(proposed)
        touched &= (used_then <= problem.capacity + 1e-6).all(axis=1)
        trial = chains[touched]
        if not len(trial):
            continue
        faster = picked(problem.speeds, proposed[trial])
        value = _score(problem, faster)
        worse = value / score[trial] - 1
        taken = (worse <= 0) | (random.random(len(trial)) < np.exp(-np.maximum(worse, 0) / temperature))
        into = trial[taken]
        state[into], speeds[into], used[into] = proposed[into], faster[taken], used_then[into]
        score[into] = value[taken]
        record = into[score[into] < best_score[into]]
        best[record], best_score[record] = state[record], score[record]
    order = np.argsort(best_score, kind="stable")
    return list({best[chain].tobytes(): best[chain] for chain in order}.values())


def prune(problem: Problem, indices: Indices, tolerance: float = 1e-4) -> Indices:
    """The matrix without workers that do not help the model: fewer disturb each other less and take less memory."""
    kept = indices.copy()
    base = float(makespans(problem, kept[None])[0][0])
    device, member = np.nonzero(kept)
    for index in np.argsort(picked(problem.speeds, kept)[device, member], kind="stable"):
        d, m = int(device[index]), int(member[index])
        if (kept[:, m] > 0).sum() == 1:
            continue
        without = kept.copy()
        without[d, m] = 0
        time = float(makespans(problem, without[None])[0][0])
        if time <= base * (1 + tolerance):
            kept, base = without, min(time, base)
    return kept


def _score(problem: Problem, speeds: Floats) -> Floats:
    time, mean = spans(speeds, problem.interference)
    return np.asarray(time + TARDINESS * mean)


def _allowed(problem: Problem, starts: Sequence[Indices]) -> Indices:
    """Devices that may be used."""
    gpu = np.array([side == "gpu" for side in problem.sides])
    if not gpu.any():
        return np.arange(problem.devices)
    taken = np.array([(start > 0).any(axis=1) for start in starts]).any(axis=0)
    return np.flatnonzero(gpu | taken)


def _proposals(
    problem: Problem, state: Indices, allowed: Indices, random: np.random.Generator
) -> npt.NDArray[np.int64]:
    """A neighbour of each chain's matrix; the same matrix where the move drawn cannot be made."""
    chains = len(state)
    index = np.arange(chains)
    sizes = len(problem.batch_sizes)
    kind = random.integers(0, 7, chains)
    device, other = allowed[random.integers(0, len(allowed), (2, chains))]
    member, second = random.integers(0, problem.members, (2, chains))
    size, filling = random.integers(0, sizes + 1, (2, chains))
    here, there = state[index, device, member], state[index, other, second]
    proposed = state.copy()
    set_one = kind <= 1
    proposed[index[set_one], device[set_one], member[set_one]] = size[set_one]
    free = state[index, other, member] == 0
    moved = np.isin(kind, (2, 3, 5)) & (here > 0) & free & (size > 0)
    proposed[index[moved], device[moved], member[moved]] = 0
    proposed[index[moved], other[moved], member[moved]] = size[moved]
    absent = state[index, device, second] == 0
    filled = ((moved & (kind == 5)) | ((kind == 6) & (here > 0))) & absent & (filling > 0)
    proposed[index[filled], device[filled], member[filled]] = 0
    proposed[index[filled], device[filled], second[filled]] = filling[filled]
    clear = free & absent
    swapped = (kind == 4) & (here > 0) & (there > 0) & clear & (device != other) & (member != second)
    for row, column, value in ((device, member, 0), (other, second, 0), (other, member, here), (device, second, there)):
        proposed[index[swapped], row[swapped], column[swapped]] = value if isinstance(value, int) else value[swapped]
    return proposed
