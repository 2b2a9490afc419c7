"""What a workload tells whoever started it: one JSON document, `report.json`, replaced as the work goes on.

    {schemaVersion, verb, specHash, attempt, ownerUid, sequence, state: Running|Succeeded|Failed,
     progress{stage, done, total, note, summary}, result{digest, summary},
     error{field, value, allowed, message, logTail}}

A thread of its own writes the newest content at the target's pace, so that the work never waits for storage; the last
content is written by the caller's thread and retried until stored or out of patience; a success that was not stored
does not end as one, so that the command is tried again. `Succeeded` and `Failed` are
the work's own verdicts. What was cut off from outside, by a signal or an outage, stays `Running` with the note
`interrupted`: the same command continues.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import math
import os
import signal
import ssl
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ensemble_core.errors import OutageError, UserError
from ensemble_core.library.searches import Fenced
from ensemble_core.places import check_file

SCHEMA_VERSION = 1
REPORT_KEY = "report.json"
MAX_BYTES = 64 * 1024
MAX_LEFT_BYTES = 8 * MAX_BYTES  # half of what a ConfigMap may hold
MAX_LOG_TAIL = 4 * 1024
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
INTERRUPTED = "interrupted"
MAX_NOTE = 1000
FENCED = 3
TERMINATED = 128 + signal.SIGTERM
# From SIGTERM to the end of the process, whatever it waits for; a Ray job is killed 3 s after it was asked to stop.
END_SECONDS = 4.0
LAST_WORD_SECONDS = 1.5  # of these for the report
MAX_SHARE = 0.05  # of the time that the thread which writes may spend on putting reports together
Values = Mapping[str, Any]


class Sink(Protocol):
    """Where reports go.

    `interval` seconds lie between two writes, the last is retried for `patience` seconds. What has not changed for
    `repeat` seconds is written again as it was: somebody else may have changed or deleted what is there.
    """

    @property
    def interval(self) -> float: ...

    @property
    def repeat(self) -> float: ...

    @property
    def patience(self) -> float: ...

    def write(self, data: bytes) -> None: ...  # OSError or http.client.HTTPException if not stored


@dataclass(frozen=True)
class FileSink:
    """A local file, replaced atomically."""

    path: Path
    interval: float = 0.2
    patience: float = 5.0
    repeat: float = math.inf

    def write(self, data: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        scratch.write_bytes(data)
        scratch.replace(self.path)


@dataclass(frozen=True)
class ConfigMapSink:
    """A key of a ConfigMap, patched through the API server of the cluster this process runs in."""

    namespace: str
    name: str
    host: str
    port: int
    account: Path = SERVICE_ACCOUNT
    key: str = REPORT_KEY
    interval: float = 10.0
    patience: float = 120.0
    repeat: float = 300.0

    def write(self, data: bytes) -> None:
        left = self._patch({self.key: data.decode()})
        left.pop(self.key, None)
        # Of pods that are gone, and the operator takes no notice of. Those that are there tell again within `repeat`.
        if sum(map(len, left.values())) > MAX_LEFT_BYTES:
            self._patch(dict.fromkeys(left))

    def _patch(self, data: Mapping[str, str | None]) -> dict[str, str]:
        """Set keys, or remove them; returns what the ConfigMap has then."""
        # The kubelet renews token and CA files: both are read anew each time.
        context = ssl.create_default_context(cafile=str(self.account / "ca.crt"))
        token = (self.account / "token").read_text().strip()
        connection = http.client.HTTPSConnection(self.host, self.port, timeout=10, context=context)
        try:
            connection.request(
                "PATCH",
                f"/api/v1/namespaces/{self.namespace}/configmaps/{self.name}",
                body=json.dumps({"data": data}).encode(),
                headers={"Authorization": f"Bearer {token}", "Content-Type": "application/merge-patch+json"},
            )
            answer = connection.getresponse()
            if answer.status >= 300:
                what = f"patch of configmap {self.namespace}/{self.name}"
                raise OSError(f"the API server answered {answer.status} to the {what}: {_message(answer.read(4096))}")
            return _data(answer.read())
        finally:
            connection.close()


def _data(answer: bytes) -> dict[str, str]:
    """What a ConfigMap has, as the API server answers; nothing if that is not what it answers."""
    try:
        return dict(json.loads(answer)["data"])
    except (ValueError, KeyError, TypeError):
        return {}


def _message(answer: bytes) -> str:
    """The sentence in a Status of the API server, else the beginning of what it sent."""
    try:
        return str(json.loads(answer)["message"])[:500]
    except (ValueError, KeyError, TypeError):
        return answer[:200].decode(errors="replace")


class CommandError(Exception):
    """The command ends with an exit code other than 0, for a reason told in one sentence."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Terminated(BaseException):
    """SIGTERM has arrived."""


class Report:
    """One workload's report; without a sink every method does nothing."""

    def __init__(self, sink: Sink | None, identity: Values) -> None:
        self._sink = sink
        self._content: dict[str, Any] = {**identity, "sequence": 0, "state": "Running"}
        self._progress: Callable[[], Values] | None = None
        self._changed = threading.Condition()
        self._dirty = self._closed = False
        self._thread: threading.Thread | None = None

    def progress(self, **values: Any) -> None:
        """Tell how far the work is: `stage` (str), `done` and `total` (int), `note` (str). Never blocks on storage."""
        self.progress_of(lambda: values)

    def progress_of(self, values: Callable[[], Values]) -> None:
        """As `progress`, with values that are put together only when they are written.

        They are asked for by another thread while the work goes on, and written only if they differ from the last.
        """
        if self._sink is None or self._closed:
            return
        with self._changed:
            self._progress = values
            self._dirty = True
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_changes, args=(self._sink,), daemon=True)
            self._thread.start()

    def succeed(self, result: Values) -> bool:
        """Tell the result, `{digest, summary}`, and close; false if whoever is to know could not be told."""
        return self._finish({"state": "Succeeded", "result": dict(result)})

    def fail(self, error: UserError | str, log_tail: str = "") -> None:
        """Tell what is wrong and close; of `log_tail` the last 4 KiB are kept."""
        if isinstance(error, UserError):
            content: dict[str, Any] = {"field": error.where, "message": error.problem}
        else:
            content = {"message": error}
        if log_tail:
            content["logTail"] = log_tail.encode()[-MAX_LOG_TAIL:].decode(errors="ignore")
        self._finish({"state": "Failed", "error": content})

    def interrupt(self, reason: str = "") -> None:
        """Close with the note `interrupted`, which is no verdict; gives up soon, for the process has to end."""
        if self._sink is None or self._closed:
            return
        sink, before = self._sink, self._close()
        note = f"{INTERRUPTED}: {reason}"[:MAX_NOTE] if reason else INTERRUPTED
        last = threading.Thread(target=self._write_interrupted, args=(sink, note, before), daemon=True)
        last.start()
        last.join(LAST_WORD_SECONDS)

    def abandon(self) -> None:
        """Close without a word: the report belongs to a newer attempt."""
        if (thread := self._close()) is not None:
            thread.join()

    def _close(self) -> threading.Thread | None:
        """Say nothing new from now on; returns the thread that may still be writing."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        return self._thread

    def _finish(self, values: Values) -> bool:
        if self._sink is None or self._closed:
            return self._sink is None
        self.abandon()
        self._refresh()
        self._content.update(values)
        if "result" in values and "progress" in self._content:
            self._content["progress"].pop("summary", None)  # the result's takes its place
        return _store(self._sink, self._next())

    def _write_interrupted(self, sink: Sink, note: str, before: threading.Thread | None) -> None:
        if before is not None:
            before.join()
        self._content["progress"] = {**self._content.get("progress", {}), "note": note}
        _store(sink, self._next())

    def _refresh(self) -> bool:
        """Bring the progress up to date; whether it differs from before."""
        if self._progress is None:
            return False
        before = self._content.get("progress")
        self._content["progress"] = dict(self._progress())
        return bool(before != self._content["progress"])

    def _next(self) -> bytes:
        self._content["sequence"] += 1
        return encode(self._content)

    def _write_changes(self, sink: Sink) -> None:
        complaint, last, written = "", b"", time.monotonic()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._dirty or self._closed)
                if self._closed:
                    return
                self._dirty = False
            began = time.monotonic()
            changed = self._refresh() or bool(complaint)
            last = self._next() if changed else last
            pause = max(sink.interval, (time.monotonic() - began) / MAX_SHARE)
            if changed or began >= written + sink.repeat:
                complaint, written = self._try(sink, last, complaint), began
            with self._changed:
                self._dirty |= bool(complaint)
                self._changed.wait_for(lambda: self._closed, timeout=pause)

    def _try(self, sink: Sink, data: bytes, complaint: str) -> str:
        """Write; returns what is in the way, nothing if stored. Says so once, not at every try."""
        try:
            sink.write(data)
        except (OSError, http.client.HTTPException) as error:
            problem = str(error) or type(error).__name__
            if problem != complaint:
                print(f"report not stored, will be retried: {problem}", file=sys.stderr)
            return problem
        if complaint:
            print("report stored again", file=sys.stderr)
        return ""


def _store(sink: Sink, data: bytes) -> bool:
    """Write the last content; retries with growing pauses until the sink's patience ends. Whether it is stored."""
    deadline, pause = time.monotonic() + sink.patience, 0.2
    while True:
        try:
            sink.write(data)
            return True
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() + pause > deadline:
                print(f"the last report could not be stored: {error}", file=sys.stderr)
                return False
        time.sleep(pause)
        pause = min(2 * pause, 5.0)


def encode(content: Values) -> bytes:
    """The report as JSON of at most 64 KiB: the largest entries of the summaries, then the longest texts, give way."""
    for place in ("result", "progress"):
        content = _bounded(content, place)
    data = json.dumps(content).encode()
    if len(data) <= MAX_BYTES:
        return data
    shortened = {key: str(value)[:MAX_LOG_TAIL] for key, value in content.get("error", {}).items()}
    return json.dumps({**content, "progress": {}, "result": {}, "error": shortened}).encode()


def _bounded(content: Values, place: str) -> Values:
    """The content without the largest entries of `content[place].summary`, as many as must go."""
    size, summary = len(json.dumps(content)), dict(content.get(place, {}).get("summary", {}))
    if size <= MAX_BYTES or not summary:
        return content
    sizes = {key: len(json.dumps({key: value})) for key, value in summary.items()}
    for key in sorted(sizes, key=lambda key: -sizes[key]):
        if size <= MAX_BYTES - 20:  # what `omitted` takes
            break
        size -= sizes[key]
        del summary[key]
    return {**content, place: {**content[place], "summary": {**summary, "omitted": True}}}


def open_report(target: str | None, verb: str, spec_hash: str) -> Report:
    """A report for `file:PATH`, `configmap:NAMESPACE/NAME`, or nobody (none).

    `ENSEMBLE_ATTEMPT` and `ENSEMBLE_OWNER_UID` come from whoever starts the workload and are given back as they are.
    `ENSEMBLE_REPORT_KEY` is where in its ConfigMap a report stands that is one of several, as those of like pods are.
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
        return FileSink(check_file("--report", Path(rest)))
    namespace, _, name = rest.partition("/")
    if scheme != "configmap" or not namespace or not name or "/" in name:
        raise UserError("--report", f"{target!r} must be file:PATH or configmap:NAMESPACE/NAME")
    host = os.environ.get("KUBERNETES_SERVICE_HOST")
    if not host:
        raise UserError("--report", f"{target!r} needs a pod of a cluster: KUBERNETES_SERVICE_HOST is not set")
    port, key = int(os.environ.get("KUBERNETES_SERVICE_PORT", "443")), os.environ.get("ENSEMBLE_REPORT_KEY")
    return ConfigMapSink(namespace, name, host, port, SERVICE_ACCOUNT, key or REPORT_KEY)


def add_spec_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that name a document."""
    parser.add_argument(
        "--spec", required=True, metavar="FILE", help="YAML file with the document and what it refers to"
    )
    parser.add_argument("--name", help="which document of the verb's kind, if there are several")


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that all workload verbs share."""
    add_spec_arguments(parser)
    parser.add_argument("--report", metavar="TARGET", help="file:PATH or configmap:NAMESPACE/NAME")


def run_reported(arguments: argparse.Namespace, verb: str, body: Callable[[Report], Values]) -> int:
    """Run a workload verb and report how it ended.

    Args:
        arguments: With `spec` and `report` as of `add_report_arguments`.
        verb: Name of the verb.
        body: Does the work; returns the result `{digest, summary}`, raises UserError or CommandError.

    Returns:
        0, or the code of a CommandError, 3 if a newer attempt has taken over, 143 after SIGTERM, 1 if it was cut off or
        its success could not be told: the same command continues, or finds all done and tells that.
        UserError, KeyboardInterrupt and unexpected errors are reported and raised again. `specHash` is the SHA-256 of
        the spec file's bytes.
    """
    report = open_report(arguments.report, verb, _hash(Path(arguments.spec)))
    with _terminable(report):
        try:
            told = report.succeed(body(report))
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
        except OutageError as error:
            report.interrupt(str(error))
            print(f"ensemble {verb}: {error}; the same command continues", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            report.interrupt()
            raise
        except Terminated:
            report.interrupt()
            print(f"ensemble {verb}: interrupted by SIGTERM; the same command continues", file=sys.stderr)
            return TERMINATED
        except BaseException as error:
            report.fail(f"{type(error).__name__}: {error}", log_tail=traceback.format_exc())
            raise
    if not told:
        print(f"ensemble {verb}: the work is done, but that is not stored; the same command tells it", file=sys.stderr)
        return 1
    return 0


@contextmanager
def _terminable(report: Report) -> Iterator[None]:
    """SIGTERM raises Terminated, also in process 1 of a container; a little later the process ends anyway.

    Python runs handlers between two of its own instructions, which a library may keep it from for minutes. The number
    of a signal that has a handler is in a pipe at once, and another thread waits for it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, lambda *_: None)  # once is enough
        raise Terminated

    numbers, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    threading.Thread(target=_end_in_time, args=(numbers, report), daemon=True).start()
    pipe_before = signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    handler_before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler_before or signal.SIG_DFL)
        signal.set_wakeup_fd(pipe_before)
        os.close(wakeup)


def _end_in_time(numbers: int, report: Report) -> None:
    """End this process a while after SIGTERM has come, whatever it does."""
    with open(numbers, "rb", buffering=0) as pipe:
        while (number := pipe.read(1)) and number[0] != signal.SIGTERM:
            pass
    if number:
        deadline = time.monotonic() + END_SECONDS
        time.sleep(END_SECONDS - LAST_WORD_SECONDS)
        report.interrupt()
        time.sleep(max(0.0, deadline - time.monotonic()))
        os._exit(TERMINATED)


def _hash(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(str(file), f"cannot be read: {error.strerror}") from error
