"""Reconciles against a cluster in memory."""

from __future__ import annotations

import asyncio
import copy
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.handler.fake import FakeKind
from tests.handler.memory import CrashError, Fault, MemoryCluster, Place, Write, nothing

from ensemble_operator.identity import report_name, spec_name
from ensemble_operator.logs import Log
from ensemble_operator.metrics import Metrics
from ensemble_operator.names import ATTEMPT, text_hash
from ensemble_operator.queue import Key, RetryError
from ensemble_operator.reconcile import Reconciler
from ensemble_operator.settings import Settings
from ensemble_operator.world import Kind, Manifest

KEY = Key("HPOSearch", "lab", "digits")
TIMES = ("resourceVersion", "uid", "creationTimestamp", "lastTransitionTime", "changedTime", "completionTime")
ENDED = ("Complete", "Failed")


def search(name: str = "digits", trials: int = 4, **spec: Any) -> Manifest:
    library = {"storage": {"persistentVolumeClaim": {"claimName": "libraries"}}}
    return {
        "apiVersion": "ensemble-operator.io/v1alpha1",
        "kind": "HPOSearch",
        "metadata": {"name": name, "namespace": "lab"},
        "spec": {"library": library, "dataset": {"builtin": "digits"}, "maxTrialCount": trials, **spec},
    }


@dataclass
class Bench:
    """An operator that can be stopped anywhere, and its cluster."""

    cluster: MemoryCluster = field(default_factory=MemoryCluster)
    kind: FakeKind = field(default_factory=FakeKind)
    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    capabilities: frozenset[str] = frozenset()
    metrics: Metrics = field(default_factory=Metrics)
    key: Key = KEY

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """A new process: nothing is remembered."""
        self.cluster.clock = lambda: self.now
        self.reconciler = Reconciler(
            self.cluster,
            {self.key.kind: self.kind},
            Settings(trainer_image="trainer", core_image="core"),
            lambda: self.capabilities,
            self.metrics,
            Log(),
            lambda: self.now,
        )

    def copy(self) -> Bench:
        """The same moment once more."""
        return replace(self, cluster=copy.deepcopy(self.cluster))

    def look(self, key: Key | None = None) -> float | None:
        """One look; a second passes before."""
        self.now += timedelta(seconds=1)
        return asyncio.run(self.reconciler.handle(key or self.key))

    def settle(self, key: Key | None = None, looks: int = 20) -> None:
        """Look until nothing is written any more."""
        for _ in range(looks):
            before = len(self.cluster.writes)
            try:
                self.look(key)
            except RetryError:
                continue
            if len(self.cluster.writes) == before:
                return
        pytest.fail(f"still writes after {looks} looks: {self.cluster.writes[-10:]}")

    def live(self, steps: Sequence[Step], fault: Fault = nothing) -> Bench:
        """Go through a resource's life; whenever the operator dies a new one takes over."""
        self.cluster.fault = fault
        for step in steps:
            step(self)
            self._survive()
        return self

    def _survive(self, deaths: int = 100) -> None:
        for _ in range(deaths):
            try:
                return self.settle()
            except CrashError:
                self.restart()
        pytest.fail(f"does not get on in {deaths} lives: {self.cluster.writes[-10:]}")

    def condition(self, name: str) -> Manifest:
        conditions = self.cluster.objects[self.key]["status"]["conditions"]
        found: Manifest = next(one for one in conditions if one["type"] == name)
        return found

    # ------------------------------------------------------------ what users and workloads do

    def change(self, **spec: Any) -> None:
        """Change the specification."""
        self.cluster.change(*self.key, {"spec": spec})

    def workload(self, kind: str = "Job") -> Manifest:
        """The only one that has not ended."""
        (found,) = [one for place, one in self.cluster.objects.items() if place[0] == kind and not _ended(one)]
        return found

    def tell(self, state: str, verb: str, kind: str = "Job", **content: Any) -> None:
        """What the workload reports."""
        workload = self.workload(kind)
        child = workload["metadata"]["name"]
        text = self.cluster.objects["ConfigMap", "lab", spec_name(child)]["data"]["spec.yaml"]
        report = {
            "schemaVersion": 1,
            "verb": verb,
            "specHash": text_hash(text),
            "attempt": int(workload["metadata"]["annotations"][ATTEMPT]),
            "ownerUid": self.cluster.objects[self.key]["metadata"]["uid"],
            "state": state,
            **content,
        }
        self.cluster.change("ConfigMap", "lab", report_name(child), {"data": {"report.json": json.dumps(report)}})

    def end(self, condition: str = "Complete") -> None:
        """The Job has ended."""
        status = {"conditions": [{"type": condition, "status": "True"}]}
        self.cluster.change("Job", "lab", self.workload()["metadata"]["name"], {"status": status})


Step = Callable[[Bench], None]
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


def _ended(workload: Manifest) -> bool:
    status = workload.get("status", {})
    return status.get("jobDeploymentStatus") in ENDED or "conditions" in status


# ---------------------------------------------------------------- lives that are cut off


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
