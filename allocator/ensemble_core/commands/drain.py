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

ADDRESS = "127.0.0.1"
ASK_SECONDS, LOOK_SECONDS = 5.0, 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repository", required=True, type=Path, metavar="DIR", help="what `ensemble render` wrote")
    parser.add_argument("--http-port", required=True, type=int, metavar="P", help="of Triton on this machine")
    parser.add_argument(
        "--after", default=0.0, type=float, metavar="S", help="seconds in which requests are still taken, 0 by default"
    )
    parser.add_argument(
        "--within", required=True, type=float, metavar="S", help="seconds for the answers after that, at most"
    )


def run(arguments: argparse.Namespace) -> int:
    """0 once everything is answered; 1 if it is not in time, or the server does not answer."""
    time.sleep(arguments.after)
    try:
        done = drained(arguments.repository, arguments.http_port, arguments.within)
    except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
        print(f"ensemble drain: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    if not done:
        print(f"ensemble drain: not everything was answered within {arguments.within:g} s", file=sys.stderr)
    return 0 if done else 1


def drained(folder: Path, port: int, seconds: float) -> bool:
    """Unload the front model, which ends when it has answered everything; false if that takes longer."""
    front = json.loads((folder / "plan.json").read_bytes())["plan"]["name"]
    headers = {"ensemble-control": (folder / "control-key").read_text()}
    end = time.monotonic() + seconds
    _post(port, f"models/{quote(front)}/unload", headers)
    while (front, "UNLOADING") in [(each["name"], each.get("state")) for each in _post(port, "index", headers)]:
        if time.monotonic() >= end:
            return False
        time.sleep(LOOK_SECONDS)
    return True


def _post(port: int, path: str, headers: dict[str, str]) -> list[dict[str, str]]:
    """Ask Triton's repository API; OSError with its words if it refuses."""
    connection = http.client.HTTPConnection(ADDRESS, port, timeout=ASK_SECONDS)
    try:
        connection.request("POST", f"/v2/repository/{path}", headers=headers)
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise OSError(body.decode(errors="replace"))
    found: list[dict[str, str]] = json.loads(body or b"[]")
    return found
