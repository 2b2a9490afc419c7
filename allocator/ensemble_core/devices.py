"""Names of device types: equal names mean that a measurement on one holds on the other."""

from __future__ import annotations

import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_NVIDIA_SMI_SECONDS = 20


@dataclass(frozen=True)
class Gpu:
    """A GPU that this process sees.

    Args:
        ordinal: Its place among them.
        memory_mib: What it has.
        device_type: Product and memory, for example `gpu-nvidia-h200-143771mib`.
    """

    ordinal: int
    memory_mib: float
    device_type: str


def cpu_device_type(cores: int) -> str:
    """Type of a group of cores of this machine: model and number, for example `cpu-amd-epyc-7b13-2c`."""
    return f"cpu-{_slug(cpu_model())}-{cores}c"


def gpu_devices() -> tuple[Gpu, ...]:
    """GPUs in the order of their ordinals, by `nvidia-smi`; none where there is no such command.

    Unverified on a machine with a GPU. Slices of one GPU (MIG) are not told apart.
    """
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_SMI_SECONDS, check=True).stdout
    except (FileNotFoundError, subprocess.SubprocessError):
        return ()
    return parse_gpus(answer)


def parse_gpus(answer: str) -> tuple[Gpu, ...]:
    """GPUs from lines of `name, MiB`."""
    rows = [line.rpartition(",") for line in answer.splitlines() if line.strip()]
    return tuple(
        Gpu(ordinal, float(memory), f"gpu-{_slug(name)}-{float(memory):.0f}mib")
        for ordinal, (name, _, memory) in enumerate(rows)
    )


def cpu_model() -> str:
    """The product's name as the kernel tells it; the architecture where it tells none."""
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _slug(name: str) -> str:
    """Lower-case letters, digits and dashes; without trademarks, clock speed and empty words."""
    short = re.sub(r"\((r|tm)\)|@.*|\bcpu\b|\bprocessor\b|\b\d+-core\b", " ", name, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9]+", "-", short.lower()).strip("-")
