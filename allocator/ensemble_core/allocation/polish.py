"""Hill climbing on the linear program of weighted routing, led by its prices."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ensemble_core.allocation.model import Indices, Problem, Routed, crowding, route

TRIES = 8  # changes looked at in a round
ROUNDS = 8
GAIN = 1e-4  # relative, worth a step


def polish(problem: Problem, indices: Indices) -> Indices:
    """A matrix at least as good under weighted routing, changed a worker or two at a time.

    The program's prices tell what a change is worth to first order; the most promising ones are tried in full. At most
    ROUNDS·TRIES linear programs.
    """
    best = route(problem, indices)
    for _ in range(ROUNDS):
        step = next(_better(problem, indices, best), None)
        if step is None:
            return indices
        indices, best = step
    return indices


def _better(problem: Problem, indices: Indices, now: Routed) -> Iterator[tuple[Indices, Routed]]:
    for changed in _changes(problem, indices, now):
        then = route(problem, changed)
        if then.throughput > now.throughput * (1 + GAIN):
            yield changed, then


def _changes(problem: Problem, indices: Indices, now: Routed) -> list[Indices]:
    """The changes of most worth that fit: a worker's batch size, a new worker, or a new one in another's place."""
    used = problem.used(indices)
    counts = (indices > 0).sum(axis=1)
    gpus = np.array([side == "gpu" for side in problem.sides])
    open_ = (gpus | (counts > 0)) if gpus.any() else np.ones(problem.devices, bool)
    value = now.worth[None, :, None] * problem.speeds  # of a device's whole time spent on a member
    options: list[tuple[float, int, int, int, int]] = []  # worth, device, member, size, member that goes
    for device in np.flatnonzero(open_).tolist():
        free = problem.capacity[device] + 1e-6 - used[device]
        own = np.flatnonzero(indices[device]).tolist()
        more = float(crowding(counts[device] + 1, problem.interference))
        for member in range(problem.members):
            place = int(indices[device, member])
            held = problem.needs[device, member, place - 1] if place else 0.0
            spent = now.rates[device, member] / max(problem.speeds[device, member, place - 1], 1e-300) if place else 0.0
            for size in range(len(problem.batch_sizes)):
                need = problem.needs[device, member, size]
                if place:
                    if size != place - 1 and need - held <= free:
                        gain = (value[device, member, size] - value[device, member, place - 1]) * max(spent, 1e-3)
                        options.append((gain, device, member, size, -1))
                    continue
                gain = value[device, member, size] * more - now.price[device]
                if need <= free:
                    options.append((gain, device, member, size, -1))
                for leaving in own:
                    spared = problem.needs[device, leaving, indices[device, leaving] - 1]
                    if need <= free + spared and (indices[:, leaving] > 0).sum() > 1:
                        lost = now.worth[leaving] * now.rates[device, leaving]
                        options.append((gain - lost, device, member, size, leaving))
    options.sort(reverse=True)
    return [_changed(indices, *option[1:]) for option in options[:TRIES]]


def _changed(indices: Indices, device: int, member: int, size: int, leaving: int) -> Indices:
    changed = indices.copy()
    if leaving >= 0:
        changed[device, leaving] = 0
    changed[device, member] = size + 1
    return changed
