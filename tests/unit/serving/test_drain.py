from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ensemble_core.cli import main
from ensemble_core.serving.installation import CONTROL_HEADER

KEY = "0" * 64
Triton = Callable[[list[str]], tuple[int, list[str]]]


@pytest.fixture
def triton() -> Iterator[Triton]:
    """Starts Triton's repository API for a model `tiny` of these states: its port, and what it was asked."""
    servers: list[ThreadingHTTPServer] = []

    def start(states: list[str]) -> tuple[int, list[str]]:
        asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked.append(self.path)
                allowed = self.headers[CONTROL_HEADER] == KEY
                body = b""
                if self.path.endswith("index"):
                    state = states.pop(0) if len(states) > 1 else states[0]
                    body = json.dumps([{"name": "other", "state": "READY"}, {"name": "tiny", "state": state}]).encode()
                self.send_response(200 if allowed else 403)
                self.end_headers()
                self.wfile.write(body if allowed else b'{"error": "This API is restricted"}')

            def log_message(self, *_: object) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1].server_port, asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def drain(folder: Path, port: int, key: str = KEY, within: str = "60") -> int:
    (folder / "plan.json").write_text(json.dumps({"plan": {"name": "tiny"}}))
    (folder / "control-key").write_text(key)
    return main(["drain", "--repository", str(folder), "--http-port", str(port), "--within", within])


def test_the_front_model_is_unloaded_and_has_answered(tmp_path: Path, triton: Triton) -> None:
    port, asked = triton(["UNLOADING", "UNLOADING", "UNAVAILABLE"])
    assert drain(tmp_path, port) == 0
    assert asked == ["/v2/repository/models/tiny/unload", *["/v2/repository/index"] * 3]


def test_what_takes_longer_is_told(tmp_path: Path, triton: Triton, capsys: pytest.CaptureFixture[str]) -> None:
    port, _ = triton(["UNLOADING"])
    assert drain(tmp_path, port, within="0.3") == 1
    assert capsys.readouterr().err == "ensemble drain: not everything was answered within 0.3 s\n"


def test_a_wrong_key_is_told(tmp_path: Path, triton: Triton, capsys: pytest.CaptureFixture[str]) -> None:
    port, _ = triton(["READY"])
    assert drain(tmp_path, port, key="1" * 64) == 1
    assert "This API is restricted" in capsys.readouterr().err


def test_a_server_that_is_gone_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert drain(tmp_path, 1) == 1
    assert capsys.readouterr().err.startswith("ensemble drain: ConnectionRefusedError: ")
