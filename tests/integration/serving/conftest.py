"""Three small ONNX models whose answers NumPy knows, and a Triton server that averages them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ensemble_core.allocation.plan import DeviceRow, Member, Plan, Worker
from ensemble_core.library.records import Signature
from ensemble_core.serving.installation import CHOICE
from ensemble_core.serving.server import TritonServer

SHAPE, CLASSES, FRAGILE_FROM = (8, 8, 1), 10, 200
WEIGHTS = (0.5, 0.3, 0.2)
SIGNATURE = Signature(input_type="uint8", input_shape=SHAPE, classes=CLASSES)
ONNX_TYPES = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}


def build(path: Path, weights: npt.NDArray[np.float32], kind: str) -> None:
    """Save softmax(flatten(x)·W), with two weaknesses: from 200 on a value is an error, from 101 on it takes long."""
    nodes = [
        helper.make_node("Cast", ["INPUT"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["numbers"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "W"], ["scores"]),
        *_zeros_for_small_values(),
        helper.make_node("Add", ["scores", "zeros"], ["quick"]),
        *_zero_after_a_while(),
        helper.make_node("Add", ["quick", "zero"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["PROBABILITIES"], axis=-1),
    ]
    given = helper.make_tensor_value_info("INPUT", ONNX_TYPES[kind], ["N", *SHAPE])
    answer = helper.make_tensor_value_info("PROBABILITIES", TensorProto.FLOAT, ["N", CLASSES])
    constants = {
        "W": weights,
        "table": np.zeros((FRAGILE_FROM, CLASSES), np.float32),
        "quick_up_to": np.int64(100),
        "turns": np.int64(20_000),
        "true": np.array(True),
        "nothing": np.float32(0),
        "none": np.int64(0),
    }
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "net", [given], [answer], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def _zeros_for_small_values() -> list[onnx.NodeProto]:
    """Look the largest value of each sample up in a table of zeros."""
    return [
        helper.make_node("ReduceMax", ["flat"], ["largest"], axes=[1], keepdims=0),
        helper.make_node("Cast", ["largest"], ["row"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "row"], ["zeros"], axis=0),
    ]


def _zero_after_a_while() -> list[onnx.NodeProto]:
    """Add zero to zero as often as the largest value of all samples is above 100, times 20,000."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["go"]), helper.make_node("Add", ["sum", "nothing"], ["next"])],
        "turn",
        [info("turn", TensorProto.INT64, []), info("on", TensorProto.BOOL, []), info("sum", TensorProto.FLOAT, [])],
        [info("go", TensorProto.BOOL, []), info("next", TensorProto.FLOAT, [])],
    )
    return [
        helper.make_node("ReduceMax", ["row"], ["peak"], keepdims=0),
        helper.make_node("Sub", ["peak", "quick_up_to"], ["above"]),
        helper.make_node("Max", ["above", "none"], ["steps"]),
        helper.make_node("Mul", ["steps", "turns"], ["count"]),
        helper.make_node("Loop", ["count", "true", "nothing"], ["zero"], body=body),
    ]


@dataclass(frozen=True)
class Ensemble:
    """Members on disk, and what they answer together."""

    folder: Path
    matrices: tuple[npt.NDArray[np.float32], ...]
    kind: str = "uint8"

    @property
    def signature(self) -> Signature:
        return SIGNATURE.model_copy(update={"input_type": self.kind})

    def member(self, index: int) -> Member:
        path = self.folder / f"m-{index}.onnx"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return Member(model_id=f"m-{index}", weight=WEIGHTS[index], onnx=str(path), sha256=digest)

    def plan(self, *workers: tuple[int, int, int], name: str = "front", **parts: object) -> Plan:
        """A plan of (member, group of cores, batch size)."""
        devices = [
            DeviceRow(name=f"cpu{i}", type="cpu", ordinal=i, cores=(0,), memory_mib=1000, device_type="cpu")
            for i in range(2)
        ]
        plan = Plan(
            name=name,
            signature=self.signature,
            segment_size=128,
            max_batch_size=1000,
            members=tuple(self.member(index) for index in range(3)),
            devices=tuple(devices),
            workers=tuple(Worker(member=m, device=f"cpu{d}", batch_size=b) for m, d, b in workers),
        )
        return Plan.model_validate({**dict(plan), **parts})

    def samples(self, count: int, seed: int = 0) -> npt.NDArray[np.generic]:
        return np.random.default_rng(seed).integers(0, 17, (count, *SHAPE)).astype(self.kind)

    def expected(self, samples: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
        """The members' weighted mean in float64."""
        return np.tensordot(WEIGHTS, self.distributions(samples), 1)

    def disagreement(self, samples: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
        """The weighted mean of the members' divergences from their mean."""
        members = self.distributions(samples)
        return np.tensordot(WEIGHTS, (members * np.log(members / self.expected(samples))).sum(axis=2), 1)

    def distributions(self, samples: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
        """What each member answers, [M, N, C]."""
        scores = samples.reshape(len(samples), -1).astype(np.float64) @ np.array(self.matrices, np.float64)
        exponents = np.exp(scores - scores.max(axis=2, keepdims=True))
        return exponents / exponents.sum(axis=2, keepdims=True)

    def of(self, kind: str, folder: Path) -> Ensemble:
        """The same members for another type of input."""
        for index, matrix in enumerate(self.matrices):
            build(folder / f"m-{index}.onnx", matrix, kind)
        return replace(self, folder=folder, kind=kind)


@pytest.fixture(scope="session")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    random = np.random.default_rng(0)
    matrices = tuple((random.normal(size=(64, CLASSES)) / 20).astype(np.float32) for _ in WEIGHTS)
    folder = tmp_path_factory.mktemp("members")
    return Ensemble(folder, matrices).of("uint8", folder)


@pytest.fixture(scope="module")
def plan(ensemble: Ensemble) -> Plan:
    """Two workers share the first member, the others have one each."""
    return ensemble.plan((0, 0, 32), (0, 1, 48), (1, 1, 128), (2, 0, 16))


@pytest.fixture(scope="module", params=["native", "python"])
def server(plan: Plan, request: pytest.FixtureRequest) -> Iterator[TritonServer]:
    """A server with the plan applied, for each averaging backend; tests leave it so."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(CHOICE, request.param)
        with TritonServer() as running:
            running.apply(plan)
            yield running
