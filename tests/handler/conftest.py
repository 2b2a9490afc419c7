"""Reconciles against a cluster in memory."""

from __future__ import annotations

import pytest
from tests.handler.bench import Bench, search


@pytest.fixture
def bench() -> Bench:
    """A cluster with one search that nobody has looked at."""
    bench = Bench()
    bench.cluster.put(search())
    return bench
