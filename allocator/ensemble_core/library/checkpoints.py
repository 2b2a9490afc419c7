"""Checkpoints of unfinished trials: sets of files under `trials/<trial>/<attempt>/checkpoint/<epoch>/`.

A set counts once its `complete.json`, written last, names all its files with their digests.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from pathlib import Path

from ensemble_core.errors import UserError
from ensemble_core.frozen import Frozen
from ensemble_core.library import names
from ensemble_core.library.parsing import parse
from ensemble_core.library.records import FileDigest
from ensemble_core.library.store import Store, sha256_of

_COMPLETE = "complete.json"
_NAME = re.compile(r"checkpoint/(\d+)/(.+)")


class _Complete(Frozen):
    files: dict[str, FileDigest]


class Checkpoints:
    """The part of a library that lets a trial continue elsewhere."""

    store: Store

    def save_checkpoint(self, search: str, trial: int, attempt: int, epoch: int, folder: Path) -> None:
        """Store the files of a folder (without subfolders), then drop the trial's older checkpoints."""
        base = names.event(search, trial, attempt, f"checkpoint/{epoch}")
        self.store.delete(f"{base}/{_COMPLETE}")  # of an earlier save of the same epoch
        files = {}
        for source in sorted(folder.iterdir()):
            path = f"{base}/{source.name}"
            self.store.upload(path, source)
            files[source.name] = FileDigest(path=path, sha256=sha256_of(source), bytes=source.stat().st_size)
        self.store.write(f"{base}/{_COMPLETE}", json.dumps(_Complete(files=files).document()).encode())
        sets = self._sets(search, trial)
        self._delete([path for key, paths in sets.items() if key < (attempt, epoch) for path in paths])

    def load_checkpoint(self, search: str, trial: int, folder: Path) -> int | None:
        """Copy the files of the newest complete checkpoint into `folder`; its epoch, or None if there is none.

        Newest is the latest epoch of the latest attempt. Damaged sets are passed over.
        """
        sets = self._sets(search, trial)
        for attempt, epoch in sorted(sets, reverse=True):
            complete = names.event(search, trial, attempt, f"checkpoint/{epoch}/{_COMPLETE}")
            if complete in sets[attempt, epoch] and self._fetch(complete, folder):
                return epoch
        return None

    def drop_checkpoints(self, search: str, trial: int, attempt: int) -> None:
        """Delete a trial's checkpoints of attempts up to this one; a later one may need its own."""
        sets = self._sets(search, trial).items()
        self._delete([path for (owner, _), paths in sets if owner <= attempt for path in paths])

    def _sets(self, search: str, trial: int) -> dict[tuple[int, int], list[str]]:
        """The files of all checkpoints of a trial, by attempt and epoch."""
        sets: dict[tuple[int, int], list[str]] = {}
        for path in self.store.list(f"trials/{names.trial_id(search, trial)}/"):
            event = names.event_of(path)
            match = _NAME.fullmatch(event[3]) if event else None
            if event and match:
                sets.setdefault((event[2], int(match[1])), []).append(path)
        return sets

    def _fetch(self, complete: str, folder: Path) -> bool:
        """Whether all files of a set arrived whole; `folder` is changed only then."""
        base = complete.removesuffix(_COMPLETE)
        with tempfile.TemporaryDirectory() as scratch, contextlib.suppress(FileNotFoundError, UserError):
            files = parse(_Complete, self.store.read(complete), f"{self.store.url}/{complete}").files
            for name, digest in files.items():
                if digest.path != f"{base}{name}":
                    return False
                self.store.download(digest.path, Path(scratch) / name)
                if sha256_of(Path(scratch) / name) != digest.sha256:
                    return False
            folder.mkdir(parents=True, exist_ok=True)
            for name in files:
                shutil.move(Path(scratch) / name, folder / name)
            return True
        return False

    def _delete(self, paths: list[str]) -> None:
        # A set must stop being complete before it loses a file.
        for path in sorted(paths, key=lambda p: not p.endswith(f"/{_COMPLETE}")):
            self.store.delete(path)
