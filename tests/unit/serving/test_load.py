from __future__ import annotations

import numpy as np
import pytest

from ensemble_core.serving.load import Window, summary


def window(throughput: float, foreign: float) -> Window:
    return Window(seconds=1, requests=10, throughput=throughput, foreign_cores=foreign, client_cores=0.1)


def test_disturbed_windows_do_not_count():
    found = summary([window(100, 1.0), window(200, 0.01), window(220, 0.02)], np.array([0.1]), 32)
    assert found.throughput == pytest.approx(210)
    assert found.spread == pytest.approx(20 / 210)
    assert (found.requests, found.samples, found.foreign_cores) == (20, 640, 0.02)
    assert len(found.windows) == 3


def test_the_least_disturbed_windows_count_when_too_few_are_quiet():
    found = summary([window(100, 1.0), window(150, 0.01), window(90, 0.7)], np.array([0.1]), 32)
    assert (found.throughput, found.foreign_cores, found.requests) == (120, 0.7, 20)
    assert found.spread == pytest.approx(60 / 120)


def test_one_window_is_taken_as_it_is():
    found = summary([window(100, 1.0)], np.array([0.1]), 32)
    assert (found.throughput, found.spread, found.foreign_cores) == (100, 0, 1.0)


def test_latencies_are_told_by_percentiles():
    found = summary([window(100, 0)], np.arange(101) / 100, 1)
    assert (found.p50, found.p90, found.p99) == pytest.approx((0.5, 0.9, 0.99))
