"""`make gpu-check` without a GPU: the real server loads what it renders, with a CPU core in the GPU's place."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ensemble_core.allocation.plan import DeviceRow, Plan
from ensemble_core.serving import repository
from ensemble_core.serving.server import TritonServer

ROOT = Path(__file__).parents[2]
NATIVE = """
import os
import numpy as np
import onnxruntime
import triton_python_backend_utils as pb
from tensors import tensor

class TritonPythonModel:
    def initialize(self, args):
        self.session = onnxruntime.InferenceSession(os.path.join(args["model_repository"], "1", "model.onnx"))

    def execute(self, requests):
        given = [np.from_dlpack(pb.get_input_tensor_by_name(request, "INPUT")) for request in requests]
        answers = [self.session.run(None, {"INPUT": samples})[0] for samples in given]
        return [pb.InferenceResponse([tensor("PROBABILITIES", answer CHANGE)]) for answer in answers]
"""


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
    for_gpus = repository.render

    def for_cores(plan: Plan) -> dict[str, str]:
        texts = {path: text.replace("KIND_GPU", "KIND_CPU") for path, text in for_gpus(plan).items()}
        return {path: text.replace("  gpus: 0\n", "") for path, text in texts.items()}

    monkeypatch.setattr(repository, "render", for_cores)
    gpu = DeviceRow(name="gpu0", type="gpu", ordinal=0, cores=(), memory_mib=1000, device_type="gpu-none")
    with TritonServer() as server:
        native = server.folder / "backends" / "onnxruntime"
        native.mkdir()
        (native / "model.py").write_text(NATIVE.replace("CHANGE", change))
        (native / "tensors.py").write_text((native.with_name("member") / "tensors.py").read_text())
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
