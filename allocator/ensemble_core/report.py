"""What a workload tells whoever started it: one JSON document, `report.json`, replaced as the work goes on.

    {schemaVersion, verb, specHash, attempt, ownerUid, sequence, state: Running|Succeeded|Failed,
     progress{stage, done, total, note}, result{digest, summary}, error{field, value, allowed, message, logTail}}

A thread of its own writes the newest content at the target's pace, so that the work never waits for storage; the last
content is written by the caller's thread and retried until stored or out of patience.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import ssl
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ensemble_core.errors import UserError
from ensemble_core.library.searches import Fenced

SCHEMA_VERSION = 1
MAX_BYTES = 64 * 1024
MAX_LOG_TAIL = 4 * 1024
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
FENCED = 3


class Sink(Protocol):
    """Where reports go; `interval` seconds lie between two writes, the last is retried for `patience` seconds."""

    @property
    def interval(self) -> float: ...

    @property
    def patience(self) -> float: ...

    def write(self, data: bytes) -> None: ...  # OSError or http.client.HTTPException if not stored


@dataclass(frozen=True)
class FileSink:
    """A local file, replaced atomically."""

    path: Path
    interval: float = 0.2
    patience: float = 5.0

    def write(self, data: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        scratch.write_bytes(data)
        scratch.replace(self.path)


@dataclass(frozen=True)
class ConfigMapSink:
    """The key `report.json` of a ConfigMap, patched through the API server of the cluster this process runs in."""

    namespace: str
    name: str
    host: str
    port: int
    account: Path = SERVICE_ACCOUNT
    interval: float = 10.0
    patience: float = 120.0

    def write(self, data: bytes) -> None:
        # The kubelet renews token and CA files: both are read anew each time.
        context = ssl.create_default_context(cafile=str(self.account / "ca.crt"))
        token = (self.account / "token").read_text().strip()
        connection = http.client.HTTPSConnection(self.host, self.port, timeout=10, context=context)
        try:
            connection.request(
                "PATCH",
                f"/api/v1/namespaces/{self.namespace}/configmaps/{self.name}",
                body=json.dumps({"data": {"report.json": data.decode()}}).encode(),
                headers={"Authorization": f"Bearer {token}", "Content-Type": "application/merge-patch+json"},
            )
            status = connection.getresponse().status
        finally:
            connection.close()
        if status >= 300:
            raise OSError(f"the API server answered {status} to the patch of configmap {self.namespace}/{self.name}")


class CommandError(Exception):
    """The command ends with an exit code other than 0, for a reason told in one sentence."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Report:
    """One workload's report; without a sink every method does nothing."""

    def __init__(self, sink: Sink | None, identity: Mapping[str, Any]) -> None:
        self._sink = sink
        self._content: dict[str, Any] = {**identity, "sequence": 0, "state": "Running"}
        self._changed = threading.Condition()
        self._dirty = self._closed = False
        self._thread: threading.Thread | None = None

    def progress(self, **values: Any) -> None:
        """Tell how far the work is: `stage` (str), `done` and `total` (int), `note` (str). Never blocks on storage."""
        if self._sink is None or self._closed:
            return
        with self._changed:
            self._content["progress"] = values
            self._dirty = True
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_changes, args=(self._sink,), daemon=True)
            self._thread.start()

    def succeed(self, result: Mapping[str, Any]) -> None:
        """Tell the result, `{digest, summary}`, and close."""
        self._finish({"state": "Succeeded", "result": dict(result)})

    def fail(self, error: UserError | str, log_tail: str = "") -> None:
        """Tell what is wrong and close; of `log_tail` the last 4 KiB are kept."""
        if isinstance(error, UserError):
            content: dict[str, Any] = {"field": error.where, "message": error.problem}
        else:
            content = {"message": error}
        if log_tail:
            content["logTail"] = log_tail.encode()[-MAX_LOG_TAIL:].decode(errors="ignore")
        self._finish({"state": "Failed", "error": content})

    def abandon(self) -> None:
        """Close without a word: the report belongs to a newer attempt."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _finish(self, values: Mapping[str, Any]) -> None:
        if self._sink is None or self._closed:
            return
        self.abandon()
        self._content.update(values)
        _store(self._sink, self._next())

    def _next(self) -> bytes:
        self._content["sequence"] += 1
        return encode(self._content)

    def _write_changes(self, sink: Sink) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._dirty or self._closed)
                if self._closed:
                    return
                self._dirty, data = False, self._next()
            try:
                sink.write(data)
            except (OSError, http.client.HTTPException) as error:
                print(f"report not stored, will be retried: {error}", file=sys.stderr)
                self._dirty = True
            with self._changed:
                self._changed.wait_for(lambda: self._closed, timeout=sink.interval)


def _store(sink: Sink, data: bytes) -> None:
    """Write the last content; retries with growing pauses until the sink's patience ends."""
    deadline, pause = time.monotonic() + sink.patience, 0.2
    while True:
        try:
            return sink.write(data)
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() + pause > deadline:
                print(f"the last report could not be stored: {error}", file=sys.stderr)
                return
        time.sleep(pause)
        pause = min(2 * pause, 5.0)


def encode(content: Mapping[str, Any]) -> bytes:
    """The report as JSON of at most 64 KiB: the largest entries of the summary, then the longest texts, give way."""
    data = json.dumps(content).encode()
    if len(data) <= MAX_BYTES:
        return data
    result, error = dict(content.get("result", {})), dict(content.get("error", {}))
    summary = dict(result.get("summary", {}))
    omitted = sorted(summary, key=lambda key: len(json.dumps(summary[key])))
    while omitted and len(data) > MAX_BYTES:
        del summary[omitted.pop()]
        result["summary"] = {**summary, "omitted": True}
        data = json.dumps({**content, "result": result}).encode()
    if len(data) <= MAX_BYTES:
        return data
    shortened = {key: str(value)[:MAX_LOG_TAIL] for key, value in error.items()}
    return json.dumps({**content, "progress": {}, "result": {}, "error": shortened}).encode()


def open_report(target: str | None, verb: str, spec_hash: str) -> Report:
    """A report for `file:PATH`, `configmap:NAMESPACE/NAME`, or nobody (none).

    `ENSEMBLE_ATTEMPT` and `ENSEMBLE_OWNER_UID` come from whoever starts the workload and are given back as they are.
    """
    identity = {
        "schemaVersion": SCHEMA_VERSION,
        "verb": verb,
        "specHash": spec_hash,
        "attempt": int(os.environ.get("ENSEMBLE_ATTEMPT", "1")),
        "ownerUid": os.environ.get("ENSEMBLE_OWNER_UID", ""),
    }
    return Report(None if target is None else _sink(target), identity)


def _sink(target: str) -> Sink:
    scheme, _, rest = target.partition(":")
    if scheme == "file" and rest:
        return FileSink(_writable(Path(rest)))
    namespace, _, name = rest.partition("/")
    if scheme != "configmap" or not namespace or not name or "/" in name:
        raise UserError("--report", f"{target!r} must be file:PATH or configmap:NAMESPACE/NAME")
    host = os.environ.get("KUBERNETES_SERVICE_HOST")
    if not host:
        raise UserError("--report", f"{target!r} needs a pod of a cluster: KUBERNETES_SERVICE_HOST is not set")
    return ConfigMapSink(namespace, name, host, int(os.environ.get("KUBERNETES_SERVICE_PORT", "443")))


def _writable(file: Path) -> Path:
    above = next(folder for folder in file.absolute().parents if folder.exists())
    if file.is_dir() or not above.is_dir():
        raise UserError("--report", f"{file} cannot be written: {file if file.is_dir() else above} is in its place")
    return file


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that all workload verbs share."""
    parser.add_argument(
        "--spec", required=True, metavar="FILE", help="YAML file with the document and what it refers to"
    )
    parser.add_argument("--name", help="which document of the verb's kind, if there are several")
    parser.add_argument("--report", metavar="TARGET", help="file:PATH or configmap:NAMESPACE/NAME")


def run_reported(arguments: argparse.Namespace, verb: str, body: Callable[[Report], Mapping[str, Any]]) -> int:
    """Run a workload verb and report how it ended.

    Args:
        arguments: With `spec` and `report` as of `add_report_arguments`.
        verb: Name of the verb.
        body: Does the work; returns the result `{digest, summary}`, raises UserError or CommandError.

    Returns:
        0, or the code of a CommandError, or 3 if a newer attempt has taken over. UserError, KeyboardInterrupt and
        unexpected errors are reported and raised again. `specHash` is the SHA-256 of the spec file's bytes.
    """
    report = open_report(arguments.report, verb, _hash(Path(arguments.spec)))
    try:
        report.succeed(body(report))
    except UserError as error:
        report.fail(error)
        raise
    except Fenced as error:
        report.abandon()
        print(f"ensemble {verb}: {error}", file=sys.stderr)
        return FENCED
    except CommandError as error:
        report.fail(str(error))
        print(f"ensemble {verb}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        report.fail("interrupted; the same command continues")
        raise
    except BaseException as error:
        report.fail(f"{type(error).__name__}: {error}", log_tail=traceback.format_exc())
        raise
    return 0


def _hash(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(str(file), f"cannot be read: {error.strerror}") from error
