"""Lives of a real resource under the real engine, which is killed at every write of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

from tests.handler.bench import KEY, Bench, Step
from tests.handler.memory import CrashError, MemoryCluster, Place, Write

from ensemble_operator.queue import Key
from ensemble_operator.world import Kind

TIMES = ("resourceVersion", "uid", "creationTimestamp", "lastTransitionTime", "changedTime", "completionTime")
Make = Callable[[], Bench]


def stand(kind: Kind[Any], key: Key = KEY, cluster: MemoryCluster | None = None, *capabilities: str) -> Bench:
    """A bench for a real kind."""
    return Bench(cluster or MemoryCluster(), kind, capabilities=frozenset(capabilities), key=key)  # type: ignore[arg-type]


def suspend(bench: Bench) -> None:
    bench.change(suspend=True)


def resume(bench: Bench) -> None:
    bench.change(suspend=False)


def delete(bench: Bench) -> None:
    bench.cluster.remove(*bench.key)


def wait(bench: Bench) -> None:
    """Longer than until a lost workload is tried again."""
    bench.now += timedelta(minutes=1)


def lose(bench: Bench) -> None:
    """Somebody deletes the Job."""
    (job,) = (name for _, name in bench.cluster.names("Job"))
    bench.cluster.remove("Job", "lab", job)


def killed(make: Make, steps: Sequence[Step], when: str) -> Iterator[tuple[Bench, Any, Any, str]]:
    """A life once for each of its writes, the operator being killed right before or after it.

    Yields:
        The bench, its outcome, that without interruption, and where it was interrupted. It ends with the step that led
        to the write, for equal states have equal futures; if they are not equal then, it goes on to the life's end.
    """
    whole = outcome(make().live(steps))
    for before, expected, rest, index in _writes(make(), steps):

        def crash(at: int, write: Write, moment: str, here: int = index) -> None:
            if (at, moment) == (here, when):
                raise CrashError

        bench = before.copy().live(rest[:1], crash)
        found, where = outcome(bench), f"killed {when} write {index}, {bench.cluster.writes[index]}"
        if found == expected:
            yield bench, found, expected, where
        else:
            yield bench, outcome(bench.live(rest[1:])), whole, where


def _writes(bench: Bench, steps: Sequence[Step]) -> Iterator[tuple[Bench, Any, Sequence[Step], int]]:
    """All writes of a life: the bench before the step of each, the outcome of that step, and the steps from it on."""
    for number, step in enumerate(steps):
        before = bench.copy()
        expected = outcome(bench.live([step]))
        for index in range(len(before.cluster.writes), len(bench.cluster.writes)):
            yield before, expected, steps[number:], index


def killed_all_the_time(make: Make, steps: Sequence[Step]) -> Bench:
    """The same life with operators that change one thing and die."""
    bench, seen = make(), set()

    def crash(at: int, write: Write, moment: str) -> None:
        state = bench.cluster.version, len(bench.cluster.objects), len(bench.cluster.events)
        if moment == "after" and state not in seen:
            seen.add(state)
            raise CrashError

    return bench.live(steps, crash)


def deleted_at_any_write(make: Make, steps: Sequence[Step]) -> Iterator[tuple[Bench, str]]:
    """The same life once for each of its writes, the resource being deleted by its user right before that."""
    for before, _, rest, index in _writes(make(), steps):
        bench = before.copy()

        def remove(at: int, write: Write, moment: str, bench: Bench = bench, here: int = index) -> None:
            if (at, moment) == (here, "before"):
                delete(bench)

        bench.live(rest[:1], remove)
        bench.cluster.collect()
        yield bench, f"deleted before write {index}, {bench.cluster.writes[index]}"


def outcome(bench: Bench) -> Any:
    """All that counts: objects without times, and what was made how often."""
    return timeless(dict(bench.cluster.objects)), Counter(bench.cluster.made)


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in TIMES}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def made(bench: Bench, kind: str) -> list[str]:
    """Names of all objects of a kind that were ever made, in that order."""
    return [name for one, _, name in bench.cluster.made if one == kind]


def strangers(bench: Bench) -> list[Place]:
    """Objects that neither a user made nor any user's resource owns."""
    uids = {one["metadata"]["uid"] for one in bench.cluster.objects.values()}
    return [
        place
        for place, one in bench.cluster.objects.items()
        if "ownerReferences" in one["metadata"]
        and not any(owner["uid"] in uids for owner in one["metadata"]["ownerReferences"])
    ]
