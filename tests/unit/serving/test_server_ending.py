from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from ensemble_core.allocation.plan import Plan
from ensemble_core.serving import launch
from ensemble_core.serving.errors import ServingError
from ensemble_core.serving.server import AGAIN, RESTARTS, TritonServer, how_it_ended
from ensemble_core.serving.states import ModelState, State

GONE = 2**22 + 1  # no process has such an id

LOCKED = """I1122 03:50:45.410668 8230 started
terminate called after throwing an instance of 'boost::interprocess::lock_exception'
  what():  boost::interprocess::lock_exception
Signal (6) received.
"""


@pytest.mark.parametrize(
    ("code", "log", "told"),
    [
        (-9, "I1122 nothing\n", "the server was killed by signal 9; it is started again"),
        (
            -9,
            f"I1122 nothing\n{launch.STUCK}\n",
            "the server was killed by signal 9: a model's process had died, and it waited for that process with a load "
            "or a call; it is started again",
        ),
        (
            -6,
            LOCKED,
            "the server was killed by signal 6: a model's process had died or stood still in a call; "
            "it is started again",
        ),
    ],
)
def test_why_a_server_ended_is_told_as_far_as_its_log_knows(code: int, log: str, told: str) -> None:
    assert how_it_ended(code, log) == told


class Doomed:
    """A server's process, of which the front model's is dead as soon as it is started."""

    starts = 0
    running = True

    def ended(self) -> int | None:
        return None if self.running else -9

    def kill(self) -> None:
        self.running = False

    def end(self) -> None:
        self.running = False

    def start(self) -> None:
        self.starts += 1
        self.running = True

    def log_tail(self) -> str:
        return "the log"

    def log_since_start(self) -> str:
        return ""


def test_no_worker_is_dead_while_a_server_that_died_is_started_again(
    make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes of its models ended with the one before."""
    server, plan, process, seen = TritonServer(), make_plan(), Doomed(), []
    index = {model: ModelState("READY") for model in plan.models}
    monkeypatch.setattr(process, "control", SimpleNamespace(index=lambda: index), raising=False)
    monkeypatch.setattr(server, "_process", process)
    monkeypatch.setattr(server, "_plan", plan)
    monkeypatch.setattr(server, "_stubs", dict.fromkeys(plan.models, GONE))
    monkeypatch.setattr(server, "_load", lambda plan: seen.append(set(server.states(plan).values())))
    assert set(server.states(plan).values()) == {State.DEAD}
    process.kill()
    server._look()
    server._temporary.cleanup()
    assert seen == [{State.READY}]


def test_a_front_model_that_always_dies_is_given_up_after_as_many_deaths_as_are_told(
    make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, plan, process = TritonServer(), make_plan(), Doomed()
    monkeypatch.setattr(server, "_process", process)
    monkeypatch.setattr(server, "_plan", plan)
    monkeypatch.setattr(server, "_load", lambda plan: None)
    monkeypatch.setattr(server, "_dead", lambda: {plan.name: -9})

    def supervise() -> None:
        for _ in range(10 * RESTARTS):
            server._look()

    with pytest.raises(ServingError, match=f"the server died {RESTARTS + 1} times in 60 s\nthe log"):
        supervise()
    server._temporary.cleanup()
    assert (process.starts, len(server.restarts)) == (RESTARTS, RESTARTS + 1)
    assert sum(incident.endswith(AGAIN) for incident in server.incidents) == RESTARTS + 1
