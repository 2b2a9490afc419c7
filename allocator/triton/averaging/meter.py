"""What happens in a front model, counted at Triton's metrics endpoint."""

from __future__ import annotations

import os
import threading
from collections import Counter
from typing import Any

import triton_python_backend_utils as pb
from routing import LATENCY_STEPS
from settings import Settings

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
