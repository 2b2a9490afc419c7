"""The load under which an objective is measured, the same on the real server and in simulation."""

from __future__ import annotations

from typing import Any

import pytest

from ensemble_core.allocation.guided import guided, routed
from ensemble_core.allocation.load import ClosedLoad, load_of, saturation
from ensemble_core.allocation.objectives import Throughput, truth_of
from ensemble_core.allocation.paper import calibrated_case, parse_devices
from ensemble_core.allocation.simulator import Load, Simulator, simulate
from ensemble_core.api.ensembledeployment import EnsembleDeploymentSpec
from ensemble_core.api.load import saturating


def spec(**fields: Any) -> EnsembleDeploymentSpec:
    devices = [{"name": "first", "type": "gpu", "count": 4}, {"name": "others", "type": "cpu", "count": 2}]
    return EnsembleDeploymentSpec.model_validate(
        {"selectionRef": {"name": "digits", "budgetName": "large"}, "devices": devices, **fields}
    )


@pytest.mark.parametrize(("devices", "requests"), [(1, 3), (2, 3), (3, 4), (4, 5), (16, 17)])
def test_there_is_a_request_more_than_devices(devices: int, requests: int) -> None:
    assert saturating(devices) == requests
    assert saturation(devices, 64) == Load(requests, 64, 64 + 16 * requests, segment=64)


def test_throughput_is_measured_with_all_devices_busy() -> None:
    assert load_of(spec()) == ClosedLoad((7,), 128, 128)
    assert load_of(spec(optimization={"objective": "fewest-devices", "requiredSamplesPerSecond": 5})).in_flight == (7,)


def test_latency_is_measured_under_the_load_named() -> None:
    latency = {"requestsInFlight": 2, "samplesPerRequest": 50}
    serving = {"segmentSize": 64, "maxBatchSize": 256}
    few = load_of(spec(optimization={"objective": "latency", "latency": latency}, serving=serving))
    assert few == ClosedLoad((2,), 50, 64)
    assert few.ranking() == (Load(2, 50, 24, segment=64),)
    assert ClosedLoad((8, 32), 50, 64).ranking() == (Load(8, 50, 24, segment=64), Load(32, 50, 96, segment=64))


def test_a_segment_is_no_larger_than_a_request() -> None:
    assert load_of(spec(serving={"segmentSize": 64})) == ClosedLoad((7,), 64, 64)
    assert load_of(spec(serving={"maxBatchSize": 32})) == ClosedLoad((7,), 32, 32)


@pytest.mark.parametrize(("ensemble", "devices"), [("IMN4", 4), ("IMN4", 16), ("IMN12", 8)])
def test_more_requests_would_hardly_give_more(ensemble: str, devices: int) -> None:
    problem = calibrated_case(ensemble, parse_devices(f"{devices}xV100-16GB")).problem
    truth, load = truth_of(problem), saturation(devices)
    found = guided(problem, None, None, Simulator(truth, load), Throughput(), 1, seed=0)
    assert found is not None
    for candidate in (found.best, *routed(problem, problem.indices(found.best.matrix))):
        deep = Load(4 * load.in_flight, load.samples, 2 * load.requests)
        assert simulate(truth, candidate, load).throughput == pytest.approx(
            simulate(truth, candidate, deep).throughput, rel=0.06
        )


def test_three_requests_leave_many_devices_idle() -> None:
    problem = calibrated_case("IMN4", parse_devices("16xV100-16GB")).problem
    truth, load = truth_of(problem), saturation(16)
    found = guided(problem, None, None, Simulator(truth, load), Throughput(), 1, seed=0)
    assert found is not None
    few = simulate(truth, found.best, Load(3, 128, load.requests)).throughput
    assert few < 0.6 * simulate(truth, found.best, load).throughput
