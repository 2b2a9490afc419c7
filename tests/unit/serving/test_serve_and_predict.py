from __future__ import annotations

import socket
from argparse import Namespace

import numpy as np
import pytest

from ensemble_core.api.ensembledeployment import Serving
from ensemble_core.commands import predict, serve
from ensemble_core.errors import UserError
from ensemble_core.library.records import Signature
from ensemble_core.serving.client import Endpoint


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """Arguments of `predict`, with a server that takes uint8 [N, 8, 8, 1]."""
    endpoint = Endpoint(Signature(input_type="uint8", input_shape=(8, 8, 1), classes=10), 16)
    monkeypatch.setattr(predict, "describe", lambda url, model: endpoint)
    return Namespace(
        url="127.0.0.1:1", model="m", input=tmp_path / "x.npy", output=tmp_path / "y.npy", disagreement=None
    )


@pytest.mark.parametrize(
    ("samples", "problem"),
    [
        (np.zeros((3, 8, 8, 1), np.float32), "the samples are float32; the model takes uint8"),
        (np.zeros((3, 8, 8), np.uint8), r"shape \[3, 8, 8\]; the model takes \[N, 8, 8, 1\]"),
        (np.zeros((), np.uint8), r"shape \[\]"),
    ],
)
def test_samples_that_the_model_does_not_take_are_refused(arguments, samples, problem):
    np.save(arguments.input, samples)
    with pytest.raises(UserError, match=problem) as refused:
        predict.run(arguments)
    assert str(arguments.input) in refused.value.where
    assert not arguments.output.exists()


@pytest.mark.parametrize("content", [None, b"", b"no array", b"\x93NUMPY\x01\x00"])
def test_an_input_that_is_no_array_is_refused(arguments, content):
    if content is not None:
        arguments.input.write_bytes(content)
    with pytest.raises(UserError, match=r"not a readable|cannot be read: No such file"):
        predict.run(arguments)


def test_an_archive_is_refused(arguments):
    np.savez(arguments.input.with_suffix(".npz"), a=np.zeros(1))
    arguments.input = arguments.input.with_suffix(".npz")
    with pytest.raises(UserError, match="is an archive"):
        predict.run(arguments)


def test_objects_are_not_unpickled(arguments):
    np.save(arguments.input, np.array([{}]), allow_pickle=True)
    with pytest.raises(UserError, match="not a readable"):
        predict.run(arguments)


def test_a_missing_output_folder_is_found_before_the_server_is_asked(arguments):
    np.save(arguments.input, np.zeros((1, 8, 8, 1), np.uint8))
    arguments.output = arguments.output.parent / "missing" / "y.npy"
    with pytest.raises(UserError, match="no folder"):
        predict.run(arguments)


def test_the_folder_of_the_disagreement_is_looked_for_too(arguments):
    np.save(arguments.input, np.zeros((1, 8, 8, 1), np.uint8))
    arguments.disagreement = arguments.output.parent / "missing" / "u.npy"
    with pytest.raises(UserError, match="no folder") as refused:
        predict.run(arguments)
    assert refused.value.where == "--disagreement"


@pytest.mark.parametrize(
    ("field", "name"), [("http_port", "httpPort"), ("grpc_port", "grpcPort"), ("metrics_port", "metricsPort")]
)
def test_a_port_in_use_is_refused_with_its_field(field, name):
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        port = somebody.getsockname()[1]
        ports = {"http_port": _free(), "grpc_port": _free(), "metrics_port": _free(), field: port}
        with pytest.raises(UserError, match=f"port {port} .* in use") as refused:
            serve.check_ports("digits.yaml", Serving(**ports))
    assert refused.value.where == f"digits.yaml: spec.serving.{name}"


def test_free_ports_are_accepted():
    serve.check_ports("digits.yaml", Serving(http_port=_free(), grpc_port=_free(), metrics_port=_free()))


def _free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        return somebody.getsockname()[1]
