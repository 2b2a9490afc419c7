"""What this process may use of the machine: GPUs, cores of its affinity, free memory of its control group."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ensemble_core.api.ensembledeployment import Device
from ensemble_core.devices import Gpu, cpu_device_type, gpu_devices

MIB = 1 << 20


@dataclass(frozen=True)
class Machine:
    """What there is for devices.

    Args:
        gpus: By ordinal.
        cores: Of the process's affinity, ascending.
        memory_mib: Memory free for new processes.
        cpu_types: Device type of a group of cores, by their number.
        shared: Whether other pods may use the same cores.
    """

    gpus: tuple[Gpu, ...]
    cores: tuple[int, ...]
    memory_mib: float
    cpu_types: dict[int, str]
    shared: bool = False


def this_machine(devices: Sequence[Device]) -> Machine:
    """The machine as far as these devices need it."""
    return Machine(
        gpus=gpu_devices() if any(device.type == "gpu" for device in devices) else (),
        cores=tuple(sorted(os.sched_getaffinity(0))),
        memory_mib=free_memory(),
        cpu_types={size: cpu_device_type(size) for size in {device.cores_per_device for device in devices}},
        shared=in_pod(),
    )


def in_pod() -> bool:
    """Whether this process runs in a pod of Kubernetes, on a node that it may share with others."""
    return "KUBERNETES_SERVICE_HOST" in os.environ


def free_memory(root: Path = Path("/")) -> float:
    """MiB that new processes can take: the machine's, or less where a control group above this process has less.

    Args:
        root: Of the file system with `proc` and `sys`.

    File cache that the kernel would give back counts as free.
    """
    meminfo = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
    machine = float(meminfo["MemAvailable"].split()[0]) / 1024
    return max(0.0, min([machine, *_control_groups(root)]))


def _control_groups(root: Path) -> Iterator[float]:
    """MiB left in each control group with a limit, of version 2 or 1, from this process's up to the top."""
    membership = root / "proc/self/cgroup"
    lines = membership.read_text().splitlines() if membership.exists() else []
    paths = {controllers: path for _, controllers, path in (line.split(":", 2) for line in lines)}
    second, first = root / "sys/fs/cgroup", root / "sys/fs/cgroup/memory"
    yield from _left(second, paths.get("", "/"), ("memory.max", "memory.current", "inactive_file"))
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    yield from _left(first, paths.get("memory", "/"), names)


def _left(top: Path, path: str, names: tuple[str, str, str]) -> Iterator[float]:
    limit_name, usage_name, cache_name = names
    folder = top / path.strip("/")
    for group in (folder, *folder.parents):
        limit, usage, stat = group / limit_name, group / usage_name, group / "memory.stat"
        if limit.is_file() and usage.is_file() and (text := limit.read_text().strip()) != "max":
            counts = dict(line.split() for line in stat.read_text().splitlines()) if stat.is_file() else {}
            yield (int(text) - int(usage.read_text()) + int(counts.get(cache_name, 0))) / MIB
        if group == top:
            return
