"""The work queue: each key once, never two workers on one, slower after failures."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from ensemble_operator.queue import FIRST_PAUSE, LONGEST_PAUSE, Key, RetryError, WorkQueue

A, B = Key("HPOSearch", "lab", "a"), Key("HPOSearch", "lab", "b")
Handle = Callable[[Key], Awaitable[float | None]]


def run(scenario: Callable[[WorkQueue], Awaitable[None]], handle: Handle, workers: int = 2) -> None:
    """The scenario against running workers; at most ten seconds."""

    async def both() -> None:
        queue, stop = WorkQueue(lambda: 1.0), asyncio.Event()
        work = asyncio.create_task(queue.run(handle, workers, stop))
        async with asyncio.timeout(10):
            await scenario(queue)
            stop.set()
            await work

    asyncio.run(both())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_a_key_that_waits_is_handled_once() -> None:
    seen: list[Key] = []

    async def handle(key: Key) -> None:
        seen.append(key)

    async def scenario(queue: WorkQueue) -> None:
        for key in (A, A, B, A):
            queue.add(key)
        assert queue.depth() == 2
        await until(lambda: len(seen) == 2)
        await asyncio.sleep(0.02)
        assert sorted(seen) == [A, B]

    run(scenario, handle)


def test_a_key_that_is_added_while_it_is_handled_is_handled_again_and_never_twice_at_once() -> None:
    running, most, seen = 0, 0, 0

    async def handle(key: Key) -> None:
        nonlocal running, most, seen
        running, seen = running + 1, seen + 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1

    async def scenario(queue: WorkQueue) -> None:
        queue.add(A)
        await until(lambda: running == 1)
        for _ in range(5):
            queue.add(A)
        await until(lambda: seen == 2 and running == 0)
        await asyncio.sleep(0.03)
        assert (seen, most) == (2, 1)

    run(scenario, handle, workers=4)


def test_several_keys_at_once_but_no_more_than_workers() -> None:
    running, most = 0, 0

    async def handle(key: Key) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1

    async def scenario(queue: WorkQueue) -> None:
        for index in range(12):
            queue.add(Key("HPOSearch", "lab", str(index)))
        await until(lambda: queue.depth() == 0 and running == 0)
        assert most == 3

    run(scenario, handle, workers=3)


def test_of_several_times_the_earliest_counts() -> None:
    times: list[float] = []

    async def handle(key: Key) -> None:
        times.append(asyncio.get_running_loop().time())

    async def scenario(queue: WorkQueue) -> None:
        start = asyncio.get_running_loop().time()
        queue.add(A, 30)
        queue.add(A, 0.05)
        queue.add(A, 20)
        await until(lambda: len(times) == 1)
        assert 0.04 <= times[0] - start < 1

    run(scenario, handle)


def test_handled_again_after_the_time_it_asks_for() -> None:
    seen = 0

    async def handle(key: Key) -> float | None:
        nonlocal seen
        seen += 1
        return 0.01 if seen < 3 else None

    async def scenario(queue: WorkQueue) -> None:
        queue.add(A)
        await until(lambda: seen == 3)
        await asyncio.sleep(0.03)
        assert seen == 3

    run(scenario, handle)


def test_pauses_double_up_to_a_limit_and_begin_anew_after_success() -> None:
    queue = WorkQueue(lambda: 1.0)
    pauses = [queue._pause(A) for _ in range(14)]
    assert pauses[:4] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE, 8 * FIRST_PAUSE]
    assert pauses[-1] == LONGEST_PAUSE
    assert queue._pause(B) == FIRST_PAUSE
    queue.forget(A)
    assert queue._pause(A) == FIRST_PAUSE


def test_pauses_are_spread() -> None:
    assert WorkQueue(lambda: 0.0)._pause(A) == FIRST_PAUSE / 2


def test_a_failure_is_tried_again_not_before_the_server_wishes() -> None:
    times: list[float] = []

    async def handle(key: Key) -> None:
        times.append(asyncio.get_running_loop().time())
        if len(times) == 1:
            raise RetryError(after=0.8)

    async def scenario(queue: WorkQueue) -> None:
        queue.add(A)
        await until(lambda: len(times) == 2)
        assert times[1] - times[0] >= 0.8

    run(scenario, handle)


def test_stop_ends_what_is_begun_and_begins_no_more() -> None:
    ended: list[Key] = []

    async def handle(key: Key) -> float:
        await asyncio.sleep(0.05)
        ended.append(key)
        return 60.0

    async def both() -> None:
        queue, stop = WorkQueue(), asyncio.Event()
        work = asyncio.create_task(queue.run(handle, 1, stop))
        queue.add(A)
        queue.add(B)
        await asyncio.sleep(0.01)
        stop.set()
        async with asyncio.timeout(5):
            await work
        assert ended == [A]

    asyncio.run(both())


def test_an_unexpected_error_ends_the_queue() -> None:
    async def handle(key: Key) -> None:
        raise ZeroDivisionError

    async def both() -> None:
        queue = WorkQueue()
        queue.add(A)
        async with asyncio.timeout(5):
            await queue.run(handle, 2, asyncio.Event())

    with pytest.raises(ExceptionGroup) as raised:
        asyncio.run(both())
    assert raised.value.subgroup(ZeroDivisionError)
