"""Requests over HTTP: what is sent, and which error an answer is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client.configuration import Configuration

from ensemble_operator import cluster
from ensemble_operator.cluster import (
    ApiError,
    ExpiredError,
    KubernetesCluster,
    MissingError,
    RefusedError,
    UnavailableError,
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def ask(handler: Handler, question: Callable[[KubernetesCluster], Awaitable[Any]]) -> Any:
    """The answer to a question to a server with this one handler."""

    async def run() -> Any:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        configuration = Configuration(host=f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}")  # type: ignore[attr-defined]
        configuration.api_key["BearerToken"] = "bearer secret"
        client = KubernetesCluster(configuration)
        try:
            return await question(client)
        finally:
            await client.close()
            await runner.cleanup()

    return asyncio.run(run())


NOT_DECLARED = "failed to create typed patch object (lab/a; apps/v1, Kind=Deployment): .x: field not declared in schema"


def answering(code: int, body: Any, **headers: str) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        text = body if isinstance(body, str) else json.dumps(body)
        return web.Response(status=code, text=text, headers=headers, content_type="application/json")

    return handler


def status(code: int, reason: str) -> dict[str, Any]:
    return {"kind": "Status", "code": code, "reason": reason, "message": f"it is {reason}"}


@pytest.mark.parametrize(
    ("code", "body", "error", "message"),
    [
        (404, status(404, "NotFound"), MissingError, "it is NotFound"),
        (403, status(403, "Forbidden"), RefusedError, "it is Forbidden"),
        (422, status(422, "Invalid"), RefusedError, "it is Invalid"),
        (409, status(409, "Conflict"), RefusedError, "it is Conflict"),
        (401, status(401, "Unauthorized"), UnavailableError, "it is Unauthorized"),
        (429, status(429, "TooManyRequests"), UnavailableError, "it is TooManyRequests"),
        (500, status(500, "InternalError"), UnavailableError, "it is InternalError"),
        (503, "upstream connect error", UnavailableError, "upstream connect error"),
        (502, "", UnavailableError, "the API server answers 502"),
        (500, "[1]", UnavailableError, "[1]"),
        (500, {"code": 500, "message": NOT_DECLARED}, RefusedError, "field not declared in schema"),
        (410, status(410, "Expired"), ExpiredError, "it is Expired"),
        (200, "{", UnavailableError, "Expecting property name"),
    ],
)
def test_errors(code: int, body: Any, error: type[ApiError], message: str) -> None:
    with pytest.raises(error, match=message.replace("[", r"\[")):
        ask(answering(code, body), lambda client: client.get("Job", "lab", "digits"))


def test_the_server_says_when_to_come_again() -> None:
    with pytest.raises(UnavailableError) as raised:
        ask(answering(429, status(429, "TooManyRequests"), **{"Retry-After": "7"}), lambda c: c.get("Job", "lab", "a"))
    assert raised.value.retry_after == 7


def test_no_server() -> None:
    counted: list[tuple[str, int]] = []

    async def run() -> None:
        client = KubernetesCluster(
            Configuration(host="http://127.0.0.1:1"), observe=lambda verb, code: counted.append((verb, code))
        )
        try:
            await client.get("Job", "lab", "a")
        finally:
            await client.close()

    with pytest.raises(UnavailableError, match="GET /apis/batch/v1/namespaces/lab/jobs/a"):
        asyncio.run(run())
    assert counted == [("get", 0)]


def test_a_server_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "TIMEOUT", 0.05)

    async def sleep(request: web.Request) -> web.Response:
        await asyncio.sleep(1)
        return web.Response()

    with pytest.raises(UnavailableError, match="TimeoutError"):
        ask(sleep, lambda client: client.get("Job", "lab", "a"))


def test_an_answer_that_breaks_off_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[tuple[str, int]] = []

    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"{")
        assert request.transport is not None
        request.transport.close()
        return response

    async def get(client: KubernetesCluster) -> None:
        monkeypatch.setattr(client, "_observe", lambda verb, code: counted.append((verb, code)))
        await client.get("Job", "lab", "a")

    with pytest.raises(UnavailableError):
        ask(half, get)
    assert counted == [("get", 200)]


def test_a_list_is_of_the_labels_and_says_its_kind() -> None:
    async def handler(request: web.Request) -> web.Response:
        assert request.path == "/api/v1/namespaces/lab/pods"
        assert request.query["labelSelector"] == "a=b,c=d"
        assert request.headers["Authorization"] == "bearer secret"
        return web.json_response({"items": [{"metadata": {"name": "x"}}]})

    found = ask(handler, lambda client: client.select("Pod", "lab", {"a": "b", "c": "d"}))
    assert found == [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}}]


def test_names_cannot_leave_their_place_in_the_path() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"path": request.raw_path})

    answer = ask(handler, lambda client: client.get("Pod", "lab", "../../secrets/x?y=z"))
    assert answer["path"] == "/api/v1/namespaces/lab/pods/..%2F..%2Fsecrets%2Fx%3Fy=z"


def test_deletes_that_very_object_in_the_background() -> None:
    async def handler(request: web.Request) -> web.Response:
        assert (request.method, request.path) == ("DELETE", "/apis/batch/v1/namespaces/lab/jobs/digits")
        assert await request.json() == {"propagationPolicy": "Background", "preconditions": {"uid": "1"}}
        return web.json_response({})

    ask(handler, lambda client: client.delete("Job", "lab", "digits", "1"))


def test_status_is_merged_into_what_was_read() -> None:
    async def handler(request: web.Request) -> web.Response:
        assert request.path == "/apis/ensemble-operator.io/v1alpha1/namespaces/lab/hposearches/digits/status"
        assert request.content_type == "application/merge-patch+json"
        assert await request.json() == {"metadata": {"uid": "1", "resourceVersion": "5"}, "status": {"trials": 4}}
        return web.json_response({})

    metadata = {"name": "digits", "namespace": "lab", "uid": "1", "resourceVersion": "5"}
    ask(handler, lambda client: client.patch_status({"kind": "HPOSearch", "metadata": metadata}, {"trials": 4}))


def test_applies_with_our_field_manager() -> None:
    async def handler(request: web.Request) -> web.Response:
        assert dict(request.query) == {"fieldManager": "ensemble-operator", "force": "true"}
        assert request.content_type == "application/apply-patch+yaml"
        return web.json_response(await request.json())

    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "lab"}}
    assert ask(handler, lambda client: client.apply(manifest)) == manifest


def test_what_it_creates_may_have_no_field_that_the_server_does_not_know() -> None:
    async def handler(request: web.Request) -> web.Response:
        assert (request.method, request.path) == ("POST", "/apis/batch/v1/namespaces/lab/jobs")
        assert dict(request.query) == {"fieldManager": "ensemble-operator", "fieldValidation": "Strict"}
        return web.json_response(await request.json())

    manifest = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a", "namespace": "lab"}}
    assert ask(handler, lambda client: client.create(manifest)) == manifest


@pytest.mark.parametrize(("code", "failure"), [(500, True), (503, True), (429, False), (401, False)])
def test_a_request_that_failed_is_not_a_server_that_is_away(code: int, failure: bool) -> None:
    with pytest.raises(UnavailableError) as raised:
        ask(answering(code, status(code, "x")), lambda client: client.get("Job", "lab", "a"))
    assert raised.value.is_failure() is failure


def test_an_event_that_is_there_is_no_error() -> None:
    event = {"metadata": {"name": "a", "namespace": "lab"}}
    ask(answering(409, status(409, "AlreadyExists")), lambda client: client.create_event(event))


def test_a_snapshot_has_several_pages_of_metadata() -> None:
    async def handler(request: web.Request) -> web.Response:
        assert "as=PartialObjectMetadataList" in request.headers["Accept"]
        if request.query.get("continue") == "next":
            return web.json_response({"items": [{"metadata": {"name": "b"}}], "metadata": {"resourceVersion": "9"}})
        more = {"resourceVersion": "9", "continue": "next"}
        return web.json_response({"items": [{"metadata": {"name": "a"}}], "metadata": more})

    items, version = ask(handler, lambda client: client.snapshot("Pod", None, "a=b"))
    assert [item["metadata"]["name"] for item in items] == ["a", "b"]
    assert version == "9"


def test_a_snapshot_of_nothing() -> None:
    body = {"items": None, "metadata": {"resourceVersion": "9"}}
    assert ask(answering(200, body), lambda client: client.snapshot("Pod", None, "a=b")) == ([], "9")


async def watched(client: KubernetesCluster) -> list[Any]:
    return [change async for change in client.changes("Pod", None, "a=b", "5")]


def streaming(*events: Any) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        assert (request.query["watch"], request.query["resourceVersion"]) == ("true", "5")
        response = web.StreamResponse()
        await response.prepare(request)
        for event in events:
            await response.write(json.dumps(event).encode() + b"\n")
        return response

    return handler


def test_a_watch_tells_until_its_stream_ends() -> None:
    events = [{"type": "ADDED", "object": {"metadata": {}}}, {"type": "BOOKMARK", "object": {"metadata": {}}}]
    assert [change.type for change in ask(streaming(*events), watched)] == ["ADDED", "BOOKMARK"]


def test_a_watch_that_is_cut_or_silent_just_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "SILENCE", 0.05)

    def then(last: Callable[[web.Request], Awaitable[None]]) -> Handler:
        async def handler(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b'{"type": "ADDED", "object": {"metadata": {}}}\n{"type": "AD')
            await last(request)
            return response

        return handler

    async def cut(request: web.Request) -> None:
        assert request.transport is not None
        request.transport.close()

    async def fall_silent(request: web.Request) -> None:
        await asyncio.sleep(0.5)

    for last in (cut, fall_silent):
        assert [change.type for change in ask(then(last), watched)] == ["ADDED"]


@pytest.mark.parametrize(("code", "error"), [(410, ExpiredError), (500, UnavailableError)])
def test_a_watch_may_end_with_an_error(code: int, error: type[ApiError]) -> None:
    with pytest.raises(error):
        ask(streaming({"type": "ERROR", "object": status(code, "Expired")}), watched)


def test_capabilities_are_what_is_served() -> None:
    async def handler(request: web.Request) -> web.Response:
        if request.path == "/apis/ray.io/v1":
            return web.json_response({"resources": [{"name": "rayjobs"}, {"name": "rayjobs/status"}]})
        return web.json_response(status(404, "NotFound"), status=404)

    assert ask(handler, lambda client: client.capabilities()) == {"RayJob"}
