"""Names of the files in a library, both ways."""

from __future__ import annotations

import re

LIBRARY = "library.json"
_CLAIM = re.compile(r"trials/(?P<search>.+)-(?P<trial>\d{4,})/claim-(?P<attempt>\d+)\.json")
_EVENT = re.compile(r"trials/(?P<search>.+)-(?P<trial>\d{4,})/(?P<attempt>\d+)/(?P<name>.+)")
_SPEC = re.compile(r"searches/(?P<search>[^/]+)/spec\.json")
_RECORD = re.compile(r"models/(?P<model>[^/]+)/record\.json")


def trial_id(search: str, trial: int) -> str:
    """Name of a trial and of its model: `digits-0042`."""
    return f"{search}-{trial:04d}"


def record(model: str) -> str:
    return f"models/{model}/record.json"


def model_of(path: str) -> str | None:
    """The model whose record this is, or None."""
    match = _RECORD.fullmatch(path)
    return match["model"] if match else None


def spec(search: str) -> str:
    return f"searches/{search}/spec.json"


def spec_of(path: str) -> str | None:
    """The search that this defines, or None."""
    match = _SPEC.fullmatch(path)
    return match["search"] if match else None


def claim(search: str, trial: int, attempt: int) -> str:
    return f"trials/{trial_id(search, trial)}/claim-{attempt}.json"


def claimed(path: str) -> tuple[str, int, int] | None:
    """(search, trial, attempt) of a claim's path, or None."""
    match = _CLAIM.fullmatch(path)
    return (match["search"], int(match["trial"]), int(match["attempt"])) if match else None


def event(search: str, trial: int, attempt: int, name: str) -> str:
    return f"trials/{trial_id(search, trial)}/{attempt}/{name}"


def event_of(path: str) -> tuple[str, int, int, str] | None:
    """(search, trial, attempt, name) of a file of a trial's attempt, or None."""
    match = _EVENT.fullmatch(path)
    return (match["search"], int(match["trial"]), int(match["attempt"]), match["name"]) if match else None


def profile(device_type: str, engine: str, model: str) -> str:
    return f"profiles/{device_type}/{engine}/{model}.json"
