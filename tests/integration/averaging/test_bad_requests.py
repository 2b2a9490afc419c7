"""Requests and configurations that are wrong: an error that says what, and the server goes on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from tests.support.averaging import WIDTH, Server, Worker, rows
from tritonclient import grpc
from tritonclient.utils import np_to_triton_dtype

from ensemble_core.serving.client import connect
from ensemble_core.serving.errors import LoadError, ServingError

pytestmark = pytest.mark.timeout(300)

MOST = 100_000  # samples of a request


@pytest.mark.parametrize(
    ("samples", "problem"),
    [
        pytest.param(rows(5)[:, :3], r"unexpected shape for input 'INPUT'.*\[-1,4\], got \[5,3\]", id="shape"),
        pytest.param(rows(5)[0], r"unexpected shape for input 'INPUT'.*\[-1,4\], got \[4\]", id="one sample alone"),
        pytest.param(rows(5).astype(np.int32), "'INPUT' data-type is 'INT32', but .* expects 'FP32'", id="type"),
        pytest.param(rows(0), "byte size mismatch for input 'INPUT'.*, got 0", id="no samples"),
        pytest.param(rows(MOST + 1), rf"batch-size must be <= {MOST}", id="too many samples"),
    ],
)
def test_a_wrong_request_is_refused(server: Server, samples: npt.NDArray[np.generic], problem: str):
    with server.front("wrong", {"a": [Worker("a0")]}) as front:
        given = grpc.InferInput("INPUT", list(samples.shape), np_to_triton_dtype(samples.dtype))
        given.set_data_from_numpy(samples)
        with pytest.raises(ServingError, match=problem), connect(server.url) as client:
            client.infer(front, [given], client_timeout=60)
        assert server.ask(front, rows(5)).answered.all()
        assert server.metrics("ensemble_requests_total", model=front) == 1


def test_a_request_that_is_shorter_than_it_says_is_refused(server: Server):
    with server.front("short", {"a": [Worker("a0")]}) as front:
        given = grpc.InferInput("INPUT", [5, WIDTH], "FP32")
        given.set_data_from_numpy(rows(5))
        given._raw_content = given._raw_content[:-4]
        with pytest.raises(ServingError, match="INPUT"), connect(server.url) as client:
            client.infer(front, [given], client_timeout=60)
        assert server.ask(front, rows(5)).answered.all()


@pytest.mark.parametrize("samples", [0, 1 << 32])
def test_a_number_of_samples_that_triton_cannot_count_is_refused_and_no_worker_s_fault(server: Server, samples: int):
    with server.front("count", {"a": [Worker("a0")]}, quorum=1, retries=2) as front:
        given = grpc.InferInput("INPUT", [samples, WIDTH], "FP32")
        given._raw_content = rows(1).tobytes()
        for _ in range(4):
            with (
                pytest.raises(ServingError, match=r"averaging: a request needs at least one sample of shape \[4\]"),
                connect(server.url) as client,
            ):
                client.infer(front, [given], client_timeout=60)
        assert server.ask(front, rows(5)).answered.all()
        assert server.metrics("ensemble_calls_total", model=front) == 1


@pytest.mark.parametrize(
    ("worker", "parameters", "problem"),
    [
        (Worker("a0", batch=0), {}, "member a: batch: 0"),
        (Worker("a0", share=0), {}, "member a: share: 0"),
        (Worker("a0"), {"weights": [-1]}, "member a: weight: -1"),
        (Worker("a0"), {"segment_size": 0}, "segment_size: 0"),
        (Worker("a0"), {"retries": -1}, "retries: -1"),
        (Worker("a0"), {"deadline_seconds": 0}, "deadline_seconds: 0"),
        (Worker("a0"), {"deadline_seconds": "soon"}, "deadline_seconds: "),
    ],
)
def test_a_number_that_cannot_be_right_does_not_load(server: Server, worker: Worker, parameters: dict, problem: str):
    with pytest.raises(LoadError, match=problem), server.front("numbers", {"a": [worker]}, **parameters):
        pass
    server.process.control.unload(worker.name)
