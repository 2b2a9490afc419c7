"""The operator is killed right before and right after every write; the next one ends at the same objects."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.handler.bench import KEY, Bench, Step, search
from tests.handler.fake import library
from tests.handler.memory import CrashError, Fault, Write, nothing, plain

from ensemble_operator.cluster import UnavailableError
from ensemble_operator.queue import RetryError


def begin(bench: Bench) -> None:
    bench.cluster.put(search())


def finish(trials: int) -> Step:
    return lambda bench: void(bench.cluster.change("Job", "lab", f"digits-{trials}", {"status": {"succeeded": 1}}))


def raise_trials(bench: Bench) -> None:
    bench.cluster.change(*KEY, {"spec": {"maxTrialCount": 5}})


def suspend(bench: Bench) -> None:
    bench.cluster.change(*KEY, {"spec": {"suspend": True}})


def resume(bench: Bench) -> None:
    bench.cluster.change(*KEY, {"spec": {"suspend": False}})


def break_spec(bench: Bench) -> None:
    bench.cluster.change(*KEY, {"spec": {"unknown": 1}})


def delete(bench: Bench) -> None:
    bench.cluster.remove(*KEY)


def void(_: Any) -> None:
    return None


LIVES: dict[str, tuple[Step, ...]] = {
    "made": (begin,),
    "done": (begin, finish(4)),
    "continued": (begin, finish(4), raise_trials, finish(5)),
    "suspended": (begin, suspend, resume),
    "invalid": (begin, break_spec),
    "deleted": (begin, delete, finish(4)),
}


def live(steps: tuple[Step, ...], fault: Fault = nothing) -> Bench:
    bench = Bench()
    bench.kind.decision = library
    return bench.live(steps, fault)


def outcome(bench: Bench) -> tuple[Any, ...]:
    """All that counts: objects without times and versions, what was made how often, and the events."""
    objects = {place: settled(one) for place, one in bench.cluster.objects.items()}
    return objects, Counter(bench.cluster.made), Counter(one["reason"] for one in bench.cluster.events.values())


def settled(manifest: Any) -> Any:
    if isinstance(manifest, dict):
        times = ("lastTransitionTime", "resourceVersion", "creationTimestamp")
        return {key: settled(value) for key, value in plain_of(manifest).items() if key not in times}
    return [settled(item) for item in manifest] if isinstance(manifest, list) else manifest


def plain_of(manifest: dict[str, Any]) -> dict[str, Any]:
    return plain(manifest) if "metadata" in manifest and "kind" in manifest else manifest


def writes_of(life: str) -> int:
    return len(live(LIVES[life]).cluster.writes)


POINTS = [(life, index, when) for life in LIVES for index in range(writes_of(life)) for when in ("before", "after")]


@pytest.mark.parametrize(("life", "index", "when"), POINTS, ids=str)
def test_killed_at_a_write(life: str, index: int, when: str) -> None:
    died = []

    def crash(at: int, write: Write, moment: str) -> None:
        if (at, moment) == (index, when) and not died:
            died.append(write)
            raise CrashError

    assert outcome(live(LIVES[life], crash)) == outcome(live(LIVES[life]))
    assert died, "the point was never reached"


@pytest.mark.parametrize(("life", "index"), sorted({point[:2] for point in POINTS}), ids=str)
def test_unavailable_at_a_write(life: str, index: int) -> None:
    """The answer is lost: whether it was written or not, nothing is made twice."""

    def fail(at: int, write: Write, moment: str) -> None:
        if at == index and moment == "after":
            raise UnavailableError("connection reset")

    assert outcome(live(LIVES[life], fail)) == outcome(live(LIVES[life]))


def test_unavailable_all_the_time_for_a_while() -> None:
    def fail(at: int, write: Write, moment: str) -> None:
        if at < 30:
            raise UnavailableError("internal error")

    bench = Bench()
    bench.kind.decision = library
    bench.cluster.put(search())
    bench.cluster.fault = fail
    for _ in range(30):
        with pytest.raises(RetryError):
            bench.look()
    bench.settle()
    assert outcome(bench)[0] == outcome(live((begin,)))[0]


@pytest.mark.parametrize("at", range(writes_of("made")))
def test_two_operators_at_once(at: int) -> None:
    """A second operator does everything between two writes of the first."""
    first, second = Bench(), Bench()
    second.cluster = first.cluster
    first.kind.decision = second.kind.decision = library
    second.restart()
    first.cluster.put(search())

    def interfere(index: int, write: Write, moment: str) -> None:
        if index == at and moment == "before":
            first.cluster.fault = nothing
            with ThreadPoolExecutor(1) as other:  # an event loop of its own
                other.submit(second.settle).result(30)

    first.cluster.fault = interfere
    first.settle()
    assert outcome(first)[:2] == outcome(live((begin,)))[:2]
