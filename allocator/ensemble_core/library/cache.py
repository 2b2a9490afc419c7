"""Verified local copies of a library's files, shared by all processes of a user."""

from __future__ import annotations

import os
import threading
import uuid
from pathlib import Path

from ensemble_core.errors import UserError
from ensemble_core.library.records import FileDigest
from ensemble_core.library.store import TEMPORARY, Store, sha256_of


def cache_folder() -> Path:
    """`$ENSEMBLE_CACHE`, else `ensemble-operator` in the user's cache folder."""
    if given := os.environ.get("ENSEMBLE_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ensemble-operator"


class Verifier:
    """Hands out local files whose content was verified once in this process; thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._verified: dict[str, Path] = {}
        self._lock = threading.Lock()

    def file(self, digest: FileDigest) -> Path:
        """The file in the library where that is a local folder, else a copy named by its digest in the cache.

        Raises UserError that names the file if it is missing, truncated or not what the digest says.
        """
        key = f"{digest.path} {digest.sha256}"
        with self._lock:
            known = self._verified.get(key)
        # A file that was removed since, be it by `gc` or from the cache, is looked for again.
        if known is None or not known.exists():
            known = self._local(digest) or self._cached(digest)
            with self._lock:
                self._verified[key] = known
        return known

    def _local(self, digest: FileDigest) -> Path | None:
        place = self._store.local(digest.path)
        if place is None:
            return None
        if not place.is_file():
            raise UserError(str(place), "is missing")
        self._check(place, digest)
        return place

    def _cached(self, digest: FileDigest) -> Path:
        place = cache_folder() / "sha256" / digest.sha256[:2] / digest.sha256
        if place.is_file() and _matches(place, digest):
            return place
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
        try:
            self._store.download(digest.path, temporary)
            self._check(temporary, digest)
            temporary.replace(place)
        except FileNotFoundError:
            raise UserError(f"{self._store.url}/{digest.path}", "is missing") from None
        finally:
            temporary.unlink(missing_ok=True)
        return place

    def _check(self, place: Path, digest: FileDigest) -> None:
        where = f"{self._store.url}/{digest.path}"
        size = place.stat().st_size
        if size != digest.bytes:
            state = "is truncated" if size < digest.bytes else "has grown"
            raise UserError(where, f"{state}: it has {size} bytes, its record says {digest.bytes}")
        if (found := sha256_of(place)) != digest.sha256:
            raise UserError(where, f"is corrupt: its SHA-256 is {found}, its record says {digest.sha256}")


def _matches(place: Path, digest: FileDigest) -> bool:
    return place.stat().st_size == digest.bytes and sha256_of(place) == digest.sha256
