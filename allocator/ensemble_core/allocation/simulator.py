"""A server made of profiles: batches are events in a simulated time, so that a matrix is tried without devices.

Workers on one device share it (processor sharing), neighbours disturb each other, batches are whole, and the front
model hands out chunks as the real one does: pulled by free workers, or by the allocation's shares.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ensemble_core.allocation.candidate import Candidate, Measured
from ensemble_core.allocation.model import Floats

SEGMENT = 128  # samples
NOTHING_LEFT = 1e-12  # seconds
WARM_UP = 0.25  # of the requests that are not counted


@dataclass(frozen=True)
class Load:
    """What clients do.

    Args:
        in_flight: Requests that are always in the server (closed loop).
        samples: Of one request.
        requests: Answered until the run ends; the first quarter warms up, unless there is but one.
        rate: Samples/s that arrive at random moments whatever is answered (open loop); then `in_flight` does not count.
    """

    in_flight: int = 4
    samples: int = 1024
    requests: int = 16
    rate: float | None = None


ALL_QUEUED = Load(in_flight=1, samples=16384, requests=1)


@dataclass(frozen=True, eq=False)
class Truth:
    """How the simulated devices really are. D devices, M members.

    Args:
        seconds: Of a batch of n samples alone on a device, shape (D, M, N+1); what n = 0 has does not matter.
        needs: MiB of a worker by its batch size, shape (D, M, N+1).
        capacity: MiB, length D.
        pairs: Slowdown of a member by another on the same device, shape (M, M).
        overlap: Share of the time for an empty batch that passes on the host, beside other members' work.
    """

    seconds: Floats
    needs: Floats
    capacity: Floats
    pairs: Floats
    overlap: float = 0.0

    def full(self, candidate: Candidate) -> int | None:
        """The device whose memory does not suffice, if one's does not."""
        used = np.zeros(len(self.capacity))
        for device, member, size in candidate.matrix.entries():
            used[device] += self.needs[device, member, size]
        over = np.flatnonzero(used > self.capacity + 1e-6)
        return int(over[0]) if len(over) else None


@dataclass(frozen=True, eq=False)
class Run:
    """What a simulated load met.

    Args:
        throughput: Samples/s between the end of the warm-up and the last answer.
        latencies: Seconds of each counted request.
        busy: Share of the whole time in which each device worked.
    """

    throughput: float
    latencies: Floats
    busy: tuple[float, ...]


class Simulator:
    """A benchmark on simulated devices.

    Args:
        truth: The devices.
        load: Of the clients.
        noise: Standard deviation of a measurement, relative.
        seed: Of noise and arrivals; the n-th repeat of a candidate is the same whatever was measured before.
    """

    def __init__(self, truth: Truth, load: Load, noise: float = 0.0, seed: int = 0) -> None:
        self.truth, self.load, self.noise, self.seed = truth, load, noise, seed
        self.asked: list[tuple[Candidate, int]] = []
        self._exact: dict[Candidate, Run] = {}

    def __call__(self, candidate: Candidate, repeat: int = 0) -> Measured:
        self.asked.append((candidate, repeat))
        full = self.truth.full(candidate)
        if full is not None:
            return Measured(0.0, reason="out of memory", device=full)
        run = self.exact(candidate)
        salt = [self.seed, repeat, *np.ravel(candidate.matrix.batch_sizes).tolist(), int(1e6 * sum(candidate.key))]
        factor = max(0.01, 1 + self.noise * float(np.random.default_rng(salt).standard_normal()))
        latencies = tuple(float(np.percentile(run.latencies, p)) for p in (50, 90, 99))
        return Measured(run.throughput * factor, self.noise, busy=run.busy, latency=latencies)

    def exact(self, candidate: Candidate) -> Run:
        """Without noise."""
        if candidate not in self._exact:
            self._exact[candidate] = simulate(self.truth, candidate, self.load, self.seed)
        return self._exact[candidate]


def simulate(truth: Truth, candidate: Candidate, load: Load, seed: int = 0) -> Run:
    """Run a load against a matrix that fits. O(events·workers of a device); batches are events where members pull."""
    server = _Server(truth, candidate)
    arrivals = _arrivals(load, seed)
    began: dict[int, float] = {}
    ends: list[tuple[float, float]] = []  # moment, latency
    issued = 0
    waiting = next(arrivals) if arrivals else None
    if not arrivals:
        for issued in range(1, load.in_flight + 1):
            began[issued] = 0.0
            server.take(issued, load.samples)
    while len(ends) < load.requests:
        upcoming = server.next_event()
        if waiting is not None and arrivals and waiting <= upcoming:
            issued += 1
            began[issued] = waiting
            server.advance(waiting)
            server.take(issued, load.samples)
            waiting = next(arrivals)
            continue
        for request in server.step():
            ends.append((server.now, server.now - began.pop(request)))
            if not arrivals and issued < load.requests + load.in_flight - 1:
                issued += 1
                began[issued] = server.now
                server.take(issued, load.samples)
    warm = int(WARM_UP * load.requests) if load.requests > 1 else 0
    start = ends[warm - 1][0] if warm else 0.0
    throughput = (len(ends) - warm) * load.samples / (ends[-1][0] - start)
    busy = tuple(seconds / server.now for seconds in server.worked())
    return Run(throughput, np.array([latency for _, latency in ends[warm:]]), busy)


def _arrivals(load: Load, seed: int) -> Iterator[float] | None:
    if load.rate is None:
        return None
    return _moments(load.samples / load.rate, np.random.default_rng(seed))


def _moments(mean: float, random: np.random.Generator) -> Iterator[float]:
    now = 0.0
    while True:
        now += mean * float(random.standard_exponential())
        yield now


class _Device:
    """Workers that share a device: those at work with the seconds of their own that are left, and get in a second."""

    def __init__(self) -> None:
        self.left: dict[int, float] = {}
        self.rates: dict[int, float] = {}
        self.since = 0.0
        self.version = 0


class _Server:
    """The state of the simulated server; time moves from event to event."""

    def __init__(self, truth: Truth, candidate: Candidate) -> None:
        self.now = 0.0
        self.busy = [0.0] * len(truth.capacity)
        entries = list(candidate.matrix.entries())
        self._device = [device for device, _, _ in entries]
        self._member = [member for _, member, _ in entries]
        self._batch = [size for _, _, size in entries]
        self._seconds = [truth.seconds[device, member].tolist() for device, member, _ in entries]
        self._host = [truth.overlap * max(0.0, 2 * row[1] - row[2]) for row in self._seconds]  # the line's value at 0
        self._pairs = truth.pairs.tolist()
        self._devices = [_Device() for _ in self.busy]
        members = candidate.matrix.members
        self._workers = [[i for i, own in enumerate(self._member) if own == m] for m in range(members)]
        self._shares = None if candidate.shares is None else [candidate.shares[d][m] for d, m, _ in entries]
        self._handed = [0.0] * len(entries)  # samples handed to a worker by its share, over the share
        queues = members if self._shares is None else len(entries)
        self._queues: list[deque[list[int]]] = [deque() for _ in range(queues)]
        self._chunk: list[tuple[int, int] | None] = [None] * len(entries)  # request, samples
        self._work = [0.0] * len(entries)  # seconds on the device of that chunk
        lone = [self._shares is not None or len(self._workers[m]) == 1 for m in self._member]
        self._undivided = [own and host == 0 for own, host in zip(lone, self._host, strict=True)]
        self._missing: dict[int, int] = {}
        self._events: list[tuple[float, int, int, int]] = []  # moment, order, device or -1, version or worker
        self._order = 0

    def take(self, request: int, samples: int) -> None:
        """A request arrives."""
        self._missing[request] = samples * len(self._workers)
        for member, workers in enumerate(self._workers):
            for start in range(0, samples, SEGMENT):
                self._hand_out(member, workers, request, min(SEGMENT, samples - start))
            for worker in workers:
                if self._chunk[worker] is None:
                    self._begin(worker)
                    self._plan(self._device[worker])

    def _hand_out(self, member: int, workers: Sequence[int], request: int, samples: int) -> None:
        if self._shares is None:
            self._queues[member].append([request, samples])
            return
        while samples > 0:
            worker = min(workers, key=lambda w: self._handed[w] + self._batch[w] / self._shares[w])  # type: ignore[index]
            chunk = min(self._batch[worker], samples)
            self._handed[worker] += chunk / self._shares[worker]
            self._queues[worker].append([request, chunk])
            samples -= chunk

    def _begin(self, worker: int) -> None:
        """Give an idle worker its next chunk, if there is one."""
        queue = self._queues[self._member[worker] if self._shares is None else worker]
        if not queue:
            return
        if self._undivided[worker]:
            self._chunk[worker], self._work[worker] = self._whole(worker, queue)
        else:
            head = queue[0]
            samples = min(self._batch[worker], head[1])
            head[1] -= samples
            if not head[1]:
                queue.popleft()
            self._chunk[worker] = (head[0], samples)
            self._work[worker] = self._seconds[worker][samples] - self._host[worker]
        host = self._host[worker]
        if host > 0:
            self._push(self.now + host, -1, worker)
        else:
            self._compute(worker)

    def _whole(self, worker: int, queue: deque[list[int]]) -> tuple[tuple[int, int], float]:
        """All chunks of the next request as one, and its seconds: nobody else takes any, and nothing is in between."""
        request, batch, row = queue[0][0], self._batch[worker], self._seconds[worker]
        samples, seconds = 0, 0.0
        while queue and queue[0][0] == request:
            _, count = queue.popleft()
            full, rest = divmod(count, batch)
            samples += count
            seconds += full * row[batch] + (row[rest] if rest else 0.0)
        return (request, samples), seconds

    def _compute(self, worker: int) -> None:
        """The device begins with an idle worker's chunk; to be planned afterwards."""
        device = self._device[worker]
        self._settle(device)
        self._devices[device].left[worker] = self._work[worker]

    def _settle(self, index: int) -> None:
        """Let a device's work go on until now."""
        device = self._devices[index]
        passed = self.now - device.since
        if passed > 0:
            if left := device.left:
                self.busy[index] += passed
                for worker, rate in device.rates.items():
                    left[worker] -= rate * passed
            device.since = self.now

    def _rates(self, device: _Device) -> dict[int, float]:
        """Seconds of its own that each worker gets in a second."""
        count = len(device.left)
        if count < 2:
            return dict.fromkeys(device.left, 1.0)
        own = {worker: self._pairs[self._member[worker]] for worker in device.left}
        members = [self._member[worker] for worker in device.left]
        return {
            worker: 1 / (count * (1 + sum(row[m] for m in members) - row[self._member[worker]]))
            for worker, row in own.items()
        }

    def _plan(self, index: int) -> None:
        """Note when a device's next worker ends."""
        self._settle(index)
        device = self._devices[index]
        device.version += 1
        left = device.left
        if left.keys() != device.rates.keys():
            device.rates = self._rates(device)
        if left:
            rates = device.rates
            wait = min([seconds / rates[worker] for worker, seconds in left.items()])
            self._push(self.now + max(0.0, wait), index, device.version)

    def _push(self, moment: float, device: int, number: int) -> None:
        self._order += 1
        heapq.heappush(self._events, (moment, self._order, device, number))

    def worked(self) -> list[float]:
        """Seconds that each device has worked until now."""
        for device in range(len(self._devices)):
            self._settle(device)
        return self.busy

    def next_event(self) -> float:
        """Its moment; infinite if nothing is going on."""
        while self._events:
            moment, _, device, number = self._events[0]
            if device < 0 or self._devices[device].version == number:
                return moment
            heapq.heappop(self._events)
        return float("inf")

    def advance(self, moment: float) -> None:
        self.now = moment

    def step(self) -> list[int]:
        """Let the next event happen; the requests that it completes."""
        self.now = self.next_event()
        _, _, device, number = heapq.heappop(self._events)
        if device < 0:
            self._compute(number)
            self._plan(self._device[number])
            return []
        self._settle(device)
        left = self._devices[device].left
        ended = [worker for worker, seconds in left.items() if seconds <= NOTHING_LEFT * max(1.0, self.now)]
        completed = []
        for worker in ended:
            del left[worker]
            chunk, self._chunk[worker] = self._chunk[worker], None
            assert chunk is not None
            request, samples = chunk
            self._missing[request] -= samples
            if not self._missing[request]:
                del self._missing[request]
                completed.append(request)
        for worker in ended:
            self._begin(worker)
        self._plan(device)
        return completed
