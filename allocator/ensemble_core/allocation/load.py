"""The load under which an objective is measured, on the real server and in simulation."""

from __future__ import annotations

from dataclasses import dataclass

from ensemble_core.allocation.simulator import Load
from ensemble_core.api.ensembledeployment import EnsembleDeploymentSpec
from ensemble_core.api.load import requests_of, saturating

# Requests that are simulated: so many, and so many times those in flight.
RANKING, RANKING_TURNS = 24, 3  # at least, to rank candidates by latency …
REQUESTS, TURNS = 64, 16  # … and together, to measure throughput


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
        return tuple(
            Load(each, self.samples, max(RANKING, RANKING_TURNS * each), segment=self.segment)
            for each in self.in_flight
        )


def load_of(spec: EnsembleDeploymentSpec) -> ClosedLoad:
    """The load under which the objective of a spec is measured."""
    requests = requests_of(spec)
    return ClosedLoad(requests.in_flight, requests.samples, spec.largest_batch)


def saturation(devices: int, segment: int = 128) -> Load:
    """The load under which throughput is measured, as the simulator takes it."""
    in_flight = saturating(devices)
    return Load(in_flight, segment, REQUESTS + TURNS * in_flight, segment=segment)
