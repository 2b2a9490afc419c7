"""One search as its driver sees it: the library's files, and the decisions that follow from them.

Every change is a file first and only then acted on; so the state is at any moment what a restart would read.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ensemble_core.api.hposearch import HPOSearchSpec
from ensemble_core.errors import UserError
from ensemble_core.frozen import digest
from ensemble_core.library import names
from ensemble_core.library.library import Library
from ensemble_core.library.records import Claim, Failure, Metrics, Rung
from ensemble_core.library.searches import Fenced, TrialState
from ensemble_core.library.timeline import Span, span
from ensemble_trainer.hyperband import Rule, async_hyperband, full_length
from ensemble_trainer.proposals import Proposer
from ensemble_trainer.space import SearchSpace
from ensemble_trainer.worker import Broken, Published, Reached


@dataclass
class Trial:
    """A trial that was proposed; `ended` once its model is in the library or its failure is recorded."""

    claim: Claim
    rungs: list[Rung] = field(default_factory=list)
    failure: Failure | None = None
    ended: bool = False
    resumed: bool = False  # whether there may be a checkpoint of an earlier process
    losses: int = 0  # processes that died under it since its last rung

    @property
    def number(self) -> int:
        return self.claim.trial

    @property
    def epochs(self) -> int:
        """Epochs done at the last rung."""
        return self.rungs[-1].epoch if self.rungs else 0

    @property
    def trained(self) -> bool:
        """Whether nothing but the export is left."""
        return bool(self.rungs) and not self.rungs[-1].goes_on


class Search:
    """The trials of a search, in the order of their numbers.

    Args:
        library: Where they are kept.
        name: Of the search.
        spec: Its specification.
        space: What is drawn from.
    """

    def __init__(self, library: Library, name: str, spec: HPOSearchSpec, space: SearchSpace) -> None:
        self.library, self.name, self.spec = library, name, spec
        self.rule = stopping_rule(spec)
        self.attempt = 0
        self.began = _began(library, name)
        self.spans: list[Span] = []  # of this attempt
        self._space = space
        self._load()

    def begin(self) -> None:
        """Take over: from here on only what this attempt writes counts. Unfinished trials are claimed anew."""
        self.attempt = self.library.begin_attempt(self.name)
        self._load()
        for trial in self.unfinished():
            trial.claim = trial.claim.model_copy(update={"attempt": self.attempt, "rungs": tuple(trial.rungs)})
            trial.resumed = True
            self._claim(trial.claim)

    def unfinished(self) -> list[Trial]:
        """Trials within `maxTrialCount` that were proposed and have not ended."""
        return [trial for trial in self.trials[: self.spec.max_trial_count] if not trial.ended]

    @property
    def exhausted(self) -> bool:
        """Whether no more trials may be proposed."""
        return len(self.trials) >= self.spec.max_trial_count

    @property
    def ended(self) -> int:
        return sum(trial.ended for trial in self.trials)

    @property
    def failures(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.failure is not None]

    @property
    def models(self) -> int:
        """Models of the library, as far as this driver knows: what other searches add meanwhile comes later."""
        return len(self._digests)

    def digest(self) -> str:
        """The library's digest of the models that this driver knows; any thread may ask."""
        return digest(self._digests.copy())

    def look_again(self) -> None:
        """Read which models the library has by now, those of other searches among them."""
        models = self.library.models()
        self.records = [record for record in models if record.origin.search == self.name]
        self._digests = {record.id: digest(record.document()) for record in models}

    def propose(self) -> Trial:
        """The next trial, claimed for this attempt."""
        number = len(self.trials)
        self.library.check_attempt(self.name, self.attempt)
        proposal = self._proposer.propose(number)
        claim = Claim(
            trial=number,
            attempt=self.attempt,
            sequence=self._next(),
            parameters=proposal.parameters,
            bracket=self.rule.bracket(self.spec.seed, number),
            sampler_attributes=proposal.sampler_attributes,
            study_attributes=proposal.study_attributes,
        )
        self._claim(claim)
        self.trials.append(Trial(claim))
        return self.trials[-1]

    def record_rung(self, trial: Trial, reached: Reached, slot: int) -> Rung:
        """Decide whether the trial goes on, and record both."""
        self.library.check_attempt(self.name, self.attempt)
        value = loss_of(reached.metrics, self.spec.objectives[0].metric)
        earlier = self._recorded.setdefault((trial.claim.bracket, reached.epoch), [])
        rung = Rung(
            epoch=reached.epoch,
            sequence=self._next(),
            value=value,
            goes_on=self.rule.goes_on(earlier, value, reached.epoch),
            metrics=reached.metrics,
            started_at=reached.started_at,
            finished_at=reached.finished_at,
            slot=slot,
            attempt=self.attempt,
        )
        self.library.write_rung(self.name, trial.number, self.attempt, rung)
        earlier.append(value)
        self.spans.append(span(trial.number, rung, f"to epoch {rung.epoch}"))
        trial.rungs.append(rung)
        if not rung.goes_on:
            self._proposer.tell(trial.number, trial.rungs)
        return rung

    def record_failure(self, trial: Trial, broken: Broken, slot: int) -> Failure:
        """Record that the trial has failed for good."""
        self.library.check_attempt(self.name, self.attempt)
        failure = Failure(
            sequence=self._next(),
            reason=broken.reason,
            message=broken.message,
            parameters=trial.claim.parameters,
            started_at=broken.started_at,
            finished_at=broken.finished_at,
            slot=slot,
            attempt=self.attempt,
        )
        self.library.write_failure(self.name, trial.number, self.attempt, failure)
        self.spans.append(span(trial.number, failure, f"failed: {failure.reason}"))
        if not trial.trained:
            self._proposer.tell(trial.number, [])
        trial.failure, trial.ended = failure, True
        return failure

    def note_model(self, trial: Trial, published: Published) -> None:
        """Note that the trial's model is in the library; its worker has written all there is to write."""
        self.spans.append(span(trial.number, published.export, "export"))
        self.records.append(published.record)
        self._digests[published.record.id] = digest(published.record.document())
        trial.ended = True

    def drop_leftovers(self) -> None:
        """Delete checkpoints of trials that have ended: what a kill between publishing and cleaning up leaves."""
        events = map(names.event_of, self.library.store.list(f"trials/{self.name}-"))
        kept = {event[1] for event in events if event and event[0] == self.name and event[3].startswith("checkpoint/")}
        for number in sorted(kept):
            if self.trials[number].ended:
                # Those of attempts that knew it unfinished; this driver need not have begun one.
                self.library.drop_checkpoints(self.name, number, self.trials[number].claim.attempt)

    def _claim(self, claim: Claim) -> None:
        if not self.library.claim(self.name, claim):
            raise Fenced(f"trial {claim.trial} of {self.name} is claimed for attempt {claim.attempt} by someone else")

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def _load(self) -> None:
        """Read all trials; rebuild the rungs' history and the proposer in sequence order."""
        states = self.library.trials(self.name)
        if list(states) != list(range(len(states))):
            missing = min(set(range(len(states))) - set(states))
            path = names.claim(self.name, missing, 1)
            raise UserError(f"{self.library.store.url}/{path}", "is missing, while there are claims of later trials")
        self.look_again()
        published = {record.origin.trial for record in self.records}
        self.trials = [
            Trial(state.claim, list(state.rungs), state.failure, ended=_ended(state) or number in published)
            for number, state in states.items()
        ]
        self._recorded: dict[tuple[int, int], list[float | None]] = {}
        self._sequence = max((claim.claim.sequence for claim in self.trials), default=-1)
        self._proposer = Proposer(self.spec.algorithm.name, self.spec.seed, self._space)
        self._proposer.restore(trial.claim for trial in self.trials)
        for sequence, trial, event in self._events():
            self._sequence = max(self._sequence, sequence)
            if isinstance(event, Rung):
                self._recorded.setdefault((trial.claim.bracket, event.epoch), []).append(event.value)
                if not event.goes_on:
                    self._proposer.tell(trial.number, trial.rungs)
            elif not trial.trained:
                self._proposer.tell(trial.number, [])

    def _events(self) -> Iterator[tuple[int, Trial, Rung | Failure]]:
        events: list[tuple[int, Trial, Rung | Failure]] = []
        for trial in self.trials:
            events += [(rung.sequence, trial, rung) for rung in trial.rungs]
            if trial.failure is not None:
                events.append((trial.failure.sequence, trial, trial.failure))
        yield from sorted(events, key=lambda event: event[0])


def _ended(state: TrialState) -> bool:
    return state.failure is not None or state.removed


def stopping_rule(spec: HPOSearchSpec) -> Rule:
    """The rule of `spec.algorithm`."""
    limit, settings = spec.trainer.max_epochs, spec.algorithm.settings
    if spec.algorithm.name == "random":
        return full_length(limit)
    return async_hyperband(settings.grace_epochs, limit, settings.reduction_factor, settings.brackets)


def loss_of(metrics: Metrics, metric: str) -> float:
    """A metric of quality as a loss: lower is better."""
    return {
        "crossEntropy": metrics.cross_entropy,
        "error": metrics.error,
        "macroF1": 1 - metrics.macro_f1,
        "top5Error": metrics.top5_error,
    }[metric]


# --- what must not change between two runs of a search -------------------------------------------------------------


def remember(library: Library, name: str, spec: HPOSearchSpec) -> float:
    """Store what defines the search on its first start, and compare later.

    Returns:
        When the search was started first, Unix seconds.

    Raises:
        UserError: that names every field that differs from the first start.
    """
    content = {"spec": definition(spec), "startedAt": time.time()}
    library.store.create(names.spec(name), json.dumps(content, indent=1, sort_keys=True).encode())
    check_unchanged(library, name, spec)
    return _began(library, name)


def check_unchanged(library: Library, name: str, spec: HPOSearchSpec) -> None:
    """UserError that names every field that differs from the first start of the search; writes nothing."""
    start, wanted = library.start(name), definition(spec)
    differing = [] if start is None else [key for key in wanted if wanted[key] != start.spec.get(key)]
    if start is not None and differing:
        had = "; ".join(f"{key} {json.dumps(start.spec.get(key))}" for key in differing)
        raise UserError(
            ", ".join(f"spec.{key}" for key in differing),
            f"differs from the first start of search {name} in this library, which had {had}; "
            f"use another name or another library ({library.store.url}/{names.spec(name)})",
        )


def _began(library: Library, name: str) -> float:
    """When the search was started first, Unix seconds; now if it never was."""
    start = library.start(name)
    return time.time() if start is None else start.started_at


def definition(spec: HPOSearchSpec) -> dict[str, Any]:
    """What decides which trials there are and what their values mean; where data lies does not."""
    document = spec.document()
    places = ("storage", "arrays", "imageFolder")
    dataset = {key: value for key, value in document["dataset"].items() if key not in places}
    return {
        "task": document["task"],
        "dataset": dataset,
        "objectives": document["objectives"][:1],
        "algorithm": document["algorithm"],
        "parameters": document.get("parameters", []),
        "trainer": document["trainer"],
        "seed": document["seed"],
    }
