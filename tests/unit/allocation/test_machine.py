from __future__ import annotations

import os
from pathlib import Path

import pytest

from ensemble_core.allocation.machine import free_memory, this_machine
from ensemble_core.api.ensembledeployment import Device

MIB = 1 << 20


def write(root: Path, files: dict[str, str]) -> Path:
    for path, text in {"proc/meminfo": "MemTotal: 9999999 kB\nMemAvailable: 4096000 kB\n", **files}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


SECOND = {"proc/self/cgroup": "0::/pods/one\n", "sys/fs/cgroup/pods/one/memory.max": "max\n"}


@pytest.mark.parametrize(
    ("files", "mib"),
    [
        ({}, 4000),
        (SECOND, 4000),
        # A limit above this process's group counts; cache that can be given back does not.
        (
            {
                **SECOND,
                "sys/fs/cgroup/pods/memory.max": f"{1000 * MIB}\n",
                "sys/fs/cgroup/pods/memory.current": f"{600 * MIB}\n",
                "sys/fs/cgroup/pods/memory.stat": f"anon 5\ninactive_file {100 * MIB}\n",
            },
            500,
        ),
        # Inside a container its own group is the top.
        ({"sys/fs/cgroup/memory.max": f"{800 * MIB}", "sys/fs/cgroup/memory.current": f"{900 * MIB}"}, 0),
        (
            {
                "proc/self/cgroup": "5:memory:/pods\n",
                "sys/fs/cgroup/memory/pods/memory.limit_in_bytes": f"{300 * MIB}",
                "sys/fs/cgroup/memory/pods/memory.usage_in_bytes": f"{100 * MIB}",
            },
            200,
        ),
    ],
    ids=["no groups", "no limit", "limit above", "container, full", "version 1"],
)
def test_free_memory_respects_control_groups(tmp_path: Path, files: dict[str, str], mib: float) -> None:
    assert free_memory(write(tmp_path, files)) == pytest.approx(mib)


def test_this_machine_has_the_cores_of_the_process() -> None:
    machine = this_machine([Device(name="a", type="cpu"), Device(name="b", type="cpu", cores_per_device=2)])
    assert machine.cores == tuple(sorted(os.sched_getaffinity(0)))
    assert machine.gpus == ()
    assert machine.memory_mib > 0
    assert set(machine.cpu_types) == {1, 2}


@pytest.mark.parametrize("variables", [{}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}])
def test_a_pods_node_may_be_shared(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    monkeypatch.setattr(os, "environ", variables)
    assert this_machine([Device(name="a", type="cpu")]).shared is bool(variables)
