"""Triton Python-based backend `averaging`: one front model that asks the members and averages what they answer.

`execute` only queues: the answer is sent by the worker thread that brings the last part, so that the rows of concurrent
requests share the workers. A request is answered once: with the average, or with the first error.

Model parameters: `workers` (JSON: members, their weights and workers), `segment_size`, `deadline_seconds` (a request
fails if one of its chunks takes a worker longer).
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb
from regions import Regions
from routing import Average, Chunk, Queue
from tensors import tensor

SHORTEST_NAP = 0.2  # seconds between looks at overdue workers
DEPTH = 2  # chunks of a worker in flight: one it works on, one that waits in Triton for it


class Waits:
    """How long requests wait until every member has begun with them, as counters beside Triton's own.

    Triton's queue time of this model says nothing: `execute` takes every request at once.
    """

    def __init__(self, model: str) -> None:
        # Two loads of a model that shared a counter would have it freed with the first while the second counts.
        labels = {"model": model, "load": str(os.getpid())}
        # A family ends with the object that stands for it, and its metrics with it.
        self._families = [
            pb.MetricFamily(name=name, description=description, kind=pb.MetricFamily.COUNTER)
            for name, description in (
                ("ensemble_wait_microseconds_total", "Microseconds that requests waited for members"),
                ("ensemble_wait_requests_total", "Requests that every member has begun with"),
            )
        ]
        self._waits, self._requests = (family.Metric(labels=labels) for family in self._families)
        self._lock = threading.Lock()

    def tell(self, seconds: float) -> None:
        with self._lock:  # Triton's part of the process bears no two threads at once
            self._waits.increment(round(seconds * 1e6))
            self._requests.increment(1)


class Job:
    """A request on its way: its input rows and the sum of the answers so far."""

    def __init__(
        self,
        request: Any,
        average: Average,
        samples: npt.NDArray[Any],
        place: tuple[str, int],
        waits: Waits,
        members: int,
    ) -> None:
        self._waits, self._not_begun, self._since = waits, members, time.monotonic()
        self.samples = samples
        self.key, self.offset = place
        self._average = average
        self._request = request  # owns the memory of the samples
        self._sender = request.get_response_sender()
        self._lock = threading.Lock()
        self.answered = False

    def add(self, chunk: Chunk[Job], answer: npt.NDArray[Any], weight: float) -> None:
        with self._lock:
            if not self.answered and self._average.add(chunk.start, chunk.stop, answer, weight):
                self._answer(pb.InferenceResponse([tensor("PROBABILITIES", self._average.result())]))

    def begin(self) -> None:
        """A member begins with it."""
        with self._lock:
            self._not_begun -= 1
            if self._not_begun == 0:
                self._waits.tell(time.monotonic() - self._since)

    def fail(self, message: str) -> None:
        with self._lock:
            if not self.answered:
                self._answer(pb.InferenceResponse(error=pb.TritonError(message)))

    def _answer(self, response: Any) -> None:
        self.answered = True
        self._sender.send(response, flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


class Slot:
    """A thread's place at a worker: what it has asked it, and since when."""

    def __init__(self) -> None:
        self.chunk: Chunk[Job] | None = None
        self.since = 0.0


class Member:
    """A member's queue and its workers' threads."""

    def __init__(self, member: dict[str, Any], weight: float, segment_size: int) -> None:
        self.name: str = member["model"]
        self._weight = weight
        self._queue: Queue[Job] = Queue(segment_size)
        self._ready = threading.Condition()
        self._stopped = False
        self._slots: list[Slot] = []
        self._threads = [
            threading.Thread(target=self._work, args=(worker, slot), daemon=True)
            for worker in member["workers"]
            for slot in self._new_slots()
        ]
        for thread in self._threads:
            thread.start()

    def put(self, job: Job) -> None:
        with self._ready:
            self._queue.put(job, len(job.samples))
            self._ready.notify_all()

    def stop(self) -> None:
        with self._ready:
            self._stopped = True
            self._ready.notify_all()

    def give_up(self, deadline: float) -> None:
        """Fail the requests whose chunk is out for longer than the deadline, and all that wait if no worker is left."""
        now = time.monotonic()
        with self._ready:
            late = [slot.chunk for slot in self._slots if slot.chunk is not None and now - slot.since > deadline]
            waiting = self._queue.items() if len(late) == len(self._slots) else []
        for job in {*waiting, *(chunk.item for chunk in late)}:
            job.fail(f"averaging: member {self.name}: no answer within {deadline:g} s")

    def _new_slots(self) -> Iterator[Slot]:
        for _ in range(DEPTH):
            self._slots.append(Slot())
            yield self._slots[-1]

    def _work(self, worker: dict[str, Any], slot: Slot) -> None:
        while (chunk := self._next(worker["batch"], slot)) is not None:
            try:
                chunk.item.add(chunk, ask(worker, chunk), self._weight)
            except Exception as error:  # whatever it was, the client hears of it and the worker goes on
                rows = f"rows {chunk.start}-{chunk.stop - 1}"
                chunk.item.fail(f"averaging: member {self.name}: worker {worker['model']}: {rows}: {error}")
            del chunk  # the request's memory must not wait for the next one

    def _next(self, batch_size: int, slot: Slot) -> Chunk[Job] | None:
        """Wait for the next chunk of a request that has not failed; none when the model is unloaded."""
        with self._ready:
            slot.chunk = None
            while True:
                while not self._queue and not self._stopped:
                    self._ready.wait()
                if not self._queue:
                    return None
                chunk = self._queue.take(batch_size)
                if not chunk.item.answered:
                    if chunk.start == 0:
                        chunk.item.begin()
                    slot.chunk, slot.since = chunk, time.monotonic()
                    return chunk


def ask(worker: dict[str, Any], chunk: Chunk[Job]) -> npt.NDArray[Any]:
    """A worker's answer for a chunk; RuntimeError with Triton's message if it has none.

    A worker with the input SEG gets a reference to the rows in shared memory, any other the rows themselves.
    """
    job = chunk.item
    if worker["input"] == "SEG":
        row = job.samples[:1].nbytes
        reference = np.array([job.offset + chunk.start * row, chunk.stop - chunk.start, row], np.int64)
        given, parameters = tensor("SEG", reference), {"shm_key": job.key}
    else:
        # A copy, for NumPy exports no array that may not be written. Each call needs a tensor of its own anyway: one
        # that several concurrent calls share loses its data.
        given, parameters = tensor("INPUT", job.samples[chunk.start : chunk.stop].copy()), {}
    response = pb.InferenceRequest(
        model_name=worker["model"],
        requested_output_names=["PROBABILITIES"],
        inputs=[given],
        parameters=parameters,
        preferred_memory=pb.PreferredMemory(pb.TRITONSERVER_MEMORY_CPU),
    ).exec()
    if response.has_error():
        raise RuntimeError(response.error().message())
    return np.from_dlpack(pb.get_output_tensor_by_name(response, "PROBABILITIES"))


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        members = json.loads(parameters["workers"])["members"]
        total = sum(member["weight"] for member in members)
        self._shape = tuple(int(size) for size in config["output"][0]["dims"])
        self._regions = Regions()
        self._waits = Waits(config["name"])
        self._stopped = threading.Event()
        self._members = [
            Member(member, member["weight"] / total, int(parameters["segment_size"])) for member in members
        ]
        self._watch = threading.Thread(target=self._look, args=(float(parameters["deadline_seconds"]),), daemon=True)
        self._watch.start()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            try:
                job = self._job(request)
            except Exception as error:  # of one request; the others go on
                response = pb.InferenceResponse(error=pb.TritonError(f"averaging: {error}"))
                request.get_response_sender().send(response, flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                continue
            for member in self._members:
                member.put(job)

    def finalize(self) -> None:
        self._stopped.set()
        for member in self._members:
            member.stop()

    def _job(self, request: Any) -> Job:
        samples = np.from_dlpack(pb.get_input_tensor_by_name(request, "INPUT"))
        if len(samples) == 0:
            raise ValueError("a request needs at least one sample")
        average = Average(len(samples), self._shape, len(self._members))
        return Job(request, average, samples, self._regions.find(samples), self._waits, len(self._members))

    def _look(self, deadline: float) -> None:
        while not self._stopped.wait(max(SHORTEST_NAP, deadline / 10)):
            for member in self._members:
                member.give_up(deadline)
