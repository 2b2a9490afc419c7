"""Benchmarks on the real server: one server for all candidates, each applied and measured under constant load."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from ensemble_core.allocation.candidate import Candidate
from ensemble_core.allocation.load import load_of
from ensemble_core.allocation.pace import Pace
from ensemble_core.allocation.plan import Plan, plan_of
from ensemble_core.allocation.result import ServerVersion, Subject, Throughput
from ensemble_core.allocation.shortage import short_of_memory, with_workers
from ensemble_core.api.ensembledeployment import EnsembleDeployment
from ensemble_core.engines import DEFAULT, Engine, version_of
from ensemble_core.library.records import Signature
from ensemble_core.outofmemory import lacks_memory
from ensemble_core.serving import installation
from ensemble_core.serving.errors import ServingError
from ensemble_core.serving.load import Measurement, measure
from ensemble_core.serving.server import TritonServer

TRIES = 2  # of a matrix that the server does not survive
LINES = 5  # of a failure that are kept as its reason
REVIVAL_SECONDS = 60.0  # for a server that died to be up again


class NoServerError(Exception):
    """No server can be had at all: that says nothing about a matrix."""


class Server(Protocol):
    """The part of a server that a benchmark needs."""

    def apply(self, plan: Plan) -> None: ...

    def clear(self) -> None: ...

    def measure(
        self, plan: Plan, images: npt.NDArray[Any], seconds: float, in_flight: int, samples: int, deadline: float
    ) -> Measurement: ...


class Triton:
    """A Triton server on free ports, started when it is first needed."""

    def __init__(self) -> None:
        self._context = contextlib.ExitStack()
        self._server: TritonServer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._context.close()

    def apply(self, plan: Plan) -> None:
        self._running().apply(plan)

    def clear(self) -> None:
        self._running().clear()

    def measure(
        self, plan: Plan, images: npt.NDArray[Any], seconds: float, in_flight: int, samples: int, deadline: float
    ) -> Measurement:
        return measure(self._running(), plan, images, seconds, in_flight, samples, deadline)

    def _running(self) -> TritonServer:
        if self._server is not None and not _revived(self._server):
            self._context.close()
            self._server = None
        if self._server is None:
            try:
                self._server = self._context.enter_context(TritonServer())
            except ServingError as error:
                raise NoServerError(str(error)) from error
        return self._server


def _revived(server: TritonServer) -> bool:
    """Wait until the server is up, which it is unless it died just now; false if it was given up."""
    deadline = time.monotonic() + REVIVAL_SECONDS
    while time.monotonic() < deadline:
        try:
            server.check()
        except ServingError:
            return False
        if server.live():
            return True
        time.sleep(0.05)
    return False


class Bench:
    """Measures candidates of a subject under the load of its objective.

    Args:
        subject: Members, devices and settings.
        signature: Of the members.
        pace: Of the members.
        server: That is measured.
    """

    def __init__(self, subject: Subject, signature: Signature, pace: Pace, server: Server) -> None:
        self._subject = subject
        self._signature = signature
        self._pace = pace
        self._server = server
        self._images = images(signature, subject.deployment.spec.serving.segment_size)

    def __call__(self, candidate: Candidate) -> Throughput:
        """Throughput of a candidate; 0 with the reason if a member does not load, or if the server fails twice.

        Once may be chance: another process may have taken the memory, or ended the server. NoServerError if none can
        be started.
        """
        subject = self._subject
        engines = subject.engines(candidate.matrix)
        plan = plan_of(candidate, subject.members, subject.devices, self._signature, subject.deployment, engines)
        load = load_of(subject.deployment.spec)
        plan = plan.answered_by_all(self._pace.deadline(candidate.matrix, max(load.in_flight) * load.samples))
        reason = ""
        for tried in range(TRIES):
            try:
                if tried:
                    self._server.clear()  # there may be no room for it beside the matrix before
                self._server.apply(plan)
                found = self._measured(candidate, plan)
            except ServingError as error:
                reason = str(error)
            else:
                return Throughput(
                    samples_per_second=found.throughput,
                    spread=found.spread,
                    foreign_cores=found.foreign_cores,
                    client_cores=found.client_cores,
                    latency_seconds=(found.p50, found.p90, found.p99),
                )
        told = "\n".join(with_workers(reason, plan).splitlines()[:LINES])
        short = lacks_memory(reason)
        return Throughput(samples_per_second=0, reason=told, memory=short, device=short_of_memory(reason, plan))

    def _measured(self, candidate: Candidate, plan: Plan) -> Measurement:
        """Of loads of growing concurrency the fastest within the latency allowed; the first if none is."""
        spec = self._subject.deployment.spec
        load = load_of(spec)
        limit, percentile = spec.optimization.latency.milliseconds, spec.optimization.latency.percentile
        best: Measurement | None = None
        for in_flight in load.in_flight:
            deadline = self._pace.deadline(candidate.matrix, in_flight * load.samples)
            found = self._server.measure(
                plan, self._images, spec.optimization.seconds_per_benchmark, in_flight, load.samples, deadline
            )
            if best is not None and (limit is None or 1000 * getattr(found, percentile) > limit):
                break  # more in flight waits longer
            if best is None or found.throughput > best.throughput:
                best = found
        assert best is not None  # a load has at least one concurrency
        return best


def images(signature: Signature, count: int) -> npt.NDArray[Any]:
    """Samples to measure with, always the same: random bytes, or numbers in [0, 1). What they show does not matter."""
    random = np.random.default_rng(0)
    shape = (count, *signature.input_shape)
    if signature.input_type == "uint8":
        return random.integers(0, 256, shape, np.uint8)
    return random.random(shape, np.float32)


def server_version(engines: Sequence[Engine] = (DEFAULT,)) -> ServerVersion:
    """The server that would be measured, with those of the engines that there are; NoServerError if it, or ONNX
    Runtime, is not installed."""
    versions = {engine: version_of(engine) for engine in engines}
    try:
        server, averaging = installation.find(), installation.averaging()
    except ServingError as error:
        raise NoServerError(str(error)) from None
    if versions[DEFAULT] is None:
        raise NoServerError(f"the package {DEFAULT} is not installed")
    told = ", ".join(f"{engine} {version}" for engine, version in versions.items() if version is not None)
    return ServerVersion(name=server.name, version=server.version, engine=told, averaging=averaging)


def load_settings(deployment: EnsembleDeployment) -> dict[str, Any]:
    """What defines the load, for digests."""
    spec = deployment.spec
    load = load_of(spec)
    settings: dict[str, Any] = {
        "secondsPerBenchmark": spec.optimization.seconds_per_benchmark,
        "inFlight": load.in_flight[0] if len(load.in_flight) == 1 else list(load.in_flight),
        "samplesPerRequest": load.samples,
    }
    if len(load.in_flight) > 1:
        settings["latency"] = spec.optimization.latency.document()
    return settings
