"""A search's state in the library: attempts, claims, rungs, failures; and the fence between attempts.

A driver takes the next attempt of its search and claims every unfinished trial anew; the claim carries the rungs
that count. From then on only what lies under the new attempt counts, so a driver that was stopped and wakes up
later changes nothing, whatever it still writes.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass

from ensemble_core.errors import UserError
from ensemble_core.library import names
from ensemble_core.library.parsing import parse
from ensemble_core.library.records import Claim, Export, Failure, Rung, SearchStart
from ensemble_core.library.store import Store

_ATTEMPT = re.compile(r"attempt-(\d+)\.json")
_RUNG = re.compile(r"rung-\d+\.json")


class Fenced(Exception):  # noqa: N818 - it names what happened, and is no error of the fenced one
    """A newer attempt of the search has begun: this one must write no more and end."""


@dataclass(frozen=True)
class TrialState:
    """What counts of a trial: its newest claim, with the rungs it took over and those written since, by epoch.

    `removed` says that the model was finished and has been removed by `ensemble library gc`.
    """

    claim: Claim
    rungs: tuple[Rung, ...] = ()
    failure: Failure | None = None
    export: Export | None = None
    removed: bool = False


class Searches:
    """The part of a library that a search's driver writes."""

    store: Store

    def start(self, search: str) -> SearchStart | None:
        """What defines a search, None if it was never started."""
        path = names.spec(search)
        try:
            return parse(SearchStart, self.store.read(path), f"{self.store.url}/{path}")
        except FileNotFoundError:
            return None

    def begin_attempt(self, search: str) -> int:
        """Take the next attempt of a search; unique among all drivers that ever ask."""
        taken = {"host": socket.gethostname(), "process": os.getpid(), "began": time.time()}
        attempt = self.newest_attempt(search) + 1
        while not self.store.create(f"searches/{search}/attempt-{attempt}.json", json.dumps(taken).encode()):
            attempt += 1
        return attempt

    def newest_attempt(self, search: str) -> int:
        """The attempt begun last, 0 if none."""
        found = (_ATTEMPT.fullmatch(path.rpartition("/")[2]) for path in self.store.list(f"searches/{search}/"))
        return max((int(match[1]) for match in found if match), default=0)

    def check_attempt(self, search: str, attempt: int) -> None:
        """Raise Fenced if a newer attempt of the search has begun."""
        if (newest := self.newest_attempt(search)) > attempt:
            raise Fenced(f"{self.store.url}: attempt {newest} of search {search} has taken over from attempt {attempt}")

    def claim(self, search: str, claim: Claim) -> bool:
        """Claim a trial for an attempt; False if this attempt of the trial is claimed already."""
        return self.store.create(names.claim(search, claim.trial, claim.attempt), _json(claim))

    def claims(self, search: str) -> dict[int, Claim]:
        """The newest claim of each trial, by trial."""
        newest = newest_claims(self.store.list(f"trials/{search}-"), search)
        paths = {names.claim(search, trial, attempt): trial for trial, attempt in newest.items()}
        found = self.store.read_many(paths)
        return {paths[path]: self._claim(path, found) for path in sorted(found)}

    def trials(self, search: str) -> dict[int, TrialState]:
        """The state of each trial that was ever claimed, by trial.

        One listing and one concurrent read of all files that count.
        """
        return {trial: self._state(*files) for trial, files in self._trial_files(search).items()}

    def _trial_files(self, search: str) -> dict[int, tuple[str, dict[str, str], dict[str, bytes]]]:
        """Of each trial that was ever claimed: its claim's path, what else counts by name, and the content of all."""
        paths = self.store.list(f"trials/{search}-")
        newest = newest_claims(paths, search)
        claims = {names.claim(search, trial, attempt): trial for trial, attempt in newest.items()}
        files: dict[int, dict[str, str]] = {trial: {} for trial in newest}
        for path in paths:
            event = names.event_of(path)
            if event and event[0] == search and newest.get(event[1]) == event[2] and _counts(event[3]):
                files[event[1]][event[3]] = path
        found = self.store.read_many([*claims, *(path for own in files.values() for path in own.values())])
        return {trial: (claim, files[trial], found) for claim, trial in sorted(claims.items())}

    def _state(self, claim_path: str, own: dict[str, str], found: dict[str, bytes]) -> TrialState:
        """The state of one trial from its claim and the files of the claim's attempt, by name."""
        claim = self._claim(claim_path, found)
        rungs = {rung.epoch: rung for rung in claim.rungs}
        for name, path in own.items():
            if _RUNG.fullmatch(name):
                rung = parse(Rung, found[path], f"{self.store.url}/{path}")
                rungs[rung.epoch] = rung
        failure, export = own.get("failure.json"), own.get("export.json")
        return TrialState(
            claim=claim,
            rungs=tuple(rungs[epoch] for epoch in sorted(rungs)),
            failure=parse(Failure, found[failure], f"{self.store.url}/{failure}") if failure else None,
            export=parse(Export, found[export], f"{self.store.url}/{export}") if export else None,
            removed="removed.json" in own,
        )

    def _claim(self, path: str, found: dict[str, bytes]) -> Claim:
        where = f"{self.store.url}/{path}"
        claim = parse(Claim, found[path], where)
        if (claim.trial, claim.attempt) != (names.claimed(path) or ())[1:]:
            raise UserError(where, f"is the claim of trial {claim.trial} by attempt {claim.attempt}")
        return claim

    def rungs(self, search: str) -> dict[int, tuple[Rung, ...]]:
        """The rungs that count of each trial, by epoch."""
        return {trial: state.rungs for trial, state in self.trials(search).items()}

    def failures(self, search: str) -> dict[int, Failure]:
        """The failures that count, by trial."""
        return {trial: state.failure for trial, state in self.trials(search).items() if state.failure}

    def write_rung(self, search: str, trial: int, attempt: int, rung: Rung) -> None:
        """Record a rung, before it is acted on."""
        self.store.write(names.event(search, trial, attempt, f"rung-{rung.epoch}.json"), _json(rung))

    def write_failure(self, search: str, trial: int, attempt: int, failure: Failure) -> None:
        """Record that a trial has failed for good."""
        self.store.write(names.event(search, trial, attempt, "failure.json"), _json(failure))

    def write_export(self, search: str, trial: int, attempt: int, export: Export) -> None:
        """Record when a trial's model was exported; the first time counts."""
        self.store.create(names.event(search, trial, attempt, "export.json"), _json(export))


def newest_claims(paths: Iterable[str], search: str) -> dict[int, int]:
    """The newest attempt that claimed each trial of a search, from the library's paths."""
    return {trial: attempt for (of, trial), attempt in all_newest_claims(paths).items() if of == search}


def all_newest_claims(paths: Iterable[str]) -> dict[tuple[str, int], int]:
    """The newest attempt that claimed each (search, trial), from the library's paths."""
    newest: dict[tuple[str, int], int] = {}
    for claimed in filter(None, map(names.claimed, paths)):
        newest[claimed[:2]] = max(newest.get(claimed[:2], 0), claimed[2])
    return newest


def _counts(name: str) -> bool:
    return name in ("failure.json", "export.json", "removed.json") or _RUNG.fullmatch(name) is not None


def _json(value: Claim | Rung | Failure | Export) -> bytes:
    return value.model_dump_json(by_alias=True).encode()
