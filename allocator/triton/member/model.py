"""Triton Python-based backend `member`: an ONNX model on a group of CPU cores, run by ONNX Runtime.

The input SEG int64 [3] is a reference to rows in shared memory: offset in bytes, samples, bytes per sample; the request
parameter `shm_key` names the region in /dev/shm. The output is PROBABILITIES float32 [samples, classes].

Model parameters: `threads` (of a call), `cores` (comma-separated, as many, to keep to; the kernel chooses if there are
none), `batch` (samples of a call at most).
"""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import triton_python_backend_utils as pb
from tensors import tensor

SHARED_MEMORY = Path("/dev/shm")
TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}


def pin(cores: list[int]) -> None:
    """Keep every thread of this process on the cores; threads made later inherit it."""
    for thread in Path("/proc/self/task").iterdir():
        try:
            os.sched_setaffinity(int(thread.name), cores)
        except ProcessLookupError:
            continue


def session(path: Path, threads: int, cores: list[int]) -> onnxruntime.InferenceSession:
    """A session with so many threads; if there are cores, each of the further threads is on a core of its own."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # Members of one group of cores share them: a thread that spins takes the core from the others.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if len(cores) > 1:  # the calling thread is not in the list, and cores count from 1 in it
        affinities = ";".join(str(core + 1) for core in cores[1:])
        options.add_session_config_entry("session.intra_op_thread_affinities", affinities)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class Rows:
    """Reads rows from regions of shared memory, which stay mapped between calls."""

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._dtype, self._shape = dtype, shape
        self._maps: dict[str, tuple[tuple[int, int], mmap.mmap]] = {}

    def read(self, key: str, offset: int, samples: int) -> npt.NDArray[Any]:
        """Rows of a region, without a copy; ValueError if they are not inside it."""
        if "/" in key.removeprefix("/") or offset < 0:
            raise ValueError(f"no region {key!r} with offset {offset}")
        count = samples * int(np.prod(self._shape))
        rows = np.frombuffer(self._mapping(key.removeprefix("/")), self._dtype, count, offset)
        return rows.reshape(samples, *self._shape)

    def _mapping(self, key: str) -> mmap.mmap:
        with open(SHARED_MEMORY / key, "rb") as file:
            status = os.fstat(file.fileno())
            version = (status.st_ino, status.st_size)  # regions grow, and names are used again
            if key not in self._maps or self._maps[key][0] != version:
                if len(self._maps) > 1:  # one front model, and the one that replaces it
                    self._maps.clear()
                self._maps[key] = (version, mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ))
        return self._maps[key][1]


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        cores = sorted(int(core) for core in parameters["cores"].split(",")) if "cores" in parameters else []
        if cores:
            pin(cores)  # before the engine makes its threads
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self._session = session(path, int(parameters["threads"]), cores)
        given = self._session.get_inputs()[0]
        self._input, self._batch = given.name, int(parameters["batch"])
        dtype, shape = np.dtype(TYPES[given.type]), tuple(given.shape[1:])
        self._rows = Rows(dtype, shape)
        self._row_bytes = int(np.prod(shape)) * dtype.itemsize
        # Memory is taken now, so that a member that does not fit fails at load.
        self._run(np.zeros((self._batch, *shape), dtype))
        if len(cores) == 1:
            pin(cores)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            reference = np.from_dlpack(pb.get_input_tensor_by_name(request, "SEG"))
            offset, samples, row_bytes = (int(number) for number in reference)
            if row_bytes != self._row_bytes or not 0 < samples <= self._batch:
                raise ValueError(
                    f"{samples} samples of {row_bytes} bytes; 1 to {self._batch} of {self._row_bytes} can be given"
                )
            rows = self._rows.read(json.loads(request.parameters())["shm_key"], offset, samples)
            return pb.InferenceResponse([tensor("PROBABILITIES", self._run(rows))])
        except Exception as error:  # one request's trouble is that request's answer
            return pb.InferenceResponse(error=pb.TritonError(f"{type(error).__name__}: {error}"))

    def _run(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        return np.ascontiguousarray(self._session.run(None, {self._input: rows})[0], np.float32)
