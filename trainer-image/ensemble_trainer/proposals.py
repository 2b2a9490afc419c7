"""Which hyperparameters are tried next: an Optuna study that is rebuilt from the library and proposes the same again.

Before proposal n the sampler is made anew from H(seed, n), so that a proposal depends on nothing but the seed, n, and
the trials told before it in the driver's sequence order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import TrialState, create_trial

from ensemble_core.library.records import Claim, Rung
from ensemble_trainer.seeds import hashed
from ensemble_trainer.space import SearchSpace


@dataclass(frozen=True)
class Proposal:
    """Hyperparameters, and what Optuna must know of them after a restart."""

    parameters: dict[str, Any]
    sampler_attributes: dict[str, Any]
    study_attributes: dict[str, Any]


def _random(seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


# The paper's Hyperband draws at random; an algorithm with another sampler is one more entry.
SAMPLERS: Mapping[str, Callable[[int], BaseSampler]] = {"async-hyperband": _random, "random": _random}


class Proposer:
    """Proposes trials 0, 1, 2, … of a search.

    Args:
        algorithm: `spec.algorithm.name`.
        seed: `spec.seed`.
        space: What is drawn.
    """

    def __init__(self, algorithm: str, seed: int, space: SearchSpace) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._sampler, self._seed, self._space = SAMPLERS[algorithm], seed, space
        self._study = optuna.create_study(direction="minimize", sampler=RandomSampler(seed=0))
        # Optuna has no public way to read and restore what samplers note in the study.
        self._storage, self._id = self._study._storage, self._study._study_id

    def propose(self, number: int) -> Proposal:
        """Proposal `number`; they are asked for in order."""
        self._study.sampler = self._sampler(hashed(self._seed, number, bits=32))  # all that numpy takes
        before = self._storage.get_study_system_attrs(self._id)
        trial = self._study.ask(self._space.distributions())
        if trial.number != number:
            raise ValueError(f"proposal {trial.number} is next, not {number}")
        parameters = self._space.suggest(trial)
        after = self._storage.get_study_system_attrs(self._id)
        return Proposal(
            parameters=parameters,
            sampler_attributes=dict(self._storage.get_trial(trial._trial_id).system_attrs),
            study_attributes={key: after[key] for key in after.keys() - before.keys()},
        )

    def restore(self, claims: Iterable[Claim]) -> None:
        """Take over trials proposed before, in order of their numbers, as running ones."""
        for claim in claims:
            active = self._space.active(claim.parameters)
            self._study.add_trial(
                create_trial(
                    state=TrialState.RUNNING,
                    params={name: claim.parameters[name] for name in active},
                    distributions=active,
                    system_attrs=claim.sampler_attributes,
                )
            )
            for key, value in claim.study_attributes.items():
                self._storage.set_study_system_attr(self._id, key, value)

    def tell(self, number: int, rungs: Iterable[Rung]) -> None:
        """Tell how a trial ended: complete with its last loss, early-stopped ones too; failed if it has none."""
        losses = [(rung.epoch, rung.value) for rung in rungs if rung.value is not None]
        if not losses:
            self._study.tell(number, state=TrialState.FAIL)
            return
        live = optuna.trial.Trial(self._study, number)
        for epoch, loss in losses:
            live.report(loss, epoch)
        self._study.tell(number, losses[-1][1])
