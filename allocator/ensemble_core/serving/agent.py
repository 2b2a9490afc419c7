"""Keeps what a server has loaded as the plan of a rendered folder says; the server may run in another container.

Memoryless: every look compares what the server and /proc tell now with the plan, so that a restart of either is no
special case.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ensemble_core.allocation.plan import Plan
from ensemble_core.allocation.shortage import with_workers
from ensemble_core.errors import UserError
from ensemble_core.serving import installation, processes, rendered, repository, sharedmemory
from ensemble_core.serving.control import READY, Control
from ensemble_core.serving.errors import LoadError, ServingError
from ensemble_core.serving.states import ModelState, documents, worker_states
from ensemble_core.serving.waiting import Check, DeadProcesses

LOOK_SECONDS, LONGEST_PAUSE = 2.0, 60.0  # between two looks; the longer if models do not load


@dataclass(frozen=True)
class Seen:
    """A server's models.

    Args:
        identity: Of the server; another one after each start.
        states: READY, LOADING, UNLOADING or UNAVAILABLE, by model.
        configs: Those that the wanted models were loaded with, of the READY ones.
        alive: Python models whose process lives; none if the server's processes cannot be seen from here.
        python: Backends whose models are processes.
    """

    identity: str
    states: Mapping[str, str]
    configs: Mapping[str, Any]
    alive: frozenset[str] | None
    python: frozenset[str] = frozenset({"averaging", "member"})
    reasons: Mapping[str, str] = field(default_factory=dict)  # of being unavailable, by model

    def dead(self, wanted: Mapping[str, Any]) -> frozenset[str]:
        """Wanted models that are ready for the server, and have no process."""
        if self.alive is None:
            return frozenset()
        python = {model for model, config in wanted.items() if config.backend in self.python}
        return frozenset(model for model in python - self.alive if self.states.get(model) == READY)


@dataclass(frozen=True)
class Repairs:
    """Models to load and to unload, by what is wrong with them."""

    foreign: tuple[str, ...] = ()  # belong to no plan
    changed: tuple[str, ...] = ()  # were loaded with another configuration
    dead: tuple[str, ...] = ()  # their process died, which Triton does not notice
    missing: tuple[str, ...] = ()

    @property
    def unload(self) -> tuple[str, ...]:
        return (*self.foreign, *self.changed, *self.dead)  # a load without an unload may do nothing

    @property
    def load(self) -> tuple[str, ...]:
        return (*self.changed, *self.dead, *self.missing)

    @property
    def count(self) -> int:
        """How many there are, apart from the dead ones."""
        return len(self.foreign) + len(self.changed) + len(self.missing)

    def __str__(self) -> str:
        verbs = {"unload": self.foreign, "correct": self.changed, "revive": self.dead, "load": self.missing}
        return "; ".join(f"{verb} {', '.join(models)}" for verb, models in verbs.items() if models)


def find_repairs(wanted: Mapping[str, Any], seen: Seen) -> Repairs:
    """What must be done until exactly the wanted models are loaded as their configurations say (pure)."""
    ready = {model for model, state in seen.states.items() if state == READY}
    changed = {model for model, config in wanted.items() if model in ready and seen.configs[model] != config}
    return Repairs(
        foreign=tuple(sorted(ready - set(wanted))),
        changed=tuple(sorted(changed)),
        dead=tuple(sorted(seen.dead(wanted) - changed)),
        missing=tuple(sorted(set(wanted) - ready)),
    )


class Agent:
    """Looks after one server.

    Args:
        folder: That was rendered.
        control: Of the server.
        tell: Called with `done`, `total`, `note` and `summary` at every look, also when they are what they were.
    """

    def __init__(self, folder: Path, control: Control, tell: Callable[..., None]) -> None:
        self._folder, self._control, self._tell = folder, control, tell
        self._complete: str | None = None  # the server that once had everything
        self._revivals = self._repaired = self._failures = 0
        self._said = ""  # the last note in the log
        self._failure = ""  # the last, until everything is there: reports are rare, and servers that are stuck go away

    def look(self) -> float:
        """Repair what is to be repaired, and tell; returns the seconds until the next look.

        Raises UserError if the folder does not hold a plan any more.
        """
        plan = rendered.read(self._folder).plan
        wanted = repository.configs(plan)
        note = ""
        try:
            seen = self._see(wanted)
            if (repairs := find_repairs(wanted, seen)) != Repairs():
                self._report(plan, wanted, seen, self._after_failure("loading"))
                self._carry_out(plan, seen, repairs)
                self._repaired += repairs.count if self._complete == seen.identity else 0
                seen = self._see(wanted)
            self._complete, self._failures, self._failure = seen.identity, 0, ""
        except (LoadError, UserError) as error:
            self._failures += 1
            note = self._failure = with_workers(str(error), plan)
        except ServingError as error:
            note = self._after_failure(str(error))
        self._say(note)
        self._report(plan, wanted, seen if not note else self._see_what_can_be_seen(wanted), note)
        return float(min(LOOK_SECONDS * 2 ** min(self._failures, 10), LONGEST_PAUSE))

    def _say(self, note: str) -> None:
        """Print why not everything is there, once for each change."""
        if note and note != self._said:
            print(note, flush=True)
        self._said = note

    def _after_failure(self, note: str) -> str:
        return f"{note}, after: {self._failure}" if self._failure else note

    def _see(self, wanted: Mapping[str, Any]) -> Seen:
        identity = self._control.identity()
        if identity is None:
            raise ServingError("waiting for the server")
        told = self._control.index()
        states = {model: each.state for model, each in told.items()}
        ready = [model for model in wanted if states.get(model) == READY]
        near = sharedmemory.is_near(identity)
        return Seen(
            identity=identity,
            states=states,
            configs={model: repository.loaded_config(self._control.config(model)) for model in ready},
            alive=frozenset(processes.stubs(identity, frozenset(wanted))) if near else None,
            python=installation.python_backends(self._folder / rendered.BACKENDS),
            reasons={model: each.reason for model, each in told.items()},
        )

    def _see_what_can_be_seen(self, wanted: Mapping[str, Any]) -> Seen:
        try:
            return self._see(wanted)
        except ServingError:
            return Seen("", {}, {}, None)

    def _carry_out(self, plan: Plan, seen: Seen, repairs: Repairs) -> None:
        print(repairs, flush=True)
        self._revivals += len(repairs.dead)
        try:
            for model in repairs.unload:
                self._control.unload(model)
            rendered.check_weights(plan, repairs.load)
            repository.write(plan, self._folder / rendered.MODELS)
            self._control.load_all(repairs.load, plan.name, _check_of(seen, plan.models))
        except (LoadError, UserError):
            with contextlib.suppress(ServingError):  # the first error is the one to tell
                self._control.unload(plan.name)  # it can answer nobody without all its members: the pod is not ready
            raise

    def _report(self, plan: Plan, wanted: Mapping[str, Any], seen: Seen, note: str) -> None:
        told = {model: ModelState(state, seen.reasons.get(model, "")) for model, state in seen.states.items()}
        states = worker_states(plan, told, seen.dead(wanted), self._failure)
        summary = {
            "loaded": loaded_members(plan, seen),
            "workers": documents(plan, states),
            "revivals": self._revivals,
            "repaired": self._repaired,
        }
        self._tell(done=len(seen.configs), total=len(wanted), note=note, summary=summary)


def _check_of(seen: Seen, models: frozenset[str]) -> Check:
    """What raises StuckError while models load if the process of one is dead, as far as processes can be seen."""
    if seen.alive is None:
        return lambda waiting: None
    return DeadProcesses(sharedmemory.owner(seen.identity), seen.identity, models)


def loaded_members(plan: Plan, seen: Seen) -> list[dict[str, str]]:
    """`{modelId, digest}` of each member of which all workers are loaded; the digest is of what really is."""
    found = []
    for index, member in enumerate(plan.members):
        workers = [plan.model_name(worker) for worker in plan.workers if worker.member == index]
        if all(model in seen.configs for model in workers):
            digest = seen.configs[workers[0]].parameters["sha256"].string_value
            found.append({"modelId": member.model_id, "digest": digest})
    return found
