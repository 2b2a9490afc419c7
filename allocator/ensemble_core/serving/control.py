"""Triton's repository API over HTTP: is it up, load and unload."""

from __future__ import annotations

import http.client
import json
from urllib.parse import quote

from ensemble_core.serving.errors import LoadError, ServingError


class Control:
    """Talks to one server; every call is a connection of its own, so any thread may call.

    `seconds` is how long a load may take.
    """

    def __init__(self, host: str, port: int, seconds: float) -> None:
        self._host, self._port, self._seconds = host, port, seconds

    def ready(self) -> bool:
        """Whether the server takes requests, and no model of it has failed to load."""
        return self._healthy("ready")

    def live(self) -> bool:
        """Whether the server is up."""
        return self._healthy("live")

    def identity(self) -> str | None:
        """The `--id` of the server that answers, none if there is none."""
        try:
            return str(json.loads(self._ask("GET", "/v2", 1)[1])["name"])
        except (OSError, ValueError, KeyError, http.client.HTTPException):
            return None

    def load(self, model: str) -> None:
        """Load a model, or load it again if its files have changed; LoadError with Triton's reason."""
        self._post(model, "load")

    def unload(self, model: str) -> None:
        """Unload a model; what it is working on is answered before."""
        self._post(model, "unload")

    def _healthy(self, state: str) -> bool:
        try:
            return self._ask("GET", f"/v2/health/{state}", 1)[0] == http.client.OK
        except (OSError, http.client.HTTPException):
            return False

    def _post(self, model: str, verb: str) -> None:
        try:
            status, body = self._ask("POST", f"/v2/repository/models/{quote(model)}/{verb}", self._seconds)
        except TimeoutError as late:
            raise LoadError(f"{model}: {verb} takes longer than {self._seconds:g} s") from late
        except (OSError, http.client.HTTPException) as lost:
            raise ServingError(f"{model}: {verb}: the server is gone: {lost}") from lost
        if status != http.client.OK:
            raise LoadError(f"{model}: {verb}: {_message(body)}")

    def _ask(self, method: str, path: str, seconds: float) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=seconds)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")
