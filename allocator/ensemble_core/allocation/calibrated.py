"""Networks on V100 GPUs with 16 GB, so that a server can be planned and allocators compared without one.

Each network has two figures for time and two for memory, chosen so that the thesis's algorithms give in simulation what
its tables 8.2 and 8.4 report (15 of 19 medians within 25 %). They are no measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ensemble_core.allocation.memory import Curve
from ensemble_core.allocation.model import DeviceKind
from ensemble_core.allocation.speeds import BatchTimes

BATCH_SIZES = (8, 16, 32, 64, 128)
GIB = 1024.0  # MiB


@dataclass(frozen=True)
class Network:
    """A network on a V100.

    Args:
        milliseconds: Of one sample in a large batch.
        half: Batch size at which half of the time is overhead.
        fixed_gib: Memory of framework, context and weights.
        sample_gib: Memory of each sample of a batch.
    """

    milliseconds: float
    half: float
    fixed_gib: float
    sample_gib: float


NETWORKS = {
    "ResNet50": Network(2.2, 2.8, 5.3, 0.016),
    "ResNet101": Network(4.63, 2.8, 5.6, 0.02),
    "DenseNet121": Network(2.5, 3.0, 5.4, 0.02),
    "VGG19": Network(2.7, 1.6, 7.0, 0.02),
    "ResNet152": Network(7.2, 2.5, 5.8, 0.024),
    "ResNet18": Network(0.55, 4.0, 4.4, 0.008),
    "ResNet34": Network(0.95, 4.0, 4.6, 0.009),
    "ResNeXt50": Network(2.0, 2.5, 5.4, 0.018),
    "InceptionV3": Network(1.7, 3.0, 5.1, 0.015),
    "Xception": Network(1.9, 2.5, 5.2, 0.02),
    "VGG16": Network(2.2, 1.6, 6.9, 0.018),
    "MobileNetV2": Network(0.6, 5.0, 4.4, 0.012),
}
ENSEMBLES = {"IMN1": ("ResNet152",), "IMN4": tuple(NETWORKS)[:4], "IMN12": tuple(NETWORKS)}


@dataclass(frozen=True)
class DeviceType:
    """A kind of simulated device.

    Args:
        side: GPU or CPU.
        memory_mib: What it has.
        slowness: Times that a sample takes longer than on a V100.
    """

    side: DeviceKind
    memory_mib: float
    slowness: float


DEVICE_TYPES = {"V100-16GB": DeviceType("gpu", 16 * GIB, 1.0), "CPU": DeviceType("cpu", 200 * GIB, 25.0)}


def pace(network: Network, device: DeviceType, batch_sizes: Sequence[int] = BATCH_SIZES) -> BatchTimes:
    """Seconds of batches: an overhead, the same everywhere, and so much for each sample."""
    each = network.milliseconds / 1000
    return BatchTimes(tuple((size, each * network.half + size * each * device.slowness) for size in batch_sizes))


def curve(network: Network, batch_sizes: Sequence[int] = BATCH_SIZES) -> Curve:
    """Memory of batches."""
    return Curve(tuple((size, GIB * (network.fixed_gib + size * network.sample_gib)) for size in batch_sizes))
