"""Residual networks of the paper's search space: blocks v1, v2 and ResNeXt in four stages.

Sources: He et al. 2015 (v1), He et al. 2016 (v2, pre-activation), Xie et al. 2017 (ResNeXt); Pochelu et al. 2022,
appendix A.2 and Table 5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ensemble_core.frozen import Frozen

Convolution = Literal["v1", "v2", "next"]
ACTIVATIONS: Mapping[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU}
STAGES = 4
LARGE_STEM_FROM = 64  # pixels; the paper keeps ImageNet's stem for 224×224 and replaces it for 32×32
CARDINALITY, GROUP_WIDTH = 32, 4  # ResNeXt's 32×4d: at most 32 groups, of 4 channels in the first stage


class Architecture(Frozen):
    """All that is needed, beside the weights, to build a trained network again: `architecture.json`."""

    family: Literal["resnet"] = "resnet"
    convolution: Convolution
    activation: Literal["tanh", "relu", "elu"]
    stem: Literal["small", "large"]
    stem_filters: int
    stage_filters: int  # of the first stage; doubled at each later one
    blocks: tuple[int, int, int, int]
    input_shape: tuple[int, int, int]  # H, W, C
    input_type: Literal["uint8", "float32"]
    classes: int
    mean: tuple[float, ...]  # per channel, of the training samples, in raw units
    std: tuple[float, ...]

    @classmethod
    def of(cls, parameters: Mapping[str, Any], stem: str, **rest: Any) -> Architecture:
        """The architecture that a trial's hyperparameters describe; `rest` comes from the data set."""
        if stem == "auto":
            stem = "small" if max(rest["input_shape"][:2]) < LARGE_STEM_FROM else "large"
        return cls.model_validate(
            {
                "convolution": parameters["convolution"],
                "activation": parameters["activation"],
                "stem": stem,
                "stem_filters": parameters["stemFilters"],
                "stage_filters": parameters["stageFilters"],
                "blocks": tuple(parameters[f"blocksStage{i}"] for i in range(1, STAGES + 1)),
                **rest,
            }
        )


@dataclass(frozen=True)
class _Shape:
    """One block's channels: in, out, stride, and for ResNeXt the 3×3 convolution's width and groups."""

    inside: int
    out: int
    stride: int
    width: int
    groups: int


def bottleneck(stage_filters: int) -> tuple[int, int]:
    """Width of the first stage's grouped convolution and the number of groups, constant over the stages.

    As in ResNeXt the width is half of the block's output, in at most 32 groups of at least 4 channels; it is rounded
    down to a multiple of the groups, so the groups always divide it.
    """
    half = max(1, stage_filters // 2)
    groups = max(1, min(CARDINALITY, half // GROUP_WIDTH))
    return half - half % groups, groups


def _conv(inside: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inside, out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


def _convolutions(shape: _Shape, grouped: bool) -> list[nn.Conv2d]:
    """The residual branch: two 3×3, or 1×1, grouped 3×3, 1×1. The first 3×3 has the stride."""
    if not grouped:
        return [_conv(shape.inside, shape.out, 3, shape.stride), _conv(shape.out, shape.out, 3)]
    return [
        _conv(shape.inside, shape.width, 1),
        _conv(shape.width, shape.width, 3, shape.stride, shape.groups),
        _conv(shape.width, shape.out, 1),
    ]


class PostActivation(nn.Module):
    """v1 and ResNeXt: convolution, normalisation, activation; the last activation follows the sum."""

    def __init__(self, shape: _Shape, activation: type[nn.Module], grouped: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for convolution in _convolutions(shape, grouped):
            layers += [convolution, nn.BatchNorm2d(convolution.out_channels), activation()]
        self.branch = nn.Sequential(*layers[:-1])
        self.activation = activation()
        self.shortcut: nn.Module = nn.Identity()
        if shape.stride != 1 or shape.inside != shape.out:
            self.shortcut = nn.Sequential(_conv(shape.inside, shape.out, 1, shape.stride), nn.BatchNorm2d(shape.out))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.activation(self.branch(x) + self.shortcut(x))
        return result


class PreActivation(nn.Module):
    """v2: normalisation and activation before each convolution; a projection sees the activated input."""

    def __init__(self, shape: _Shape, activation: type[nn.Module]) -> None:
        super().__init__()
        first, *rest = _convolutions(shape, grouped=False)
        self.before = nn.Sequential(nn.BatchNorm2d(shape.inside), activation())
        layers: list[nn.Module] = [first]
        for convolution in rest:
            layers += [nn.BatchNorm2d(convolution.in_channels), activation(), convolution]
        self.branch = nn.Sequential(*layers)
        self.shortcut: nn.Module | None = None
        if shape.stride != 1 or shape.inside != shape.out:
            self.shortcut = _conv(shape.inside, shape.out, 1, shape.stride)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.before(x)
        carried = x if self.shortcut is None else self.shortcut(activated)
        result: Tensor = self.branch(activated) + carried
        return result


def _stem(architecture: Architecture, activation: type[nn.Module]) -> tuple[list[nn.Module], int]:
    """First layers and by how much they divide the resolution. v2 normalises in its blocks."""
    large = architecture.stem == "large"
    channels, filters = architecture.input_shape[2], architecture.stem_filters
    layers: list[nn.Module] = [_conv(channels, filters, 7, 2) if large else _conv(channels, filters, 3)]
    if architecture.convolution != "v2":
        layers += [nn.BatchNorm2d(filters), activation()]
    if large:
        layers.append(nn.MaxPool2d(3, 2, padding=1))
    return layers, 4 if large else 1


def _shapes(architecture: Architecture, divisor: int) -> list[_Shape]:
    """All blocks in order. A stage from the second on halves the map unless a side is one pixel already."""
    inside, width_groups = architecture.stem_filters, bottleneck(architecture.stage_filters)
    side = -(-min(architecture.input_shape[:2]) // divisor)
    shapes = []
    for stage, blocks in enumerate(architecture.blocks):
        out, width = architecture.stage_filters * 2**stage, width_groups[0] * 2**stage
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 and side > 1 else 1
            side = -(-side // stride)
            shapes.append(_Shape(inside, out, stride, width, width_groups[1]))
            inside = out
    return shapes


class Network(nn.Module):
    """Raw samples in, class probabilities out; preprocessing is part of it.

    `forward` takes [N,H,W,C] in the data set's type and gives softmax probabilities, float32 [N,classes]; training uses
    `logits` on samples that `prepare` has turned into normalised float32 [N,C,H,W].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        activation = ACTIVATIONS[architecture.activation]
        layers, divisor = _stem(architecture, activation)
        shapes = _shapes(architecture, divisor)
        for shape in shapes:
            if architecture.convolution == "v2":
                layers.append(PreActivation(shape, activation))
            else:
                layers.append(PostActivation(shape, activation, grouped=architecture.convolution == "next"))
        if architecture.convolution == "v2":
            layers += [nn.BatchNorm2d(shapes[-1].out), activation()]
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(shapes[-1].out, architecture.classes)]
        self.logits = nn.Sequential(*layers)
        self.register_buffer("mean", _per_channel(architecture.mean))
        self.register_buffer("std", _per_channel(architecture.std))
        self.logits.apply(_initialise)

    def prepare(self, raw: Tensor) -> Tensor:
        return (raw.permute(0, 3, 1, 2).to(torch.float32) - self.mean) / self.std

    def forward(self, raw: Tensor) -> Tensor:
        return torch.softmax(self.logits(self.prepare(raw)), dim=1)


def _per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1)


def _initialise(module: nn.Module) -> None:
    """He's initialisation of convolutions; normalisation starts as the identity, which is torch's default."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def build(architecture: Architecture, seed: int = 0) -> Network:
    """A network with initial weights drawn from `seed`, on the CPU; torch's global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(architecture)


def count_flops(network: Network, architecture: Architecture) -> int:
    """Multiplications and additions of convolutions and linear layers for one sample: 2 per multiply-add."""
    total = 0

    def count(module: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, Tensor)
        total += 2 * output.numel() * weight[0].numel()

    layers: list[Callable[[], None]] = [
        module.register_forward_hook(count).remove
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    sample = torch.zeros((1, *architecture.input_shape), dtype=getattr(torch, architecture.input_type))
    with torch.inference_mode():
        network.eval()(sample.to(network.mean.device))
    for remove in layers:
        remove()
    return total
