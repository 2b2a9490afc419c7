"""Regions in /dev/shm, and names that tell their owner, so that what a killed process left can be removed.

A name is `ensemble-<PID namespace>-<owner's process id>-<anything>`: containers that share /dev/shm do not take each
other's processes for dead.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

FOLDER = Path("/dev/shm")


def new_prefix() -> str:
    """A prefix for names of this process that no earlier call returned."""
    return f"ensemble-{_namespace()}-{os.getpid()}-{secrets.token_hex(4)}-"


def is_near(prefix: str) -> bool:
    """Whether the owner of a prefix has the PID namespace of this process, so that its processes can be seen."""
    return prefix.startswith(f"ensemble-{_namespace()}-")


def owner(prefix: str) -> int:
    """Process id of a prefix's owner, in the owner's PID namespace."""
    return int(prefix.split("-")[2])


def sweep(prefix: str) -> None:
    """Remove every region whose name starts so. Processes that have it mapped keep it."""
    for path in FOLDER.glob(f"{prefix}*"):
        path.unlink(missing_ok=True)


def sweep_dead(folder: Path = FOLDER) -> None:
    """Remove what owners left who are dead: regions, or in another folder whatever has such names."""
    owned = re.compile(rf"ensemble-{_namespace()}-(\d+)-.+")
    for path in folder.glob(f"ensemble-{_namespace()}-*"):
        match = owned.fullmatch(path.name)
        if match and not Path(f"/proc/{match[1]}").exists():
            with contextlib.suppress(FileNotFoundError):  # another server that starts now sweeps as well
                _remove_own(path)


def _remove_own(path: Path) -> None:
    if path.stat().st_uid != os.getuid():
        return
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


def _namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


class Region:
    """A region of this process; leaving the context removes its name."""

    def __init__(self, size: int) -> None:
        """Raises OSError if /dev/shm has no room for `size` bytes."""
        self.name = f"{new_prefix()}client"
        self.size = size
        descriptor = os.open(FOLDER / self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)  # a full /dev/shm is an error here and not SIGBUS later
            self._map = mmap.mmap(descriptor, size)
        except OSError:
            (FOLDER / self.name).unlink()
            raise
        finally:
            os.close(descriptor)

    def array(self, dtype: npt.DTypeLike, shape: tuple[int, ...], offset: int = 0) -> npt.NDArray[Any]:
        """A view of a part of the region."""
        return np.frombuffer(self._map, dtype, int(np.prod(shape)), offset).reshape(shape)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        (FOLDER / self.name).unlink(missing_ok=True)
