from __future__ import annotations

import pytest

from ensemble_core.allocation.matrix import Matrix
from ensemble_core.allocation.pace import PATIENCE, SLACK_SECONDS, Pace
from ensemble_core.allocation.speeds import BatchTimes
from ensemble_core.library.records import BatchProfile, Profile

PACE = Pace(("gpu", "cpu"), ({"gpu": 0.001, "cpu": 0.1}, {"gpu": 0.002, "cpu": 0.2}))


@pytest.mark.parametrize(
    ("matrix", "seconds"),
    [
        (((8, 8), (0, 0)), 0.003),  # one after the other on the GPU
        (((8, 0), (0, 8)), 0.2),  # the slower device
        (((8, 8), (8, 0)), 0.1),  # as if the CPU got all samples
        (((8, 8), (128, 8)), 0.3),
    ],
)
def test_a_deadline_is_a_multiple_of_what_the_slowest_device_takes_for_all_samples(
    matrix: tuple[tuple[int, ...], ...], seconds: float
) -> None:
    assert PACE.deadline(Matrix(matrix), 384) == pytest.approx(SLACK_SECONDS + PATIENCE * 384 * seconds)


def test_the_slowest_batch_size_that_was_measured_counts() -> None:
    def measured(batch_size: int, seconds: float) -> BatchProfile:
        return BatchProfile(batch_size=batch_size, passes=(seconds,), seconds=seconds, memory_mib=1.0)

    profile = Profile(
        model="m", model_sha256="0" * 64, device_type="x", engine="onnxruntime", engine_version="1", cores=1,
        load_seconds=0.1, batches=(measured(8, 40.0), measured(64, 20.0)),
    )  # fmt: skip
    assert Pace.of(["x", "x"], [{"x": BatchTimes.of(profile)}]) == Pace(("x", "x"), ({"x": 0.02},))
