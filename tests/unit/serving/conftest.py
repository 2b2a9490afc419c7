from __future__ import annotations

from collections.abc import Callable

import pytest

from ensemble_core.allocation.plan import DeviceRow, Member, Plan, Worker
from ensemble_core.library.records import Signature

MakePlan = Callable[..., Plan]


@pytest.fixture(scope="session")
def make_plan() -> MakePlan:
    """A plan of three members on two groups of cores and a GPU, with what is given in place of its parts."""

    def make(**parts: object) -> Plan:
        members = tuple(
            Member(model_id=f"m-{i}", weight=weight, onnx=f"/library/m-{i}.onnx", sha256=f"{i}" * 64)
            for i, weight in enumerate((0.5, 0.25, 0.25))
        )
        devices = (
            DeviceRow(name="gpu0", type="gpu", ordinal=0, cores=(), memory_mib=8000, device_type="gpu"),
            DeviceRow(name="cpu0", type="cpu", ordinal=0, cores=(0, 1), memory_mib=100, device_type="cpu"),
            DeviceRow(name="cpu1", type="cpu", ordinal=1, cores=(2, 3), memory_mib=100, device_type="cpu"),
        )
        workers = (
            Worker(member=0, device="cpu0", batch_size=32),
            Worker(member=0, device="cpu1", batch_size=8, share=2.0),
            Worker(member=1, device="cpu1", batch_size=128),
            Worker(member=2, device="gpu0", batch_size=64),
        )
        plan = Plan(
            name="digits",
            signature=Signature(input_type="uint8", input_shape=(8, 8, 1), classes=10),
            segment_size=128,
            max_batch_size=4096,
            members=members,
            devices=devices,
            workers=workers,
        )
        return Plan.model_validate({**dict(plan), **parts})

    return make
