"""The report: content, pace, bounds, both targets."""

from __future__ import annotations

import argparse
import http.server
import json
import ssl
import threading
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

from ensemble_core.errors import UserError
from ensemble_core.library.searches import Fenced
from ensemble_core.report import (
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
    ],
)
def test_reports_are_bounded(content: dict[str, Any]) -> None:
    data = encode({**IDENTITY, "sequence": 1, "state": "Failed", **content})
    assert len(data) <= MAX_BYTES
    read = json.loads(data)
    assert read["verb"] == "train"
    if "result" in content:
        assert read["result"]["summary"] == {"models": 3, "omitted": True}


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
    """Answers PATCHes of ConfigMaps as the API server would; the first `refusals` are answered 503."""

    refusals = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ApiHandler)
        self.patches: list[tuple[str, dict[str, str], Any]] = []


class ApiHandler(http.server.BaseHTTPRequestHandler):
    server: ApiServer

    def do_PATCH(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.refusals:
            self.server.refusals -= 1
            self.send_response(503)
        else:
            self.server.patches.append((self.path, dict(self.headers), body))
            self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

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


def test_another_certificate_is_not_trusted(api: ApiServer, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    write_certificate(tmp_path / "other")
    sink = ConfigMapSink(
        "team", "digits-report", "localhost", api.server_port, account=tmp_path / "other", patience=0.1
    )
    Report(sink, IDENTITY).fail("x")
    assert api.patches == []
