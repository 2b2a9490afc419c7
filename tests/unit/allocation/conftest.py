"""A small ensemble on made-up devices, and a library that lives in a dict."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from ensemble_core.allocation.memory import Curve, Memory
from ensemble_core.allocation.plan import DeviceRow, Member
from ensemble_core.allocation.result import SelectionOf, ServerVersion, Subject
from ensemble_core.api.ensembledeployment import EnsembleDeployment


class DictResults:
    """Keeps results as a library does: JSON in, JSON out."""

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], str] = {}

    def result(self, kind: str, digest: str) -> dict[str, Any] | None:
        text = self.files.get((kind, digest))
        return None if text is None else json.loads(text)

    def results(self, kind: str) -> dict[str, dict[str, Any]]:
        return {digest: json.loads(text) for (stored, digest), text in self.files.items() if stored == kind}

    def write_result(self, kind: str, digest: str, content: dict[str, Any]) -> dict[str, Any]:
        return json.loads(self.files.setdefault((kind, digest), json.dumps(content)))

    def delete_result(self, kind: str, digest: str) -> None:
        self.files.pop((kind, digest), None)

    def count(self, kind: str) -> int:
        return sum(stored == kind for stored, _ in self.files)


@pytest.fixture
def results() -> DictResults:
    return DictResults()


def _deployment(devices: int, **optimization: Any) -> EnsembleDeployment:
    return EnsembleDeployment.model_validate(
        {
            "metadata": {"name": "digits"},
            "spec": {
                "selectionRef": {"name": "digits", "budgetName": "large"},
                "devices": [{"name": "cores", "type": "cpu", "count": devices}],
                "optimization": {"algorithm": "bounded-greedy", "batchSizes": [8, 32], **optimization},
            },
        }
    )


@pytest.fixture
def make_subject() -> Callable[..., Subject]:
    """A subject with some members on some one-core devices of 1000 MiB, and settings of `optimization`."""

    def make(members: int = 2, devices: int = 2, memory_mib: float = 1000.0, **optimization: Any) -> Subject:
        return Subject(
            deployment=_deployment(devices, **optimization),
            selection=SelectionOf(name="digits", budget_name="large", digest="5" * 64),
            members=tuple(
                Member(model_id=f"m-{i:04}", weight=1 / members, onnx=f"/models/{i}.onnx", sha256=f"{i:064x}")
                for i in range(members)
            ),
            devices=tuple(
                DeviceRow(
                    name=f"cpu{i}", type="cpu", ordinal=i, cores=(i,), memory_mib=memory_mib, device_type="cpu-test-1c"
                )
                for i in range(devices)
            ),
            server=ServerVersion(name="nvidia-pytriton", version="0.7.0", engine="onnxruntime 1.31.1"),
            load={"seconds": 1.0},
        )

    return make


@pytest.fixture
def make_memory() -> Callable[..., Memory]:
    """Devices of some capacities; members that need so many MiB at every batch size."""

    def make(capacity: tuple[float, ...], needs: tuple[float, ...]) -> Memory:
        return Memory(capacity, ("x",) * len(capacity), tuple({"x": Curve(((1, need),))} for need in needs))

    return make
