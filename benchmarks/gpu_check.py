"""Whether members on a GPU answer as they should, by ONNX Runtime and by TensorRT: `make gpu-check`.

On a machine with a GPU, in NVIDIA's image of the Triton server: renders plans, has the real server load them, and
compares its answers with those of ONNX Runtime on CPU cores. Then measures the same networks as profiles are measured.
Ends with 1 if anything differs by more than the tolerance or does not work, with 2 if this is not such a machine.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ensemble_core import engines
from ensemble_core.allocation.plan import DeviceRow, Member, Plan, Worker
from ensemble_core.devices import gpu_devices
from ensemble_core.engines import Engine
from ensemble_core.errors import UserError
from ensemble_core.library.records import Metrics, ModelRecord, Origin, Signature
from ensemble_core.profiling.child import AGREEMENT, TOLERANCE
from ensemble_core.profiling.half import Truth
from ensemble_core.profiling.measure import Device, MeasurementError, measure
from ensemble_core.serving import installation
from ensemble_core.serving.client import ask
from ensemble_core.serving.errors import ServingError
from ensemble_core.serving.server import TritonServer
from results import table

SIGNATURE = Signature(input_type="uint8", input_shape=(32, 32, 3), classes=10)
ENGINES: tuple[Engine, ...] = ("onnxruntime", "tensorrt", "tensorrt-fp16")
CLOSE = {"tensorrt-fp16": 2e-2}  # other engines as in profiles
BATCH, SAMPLES = 16, 200  # the last batch is not full
HEAD = ("network", "engine", "loaded in s", "largest difference", "same class", "verdict")


def main() -> int:
    gpus = gpu_devices()
    try:
        server = installation.find()
    except ServingError as error:
        print(error, file=sys.stderr)
        return 2
    if not gpus or server.folder != installation.NVIDIA:
        print(f"needs a GPU, and the Triton server in {installation.NVIDIA}", file=sys.stderr)
        return 2
    gpu = DeviceRow(
        name="gpu0", type="gpu", ordinal=0, cores=(), memory_mib=gpus[0].memory_mib, device_type=gpus[0].device_type
    )
    versions = [f"{engine} {engines.version_of(engine) or 'is not in this Python'}" for engine in ENGINES]
    print(f"{gpu.device_type}, {server.name} {server.version}, {', '.join(versions)}\n")
    with tempfile.TemporaryDirectory() as folder:
        networks = build(Path(folder))
        with TritonServer() as running:
            rows = list(served(running, networks, gpu))
        rows += profiled(networks, gpu)
    print(table(HEAD, rows))
    return 0 if all(row[-1] == "ok" for row in rows) else 1


def build(folder: Path) -> dict[str, Path]:
    """Two small networks with seeded weights: one convolves, the other does not."""
    random = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.asarray(random.normal(size=shape) / np.sqrt(np.prod(shape[1:])), np.float32)

    first = [
        helper.make_node("Cast", ["INPUT"], ["bytes"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["bytes", "most"], ["x"]),
    ]
    last = [helper.make_node("Softmax", ["z"], ["PROBABILITIES"], axis=1)]
    convolves = [
        helper.make_node("Transpose", ["x"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "W1"], ["c1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "W2"], ["c2"], kernel_shape=[3, 3], strides=[2, 2]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "W3"], ["z"], transB=1),
    ]
    multiplies = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Gemm", ["flat", "W1"], ["g1"], transB=1),
        helper.make_node("Relu", ["g1"], ["r1"]),
        helper.make_node("Gemm", ["r1", "W2"], ["z"], transB=1),
    ]
    found = {
        "convolutions": (convolves, {"W1": weights(32, 3, 3, 3), "W2": weights(64, 32, 3, 3), "W3": weights(10, 64)}),
        "dense": (multiplies, {"W1": weights(256, 32 * 32 * 3), "W2": weights(10, 256)}),
    }
    for name, (nodes, constants) in found.items():
        graph = helper.make_graph(
            [*first, *nodes, *last],
            name,
            [helper.make_tensor_value_info("INPUT", TensorProto.UINT8, ["N", *SIGNATURE.input_shape])],
            [helper.make_tensor_value_info("PROBABILITIES", TensorProto.FLOAT, ["N", SIGNATURE.classes])],
            [
                numpy_helper.from_array(each, key)
                for key, each in {**constants, "most": np.array(255, np.float32)}.items()
            ],
        )
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / f"{name}.onnx"
        )
    return {name: folder / f"{name}.onnx" for name in found}


def samples() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(1).integers(0, 256, (SAMPLES, *SIGNATURE.input_shape), np.uint8)


def plan_of(path: Path, gpu: DeviceRow, engine: Engine) -> Plan:
    """A network alone on the GPU, run by an engine."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Plan(
        name="check",
        signature=SIGNATURE,
        segment_size=128,
        max_batch_size=1024,
        members=(Member(model_id=path.stem, weight=1.0, onnx=str(path), sha256=digest),),
        devices=(gpu,),
        workers=(Worker(member=0, device=gpu.name, batch_size=BATCH, engine=engine),),
    )


def served(server: TritonServer, networks: dict[str, Path], gpu: DeviceRow) -> Iterator[tuple[str, ...]]:
    """A row for each network and engine: the server's answers against those of ONNX Runtime on a CPU core."""
    given = samples()
    for name, path in networks.items():
        expected = engines.loader("onnxruntime")(path, engines.Place(1, (), None, SAMPLES)).run(given)
        for engine in ENGINES:
            start = time.perf_counter()
            try:
                server.apply(plan_of(path, gpu, engine))
                seconds = time.perf_counter() - start
                answers = ask(server.url, "check", given)
            except ServingError as error:
                yield name, engine, "-", "-", "-", f"fails: {error}".replace("\n", " ")
                continue
            largest = float(np.abs(answers - expected).max())
            same = float((answers.argmax(axis=1) == expected.argmax(axis=1)).mean())
            close = largest <= CLOSE.get(engine, TOLERANCE["tensorrt"]) and same >= AGREEMENT
            yield name, engine, f"{seconds:.1f}", f"{largest:.2g}", f"{same:.1%}", "ok" if close else "differs"


def truth_of(path: Path) -> Truth:
    """Samples whose classes are those that ONNX Runtime gives them on a CPU."""
    inputs, given = path.with_suffix(".npy"), samples()
    np.save(inputs, given)
    expected = engines.loader("onnxruntime")(path, engines.Place(1, (), None, SAMPLES)).run(given)
    return Truth(
        str(inputs), inputs, hashlib.sha256(inputs.read_bytes()).hexdigest(), expected.argmax(axis=1), expected
    )


def profiled(networks: dict[str, Path], gpu: DeviceRow) -> Iterator[tuple[str, ...]]:
    """A row for each network and engine: whether it can be measured as allocations need it."""
    device = Device(gpu.device_type, tuple(sorted(os.sched_getaffinity(0))), gpu.ordinal)
    quality = Metrics(cross_entropy=0, error=0, macro_f1=0, top5_error=0)
    for name, path in networks.items():
        record = ModelRecord(
            id=name, family="check", hyperparameters={}, validation=quality, origin=Origin(), servable=True, files={}
        )
        for engine in ENGINES:
            truth = truth_of(path) if engine in engines.HALF else None
            try:
                found = measure(record, path, SIGNATURE, device, (8, BATCH), engine, truth)
            except (MeasurementError, UserError) as error:
                yield name, f"{engine}, profile", "-", "-", "-", f"fails: {error}"
                continue
            largest = found.get("largest_difference", 0.0)
            same = 1 - found["accuracy"].changed if "accuracy" in found else found.get("agreement", 1.0)
            told = found.get("refused") or "ok"
            yield name, f"{engine}, profile", f"{found['load_seconds']:.1f}", f"{largest:.2g}", f"{same:.1%}", told


if __name__ == "__main__":
    sys.exit(main())
