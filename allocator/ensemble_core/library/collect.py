"""What of a library may go: files that no record, selection, allocation or running search refers to.

A search runs as long as one of its trials is claimed and has neither a model nor a failure.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ensemble_core.library import names
from ensemble_core.library.library import Library
from ensemble_core.library.records import ModelRecord
from ensemble_core.library.searches import all_newest_claims
from ensemble_core.library.store import Entry

GRACE_SECONDS = 86_400.0  # younger files without an owner may belong to a write under way
_ENDS = ("failure.json", "removed.json")
# A selection also lists what it looked at and did not pick; only what it picked counts.
_NOT_PICKED = ("models", "paths")


@dataclass(frozen=True)
class Removal:
    """Files that go together, in the order in which they are deleted."""

    reason: str
    paths: tuple[str, ...]
    bytes: int
    tombstone: str | None = None  # written before: the trial has ended although its model is gone


@dataclass(frozen=True)
class _Trials:
    """Trials by the id that their models have."""

    claimed: dict[str, tuple[str, int]]  # to (search, newest attempt)
    ended: frozenset[str]

    def running(self, model_id: str) -> bool:
        """Whether the trial of this id is under way."""
        return model_id in self.claimed and model_id not in self.ended

    def running_searches(self) -> frozenset[str]:
        return frozenset(search for trial, (search, _) in self.claimed.items() if trial not in self.ended)


def plan(library: Library, unreferenced: bool = False) -> tuple[Removal, ...]:
    """What can be removed; reads only. UserError if a record cannot be read: then nothing is safe to remove.

    Args:
        unreferenced: Also models that no selection and no allocation of this library picked and whose search has ended.
    """
    models = {record.id: record for record in library.models()}
    stored, files = library.store.entries("trials/"), library.store.entries("models/")
    trials = _trials(stored, models)
    removals = [*_leftovers(library), *_checkpoints(stored, trials), *_stray(files, models, trials)]
    if unreferenced:
        picked = set(_picked(library))
        running = trials.running_searches()
        free = [m for m in models.values() if m.id not in picked and m.origin.search not in running]
        profiles = library.store.entries("profiles/") if free else {}
        removals += [_whole(record, {**files, **profiles}, trials) for record in free]
    return tuple(removals)


def remove(library: Library, removals: Iterable[Removal]) -> None:
    """Carry out a plan; killed at any point, the next plan has the rest."""
    for removal in removals:
        if removal.tombstone:
            library.store.write(removal.tombstone, b"{}")
        for path in removal.paths:
            library.store.delete(path)


def _trials(stored: Mapping[str, Entry], models: Mapping[str, ModelRecord]) -> _Trials:
    newest = all_newest_claims(stored)
    claimed = {names.trial_id(search, trial): (search, attempt) for (search, trial), attempt in newest.items()}
    events = filter(None, map(names.event_of, stored))
    ended = {names.trial_id(s, t) for s, t, attempt, name in events if newest.get((s, t)) == attempt and name in _ENDS}
    return _Trials(claimed, frozenset(ended | set(models)))


def _leftovers(library: Library) -> Iterator[Removal]:
    found = library.store.leftovers(GRACE_SECONDS)
    if found:
        yield _removal("unfinished writes, older than a day", found)


def _checkpoints(stored: Mapping[str, Entry], trials: _Trials) -> Iterator[Removal]:
    found: dict[str, dict[str, Entry]] = {}
    for path, entry in stored.items():
        event = names.event_of(path)
        if event and event[3].startswith("checkpoint/") and names.trial_id(*event[:2]) in trials.ended:
            found.setdefault(names.trial_id(*event[:2]), {})[path] = entry
    for trial, entries in found.items():
        yield _removal(f"checkpoints of {trial}, which has ended", entries)


def _stray(files: Mapping[str, Entry], models: Mapping[str, ModelRecord], trials: _Trials) -> Iterator[Removal]:
    """Files beside models that no record names: of attempts that were overtaken, or of imports that were cut short."""
    found: dict[str, dict[str, Entry]] = {}
    for path, entry in files.items():
        model_id = path.split("/")[1]
        record = models.get(model_id)
        kept = {names.record(model_id), *(file.path for file in record.files.values())} if record else set()
        if path not in kept and not trials.running(model_id):
            found.setdefault(model_id, {})[path] = entry
    old = time.time() - GRACE_SECONDS
    for model_id, entries in found.items():
        if model_id in trials.claimed or all(entry.modified <= old for entry in entries.values()):
            yield _removal(f"files of {model_id} that no record names", entries)


def _picked(library: Library) -> Iterator[str]:
    for result in library.results("selections").values():
        yield from _strings({key: value for key, value in result.items() if key not in _NOT_PICKED})
    for result in library.results("allocations").values():
        yield from _strings(result)


def _strings(content: Any) -> Iterator[str]:
    """All strings in a JSON value but those under a selection's candidates and paths."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for item in content:
            yield from _strings(item)
    elif isinstance(content, dict):
        for key, value in content.items():
            if key not in _NOT_PICKED:
                yield from _strings(value)


def _whole(record: ModelRecord, files: Mapping[str, Entry], trials: _Trials) -> Removal:
    own = {p: e for p, e in files.items() if p.startswith(f"models/{record.id}/") or p.endswith(f"/{record.id}.json")}
    tombstone = None
    if record.id in trials.claimed and record.origin.trial is not None:
        search, attempt = trials.claimed[record.id]
        tombstone = names.event(search, record.origin.trial, attempt, "removed.json")
    return _removal(f"model {record.id}, which nothing refers to", own, tombstone)


def _removal(reason: str, entries: Mapping[str, Entry], tombstone: str | None = None) -> Removal:
    # A set stops being one before it loses a file.
    paths = sorted(entries, key=lambda path: (not path.endswith(("/record.json", "/complete.json")), path))
    return Removal(reason, tuple(paths), sum(entry.bytes for entry in entries.values()), tombstone)
