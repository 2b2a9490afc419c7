"""Engines that run ONNX models: one seam for what measures models and for what serves them.

Every member has a copy of this file beside its own, so it imports nothing of the package.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Engine = Literal["onnxruntime", "openvino", "openvino-bf16", "openvino-fp16", "tensorrt", "tensorrt-fp16"]
DEFAULT: Engine = "onnxruntime"
# What may take the default's place on a type of device; their answers are compared with the default's.
OTHERS: dict[str, tuple[Engine, ...]] = {
    "cpu": ("openvino", "openvino-bf16", "openvino-fp16"),
    "gpu": ("tensorrt", "tensorrt-fp16"),
}
# Those that compute with half the bits, and in which numbers: they change answers, and are judged by the accuracy left.
HALF: dict[Engine, str] = {"openvino-bf16": "BF16", "openvino-fp16": "FP16", "tensorrt-fp16": "FP16"}
_HINTS = {"": "f32", "bf16": "bf16", "fp16": "f16"}  # OpenVINO's words for them
TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
OUTPUT = "PROBABILITIES"  # a graph may have others, before it too

Array = npt.NDArray[Any]


class NotInstalledError(Exception):
    """An engine is not there; the text names it."""


@dataclass(frozen=True)
class Place:
    """Where a model runs.

    Args:
        threads: Of a call, on CPU cores.
        cores: As many, to keep to; the kernel chooses if there are none.
        gpu: Ordinal of the GPU, else none.
        batch: Samples of a call at most.
    """

    threads: int
    cores: tuple[int, ...]
    gpu: int | None
    batch: int


@dataclass(frozen=True)
class Model:
    """A loaded model with one input, and the output that counts.

    Args:
        dtype: Of its input.
        shape: Of one sample.
        run: Answers float32 (N, C) to samples (N, *shape). They may be read-only, and are not copied on CPUs; the
            answer is the caller's.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    run: Callable[[Array], npt.NDArray[np.float32]]


Loader = Callable[[Path, Place], Model]


def version_of(engine: str) -> str | None:
    """Version of an engine of this Python, none if it is not installed or this machine does not compute so."""
    package, _, precision = engine.partition("-")
    if package == "tensorrt":
        library, runtime = _tensorrt_version(), version_of(DEFAULT)
        return library and runtime and f"{library} in onnxruntime {runtime}"
    for name in (package, f"{package}-gpu"):
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        return found if not precision or precision.upper() in cpu_precisions() else None
    return None


@cache
def cpu_precisions() -> frozenset[str]:
    """Numbers in which this machine's CPU computes, as OpenVINO calls them: FP32, BF16, FP16, …"""
    return frozenset(_import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def why_not(engine: Engine) -> str | None:
    """Why an engine is not there, none if it is."""
    if version_of(engine) is not None:
        return None
    package = engine.partition("-")[0]
    if version_of(package) is None:
        return f"{package} is not installed"
    return f"this CPU does not compute in {HALF[engine]}"


def loader(engine: Engine) -> Loader:
    """Import an engine; what loads models with it. NotInstalledError if it is not there."""
    package, _, precision = engine.partition("-")
    try:
        if package == "onnxruntime":
            return _onnxruntime()
        return _openvino(precision) if package == "openvino" else _tensorrt(precision)
    except ImportError as error:
        raise NotInstalledError(f"the engine {engine} is not installed: {error}") from error


def _onnxruntime() -> Loader:
    import onnxruntime

    def load(path: Path, place: Place) -> Model:
        providers: list[Any] = ["CPUExecutionProvider"]
        if place.gpu is not None:
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": place.gpu}))
        return _session(onnxruntime, path, place, providers)

    return load


def _tensorrt(precision: str) -> Loader:
    """ONNX Runtime with TensorRT, as Triton's backend has it; has not run on a GPU yet."""
    import onnxruntime

    if "TensorrtExecutionProvider" not in onnxruntime.get_available_providers():
        raise ImportError("this ONNX Runtime has no TensorRT")

    def load(path: Path, place: Place) -> Model:
        given = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).get_inputs()[0]
        shapes = tensorrt_shapes(given.name, given.shape[1:], place.batch)
        options = {"device_id": place.gpu, "trt_fp16_enable": precision == "fp16", **shapes}
        cuda = ("CUDAExecutionProvider", {"device_id": place.gpu})
        return _session(
            onnxruntime, path, place, [("TensorrtExecutionProvider", options), cuda, "CPUExecutionProvider"]
        )

    return load


def tensorrt_shapes(name: str, shape: tuple[int, ...] | list[int], batch: int) -> dict[str, str]:
    """Options by which TensorRT builds one engine for calls of 1 to `batch` samples, not one for each number."""
    sample = "x".join(str(size) for size in shape)
    sizes = {"min": 1, "opt": batch, "max": batch}
    return {f"trt_profile_{which}_shapes": f"{name}:{size}x{sample}" for which, size in sizes.items()}


def _session(onnxruntime: Any, path: Path, place: Place, providers: list[Any]) -> Model:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = place.threads, 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # Members of one group of cores share them: a thread that spins takes the core from the others.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if len(place.cores) > 1:  # the calling thread is not in the list, and cores count from 1 in it
        affinities = ";".join(str(core + 1) for core in place.cores[1:])
        options.add_session_config_entry("session.intra_op_thread_affinities", affinities)
    session = onnxruntime.InferenceSession(path, options, providers=providers)
    for provider in (name for name, _ in (each for each in providers if isinstance(each, tuple))):
        if provider not in session.get_providers():
            raise RuntimeError(f"this ONNX Runtime has no {provider}: install onnxruntime-gpu")
    given = session.get_inputs()[0]

    def run(rows: Array) -> npt.NDArray[np.float32]:
        return np.ascontiguousarray(session.run([OUTPUT], {given.name: rows})[0], np.float32)

    return Model(np.dtype(TYPES[given.type]), tuple(given.shape[1:]), run)


def _import_openvino() -> Any:
    # Importing OpenVINO would tell its makers so over the network; without this package of theirs it does not.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def _openvino(precision: str) -> Loader:
    openvino = _import_openvino()
    if precision and precision.upper() not in cpu_precisions():
        raise NotInstalledError(f"the engine openvino-{precision} is not here: this CPU does not compute so")

    def load(path: Path, place: Place) -> Model:
        settings = {
            "INFERENCE_NUM_THREADS": place.threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # the process keeps to its cores already
            "INFERENCE_PRECISION_HINT": _HINTS[precision],  # without it bfloat16 where the CPU has it
        }
        compiled = openvino.Core().compile_model(path, "CPU", settings)
        request, given, answer = compiled.create_infer_request(), compiled.input(0), compiled.output(OUTPUT)
        shape = tuple(size.get_length() for size in list(given.get_partial_shape())[1:])

        def run(rows: Array) -> npt.NDArray[np.float32]:
            return np.ascontiguousarray(request.infer({0: rows}, share_inputs=True)[answer], np.float32)

        return Model(np.dtype(given.get_element_type().to_dtype()), shape, run)

    return load


def _tensorrt_version() -> str | None:
    """As its own library says, 10 and later."""
    try:
        number = ctypes.CDLL("libnvinfer.so.10").getInferLibVersion()
    except (OSError, AttributeError):
        return None
    return f"{number // 10_000}.{number // 100 % 100}.{number % 100}"
