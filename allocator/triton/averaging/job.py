"""A request on its way through a front model."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb
from meter import (
    ANSWERED_OUTCOMES,
    ANSWERED_SAMPLES,
    CALLS,
    COPIED,
    LATENCIES,
    LATENCY,
    RECEIVED,
    REQUESTS,
    SAMPLES,
    WAIT_TIME,
    WAITS,
    Meter,
)
from regions import Regions
from routing import Chunk, Combiner, latency_step
from settings import Settings
from tensors import tensor

LONGEST = 1000  # characters of an error's message, or a few more


class Job:
    """A request on its way: its input rows and the sum of the answers so far."""

    def __init__(self, request: Any, settings: Settings, meter: Meter, regions: Regions) -> None:
        samples = np.from_dlpack(pb.get_input_tensor_by_name(request, "INPUT"))
        if samples.shape[1:] != settings.sample:
            # Triton passes on, without its first dimension, what it takes for 0 samples: it counts them in 32 bits.
            raise ValueError(
                f"a request needs at least one sample of shape {[*settings.sample]}, and no more than can be counted"
            )
        if len(samples) == 0:
            raise ValueError("a request needs at least one sample")
        self.samples = samples
        self.key, self.offset = regions.find(samples)
        meter.add(COPIED, count=samples.nbytes)  # by Triton, into the memory that it shares with this process
        self._settings, self._meter = settings, meter
        self._wanted = frozenset(request.requested_output_names())
        self._combiner = Combiner(
            len(samples), settings.shape, settings.weights, settings.rule, "DISAGREEMENT" in self._wanted
        )
        self._not_begun = set(range(len(settings.members)))
        self._left = [len(samples)] * len(settings.members)  # rows of each member
        self._lost = np.zeros(len(samples), np.int64)  # members that will not answer a row
        self._failures: list[str] = []
        self._named: set[int] = set()  # members that are in them
        self._since = time.monotonic()
        self.deadline = self._since + settings.deadline
        self._request = request  # owns the memory of the samples
        self._sender = request.get_response_sender()
        meter.add(RECEIVED)
        self._lock = threading.Lock()
        self.over = False

    def begin(self, member: int) -> None:
        """A member begins with it."""
        with self._lock:
            if self._not_begun == {member}:
                self._meter.add(WAIT_TIME, count=round((time.monotonic() - self._since) * 1e6))
                self._meter.add(WAITS)
            self._not_begun.discard(member)

    def add(self, member: int, worker: str, chunk: Chunk[Job], answer: npt.NDArray[Any]) -> None:
        """Add a worker's answer, and count its call. ValueError if the answer is none for these rows."""
        call = (CALLS, self._settings.members[member]["model"], worker)
        with self._lock:
            if self.over:
                self._meter.add(*call, "late")
                return
            lost = self._combiner.add(member, chunk.start, chunk.stop, answer)
            self._meter.add(*call, "not_finite" if lost else "answered")
            if not lost:
                self._meter.add(SAMPLES, *call[1:], count=chunk.stop - chunk.start)
            for row in lost:
                self._lose(member, row, row + 1, f"worker {worker}: rows {row}-{row}: the answer is not finite")
            self._settle(member, chunk.stop - chunk.start - len(lost))

    def lose(self, member: int, start: int, stop: int, why: str) -> None:
        """A member will not answer these rows."""
        with self._lock:
            if not self.over:
                self._lose(member, start, stop, why)

    def look(self) -> None:
        """End it if its deadline has passed, or nobody wants the answer any more."""
        with self._lock:  # the server must not be asked about a request that is answered at the same time
            if self.over:
                return
            if self.deadline <= time.monotonic():
                self._give_up()
            elif self._request.is_cancelled():
                self._refuse("cancelled", "averaging: the request was cancelled", pb.TritonError.CANCELLED)

    def _give_up(self) -> None:
        """Answer if the quorum has, for every row."""
        if self._combiner.fewest() >= self._settings.quorum:
            self._answer("partial")
            return
        for left, member in zip(self._left, self._settings.members, strict=True):
            if left:
                self._failures.append(f"member {member['model']}: no answer within {self._settings.deadline:g} s")
        self._refuse("deadline", self._problems())

    def _lose(self, member: int, start: int, stop: int, why: str) -> None:
        if member not in self._named or sum(map(len, self._failures)) < LONGEST:  # whoever fails is named
            self._named.add(member)
            self._failures.append(f"member {self._settings.members[member]['model']}: {why}")
        self._lost[start:stop] += 1
        if self._lost.max() > len(self._settings.members) - self._settings.quorum and not self.over:
            self._refuse("failed", self._problems())
        self._settle(member, stop - start)

    def _settle(self, member: int, rows: int) -> None:
        self._left[member] -= rows
        if not any(self._left) and not self.over:
            self._answer("partial" if self._lost.any() else "complete")

    def _problems(self) -> str:
        settings = self._settings
        few = f"fewer than {settings.quorum} of {len(settings.members)} members answered; " if settings.may_miss else ""
        return f"averaging: {few}{'; '.join(self._failures)}"

    def _answer(self, outcome: str) -> None:
        answered = self._combiner.answered
        tensors = [tensor("PROBABILITIES", self._combiner.result())]
        if "ANSWERED" in self._wanted:
            tensors.append(tensor("ANSWERED", answered))
        if (disagreement := self._combiner.disagreement()) is not None:
            tensors.append(tensor("DISAGREEMENT", disagreement))
        names = [self._settings.members[member]["model"] for member in np.flatnonzero(answered.all(axis=0))]
        self._send(outcome, response(tensors, {"answered": ",".join(names)}))

    def _refuse(self, outcome: str, message: str, code: int | None = None) -> None:
        code = pb.TritonError.UNAVAILABLE if code is None else code
        self._send(outcome, pb.InferenceResponse(error=pb.TritonError(message, code)))

    def _send(self, outcome: str, answer: Any) -> None:
        self.over = True
        seconds = time.monotonic() - self._since
        self._meter.add(REQUESTS, outcome)
        if outcome in ANSWERED_OUTCOMES:
            self._meter.add(ANSWERED_SAMPLES, count=len(self.samples))
        self._meter.add(LATENCY, count=round(seconds * 1e6))
        self._meter.add(LATENCIES, latency_step(seconds))
        self._meter.flush()
        try:
            self._sender.send(answer, flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except Exception as error:  # it cannot be sent again; the thread, a worker's perhaps, goes on
            pb.Logger.log_error(f"averaging: an answer could not be sent: {error!r}")


def response(tensors: list[Any], parameters: dict[str, str]) -> Any:
    """A response with parameters, where the server's Python backend can send any."""
    if "parameters" in (pb.InferenceResponse.__init__.__doc__ or ""):
        return pb.InferenceResponse(tensors, parameters=parameters)
    return pb.InferenceResponse(tensors)
