"""How the samples of requests reach the members' workers, and how the answers become one. Pure: no Triton in it.

A request is cut into segments, each member has a queue of them, and a worker that is free takes the next chunk of its
own batch size. So a fast worker gets more than a slow one without anybody knowing their speeds (thesis, section 8.3.3).
Or they are dealt out in proportion to the workers' shares, which matters where workers share a device.

The backend in C++ does the same (`core/router.h`, `core/combiner.h`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

Item = TypeVar("Item")

DEPTH = 2  # calls of a worker in flight: one that is worked on, and one that waits for it in Triton
ERRORS_IN_A_ROW = 3  # then a worker is out of service
OUT_OF_SERVICE = 5.0  # seconds
# Latencies are counted by the power of ten that they are below, five to a decade: 10^-4 s, 10^-3.8 s, …, 10^2 s, and
# what takes longer.
STEPS, FIRST_STEP, LAST_STEP = 5, -20, 10
LATENCY_STEPS = (*(f"{10 ** (step / STEPS):.6f}" for step in range(FIRST_STEP, LAST_STEP + 1)), "+Inf")


def latency_step(seconds: float) -> str:
    """The one of `LATENCY_STEPS` that a latency is counted at."""
    step = math.floor(math.log10(seconds) * STEPS) + 1 if seconds > 0 else FIRST_STEP
    return LATENCY_STEPS[min(max(step, FIRST_STEP), LAST_STEP + 1) - FIRST_STEP]


def segments(samples: int, size: int) -> Iterator[tuple[int, int]]:
    """The row ranges [start, stop) of `samples` rows in pieces of `size`; the last may be shorter."""
    return ((start, min(start + size, samples)) for start in range(0, samples, size))


@dataclass(frozen=True)
class Chunk(Generic[Item]):
    """Rows [start, stop) of a request, the work of one call of a worker."""

    item: Item
    start: int
    stop: int
    retries: int = 0  # calls that failed before


@dataclass
class Player:
    """Who rows are dealt to: how many at a time, its part of all, and when it has done with them, in virtual time."""

    batch: int
    share: float
    finish: float = 0.0  # rows dealt to it by its share


def deal(rows: int, players: Sequence[Player]) -> Iterator[tuple[int, int]]:
    """Deal rows out in pieces of the players' batch sizes: (player, rows); each goes to who would be finished first."""
    left = rows
    while left > 0:
        finish = [player.finish + min(player.batch, left) / player.share for player in players]
        best = finish.index(min(finish))
        players[best].finish = finish[best]
        piece = min(players[best].batch, left)
        yield best, piece
        left -= piece


@dataclass
class _Worker(Player, Generic[Item]):
    queue: deque[Chunk[Item]] = field(default_factory=deque)  # for this worker alone
    errors: int = 0  # in a row
    out_until: float = 0.0
    overdue: int = 0  # calls that have outlived their request
    away: bool = False  # was out of service when it was last looked at

    def in_service(self, now: float) -> bool:
        return self.overdue == 0 and self.out_until <= now


class Router(Generic[Item]):
    """What waits for one member, and who takes it. Not synchronised; times are seconds of any clock.

    A worker is out of service for a while after several errors in a row, for one that fails at once would else take
    everything, and while a call of it is overdue. If nobody is left, all are asked nevertheless, unless requests can do
    without the member (`may_miss`): then what waits is hopeless.
    """

    def __init__(
        self,
        workers: Sequence[tuple[int, float]],
        segment_size: int,
        routing: Literal["pull", "weights"] = "pull",
        may_miss: bool = False,
    ) -> None:
        """`workers`: batch size and share of each."""
        self._segment_size, self._routing, self._may_miss = segment_size, routing, may_miss
        self._shared: deque[Chunk[Item]] = deque()
        self._workers: list[_Worker[Item]] = [_Worker(batch, share) for batch, share in workers]

    def put(self, item: Item, samples: int, now: float = 0.0) -> None:
        """Queue all rows of a request."""
        self._look_who_is_away(now)
        for start, stop in segments(samples, self._segment_size):
            chunk = Chunk(item, start, stop)
            if self._routing == "weights":
                self._deal(chunk, now)
            else:
                self._shared.append(chunk)

    def take(self, worker: int, now: float = 0.0) -> Chunk[Item] | None:
        """The next chunk for a worker that is free, none if it is to wait."""
        self._look_who_is_away(now)
        asked = self._workers[worker]
        usable = asked.in_service(now) if self._anyone(now) else not self._may_miss
        queue = asked.queue or self._shared
        if not usable or not queue:
            return None
        head = queue.popleft()
        middle = min(head.start + asked.batch, head.stop)
        if middle < head.stop:
            queue.appendleft(Chunk(head.item, middle, head.stop, head.retries))
        return Chunk(head.item, head.start, middle, head.retries)

    def take_hopeless(self, now: float = 0.0) -> list[Chunk[Item]]:
        """Remove what nobody is going to answer."""
        found: list[Chunk[Item]] = []
        if self._may_miss and not self._anyone(now):
            for queue in (self._shared, *(worker.queue for worker in self._workers)):
                found.extend(queue)
                queue.clear()
        return found

    def drop(self, item: Item) -> None:
        """Remove what waits for a request that is over."""
        for queue in (self._shared, *(worker.queue for worker in self._workers)):
            kept = [chunk for chunk in queue if chunk.item is not item]
            queue.clear()
            queue.extend(kept)

    def queued(self) -> tuple[int, list[int]]:
        """Samples that wait for whichever worker is free first, and for each worker alone."""
        shared, *own = (
            sum(chunk.stop - chunk.start for chunk in queue)
            for queue in (self._shared, *(worker.queue for worker in self._workers))
        )
        return shared, own

    def answered(self, worker: int) -> None:
        self._workers[worker].errors = 0

    def failed(self, worker: int, now: float = 0.0) -> None:
        state = self._workers[worker]
        state.errors += 1
        if state.errors >= ERRORS_IN_A_ROW:
            state.out_until = now + OUT_OF_SERVICE

    def retry(self, chunk: Chunk[Item], failed_worker: int, now: float = 0.0) -> None:
        """Queue a chunk again after a failed call, for another worker if there is one."""
        count = len(self._workers)
        others = [(failed_worker + step) % count for step in range(1, count + 1)]
        able = [worker for worker in others if self._workers[worker].in_service(now)]
        chosen = self._workers[(able or others)[0]]
        chosen.queue.appendleft(Chunk(chunk.item, chunk.start, chunk.stop, chunk.retries + 1))

    def overdue(self, worker: int, calls: int) -> None:
        """So many more calls of a worker are overdue; fewer, if negative."""
        self._workers[worker].overdue += calls

    def _anyone(self, now: float) -> bool:
        return any(worker.in_service(now) for worker in self._workers)

    def _deal(self, chunk: Chunk[Item], now: float) -> None:
        """To those in service, or to all if nobody is."""
        able = [worker for worker in self._workers if worker.in_service(now)] or self._workers
        start = chunk.start
        for index, rows in deal(chunk.stop - chunk.start, able):
            able[index].queue.append(Chunk(chunk.item, start, start + rows, chunk.retries))
            start += rows

    def _look_who_is_away(self, now: float) -> None:
        """Give what waits for workers out of service to those that are left; who is back starts level with them."""
        orphaned: list[Chunk[Item]] = []
        anyone = self._anyone(now)
        for worker in self._workers:
            if not worker.in_service(now):
                worker.away = True
                if anyone:
                    orphaned.extend(worker.queue)
                    worker.queue.clear()
            elif worker.away:
                worker.away = False
                worker.finish = max(other.finish for other in self._workers)
        for chunk in orphaned:
            self._deal(chunk, now)


class Rule(NamedTuple):
    """What becomes of a member's answer before it is added."""

    votes: bool = False  # 1 for the class with the most, the lowest of equal ones
    logits: bool = False  # the answers are logits

    def apply(self, answer: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Numbers float64 of the answer's shape; its last axis are the classes."""
        if self.votes:
            votes: npt.NDArray[np.float64] = np.zeros(answer.shape)
            np.put_along_axis(votes, answer.argmax(axis=-1)[..., None], 1.0, axis=-1)
            return votes
        numbers = answer.astype(np.float64)
        if self.logits:
            numbers = np.exp(numbers - numbers.max(axis=-1, keepdims=True))
            numbers /= numbers.sum(axis=-1, keepdims=True)
        return numbers


def entropy(probabilities: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """In nats, of the distributions on the last axis; for each sample, the mean of its places."""
    logs = np.log(probabilities, out=np.zeros(probabilities.shape), where=probabilities > 0)
    entropies = -(probabilities * logs).sum(axis=-1)
    return np.asarray(entropies.reshape(len(entropies), -1).mean(axis=1))


class Combiner:
    """The sum of the members' answers to one request. Not synchronised.

    Sums are float64, so that the order in which answers come does not show in the float32 result.

    Args:
        samples: Of the request.
        shape: Of one sample's answer.
        weights: Of the members; their sum is 1.
        rule: How answers are added.
        disagreement: Whether it is asked for.
    """

    def __init__(
        self,
        samples: int,
        shape: tuple[int, ...],
        weights: Sequence[float],
        rule: Rule = Rule(),  # noqa: B008
        disagreement: bool = False,
    ) -> None:
        self._sums = np.zeros((samples, *shape))
        self._weights = np.array(weights)
        self._rule = rule
        self._entropies = np.zeros(samples) if disagreement else None  # of the answers, summed as they are
        self.answered = np.zeros((samples, len(weights)), np.bool_)  # whether a member is in a row's average

    def add(self, member: int, start: int, stop: int, answer: npt.NDArray[Any]) -> list[int]:
        """Add a member's answer for rows [start, stop); returns the rows left out because they are not finite."""
        rows = self._sums[start:stop]
        if answer.shape != rows.shape:
            raise ValueError(f"the answer has shape {list(answer.shape)}, not {list(rows.shape)}")
        if answer.dtype != np.float32:
            raise ValueError("the answer is not FP32")
        good = np.isfinite(answer).reshape(len(answer), -1).all(axis=1)
        chosen: Any = slice(None) if good.all() else good
        given = self._rule.apply(answer[chosen])
        rows[chosen] += self._weights[member] * given
        if self._entropies is not None:
            self._entropies[start:stop][chosen] += self._weights[member] * entropy(given)
        self.answered[start:stop, member] = good
        return [start + int(row) for row in np.flatnonzero(~good)]

    def fewest(self) -> int:
        """The fewest members that any row has."""
        return int(self.answered.sum(axis=1).min())

    def result(self) -> npt.NDArray[np.float32]:
        """The averages; where members are missing, the others' weights count for the whole."""
        return self._averages().astype(np.float32)

    def disagreement(self) -> npt.NDArray[np.float32] | None:
        """How much the members of each row disagree, in nats [samples, 1]; none if nobody asked for it.

        The entropy of the average without the average of the members' entropies: the generalised Jensen-Shannon
        divergence of their distributions (Lin 1991), 0 if they are the same.
        """
        if self._entropies is None:
            return None
        found = entropy(self._averages()) - self._entropies / self._totals()
        return np.maximum(found, 0).astype(np.float32)[:, None]  # below 0 only by rounding

    def _averages(self) -> npt.NDArray[np.float64]:
        return self._sums / self._totals().reshape(-1, *[1] * (self._sums.ndim - 1))

    def _totals(self) -> npt.NDArray[np.float64]:
        """The weights in each row."""
        return np.where(self.answered.all(axis=1), 1.0, self.answered @ self._weights)
