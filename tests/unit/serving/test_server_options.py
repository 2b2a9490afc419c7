"""`ensemble server` on addresses and ports that it cannot have, and on folders, as `agent` and `drain`."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from ensemble_core.cli import main
from ensemble_core.serving import rendered
from ensemble_core.serving.installation import Ports
from ensemble_core.serving.process import choose


def told(folder: Path, capsys: pytest.CaptureFixture[str], address: str, ports: tuple[int, ...]) -> str:
    """What the command says before it looks for Triton, and ends with code 2."""
    (folder / "control-key").write_text("0" * rendered.KEY_LENGTH)
    options = zip(("--http-port", "--grpc-port", "--metrics-port"), map(str, ports), strict=True)
    given = ["--repository", str(folder), "--address", address, *(word for option in options for word in option)]
    assert main(["server", *given]) == 2
    return capsys.readouterr().err


@pytest.fixture(autouse=True)
def mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendered, "open_to_group", lambda: None)


@pytest.mark.parametrize("address", ["not an address", "192.0.2.1"])
def test_an_address_that_is_not_here_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], address: str) -> None:
    error = told(tmp_path, capsys, address, choose(Ports()).numbers())
    assert error.startswith(f"ensemble server: --address: {address} is no address of this machine")


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ((0, 0, 1), "--grpc-port: {} is the port of --http-port; give another"),
        ((0, 1, 0), "--metrics-port: {} is the port of --http-port; give another"),
        ((1, 0, 0), "--metrics-port: {} is the port of --grpc-port; give another"),
    ],
)
def test_a_port_given_twice_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], places: tuple[int, ...], words: str
) -> None:
    free = choose(Ports()).numbers()
    error = told(tmp_path, capsys, "127.0.0.1", tuple(free[place] for place in places))
    assert error == f"ensemble server: {words.format(free[0])}\n"


def test_a_port_in_use_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = told(tmp_path, capsys, "127.0.0.1", (*choose(Ports()).numbers()[:2], port))
    assert error == f"ensemble server: --metrics-port: 127.0.0.1:{port} cannot be listened on; is it in use?\n"


@pytest.mark.parametrize(
    "rest", ["drain --within 1", "agent", "server --address localhost --grpc-port 2 --metrics-port 3"]
)
def test_a_folder_that_is_not_there_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, rest: str
) -> None:
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    verb, *others = rest.split()
    assert main([verb, "--repository", str(tmp_path / "no"), "--http-port", "1", *others]) == 2
    assert capsys.readouterr().err == f"ensemble {verb}: --repository: there is no folder {tmp_path}/no\n"
