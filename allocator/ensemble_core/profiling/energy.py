"""Energy that a device takes, where it tells."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

SAMPLE_MILLISECONDS = 100
MICRO = 1e-6

End = Callable[[], float | None]


def metered(gpu: int | None, root: Path = Path("/")) -> End:
    """Begin to measure. What comes back ends it, and tells the joules since; none where the device does not tell.

    Args:
        gpu: Ordinal of the GPU; of all of the machine's processors if there is none, whatever else runs on them.
        root: Of the file system with `sys`.
    """
    return _of_processors(root / "sys/class/powercap") if gpu is None else _of_gpu(gpu)


def _of_processors(folder: Path) -> End:
    """By the counters that the kernel shows of Intel's and AMD's processors, to root alone in most systems."""
    counters = [path for path in sorted(folder.glob("intel-rapl:*")) if _is_package(path)]
    before = [_read(path / "energy_uj") for path in counters]

    def end() -> float | None:
        total = 0
        for path, first in zip(counters, before, strict=True):
            last, most = _read(path / "energy_uj"), _read(path / "max_energy_range_uj")
            if first is None or last is None or most is None:
                return None
            total += last - first if last >= first else last + most - first  # it begins anew at the most it can show
        return total * MICRO if counters else None

    return end


def _is_package(counter: Path) -> bool:
    """Not a part of a processor, which its package counts too."""
    name = counter / "name"
    return name.is_file() and name.read_text().startswith("package")


def _read(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _of_gpu(ordinal: int) -> End:
    """Mean power, by `nvidia-smi`, times the time. Unverified on a machine with a GPU."""
    query = ["--query-gpu=power.draw", "--format=csv,noheader,nounits", f"--id={ordinal}"]
    start = time.perf_counter()
    try:
        sampler = subprocess.Popen(
            ["nvidia-smi", *query, f"--loop-ms={SAMPLE_MILLISECONDS}"], stdout=subprocess.PIPE, text=True
        )
    except FileNotFoundError:
        return lambda: None

    def end() -> float | None:
        seconds = time.perf_counter() - start
        sampler.terminate()
        return joules(sampler.communicate()[0], seconds)

    return end


def joules(watts: str, seconds: float) -> float | None:
    """From lines of watts, sampled evenly over a time; none if a line is no number, or there is none."""
    try:
        samples = [float(line) for line in watts.split("\n")[:-1]]  # a last line without an end was cut off
    except ValueError:
        return None
    return seconds * sum(samples) / len(samples) if samples else None
