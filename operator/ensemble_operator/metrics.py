"""What Prometheus sees of the operator and of the resources.

`ensemble_operator_…` tells how the operator works, `ensemble_…` what the status of each resource says. Series of a
resource go when it goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from http.server import HTTPServer
from typing import Any, NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ensemble_operator.queue import Key
from ensemble_operator.world import Manifest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_OF_RESOURCE = ("namespace", "name")


class Gauge(NamedTuple):
    """A gauge over resources: its further labels, and what it means."""

    labels: tuple[str, ...]
    help: str


GAUGES: Mapping[str, Gauge] = {
    "ensemble_condition": Gauge(("kind", "type"), "1 if the condition holds, 0 if not, -1 if that is unknown."),
    "ensemble_search_trials": Gauge(("state",), "Trials of an HPOSearch by state."),
    "ensemble_search_occupancy_ratio": Gauge((), "Share of the slots' time that an HPOSearch has used."),
    "ensemble_search_best_value": Gauge((), "Best value of the first objective of an HPOSearch."),
    "ensemble_library_models": Gauge((), "Models in the library of an HPOSearch."),
    "ensemble_selection_members": Gauge(("budget",), "Members of each ensemble of an EnsembleSelection."),
    "ensemble_deployment_members": Gauge((), "Members that an EnsembleDeployment serves."),
    "ensemble_deployment_expected_images_per_second": Gauge((), "Throughput of one pod, as its allocation has it."),
    "ensemble_deployment_ready_replicas": Gauge((), "Serving pods of an EnsembleDeployment that answer."),
}
_HOLDS = {"True": 1.0, "False": 0.0}
_STATES = {
    "trialsPending": "pending",
    "trialsRunning": "running",
    "trialsSucceeded": "succeeded",
    "trialsEarlyStopped": "early_stopped",
    "trialsFailed": "failed",
}


class Sample(NamedTuple):
    """A value of a gauge, with the values of its further labels."""

    gauge: str
    labels: tuple[str, ...]
    value: float


def samples(kind: str, status: Mapping[str, Any]) -> list[Sample]:
    """What the status of a resource says in figures."""
    conditions = [
        Sample("ensemble_condition", (kind, one["type"]), _HOLDS.get(one["status"], -1.0))
        for one in status.get("conditions") or ()
    ]
    figures = {"HPOSearch": _of_search, "EnsembleSelection": _of_selection, "EnsembleDeployment": _of_deployment}
    return conditions + [Sample(*one) for one in figures[kind](status) if one[2] is not None]


_Figures = Iterable[tuple[str, tuple[str, ...], Any]]


def _of_search(status: Mapping[str, Any]) -> _Figures:
    for field, state in _STATES.items():
        yield "ensemble_search_trials", (state,), status.get(field)
    percent = status.get("occupancyPercent")
    yield "ensemble_search_occupancy_ratio", (), None if percent is None else percent / 100
    yield "ensemble_search_best_value", (), (status.get("currentOptimalTrial") or {}).get("value")
    yield "ensemble_library_models", (), (status.get("library") or {}).get("models")


def _of_selection(status: Mapping[str, Any]) -> _Figures:
    for budget in status.get("budgets") or ():
        yield "ensemble_selection_members", (budget["name"],), budget.get("memberCount")


def _of_deployment(status: Mapping[str, Any]) -> _Figures:
    yield "ensemble_deployment_members", (), status.get("members")
    performance = status.get("performance") or {}
    yield "ensemble_deployment_expected_images_per_second", (), performance.get("imagesPerSecond")
    yield "ensemble_deployment_ready_replicas", (), status.get("readyReplicas")


class Metrics(Collector):
    """Everything that the operator tells Prometheus."""

    def __init__(self, depth: Callable[[], int] = lambda: 0) -> None:
        self.registry = CollectorRegistry()
        self.depth = depth
        self._samples: dict[Key, list[Sample]] = {}
        self._reconciles = Counter(
            "ensemble_operator_reconciles", "Looks at a resource.", ("kind", "result"), registry=self.registry
        )
        self._seconds = Histogram(
            "ensemble_operator_reconcile_seconds",
            "Seconds that a look took.",
            ("kind",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._errors = Counter(
            "ensemble_operator_errors", "Looks that did not come to an end.", ("kind", "reason"), registry=self.registry
        )
        self._requests = Counter(
            "ensemble_operator_api_requests",
            "Requests to the API server; code 0 is no answer.",
            ("verb", "code"),
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)
        self.registry.register(self)

    def reconciled(self, kind: str, result: str, seconds: float) -> None:
        self._reconciles.labels(kind, result).inc()
        self._seconds.labels(kind).observe(seconds)

    def failed(self, kind: str, reason: str) -> None:
        self._errors.labels(kind, reason).inc()

    def requested(self, verb: str, code: int) -> None:
        self._requests.labels(verb, str(code)).inc()

    def tell(self, key: Key, status: Manifest) -> None:
        """What the resource's status says now."""
        self._samples[key] = samples(key.kind, status)

    def forget(self, key: Key) -> None:
        self._samples.pop(key, None)

    def forget_all(self) -> None:
        """Every resource: those that still are there will be told of."""
        self._samples.clear()

    def collect(self) -> Iterable[Metric]:
        queue = GaugeMetricFamily("ensemble_operator_queue_depth", "Resources that wait for a worker.")
        queue.add_metric((), self.depth())
        families = {
            name: GaugeMetricFamily(name, gauge.help, labels=(*_OF_RESOURCE, *gauge.labels))
            for name, gauge in GAUGES.items()
        }
        # A copy: Prometheus' server has a thread of its own.
        for key, told in list(self._samples.items()):
            for sample in told:
                families[sample.gauge].add_metric((key.namespace, key.name, *sample.labels), sample.value)
        return [queue, *families.values()]


def serve(metrics: Metrics, port: int) -> HTTPServer:
    """Answer `/metrics` in a thread."""
    disable_created_metrics()  # type: ignore[no-untyped-call]
    server, _ = start_http_server(port, registry=metrics.registry)
    return server
