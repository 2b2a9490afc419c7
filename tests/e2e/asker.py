"""In a pod of a user: ask a served ensemble again and again, and print what comes of each request on a line.

usage: asker.py URL, of the model.
"""

from __future__ import annotations

import http.client
import json
import math
import sys
import time
import urllib.error
import urllib.request
from typing import Any

PAUSE_SECONDS = 0.2
REQUEST_SECONDS = 20


def main(url: str) -> None:
    given = signature(url)
    shape = [1, *given["shape"][1:]]
    sample = [index % 17 for index in range(math.prod(shape))]
    content = {"inputs": [{"name": given["name"], "datatype": given["datatype"], "shape": shape, "data": sample}]}
    while True:
        try:
            told = {"answer": json.loads(opened(f"{url}/infer", json.dumps(content).encode()))["outputs"][0]["data"]}
        except (OSError, http.client.HTTPException, ValueError) as error:
            told = {"problem": f"{type(error).__name__}: {error}"}
        print(json.dumps({"at": time.strftime("%H:%M:%S"), **told}), flush=True)
        time.sleep(PAUSE_SECONDS)


def signature(url: str) -> dict[str, Any]:
    """What the model takes; waits until it is served."""
    while True:
        try:
            given: dict[str, Any] = json.loads(opened(url))["inputs"][0]
            return given
        except (OSError, http.client.HTTPException):
            time.sleep(PAUSE_SECONDS)


def opened(url: str, data: bytes | None = None) -> bytes:
    """What is at that address, over a connection of its own."""
    with urllib.request.urlopen(url, data, timeout=REQUEST_SECONDS) as answer:
        content: bytes = answer.read()
    return content


if __name__ == "__main__":
    main(*sys.argv[1:])
