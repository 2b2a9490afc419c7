"""Slots on Ray: one warm process each, called once per rung and replaced when it dies."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from ensemble_core.api.hposearch import HPOSearchSpec
from ensemble_core.errors import OutageError, UserError
from ensemble_core.report import CommandError, Terminated
from ensemble_trainer import reaper
from ensemble_trainer.worker import Broken, Order, Published, Reached, Worker

OBJECT_STORE_BYTES = 80 * 1024 * 1024  # little more than Ray's least: data travels as files
STARTS = 3  # of a cluster
MAX_FAILED_STARTS = 3  # of one slot in a row while no other starts; a node may take all of its slots along
HEARTBEAT = 2.0  # seconds between looks at the cluster
REMINDER = 600.0  # seconds until it is said again what is waited for
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's present default, said aloud: otherwise it warns. A trial without GPUs of its own sees those of its node.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # A driver whose cluster is gone ends instead of waiting a minute.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
}
# Whoever reaches Ray's ports runs code. A cluster of this machine's own listens on loopback alone under this switch,
# which is for every system despite its name.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@dataclass(frozen=True)
class Ready:
    """A slot's process waits for orders."""


@dataclass(frozen=True)
class Lost:
    """A slot's process died, by no fault that the trial could tell; a fresh one is being started."""

    message: str


Outcome = Ready | Lost | Reached | Broken | Published


class Slots(Protocol):
    """Numbered processes that take one order at a time. Each tells `Ready` when it is up, also after `Lost`."""

    def advance(self, slot: int, order: Order) -> None: ...

    def finish(self, slot: int, order: Order) -> None: ...

    def replace(self, slot: int) -> None:
        """End a slot's process, which waits for orders, and start a fresh one."""

    def wait(self) -> list[tuple[int, Outcome]]:
        """Block until something has happened, but not for long; the outcomes by slot."""

    @property
    def note(self) -> str:
        """What slots wait for, empty if for nothing."""


class RaySlots:
    """Slots as Ray actors; what they raise is raised by `wait`.

    Args:
        worker: What each process runs.
        count: How many are wanted; those that the cluster cannot place wait to be placed.
        cpus, gpus: What each occupies; fractions share a device.
    """

    def __init__(self, worker: Worker, count: int, cpus: float, gpus: float) -> None:
        import ray

        self._ray: Any = ray
        self._worker = worker
        self._wanted, self._count = (cpus, gpus), count
        self.note = self._said = ""
        self._look_at = self._say_at = time.monotonic() + HEARTBEAT
        self._node = ray.get_runtime_context().get_node_id()
        # Ray's own restarts would lose the warm state silently.
        self._kind = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0)(Worker)
        self._calls: dict[Any, int] = {}
        self._actors: dict[int, Any] = {}
        self._started: set[int] = set()
        self._failed_starts: Counter[int] = Counter()
        for slot in range(count):
            self._start(slot)

    def advance(self, slot: int, order: Order) -> None:
        self._calls[self._actors[slot].advance.remote(order)] = slot

    def finish(self, slot: int, order: Order) -> None:
        self._calls[self._actors[slot].finish.remote(order)] = slot

    def replace(self, slot: int) -> None:
        self._ray.kill(self._actors[slot])
        self._start(slot)

    def wait(self) -> list[tuple[int, Outcome]]:
        done, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=HEARTBEAT)
        if time.monotonic() >= self._look_at:
            self._look()
        return [self._outcome(call) for call in done]

    def _look(self) -> None:
        """See whether the cluster is there, and large enough. Nodes may still join, so this only tells."""
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        if not any(node["NodeID"] == self._node for node in nodes):
            # Nothing would ever come back.
            raise OutageError("Ray's process on this machine is gone")
        lacking = shortage(*self._wanted, self._count, [node["Resources"] for node in nodes])
        starting = self._count - len(self._started)
        self.note = lacking or (f"{starting} of {self._count} worker processes start" if starting else "")
        now = time.monotonic()
        if lacking and (lacking != self._said or now >= self._say_at):
            print(lacking, file=sys.stderr, flush=True)
            self._say_at = now + REMINDER
        self._said, self._look_at = lacking, now + HEARTBEAT

    def _start(self, slot: int) -> None:
        worker = self._worker
        self._started.discard(slot)
        self._actors[slot] = self._kind.remote(worker.search, worker.spec, worker.make_run)
        self._calls[self._actors[slot].start.remote()] = slot

    def _outcome(self, call: Any) -> tuple[int, Outcome]:
        slot = self._calls.pop(call)
        errors = self._ray.exceptions
        try:
            result = self._ray.get(call)
        except errors.RayTaskError as error:
            raise error.cause from error
        except (errors.RayActorError, errors.WorkerCrashedError, errors.OutOfMemoryError) as error:
            return slot, self._lost(slot, error)
        if slot in self._started:
            return slot, result
        self._started.add(slot)
        self._failed_starts.clear()
        return slot, Ready()

    def _lost(self, slot: int, error: Exception) -> Lost:
        if slot not in self._started:
            self._failed_starts[slot] += 1
            if self._failed_starts[slot] > MAX_FAILED_STARTS:
                raise CommandError(f"worker processes die while they start: {error}") from error
        with contextlib.suppress(ValueError):  # it may only be out of reach
            self._ray.kill(self._actors[slot])
        self._start(slot)
        return Lost(str(error))


def shortage(cpus: float, gpus: float, count: int, nodes: Sequence[Mapping[str, float]]) -> str:
    """What keeps `count` trials of that size from running at a time on nodes with these resources; empty if nothing."""
    room = sum(_room(cpus, gpus, node) for node in nodes)
    if room >= count:
        return ""
    need, sizes = _amount(cpus, gpus), [(node.get("GPU", 0.0), node.get("CPU", 0.0)) for node in nodes]
    if room == 0:
        most_gpus, most_cpus = max(sizes if gpus else [(0.0, size[1]) for size in sizes])
        there = _amount(most_cpus, most_gpus)
        return f"waits for {need} per trial (spec.resourcesPerTrial); the cluster's largest node has {there}"
    total = _amount(sum(size[1] for size in sizes), sum(size[0] for size in sizes) if gpus else 0)
    return f"{room} of {count} trials (spec.parallelTrialCount) fit: each takes {need}, the cluster has {total}"


def _room(cpus: float, gpus: float, node: Mapping[str, float]) -> int:
    """How many trials a node holds; a share of a GPU lies on one."""
    rooms = [_times(node.get("CPU", 0.0), cpus)]
    if gpus:
        present = node.get("GPU", 0.0)
        rooms.append(int(present) * _times(1.0, gpus) if gpus < 1 else _times(present, gpus))
    return min(rooms)


def _times(whole: float, part: float) -> int:
    return int(whole / part + 1e-6)


def _amount(cpus: float, gpus: float) -> str:
    found = [f"{amount:g} {name}{'' if amount == 1 else 's'}" for amount, name in ((cpus, "CPU"), (gpus, "GPU"))]
    return " and ".join(found if gpus else found[:1])


# --- the cluster ----------------------------------------------------------------------------------------------------


def ray_address(given: str | None) -> str | None:
    """The cluster to use: as given, or of the environment; none starts one on this machine."""
    return given or os.environ.get("RAY_ADDRESS")


def check_resources(spec: HPOSearchSpec) -> None:
    """UserError if a trial needs more than this machine has."""
    wanted, cores = spec.resources_per_trial, _cores()
    if wanted.cpu > cores:
        raise UserError("spec.resourcesPerTrial.cpu", f"{wanted.cpu:g} is more than this machine's {cores} cores")
    if wanted.gpu > 0 and wanted.gpu > (gpus := _gpus()):
        raise UserError("spec.resourcesPerTrial.gpu", f"{wanted.gpu:g} is more than this machine's {gpus} GPUs")


@contextmanager
def ray_slots(worker: Worker, address: str | None) -> Iterator[RaySlots]:
    """Slots on the cluster at `address`, or on one of this machine's own that ends with the block."""
    settings = SETTINGS | (LOOPBACK if address is None else {})
    os.environ.update({key: value for key, value in settings.items() if key not in os.environ})
    import ray

    spec = worker.spec
    wanted = spec.resources_per_trial
    with contextlib.ExitStack() as stack:
        if address is None:
            stack.enter_context(_cluster())
            present = 0.0
        else:
            stack.callback(ray.shutdown)
            _connect(address)
            present = float(spec.workers.replicas * spec.workers.gpu)  # their pods may still be on the way
        present = max(present, float(ray.cluster_resources().get("GPU", 0)))  # type: ignore[no-untyped-call]
        yield RaySlots(worker, spec.trials_at_a_time, wanted.cpu, _share(spec, present))


@contextmanager
def _cluster() -> Iterator[None]:
    """A cluster of this machine's own.

    Ray gives its processes half a minute to come up, which a busy machine may exceed: then it is started afresh.
    """
    import ray

    for start in range(1, STARTS + 1):
        with _cluster_folder() as folder, contextlib.ExitStack() as stack:
            stack.callback(ray.shutdown)
            try:
                _start_cluster(folder)
            except OutageError:
                if start == STARTS:
                    raise
                continue
            yield
            return


def _start_cluster(folder: str) -> None:
    import ray

    try:
        with _handler_kept():
            ray.init(
                address="local",
                num_cpus=_cores(),
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=folder,
            )
    except Exception as error:  # Ray raises no narrower one when its processes take more than its 30 s
        raise OutageError(f"Ray does not start on this machine: {error}") from error


@contextmanager
def _handler_kept() -> Iterator[None]:
    """Ray's start puts a handler of SIGTERM that would exit as if the work had failed."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as exit:
        if exit.code == signal.SIGTERM:
            raise Terminated from exit
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _cluster_folder() -> Iterator[str]:
    """A folder for Ray's sockets and logs. Whatever still uses it when this process is gone is ended.

    The path is short because a socket's path must not exceed 107 bytes.
    """
    folder = tempfile.mkdtemp(prefix="ensemble-ray-", dir="/tmp")
    command = [sys.executable, "-S", "-E", reaper.__file__, folder, str(os.getpid())]
    # A session of its own: Ctrl-C in a terminal is for the driver alone.
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):
        yield folder


def _connect(address: str) -> None:
    import ray

    try:
        with _handler_kept():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError("--ray", f"no Ray cluster at {address}: {error}") from error


def _share(spec: HPOSearchSpec, present: float) -> float:
    """GPUs per trial of a cluster with so many: an equal share of one, unless the specification tells.

    A share lies on one GPU: of three trials on two GPUs each gets half of one, or the third would wait for ever.
    """
    if "gpu" in spec.resources_per_trial.model_fields_set:
        return spec.resources_per_trial.gpu
    if present < 1:
        return 0.0
    trials_per_gpu = math.ceil(spec.trials_at_a_time / present)
    return 10_000 // trials_per_gpu / 10_000  # Ray counts ten-thousandths


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
