from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ensemble_core.allocation.machine import Machine
from ensemble_core.allocation.rows import device_rows, group_of, memory_remarks
from ensemble_core.api.ensembledeployment import Device, EnsembleDeploymentSpec, SelectionRef
from ensemble_core.devices import Gpu
from ensemble_core.errors import UserError

WHERE = "digits.yaml: spec.devices"
MACHINE = Machine(
    gpus=(Gpu(0, 16_000.0, "gpu-a"), Gpu(1, 80_000.0, "gpu-b")),
    cores=(0, 1, 2, 5, 7),
    memory_mib=6000.0,
    cpu_types={1: "cpu-1c", 2: "cpu-2c"},
)


def devices(*specs: dict[str, Any]) -> tuple[Device, ...]:
    return tuple(Device.model_validate({"name": f"group{i}", **spec}) for i, spec in enumerate(specs))


def test_gpus_come_first_and_core_groups_are_disjoint() -> None:
    spec = devices(
        {"type": "cpu", "count": 1, "coresPerDevice": 2},
        {"type": "gpu", "count": 2},
        {"type": "cpu", "count": 2, "memoryMiB": 500},
    )
    rows = device_rows(WHERE, spec, MACHINE)
    assert [row.name for row in rows] == ["gpu0", "gpu1", "cpu0", "cpu1", "cpu2"]
    reference = SelectionRef(name="digits", budget_name="large")
    assert EnsembleDeploymentSpec(selection_ref=reference, devices=spec).device_names == tuple(row.name for row in rows)
    assert [row.cores for row in rows] == [(), (), (0, 1), (2,), (5,)]
    assert [row.memory_mib for row in rows] == [16_000.0, 80_000.0, 2000.0, 500.0, 500.0]
    assert [row.device_type for row in rows] == ["gpu-a", "gpu-b", "cpu-2c", "cpu-1c", "cpu-1c"]
    assert [group_of(spec, row) for row in rows] == [1, 1, 0, 2, 2]


def test_memory_of_the_spec_wins_over_that_of_the_gpu() -> None:
    assert device_rows(WHERE, devices({"type": "gpu", "memoryMiB": 100}), MACHINE)[0].memory_mib == 100


def test_more_memory_than_there_is_is_told() -> None:
    cores = devices({"type": "cpu", "count": 2, "memoryMiB": 2000}, {"type": "cpu", "memoryMiB": 2001})
    told = "groups of cores: memoryMiB makes 6,001 MiB, more than the 6,000 MiB that are free"
    assert memory_remarks(cores, MACHINE) == [f"{told}: members may run out of memory"]
    assert memory_remarks(devices({"type": "gpu", "count": 2, "memoryMiB": 16_001}), MACHINE) == [
        "gpu0: memoryMiB makes 16,001 MiB, more than the 16,000 MiB that it has: members may run out of memory"
    ]
    enough = devices({"type": "cpu", "count": 3, "memoryMiB": 2000}, {"type": "gpu"}, {"type": "gpu", "count": 1})
    assert memory_remarks(enough, MACHINE) == []


@pytest.mark.parametrize(
    ("spec", "where", "words"),
    [
        (devices({"type": "gpu", "count": 3}), "spec.devices[0].count", ("3 (group0)", "3 GPUs", "2 GPUs")),
        (devices({"type": "gpu", "count": 2}, {"type": "gpu"}), "spec.devices[1].count", ("3 GPUs", "2 GPUs")),
        (devices({"type": "cpu", "count": 6}), "spec.devices[0].count", ("6 cores", "5 cores")),
        (
            devices({"type": "cpu", "count": 2}, {"type": "cpu", "count": 2, "coresPerDevice": 2}),
            "spec.devices[1].count",
            ("2 (group1 of 2 cores)", "6 cores", "5 cores"),
        ),
    ],
)
def test_more_than_there_is(spec: tuple[Device, ...], where: str, words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as refused:
        device_rows(WHERE, spec, MACHINE)
    assert refused.value.where == f"digits.yaml: {where}"
    assert all(word in refused.value.problem for word in words)


def test_on_a_shared_node_only_exclusive_cores_are_kept_to() -> None:
    spec = devices({"type": "gpu"}, {"type": "cpu", "count": 2, "coresPerDevice": 2})
    for cores, pinned in ((5, True), (6, False)):  # a core is requested for each GPU
        node = replace(MACHINE, cores=tuple(range(cores)), shared=True)
        assert {row.pinned for row in device_rows(WHERE, spec, node)} == {pinned}
    assert {row.pinned for row in device_rows(WHERE, spec, replace(MACHINE, cores=tuple(range(6))))} == {True}
