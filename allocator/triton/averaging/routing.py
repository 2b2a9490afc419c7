"""How the samples of requests reach the members' workers, and how the answers become one. Pure: no Triton in it.

A request is cut into segments, each member has a queue of them, and a worker that is free takes the next chunk of its
own batch size. So a fast worker gets more than a slow one without anybody knowing their speeds (thesis, section 8.3.3).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

Item = TypeVar("Item")


def segments(samples: int, size: int) -> Iterator[tuple[int, int]]:
    """The row ranges [start, stop) of `samples` rows in pieces of `size`; the last may be shorter."""
    return ((start, min(start + size, samples)) for start in range(0, samples, size))


@dataclass(frozen=True)
class Chunk(Generic[Item]):
    """Rows [start, stop) of a request, the work of one call of a worker."""

    item: Item
    start: int
    stop: int


class Queue(Generic[Item]):
    """The segments of one member that no worker has taken, oldest first. Not synchronised."""

    def __init__(self, segment_size: int) -> None:
        self._segment_size = segment_size
        self._waiting: deque[Chunk[Item]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, item: Item, samples: int) -> None:
        """Queue all rows of a request."""
        self._waiting.extend(Chunk(item, start, stop) for start, stop in segments(samples, self._segment_size))

    def take(self, batch_size: int) -> Chunk[Item]:
        """The next at most `batch_size` rows of the oldest segment; IndexError if there is none. O(1)."""
        head = self._waiting.popleft()
        middle = min(head.start + batch_size, head.stop)
        if middle < head.stop:
            self._waiting.appendleft(Chunk(head.item, middle, head.stop))
        return Chunk(head.item, head.start, middle)

    def items(self) -> list[Item]:
        """The requests that wait, one entry per segment."""
        return [chunk.item for chunk in self._waiting]


class Average:
    """The weighted sum of the members' answers, complete when every member has answered every row. Not synchronised.

    Sums are float64, so that the order in which answers come does not show in the float32 result.
    """

    def __init__(self, samples: int, shape: tuple[int, ...], members: int) -> None:
        self._sums = np.zeros((samples, *shape))
        self._missing = samples * members  # rows

    def add(self, start: int, stop: int, answer: npt.NDArray[Any], weight: float) -> bool:
        """Add a member's answer for rows [start, stop); true when it was the last that was missing."""
        rows = self._sums[start:stop]
        if answer.shape != rows.shape:
            raise ValueError(f"the answer has shape {answer.shape}, not {rows.shape}")
        rows += answer * np.float64(weight)
        self._missing -= stop - start
        return self._missing == 0

    def result(self) -> npt.NDArray[np.float32]:
        return self._sums.astype(np.float32)
