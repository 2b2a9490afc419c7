"""Finds the shared memory region that an array lies in, so that other processes can be given a reference to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt

FOLDER = "/dev/shm/"


class Region(NamedTuple):
    """A mapping of this process: addresses [start, stop) show `/dev/shm/<key>` from byte `offset` on."""

    start: int
    stop: int
    offset: int
    key: str


def parse(maps: str) -> list[Region]:
    """The regions in the text of `/proc/<pid>/maps` that are shared and whose files still have their names."""
    regions = []
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[1].endswith("s") and fields[5].startswith(FOLDER) and "(deleted)" not in line:
            start, stop = (int(address, 16) for address in fields[0].split("-"))
            regions.append(Region(start, stop, int(fields[2], 16), fields[5].removeprefix(FOLDER)))
    return regions


class Regions:
    """The regions of this process. They are read again only when one is not found, for that takes some 0.1 ms."""

    def __init__(self) -> None:
        self._known: list[Region] = []

    def find(self, array: npt.NDArray[Any]) -> tuple[str, int]:
        """Key of the region that holds a contiguous array, and the array's offset in it in bytes.

        Raises LookupError if the array lies in no region: Triton gives every input to a Python model in one.
        """
        address = array.__array_interface__["data"][0]
        for known in (self._known, None):
            if known is None:
                known = self._known = parse(Path("/proc/self/maps").read_text())
            for region in known:
                if region.start <= address and address + array.nbytes <= region.stop:
                    return region.key, address - region.start + region.offset
        raise LookupError("the input is not in shared memory")
