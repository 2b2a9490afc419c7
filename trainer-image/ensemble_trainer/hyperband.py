"""Asynchronous Hyperband, stopping variant: numbers in, decisions out.

Source: Li et al. 2020 (ASHA), in the stopping variant of Ray Tune's AsyncHyperBandScheduler, which the paper used.
Values are losses: lower is better. A decision depends only on the values recorded earlier at the same rung of the same
bracket, in the driver's sequence order; so it can be repeated from the library's rung files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ensemble_trainer.seeds import hashed


def milestones(grace: int, limit: int, eta: int, bracket: int = 0) -> tuple[int, ...]:
    """Epochs at which a bracket's trials are judged: grace·eta^(k+bracket) ≤ limit, lowest first. Integers only."""
    rungs, milestone = [], grace * eta**bracket
    while milestone <= limit:
        rungs.append(milestone)
        milestone *= eta
    return tuple(rungs)


def keeps(earlier: Sequence[float | None], value: float | None, eta: int) -> bool:
    """Whether a trial goes on.

    Args:
        earlier: Losses recorded before at this rung of this bracket, those of stopped trials included, the new one not;
            none where a loss was not a number.
        value: The trial's loss; none if it is not a number.
        eta: Reduction factor, ≥ 2: about one trial in eta goes on.

    The cut is the 100/eta percentile of `earlier` by linear interpolation (numpy's default). Only a loss above it
    stops: ties and the first arrival go on. A loss that is not a number stops and is left out of later percentiles
    (Ray lets it go on). O(n log n) in the number of earlier losses.
    """
    if value is None or math.isnan(value):
        return False
    known = [-loss for loss in earlier if loss is not None and not math.isnan(loss)]
    # Ray's rule maximises: computed on the negated losses, so that rounding falls as it does there.
    return not known or bool(-value >= np.percentile(known, (1 - 1 / eta) * 100))


def bracket_of(seed: int, trial: int, sizes: Sequence[int]) -> int:
    """A trial's bracket, drawn with probability softmax(number of rungs), from the trial's own hash."""
    weights = [math.exp(size - max(sizes)) for size in sizes]
    point = hashed(seed, trial, "bracket", bits=32) / 2**32 * sum(weights)
    for index, weight in enumerate(weights):
        point -= weight
        if point < 0:
            return index
    return len(sizes) - 1


@dataclass(frozen=True)
class Rule:
    """When trials stop: `brackets[b]` are bracket b's milestones; every trial ends at `limit` epochs at the latest.

    Without milestones (random search) a trial is judged nowhere and trains to the limit.
    """

    brackets: tuple[tuple[int, ...], ...]
    limit: int
    eta: int

    def bracket(self, seed: int, trial: int) -> int:
        return bracket_of(seed, trial, [len(rungs) for rungs in self.brackets])

    def next_epoch(self, bracket: int, done: int) -> int:
        """Epoch to train to after `done` epochs: the next milestone, or the limit, milestone or not."""
        return min((rung for rung in self.brackets[bracket] if rung > done), default=self.limit)

    def goes_on(self, earlier: Sequence[float | None], value: float | None, epoch: int) -> bool:
        return epoch < self.limit and keeps(earlier, value, self.eta)


def async_hyperband(grace: int, limit: int, eta: int, brackets: int) -> Rule:
    """The rule of `async-hyperband`; ValueError if a bracket would have no rung."""
    rungs = tuple(milestones(grace, limit, eta, bracket) for bracket in range(brackets))
    if not all(rungs):
        fitting = sum(map(bool, rungs))
        raise ValueError(f"{brackets} brackets have rungs beyond {limit} epochs; at most {fitting} fit")
    return Rule(rungs, limit, eta)


def full_length(limit: int) -> Rule:
    """The rule of `random`: no trial is stopped early."""
    return Rule(((),), limit, 2)
