"""Let Triton answer what the ensemble of rendered files was asked, and take no more, before it is ended.

It runs in the server's container, whose memory was counted without it: it imports next to nothing.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import time
from pathlib import Path
from urllib.parse import quote

from ensemble_core.commands.numbers import port, seconds
from ensemble_core.errors import OutageError, UserError
from ensemble_core.places import existing_folder

ADDRESS = "127.0.0.1"
ASK_SECONDS, LOOK_SECONDS = 5.0, 0.2
KEY_LENGTH = 64  # hexadecimal digits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repository", required=True, type=Path, metavar="DIR", help="what `ensemble render` wrote")
    parser.add_argument("--http-port", required=True, type=port, metavar="P", help="of Triton on this machine")
    parser.add_argument(
        "--after",
        default=0.0,
        type=seconds,
        metavar="S",
        help="seconds in which requests are still taken, 0 by default",
    )
    parser.add_argument(
        "--within", required=True, type=seconds, metavar="S", help="seconds for the answers after that, at most"
    )


def run(arguments: argparse.Namespace) -> int:
    """0 once everything is answered; 1 if it is not in time."""
    time.sleep(arguments.after)
    folder = existing_folder("--repository", arguments.repository)
    front, headers = _front(folder), {"ensemble-control": _key(folder)}
    if not (done := drained(front, headers, arguments.http_port, arguments.within)):
        print(f"ensemble drain: not everything was answered within {arguments.within:g} s", file=sys.stderr)
    return 0 if done else 1


def _front(folder: Path) -> str:
    """The front model of a rendered folder; UserError if there is none."""
    file = folder / "plan.json"
    try:
        return str(json.loads(_content(file))["plan"]["name"])
    except (ValueError, KeyError, TypeError):
        raise UserError(str(file), "is no plan, or not all of one: run `ensemble render` again") from None


def _key(folder: Path) -> str:
    """What opens the API; UserError if there is none."""
    file = folder / "control-key"
    if len(key := _content(file)) != KEY_LENGTH:
        raise UserError(str(file), "is too short or too long: run `ensemble render` again")
    return key.decode("latin-1")


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        why = f"no {file.name}: {error.strerror}"
        raise UserError(str(file.parent), f"holds no rendered ensemble ({why}): run `ensemble render` first") from None


def drained(front: str, headers: dict[str, str], port: int, seconds: float) -> bool:
    """Unload the front model, which ends when it has answered everything; false if that takes longer.

    OutageError if the server does not answer, or refuses.
    """
    end = time.monotonic() + seconds
    _post(port, f"models/{quote(front)}/unload", headers)
    while _post(port, "index", headers).get(front) == "UNLOADING":
        if time.monotonic() >= end:
            return False
        time.sleep(LOOK_SECONDS)
    return True


def _post(port: int, path: str, headers: dict[str, str]) -> dict[str, str | None]:
    """Ask Triton's repository API, for states by model; OutageError if it does not answer, or refuses."""
    connection = http.client.HTTPConnection(ADDRESS, port, timeout=ASK_SECONDS)
    try:
        connection.request("POST", f"/v2/repository/{path}", headers=headers)
        response = connection.getresponse()
        body = response.read()
        if response.status != http.client.OK:
            raise OutageError(f"the server at {ADDRESS}:{port} refuses: {body.decode(errors='replace')}")
        return {each["name"]: each.get("state") for each in json.loads(body or b"[]")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, http.client.HTTPException) as lost:
        raise OutageError(f"the server at {ADDRESS}:{port} does not answer: {lost}") from lost
    finally:
        connection.close()
