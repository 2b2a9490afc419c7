"""Triton Python-based backend `member`: an ONNX model on a group of CPU cores, run by one of the engines there are.

The input SEG int64 [4] is a reference to rows in shared memory: offset in bytes, samples, bytes per sample, number of
the call; the request parameter `shm_key` names the region in /dev/shm. The outputs are PROBABILITIES float32
[samples, classes], and CALL int64 [1] with the number, so that whoever asks knows its own answer.

Model parameters: `engine`, `threads` (of a call), `cores` (comma-separated, as many, to keep to; the kernel chooses if
there are none), `batch` (samples of a call at most).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb
from engines import Place, loader
from rows import Rows
from tensors import tensor


def pin(cores: list[int]) -> None:
    """Keep every thread of this process on the cores; threads made later inherit it."""
    for thread in Path("/proc/self/task").iterdir():
        try:
            os.sched_setaffinity(int(thread.name), cores)
        except ProcessLookupError:
            continue


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        cores = sorted(int(core) for core in parameters["cores"].split(",")) if "cores" in parameters else []
        if cores:
            pin(cores)  # before the engine makes its threads
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self._batch = int(parameters["batch"])
        place = Place(int(parameters["threads"]), tuple(cores), None, self._batch)
        model = loader(parameters["engine"])(path, place)
        self._run = model.run
        self._rows = Rows(model.dtype, model.shape)
        self._row_bytes = int(np.prod(model.shape)) * model.dtype.itemsize
        # Memory is taken now, so that a member that does not fit fails at load.
        self._run(np.zeros((self._batch, *model.shape), model.dtype))
        if len(cores) == 1:
            pin(cores)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            reference = np.from_dlpack(pb.get_input_tensor_by_name(request, "SEG"))
            offset, samples, row_bytes, _ = (int(number) for number in reference)
            if row_bytes != self._row_bytes or not 0 < samples <= self._batch:
                raise ValueError(
                    f"{samples} samples of {row_bytes} bytes; 1 to {self._batch} of {self._row_bytes} can be given"
                )
            rows = self._rows.read(json.loads(request.parameters())["shm_key"], offset, samples)
            return pb.InferenceResponse(
                [tensor("PROBABILITIES", self._run(rows)), tensor("CALL", reference[3:].copy())]
            )
        except Exception as error:  # one request's trouble is that request's answer
            return pb.InferenceResponse(error=pb.TritonError(f"{type(error).__name__}: {error}"))
