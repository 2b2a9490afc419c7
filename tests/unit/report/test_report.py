"""The report: content, pace, bounds, both targets."""

from __future__ import annotations

import argparse
import http.server
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ensemble_core.errors import OutageError, UserError
from ensemble_core.library.searches import Fenced
from ensemble_core.report import (
    END_SECONDS,
    MAX_BYTES,
    CommandError,
    ConfigMapSink,
    Report,
    encode,
    open_report,
    run_reported,
)

IDENTITY = {"schemaVersion": 1, "verb": "train", "specHash": "0" * 64, "attempt": 1, "ownerUid": ""}


@dataclass
class Memory:
    """A sink that keeps what was written; the first `failures` writes fail."""

    interval: float = 3600.0
    patience: float = 30.0
    repeat: float = 3600.0
    failures: int = 0
    written: list[dict[str, Any]] = field(default_factory=list)
    arrived: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def write(self, data: bytes) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError("no room")
        self.written.append(json.loads(data))
        self.arrived.release()


def test_one_write_per_interval_plus_the_last() -> None:
    sink = Memory()
    report = Report(sink, IDENTITY)
    for done in range(100):
        report.progress(stage="train", done=done, total=100, note="")
        if done == 0:
            assert sink.arrived.acquire(timeout=30)
    report.succeed({"digest": "d", "summary": {"models": 100}})
    assert [w["state"] for w in sink.written] == ["Running", "Succeeded"]
    assert sink.written[0]["progress"]["done"] == 0
    assert sink.written[1]["progress"]["done"] == 99
    assert sink.written[1]["result"] == {"digest": "d", "summary": {"models": 100}}
    sequences = [w["sequence"] for w in sink.written]
    assert sequences == sorted(set(sequences))


def test_values_are_put_together_only_when_they_are_written() -> None:
    sink, asked = Memory(), 0

    def values() -> dict[str, Any]:
        nonlocal asked
        asked += 1
        return {"done": asked}

    report = Report(sink, IDENTITY)
    for _ in range(1000):
        report.progress_of(values)
    assert sink.arrived.acquire(timeout=30)
    for _ in range(1000):
        report.progress_of(values)
    report.succeed({"digest": None, "summary": {}})
    assert asked == 2
    assert [written["progress"]["done"] for written in sink.written] == [1, 2]


def test_what_did_not_change_is_not_written_again() -> None:
    sink = Memory(interval=0.01)
    report = Report(sink, IDENTITY)
    asked = threading.Semaphore(0)

    def values() -> dict[str, Any]:
        asked.release()
        return {"done": 1}

    for _ in range(20):
        report.progress_of(values)
        assert asked.acquire(timeout=30)
    report.abandon()
    assert [written["sequence"] for written in sink.written] == [1]


def test_what_did_not_change_for_long_is_written_again_as_it_was() -> None:
    """As when somebody has changed the ConfigMap: nobody else would put it right."""
    sink = Memory(interval=0.01, repeat=0.05)
    report = Report(sink, IDENTITY)
    deadline = time.monotonic() + 30
    while len(sink.written) < 3 and time.monotonic() < deadline:
        report.progress(done=1)
        time.sleep(0.01)
    report.abandon()
    assert len(sink.written) >= 3
    assert all(written == sink.written[0] for written in sink.written)


def test_a_write_that_failed_is_repeated_though_nothing_changes(capsys: pytest.CaptureFixture[str]) -> None:
    """As when somebody deletes the ConfigMap and the operator makes it again."""
    sink = Memory(interval=0.01, failures=5)
    report = Report(sink, IDENTITY)
    report.progress(done=1)
    assert sink.arrived.acquire(timeout=30)
    report.abandon()
    assert [written["progress"] for written in sink.written] == [{"done": 1}]
    said = capsys.readouterr().err.splitlines()  # once, not at each try
    assert said == ["report not stored, will be retried: no room", "report stored again"]


def test_putting_reports_together_takes_little_of_the_time() -> None:
    sink, began = Memory(interval=0.0), time.monotonic()
    busy = 0.0

    def values() -> dict[str, Any]:
        nonlocal busy
        time.sleep(0.05)
        busy += 0.05
        return {"done": busy}

    report = Report(sink, IDENTITY)
    while time.monotonic() < began + 2.5:
        report.progress_of(values)
        time.sleep(0.01)
    report.abandon()
    assert busy <= 0.05 * 4


def test_the_result_s_summary_takes_the_place_of_the_progress_s() -> None:
    sink = Memory()
    report = Report(sink, IDENTITY)
    report.progress(done=1, summary={"models": 1})
    report.succeed({"digest": None, "summary": {"models": 2}})
    assert sink.written[-1]["progress"] == {"done": 1}
    assert sink.written[-1]["result"]["summary"] == {"models": 2}


def test_a_failure_keeps_how_far_the_work_came() -> None:
    sink = Memory()
    report = Report(sink, IDENTITY)
    report.progress(done=1, summary={"models": 1})
    report.fail("no")
    assert sink.written[-1]["progress"] == {"done": 1, "summary": {"models": 1}}


def test_an_interrupted_report_waits_for_nobody() -> None:
    class Stuck(Memory):
        def write(self, data: bytes) -> None:
            self.arrived.release()
            time.sleep(30)

    sink = Stuck()
    report = Report(sink, IDENTITY)
    report.progress(done=1)
    assert sink.arrived.acquire(timeout=30)
    began = time.monotonic()
    report.interrupt()
    assert time.monotonic() < began + END_SECONDS


def test_the_last_write_is_retried_until_stored() -> None:
    sink = Memory(failures=3)
    Report(sink, IDENTITY).succeed({"digest": "", "summary": {}})
    assert [w["state"] for w in sink.written] == ["Succeeded"]


def test_the_last_write_gives_up_without_raising(capsys: pytest.CaptureFixture[str]) -> None:
    sink = Memory(failures=10**6, patience=0.1)
    Report(sink, IDENTITY).fail("x")
    assert sink.written == []
    assert "could not be stored" in capsys.readouterr().err


def test_a_closed_report_says_nothing_more() -> None:
    sink = Memory()
    report = Report(sink, IDENTITY)
    report.abandon()
    report.progress(stage="train", done=1, total=1, note="")
    report.succeed({"digest": "", "summary": {}})
    assert sink.written == []


@pytest.mark.parametrize(
    "content",
    [
        {"result": {"digest": "d", "summary": {"front": ["x" * 100] * 2000, "models": 3}}},
        {"error": {"message": "m" * 200_000, "logTail": "l"}},
        {"progress": {"note": "n" * 200_000}},
        {"progress": {"summary": {"front": ["x" * 100] * 2000, "models": 3}}},
        {"progress": {"summary": {"front": ["x" * 100] * 2000}}, "result": {"summary": {"a": ["y" * 100] * 2000}}},
    ],
)
def test_reports_are_bounded(content: dict[str, Any]) -> None:
    data = encode({**IDENTITY, "sequence": 1, "state": "Failed", **content})
    assert len(data) <= MAX_BYTES
    read = json.loads(data)
    assert read["verb"] == "train"
    for place in ("result", "progress"):
        if "summary" in content.get(place, {}):
            kept = {"models": 3} if "models" in content[place]["summary"] else {}
            assert read[place]["summary"] == {**kept, "omitted": True}


def arguments(tmp_path: Path) -> argparse.Namespace:
    (tmp_path / "spec.yaml").write_text("kind: HPOSearch\n")
    return argparse.Namespace(spec=str(tmp_path / "spec.yaml"), report=f"file:{tmp_path}/out/report.json")


def read(tmp_path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((tmp_path / "out/report.json").read_text())
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["report.json"]
    return content


def test_success_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENSEMBLE_ATTEMPT", "4")
    monkeypatch.setenv("ENSEMBLE_OWNER_UID", "u-1")
    assert run_reported(arguments(tmp_path), "train", lambda report: {"digest": "d", "summary": {}}) == 0
    content = read(tmp_path)
    assert (content["state"], content["attempt"], content["ownerUid"]) == ("Succeeded", 4, "u-1")
    assert len(content["specHash"]) == 64


def test_success_that_could_not_be_told_is_to_be_told_by_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With an exit code that has a Job tried again; the next try finds the work done."""
    sink = Memory(failures=10**6, patience=0.1)
    monkeypatch.setattr("ensemble_core.report._sink", lambda target: sink)
    assert run_reported(arguments(tmp_path), "train", lambda report: {"digest": "d", "summary": {}}) == 1
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "the last report could not be stored: no room",
        "ensemble train: the work is done, but that is not stored; the same command tells it",
    ]


def test_success_that_came_after_an_interruption_was_told_is_no_success(tmp_path: Path) -> None:
    def body(report: Report) -> dict[str, Any]:
        report.interrupt()
        return {"digest": "d", "summary": {}}

    assert run_reported(arguments(tmp_path), "train", body) == 1
    assert read(tmp_path)["progress"]["note"] == "interrupted"


@pytest.mark.parametrize(
    ("error", "code"), [(CommandError("too many failures"), 1), (CommandError("no", exit_code=5), 5)]
)
def test_failures_are_reported_with_their_exit_code(tmp_path: Path, error: CommandError, code: int) -> None:
    assert run_reported(arguments(tmp_path), "train", raiser(error)) == code
    assert read(tmp_path)["error"]["message"] == str(error)


def test_bad_input_is_reported_and_raised(tmp_path: Path) -> None:
    error = UserError("digits.yaml: spec.seed", "-1 is below 0")
    with pytest.raises(UserError):
        run_reported(arguments(tmp_path), "train", raiser(error))
    assert read(tmp_path)["error"] == {"field": "digits.yaml: spec.seed", "message": "-1 is below 0"}


def test_unexpected_errors_leave_a_bounded_log_tail(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run_reported(arguments(tmp_path), "train", raiser(ZeroDivisionError("x" * 10_000)))
    content = read(tmp_path)
    assert content["state"] == "Failed"
    assert len(content["error"]["logTail"]) <= 4096


def test_what_is_cut_off_by_an_outage_is_not_judged(tmp_path: Path) -> None:
    assert run_reported(arguments(tmp_path), "train", raiser(OutageError("Ray is gone"))) == 1
    content = read(tmp_path)
    assert (content["state"], content["progress"]["note"]) == ("Running", "interrupted: Ray is gone")
    assert "error" not in content


def test_ctrl_c_is_not_judged(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_reported(arguments(tmp_path), "train", raiser(KeyboardInterrupt()))
    assert read(tmp_path)["progress"] == {"note": "interrupted"}


WAITING = """
import argparse, ctypes, signal, sys, time
from ensemble_core.report import run_reported

def body(report):
    report.progress(stage="train", done=1, total=2, note="busy")
    print("ready", flush=True)
    if "deaf" in sys.argv:  # as in a library that waits without looking at signals
        libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
        for _ in range(2):
            libc.pthread_mutex_lock(mutex)
    try:
        time.sleep(600)
    finally:
        if "stuck" in sys.argv:
            time.sleep(600)

sys.exit(run_reported(argparse.Namespace(spec=sys.argv[1], report=sys.argv[2]), "train", body))
"""


def unshare() -> list[str]:
    """A command that makes the next one process 1 of a container's kind; empty where that is not allowed."""
    command = ["unshare", "--pid", "--fork", "--kill-child"]
    try:
        allowed = subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    return command if allowed else []


@pytest.mark.parametrize("kind", ["willing", "stuck", "deaf", "process 1"])
def test_sigterm_ends_a_command_soon_and_without_a_verdict(tmp_path: Path, kind: str) -> None:
    prefix = unshare() if kind == "process 1" else []
    if kind == "process 1" and not prefix:
        pytest.skip("needs the right to make a process namespace")
    given = arguments(tmp_path)
    command = [*prefix, sys.executable, "-c", WAITING, given.spec, given.report, kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        began = time.monotonic()
        os.kill(child_of(process.pid) if prefix else process.pid, signal.SIGTERM)
        assert process.wait(30) == 143
        assert time.monotonic() < began + END_SECONDS + 1
    content = read(tmp_path)
    assert content["state"] == "Running"
    assert content["progress"]["note"] == "interrupted"


def child_of(process: int) -> int:
    return int(Path(f"/proc/{process}/task/{process}/children").read_text().split()[0])


def test_a_fenced_command_leaves_the_report_alone(tmp_path: Path) -> None:
    assert run_reported(arguments(tmp_path), "train", raiser(Fenced("attempt 2 has taken over"))) == 3
    assert not (tmp_path / "out").exists()


def raiser(error: BaseException) -> Any:
    def body(report: Report) -> dict[str, Any]:
        raise error

    return body


@pytest.mark.parametrize("target", ["", "file:", "configmap:x", "configmap:/x", "configmap:a/b/c", "http://x"])
def test_unknown_targets_are_refused(target: str) -> None:
    with pytest.raises(UserError, match="--report"):
        open_report(target, "train", "")


def test_a_configmap_needs_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(UserError, match="KUBERNETES_SERVICE_HOST"):
        open_report("configmap:team/digits", "train", "")


def test_no_target_is_no_effort() -> None:
    report = open_report(None, "train", "")
    report.progress(stage="train", done=1, total=2, note="")
    report.succeed({"digest": "", "summary": {}})


class ApiServer(http.server.ThreadingHTTPServer):
    """Answers PATCHes of ConfigMaps as the API server would; the first `refusals` are answered 503 or `status`."""

    refusals = 0
    status = 503
    answer = b""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ApiHandler)
        self.patches: list[tuple[str, dict[str, str], Any]] = []


class ApiHandler(http.server.BaseHTTPRequestHandler):
    server: ApiServer

    def do_PATCH(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.refusals:
            self.server.refusals -= 1
            self.send_response(self.server.status)
            answer = self.server.answer
        else:
            self.server.patches.append((self.path, dict(self.headers), body))
            self.send_response(200)
            answer = self.server.answer if self.server.status == 200 else b'{"data": {}}'
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


def write_certificate(folder: Path) -> None:
    """A self-signed certificate for localhost: `ca.crt`, `server.pem`, and a token beside them."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    begin = datetime.now(UTC).replace(tzinfo=None) - timedelta(days=1)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), begin)
        .not_valid_after(begin + timedelta(days=3))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "ca.crt").write_bytes(certificate)
    (folder / "server.pem").write_bytes(private + certificate)
    (folder / "token").write_text("secret-token\n")


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    write_certificate(tmp_path)
    server = ApiServer()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join(timeout=30)
    server.server_close()


def test_a_configmap_is_patched_over_https(api: ApiServer, tmp_path: Path) -> None:
    api.refusals = 2
    sink = ConfigMapSink("team", "digits-report", "localhost", api.server_port, account=tmp_path, patience=30)
    Report(sink, IDENTITY).succeed({"digest": "d", "summary": {}})
    ((path, headers, body),) = api.patches
    assert path == "/api/v1/namespaces/team/configmaps/digits-report"
    assert headers["Authorization"] == "Bearer secret-token"
    assert headers["Content-Type"] == "application/merge-patch+json"
    assert list(body) == ["data"]
    assert list(body["data"]) == ["report.json"]
    assert json.loads(body["data"]["report.json"])["state"] == "Succeeded"


@pytest.mark.parametrize(
    ("status", "answer", "told"),
    [
        (
            403,
            b'{"kind": "Status", "message": "configmaps \\"x\\" is forbidden"}',
            '403 .*: configmaps "x" is forbidden',
        ),
        (404, b'{"kind": "Status", "message": "configmaps \\"x\\" not found"}', '404 .*: configmaps "x" not found'),
        (502, b"<html>bad gateway", "502 .*: <html>bad gateway"),
    ],
)
def test_the_api_server_s_reason_is_said_once_and_the_report_goes_on(
    api: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], status: int, answer: bytes, told: str
) -> None:
    api.refusals, api.status, api.answer = 4, status, answer
    sink = ConfigMapSink("team", "x", "localhost", api.server_port, account=tmp_path, interval=0.01)
    report = Report(sink, IDENTITY)
    report.progress(done=1)
    deadline = time.monotonic() + 30
    while not api.patches:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    report.abandon()
    first, last = capsys.readouterr().err.splitlines()
    assert re.search(told, first)
    assert "configmap team/x" in first
    assert last == "report stored again"


def test_pods_that_share_a_configmap_have_keys_of_their_own(
    api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ensemble_core.report.SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "localhost")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(api.server_port))
    for key in ("digits-1-a", "digits-1-b", ""):
        monkeypatch.setenv("ENSEMBLE_REPORT_KEY", key)
        assert open_report("configmap:team/digits-report", "agent", "0" * 64).succeed({})
    assert [list(body["data"]) for _, _, body in api.patches] == [["digits-1-a"], ["digits-1-b"], ["report.json"]]


@pytest.mark.parametrize(("others", "cleared"), [(8, []), (9, [{f"gone-{i}": None for i in range(9)}])])
def test_what_pods_that_are_gone_have_left_is_cleared_when_it_is_much(
    api: ApiServer, tmp_path: Path, others: int, cleared: list[Any]
) -> None:
    """A ConfigMap holds 1 MiB; who lives tells again within minutes."""
    mine = ConfigMapSink("team", "x", "localhost", api.server_port, account=tmp_path, key="mine")
    left = {f"gone-{i}": "x" * MAX_BYTES for i in range(others)}
    api.status, api.answer = 200, json.dumps({"data": {"mine": "{}", **left}}).encode()
    mine.write(b"{}")
    assert [body["data"] for _, _, body in api.patches] == [{"mine": "{}"}, *cleared]


def test_another_certificate_is_not_trusted(api: ApiServer, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    write_certificate(tmp_path / "other")
    sink = ConfigMapSink(
        "team", "digits-report", "localhost", api.server_port, account=tmp_path / "other", patience=0.1
    )
    Report(sink, IDENTITY).fail("x")
    assert api.patches == []
