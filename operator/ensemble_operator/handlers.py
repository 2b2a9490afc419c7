"""What kopf is told: how to log in, what to watch, what to start and to end. It writes nothing by itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import kopf
from kubernetes.aio.client.configuration import Configuration

from ensemble_operator.cluster import CUSTOM
from ensemble_operator.engine import Engine
from ensemble_operator.queue import Key


class Backoffs:
    """Pauses between attempts of a request; without end, for a server that is away comes back."""

    def __iter__(self) -> Iterator[float]:
        pause = 1.0
        while True:
            yield pause
            pause = min(pause * 2, 30.0)


def kopf_settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.scanning.disabled = True  # else it asks for rights on definitions and namespaces; the engine looks itself
    settings.networking.error_backoffs = Backoffs()
    settings.networking.request_timeout = 60.0
    settings.watching.reconnect_backoff = 1.0  # a server that ends each watch at once is not asked all the time
    settings.queueing.idle_timeout = 1.0
    settings.process.ultimate_exiting_timeout = 60.0
    return settings


def registry(engine: Engine, configuration: Configuration, kinds: Iterable[str]) -> kopf.OperatorRegistry:
    """Handlers for one life of an engine."""
    handlers = kopf.OperatorRegistry()

    @kopf.on.login(registry=handlers)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await connection(configuration)

    @kopf.on.startup(registry=handlers)
    async def start(**_: Any) -> None:
        engine.start()

    @kopf.on.cleanup(registry=handlers)
    async def stop(**_: Any) -> None:
        await engine.stop()

    @kopf.on.probe(registry=handlers, id="engine")
    async def probe(**_: Any) -> str:
        if not engine.healthy():
            raise kopf.PermanentError("the engine has ended")  # any result is answered with 200
        return "healthy"

    for kind in sorted(kinds):
        _watch(handlers, engine, kind)
    return handlers


def _watch(handlers: kopf.OperatorRegistry, engine: Engine, kind: str) -> None:
    version, plural = CUSTOM[kind]

    @kopf.on.event(version, plural, registry=handlers, id=f"see-{plural}")
    async def see(type: str | None, namespace: str | None, name: str, meta: kopf.Meta, **_: Any) -> None:
        generation = None if type == "DELETED" else int(meta["generation"])
        engine.see(Key(kind, str(namespace), name), str(meta["resourceVersion"]), generation)


async def connection(configuration: Configuration) -> kopf.ConnectionInfo:
    """The same server and identity as the engine's."""
    header = await configuration.get_api_key_with_prefix("BearerToken")
    scheme, _, token = header.rpartition(" ") if header else ("", "", "")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        scheme=scheme or None,
        token=token or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        proxy_url=configuration.proxy,
    )
