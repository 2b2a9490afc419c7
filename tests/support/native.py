"""A stand-in for Triton's ONNX Runtime backend on GPUs, which the server of the package does not have."""

from __future__ import annotations

import pytest

from ensemble_core.allocation.plan import Plan
from ensemble_core.serving import repository
from ensemble_core.serving.server import TritonServer

MODEL = """
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


def stand_in(server: TritonServer, monkeypatch: pytest.MonkeyPatch, change: str = "") -> None:
    """Let the server run on cores what is rendered for GPUs: samples go to the members, not references to them.

    `change` is Python that follows the answer of each, such as `+ 1`.
    """
    backend = server.folder / "backends" / "onnxruntime"
    backend.mkdir()
    (backend / "model.py").write_text(MODEL.replace("CHANGE", change))
    (backend / "tensors.py").write_text((backend.with_name("member") / "tensors.py").read_text())
    for_gpus = repository.render

    def for_cores(plan: Plan) -> dict[str, str]:
        texts = {path: text.replace("KIND_GPU", "KIND_CPU") for path, text in for_gpus(plan).items()}
        return {path: text.replace("  gpus: 0\n", "") for path, text in texts.items()}

    monkeypatch.setattr(repository, "render", for_cores)
