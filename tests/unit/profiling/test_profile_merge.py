"""What a measurement changes of a profile that is there."""

from __future__ import annotations

from typing import Any

import pytest

from ensemble_core.library.records import Metrics, ModelRecord, Origin, Profile
from ensemble_core.profiling.measure import Device, make_profile

RECORD = ModelRecord(
    id="digits-0001",
    family="test",
    hyperparameters={},
    validation=Metrics(cross_entropy=1.0, error=0.5, macro_f1=0.5, top5_error=0.0),
    origin=Origin(),
    servable=True,
    files={},
)


def profile(seconds: dict[int, float], stored: Profile | None, sha256: str = "a" * 64, version: str = "1.0") -> Profile:
    batches = [
        {"batch_size": size, "passes": [taken] * 5, "memory_mib": 50.0, "foreign_cores": 0.0}
        for size, taken in seconds.items()
    ]
    answer: dict[str, Any] = {"engine_version": version, "load_seconds": 0.1, "batches": batches}
    return make_profile(RECORD, sha256, Device("cpu-test-1c", (0,)), "onnxruntime", answer, stored)


def times(found: Profile) -> dict[int, float]:
    return {batch.batch_size: batch.seconds for batch in found.batches}


def test_measurements_that_are_there_stay() -> None:
    stored = profile({8: 1.0, 32: 2.0}, None)
    assert times(profile({32: 9.0, 128: 3.0}, stored)) == {8: 1.0, 32: 2.0, 128: 3.0}


@pytest.mark.parametrize("change", [{"sha256": "b" * 64}, {"version": "2.0"}])
def test_measurements_of_another_file_or_engine_go(change: dict[str, str]) -> None:
    stored = profile({8: 1.0, 32: 2.0}, None)
    assert times(profile({32: 9.0}, stored, **change)) == {32: 9.0}
