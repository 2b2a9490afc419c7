"""The driver: one loop that hands trials to slots, one call per rung, with the next proposal waiting ahead."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ensemble_core.library import names
from ensemble_core.library.records import ModelRecord
from ensemble_core.report import CommandError
from ensemble_trainer.search import Search, Trial
from ensemble_trainer.slots import Lost, Outcome, Ready, Slots
from ensemble_trainer.worker import MAX_MESSAGE, Broken, Order, Published, Reached

MAX_LOSSES = 3
# An error of the device itself leaves its process unable to compute; another trial there would fail as well.
POISON = "CUDA error"


def check_failures(search: Search) -> None:
    """CommandError if more trials have failed than the specification tolerates."""
    failures, allowed = search.failures, search.spec.max_failed_trial_count
    if len(failures) > allowed:
        last = max((trial.failure for trial in failures if trial.failure), key=lambda failure: failure.sequence)
        raise CommandError(
            f"{len(failures)} trials of {search.name} failed, more than maxFailedTrialCount {allowed}; the last: "
            f"{last.reason}: {first_line(last.message)}. The library keeps what is there"
        )


def has_work(search: Search, deadline: float | None) -> bool:
    """Whether anything may be trained or exported."""
    if deadline is not None and time.time() > deadline:
        return any(trial.rungs for trial in search.unfinished())
    return bool(search.unfinished()) or not search.exhausted


def first_line(message: str) -> str:
    return message.split("\n", 1)[0]


@dataclass
class Driver:
    """Runs a search that has begun until nothing is left to do.

    Args:
        search: Its state.
        slots: Where trials run.
        deadline: Unix seconds after which no trial starts; none is no limit.
        changed: Called after every change, and while the slots have nothing to tell.
    """

    search: Search
    slots: Slots
    deadline: float | None = None
    changed: Callable[[], None] = lambda: None
    _waiting: deque[Trial] = field(default_factory=deque, init=False)
    _running: dict[int, Trial] = field(default_factory=dict, init=False)
    _idle: list[int] = field(default_factory=list, init=False)

    def running(self) -> frozenset[int]:
        """Numbers of the trials that occupy a slot; any thread may ask."""
        return frozenset(trial.number for trial in tuple(self._running.values()))

    def run(self) -> None:
        """Raises CommandError when too many trials have failed, Fenced when a newer attempt has begun."""
        self._waiting.extend(self.search.unfinished())
        while True:
            self._hand_out()
            if not self._running and not self._next_is_there():
                return
            # Asked for while the slots are busy: a proposal may take long.
            self._next_is_there()
            for slot, outcome in self.slots.wait():
                self._handle(slot, outcome)
            self.changed()

    def _hand_out(self) -> None:
        while self._idle and self._next_is_there():
            slot = self._idle.pop(0)
            self._running[slot] = self._waiting.popleft()
            self._send(slot)

    def _next_is_there(self) -> bool:
        """Whether a trial waits for a slot; proposes one if need be and allowed."""
        if self.deadline is not None and time.time() > self.deadline:
            self._waiting = deque(trial for trial in self._waiting if trial.rungs or trial.losses)
        elif not self._waiting and not self.search.exhausted:
            self._waiting.append(self.search.propose())
        return bool(self._waiting)

    def _send(self, slot: int) -> None:
        trial = self._running[slot]
        claim = trial.claim
        epoch = trial.epochs if trial.trained else self.search.rule.next_epoch(claim.bracket, trial.epochs)
        order = Order(claim.trial, self.search.attempt, claim.parameters, epoch, slot, trial.resumed)
        (self.slots.finish if trial.trained else self.slots.advance)(slot, order)

    def _handle(self, slot: int, outcome: Outcome) -> None:
        if isinstance(outcome, Ready):
            self._idle.append(slot)
        elif isinstance(outcome, Lost):
            self._lost(slot, outcome)
        elif isinstance(outcome, Reached):
            trial = self._running[slot]
            trial.losses = 0  # it gets on: nodes may come and go under a long trial
            self.search.record_rung(trial, outcome, slot)
            self._send(slot)
        elif isinstance(outcome, Published):
            trial = self._running.pop(slot)
            self._idle.append(slot)
            self.search.note_model(trial, outcome)
            say(published_line(outcome.record, self.search.rule.limit))
        else:
            self._broken(slot, outcome)

    def _broken(self, slot: int, broken: Broken) -> None:
        trial = self._running.pop(slot)
        if POISON in broken.message:
            self.slots.replace(slot)
        else:
            self._idle.append(slot)
        self._fail(trial, broken, slot)

    def _lost(self, slot: int, lost: Lost) -> None:
        """The trial continues elsewhere from its last checkpoint, unless it has lost too many processes."""
        trial = self._running.pop(slot, None)
        if trial is None:
            return
        trial.resumed, trial.losses = True, trial.losses + 1
        if trial.losses <= MAX_LOSSES:
            self._waiting.appendleft(trial)
            return
        message = f"{trial.losses} processes died under it, maybe for want of memory: {lost.message}"
        now = time.time()
        self._fail(trial, Broken("Lost", message[:MAX_MESSAGE], now, now), slot)

    def _fail(self, trial: Trial, broken: Broken, slot: int) -> None:
        self.search.record_failure(trial, broken, slot)
        say(f"{names.trial_id(self.search.name, trial.number)} failed: {broken.reason}: {first_line(broken.message)}")
        check_failures(self.search)


def published_line(record: ModelRecord, limit: int) -> str:
    stopped = "" if record.epochs >= limit else ", stopped early"
    quality = f"cross-entropy {record.validation.cross_entropy:.4f}, error {record.validation.error:.2%}"
    return f"{record.id}: {quality} after {record.epochs:g} of {limit} epochs{stopped}"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
