"""The thread of the averaging backend in Python that watches over deadlines."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from ensemble_core import serving

BACKENDS = Path(serving.__file__).parent / "backends"
SECONDS = 30
CONFIG = {
    "name": "front",
    "input": [{"dims": ["4"]}],
    "output": [{"dims": ["2"]}],
    "parameters": {
        "workers": {
            "string_value": json.dumps(
                {"members": [{"model": "a", "weight": 1, "workers": [{"model": "a0", "batch": 8}]}]}
            )
        }
    },
}


class MetricFamily:
    COUNTER = GAUGE = 0

    def __init__(self, **_: Any) -> None:
        self.Metric = lambda labels: SimpleNamespace(increment=lambda count: None)


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def backend(log: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The backend's module, on a stand-in for what Triton gives it."""
    for folder in ("averaging", "common"):
        monkeypatch.syspath_prepend(BACKENDS / folder)
    triton = SimpleNamespace(MetricFamily=MetricFamily, Logger=SimpleNamespace(log_error=log.append))
    with mock.patch.dict(sys.modules, {"triton_python_backend_utils": triton}):
        spec = importlib.util.spec_from_file_location("averaging_model", BACKENDS / "averaging/model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        yield module


class Job:
    """A request that tells when it was looked at, or cannot be."""

    over = False

    def __init__(self, fails: bool) -> None:
        self.fails = fails
        self.looked = threading.Event()

    def look(self) -> None:
        self.looked.set()
        if self.fails:
            raise RuntimeError("no room for the answer")


def test_a_request_that_cannot_be_ended_is_logged_and_others_keep_their_deadlines(
    backend: ModuleType, log: list[str]
) -> None:
    model = backend.TritonPythonModel()
    model.initialize({"model_config": json.dumps(CONFIG)})
    broken, other = Job(fails=True), Job(fails=False)
    try:
        with model._lock:
            model._jobs.add(broken)
        assert broken.looked.wait(SECONDS)
        with model._lock:
            model._jobs.add(other)
        assert other.looked.wait(SECONDS)
    finally:
        model.finalize()
    assert log[0] == "averaging: a request that is late or cancelled: RuntimeError('no room for the answer')"
