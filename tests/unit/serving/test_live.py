from __future__ import annotations

import io
import os
import threading
from types import SimpleNamespace

import pytest

from ensemble_core.serving import exposition, live
from ensemble_core.serving.errors import ServingError, SilentError
from ensemble_core.serving.live import Live, Screen
from ensemble_core.serving.states import State


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_lines_replace_those_before_and_what_is_said_stays(monkeypatch):
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((8, 3)))
    out = Terminal()
    screen = Screen(out)
    screen.say("hello")
    screen.show(["a line too long", "b", "no room"])
    screen.say("well")
    screen.show(["c"])
    screen.show(["d"])
    up = "\x1b[{}F\x1b[J".format
    assert out.getvalue() == f"hello\na line \nb\n{up(2)}well\nc\n{up(1)}d\n"


class Looks:
    """What the endpoint tells at each look; then the live view may end."""

    def __init__(self, monkeypatch, plan, texts, states=State.READY, out=None):
        self.screen, self.views, self._texts = Screen(out or io.StringIO()), [], iter(texts)
        self.out, self._seconds, self._done = self.screen._out, 0.0, threading.Event()
        self.server = SimpleNamespace(
            incidents=["before"],
            address="127.0.0.1",
            ports=SimpleNamespace(metrics=1),
            states=lambda plan: {plan.model_name(worker): states for worker in plan.workers},
        )
        for name in ("LOOK_SECONDS", "WINDOW_SECONDS"):
            monkeypatch.setattr(live, name, 0.0)
        monkeypatch.setattr(exposition, "read", self._read)
        with Live(self.server, plan, self.screen, self.views.append):
            assert self._done.wait(30)

    def _read(self, address, seconds):
        self._seconds += 10.0
        text = next(self._texts, None)
        if text is None:
            self._done.set()
            raise ServingError("no more")
        if text == "gone":
            self.server.incidents.append("the server was killed by signal 9")
            raise ServingError(text)
        if text == "silent":
            raise SilentError("no metrics within 5 s")
        return exposition.parse(text, self._seconds)


def requests(count: int) -> str:
    return f'ensemble_latency_requests_total{{below_seconds="0.1",model="digits"}} {count}\n' + (
        f'ensemble_requests_total{{outcome="complete",model="digits"}} {count}\n'
        f'ensemble_received_requests_total{{model="digits"}} {count}\n'
    )


def test_a_log_has_a_line_when_something_happened_and_one_when_it_is_over(make_plan, monkeypatch):
    looks = Looks(monkeypatch, make_plan(), [requests(count) for count in (0, 0, 20, 20, 20, 30)])
    rates = [line.split(", ")[1] for line in looks.out.getvalue().splitlines()]
    assert rates == ["2.0 requests/s", "0.0 requests/s", "1.0 requests/s"]
    assert [view.requests_per_second for view in looks.views] == [0.0, 2.0, 0.0, 0.0, 1.0]


def test_what_died_is_told_and_looking_goes_on(make_plan, monkeypatch):
    looks = Looks(monkeypatch, make_plan(), [requests(5), "gone", requests(0), requests(10)])
    said = looks.out.getvalue().splitlines()
    assert [line for line in said if not line.startswith("digits: ")] == ["the server was killed by signal 9"]
    assert [view.requests_per_second for view in looks.views] == [0.0, 1.0]


def test_a_server_that_does_not_answer_is_told_once_and_once_that_it_answers_again(make_plan, monkeypatch):
    looks = Looks(monkeypatch, make_plan(), [requests(5), "silent", "silent", requests(5), requests(5), "silent"])
    said = [line for line in looks.out.getvalue().splitlines() if not line.startswith("digits: ")]
    silent = "the server does not answer: no metrics within 5 s"
    assert said == [silent, "the server answers again", silent]


@pytest.mark.parametrize("state", [State.READY, State.LOADING])
def test_a_terminal_always_has_the_view(make_plan, monkeypatch, state):
    looks = Looks(monkeypatch, make_plan(), [requests(0)] * 3, state, Terminal())
    assert len(looks.views) == 2
    assert looks.out.getvalue().count("0 samples/s, 0.0 requests/s") == 2
    assert looks.out.getvalue().count("\x1b[J") == 1
    assert f"  {state}  " in looks.out.getvalue()
