"""Triton's repository API over HTTP: is it up, what is loaded, load and unload."""

from __future__ import annotations

import http.client
import json
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote

from ensemble_core.serving.errors import LoadError, ServingError, StuckError
from ensemble_core.serving.states import ModelState
from ensemble_core.serving.waiting import Check, ask_all

ASK_SECONDS = 10.0
READY, UNLOADING = "READY", "UNLOADING"  # states of a model


class Control:
    """Talks to one server; every call is a connection of its own, so any thread may call.

    Args:
        host, port: Of its HTTP endpoint.
        seconds: How long a load or an unload may take.
        headers: That open what it keeps from others.
    """

    def __init__(self, host: str, port: int, seconds: float, headers: Mapping[str, str] | None = None) -> None:
        self._host, self._port, self._seconds = host, port, seconds
        self._headers = dict(headers or {})

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

    def states(self) -> dict[str, str]:
        """READY, LOADING, UNLOADING or UNAVAILABLE, by model; ServingError if it does not tell."""
        return {model: told.state for model, told in self.index().items()}

    def index(self) -> dict[str, ModelState]:
        """What it tells of each model; ServingError if it does not."""
        found = self._told("POST", "/v2/repository/index")
        return {
            model["name"]: ModelState(model.get("state", "UNAVAILABLE"), model.get("reason", "")) for model in found
        }

    def config(self, model: str) -> Any:
        """The configuration that a model was loaded with, as JSON; ServingError if it is not loaded."""
        return self._told("GET", f"/v2/models/{quote(model)}/config")

    def load_all(self, models: Collection[str], front: str, check: Check) -> None:
        """Load models, all at once but the front one, which comes last; LoadError if one does not load.

        `check` is called meanwhile with the models that are waited for; what it raises ends the wait.
        """
        for together in (sorted(set(models) - {front}), sorted({front}.intersection(models))):
            ask_all({model: partial(self.load, model) for model in together}, check)

    def load(self, model: str) -> None:
        """Load a model, or load it again if its files have changed; LoadError with Triton's reason."""
        self._post(model, "load", self._seconds)

    def unload(self, model: str, seconds: float | None = None) -> None:
        """Unload a model; what it is working on is answered before, or never if its process is dead.

        StuckError if that takes longer than `seconds`, or else than this object's.
        """
        self._post(model, "unload", seconds or self._seconds)

    def _healthy(self, state: str) -> bool:
        try:
            return self._ask("GET", f"/v2/health/{state}", 1)[0] == http.client.OK
        except (OSError, http.client.HTTPException):
            return False

    def _told(self, method: str, path: str) -> Any:
        try:
            status, body = self._ask(method, path, ASK_SECONDS)
            if status == http.client.OK:
                return json.loads(body)
        except (OSError, ValueError, http.client.HTTPException) as lost:
            raise ServingError(f"{path}: the server does not answer: {lost}") from lost
        raise ServingError(f"{path}: {_message(body)}")

    def _post(self, model: str, verb: str, seconds: float) -> None:
        try:
            status, body = self._ask("POST", f"/v2/repository/models/{quote(model)}/{verb}", seconds)
        except TimeoutError as late:
            raise StuckError(f"{model}: {verb} takes longer than {seconds:g} s") from late
        except (OSError, http.client.HTTPException) as lost:
            raise ServingError(f"{model}: {verb}: the server is gone: {lost}") from lost
        if status != http.client.OK:
            raise LoadError(f"{model}: {verb}: {_message(body)}")

    def _ask(self, method: str, path: str, seconds: float) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=seconds)
        try:
            connection.request(method, path, headers=self._headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")
