"""What of a library may go: files that no record, selection, allocation or running search refers to; or all of it.

A search runs as long as one of its trials is claimed and has neither a model nor a failure.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ensemble_core.errors import UserError
from ensemble_core.library import names
from ensemble_core.library.inputs import FILES
from ensemble_core.library.library import Library
from ensemble_core.library.records import ModelRecord
from ensemble_core.library.searches import all_newest_claims
from ensemble_core.library.store import LOCK, TEMPORARY, Entry, Store

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
    removals = [
        *_leftovers(library),
        *_replaced_inputs(library),
        *_checkpoints(stored, trials),
        *_stray(files, models, trials),
    ]
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
            if not _kept_again(library, path):
                library.store.delete(path)


def _kept_again(library: Library, path: str) -> bool:
    """Whether these are validation inputs that somebody has begun to keep again since the plan."""
    return path.startswith(FILES) and not any(path in removal.paths for removal in _replaced_inputs(library))


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


def _replaced_inputs(library: Library) -> Iterator[Removal]:
    kept, old = library.inputs(), time.time() - GRACE_SECONDS
    found = {
        path: entry
        for path, entry in library.store.entries(FILES).items()
        if entry.modified <= old and (kept is None or path != kept.file.path)
    }
    if found:
        yield _removal("validation inputs that others have replaced", found)


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


# --- the whole library ----------------------------------------------------------------------------------------------

DELETIONS = 16  # at a time
BATCH = 256  # between two looks at the clock of whoever waits
# What this format writes; whatever else lies in the folder is somebody else's.
_OWNED = re.compile(
    r"library\.json|splits/(validation|heldout)/(ids|labels)\.npy|splits/validation/((no-)?inputs\.json|inputs-[0-9a-f]{16}\.npy)"
    r"|searches/[^/]+/(spec|attempt-\d+)\.json"
    r"|trials/.+-\d{4,}/(claim-\d+\.json|\d+/.+)|models/[^/]+/(record\.json|[^/]+/[^/]+)"
    r"|profiles/[^/]+/[^/]+/[^/]+\.json|(selections|allocations|benchmarks)/[^/]+\.json"
)
_FOLDERS = ("", "splits", "searches", "trials", "models", "profiles", "selections", "allocations", "benchmarks")


@dataclass(frozen=True)
class Deletion:
    """What goes when a search is deleted.

    Args:
        steps: Paths that may go in any order; each step after the one before.
        bytes: Of all of them.
        others: Searches that share the library. As long as there are any, only what is of the deleted one goes.
        nested: Folders that are libraries themselves; nothing in them goes.
    """

    steps: tuple[tuple[str, ...], ...]
    bytes: int
    others: frozenset[str] = frozenset()
    nested: tuple[str, ...] = ()

    @property
    def files(self) -> int:
        return sum(map(len, self.steps))


def deletion(store: Store, search: str) -> Deletion:
    """What goes when the library of a search is deleted; reads only. UserError if this is no library.

    `library.json` goes last: killed at any point, the next plan has the rest.
    """
    entries = store.entries("")
    nested = tuple(path.removesuffix(names.LIBRARY) for path in entries if path.endswith(f"/{names.LIBRARY}"))
    owned = [path for path in entries if _OWNED.fullmatch(path) and not path.startswith(nested)]
    others = frozenset(filter(None, map(_search_of, owned))) - {search}
    own = [path for path in owned if _belongs(path, search)]
    if names.LIBRARY in owned:
        Library.open(store)  # refuses what is of a newer format
        own = own if others else owned
    elif owned and not own:  # what a driver of the search wrote too late would be its own
        raise UserError(store.url, f"is no model library: it has no {names.LIBRARY}, though {owned[0]}")
    steps: dict[int, list[str]] = {step: [] for step in range(4)}
    for path in own:
        steps[_step(path)].append(path)
    size = sum(entries[path].bytes for path in own)
    return Deletion(tuple(tuple(step) for step in steps.values() if step), size, others, nested)


def delete(store: Store, planned: Deletion, progress: Callable[[int], None]) -> None:
    """Carry out a deletion; `progress` is told how many files have gone."""
    if not planned.others:
        _delete_hidden(store, planned.nested)
    gone = 0
    with ThreadPoolExecutor(DELETIONS) as pool:
        for step in planned.steps:
            for start in range(0, len(step), BATCH):
                gone += len(list(pool.map(store.delete, step[start : start + BATCH])))
                progress(gone)


def _delete_hidden(store: Store, nested: tuple[str, ...]) -> None:
    """Unfinished writes and the lock, which only a local folder has."""
    for path in store.leftovers(0.0):
        folder, _, name = path.rpartition("/")
        ours = folder.split("/")[0] in _FOLDERS and not path.startswith(nested)
        if ours and re.fullmatch(rf"{re.escape(TEMPORARY)}[0-9a-f]{{32}}", name):
            store.delete(path)
    if (place := store.local(names.LIBRARY)) is not None:
        place.with_name(LOCK).unlink(missing_ok=True)


def _step(path: str) -> int:
    """Records first, for without them a model is none; then the rest, what tells of the search, and the header."""
    if path == names.LIBRARY:
        return 3
    if path.startswith("searches/"):
        return 2
    return 0 if path.endswith("/record.json") else 1


def _search_of(path: str) -> str | None:
    """The search that wrote a file, as far as its path tells."""
    if path.startswith("searches/"):
        return path.split("/")[1]
    found = names.claimed(path) or names.event_of(path)
    return found[0] if found else None


def _belongs(path: str, search: str) -> bool:
    """Whether a file is of the search alone."""
    parts = path.split("/")
    if parts[0] == "searches":
        return parts[1] == search
    name = parts[-1].removesuffix(".json") if parts[0] == "profiles" else parts[min(1, len(parts) - 1)]
    trial = re.fullmatch(r"(.+)-\d{4,}", name)
    return parts[0] in ("trials", "models", "profiles") and trial is not None and trial[1] == search
