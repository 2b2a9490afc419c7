from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ensemble_core.runner.gather import matrix_facts
from ensemble_core.serving.load import Window, summary


def window(throughput: float) -> Window:
    return Window(seconds=1, requests=10, throughput=throughput, foreign_cores=0, client_cores=0)


def test_a_throughput_plus_and_minus_its_spread_covers_the_windows() -> None:
    measured = summary([window(90), window(110)], np.array([0.1]), size=8)
    throughput = SimpleNamespace(samples_per_second=measured.throughput, spread=measured.spread)
    allocation: Any = SimpleNamespace(
        devices=[SimpleNamespace(name="cpu0")],
        members=[SimpleNamespace(model_id="m")],
        matrix=((8,),),
        benchmarks=[SimpleNamespace(matrix=((8,),), throughput=throughput)],
    )
    ((facts,), best) = matrix_facts(allocation)
    assert best == 0
    assert facts.throughput * (1 - facts.spread) == pytest.approx(90)
    assert facts.throughput * (1 + facts.spread) == pytest.approx(110)
