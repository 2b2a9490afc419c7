"""What a benchmark is asked, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from ensemble_core.allocation.matrix import Matrix

ROUTING = {"weights": "each worker gets its share of the samples", "pull": "free workers pull the next batch"}
SHARE_DIGITS = 4  # of shares: finer ones would make new candidates of what is the same


@dataclass(frozen=True)
class Candidate:
    """A matrix, and how its samples are handed out.

    Args:
        matrix: Workers and batch sizes.
        shares: Of each member's samples, `[device][member]`, those of a member adding up to 1; none: free workers pull.
    """

    matrix: Matrix
    shares: tuple[tuple[float, ...], ...] | None = None

    @classmethod
    def weighted(cls, matrix: Matrix, rates: npt.NDArray[np.float64]) -> Candidate:
        """Routed in proportion to rates, shape (D, M), positive where the matrix has a worker."""
        present = np.array(matrix.batch_sizes) > 0
        shares = np.where(present, np.maximum(rates / rates.sum(axis=0), 10**-SHARE_DIGITS), 0.0)
        rounded = np.round(shares / shares.sum(axis=0), SHARE_DIGITS)
        return cls(matrix, tuple(tuple(row) for row in rounded.tolist()))

    @property
    def routing(self) -> Literal["pull", "weights"]:
        """How the server hands its samples out."""
        return "pull" if self.shares is None else "weights"

    def share(self, device: int, member: int) -> str:
        """Of a worker, in words: ` (46%)` of its member's samples, nothing where it takes what comes or is alone."""
        if self.shares is None or self.matrix.workers_of(member) == 1:
            return ""
        return f" ({self.shares[device][member]:.0%})"

    @cached_property
    def key(self) -> tuple[float, ...]:
        """Shares in one row; empty when workers pull."""
        return tuple(share for row in self.shares or () for share in row)


@dataclass(frozen=True)
class Measured:
    """What a benchmark found.

    Args:
        samples_per_second: 0 if the candidate could not be served.
        spread: Relative difference between the windows of the measurement.
        reason: Of a 0.
        memory: Whether the reason tells of a lack of memory.
        device: That had too little memory, where the server tells.
        latency: Seconds of a request: median, 90th and 99th percentile, where they were measured.
    """

    samples_per_second: float
    spread: float = 0.0
    reason: str | None = None
    memory: bool = False
    device: int | None = None
    latency: tuple[float, ...] | None = None

    @property
    def short_of_memory(self) -> bool:
        """Whether it failed for want of memory, on a device that is known or not."""
        return self.memory or self.device is not None


class Benchmark(Protocol):
    """A server, real or simulated, under a load of its own."""

    def __call__(self, candidate: Candidate, repeat: int = 0) -> Measured:
        """Measure a candidate; another `repeat` measures it anew, the same one may be remembered, 0 from other runs."""
