"""Structured logs: one line for each event, with the object that it is about; text on a terminal, JSON elsewhere."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

from ensemble_operator.queue import Key

NAME = "ensemble-operator"
NOISY = ("kopf", "aiohttp", "asyncio", "kubernetes")


class Log:
    """What the operator says.

    Args:
        fields: Added to every line.
    """

    def __init__(self, **fields: Any) -> None:
        self._fields = {name: value for name, value in fields.items() if value is not None}
        self._logger = logging.getLogger(NAME)

    def of(self, key: Key) -> Log:
        """The same with the object's kind, namespace and name."""
        return Log(**self._fields, kind=key.kind, namespace=key.namespace, name=key.name)

    def write(self, level: str, message: str, error: BaseException | None = None, **fields: Any) -> None:
        """One line; `level` is debug, info, warning or error."""
        given = {name: value for name, value in fields.items() if value is not None}
        self._logger.log(
            logging.getLevelNamesMapping()[level.upper()],
            message,
            exc_info=error,
            extra={"fields": {**self._fields, **given}},
        )


class JsonFormatter(logging.Formatter):
    """`{"time": …, "level": …, "message": …, "kind": …, "namespace": …, "name": …}`"""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """`12:30:01 info HPOSearch default/digits: applied Job digits-train-0f3a`"""

    def format(self, record: logging.LogRecord) -> str:
        fields = dict(getattr(record, "fields", {}))
        kind, namespace, name = (fields.pop(field, None) for field in ("kind", "namespace", "name"))
        about = " ".join(str(part) for part in (kind, "/".join(filter(None, (namespace, name)))) if part)
        more = "".join(f" {field}={value}" for field, value in fields.items())
        said = f"{about}: {record.getMessage()}" if about else record.getMessage()
        line = f"{_time(record)[11:19]} {record.levelname.lower()} {said}{more}"
        if record.exc_info:
            line += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
        return line


def _calmed(record: logging.LogRecord) -> bool:
    """Let the record pass, as a warning if it is of a request that kopf will repeat: it never gives up."""
    if record.name.startswith("kopf.") and "; will re" in record.getMessage():  # "try", "-authenticate"
        record.levelno, record.levelname = logging.WARNING, "WARNING"
    return True


def configure(level: str, stream: TextIO | None = None) -> None:
    """Send all logs to one stream, by default standard error; libraries say warnings and worse alone."""
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.addFilter(_calmed)
    handler.setFormatter(TextFormatter() if stream.isatty() else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(NAME).setLevel(level.upper())
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.DEBUG if level == "debug" else logging.WARNING)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
