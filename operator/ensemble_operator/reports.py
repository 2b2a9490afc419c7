"""Reports of workloads, read as what they are: input that anybody may have written who runs in the pod.

Whatever is not as it should be makes a report as good as absent; nothing here raises.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from ensemble_operator.world import Manifest

REPORT_KEY = "report.json"
MAX_BYTES = 64 * 1024
MAX_MESSAGE = 4096
MOST = 2**31 - 1  # of anything that is counted


def clean(text: str, limit: int = MAX_MESSAGE) -> str:
    """Text that may stand in a status: without control characters and half characters, its end cut off at `limit`."""
    whole = text[: 4 * limit].encode(errors="replace").decode()
    kept = "".join(c for c in whole if c == "\n" or c.isprintable()).strip()
    return kept if len(kept) <= limit else f"{kept[: limit - 1]}…"


def last_lines(text: str, limit: int = MAX_MESSAGE) -> str:
    """The last lines of a log that fit into `limit` characters, cleaned; of a single longer line its beginning."""
    kept: list[str] = []
    room = limit
    for line in reversed(text[-4 * limit :].splitlines()):
        line = clean(line, limit)
        if len(line) > room:
            break
        if line:
            kept.append(line)
            room -= len(line) + 1
    return "\n".join(reversed(kept))


def _cleaned(limit: int) -> BeforeValidator:
    return BeforeValidator(lambda value: clean(value, limit) if isinstance(value, str) else value)


Word = Annotated[str, _cleaned(253)]
Message = Annotated[str, _cleaned(MAX_MESSAGE)]
Number = Annotated[int, Field(ge=0, le=MOST)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Untrusted(BaseModel):
    """Part of a report: types are strict, fields that are not known are left out."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", alias_generator=to_camel)


class Progress(Untrusted):
    """How far the work is; `summary` is the verb's own."""

    stage: Word = ""
    done: Number = 0
    total: Number = 0
    note: Word = ""
    summary: dict[str, Any] = Field(default_factory=dict)


class Result(Untrusted):
    """What the work came to."""

    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    summary: dict[str, Any] = Field(default_factory=dict)


class Failure(Untrusted):
    """What is wrong; `field` is of the specification, if the user can mend it there."""

    field: Word = ""
    message: Message = ""
    log_tail: Message = ""

    def text(self) -> str:
        """For people, the last log lines below."""
        said = f"{self.field}: {self.message}" if self.field else self.message
        return f"{said}\n{self.log_tail}" if self.log_tail else said


class Report(Untrusted):
    """What a workload has told last."""

    schema_version: Literal[1]
    verb: str
    spec_hash: str
    attempt: Number
    owner_uid: str
    sequence: Number = 0
    state: Literal["Running", "Succeeded", "Failed"]
    progress: Progress = Field(default_factory=Progress)
    result: Result = Field(default_factory=Result)
    error: Failure = Field(default_factory=Failure)


def read_report(
    config_map: Manifest | None,
    verb: str,
    text_hash: str,
    uid: str,
    attempt: int | None = None,
    key: str = REPORT_KEY,
) -> Report | None:
    """The report of a workload; none if there is none, or if it is anybody else's.

    Args:
        config_map: `<child>-report`.
        verb: Of the command, `train` for example.
        text_hash: Of the specification that the command was given.
        uid: Of the custom resource.
        attempt: Which attempt must have written it; any if none.
        key: Under which it stands.
    """
    data = (config_map or {}).get("data")
    text = data.get(key) if isinstance(data, dict) else None
    if not isinstance(text, str) or len(text.encode(errors="replace")) > MAX_BYTES:
        return None
    try:
        report = Report.model_validate(json.loads(text, parse_constant=_refuse))
    except (ValueError, RecursionError):  # a ValidationError is a ValueError
        return None
    is_theirs = (report.verb, report.spec_hash, report.owner_uid) == (verb, text_hash, uid)
    return report if is_theirs and attempt in (None, report.attempt) else None


Part = TypeVar("Part", bound=BaseModel)


def typed(model: type[Part], content: Mapping[str, Any]) -> Part | None:
    """A summary as its model, or none if anything in it is not as it should be."""
    try:
        return model.model_validate(content)
    except (ValidationError, RecursionError):
        return None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")
