"""The load under which an objective is measured, on the real server and in simulation."""

from __future__ import annotations

from dataclasses import dataclass

from ensemble_core.allocation.simulator import Load
from ensemble_core.api.ensembledeployment import EnsembleDeploymentSpec
from ensemble_core.api.load import requests_of, saturating

RANKING = 24  # requests that are simulated to rank candidates by latency
REQUESTS, TURNS = 64, 16  # that are simulated to measure throughput: so many, and so many times those in flight


@dataclass(frozen=True)
class ClosedLoad:
    """Requests of so many samples; so many of them in flight, one after the other where there are several.

    Args:
        in_flight: Requests.
        samples: Of a request.
        segment: Samples of the pieces that the server cuts requests into.
    """

    in_flight: tuple[int, ...]
    samples: int
    segment: int

    def ranking(self) -> tuple[Load, ...]:
        """As the simulator takes it, short: to rank candidates."""
        return tuple(Load(each, self.samples, RANKING, segment=self.segment) for each in self.in_flight)


def load_of(spec: EnsembleDeploymentSpec) -> ClosedLoad:
    """The load under which the objective of a spec is measured."""
    requests = requests_of(spec)
    return ClosedLoad(requests.in_flight, requests.samples, segment_of(spec))


def segment_of(spec: EnsembleDeploymentSpec) -> int:
    """Samples of a whole segment."""
    return min(spec.serving.segment_size, spec.serving.max_batch_size)


def saturation(devices: int, segment: int = 128) -> Load:
    """The load under which throughput is measured, as the simulator takes it."""
    in_flight = saturating(devices)
    return Load(in_flight, segment, REQUESTS + TURNS * in_flight, segment=segment)
