"""What goes wrong in the threads of the averaging backend in Python ends none of them."""

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

import numpy as np
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


class Error:
    UNAVAILABLE = 14

    def __init__(self, message: str, code: int) -> None:
        self.message, self.code = message, code


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def backend(log: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The backend's module, on a stand-in for what Triton gives it."""
    for folder in ("averaging", "common"):
        monkeypatch.syspath_prepend(BACKENDS / folder)
    triton = SimpleNamespace(
        MetricFamily=MetricFamily,
        Logger=SimpleNamespace(log_error=log.append),
        get_input_tensor_by_name=lambda request, name: np.zeros((2, 4), np.float32),
        InferenceResponse=SimpleNamespace,
        TritonError=Error,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
    )
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


class Full:
    """A request whose answer finds no room."""

    def requested_output_names(self) -> list[str]:
        return []

    def get_response_sender(self) -> Full:
        return self

    def send(self, answer: Any, flags: int) -> None:
        raise RuntimeError("no room for the answer")


def test_an_answer_that_cannot_be_sent_is_logged_and_its_thread_goes_on(backend: ModuleType, log: list[str]) -> None:
    settings = backend.Settings.parse(CONFIG)
    regions = SimpleNamespace(find=lambda samples: ("key", 0))
    job = backend.Job(Full(), settings, backend.Meter(settings), regions)
    job.lose(0, 0, 2, "it is gone")
    assert job.over
    assert log == ["averaging: an answer could not be sent: RuntimeError('no room for the answer')"]
