"""What members take on devices: measured at some batch sizes, estimated on the safe side at the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ensemble_core.allocation.matrix import Matrix
from ensemble_core.library.records import Profile


@dataclass(frozen=True)
class Curve:
    """Peak memory of one member on one type of device, by batch size.

    Args:
        points: (batch size, MiB), ascending in batch size, at least one.
    """

    points: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, profile: Profile) -> Curve:
        return cls(tuple(sorted((batch.batch_size, batch.memory_mib) for batch in profile.batches)))

    def at(self, batch_size: int) -> float:
        """MiB at a batch size, on the safe side of what was measured.

        Linear between two measurements; the smallest one's value below it; beyond the largest, the line through the
        last two, or a proportional rise if there is only one, but never less than the largest measured.
        """
        (first, smallest), (last, largest) = self.points[0], self.points[-1]
        if batch_size <= first:
            return smallest
        if batch_size > last:
            most = max(mib for _, mib in self.points)
            many = len(self.points) > 1
            line = _line(self.points[-2], self.points[-1], batch_size) if many else largest * batch_size / last
            return max(most, line)
        pairs = zip(self.points, self.points[1:], strict=False)
        return next(_line(low, high, batch_size) for low, high in pairs if batch_size <= high[0])


def _line(low: tuple[int, float], high: tuple[int, float], batch_size: int) -> float:
    return low[1] + (high[1] - low[1]) * (batch_size - low[0]) / (high[0] - low[0])


@dataclass(frozen=True)
class Memory:
    """Capacity of every device and need of every member on it.

    Args:
        capacity: MiB of each device, length D.
        kinds: Type of each device, a key of every member's curves, length D.
        curves: Of each member, length M, by type of device.
    """

    capacity: tuple[float, ...]
    kinds: tuple[str, ...]
    curves: tuple[Mapping[str, Curve], ...]

    def need(self, device: int, member: int, batch_size: int) -> float:
        """MiB of one worker."""
        return self.curves[member][self.kinds[device]].at(batch_size)

    def left(self, placed: Sequence[Sequence[int]]) -> list[float]:
        """MiB left on each device under batch sizes `[device][member]`; negative where it does not fit."""
        return [
            capacity - sum(self.need(device, member, size) for member, size in enumerate(placed[device]) if size)
            for device, capacity in enumerate(self.capacity)
        ]

    def overflows(self, matrix: Matrix) -> Iterator[tuple[int, float]]:
        """(device, MiB too many) where a matrix does not fit."""
        return ((device, -left) for device, left in enumerate(self.left(matrix.batch_sizes)) if left < 0)

    def fits(self, matrix: Matrix) -> bool:
        return next(self.overflows(matrix), None) is None
