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
from ensemble_core.serving.backends.averaging.routing import DEPTH, Player, deal, segments

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
        segment: Samples of the pieces that the front model cuts requests into.
    """

    in_flight: int = 4
    samples: int = 1024
    requests: int = 16
    rate: float | None = None
    segment: int = 128


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
        throughput: Samples/s between the end of the warm-up and the last answer. Counts what members have answered, in
            the mean of them, for requests end in bursts.
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
        return Measured(run.throughput * factor, self.noise, latency=latencies)

    def exact(self, candidate: Candidate) -> Run:
        """Without noise."""
        if candidate not in self._exact:
            self._exact[candidate] = simulate(self.truth, candidate, self.load, self.seed)
        return self._exact[candidate]


def simulate(truth: Truth, candidate: Candidate, load: Load, seed: int = 0) -> Run:
    """Run a load against a matrix that fits. O(events·workers of a device); batches are events where members pull."""
    server = _Server(truth, candidate, load.segment)
    arrivals = _arrivals(load, seed)
    began: dict[int, float] = {}
    latencies: list[float] = []
    warm = int(WARM_UP * load.requests) if load.requests > 1 else 0
    start, done = 0.0, 0  # the end of the warm-up, and what members had answered by then
    issued = 0
    waiting = next(arrivals) if arrivals else None
    if not arrivals:
        for issued in range(1, load.in_flight + 1):
            began[issued] = 0.0
            server.take(issued, load.samples)
    while len(latencies) < load.requests:
        upcoming = server.next_event()
        if waiting is not None and arrivals and waiting <= upcoming:
            issued += 1
            began[issued] = waiting
            server.advance(waiting)
            server.take(issued, load.samples)
            waiting = next(arrivals)
            continue
        for request in server.step():
            latencies.append(server.now - began.pop(request))
            if len(latencies) == warm:
                start, done = server.now, server.answered
            if not arrivals and issued < load.requests + load.in_flight - 1:
                issued += 1
                began[issued] = server.now
                server.take(issued, load.samples)
    if server.now - start <= NOTHING_LEFT * server.now:  # all that counts ended at once: the warm-up counts, too
        start, done = 0.0, 0
    throughput = (server.answered - done) / candidate.matrix.members / (server.now - start)
    busy = tuple(seconds / server.now for seconds in server.worked())
    return Run(throughput, np.array(latencies[warm:]), busy)


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

    def __init__(self, truth: Truth, candidate: Candidate, segment: int) -> None:
        self.now = 0.0
        self.answered = 0  # samples, by each member
        self._segment = segment
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
        self._players = None if candidate.shares is None else _players(candidate, candidate.shares)
        self._shared: list[deque[list[int]]] = [deque() for _ in range(members)]  # that any of a member's workers takes
        self._queues: list[deque[list[int]]] = [deque() for _ in entries]  # of the workers' own: request, samples
        self._chunk: list[tuple[int, int] | None] = [None] * len(entries)  # request, samples
        self._work = [0.0] * len(entries)  # seconds on the device of that chunk
        lone = [self._players is not None or len(self._workers[m]) == 1 for m in self._member]
        self._undivided = [own and host == 0 for own, host in zip(lone, self._host, strict=True)]
        self._missing: dict[int, int] = {}
        self._events: list[tuple[float, int, int, int]] = []  # moment, order, device or -1, version or worker
        self._order = 0

    def take(self, request: int, samples: int) -> None:
        """A request arrives."""
        self._missing[request] = samples * len(self._workers)
        self._hand_out(request, samples)
        for workers in self._workers:
            for worker in workers:
                if self._chunk[worker] is None:
                    self._begin(worker)
                    self._plan(self._device[worker])

    def _hand_out(self, request: int, samples: int) -> None:
        for member, workers in enumerate(self._workers):
            for start, stop in segments(samples, self._segment):
                if self._players is not None:
                    for index, rows in deal(stop - start, self._players[member]):
                        self._queues[workers[index]].append([request, rows])
                elif len(workers) == 1:
                    self._queues[workers[0]].append([request, stop - start])
                else:
                    self._shared[member].append([request, stop - start])
                    self._pull(member)

    def _pull(self, member: int) -> None:
        """Workers with less than `DEPTH` calls in flight take what waits for any of them, who has the fewest first."""
        queue, workers = self._shared[member], self._workers[member]
        while queue:
            calls = [len(self._queues[worker]) + (self._chunk[worker] is not None) for worker in workers]
            fewest = min(calls)
            if fewest == DEPTH:
                return
            worker = workers[calls.index(fewest)]
            head = queue[0]
            samples = min(self._batch[worker], head[1])
            self._queues[worker].append([head[0], samples])
            head[1] -= samples
            if not head[1]:
                queue.popleft()

    def _begin(self, worker: int) -> None:
        """Give an idle worker its next chunk, if there is one."""
        queue = self._queues[worker]
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
            self.answered += samples
            if not self._missing[request]:
                del self._missing[request]
                completed.append(request)
        for worker in ended:
            self._pull(self._member[worker])
            self._begin(worker)
        self._plan(device)
        return completed


def _players(candidate: Candidate, shares: Sequence[Sequence[float]]) -> list[list[Player]]:
    """The workers of each member, in the order of the devices, as samples are dealt to them."""
    players: list[list[Player]] = [[] for _ in range(candidate.matrix.members)]
    for device, member, size in candidate.matrix.entries():
        players[member].append(Player(size, shares[device][member]))
    return players
