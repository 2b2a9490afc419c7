"""How long requests take at most, from the members' profiles: who waits longer waits in vain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ensemble_core.allocation.matrix import Matrix
from ensemble_core.allocation.speeds import BatchTimes

PATIENCE, SLACK_SECONDS = 10.0, 30.0  # for a machine that is busy otherwise, and for what is not computing


@dataclass(frozen=True)
class Pace:
    """How fast members are on devices.

    Args:
        kinds: Type of each device, a key of every member's seconds, length D.
        seconds: Of each member for one sample alone on a device, at the worst batch size measured, by type; length M.
    """

    kinds: tuple[str, ...]
    seconds: tuple[Mapping[str, float], ...]

    @classmethod
    def of(cls, kinds: Sequence[str], times: Sequence[Mapping[str, BatchTimes]]) -> Pace:
        """From each member's times by type of device."""
        return cls(
            tuple(kinds),
            tuple(
                {kind: max(seconds / size for size, seconds in own.points) for kind, own in of_member.items()}
                for of_member in times
            ),
        )

    def deadline(self, matrix: Matrix, samples: int) -> float:
        """Seconds in which the server must have answered so many samples, however the work is shared.

        Counts as if every device had all samples of its members and computed one member after the other.
        """
        slowest = max(
            sum(self.seconds[member][kind] for member, size in enumerate(row) if size)
            for kind, row in zip(self.kinds, matrix.batch_sizes, strict=True)
        )
        return SLACK_SECONDS + PATIENCE * samples * slowest
