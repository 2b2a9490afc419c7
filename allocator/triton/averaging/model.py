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
import json
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import triton_python_backend_utils as pb
from job import Job
from members import Member
from meter import Meter
from regions import Regions
from settings import Settings

LOOK_SECONDS = 0.1  # between looks for overdue and cancelled requests


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
