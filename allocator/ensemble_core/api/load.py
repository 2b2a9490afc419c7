"""The requests under which an objective is measured."""

from __future__ import annotations

from dataclasses import dataclass

from ensemble_core.api.ensembledeployment import EnsembleDeploymentSpec

SWEEP = (1, 2, 3, 4, 6, 8)  # requests in flight, of which the fastest within a latency counts
LEAST = 3  # one that is worked on, one that waits for it, and one that is on its way


def saturating(devices: int) -> int:
    """Requests of a segment in flight under which throughput is measured.

    A segment can be a single batch of each member, so a member on all devices needs as many of them, and one more that
    is on its way. In simulations of the thesis's ensembles on 4 to 16 V100s four times as many requests change the
    throughput by 1 % in the mean and 3 % at most; three requests alone halve that of IMN4 on 16. More would only cost
    memory, and larger ones would make the windows of a measurement coarser.
    """
    return max(LEAST, devices + 1)


@dataclass(frozen=True)
class Requests:
    """Requests of so many samples; so many of them in flight, one number after the other where there are several."""

    in_flight: tuple[int, ...]
    samples: int


def requests_of(spec: EnsembleDeploymentSpec) -> Requests:
    """The requests under which the objective of a spec is measured."""
    latency = spec.optimization.latency
    match spec.optimization.objective:
        case "latency":
            return Requests((latency.requests_in_flight,), latency.samples_per_request)
        case "throughput-within-latency":
            return Requests(SWEEP, latency.samples_per_request)
        case _:
            return Requests((saturating(sum(group.count for group in spec.devices)),), spec.largest_batch)
