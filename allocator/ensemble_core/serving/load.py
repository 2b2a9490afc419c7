"""How many samples per second a served plan answers, measured under constant load."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ensemble_core.allocation.plan import Plan
from ensemble_core.frozen import Frozen
from ensemble_core.serving import processes
from ensemble_core.serving.client import SECONDS, connect, shared_request
from ensemble_core.serving.errors import ServingError
from ensemble_core.serving.server import TritonServer

WARM_UP = 0.3  # seconds
QUIET = 0.06  # cores that others may use while a window counts as undisturbed
WINDOWS = 2  # undisturbed windows wanted
PATIENCE = 2.5  # times the seconds asked for, until disturbed windows are taken


class Window(Frozen):
    """A stretch of the load, from one completed request to a later one."""

    seconds: float = Field(gt=0)
    requests: int = Field(ge=1)
    throughput: float = Field(gt=0)  # samples/s
    foreign_cores: float  # CPU cores that others used
    client_cores: float  # CPU cores of this process; near 1, it is the load that is too slow and not the server


Seen = tuple[Window, npt.NDArray[np.float64]]  # with the latencies (s) of its requests


class Measurement(Frozen):
    """A plan's throughput: of the undisturbed windows, or of the least disturbed ones if there are too few."""

    throughput: float = Field(gt=0)  # samples/s
    spread: float = Field(ge=0)  # (largest - smallest) / median of the windows that count
    foreign_cores: float  # the most in a window that counts
    client_cores: float
    p50: float  # seconds of one request that was answered in a window that counts
    p90: float
    p99: float
    requests: int = Field(ge=1)
    samples: int = Field(ge=1)
    windows: tuple[Window, ...]  # all, disturbed ones too


def measure(
    server: TritonServer,
    plan: Plan,
    images: npt.NDArray[Any],
    seconds: float,
    in_flight: int = 3,
    samples: int = 0,
    deadline: float = SECONDS,
) -> Measurement:
    """Keep `in_flight` requests in the server, of `samples` or else of one segment each, and count what it answers.

    `seconds` is shared by the windows; disturbed ones are repeated, up to 2.5 times `seconds` in all, and a window
    lasts until `in_flight` requests were answered in it. Images are repeated or cut to a request. Raises ServingError
    if a request fails or is not answered within `deadline` seconds; it tells what has died of the server meanwhile.
    """
    size = min(samples or plan.segment_size, plan.max_batch_size)
    batch = np.resize(images, (size, *plan.signature.input_shape))
    before = len(server.incidents)
    try:
        with connect(server.url) as client, _Load(client, plan, batch, in_flight, deadline) as load:
            # By then what was begun at once has spread over time; longer does not change the rate by half a percent.
            load.wait(lambda: load.count() > in_flight and load.age() >= WARM_UP)
            seen: list[Seen] = []
            end = load.age() + PATIENCE * seconds
            while not seen or (load.age() < end and sum(own.foreign_cores <= QUIET for own, _ in seen) < WINDOWS):
                seen.append(_window(server, load, seconds / WINDOWS, in_flight))
    except ServingError as error:
        raise ServingError("; ".join([*server.incidents[before:], str(error)])) from error
    return summary(seen, size)


def summary(seen: Sequence[Seen], size: int) -> Measurement:
    """What windows of requests of `size` samples say together (pure); those before and between them do not count."""
    quiet = [each for each in seen if each[0].foreign_cores <= QUIET]
    # One window alone would tell no spread.
    counts = quiet if len(quiet) >= WINDOWS else sorted(seen, key=lambda each: each[0].foreign_cores)[:WINDOWS]
    counted = [window for window, _ in counts]
    rates = np.array([window.throughput for window in counted])
    latencies = np.concatenate([own for _, own in counts])
    p50, p90, p99 = (float(value) for value in np.percentile(latencies, (50, 90, 99)))
    requests = sum(window.requests for window in counted)
    return Measurement(
        throughput=float(np.median(rates)),
        spread=float(np.ptp(rates) / np.median(rates)),
        foreign_cores=max(window.foreign_cores for window in counted),
        client_cores=max(window.client_cores for window in counted),
        p50=p50,
        p90=p90,
        p99=p99,
        requests=requests,
        samples=requests * size,
        windows=tuple(window for window, _ in seen),
    )


class _Load:
    """A closed loop: as many threads run it as requests are in flight; each asks again when it is answered."""

    def __init__(self, client: Any, plan: Plan, batch: npt.NDArray[Any], in_flight: int, deadline: float) -> None:
        self.size = len(batch)
        self._client, self._plan, self._batch, self._deadline = client, plan, batch, deadline
        self._done: list[tuple[float, float]] = []  # when answered, and after how long; append is atomic
        self._stop = threading.Event()
        self._since = time.perf_counter()
        self._pool = ThreadPoolExecutor(in_flight)
        self._running = [self._pool.submit(self._run) for _ in range(in_flight)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()

    def count(self) -> int:
        return len(self._done)

    def age(self) -> float:
        """Seconds since the first request."""
        return time.perf_counter() - self._since

    def moment(self, index: int) -> float:
        """When a request was answered, in seconds of the performance counter."""
        return self._done[index][0]

    def latencies(self, first: int, last: int) -> npt.NDArray[np.float64]:
        """Seconds of each request after the first to the last."""
        return np.array([latency for _, latency in self._done[first + 1 : last + 1]])

    def wait(self, until: Callable[[], bool]) -> None:
        """Wait until something holds, or raise the error of a thread that ended: each request has its deadline."""
        while not until():
            for each in self._running:
                if each.done():
                    each.result()
            time.sleep(0.002)

    def _run(self) -> None:
        with shared_request(self._client, self._plan.name, self._plan.signature, self.size) as request:
            request.samples[:] = self._batch
            while not self._stop.is_set():
                begin = time.perf_counter()
                request.send(self.size, self._deadline)
                end = time.perf_counter()
                self._done.append((end, end - begin))


def _window(server: TritonServer, load: _Load, seconds: float, in_flight: int) -> Seen:
    """Counts from the last answer before the window to the last one in it, so no request is counted in part."""
    first = load.count() - 1
    begin, before = time.perf_counter(), _clock(server)
    load.wait(lambda: time.perf_counter() - begin >= seconds and load.count() - 1 - first >= in_flight)
    last = load.count() - 1
    wall, after = time.perf_counter() - begin, _clock(server)
    busy, own, mine = ((late - early) / wall for early, late in zip(before, after, strict=True))
    span = load.moment(last) - load.moment(first)
    window = Window(
        seconds=span,
        requests=last - first,
        throughput=(last - first) * load.size / span,
        foreign_cores=max(0.0, busy - own - mine),
        client_cores=mine,
    )
    return window, load.latencies(first, last)


def _clock(server: TritonServer) -> tuple[float, float, float]:
    """CPU seconds so far: of the machine, of the server, of this process."""
    own = sum(process.cpu_seconds for process in server.processes())
    return processes.busy_seconds(), own, time.process_time()
