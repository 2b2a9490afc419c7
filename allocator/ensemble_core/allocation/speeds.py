"""How fast members are alone on devices: measured at some batch sizes, interpolated between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ensemble_core.allocation.memory import Memory
from ensemble_core.allocation.model import DeviceKind, Floats, Problem
from ensemble_core.library.records import Profile

SAMPLES = 2000  # that a profile's seconds are for


@dataclass(frozen=True)
class BatchTimes:
    """Seconds of one batch of a member alone on a type of device, by batch size.

    Args:
        points: (batch size, seconds of a batch), ascending in batch size, at least one.
    """

    points: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, profile: Profile) -> BatchTimes:
        return cls(tuple(sorted((b.batch_size, b.seconds * b.batch_size / SAMPLES) for b in profile.batches)))

    def seconds(self, counts: Sequence[int] | Floats) -> Floats:
        """Of batches of so many samples: linear between what was measured and beyond it.

        Below the smallest measured the line goes on, but no sample is faster there than at that size. A line through
        all does not do: on CPUs a larger batch may be slower per sample.
        """
        return stretched(np.array([size for size, _ in self.points]), np.array([s for _, s in self.points]), counts)


@dataclass(frozen=True)
class Speeds:
    """Of every member on every device.

    Args:
        kinds: Type of each device, a key of every member's times, length D.
        times: Of each member, length M, by type of device.
    """

    kinds: tuple[str, ...]
    times: tuple[Mapping[str, BatchTimes], ...]

    def at(self, device: int, member: int, batch_size: int) -> float:
        """Samples/s alone."""
        return float(batch_size / self.times[member][self.kinds[device]].seconds([batch_size])[0])


def problem_of(sides: Sequence[DeviceKind], batch_sizes: Sequence[int], speeds: Speeds, memory: Memory) -> Problem:
    """What the model needs, of devices that are GPUs or CPUs."""
    shape = (len(sides), len(speeds.times), len(batch_sizes))
    fast, needs = np.empty(shape), np.empty(shape)
    for device, member in np.ndindex(shape[:2]):
        fast[device, member] = np.array(batch_sizes) / speeds.times[member][speeds.kinds[device]].seconds(batch_sizes)
        needs[device, member] = [memory.need(device, member, size) for size in batch_sizes]
    return Problem.of(tuple(batch_sizes), speeds.kinds, tuple(sides), fast, needs, np.array(memory.capacity))


def stretched(sizes: Floats, values: Floats, counts: Sequence[int] | Floats) -> Floats:
    """Values measured at some sizes, at others: between them linear, beyond the last one the last line.

    Below the first, the first line or the proportion, whichever is more. All in proportion to a single value.
    """
    wanted = np.asarray(counts, float)
    in_proportion = np.asarray(values[0] * wanted / sizes[0])
    if len(sizes) == 1:
        return in_proportion
    first = values[0] + (wanted - sizes[0]) * (values[1] - values[0]) / (sizes[1] - sizes[0])
    last = values[-1] + (wanted - sizes[-1]) * (values[-1] - values[-2]) / (sizes[-1] - sizes[-2])
    inside = np.interp(wanted, sizes, values)
    below = np.maximum(first, in_proportion)
    beyond = np.where(wanted > sizes[-1], np.maximum(last, values[-1]), inside)
    return np.asarray(np.where(wanted < sizes[0], below, beyond))
