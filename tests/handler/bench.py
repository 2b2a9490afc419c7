"""Reconciles against a cluster in memory."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.handler.fake import FakeKind
from tests.handler.memory import CrashError, Fault, MemoryCluster, nothing

from ensemble_operator.identity import report_name, spec_name
from ensemble_operator.logs import Log
from ensemble_operator.metrics import Metrics
from ensemble_operator.names import ATTEMPT, text_hash
from ensemble_operator.queue import Key, RetryError
from ensemble_operator.reconcile import Reconciler
from ensemble_operator.settings import Settings
from ensemble_operator.world import Manifest

KEY = Key("HPOSearch", "lab", "digits")
ENDED = ("Complete", "Failed")


def resource(key: Key, spec: Manifest) -> Manifest:
    return {
        "apiVersion": "ensemble-operator.io/v1alpha1",
        "kind": key.kind,
        "metadata": {"name": key.name, "namespace": key.namespace},
        "spec": copy.deepcopy(spec),
    }


def search(name: str = "digits", trials: int = 4, **spec: Any) -> Manifest:
    library = {"storage": {"persistentVolumeClaim": {"claimName": "libraries"}}}
    given = {"library": library, "dataset": {"builtin": "digits"}, "maxTrialCount": trials}
    return resource(Key("HPOSearch", "lab", name), given | spec)


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


def _ended(workload: Manifest) -> bool:
    status = workload.get("status", {})
    return status.get("jobDeploymentStatus") in ENDED or "conditions" in status
