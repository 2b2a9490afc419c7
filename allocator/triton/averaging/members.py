"""The members of a front model, and the threads that ask their workers."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb
from job import Job
from meter import ASKED, CALLS, COPIED, QUEUED, Meter
from routing import DEPTH, Chunk, Router
from settings import Settings
from tensors import tensor

numbers = itertools.count(time.time_ns())  # of calls: no two have the same, also of processes before this one


class Slot:
    """A thread's place at a worker: what it has asked it."""

    def __init__(self, worker: int) -> None:
        self.worker = worker
        self.chunk: Chunk[Job] | None = None
        self.overdue = False


class Member:
    """A member's queue and its workers' threads."""

    def __init__(self, index: int, settings: Settings, meter: Meter) -> None:
        member = settings.members[index]
        self._index, self._retries, self._meter = index, settings.retries, meter
        self.name: str = member["model"]
        self._workers: list[dict[str, Any]] = member["workers"]
        shares = [(worker["batch"], worker.get("share", 1.0)) for worker in self._workers]
        self._router: Router[Job] = Router(shares, settings.segment, settings.routing, settings.may_miss)
        self._ready = threading.Condition()
        self._stopped = False
        self._slots = list(self._new_slots())
        for slot in self._slots:
            threading.Thread(target=self._work, args=(slot,), daemon=True).start()

    def put(self, job: Job) -> None:
        with self._ready:
            self._router.put(job, len(job.samples), time.monotonic())
            self._ready.notify_all()
        self._lose_hopeless()

    def drop(self, job: Job) -> None:
        """The request is over."""
        with self._ready:
            self._router.drop(job)

    def stop(self) -> None:
        with self._ready:
            self._stopped = True
            self._ready.notify_all()

    def look(self) -> None:
        """Leave workers out that hold on to a request beyond its deadline."""
        now = time.monotonic()
        with self._ready:
            for slot in self._slots:
                if slot.chunk is not None and not slot.overdue and slot.chunk.item.deadline <= now:
                    slot.overdue = True
                    self._router.overdue(slot.worker, +1)
            self._ready.notify_all()
        self._lose_hopeless()

    def measure(self) -> None:
        """Tell how many samples wait, and how many the workers are asked for."""
        with self._ready:
            shared, queued = self._router.queued()
            asked = [0] * len(self._workers)
            for slot in self._slots:
                asked[slot.worker] += slot.chunk.stop - slot.chunk.start if slot.chunk is not None else 0
        self._meter.set(QUEUED, self.name, value=shared)
        for worker, own, calls in zip(self._workers, queued, asked, strict=True):
            self._meter.set(QUEUED, self.name, worker["model"], value=own)
            self._meter.set(ASKED, self.name, worker["model"], value=calls)

    def _new_slots(self) -> Iterator[Slot]:
        for worker in range(len(self._workers)):
            for _ in range(DEPTH):
                yield Slot(worker)

    def _work(self, slot: Slot) -> None:
        worker = self._workers[slot.worker]
        while (chunk := self._next(slot)) is not None:
            reason, problem = "failed", ""
            try:
                answer = ask(worker, chunk, self._meter)
                reason = "invalid"  # if it cannot be added
                chunk.item.add(self._index, worker["model"], chunk, answer)
            except ForeignAnswerError as error:
                reason, problem = "invalid", str(error)
            except Exception as error:  # whatever it was, the client hears of it and the worker goes on
                problem = str(error) or repr(error)
            self._end(slot, chunk, reason, problem)
            del chunk  # the request's memory must not wait for the next one

    def _end(self, slot: Slot, chunk: Chunk[Job], reason: str, problem: str) -> None:
        """A call has ended, with a problem or none; the slot is free."""
        worker, now = self._workers[slot.worker], time.monotonic()
        lost = problem != "" and not chunk.item.over
        if problem:
            self._meter.add(CALLS, self.name, worker["model"], reason if lost else "late")
        with self._ready:
            slot.chunk = None
            if slot.overdue:
                slot.overdue = False
                self._router.overdue(slot.worker, -1)
            if not problem:
                self._router.answered(slot.worker)
            elif lost:
                self._router.failed(slot.worker, now)
                if chunk.retries < self._retries:
                    self._router.retry(chunk, slot.worker, now)
                    lost = False
            self._ready.notify_all()
        if lost:
            rows = f"rows {chunk.start}-{chunk.stop - 1}"
            chunk.item.lose(self._index, chunk.start, chunk.stop, f"worker {worker['model']}: {rows}: {problem}")
        self._lose_hopeless()

    def _lose_hopeless(self) -> None:
        with self._ready:
            hopeless = self._router.take_hopeless(time.monotonic())
        for chunk in hopeless:
            rows = f"rows {chunk.start}-{chunk.stop - 1}"
            chunk.item.lose(self._index, chunk.start, chunk.stop, f"{rows}: none of its workers is in service")

    def _next(self, slot: Slot) -> Chunk[Job] | None:
        """Wait for the next chunk of a request that is not over; none when the model is unloaded."""
        with self._ready:
            while not self._stopped:
                chunk = self._router.take(slot.worker, time.monotonic())
                if chunk is None:
                    self._ready.wait()
                elif not chunk.item.over:
                    slot.chunk = chunk
                    chunk.item.begin(self._index)
                    return chunk
        return None


def number_of(response: Any) -> int | None:
    """The call's number that an answer has."""
    told = pb.get_output_tensor_by_name(response, "CALL")
    return None if told is None else int(np.from_dlpack(told)[0])


class ForeignAnswerError(RuntimeError):
    """An answer is that of another call."""


def ask(worker: dict[str, Any], chunk: Chunk[Job], meter: Meter) -> npt.NDArray[Any]:
    """A worker's answer for a chunk; RuntimeError with Triton's message if it has none, or has one of another call.

    A worker with the input SEG gets a reference to the rows in shared memory, any other the rows themselves. Its answer
    must have the number of the call: a process that was not let work for a second is taken for dead while it is called,
    and Triton then may give its late answer to a later call.
    """
    job = chunk.item
    if worker.get("input") == "SEG":
        row = job.samples[:1].nbytes
        number = next(numbers)
        reference = np.array([job.offset + chunk.start * row, chunk.stop - chunk.start, row, number], np.int64)
        given, wanted, parameters = tensor("SEG", reference), ["PROBABILITIES", "CALL"], {"shm_key": job.key}
    else:
        # A copy, for NumPy exports no array that may not be written. Each call needs a tensor of its own anyway: one
        # that several concurrent calls share loses its data.
        rows = job.samples[chunk.start : chunk.stop].copy()
        meter.add(COPIED, count=rows.nbytes)
        given, wanted, parameters = tensor("INPUT", rows), ["PROBABILITIES"], {}
        number = None
    response = pb.InferenceRequest(
        model_name=worker["model"],
        requested_output_names=wanted,
        inputs=[given],
        parameters=parameters,
        preferred_memory=pb.PreferredMemory(pb.TRITONSERVER_MEMORY_CPU),
    ).exec()
    if response.has_error():
        raise RuntimeError(response.error().message())
    if number is not None and number_of(response) != number:
        raise ForeignAnswerError("the answer is that of another call")
    return np.from_dlpack(pb.get_output_tensor_by_name(response, "PROBABILITIES"))
