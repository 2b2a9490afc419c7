"""The running engine: what wakes which resource, what ends it, and what it does when told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aiohttp
import kopf
import pytest
from kopf._core.engines.indexing import OperatorIndexers
from kopf._core.engines.probing import health_reporter
from kubernetes.aio.client.configuration import Configuration
from prometheus_client import generate_latest
from tests.apiserver.server import free_ports
from tests.handler.bench import KEY, search
from tests.handler.fake import FakeKind, decide
from tests.handler.memory import MemoryCluster

from ensemble_operator import engine, main
from ensemble_operator.cluster import BUILT_IN, CUSTOM, UnavailableError
from ensemble_operator.engine import Engine
from ensemble_operator.handlers import kopf_settings, registry
from ensemble_operator.logs import Log
from ensemble_operator.metrics import Metrics
from ensemble_operator.queue import Key
from ensemble_operator.settings import Settings
from ensemble_operator.world import Ref

SELECTION = Key("EnsembleSelection", "lab", "small")
DEPLOYMENT = Key("EnsembleDeployment", "lab", "small")


class ServedCluster(MemoryCluster):
    """A cluster in memory that has capabilities, and whose watches are silent."""

    served: frozenset[str] = frozenset(CUSTOM)
    away: bool = False
    closed: bool = False

    async def capabilities(self) -> frozenset[str]:
        if self.away:
            raise UnavailableError("away")
        return self.served

    async def snapshot(self, kind: str, namespace: str | None, selector: str) -> tuple[list[Any], str]:
        return [], "1"

    async def changes(self, *_: Any) -> Any:
        await asyncio.Event().wait()
        yield

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, FakeKind]:
    monkeypatch.setattr(engine, "CAPABILITIES_SECONDS", 0.02)
    monkeypatch.setattr(engine, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(engine, "BURST_SECONDS", 0.01)
    kinds = {"HPOSearch": FakeKind()}
    monkeypatch.setattr(engine, "KINDS", kinds)
    return kinds


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> ServedCluster:
    cluster = ServedCluster()
    monkeypatch.setattr(engine, "KubernetesCluster", lambda *_, **__: cluster)
    cluster.put(search())
    return cluster


def run(
    scenario: Callable[[Engine, asyncio.Event], Awaitable[None]], ends_with: type[BaseException] | None = None
) -> None:
    async def both() -> None:
        ended = asyncio.Event()
        settings = Settings(trainer_image="trainer", core_image="core")
        one = Engine(Configuration(), settings, Metrics(), frozenset(CUSTOM), ended.set, Log())
        one.start()
        async with asyncio.timeout(10):
            await scenario(one, ended)
            await one.stop()
        error = one.error()
        assert (type(error) if error else None) is ends_with

    asyncio.run(both())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def test_a_resource_that_is_seen_is_looked_at(cluster: ServedCluster, kinds: Any) -> None:
    async def scenario(one: Engine, ended: asyncio.Event) -> None:
        one.see(KEY, "1", 1)
        await until(lambda: ("Job", "digits-4") in cluster.names("Job"))
        assert one.healthy()

    run(scenario)
    assert cluster.closed


def test_what_it_wrote_itself_wakes_nothing_but_dependents(cluster: ServedCluster, kinds: Any) -> None:
    looks: list[str] = []
    kinds["HPOSearch"].decision = lambda world: (looks.append("search"), decide(world))[1]

    async def scenario(one: Engine, ended: asyncio.Event) -> None:
        one.see(KEY, "1", 1)
        await until(lambda: looks == ["search"] and cluster.objects[KEY].get("status"))
        one._reconciler.dependents.replace(SELECTION, (Ref("HPOSearch", "digits"),))
        seen: list[Key] = []
        one._queue.add = lambda key, after=0.0: seen.append(key)  # type: ignore[method-assign]
        one.see(KEY, cluster.objects[KEY]["metadata"]["resourceVersion"], 1)
        assert seen == [SELECTION]
        one.see(KEY, "another", 1)
        assert seen == [SELECTION, KEY, SELECTION]

    run(scenario)


def test_who_depends_on_all_of_a_kind_is_woken_by_specifications_alone(cluster: ServedCluster, kinds: Any) -> None:
    async def scenario(one: Engine, ended: asyncio.Event) -> None:
        one._reconciler.dependents.replace(SELECTION, (Ref("HPOSearch", "digits"),))
        one._reconciler.dependents.replace(DEPLOYMENT, (Ref("HPOSearch", "*"),))
        seen: list[Key] = []
        one._queue.add = lambda key, after=0.0: seen.append(key)  # type: ignore[method-assign]
        woken = []
        for generation in (1, 1, 1, 2, 2, None, 2):
            seen.clear()
            one.see(KEY, "any", generation)
            assert {KEY, SELECTION} <= set(seen)
            woken.append(DEPLOYMENT in seen)
        assert woken == [True, False, False, True, False, True, True]

    run(scenario)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_probe_fails_once_the_engine_has_ended(
    cluster: ServedCluster, kinds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def asked(one: Engine) -> int:
        (port,) = free_ports(1)
        address, ready = f"http://127.0.0.1:{port}/healthz", asyncio.Event()
        reporter = asyncio.create_task(
            health_reporter(
                address,
                memo=kopf.Memo(),
                indices=OperatorIndexers().indices,
                registry=registry(one, Configuration(), CUSTOM),
                settings=kopf_settings(),
                ready_flag=ready,
            )
        )
        await ready.wait()
        try:
            async with aiohttp.ClientSession() as session, session.get(address) as answer:
                return answer.status
        finally:
            reporter.cancel()
            await asyncio.wait([reporter])

    async def scenario(one: Engine, ended: asyncio.Event) -> None:
        assert await asked(one) == 200
        one._stop.set()
        await until(lambda: not one.healthy())
        assert await asked(one) == 500

    run(scenario)


def test_waits_for_a_server_that_is_away(cluster: ServedCluster, kinds: Any) -> None:
    cluster.away = True

    async def scenario(one: Engine, ended: asyncio.Event) -> None:
        one.see(KEY, "1", 1)
        await asyncio.sleep(0.05)
        assert cluster.writes == []
        cluster.away = False
        await until(lambda: ("Job", "digits-4") in cluster.names("Job"))

    run(scenario)


def test_a_new_life_begins_with_nothing_and_can_be_stopped_while_the_server_is_away(
    cluster: ServedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Series of resources whose definition has gone go with it; process 1 must not wait for an API server for ever."""
    asked: list[str] = []

    async def away() -> frozenset[str]:
        asked.append("capabilities")
        os.kill(os.getpid(), signal.SIGTERM)
        raise UnavailableError("away")

    told = Metrics()
    told.tell(KEY, {"library": {"models": 7}})
    monkeypatch.setattr(cluster, "capabilities", away)
    monkeypatch.setattr(main, "KubernetesCluster", lambda *_, **__: cluster)
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("nobody listens to SIGTERM"))
    try:
        settings = Settings(trainer_image="trainer", core_image="core")
        assert asyncio.run(main.live(settings, Configuration(), told, Log())) is False
    finally:
        signal.signal(signal.SIGTERM, before)
    assert asked == ["capabilities"]
    assert cluster.closed
    assert b"ensemble_library_models{" not in generate_latest(told.registry)


def test_an_optional_api_that_comes_wakes_all(cluster: ServedCluster, kinds: Any) -> None:
    seen: list[frozenset[str]] = []
    kinds["HPOSearch"].decision = lambda world: (seen.append(world.capabilities), decide(world))[1]

    async def scenario(one: Engine, ended: asyncio.Event) -> None:
        one.see(KEY, "1", 1)
        await until(lambda: seen)
        cluster.served |= {"RayJob"}
        await until(lambda: seen[-1] == {"RayJob"})
        assert {place[0] for place in one._watches._tasks} == {*BUILT_IN, "RayJob"}

    run(scenario)


def test_definitions_that_go_end_this_life(cluster: ServedCluster, kinds: Any) -> None:
    async def scenario(one: Engine, ended: asyncio.Event) -> None:
        await until(one.healthy)
        cluster.served -= {"HPOSearch"}
        await ended.wait()
        assert one.restart

    run(scenario)


def test_an_error_of_its_own_ends_it(cluster: ServedCluster, kinds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(cluster, "snapshot", broken)

    async def scenario(one: Engine, ended: asyncio.Event) -> None:
        await ended.wait()
        assert not one.restart
        assert not one.healthy()

    run(scenario, ends_with=ExceptionGroup)


def test_slow_timers_are_spread(cluster: ServedCluster, kinds: Any) -> None:
    async def scenario(one: Engine, ended: asyncio.Event) -> None:
        spread = {await one._handle(KEY) for _ in range(5)}
        assert len(spread) == 5
        assert all(after is not None and 1440 <= after <= 2160 for after in spread)

    run(scenario)


def test_told_to_stop_it_ends_what_is_begun(
    cluster: ServedCluster, kinds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = cluster.create

    async def slowly(manifest: Any) -> Any:
        await asyncio.sleep(0.1)
        return await create(manifest)

    monkeypatch.setattr(cluster, "create", slowly)

    async def scenario(one: Engine, ended: asyncio.Event) -> None:
        one.see(KEY, "1", 1)
        await until(lambda: cluster.writes)

    run(scenario)
    assert cluster.objects[KEY]["status"]["conditions"]
