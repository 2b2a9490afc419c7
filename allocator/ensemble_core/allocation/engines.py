"""Which engine runs a member on a type of device, at each batch size: what measurements say, beyond their noise.

Every element of the matrix is a process of its own with one batch size, so engines need not agree on one: on CPUs one
may be faster with small batches and another with large ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np

from ensemble_core.allocation.memory import Curve
from ensemble_core.allocation.speeds import BatchTimes
from ensemble_core.engines import DEFAULT, HALF, Engine
from ensemble_core.library.records import Accuracy, BatchProfile, Profile

# Engines are measured in processes one after the other: the least by which one must be faster, however steady it was.
LEAST_GAIN = 0.03


@dataclass(frozen=True)
class Figures:
    """A member on a type of device.

    Args:
        engines: That runs it at a batch size; ONNX Runtime at those that are not named.
        times: Of those engines.
        curve: Memory of those engines.
        curves: Memory by engine, of all that could be chosen.
        accuracies: Of the engines of half precision among these.
    """

    engines: Mapping[int, Engine]
    times: BatchTimes
    curve: Curve
    curves: Mapping[Engine, Curve]
    accuracies: Mapping[Engine, Accuracy] = field(default_factory=dict)

    @classmethod
    def of(cls, profile: Profile, engines: Mapping[int, Engine] | None = None) -> Figures:
        """Of one engine's profile."""
        curve = Curve.of(profile)
        return cls(engines or {}, BatchTimes.of(profile), curve, {cast(Engine, profile.engine): curve})

    def memory(self, engine: Engine, size: int) -> float:
        """MiB of a worker that an engine runs, chosen before perhaps; if it cannot be any more, of what is chosen."""
        return self.curves.get(engine, self.curve).at(size)


def choose(profiles: Mapping[Engine, Profile], batch_sizes: Sequence[int]) -> Figures:
    """The fastest engine at each batch size, ONNX Runtime unless another is faster beyond the noise.

    Half precision is chosen only if it is so much faster than the fastest in float32.

    Args:
        profiles: By engine, ONNX Runtime's among them. Those that were refused do not count.
        batch_sizes: That workers may have. Between those measured, times, memory and noise are interpolated.
    """
    usable = {engine: profile for engine, profile in profiles.items() if profile.refused is None}
    engines = {size: _fastest(usable, size) for size in batch_sizes}
    used = set(engines.values())
    chosen = {size: engine for size, engine in engines.items() if engine != DEFAULT}
    curves = {engine: Curve.of(profile) for engine, profile in usable.items()}
    accuracies = {engine: profile.accuracy for engine, profile in usable.items() if profile.accuracy}
    if len(used) == 1:
        return replace(Figures.of(usable[used.pop()], chosen), curves=curves, accuracies=accuracies)
    return Figures(
        chosen,
        BatchTimes(tuple((size, _seconds(usable[engine], size)) for size, engine in sorted(engines.items()))),
        Curve(tuple((size, curves[engine].at(size)) for size, engine in sorted(engines.items()))),
        curves,
        accuracies,
    )


def _fastest(profiles: Mapping[Engine, Profile], size: int) -> Engine:
    """Of those in float32; one of half precision, which changes answers, must be faster than that, too."""
    float32 = _faster(profiles, DEFAULT, (engine for engine in profiles if engine not in HALF), size)
    return _faster(profiles, float32, (engine for engine in profiles if engine in HALF), size)


def _faster(profiles: Mapping[Engine, Profile], stays: Engine, others: Iterable[Engine], size: int) -> Engine:
    """The fastest of the others that are faster beyond the noise than the engine that stays otherwise."""
    ours = profiles[stays]
    # What other processes took of the device meanwhile, the one that stays could have had.
    disturbed = _between(ours, size, lambda batch: batch.foreign_cores) / ours.cores
    limit = _seconds(ours, size) * max(0.0, 1 - disturbed)
    faster = []
    for engine in others:
        seconds, noise = _seconds(profiles[engine], size), max(_noise(profiles[engine], size), _noise(ours, size))
        if seconds * (1 + max(noise, LEAST_GAIN)) < limit:
            faster.append((seconds, engine))
    return min(faster)[1] if faster else stays


def _seconds(profile: Profile, size: int) -> float:
    return float(BatchTimes.of(profile).seconds([size])[0])


def _noise(profile: Profile, size: int) -> float:
    """By how much passes over the same samples differed, relative to their median."""
    return _between(profile, size, lambda batch: (max(batch.passes) - min(batch.passes)) / batch.seconds)


def _between(profile: Profile, size: int, figure: Callable[[BatchProfile], float]) -> float:
    """A figure of the batch sizes that were measured, at another."""
    batches = sorted(profile.batches, key=lambda batch: batch.batch_size)
    return float(np.interp(size, [batch.batch_size for batch in batches], [figure(batch) for batch in batches]))
