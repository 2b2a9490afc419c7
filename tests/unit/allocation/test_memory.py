from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_core.allocation.matrix import Matrix
from ensemble_core.allocation.memory import Curve, Memory
from ensemble_core.library.records import BatchProfile, Profile


@pytest.mark.parametrize(
    ("batch_size", "mib"), [(1, 100), (8, 100), (20, 110), (32, 120), (64, 140), (128, 180)], ids=str
)
def test_memory_between_below_and_beyond_the_measured_batch_sizes(batch_size: int, mib: float) -> None:
    assert Curve(((8, 100.0), (32, 120.0), (64, 140.0))).at(batch_size) == pytest.approx(mib)


def test_one_measurement_rises_in_proportion() -> None:
    assert Curve(((32, 100.0),)).at(16) == 100
    assert Curve(((32, 100.0),)).at(128) == 400


@given(st.dictionaries(st.integers(1, 256), st.floats(1, 1e4), min_size=1, max_size=5), st.integers(1, 1024))
def test_beyond_the_largest_batch_size_never_less_than_measured(points: dict[int, float], batch_size: int) -> None:
    curve = Curve(tuple(sorted(points.items())))
    if batch_size > max(points):
        assert curve.at(batch_size) >= max(points.values())
    else:
        assert curve.at(batch_size) >= min(points.values()) - 1e-6


def test_a_curve_is_what_the_profile_measured() -> None:
    def measured(batch_size: int, mib: float) -> BatchProfile:
        return BatchProfile(batch_size=batch_size, passes=(1.0,), seconds=1.0, memory_mib=mib)

    profile = Profile(
        model="m", model_sha256="0" * 64, device_type="x", engine="onnxruntime", engine_version="1", cores=1,
        load_seconds=0.1, batches=(measured(64, 90.0), measured(8, 70.0)),
    )  # fmt: skip
    assert Curve.of(profile) == Curve(((8, 70.0), (64, 90.0)))


def test_overflow_says_where_and_by_how_much(make_memory: Callable[..., Memory]) -> None:
    memory = make_memory((100.0, 50.0), (60.0, 45.0))
    assert list(memory.overflows(Matrix(((1, 1), (0, 1))))) == [(0, 5.0)]
    assert not memory.fits(Matrix(((1, 1), (0, 1))))
    assert memory.fits(Matrix(((1, 0), (0, 1))))


def test_a_member_needs_what_it_needs_on_that_type_of_device() -> None:
    memory = Memory((10.0, 10.0), ("gpu", "cpu"), ({"gpu": Curve(((8, 7.0),)), "cpu": Curve(((8, 3.0),))},))
    assert memory.left(((8,), (8,))) == [3.0, 7.0]
