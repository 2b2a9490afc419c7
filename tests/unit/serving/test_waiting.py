from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import pytest

from ensemble_core.serving import processes, waiting
from ensemble_core.serving.errors import LoadError, StuckError
from ensemble_core.serving.installation import STUB
from ensemble_core.serving.waiting import DeadProcesses, ask_all

PREFIX = "ensemble-1-1-0a-"
# Starts processes as Triton does, and never reaps them.
SERVER = f"""
import subprocess, sys
for line in sys.stdin:
    code, *names = line.split()
    arguments = ["/backends/{STUB}", "-c", "import sys; sys.exit(int(input()))", "{PREFIX}1", *names]
    stub = subprocess.Popen(arguments, executable=sys.executable, stdin=subprocess.PIPE, text=True)
    print(stub.pid, flush=True)
    if code != "-":
        stub.stdin.write(code + chr(10))
        stub.stdin.close()
"""


def test_answers_come_in_the_order_of_the_calls() -> None:
    waited: list[str] = []
    both = threading.Barrier(2)
    assert ask_all({"a": lambda: both.wait(30) * 0 + 1, "b": lambda: both.wait(30) * 0 + 2}, waited.extend) == [1, 2]
    assert set(waited) <= {"a", "b"}
    assert ask_all({}, waited.extend) == []


def test_an_error_of_a_call_is_raised_when_all_have_answered() -> None:
    answered = threading.Event()

    def fail() -> None:
        raise LoadError("a: no memory")

    with pytest.raises(LoadError, match="a: no memory"):
        ask_all({"a": fail, "b": answered.set}, lambda models: None)
    assert answered.is_set()


def test_a_check_ends_the_wait_for_what_never_answers() -> None:
    never = threading.Event()

    def check(models: Collection[str]) -> None:
        if list(models) == ["b"]:
            raise StuckError("b: dead")

    with pytest.raises(StuckError, match="b: dead"):
        ask_all({"a": lambda: True, "b": never.wait}, check)
    never.set()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Server:
    """A process that starts stubs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.pid, self._process = process.pid, process

    def start(self, name: str, code: str = "-") -> int:
        """A stub that lives, or one that has ended with a code."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{code} {name}_0_0\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        if code != "-":
            until(lambda: not processes.alive(pid))
        return pid


@pytest.fixture
def server() -> Iterator[Server]:
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Server(process)
        process.kill()


@contextmanager
def told(problem: str) -> Iterator[None]:
    with pytest.raises(StuckError) as error:
        yield
    assert str(error.value) == problem


@pytest.mark.usefixtures("at_once")
def test_a_process_that_ends_at_once_is_one_of_those_without_any(server: Server) -> None:
    check = DeadProcesses(server.pid, PREFIX, {"a", "b", "c"})
    server.start("c")
    check(["a", "b", "c"])
    server.start("a", "127")
    with told("one of a, b: its process ended with exit code 127 before it could answer"):
        check(["a", "b", "c"])
    with told("a: its process ended with exit code 127 before it could answer"):
        check(["a", "c"])


@pytest.mark.usefixtures("at_once")
def test_a_process_that_was_seen_alive_has_a_name(server: Server) -> None:
    check = DeadProcesses(server.pid, PREFIX, {"a", "b"})
    killed = server.start("b")
    until(lambda: processes.stubs(PREFIX, frozenset({"b"})) == {"b": killed})  # it has its arguments a moment later
    check(["a", "b"])
    os.kill(killed, signal.SIGKILL)
    until(lambda: not processes.alive(killed))
    with told("b: its process was killed by signal 9 before it could answer"):
        check(["a", "b"])


@pytest.mark.usefixtures("at_once")
def test_who_was_dead_before_is_not_waited_for(server: Server) -> None:
    server.start("a", "1")
    DeadProcesses(server.pid, PREFIX, {"a"})(["a"])


def test_a_process_that_has_just_ended_may_still_be_noticed(server: Server) -> None:
    check = DeadProcesses(server.pid, PREFIX, {"a"})
    server.start("a", "1")
    check(["a"])


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "UNNOTICED_SECONDS", 0)
