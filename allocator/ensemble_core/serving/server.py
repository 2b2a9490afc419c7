"""A Triton server on this machine that serves a plan and is kept running."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np

from ensemble_core.allocation.plan import Plan
from ensemble_core.serving import installation, launch, processes, repository, sharedmemory
from ensemble_core.serving.client import ask
from ensemble_core.serving.control import READY, UNLOADING
from ensemble_core.serving.errors import ServingError, StuckError
from ensemble_core.serving.installation import Ports
from ensemble_core.serving.process import STOP_SECONDS, ServerProcess
from ensemble_core.serving.states import ModelState, State, worker_states
from ensemble_core.serving.waiting import ask_all

LOOK_SECONDS, MODELS_SECONDS = 0.25, 2.0  # between two looks at processes, and at what is loaded
DRAIN_SECONDS, LOCK_SECONDS = 5.0, 1.0  # at the end: for what is in flight, and for who changes models
FIRST_SECONDS = 30.0  # that the first answer may take longer than others
LATE = "no answer within"  # what the front model says of members
REVIVE_SECONDS = 6.0  # for Triton to let go of a dead process that has no call; a call that fails takes it a second
AGAIN = "the server is ended, and started again"
# Why a server ended, by what is in its log.
REASONS = {
    launch.STUCK: "a model's process had died, and it waited for that process with a load or a call",
    "boost::interprocess::lock_exception": "a model's process had died or stood still in a call",
}
RESTARTS, RESTART_WINDOW = 5, 60.0  # more deaths within so many seconds, and it is given up
ANY = Ports()


class TritonServer:
    """A context in which `tritonserver` runs, with the models of the last plan applied.

    A thread watches it: a server that dies is started again with the same ports and models, a Python model whose
    process dies is loaded again, and so is one that is not loaded for any other reason. If the process is that of the
    front model, or of one that is just being loaded, the server is killed and started again, for it would never answer
    who waits for that process. All its processes are gone when the context is left, and also when this process is
    killed. ServingError if it does not start.

    Args:
        ports: Of the endpoints; 0 means a free one, `server.ports` tells which.
        address: What the endpoints listen on.
    """

    def __init__(self, ports: Ports = ANY, address: str = "127.0.0.1") -> None:
        self.address = address
        self.restarts: list[float] = []  # monotonic times
        self.revivals: list[str] = []  # models that were loaded again because their process had died
        self.incidents: list[str] = []  # what has died, a sentence for each
        self.averaging = ""  # which averaging backend it has, for people to read
        self._temporary = tempfile.TemporaryDirectory(prefix=sharedmemory.new_prefix(), ignore_cleanup_errors=True)
        self.folder = Path(self._temporary.name)
        self._models = self.folder / "models"
        self._started, self._stopping = threading.Event(), threading.Event()
        self._process = ServerProcess(self.folder, address, ports, self._stopping)
        # The kernel kills the server when the thread that started it ends: this thread ends last.
        self._thread = threading.Thread(target=self._supervise, name="triton", daemon=True)
        self._lock = threading.RLock()  # held by who changes models
        self._plan: Plan | None = None
        self._stubs: dict[str, int] = {}
        self._failure: ServingError | None = None
        self._trouble = ""  # why the last repair failed, until one succeeds
        self._lost: frozenset[str] = frozenset()  # models that were told to be gone, until all are loaded
        self._killed = False  # by this, which was told
        self._looked = 0.0  # when it was last seen what is loaded

    def __enter__(self) -> Self:
        try:
            self._models.mkdir()
            self.averaging = installation.prepare_backends(self.folder / "backends")
            for folder in (sharedmemory.FOLDER, Path(tempfile.gettempdir())):
                sharedmemory.sweep_dead(folder)
            self._thread.start()
            self._started.wait()
            self.check()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Answer what is in flight, end the server and its processes, and remove its files and shared memory."""
        self._drain()
        self._stopping.set()
        self._process.signal_end()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)  # it may wait for a server that does not end by itself
            self._process.kill()
            self._thread.join(STOP_SECONDS)
        self._temporary.cleanup()

    def _drain(self) -> None:
        """Unload the front model before its members: what it was asked is answered, within some seconds."""
        if not self._lock.acquire(timeout=LOCK_SECONDS):  # something is being loaded
            return
        try:
            plan, self._plan, self._stubs = self._plan, None, {}  # so that it is not loaded again
            if plan is not None and self._process.ended() is None:
                with contextlib.suppress(ServingError):
                    self._process.control.unload(plan.name, DRAIN_SECONDS)
                    self._unloaded_within(frozenset({plan.name}), DRAIN_SECONDS)
        finally:
            self._lock.release()

    @property
    def ports(self) -> Ports:
        return self._process.ports

    @property
    def url(self) -> str:
        """HOST:PORT of the gRPC endpoint."""
        return f"{self.address}:{self.ports.grpc}"

    @property
    def pid(self) -> int | None:
        """Of tritonserver; none while there is none."""
        return self._process.pid

    def live(self) -> bool:
        """Whether the server is up; not so while the supervisor starts it again."""
        return self._process.control.live()

    def check(self) -> None:
        """Raise what made the supervisor give up, if it has."""
        if self._failure is not None:
            raise self._failure

    def states(self, plan: Plan) -> dict[str, State]:
        """What each worker of a plan is doing, by the name of its model."""
        told: dict[str, ModelState] = {}
        with contextlib.suppress(ServingError):  # a server that does not answer has none of them
            told = self._process.control.index()
        return worker_states(plan, told, self._dead(), self._trouble)

    def log_tail(self) -> str:
        """The last lines that the server has printed."""
        return self._process.log_tail()

    def processes(self) -> list[processes.Process]:
        """The server's processes with the CPU time they have used."""
        return self._process.group()

    def stub(self, model: str) -> int | None:
        """Process id of a Python model."""
        return self._stubs.get(model)

    def apply(self, plan: Plan) -> None:
        """Serve this plan: load what is new, switch the front model, unload what is not needed any more.

        Requests are answered all the while if the front model keeps its name. Returns when the front model has answered
        one sample. LoadError with the reason if a member does not load; then the plan before is still served, after a
        new start of the server if it waits for a dead process.
        """
        with self._lock:
            self.check()
            before, self._plan = self._plan, plan
            try:
                with self._killed_if_stuck():
                    self._load(plan)
            except ServingError as error:
                self._plan = before
                if not isinstance(error, StuckError):
                    # The first error is the one to tell.
                    with contextlib.suppress(ServingError), self._killed_if_stuck():
                        self._restore(plan, before)
                raise
            with self._killed_if_stuck():
                self._unload(_models(before) - _models(plan))

    def clear(self) -> None:
        """Unload everything; what it held is free when this returns."""
        with self._lock:
            self.check()
            before, self._plan, self._stubs = _models(self._plan), None, {}
            with self._killed_if_stuck():
                for model in before:
                    self._process.control.unload(model)
                self._unloaded_within(before, STOP_SECONDS)
                for model in before:  # Triton tells nothing of a model whose folder is gone
                    repository.forget(model, self._models)

    def _unloaded_within(self, models: frozenset[str], seconds: float) -> bool:
        """Wait, but not longer, while some of the models, which were to be unloaded, work or hold something."""
        deadline = time.monotonic() + seconds
        while UNLOADING in self._process.control.states().values() or self._process.stubs(models):
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        return True

    @contextlib.contextmanager
    def _killed_if_stuck(self) -> Iterator[None]:
        """Kill a server that waits for ever, so that the supervisor starts it again."""
        said = self._process.log_size()
        try:
            yield
        except StuckError as error:
            self._kill(str(error))
            raise StuckError("\n".join([str(error), self._process.complaints(said)]).strip()) from error

    def _kill(self, why: str) -> None:
        """End a server that will never answer again; the supervisor starts it anew."""
        self.incidents.append(f"{why}: {AGAIN}")
        self._killed = True
        self._process.kill()

    def _load(self, plan: Plan) -> None:
        """Load what differs from what is loaded; all of it is there when the front model answers."""
        repository.write(plan, self._models)
        check = self._process.watch(plan.models.union(self._stubs))
        self._process.control.load_all(self._missing(plan), plan.name, check)
        ask_all({plan.name: partial(_ask_first, self.url, plan)}, check)
        self._stubs, self._trouble, self._lost = self._process.stubs(plan.models), "", frozenset()

    def _missing(self, plan: Plan) -> list[str]:
        """Models that are not loaded as the plan says.

        Triton does not tell by itself: to it a model has changed when its file has got or lost a link, as it does
        when the member comes to another device or goes from one.
        """
        control = self._process.control
        states = control.states()
        return [
            model
            for model, config in repository.configs(plan).items()
            if states.get(model) != READY or repository.loaded_config(control.config(model)) != config
        ]

    def _restore(self, plan: Plan, before: Plan | None) -> None:
        self._unload(_models(plan) - _models(before))
        if before is not None:
            self._load(before)

    def _unload(self, models: Iterable[str]) -> None:
        for model in models:
            self._process.control.unload(model)
            repository.forget(model, self._models)

    def _supervise(self) -> None:
        try:
            self._process.start()
            self._started.set()
            while not self._stopping.wait(LOOK_SECONDS):
                self._look()
        except ServingError as failure:
            self._failure = failure
        except Exception as error:  # told by check(), for nobody sees what a thread raises
            self._failure = ServingError(f"the supervisor failed: {error!r}")
        finally:
            self._process.end()
            self._started.set()

    def _look(self) -> None:
        """Repair what has died since the last look."""
        if self._killed:  # which was told
            self._restart()
        elif (ended := self._process.ended()) is not None:
            self.incidents.append(how_it_ended(ended, self._process.log_since_start()))
            self._restart()
        elif self._dead():
            with self._lock, self._noting_trouble():
                self._repair(self._dead())  # now, for who held the lock may have replaced them
        elif time.monotonic() - self._looked >= MODELS_SECONDS and self._lock.acquire(blocking=False):
            try:
                self._looked = time.monotonic()
                with self._noting_trouble():
                    self._load_what_is_gone()
            finally:
                self._lock.release()

    @contextlib.contextmanager
    def _noting_trouble(self) -> Iterator[None]:
        """What goes wrong in a repair is seen by the next look."""
        try:
            yield
        except ServingError as error:
            self._trouble = str(error)

    def _dead(self) -> dict[str, int]:
        """Models whose process is dead, and how it ended."""
        found = {model: processes.process(pid) for model, pid in self._stubs.items()}
        return {model: stub.code if stub else 0 for model, stub in found.items() if stub is None or stub.dead}

    def _restart(self) -> None:
        with self._lock:
            now, self._killed = time.monotonic(), False
            self.restarts.append(now)
            if len([moment for moment in self.restarts if now - moment < RESTART_WINDOW]) > RESTARTS:
                raise ServingError(f"the server died {RESTARTS + 1} times in {RESTART_WINDOW:g} s\n{self.log_tail()}")
            try:
                self._process.end()
                self._stubs = {}  # they ended with it: what it loads from now on is not dead
                self._process.start()
                if self._plan is not None:
                    self._load(self._plan)
            except ServingError as error:
                self._trouble = str(error)
                if not self._process.ended():  # it runs, or did not start: nothing else tells why
                    self._kill(str(error).partition("\n")[0])  # the next look tries again

    def _repair(self, dead: Mapping[str, int]) -> None:
        """Load models again whose processes died: Triton does not notice, and a load without unload may do nothing."""
        self.incidents += [f"{model}: its process {processes.ending(code)}" for model, code in dead.items()]
        if not dead or self._plan is None:
            return
        if self._plan.name in dead:
            return self._kill(f"{self._plan.name}: nobody else can answer what it was asked")
        with self._killed_if_stuck():
            for model in dead:
                self.revivals.append(model)
                self._unload_dead(model)
            self._load(self._plan)

    def _unload_dead(self, model: str) -> None:
        self._process.control.unload(model)
        if not self._unloaded_within(frozenset({model}), REVIVE_SECONDS):
            raise StuckError(f"{model}: Triton waits for its dead process, which had a call")

    def _load_what_is_gone(self) -> None:
        """Load models that are not loaded, whoever unloaded them; each is told once."""
        if self._plan is None:
            return
        states = self._process.control.states()
        gone = frozenset(model for model in self._plan.models if states.get(model) != READY)
        said = "it is not loaded any more, and is loaded again"
        self.incidents += [f"{model}: {said}" for model in sorted(gone - self._lost)]
        self._lost = gone
        if gone:
            with self._killed_if_stuck():
                self._load(self._plan)


def how_it_ended(code: int, log: str) -> str:
    """What is told of a server that ended by itself, or by its guard (pure)."""
    reasons = "".join(f": {reason}" for text, reason in REASONS.items() if text in log)
    return f"the server {processes.ending(code)}{reasons}; it is started again"


def _ask_first(url: str, plan: Plan) -> None:
    """Ask for one sample, again while members are late: the first answer may take longer than a short deadline."""
    sample = np.zeros((1, *plan.signature.input_shape), plan.signature.input_type)
    seconds = plan.answering.deadline_seconds + FIRST_SECONDS
    end = time.monotonic() + seconds
    while True:
        try:
            ask(url, plan.name, sample, seconds)
        except ServingError as error:
            if LATE not in str(error) or time.monotonic() >= end:
                raise
        else:
            return


def _models(plan: Plan | None) -> frozenset[str]:
    return frozenset() if plan is None else plan.models
