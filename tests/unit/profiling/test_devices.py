from __future__ import annotations

import platform
from pathlib import Path

import pytest

from ensemble_core import devices
from ensemble_core.devices import cpu_device_type, gpu_devices, parse_gpus


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("AMD EPYC 7B13 64-Core Processor", "cpu-amd-epyc-7b13-2c"),
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "cpu-intel-xeon-platinum-8481c-2c"),
        ("Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz", "cpu-intel-core-i7-9750h-2c"),
    ],
)
def test_cpu_types_are_model_and_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, expected: str
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nmodel name\t: {model}\nflags\t: fpu\n")
    monkeypatch.setattr(devices, "_CPUINFO", tmp_path / "cpuinfo")
    assert cpu_device_type(2) == expected


def test_a_cpu_without_a_name_goes_by_its_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_CPUINFO", tmp_path / "missing")
    assert cpu_device_type(1) == f"cpu-{platform.machine().replace('_', '-')}-1c"


def test_gpus_are_product_and_memory_in_order() -> None:
    first, second = parse_gpus("NVIDIA A100-SXM4-80GB, 81920\nTesla T4, 15360\n")
    assert (first.ordinal, first.device_type, first.memory_mib) == (0, "gpu-nvidia-a100-sxm4-80gb-81920mib", 81920)
    assert (second.ordinal, second.device_type) == (1, "gpu-tesla-t4-15360mib")


def test_gpus_come_from_nvidia_smi_and_are_none_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_devices() == ()
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771'\n")
    command.chmod(0o755)
    assert [gpu.device_type for gpu in gpu_devices()] == ["gpu-nvidia-h200-143771mib"]
