"""Reconciles against a cluster in memory."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.handler.fake import FakeKind
from tests.handler.memory import MemoryCluster

from ensemble_operator.logs import Log
from ensemble_operator.metrics import Metrics
from ensemble_operator.queue import Key, RetryError
from ensemble_operator.reconcile import Reconciler
from ensemble_operator.settings import Settings
from ensemble_operator.world import Manifest

KEY = Key("HPOSearch", "lab", "digits")


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

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """A new process: nothing is remembered."""
        self.reconciler = Reconciler(
            self.cluster,
            {"HPOSearch": self.kind},
            Settings(trainer_image="trainer", core_image="core"),
            lambda: self.capabilities,
            self.metrics,
            Log(),
            lambda: self.now,
        )

    def look(self, key: Key = KEY) -> float | None:
        """One look; a second passes before."""
        self.now += timedelta(seconds=1)
        return asyncio.run(self.reconciler.handle(key))

    def settle(self, key: Key = KEY, looks: int = 20) -> None:
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

    def condition(self, name: str) -> Manifest:
        conditions = self.cluster.objects[KEY]["status"]["conditions"]
        found: Manifest = next(one for one in conditions if one["type"] == name)
        return found
