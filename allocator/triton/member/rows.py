"""Reads rows of other processes' shared memory, which stays mapped between calls."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SHARED_MEMORY = Path("/dev/shm")
MOST = 16  # regions that stay mapped: each client's own, and one of the server's for each other request in flight

Version = tuple[int, int]  # number and size of a region's file: regions grow, and names are used again


class Rows:
    """Reads rows from regions of shared memory. Those used last stay mapped until their files are gone."""

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._dtype, self._shape = dtype, shape
        self._maps: dict[str, tuple[Version, mmap.mmap]] = {}  # the one used last is the last

    def read(self, key: str, offset: int, samples: int) -> npt.NDArray[Any]:
        """Rows of a region, without a copy; ValueError if they are not inside it."""
        if "/" in key.removeprefix("/") or offset < 0:
            raise ValueError(f"no region {key!r} with offset {offset}")
        count = samples * int(np.prod(self._shape))
        rows = np.frombuffer(self._mapping(key.removeprefix("/")), self._dtype, count, offset)
        return rows.reshape(samples, *self._shape)

    def _mapping(self, key: str) -> mmap.mmap:
        self._forget_what_is_gone()  # as long as it is mapped, it takes memory
        kept = self._maps.pop(key) if key in self._maps else _mapped(key)
        self._maps[key] = kept
        if len(self._maps) > MOST:
            del self._maps[next(iter(self._maps))]
        return kept[1]

    def _forget_what_is_gone(self) -> None:
        for key, (version, _) in list(self._maps.items()):
            try:
                gone = _version(os.stat(SHARED_MEMORY / key)) != version
            except FileNotFoundError:
                gone = True
            if gone:
                del self._maps[key]


def _mapped(key: str) -> tuple[Version, mmap.mmap]:
    with open(SHARED_MEMORY / key, "rb") as file:
        return _version(os.fstat(file.fileno())), mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)


def _version(status: os.stat_result) -> Version:
    return status.st_ino, status.st_size
