"""Six networks that have little in common, as ONNX: how long one takes does not tell how much memory it needs.

Each has the signature of the trainer's procedural image set and random weights that are always the same. They are as
fast as trained ones, for the time of a convolution does not depend on its values.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ensemble_core.library.records import Signature
from ensemble_trainer.procedural import CLASS_NAMES, SIZE

SIGNATURE = Signature(input_type="uint8", input_shape=(SIZE, SIZE, 3), classes=len(CLASS_NAMES))
OPSET, IR_VERSION = 17, 9


class Net:
    """A network that grows from its input: every method appends a layer to what `at` names, and returns the network."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        floats = self._node("Cast", ["INPUT"], to=TensorProto.FLOAT)
        scaled = self._node("Mul", [floats, self._constant(np.float32(1 / 255))])
        self.at = self._node("Transpose", [scaled], perm=[0, 3, 1, 2])
        self.channels = SIGNATURE.input_shape[-1]

    def conv(self, channels: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True) -> Self:
        """A convolution that keeps the size but for its stride."""
        weights = self._drawn(channels, self.channels // groups, kernel, kernel)
        window = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4, "group": groups}
        self.at = self._node("Conv", [self.at, weights, self._drawn(channels)], **window)
        self.channels = channels
        return self._relu() if relu else self

    def separable(self, channels: int, stride: int = 1) -> Self:
        return self.conv(self.channels, 3, stride, groups=self.channels).conv(channels, 1)

    def residual(self, inner: int, groups: int = 1) -> Self:
        """A bottleneck beside which the input passes."""
        before, channels = self.at, self.channels
        self.conv(inner, 1).conv(inner, 3, groups=groups).conv(channels, 1, relu=False)
        self.at = self._node("Add", [self.at, before])
        return self._relu()

    def branches(self, *kernels_and_channels: tuple[int, int]) -> Self:
        """Convolutions of different kernels side by side."""
        before, channels, ends = self.at, self.channels, []
        for kernel, wide in kernels_and_channels:
            self.at, self.channels = before, channels
            ends.append(self.conv(wide, kernel).at)
        self.at, self.channels = self._node("Concat", ends, axis=1), sum(wide for _, wide in kernels_and_channels)
        return self

    def pool(self) -> Self:
        """Half the size."""
        self.at = self._node("MaxPool", [self.at], kernel_shape=[2, 2], strides=[2, 2])
        return self

    def flat(self) -> Self:
        self.at = self._node("Flatten", [self.at])
        return self

    def mean(self) -> Self:
        """One number for each channel."""
        self.at = self._node("GlobalAveragePool", [self.at])
        return self.flat()

    def dense(self, inputs: int, outputs: int, relu: bool = True) -> Self:
        self.at = self._node("Gemm", [self.at, self._drawn(outputs, inputs), self._drawn(outputs)], transB=1)
        return self._relu() if relu else self

    def model(self, inputs: int) -> Any:
        """The network with a classifier of so many inputs at its end."""
        self.dense(inputs, SIGNATURE.classes, relu=False)
        self._nodes.append(helper.make_node("Softmax", [self.at], ["PROBABILITIES"], axis=1))
        given = helper.make_tensor_value_info("INPUT", TensorProto.UINT8, ["N", *SIGNATURE.input_shape])
        answer = helper.make_tensor_value_info("PROBABILITIES", TensorProto.FLOAT, ["N", SIGNATURE.classes])
        graph = helper.make_graph(self._nodes, "network", [given], [answer], self._weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(model)
        return model

    def _relu(self) -> Self:
        self.at = self._node("Relu", [self.at])
        return self

    def _node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        output = f"{kind.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def _drawn(self, *shape: int) -> str:
        """Weights that keep the scale of what they are multiplied with."""
        width = int(np.prod(shape[1:]))
        return self._constant((self._random.standard_normal(shape) * np.sqrt(2 / width)).astype(np.float32))

    def _constant(self, values: Any) -> str:
        name = f"weight{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name


def dense() -> Any:
    """Hardly any convolutions before eight million weights: quick, and large."""
    return Net(1).conv(16, 5, 4).conv(64, 3).pool().flat().dense(64 * 8 * 8, 2048).model(2048)


def separable() -> Any:
    net = Net(2).conv(32, 3, 2).separable(64).separable(96).separable(128, 2).separable(160).separable(256, 2)
    return net.separable(256).mean().model(256)


def branched() -> Any:
    net = Net(3).conv(32, 5, 4).branches((1, 32), (3, 64), (5, 32)).pool().branches((1, 64), (3, 128), (5, 32))
    return net.mean().model(224)


def residual() -> Any:
    net = Net(4).conv(64, 7, 4).conv(128, 3).pool().residual(64).residual(64).residual(64).conv(256, 3)
    return net.residual(96).residual(128).mean().model(256)


def grouped() -> Any:
    net = Net(5).conv(64, 3, 2).pool().conv(128, 3).residual(128, groups=8).residual(128, groups=8).pool()
    return net.conv(256, 3).residual(256, groups=8).residual(256, groups=8).mean().model(256)


def plain() -> Any:
    """Small weights and much work: slow, and neither large nor small."""
    net = Net(6).conv(32, 3).conv(32, 3).pool().conv(64, 3).conv(64, 3).pool().conv(128, 3).conv(128, 3).pool()
    return net.mean().model(128)


NETWORKS: dict[str, Callable[[], Any]] = {
    each.__name__: each for each in (dense, separable, branched, residual, grouped, plain)
}


def write(name: str, path: Path) -> None:
    onnx.save(NETWORKS[name](), path)
