"""A reverse proxy before an API server, which does to requests what a bad network or an ailing server would."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import aiohttp
from aiohttp import web
from tests.apiserver.server import ApiServer
from yarl import URL

PATIENCE = 20.0  # seconds for what the proxy is told
HALF_A_LINE = b'{"type":"MODIFIED","object":{"metad'
OF_CONNECTIONS = {"host", "connection", "content-length", "transfer-encoding"}  # headers that are not passed on


@dataclass(frozen=True)
class Fault:
    """What happens to requests while it lasts.

    Args:
        code: All are answered with it; 0 lets them through.
        retry_after: Seconds that are told with the code.
        delay: Seconds that each waits first.
        watches: How watches are answered: `refused` with a code, `broken` with an error in the stream.
        watch_code: That code.
        loses: Writes are made, but nobody is told.
        abrupt: How watches are cut, in the midst of a line: as if the network broke, or else as if all had been said.
    """

    code: int = 0
    retry_after: int | None = None
    delay: float = 0.0
    watches: Literal["passed", "refused", "broken"] = "passed"
    watch_code: int = 410
    loses: bool = False
    abrupt: bool = True


class Asked(NamedTuple):
    """A request that has come in."""

    method: str
    path: str
    watch: bool


@dataclass(eq=False)
class Stream:
    """A watch that runs, until it is told to end."""

    request: web.BaseRequest
    response: web.StreamResponse
    ends: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Proxy:
    """Passes on what it is asked, unless there is a fault.

    Args:
        call: Runs a coroutine where the proxy runs.
        asked: All requests, in order.
    """

    server: ApiServer
    call: Callable[[Coroutine[Any, Any, Any]], Any]
    fault: Fault = field(default_factory=Fault)
    asked: list[Asked] = field(default_factory=list)
    _streams: list[Stream] = field(default_factory=list)

    @property
    def address(self) -> str:
        host, port = self._runner.addresses[0]
        return f"http://{host}:{port}"

    @contextmanager
    def troubled(self, fault: Fault) -> Iterator[None]:
        """A time with a fault."""
        self.fault = fault
        try:
            yield
        finally:
            self.fault = Fault()

    def cut(self) -> None:
        """Cut all watches that run."""
        self.call(self._cut(self.fault.abrupt))

    async def start(self) -> None:
        trust = ssl.create_default_context(cafile=str(self.server.certificate))
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=trust, limit=0),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
        )
        self._runner = web.ServerRunner(web.Server(self._handle, handler_cancellation=True), shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()

    async def stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _cut(self, abruptly: bool) -> None:
        for stream in [*self._streams]:
            await stream.response.write(HALF_A_LINE)
            if abruptly and stream.request.transport is not None:
                stream.request.transport.abort()
            stream.ends.set()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        watch, fault = request.query.get("watch") == "true", self.fault
        # A watch names the version from which on it watches.
        self.asked.append(Asked(request.method, request.path if watch else request.path_qs, watch))
        await asyncio.sleep(fault.delay)
        if fault.code:
            return refusal(fault.code, fault.retry_after)
        if watch and fault.watches == "refused":
            return refusal(fault.watch_code)
        if watch and fault.watches == "broken":
            line = json.dumps({"type": "ERROR", "object": status(fault.watch_code)}) + "\n"
            return web.Response(text=line, content_type="application/json")
        try:
            return await (self._stream(request) if watch else self._pass(request))
        except aiohttp.ClientConnectionError:
            return refusal(503)

    async def _pass(self, request: web.BaseRequest) -> web.Response:
        body = await request.read()
        async with self._upstream(request, body) as answer:
            content = await answer.read()
        if self.fault.loses and request.method != "GET" and request.transport is not None:
            request.transport.abort()
        return web.Response(status=answer.status, body=content, headers=passed(answer.headers))

    async def _stream(self, request: web.BaseRequest) -> web.StreamResponse:
        async with self._upstream(request, None) as answer:
            stream = Stream(request, web.StreamResponse(status=answer.status, headers=passed(answer.headers)))
            await stream.response.prepare(request)
            self._streams.append(stream)
            ended = asyncio.create_task(stream.ends.wait())
            try:
                while chunk := await _first(asyncio.create_task(answer.content.readany()), ended):
                    await stream.response.write(chunk)
            finally:
                self._streams.remove(stream)
                ended.cancel()
        return stream.response

    def _upstream(self, request: web.BaseRequest, body: bytes | None) -> Any:
        url = URL(f"https://127.0.0.1:{self.server.port}{request.raw_path}", encoded=True)
        return self._session.request(request.method, url, data=body or None, headers=passed(request.headers))


async def _first(reading: asyncio.Task[bytes], ended: asyncio.Task[Any]) -> bytes:
    """What is read, nothing if it is ended before."""
    try:
        await asyncio.wait({reading, ended}, return_when=asyncio.FIRST_COMPLETED)
        return b"" if ended.done() else reading.result()
    finally:
        reading.cancel()


def passed(headers: Any) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in OF_CONNECTIONS}


def status(code: int) -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "the proxy says so", "code": code}


def refusal(code: int, retry_after: int | None = None) -> web.Response:
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return web.json_response(status(code), status=code, headers=headers)


@contextmanager
def proxy(server: ApiServer) -> Iterator[Proxy]:
    """A running proxy, in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="proxy")
    thread.start()
    one = Proxy(server, lambda coroutine: asyncio.run_coroutine_threadsafe(coroutine, loop).result(PATIENCE))
    try:
        one.call(one.start())
        yield one
        one.call(one.stop())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE)
        loop.close()
