from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ensemble_core.allocation.plan import Plan
from ensemble_core.serving import load
from ensemble_core.serving.load import Seen, Window, measure, summary


def window(throughput: float, foreign: float, *latencies: float) -> Seen:
    own = Window(seconds=1, requests=10, throughput=throughput, foreign_cores=foreign, client_cores=0.1)
    return own, np.array(latencies or (0.1,))


def test_disturbed_windows_do_not_count() -> None:
    found = summary([window(100, 1.0, 9.0), window(200, 0.01, 0.3), window(220, 0.02, 0.1)], 32)
    assert found.throughput == pytest.approx(210)
    assert found.spread == pytest.approx(20 / 210)
    assert (found.requests, found.samples, found.foreign_cores) == (20, 640, 0.02)
    assert (found.p50, found.p99) == pytest.approx((0.2, 0.298))
    assert len(found.windows) == 3


def test_the_least_disturbed_windows_count_when_too_few_are_quiet() -> None:
    found = summary([window(100, 1.0, 9.0), window(150, 0.01, 0.3), window(90, 0.7, 0.1)], 32)
    assert (found.throughput, found.foreign_cores, found.requests) == (120, 0.7, 20)
    assert found.spread == pytest.approx(60 / 120)
    assert found.p50 == pytest.approx(0.2)


def test_one_window_is_taken_as_it_is() -> None:
    found = summary([window(100, 1.0)], 32)
    assert (found.throughput, found.spread, found.foreign_cores) == (100, 0, 1.0)


def test_latencies_are_told_by_percentiles() -> None:
    found = summary([window(100, 0, *np.arange(101) / 100)], 1)
    assert (found.p50, found.p90, found.p99) == pytest.approx((0.5, 0.9, 0.99))


class Clocked:
    """A client and a clock that goes on only by its requests: 5 s the first one, 0.1 s each of the others."""

    def __init__(self) -> None:
        self.seconds, self.requests = 0.0, 0
        self.samples = np.zeros((128, 8, 8, 1), np.uint8)

    def send(self, count: int, deadline: float) -> None:
        self.requests += 1
        self.seconds += 5.0 if self.requests == 1 else 0.1
        time.sleep(0.001)


def test_requests_of_the_warm_up_are_in_no_percentile(
    make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Clocked()

    @contextmanager
    def context(*_: object) -> Iterator[Clocked]:
        yield client

    monkeypatch.setattr(load, "connect", context)
    monkeypatch.setattr(load, "shared_request", context)
    monkeypatch.setattr(load, "_clock", lambda server: (0.0, 0.0, 0.0))
    monkeypatch.setattr(load, "time", SimpleNamespace(perf_counter=lambda: client.seconds, sleep=time.sleep))
    server: Any = SimpleNamespace(url="here", incidents=[])
    found = measure(server, make_plan(), client.samples, 2.0, in_flight=1)
    assert (found.p50, found.p99) == pytest.approx((0.1, 0.1))
    assert found.requests == sum(each.requests for each in found.windows) < client.requests
