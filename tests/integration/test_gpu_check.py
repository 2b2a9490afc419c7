"""`make gpu-check` without a GPU: the real server loads what it renders, with a CPU core in the GPU's place."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tests.support.native import stand_in

from ensemble_core.allocation.plan import DeviceRow
from ensemble_core.serving.server import TritonServer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def gpu_check() -> ModuleType:
    """The script, as a module."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    specification = importlib.util.spec_from_file_location("gpu_check", ROOT / "benchmarks" / "gpu_check.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    sys.path.remove(str(ROOT / "benchmarks"))
    return module


@pytest.mark.parametrize(("change", "verdict"), [("", "ok"), ("+ np.float32(0.01)", "differs")])
def test_what_is_rendered_for_a_gpu_is_loaded_and_compared(
    gpu_check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, verdict: str
) -> None:
    gpu = DeviceRow(name="gpu0", type="gpu", ordinal=0, cores=(), memory_mib=1000, device_type="gpu-none")
    with TritonServer() as server:
        stand_in(server, monkeypatch, change)
        rows = list(gpu_check.served(server, gpu_check.build(tmp_path), gpu))
    assert [row[:2] for row in rows] == [
        (name, engine) for name in ("convolutions", "dense") for engine in ("onnxruntime", "tensorrt", "tensorrt-fp16")
    ]
    assert [row[-1] for row in rows] == [verdict, verdict, "ok"] * 2


@pytest.mark.skipif(bool(shutil.which("nvidia-smi")), reason="has a GPU")
def test_another_machine_is_told_what_is_needed() -> None:
    done = subprocess.run([sys.executable, "benchmarks/gpu_check.py"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "needs a GPU, and the Triton server in /opt/tritonserver\n"
