from __future__ import annotations

from collections.abc import Callable

import pytest

from ensemble_core.allocation.plan import Answering, Plan
from ensemble_core.serving import server
from ensemble_core.serving.errors import ServingError


class Front:
    """Raises what it is told to on each request, in order, and then answers."""

    def __init__(self, *failures: str) -> None:
        self.failures, self.seconds = list(failures), list[float]()

    def ask(self, url: str, model: str, samples: object, seconds: float) -> None:
        self.seconds.append(seconds)
        if self.failures:
            raise ServingError(self.failures.pop(0))


@pytest.fixture
def plan(make_plan: Callable[..., Plan]) -> Plan:
    return make_plan().model_copy(update={"answering": Answering(deadline_seconds=0.01)})


def test_members_that_are_late_at_first_are_asked_again(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    front = Front("averaging: member m-0: no answer within 0.01 s", "averaging: member m-1: no answer within 0.01 s")
    monkeypatch.setattr(server, "ask", front.ask)
    server._ask_first("here", plan)
    assert front.seconds == [0.01 + server.FIRST_SECONDS] * 3


def test_members_that_are_late_for_too_long_are_told(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    front = Front(*["averaging: member m-0: no answer within 0.01 s"] * 2)
    monkeypatch.setattr(server, "ask", front.ask)
    monkeypatch.setattr(server, "FIRST_SECONDS", -0.01)
    with pytest.raises(ServingError, match="member m-0: no answer"):
        server._ask_first("here", plan)
    assert len(front.seconds) == 1


def test_a_member_that_fails_is_told_at_once(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    front = Front("averaging: member m-0: worker m-0--cpu0--b32: rows 0-0: fails")
    monkeypatch.setattr(server, "ask", front.ask)
    with pytest.raises(ServingError, match="rows 0-0: fails"):
        server._ask_first("here", plan)
    assert len(front.seconds) == 1
