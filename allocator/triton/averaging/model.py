"""Triton Python-based backend `averaging`: one front model that asks the members and averages what they answer.

It is for servers that cannot have the backend in C++ beside it, and does the same at a higher cost: every sample is
copied for a member that does not take references.

`execute` only queues: the answer is sent by the worker thread that brings the last part, so that the rows of concurrent
requests share the workers. A request is answered once.

Model parameters: `workers` (JSON: members, their weights and workers), `segment_size`, `rule`, `scores`, `routing`,
`quorum`, `retries`, `deadline_seconds`; see docs/serving.md.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb
from regions import Regions
from routing import DEPTH, LATENCY_STEPS, Chunk, Combiner, Router, Rule, latency_step
from tensors import tensor

LOOK_SECONDS = 0.1  # between looks for overdue and cancelled requests
LONGEST = 1000  # characters of an error's message, or a few more

WAIT_TIME, WAITS = "ensemble_wait_microseconds_total", "ensemble_wait_requests_total"
REQUESTS, CALLS = "ensemble_requests_total", "ensemble_calls_total"
SAMPLES, COPIED = "ensemble_samples_total", "ensemble_copied_bytes_total"
RECEIVED, ANSWERED_SAMPLES = "ensemble_received_requests_total", "ensemble_answered_samples_total"
LATENCY, LATENCIES = "ensemble_latency_microseconds_total", "ensemble_latency_requests_total"
QUEUED, ASKED = GAUGES = "ensemble_queued_samples", "ensemble_asked_samples"
DESCRIPTIONS = {
    WAIT_TIME: "Microseconds that requests waited for members",
    WAITS: "Requests that every member has begun with",
    REQUESTS: "Requests by how they ended",
    CALLS: "Calls of a member's worker by how they ended",
    SAMPLES: "Samples that a member's worker has answered",
    COPIED: "Bytes of requests' inputs that had to be copied for members",
    RECEIVED: "Requests that have come, of which some are in flight",
    ANSWERED_SAMPLES: "Samples of requests that were answered",
    LATENCY: "Microseconds that requests took, however they ended",
    LATENCIES: "Requests that took less, and not less than the step before",
    QUEUED: "Samples that wait for a worker alone, or for whichever is free first",
    ASKED: "Samples in calls of a member's worker that have not ended",
}
ANSWERED_OUTCOMES = ("complete", "partial")
OUTCOMES = (*ANSWERED_OUTCOMES, "failed", "deadline", "cancelled")
REASONS = ("answered", "not_finite", "invalid", "failed", "late")

numbers = itertools.count(time.time_ns())  # of calls: no two have the same, also of processes before this one


def within(name: str, text: str | int, least: int, most: int = 10**15) -> int:
    """The number; ValueError if it is outside, or none."""
    try:
        number = int(text)
    except ValueError:
        raise ValueError(f"{name}: '{text}' is no whole number") from None
    if not least <= number <= most:
        raise ValueError(f"{name}: {number} is not from {least} to {most}")
    return number


def positive(name: str, text: str | float) -> float:
    """The number; ValueError unless it is finite and above 0."""
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{name}: '{text}' is no number") from None
    if not 0 < number < math.inf:
        raise ValueError(f"{name}: {number} is not above 0 and finite")
    return number


@dataclass(frozen=True)
class Settings:
    """What a front model is told by its configuration; ValueError if it cannot be right."""

    model: str
    members: list[dict[str, Any]]
    weights: list[float]  # their sum is 1
    sample: tuple[int, ...]  # shape of one
    shape: tuple[int, ...]  # of one sample's answer
    rule: Rule
    routing: Any
    segment: int
    quorum: int
    retries: int
    deadline: float  # seconds

    @classmethod
    def parse(cls, config: dict[str, Any]) -> Settings:
        given = {name: value["string_value"] for name, value in config["parameters"].items()}
        members = json.loads(given["workers"])["members"]
        for name, allowed in {
            "rule": ("average", "weighted", "vote"),
            "scores": ("probabilities", "logits"),
            "routing": ("pull", "weights"),
        }.items():
            if given.setdefault(name, {"rule": "weighted"}.get(name, allowed[0])) not in allowed:
                raise ValueError(f"averaging: {name}: '{given[name]}' is none of {', '.join(allowed)}")
        if not members:
            raise ValueError("averaging: workers: there are no members")
        for member in members:
            where = f"averaging: workers: member {member['model']}"
            positive(f"{where}: weight", member["weight"])
            if not member["workers"]:
                raise ValueError(f"{where}: it has no workers")
            for worker in member["workers"]:
                within(f"{where}: batch", worker["batch"], 1)
                positive(f"{where}: share", worker.get("share", 1.0))
        weights = [1.0 if given["rule"] == "average" else float(member["weight"]) for member in members]
        quorum = within("averaging: quorum", given.get("quorum", "0"), 0, len(members))
        return cls(
            model=config["name"],
            members=members,
            weights=[weight / sum(weights) for weight in weights],
            sample=tuple(int(size) for size in config["input"][0]["dims"]),
            shape=tuple(int(size) for size in config["output"][0]["dims"]),
            rule=Rule(given["rule"] == "vote", given["scores"] == "logits"),
            routing=given["routing"],
            segment=within("averaging: segment_size", given.get("segment_size", "128"), 1),
            quorum=quorum or len(members),
            retries=within("averaging: retries", given.get("retries", "0"), 0, 100),
            deadline=positive("averaging: deadline_seconds", given.get("deadline_seconds", "60")),
        )

    @property
    def may_miss(self) -> bool:
        return self.quorum < len(self.members)


class Meter:
    """What happens, counted at Triton's metrics endpoint.

    Triton's queue time of this model says nothing: `execute` takes every request at once. Counts are kept here until
    `flush`, for each that is told costs a message to the server; gauges are set a few times a second only.
    """

    def __init__(self, settings: Settings) -> None:
        # Triton would take a counter that two loads of the model share from the second when the first is unloaded.
        model = {"model": settings.model, "load": str(os.getpid())}
        # A family ends with the object that stands for it, and its metrics with it.
        counter, gauge = pb.MetricFamily.COUNTER, pb.MetricFamily.GAUGE
        self._families = {
            name: pb.MetricFamily(name=name, description=description, kind=gauge if name in GAUGES else counter)
            for name, description in DESCRIPTIONS.items()
        }
        self._metrics: dict[tuple[str, ...], Any] = {}
        for name in (WAIT_TIME, WAITS, COPIED, RECEIVED, ANSWERED_SAMPLES, LATENCY):
            self._add((name,), model)
        for step in LATENCY_STEPS:
            self._add((LATENCIES, step), {**model, "below_seconds": step})
        for outcome in OUTCOMES:
            self._add((REQUESTS, outcome), {**model, "outcome": outcome})
        for member in settings.members:
            self._add((QUEUED, member["model"]), {**model, "member": member["model"]})
            for worker in member["workers"]:
                labels = {**model, "member": member["model"], "worker": worker["model"]}
                for name in (SAMPLES, QUEUED, ASKED):
                    self._add((name, member["model"], worker["model"]), labels)
                for reason in REASONS:
                    self._add((CALLS, member["model"], worker["model"], reason), {**labels, "reason": reason})
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._values: Counter[tuple[str, ...]] = Counter()  # of gauges
        self._lock = threading.Lock()
        self._telling = threading.Lock()  # two threads that tell of one metric at a time would end the server

    def add(self, *key: str, count: int = 1) -> None:
        with self._lock:
            self._counts[key] += count

    def set(self, *key: str, value: int) -> None:
        """What a gauge shows from the next `flush` on."""
        with self._lock:
            self._counts[key] += value - self._values[key]
            self._values[key] = value

    def flush(self) -> None:
        with self._telling:
            with self._lock:
                counts, self._counts = self._counts, Counter()
            if not self._metrics:
                return  # closed
            for key, count in counts.items():
                if count:
                    self._metrics[key].increment(count)

    def close(self) -> None:
        """Take all from the endpoint: what a thread that still waits in a call holds would stay there for ever."""
        with self._telling:
            self._metrics.clear()
            self._families.clear()

    def _add(self, key: tuple[str, ...], labels: dict[str, str]) -> None:
        self._metrics[key] = self._families[key[0]].Metric(labels=labels)


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
        self._sender.send(answer, flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def response(tensors: list[Any], parameters: dict[str, str]) -> Any:
    """A response with parameters, where the server's Python backend can send any."""
    if "parameters" in (pb.InferenceResponse.__init__.__doc__ or ""):
        return pb.InferenceResponse(tensors, parameters=parameters)
    return pb.InferenceResponse(tensors)


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


@contextlib.contextmanager
def logged(what: str) -> Iterator[None]:
    """Whatever goes wrong is logged, and the thread goes on."""
    try:
        yield
    except Exception as error:
        pb.Logger.log_error(f"averaging: {what}: {error!r}")


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._settings = Settings.parse(json.loads(args["model_config"]))
        self._regions = Regions()
        self._meter = Meter(self._settings)
        # None is kept alive here: what a request holds goes as soon as nobody works on it.
        self._jobs: weakref.WeakSet[Job] = weakref.WeakSet()
        self._lock = threading.Lock()  # of the set
        self._stopped = threading.Event()
        self._members = [Member(index, self._settings, self._meter) for index in range(len(self._settings.members))]
        threading.Thread(target=self._look, daemon=True).start()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            try:
                job = Job(request, self._settings, self._meter, self._regions)
            except Exception as error:  # of one request; the others go on
                answer = pb.InferenceResponse(error=pb.TritonError(f"averaging: {error}", pb.TritonError.INVALID_ARG))
                request.get_response_sender().send(answer, flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                continue
            with self._lock:
                self._jobs.add(job)
            for member in self._members:
                member.put(job)

    def finalize(self) -> None:
        self._stopped.set()
        for member in self._members:
            member.stop()
        self._meter.close()

    def _look(self) -> None:
        while not self._stopped.wait(min(LOOK_SECONDS, self._settings.deadline / 4)):
            self._end_jobs()
            for member in self._members:
                with logged(f"member {member.name}"):
                    member.look()
                    member.measure()
            with logged("metrics"):
                self._meter.flush()

    def _end_jobs(self) -> None:
        """End requests that are cancelled or late, and forget those that are over."""
        with self._lock:
            jobs = list(self._jobs)
        for job in jobs:
            with logged("a request that is late or cancelled"):
                job.look()
            if job.over:
                for member in self._members:
                    member.drop(job)
                with self._lock:
                    self._jobs.discard(job)
