from __future__ import annotations

import socket
import threading
from argparse import Namespace
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from ensemble_core.api.ensembledeployment import Serving
from ensemble_core.commands import predict, serve
from ensemble_core.errors import UserError
from ensemble_core.library.records import Signature
from ensemble_core.serving import client
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


@pytest.mark.parametrize("option", ["output", "disagreement"])
def test_a_folder_is_no_file_to_write(arguments, option):
    np.save(arguments.input, np.zeros((1, 8, 8, 1), np.uint8))
    setattr(arguments, option, arguments.input.parent)
    with pytest.raises(UserError, match="is a folder; give a file") as refused:
        predict.run(arguments)
    assert refused.value.where == f"--{option}"
    assert not (arguments.input.parent / "y.npy").exists()


@pytest.mark.parametrize(
    ("names", "where", "problem"),
    [
        ({"output": "x.npy"}, "--output", "x.npy is the file of --input"),
        ({"output": "folder/../x.npy"}, "--output", "x.npy is the file of --input"),
        ({"disagreement": "x.npy"}, "--disagreement", "x.npy is the file of --input"),
        ({"disagreement": "y.npy"}, "--disagreement", "y.npy is the file of --output"),
        ({"disagreement": "link.npy"}, "--disagreement", "link.npy is the file of --input"),
    ],
)
def test_no_file_is_named_twice(arguments, names, where, problem):
    np.save(arguments.input, np.zeros((1, 8, 8, 1), np.uint8))
    folder, before = arguments.input.parent, arguments.input.read_bytes()
    (folder / "folder").mkdir()
    (folder / "link.npy").symlink_to(arguments.input)
    for option, name in names.items():
        setattr(arguments, option, folder / name)
    with pytest.raises(UserError, match=problem) as refused:
        predict.run(arguments)
    assert refused.value.where == where
    assert arguments.input.read_bytes() == before


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:8001", "127.0.0.1", "127.0.0.1:", ":8001", "h:0", "h:65536", "h:8001/", "::1:8001", "a b:1"],
)
def test_a_url_that_is_no_host_and_port_is_refused(arguments, url):
    np.save(arguments.input, np.zeros((1, 8, 8, 1), np.uint8))
    arguments.url = url
    with pytest.raises(UserError, match="must be HOST:PORT of a gRPC endpoint, such as") as refused:
        predict.run(arguments)
    assert (refused.value.where, repr(url) in refused.value.problem) == ("--url", True)


@pytest.mark.parametrize("url", ["127.0.0.1:8001", "[::1]:8001", "digits.default.svc:65535"])
def test_hosts_and_ports_are_accepted(arguments, monkeypatch, url):
    np.save(arguments.input, np.zeros((1, 8, 8, 1), np.uint8))
    monkeypatch.setattr(predict, "predict", lambda url, model, samples: np.ones((len(samples), 10), np.float32))
    arguments.url = url
    assert predict.run(arguments) == 0


def test_who_asks_another_port_than_that_of_grpc_is_told(arguments, monkeypatch, capsys):
    """As an HTTP endpoint does, this one ends the connection."""
    np.save(arguments.input, np.zeros((1, 8, 8, 1), np.uint8))
    monkeypatch.setattr(predict, "describe", client.describe)
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        arguments.url = f"127.0.0.1:{somebody.getsockname()[1]}"
        threading.Thread(target=lambda: somebody.accept()[0].close(), daemon=True).start()
        assert predict.run(arguments) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"ensemble predict: {arguments.url}: ")
    assert told.endswith("; --url must be the gRPC endpoint of a server\n")


def test_a_worker_is_no_model_to_ask(monkeypatch):
    class Worker:
        def get_model_metadata(self, model: str, client_timeout: float) -> SimpleNamespace:
            return SimpleNamespace(inputs=[], outputs=[])

        def get_model_config(self, model: str, client_timeout: float) -> SimpleNamespace:
            return SimpleNamespace(config=SimpleNamespace(backend="member"))

    monkeypatch.setattr(client, "connect", lambda url: nullcontext(Worker()))
    with pytest.raises(UserError, match="is no ensemble that is served") as refused:
        client.describe("127.0.0.1:1", "digits-0030--cpu0--b8")
    assert refused.value.where == "127.0.0.1:1: digits-0030--cpu0--b8"


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
