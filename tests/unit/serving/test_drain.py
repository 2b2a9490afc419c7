from __future__ import annotations

import json
import subprocess
import sys
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
    told = capsys.readouterr().err
    assert told.startswith("ensemble drain: the server at 127.0.0.1:1 does not answer: ")
    assert told.endswith("Connection refused\n")


PLAN = '{"plan": {"name": "tiny"}}'


@pytest.mark.parametrize(
    ("plan", "key", "told"),
    [
        (
            None,
            KEY,
            "holds no rendered ensemble (no plan.json: No such file or directory): run `ensemble render` first",
        ),
        ('{"plan": {"na', KEY, "plan.json: is no plan, or not all of one: run `ensemble render` again"),
        ("{}", KEY, "plan.json: is no plan, or not all of one: run `ensemble render` again"),
        ("[]", KEY, "plan.json: is no plan, or not all of one: run `ensemble render` again"),
        (PLAN, None, "(no control-key: No such file or directory): run `ensemble render` first"),
        (PLAN, "0", "control-key: is too short or too long: run `ensemble render` again"),
    ],
)
def test_a_folder_that_holds_no_ensemble_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], plan: str | None, key: str | None, told: str
) -> None:
    for name, content in (("plan.json", plan), ("control-key", key)):
        if content is not None:
            (tmp_path / name).write_text(content)
    assert main(["drain", "--repository", str(tmp_path), "--http-port", "1", "--within", "1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"ensemble drain: {tmp_path}")
    assert error.endswith(f"{told}\n")


def test_a_server_that_is_no_triton_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"[1]")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        assert drain(tmp_path, server.server_port) == 1
        server.shutdown()
    assert f"the server at 127.0.0.1:{server.server_port} does not answer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--within", "-3", "argument --within: -3 must be from 0 to 1000000"),
        ("--within", "nan", "argument --within: nan must be from 0 to 1000000"),
        ("--after", "inf", "argument --after: inf must be from 0 to 1000000"),
        ("--http-port", "0", "argument --http-port: 0 must be from 1 to 65535"),
    ],
)
def test_numbers_that_are_not_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, told: str
) -> None:
    given = {"--repository": str(tmp_path), "--http-port": "1", "--within": "1", option: value}
    with pytest.raises(SystemExit) as refused:
        main(["drain", *(word for pair in given.items() for word in pair)])
    assert refused.value.code == 2
    assert capsys.readouterr().err.endswith(f"ensemble drain: error: {told}\n")


def test_next_to_nothing_is_imported() -> None:
    code = "import sys; from ensemble_core.commands import drain; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    imported = set(done.stdout.split())
    assert "ensemble_core.commands.drain" in imported
    assert not {"pydantic", "numpy", "yaml", "google", "tritonclient"}.intersection(imported)
