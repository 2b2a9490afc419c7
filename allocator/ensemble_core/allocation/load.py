"""The load under which an objective is measured."""

from __future__ import annotations

from dataclasses import dataclass

from ensemble_core.api.ensembledeployment import EnsembleDeploymentSpec

IN_FLIGHT = 3  # requests
SWEEP = (1, 2, 3, 4, 6, 8)  # requests in flight, of which the fastest within a latency counts


@dataclass(frozen=True)
class ClosedLoad:
    """Requests of so many samples; so many of them in flight, one after the other where there are several."""

    in_flight: tuple[int, ...]
    samples: int


def load_of(spec: EnsembleDeploymentSpec) -> ClosedLoad:
    """The load under which the objective of a spec is measured."""
    segment = min(spec.serving.segment_size, spec.serving.max_batch_size)
    latency = spec.optimization.latency
    match spec.optimization.objective:
        case "latency":
            return ClosedLoad((latency.requests_in_flight,), min(latency.samples_per_request, segment))
        case "throughput-within-latency":
            return ClosedLoad(SWEEP, min(latency.samples_per_request, segment))
        case _:
            return ClosedLoad((IN_FLIGHT,), segment)
