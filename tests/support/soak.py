"""An ensemble under load while what it is made of is killed, stopped, slowed, unloaded and loaded again.

Four members, of which two must answer: `a` and `d` are fake ones in the server's process, `b` and `c` real ones in
processes of their own that take references to shared memory. `a` and `b` have two workers each. `d` is the slowest,
so that it sets the capacity. What a member answers is a simple function of the sample's first number, so that the right
answer follows from who is said to be in it.

Whoever injects a fault ends it, too: it loads the member again, as the agent would. A server that ends is started
again, as its supervisor would.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper
from tests.support.averaging import WIDTH, Server
from tritonclient import grpc
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import InferenceServerException

from ensemble_core.serving import exposition
from ensemble_core.serving.client import CHANNEL
from ensemble_core.serving.control import Control
from ensemble_core.serving.errors import ServingError
from ensemble_core.serving.sharedmemory import FOLDER, Region
from ensemble_core.serving.waiting import ask_all

FRONT = "soak"
CLASSES, LARGEST = 2, 512
QUORUM, RETRIES, SEGMENTS = 2, 1, (64, 48)  # samples of a segment: one, and after a change the other
DEADLINE = 2.0
# A server that waits for a dead process is ended after ten seconds: only then the last requests hear of it.
GRACE = 20.0
CLIENT_SECONDS = 60.0  # of a request; a client that has to wait so long was forgotten
SPECIAL = 99  # fake members are told what to do with samples that begin with it
HELD = 6.0  # seconds that a fake member which hangs keeps a call
DYING = 20.0  # seconds from when a server refuses connections to its end, at most
OUT_OF_SERVICE = 5.0  # of a worker that has failed three times
TOLERANCE = 1e-5  # relative; sums are float32


@dataclass(frozen=True)
class Member:
    """Answers `base + gain · first number` of a sample."""

    weight: float
    base: tuple[float, float]
    gain: float
    workers: dict[str, int]  # with their batch sizes
    delay: float = 0.0  # seconds that a fake member takes for a sample; a real one has none
    drain: float = 4.0  # seconds until what waited for it during a fault is done

    @property
    def fake(self) -> bool:
        return self.delay > 0


MEMBERS = {
    "a": Member(1, (1, 2), 1, {"a0": 16, "a1": 32}, 1 / 6400),
    "b": Member(2, (5, 3), 3, {"b0": 64, "b1": 32}),
    "c": Member(3, (2, 7), 7, {"c0": 64}),
    "d": Member(4, (8, 1), 20, {"d0": 32}, 1 / 3200, drain=10 * DEADLINE),  # a tenth of its time is left for that
}
OWNERS = {worker: name for name, member in MEMBERS.items() for worker in member.workers}
WEIGHTS, GAINS = (np.array([getattr(m, what) for m in MEMBERS.values()]) for what in ("weight", "gain"))
BASES = np.array([member.base for member in MEMBERS.values()])


class Fault(NamedTuple):
    at: float  # seconds since the begin
    target: str  # a worker, or the front model
    kind: str
    seconds: float  # how long


BEHAVIOUR = {
    "slow": {"delay_us": "150000"},
    "hang": {"special": "hang", "limit_us": f"{HELD * 1e6:.0f}"},
    "hold": {"special": "hold", "limit_us": f"{HELD * 1e6:.0f}"},
    "nan": {"special": "nan"},
    "fail": {"fail_first": "-1"},
}
FAKE_KINDS = (*BEHAVIOUR, "unload")
REAL_KINDS = ("kill", "stop", "unload", "load")
FRONT_KINDS = ("unload", "load")
DEADLY = ("kill", "stop")


def schedule(seed: int, seconds: float) -> list[Fault]:
    """Faults of all kinds in random order, one or a few at a time, and never two of one target.

    A process that dies with a call takes the server with it, at once or when its guard has noticed. So processes die in
    the first half alone, and a server that ends long after that has done so by itself.
    """
    random = np.random.default_rng(seed)
    every = [(worker, kind) for worker, name in OWNERS.items() for kind in kinds_of(name)]
    every += [(FRONT, kind) for kind in FRONT_KINDS]
    faults: list[Fault] = []
    busy = dict.fromkeys([*OWNERS, FRONT], 0.0)
    at, left = 1.0, []
    while at < seconds - 8:
        if not left:  # each comes once before any comes again
            left = [every[index] for index in random.permutation(len(every))]
            left.sort(key=lambda pair: pair[1] not in DEADLY or pair[0] in ("b1", "c0"))  # some of these first
        left = [pair for pair in left if at < seconds / 2 or pair[1] not in DEADLY]
        if ready := [pair for pair in left if busy[pair[0]] <= at]:
            left.remove(ready[0])
            target, kind = ready[0]
            fault = Fault(at, target, kind, float(random.uniform(0.5, 3.5)))
            faults.append(fault)
            busy[target] = at + fault.seconds + 3
        at += float(random.exponential(1.6))
    return faults


def kinds_of(member: str) -> tuple[str, ...]:
    return FAKE_KINDS if MEMBERS[member].fake else REAL_KINDS


def problem_of(first: npt.NDArray[Any], answer: npt.NDArray[Any], answered: npt.NDArray[np.bool_]) -> str | None:
    """What is wrong with an answer for samples with these first numbers; every one is looked at."""
    if answer.shape != (len(first), CLASSES) or answered.shape != (len(first), len(MEMBERS)):
        return f"shapes {answer.shape} and {answered.shape}"
    if (few := np.flatnonzero(answered.sum(axis=1) < QUORUM)).size:
        return f"row {few[0]} has the members {answered[few[0]]}"
    weights = answered * WEIGHTS
    expected = (weights @ BASES + (weights @ GAINS * first)[:, None]) / weights.sum(axis=1, keepdims=True)
    wrong = np.flatnonzero(~np.isclose(answer, expected, rtol=TOLERANCE, atol=0).all(axis=1))
    if wrong.size:
        row = wrong[0]
        return f"row {row} of {len(first)}: {answer[row]}, not {expected[row]}, of members {answered[row]}"
    return None


@dataclass
class Sent:
    """A request, and what became of it."""

    samples: int
    at: float
    shared: bool
    until: float = 0.0
    outcome: str = ""  # answered, failed, deadline, refused, lost, cancelled, stuck
    text: str = ""
    missing: frozenset[str] = frozenset()  # members that are not in the average of each sample
    answered: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(MEMBERS), np.int64))  # rows of each
    cancelled: bool = False


def outcome_of(text: str) -> str:
    """What an error's text means to a client."""
    if "Deadline Exceeded" in text:
        return "stuck"
    if "averaging: " in text:
        return "deadline" if "no answer within" in text else "failed"
    if re.search(r"unknown model|is not ready|is not found|not available|unloaded|no available versions", text):
        return "refused"
    return "lost"


class Client:
    """Sends requests and judges the answers: with the samples in the body, or in shared memory."""

    SLOTS = 96

    def __init__(self, url: str, shared: bool, done: Callable[[Sent], None], wrong: Callable[[str], None]) -> None:
        self._done, self._wrong = done, wrong
        self._client = grpc.InferenceServerClient(url, channel_args=CHANNEL)
        self._lock = threading.Lock()
        self._given, self._taken = LARGEST * WIDTH * 4, LARGEST * CLASSES * 4
        self._region = Region(self.SLOTS * (self._given + self._taken)) if shared else None
        self._free = list(range(self.SLOTS)) if shared else []
        self._resting: list[tuple[float, int]] = []  # the server may still write to these
        self.connect()

    def connect(self, seconds: float = 10) -> None:
        """Make the shared memory known to a server that was just started: channels look for it again in a while."""
        if self._region is None:
            return
        name, last = self._region.name, time.monotonic() + seconds
        while True:
            try:
                return self._client.register_system_shared_memory(
                    name, f"/{name}", self._region.size, client_timeout=10
                )
            except InferenceServerException:
                if time.monotonic() > last:
                    raise
                time.sleep(0.1)

    def close(self) -> None:
        self._client.close()
        if self._region is not None:
            self._region.__exit__()

    def send(self, samples: npt.NDArray[np.float32], cancel_after: float | None = None) -> None:
        slot = self._take_slot()
        sent = Sent(len(samples), time.monotonic(), slot is not None)
        given = grpc.InferInput("INPUT", list(samples.shape), "FP32")
        wanted = [grpc.InferRequestedOutput(name) for name in ("PROBABILITIES", "ANSWERED")]
        answer = None
        if slot is None or self._region is None:
            given.set_data_from_numpy(samples)
        else:
            begin = slot * (self._given + self._taken)
            self._region.array(np.float32, samples.shape, begin)[:] = samples
            answer = self._region.array(np.float32, (len(samples), CLASSES), begin + self._given)
            answer[:] = np.nan
            given.set_shared_memory(self._region.name, samples.nbytes, begin)
            wanted[0].set_shared_memory(self._region.name, answer.nbytes, begin + self._given)

        def ended(result: Any, error: Any) -> None:
            try:
                sent.until = time.monotonic()
                self._judge(sent, samples[:, 0], answer, result, error)
            except Exception as problem:  # nobody sees what a callback raises
                self._wrong(f"{sent}: {problem!r}")
            finally:
                self._free_slot(slot, sent)
                self._done(sent)

        running = self._client.async_infer(FRONT, [given], ended, outputs=wanted, client_timeout=CLIENT_SECONDS)
        if cancel_after is not None:

            def cancel() -> None:
                sent.cancelled = True
                running.cancel()

            timer = threading.Timer(cancel_after, cancel)
            timer.daemon = True
            timer.start()

    def _judge(self, sent: Sent, first: npt.NDArray[Any], answer: Any, result: Any, error: Any) -> None:
        if error is not None:
            sent.text = str(error)
            sent.outcome = "cancelled" if sent.cancelled and "ancelled" in sent.text else outcome_of(sent.text)
            return
        sent.outcome = "answered"
        answered = result.as_numpy("ANSWERED")
        answer = result.as_numpy("PROBABILITIES") if answer is None else answer
        sent.answered = answered.sum(axis=0)
        sent.missing = frozenset(
            name for name, all_rows in zip(MEMBERS, answered.all(axis=0), strict=True) if not all_rows
        )
        told = result.get_response().parameters
        if "answered" in told and set(told["answered"].string_param.split(",")) - {""} != set(MEMBERS) - sent.missing:
            self._wrong(f"{sent}: the parameter says {told['answered'].string_param}")
        if (problem := problem_of(first, answer, answered)) is not None:
            self._wrong(f"{sent}: {problem}")

    def _take_slot(self) -> int | None:
        with self._lock:
            while self._resting and self._resting[0][0] < time.monotonic():
                self._free.append(self._resting.pop(0)[1])
            return self._free.pop() if self._free else None

    def _free_slot(self, slot: int | None, sent: Sent) -> None:
        if slot is None:
            return
        with self._lock:
            if sent.outcome == "answered":
                self._free.append(slot)
            else:  # whoever goes before the answer has come does not know when the server is done with the memory
                self._resting.append((sent.until + DEADLINE + GRACE, slot))


class Load:
    """What clients ask, and what they got."""

    def __init__(self, url: str, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._lock = threading.Lock()
        self.ended: list[Sent] = []
        self.wrong: list[str] = []
        self.count = 0
        self.samples = 0
        self._clients: list[Client] = []
        for shared in (False, True, False, True):
            self._clients.append(Client(url, shared, self._end, self.wrong.append))

    def close(self) -> None:
        for client in self._clients:
            client.close()

    def connect(self) -> None:
        for client in self._clients:
            client.connect()

    @property
    def outstanding(self) -> int:
        return self.count - len(self.ended)

    def send(self) -> int:
        """One request of any size; the number of its samples."""
        random = self._random
        size = int(random.choice([1, LARGEST, round(LARGEST ** random.uniform())], p=[0.1, 0.05, 0.85]))
        samples = random.integers(SPECIAL + 1, 4000, (size, WIDTH)).astype(np.float32)
        if random.uniform() < 0.25:
            samples[random.integers(size), 0] = SPECIAL
        cancel_after = float(random.uniform(0, 0.1)) if random.uniform() < 0.03 else None
        with self._lock:
            self.count += 1
            self.samples += size
        self._clients[random.integers(len(self._clients))].send(samples, cancel_after)
        return size

    def measure(self, seconds: float, at_a_time: int = 12) -> float:
        """Samples per second that are answered when so many requests are always on their way."""
        begin = time.monotonic()
        while (now := time.monotonic()) < begin + seconds:
            if self.outstanding < at_a_time:
                self.send()
            else:
                time.sleep(0.001)
        with self._lock:
            answered = [sent for sent in self.ended if sent.outcome == "answered" and sent.until > begin + seconds / 4]
        return sum(sent.samples for sent in answered) / (now - begin - seconds / 4)

    def keep(self, rate: float, stop: threading.Event) -> None:
        """So many samples per second, whatever becomes of them; what this thread could not send in time is left out."""
        due = time.monotonic()
        while not stop.wait(max(0.0, due - time.monotonic())):
            due = max(due, time.monotonic() - 0.1)
            due += self.send() / rate * self._random.uniform(0.8, 1.2)

    def _end(self, sent: Sent) -> None:
        with self._lock:
            self.ended.append(sent)


@dataclass
class Window:
    """When something was, or may have been, out of order because of a fault."""

    what: str  # a member, the front model, or the server
    why: str
    begin: float
    end: float = float("inf")


class Ensemble:
    """The models on the server, and the faults that befall them."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.windows: list[Window] = []
        self.problems: list[str] = []
        self.generation = 0  # of the server
        self._onnx = {name: linear(member) for name, member in MEMBERS.items() if not member.fake}
        self._pool = ThreadPoolExecutor(8)
        self._running: list[Future[None]] = []
        self._segment = 0
        self._batches = dict.fromkeys(OWNERS, 1)

    @property
    def control(self) -> Control:
        return self.server.process.control

    def load(self) -> None:
        for worker in OWNERS:
            self._write(worker)
        self._write_front()
        for fakes in (True, False):  # the fake members' library makes the server ready for the others
            together = [worker for worker, name in OWNERS.items() if MEMBERS[name].fake == fakes]
            ask_all({worker: partial(self.control.load, worker) for worker in together}, lambda waiting: None)
        self.control.load(FRONT)

    def inject(self, fault: Fault) -> None:
        """Do it, and mend it after its time, in another thread."""
        self._running = [each for each in self._running if not each.done()]
        self._running.append(self._pool.submit(self._inject, fault))

    def settle(self) -> None:
        """Wait until every fault is mended, or has seen that the server is gone."""
        for each in self._running:
            each.result(300)

    def close(self) -> None:
        self.settle()
        self._pool.shutdown()

    def restart(self, alive: float, connect: Callable[[], None]) -> None:
        """Start a server that has ended again, and connect clients; `alive` is when it was last seen."""
        with self.window("server", "the server ended", alive):
            self.generation += 1
            self.settle()
            self.server.process.end()
            self.server.process.start()
            for last in (False, False, True):
                try:
                    self.load()
                    return connect()
                except (ServingError, InferenceServerException):
                    if self.server.process.ended() is not None:
                        return None  # the next look sees it
                    if last:
                        raise

    @contextlib.contextmanager
    def window(self, what: str, why: str, since: float | None = None) -> Iterator[None]:
        """From a little before to a little after: how long depends on how much may have piled up."""
        drain = MEMBERS[what].drain + max(HELD, OUT_OF_SERVICE) if what in MEMBERS else 2.0
        window = Window(what, why, time.monotonic() if since is None else since)
        self.windows.append(window)
        try:
            yield
        finally:
            window.end = time.monotonic() + drain

    def _inject(self, fault: Fault) -> None:
        generation = self.generation
        with self.window(OWNERS.get(fault.target, FRONT), f"{fault.kind} {fault.target}"):
            try:
                self._break(fault)
                self._mend(fault, generation)
            except ServingError as error:
                if not self._ends(generation):
                    self.problems.append(f"{fault}: {error}")

    def _ends(self, generation: int) -> bool:
        """Whether this server has ended, or soon does: a dying one refuses connections before its process is gone."""
        last = time.monotonic() + DYING
        while self.generation == generation and self.server.process.ended() is None:
            if time.monotonic() > last:
                return False
            time.sleep(0.05)
        return True

    def _break(self, fault: Fault) -> None:
        target, kind, seconds = fault.target, fault.kind, fault.seconds
        if target == FRONT:
            if kind == "unload":
                self.control.unload(FRONT)
                return
            self._segment += 1
            self._write_front()
            self.control.load(FRONT)
        elif kind in BEHAVIOUR:
            self._write(target, BEHAVIOUR[kind])
            self.control.load(target)
        elif kind == "unload":
            self.control.unload(target)
        elif kind == "load":
            self._batches[target] += 1
            self._write(target)
            self.control.load(target)
        elif (process := self.server.process.stubs(frozenset({target})).get(target)) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
            time.sleep(seconds)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)
            return
        time.sleep(seconds)

    def _mend(self, fault: Fault, generation: int) -> None:
        """Everything is as before afterwards; a load may fail where processes die, and is tried again."""
        target = fault.target
        if target == FRONT:
            return self.control.load(FRONT)
        if fault.kind in BEHAVIOUR:
            self._write(target)
        for last in (False, False, False, True):
            try:
                if fault.kind == "kill" or (fault.kind == "stop" and not self._lives(target)):
                    self.control.unload(target)
                self.control.load(target)
                if MEMBERS[OWNERS[target]].fake or self._lives(target):
                    return None
            except ServingError:
                if last or self.generation != generation:
                    raise
            time.sleep(0.5)
        raise ServingError(f"{target}: its process does not live")

    def _lives(self, worker: str) -> bool:
        return worker in self.server.process.stubs(frozenset({worker}))

    def _write(self, worker: str, behaviour: dict[str, str] | None = None) -> None:
        member, batch = MEMBERS[OWNERS[worker]], MEMBERS[OWNERS[worker]].workers[worker]
        if member.fake:
            config = pb.ModelConfig(name=worker, backend="fake", max_batch_size=batch)
            config.input.add(name="INPUT", data_type=pb.TYPE_FP32, dims=[WIDTH])
            config.output.add(name="PROBABILITIES", data_type=pb.TYPE_FP32, dims=[CLASSES])
            parameters = {
                "answer": ",".join(map(str, member.base)),
                "gain": str(member.gain),
                "delay_us": f"{member.delay * batch * 1e6:.0f}",
                **(behaviour or {}),
            }
        else:
            config = pb.ModelConfig(name=worker, backend="member", max_batch_size=0)
            config.input.add(name="SEG", data_type=pb.TYPE_INT64, dims=[4])
            config.output.add(name="PROBABILITIES", data_type=pb.TYPE_FP32, dims=[-1, CLASSES])
            config.output.add(name="CALL", data_type=pb.TYPE_INT64, dims=[1])
            parameters = {"engine": "onnxruntime", "threads": "1", "batch": str(batch + self._batches[worker])}
        config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)
        for key, value in parameters.items():
            config.parameters[key].string_value = value
        self.server.write(config)
        if not member.fake:
            (self.server.folder / "models" / worker / "1" / "model.onnx").write_bytes(self._onnx[OWNERS[worker]])

    def _write_front(self) -> None:
        config = pb.ModelConfig(name=FRONT, backend="averaging", max_batch_size=LARGEST)
        config.input.add(name="INPUT", data_type=pb.TYPE_FP32, dims=[WIDTH])
        config.output.add(name="PROBABILITIES", data_type=pb.TYPE_FP32, dims=[CLASSES])
        config.output.add(name="ANSWERED", data_type=pb.TYPE_BOOL, dims=[len(MEMBERS)])
        config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)
        members = [
            {
                "model": name,
                "weight": member.weight,
                "workers": [
                    {"model": worker, "batch": batch, "input": "INPUT" if member.fake else "SEG"}
                    for worker, batch in member.workers.items()
                ],
            }
            for name, member in MEMBERS.items()
        ]
        for key, value in {
            "workers": json.dumps({"members": members}),
            "segment_size": SEGMENTS[self._segment % 2],
            "quorum": QUORUM,
            "retries": RETRIES,
            "deadline_seconds": DEADLINE,
        }.items():
            config.parameters[key].string_value = str(value)
        self.server.write(config)


def linear(member: Member) -> bytes:
    """A network that answers as the member does."""
    gains = np.zeros((WIDTH, CLASSES), np.float32)
    gains[0] = member.gain
    constants = {"gains": gains, "base": np.array(member.base, np.float32)}
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["INPUT", "gains", "base"], ["PROBABILITIES"])],
        "linear",
        [helper.make_tensor_value_info("INPUT", TensorProto.FLOAT, ["N", WIDTH])],
        [helper.make_tensor_value_info("PROBABILITIES", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


class Look(NamedTuple):
    """What one look at the server told."""

    at: float
    generation: int  # of the server
    resident: int  # bytes of memory: the server's, and the front model's if it is a process
    regions: dict[str, int]  # ours in /dev/shm, with their sizes
    # Counters of each load of the front model: (generation of the server, load) → counter and labels → value
    counters: dict[tuple[int, str], dict[tuple[str, ...], int]]


def look(ensemble: Ensemble) -> Look:
    process = ensemble.server.process
    at = time.monotonic()
    pids = [process.pid, process.stubs(frozenset({FRONT})).get(FRONT)]
    regions = {}
    for path in FOLDER.glob(f"ensemble-*-{os.getpid()}-*"):
        with contextlib.suppress(FileNotFoundError):
            regions[path.name] = path.stat().st_size
    return Look(at, ensemble.generation, sum(resident(pid) for pid in pids if pid), regions, counters(ensemble))


def resident(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def counters(ensemble: Ensemble) -> dict[tuple[int, str], dict[tuple[str, ...], int]]:
    found: dict[tuple[int, str], dict[tuple[str, ...], int]] = {}
    with contextlib.suppress(ServingError):  # the server is being killed, perhaps within its answer
        told = exposition.read(f"127.0.0.1:{ensemble.server.process.ports.metrics}", time.monotonic())
        for name in filter(lambda name: name.startswith("ensemble_"), told.values):
            for labels, value in told.of(name, model=FRONT).items():
                own = dict(labels)
                load = found.setdefault((ensemble.generation, own["load"]), {})
                load[(name, *(own[key] for key in sorted(own.keys() - {"model", "load"})))] = int(value)
    return found


def waiting(look: Look) -> int:
    """Samples that the front model says it has queued, or asked for."""
    return sum(gauges(look))


def least_gauge(look: Look) -> int:
    """The least of what it says so of a member or worker; 0 if it said nothing."""
    return min(gauges(look), default=0)


def gauges(look: Look) -> list[int]:
    names = ("ensemble_queued_samples", "ensemble_asked_samples")
    return [value for load in look.counters.values() for key, value in load.items() if key[0] in names]


class Canary(threading.Thread):
    """Tells when the machine does not let a thread work: how long a little computing takes, and how long it should."""

    EVERY, PATIENCE = 0.2, 0.25  # seconds; so much later than it should it is disturbed

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._over = threading.Event()
        self.late: list[tuple[float, float]] = []  # when, and how much

    def run(self) -> None:
        block = bytes(4 << 20)
        due = time.monotonic()
        while not self._over.wait(max(0.0, due - time.monotonic())):
            begin, cpu = time.monotonic(), time.thread_time()
            hashlib.sha256(block).digest()
            end = time.monotonic()
            self.late.append((end, max(begin - due, end - begin - (time.thread_time() - cpu))))
            due = end + self.EVERY

    def end(self) -> None:
        self._over.set()
        self.join()

    def disturbed(self, begin: float, end: float) -> bool:
        return any(begin - 1 <= at <= end + 1 and late > self.PATIENCE for at, late in self.late)


@dataclass(frozen=True)
class Course:
    """What happened in a soak."""

    middle: float  # from then on no process was killed or stopped
    rate: float  # samples per second that were asked for
    sent: list[Sent]  # that have ended
    samples: int  # of all requests
    wrong: list[str]  # answers that were not right
    windows: list[Window]
    problems: list[str]  # faults that could not be mended
    looks: list[Look]
    canary: Canary
    forgotten: int  # requests that nobody has heard of
    recovered: bool  # all members answered in the end

    def unwell(self, begin: float, end: float) -> set[str]:
        """What a fault may have touched in this time."""
        return {window.what for window in self.windows if window.begin <= end and begin <= window.end}


def soak(server: Server, seed: int, seconds: float) -> Course:
    """Measure the capacity, then keep nine tenths of it busy while faults come and go."""
    ensemble, canary, stop = Ensemble(server), Canary(), threading.Event()
    looks: list[Look] = []
    with contextlib.ExitStack() as opened:
        opened.callback(ensemble.close)
        ensemble.load()
        load = Load(server.url, seed)
        opened.callback(load.close)
        canary.start()
        opened.callback(canary.end)
        load.measure(2)  # warm
        rate = 0.9 * load.measure(5)
        sender = threading.Thread(target=load.keep, args=(rate, stop))
        sender.start()
        opened.callback(sender.join)
        opened.callback(stop.set)
        begin = alive = time.monotonic()
        faults = schedule(seed, seconds)

        def go_on() -> None:
            nonlocal alive
            now = time.monotonic()
            if server.process.ended() is not None:
                ensemble.restart(alive, load.connect)
            alive = now
            looks.append(look(ensemble))
            time.sleep(0.1)

        while time.monotonic() < begin + seconds:
            while faults and begin + faults[0].at <= time.monotonic():
                ensemble.inject(faults.pop(0))
            go_on()
        stop.set()
        sender.join()
        last = time.monotonic() + CLIENT_SECONDS + 5
        while load.outstanding and time.monotonic() < last:
            go_on()
        forgotten, recovered = load.outstanding, False
        while not recovered and time.monotonic() < last + CLIENT_SECONDS:
            load.send()
            while load.outstanding > forgotten and time.monotonic() < last + CLIENT_SECONDS:
                go_on()
            recovered = load.ended[-1].outcome == "answered" and not load.ended[-1].missing
        while (waiting(looks[-1]) or not looks[-1].counters) and time.monotonic() < last + CLIENT_SECONDS:
            go_on()
    return Course(
        middle=begin + seconds / 2,
        rate=rate,
        sent=load.ended,
        samples=load.samples,
        wrong=load.wrong,
        windows=ensemble.windows,
        problems=ensemble.problems,
        looks=looks,
        canary=canary,
        forgotten=forgotten,
        recovered=recovered,
    )
