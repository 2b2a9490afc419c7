from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ensemble_core.serving.control import Control
from ensemble_core.serving.errors import LoadError, ServingError


def NOBODY(waiting: object) -> None:  # noqa: N802 - a constant
    """A check that finds nothing."""


class Handler(BaseHTTPRequestHandler):
    """A server that wants a key for everything but its name."""

    requests: list[str]

    def do_GET(self) -> None:
        self._answer(200, {"name": "server-1"})

    def do_POST(self) -> None:
        if self.headers.get("ensemble-control") != "secret":
            self._answer(403, {"error": "This API is restricted"})
        elif self.path == "/v2/repository/index":
            self._answer(200, [{"name": "a", "state": "READY"}, {"name": "b"}])
        elif "broken" in self.path:
            self._answer(400, {"error": "no memory"})
        else:
            self.requests.append(self.path)
            self._answer(200, {})

    def _answer(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    Handler.requests = []
    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield listening
        listening.shutdown()
        thread.join()


def control(server: HTTPServer, key: str | None = "secret") -> Control:
    return Control("127.0.0.1", server.server_port, 5, {"ensemble-control": key} if key else None)


def test_the_header_opens_what_is_closed(server):
    assert control(server).states() == {"a": "READY", "b": "UNAVAILABLE"}
    with pytest.raises(ServingError, match="/v2/repository/index: This API is restricted"):
        control(server, None).states()
    with pytest.raises(LoadError, match="a: load: This API is restricted"):
        control(server, "wrong").load("a")
    assert control(server, None).identity() == "server-1"


def test_the_front_model_is_loaded_last(server):
    waited: list[str] = []
    control(server).load_all({"front", "a", "b"}, "front", waited.extend)
    assert set(waited) <= {"front", "a", "b"}
    loads = [path.split("/")[4] for path in Handler.requests]
    assert set(loads[:2]) == {"a", "b"}
    assert loads[2:] == ["front"]


def test_only_what_is_given_is_loaded(server):
    control(server).load_all(["a"], "front", NOBODY)
    control(server).load_all([], "front", NOBODY)
    assert [path.split("/")[4] for path in Handler.requests] == ["a"]


def test_the_front_model_waits_for_members_that_do_not_load(server):
    with pytest.raises(LoadError, match="broken: load: no memory"):
        control(server).load_all({"front", "broken"}, "front", NOBODY)
    assert Handler.requests == []


def test_a_server_that_is_gone_is_told():
    gone = Control("127.0.0.1", 9, 5)
    with pytest.raises(ServingError, match="the server does not answer"):
        gone.states()
    assert gone.identity() is None
