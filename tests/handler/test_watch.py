"""Watches tell the owner of what has changed, after gaps too, and nothing else."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from ensemble_operator import watch
from ensemble_operator.cluster import ApiError, Change, ExpiredError, MissingError, UnavailableError
from ensemble_operator.logs import Log
from ensemble_operator.names import OWNER_KIND, OWNER_NAME
from ensemble_operator.queue import Key
from ensemble_operator.watch import Watch, Watches, owner_key


def child(name: str, version: int, owner: str = "digits") -> dict[str, Any]:
    labels = {OWNER_KIND: "HPOSearch", OWNER_NAME: owner}
    return {"metadata": {"name": name, "namespace": "lab", "resourceVersion": str(version), "labels": labels}}


def key(name: str = "digits") -> Key:
    return Key("HPOSearch", "lab", name)


@dataclass
class Script:
    """A server that answers lists and watches as told, and then falls silent."""

    lists: deque[Any]
    streams: deque[list[Any]] = field(default_factory=deque)
    since: list[str] = field(default_factory=list)
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    async def snapshot(self, kind: str, namespace: str | None, selector: str) -> tuple[list[Any], str]:
        self.asked.append((kind, namespace))
        answer = self.lists.popleft() if self.lists else await silence()
        if isinstance(answer, ApiError):
            raise answer
        return answer, "100"

    async def changes(self, kind: str, namespace: str | None, selector: str, since: str) -> AsyncIterator[Change]:
        self.since.append(since)
        for change in self.streams.popleft() if self.streams else [await silence()]:
            if isinstance(change, ApiError):
                raise change
            yield change


async def silence() -> Any:
    await asyncio.Event().wait()


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(watch, "BETWEEN_STREAMS", 0.0)


def told(script: Script, number: int) -> list[Key]:
    """The first keys that a watch tells; no more may come."""
    keys: list[Key] = []

    async def run() -> None:
        task = asyncio.create_task(Watch(script, "Job", None, keys.append, Log()).run())
        await until(lambda: len(keys) >= number)
        await asyncio.sleep(0.03)
        task.cancel()

    asyncio.run(run())
    return keys


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


def test_tells_what_is_there_and_what_happens() -> None:
    stream = [
        Change("MODIFIED", child("a", 101)),
        Change("BOOKMARK", {"metadata": {"resourceVersion": "105"}}),
        Change("DELETED", child("a", 106)),
        Change("ADDED", child("b", 107, "faces")),
    ]
    script = Script(deque([[child("a", 1)]]), deque([stream]))
    assert told(script, 4) == [key(), key(), key(), key("faces")]
    assert script.since == ["100", "107"]


def test_a_stream_that_ends_goes_on_from_where_it_was() -> None:
    streams = deque(
        [[Change("BOOKMARK", {"metadata": {"resourceVersion": "105"}})], [Change("ADDED", child("a", 106))]]
    )
    script = Script(deque([[]]), streams)
    assert told(script, 1) == [key()]
    assert script.since == ["100", "105", "106"]


@pytest.mark.parametrize("error", [ExpiredError("too old"), UnavailableError("cut"), MissingError("gone")])
def test_after_a_gap_only_what_changed_is_told(error: ApiError) -> None:
    lists = deque(
        [
            [child("same", 1, "a"), child("changed", 2, "b"), child("deleted", 3, "c"), child("moved", 4, "d")],
            [child("same", 1, "a"), child("changed", 9, "b"), child("new", 10, "e"), child("moved", 11, "f")],
        ]
    )
    keys = told(Script(lists, deque([[error]])), 9)
    assert sorted(one.name for one in keys[:4]) == ["a", "b", "c", "d"]
    assert sorted(one.name for one in keys[4:]) == ["b", "c", "d", "e", "f"]


def test_a_list_that_fails_is_asked_for_again() -> None:
    script = Script(deque([UnavailableError("away"), UnavailableError("away"), [child("a", 1)]]))
    assert told(script, 1) == [key()]
    assert len(script.asked) == 3


@pytest.mark.parametrize(
    "stream", [[Change("ADDED", child("a", 101)), UnavailableError("cut")], []], ids=["delivers", "ends"]
)
def test_a_stream_that_works_ends_the_slowness_of_failures(stream: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        script = Script(deque([UnavailableError("away")] * 4 + [[]] * 2), deque([stream]))
        one = Watch(script, "Job", None, lambda key: None, Log())
        task = asyncio.create_task(one.run())
        await until(lambda: len(script.since) == 2)
        assert one._pause <= 2 * watch.FIRST_PAUSE
        task.cancel()

    asyncio.run(run())


@pytest.mark.parametrize(
    "labels", [{}, {OWNER_KIND: "HPOSearch"}, {OWNER_KIND: "Secret", OWNER_NAME: "a"}, {OWNER_NAME: "a"}, None]
)
def test_objects_without_an_owner_are_nobodys(labels: Any) -> None:
    assert owner_key({"metadata": {"name": "a", "namespace": "lab", "labels": labels}}) is None


def test_one_watch_for_each_kind_and_namespace() -> None:
    async def run() -> None:
        script = Script(deque([[], [], [], []]))
        watches = Watches(script, ("a", "b"), lambda key: None, Log())
        watches.set_kinds(["Job", "Pod"])
        await until(lambda: len(script.since) == 4)
        assert sorted(script.asked, key=str) == [("Job", "a"), ("Job", "b"), ("Pod", "a"), ("Pod", "b")]
        watches.set_kinds(["Job"])
        await asyncio.sleep(0)
        assert sorted(place[0] for place in watches._tasks) == ["Job", "Job"]
        await watches.close()

    asyncio.run(run())


def test_an_unexpected_error_is_not_swallowed() -> None:
    async def run() -> None:
        watches = Watches(Script(deque([["no object"]])), (), lambda key: None, Log())
        watches.set_kinds(["Job"])
        async with asyncio.timeout(5):
            await watches.broken()

    with pytest.raises(TypeError):
        asyncio.run(run())
