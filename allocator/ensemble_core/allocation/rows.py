"""Rows of the matrix: the devices of a spec on the machine at hand."""

from __future__ import annotations

from collections.abc import Sequence

from ensemble_core.allocation.machine import Machine
from ensemble_core.allocation.plan import DeviceRow, pins
from ensemble_core.api.ensembledeployment import Device
from ensemble_core.errors import UserError


def device_rows(where: str, devices: Sequence[Device], machine: Machine) -> tuple[DeviceRow, ...]:
    """Rows for the devices of a spec: GPUs first, then groups of cores, each in the spec's order.

    Args:
        where: File and field of the list of devices, for messages.
        devices: Groups of like devices.
        machine: What there is.

    Returns:
        Rows `gpu0…` by ordinal and `cpu0…`, whose cores are disjoint. A CPU row without `memoryMiB` gets an equal share
        of the machine's free memory.

    Raises:
        UserError: more GPUs or cores are asked for than there are.
    """
    rows = [*_gpu_rows(where, devices, machine), *_cpu_rows(where, devices, machine)]
    pinned = pins(sum(max(1, len(row.cores)) for row in rows), len(machine.cores), machine.shared)
    return tuple(row.model_copy(update={"pinned": pinned}) for row in rows)


def memory_remarks(devices: Sequence[Device], machine: Machine) -> list[str]:
    """Where `memoryMiB` says more than there is: members may then run out of memory."""
    remarks = []
    asked = sum(device.count * (device.memory_mib or 0) for device in devices if device.type == "cpu")
    if asked > machine.memory_mib:
        remarks.append(_remark("groups of cores", asked, f"{machine.memory_mib:,.0f} MiB that are free"))
    sizes = [device.memory_mib or 0 for device in devices if device.type == "gpu" for _ in range(device.count)]
    for ordinal, (size, gpu) in enumerate(zip(sizes, machine.gpus, strict=False)):
        if size > gpu.memory_mib:
            remarks.append(_remark(f"gpu{ordinal}", size, f"{gpu.memory_mib:,.0f} MiB that it has"))
    return remarks


def _remark(name: str, asked: int, there: str) -> str:
    return f"{name}: memoryMiB makes {asked:,} MiB, more than the {there}: members may run out of memory"


def _gpu_rows(where: str, devices: Sequence[Device], machine: Machine) -> list[DeviceRow]:
    rows: list[DeviceRow] = []
    for index, device in enumerate(devices):
        if device.type != "gpu":
            continue
        if len(rows) + device.count > len(machine.gpus):
            raise _too_many(where, index, device, _gpus(len(rows) + device.count), _gpus(len(machine.gpus)))
        for ordinal in range(len(rows), len(rows) + device.count):
            gpu = machine.gpus[ordinal]
            rows.append(
                DeviceRow(
                    name=f"gpu{ordinal}",
                    type="gpu",
                    ordinal=ordinal,
                    cores=(),
                    memory_mib=device.memory_mib or gpu.memory_mib,
                    device_type=gpu.device_type,
                )
            )
    return rows


def _cpu_rows(where: str, devices: Sequence[Device], machine: Machine) -> list[DeviceRow]:
    share = machine.memory_mib / max(1, sum(device.count for device in devices if device.type == "cpu"))
    rows: list[DeviceRow] = []
    taken = 0
    for index, device in enumerate(devices):
        if device.type != "cpu":
            continue
        size = device.cores_per_device
        if taken + device.count * size > len(machine.cores):
            asked, there = f"{taken + device.count * size} cores", f"{len(machine.cores)} cores"
            raise _too_many(where, index, device, asked, there)
        for _ in range(device.count):
            rows.append(
                DeviceRow(
                    name=f"cpu{len(rows)}",
                    type="cpu",
                    ordinal=len(rows),
                    cores=machine.cores[taken : taken + size],
                    memory_mib=device.memory_mib or share,
                    device_type=machine.cpu_types[size],
                )
            )
            taken += size
    return rows


def _gpus(count: int) -> str:
    return f"{count} GPU" if count == 1 else f"{count} GPUs"


def _too_many(where: str, index: int, device: Device, asked: str, there: str) -> UserError:
    each = f" of {device.cores_per_device} cores" if device.type == "cpu" and device.cores_per_device > 1 else ""
    return UserError(
        f"{where}[{index}].count",
        f"{device.count} ({device.name}{each}) makes {asked} with those before it, but this process may use {there}",
    )


def group_of(devices: Sequence[Device], row: DeviceRow) -> int:
    """Index in the spec of the group of devices that a row belongs to."""
    before = 0
    for index, device in enumerate(devices):
        if device.type == row.type:
            before += device.count
            if row.ordinal < before:
                return index
    raise ValueError(f"{row.name} belongs to no device of the spec")
