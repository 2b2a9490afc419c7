"""Small data sets and hyperparameters for the trainer's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemble_core.api.hposearch import Dataset as DatasetSpec
from ensemble_core.api.hposearch import HPOSearchSpec
from ensemble_trainer.datasets import Dataset, load_dataset
from ensemble_trainer.space import TABLE_5


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset(DatasetSpec(builtin="digits"), None)


@pytest.fixture(scope="session")
def parameters() -> Callable[..., dict[str, Any]]:
    """Hyperparameters of a tiny network, with changes."""

    def build(**changes: Any) -> dict[str, Any]:
        tiny: dict[str, Any] = {name: parameter.default for name, parameter in TABLE_5.items()}
        tiny |= {"stemFilters": 4, "stageFilters": 4, "batchSize": 32, "learningRate": 0.005}
        tiny |= {f"blocksStage{i}": 1 for i in range(1, 5)}
        return tiny | changes

    return build


@pytest.fixture
def noise() -> Callable[..., Dataset]:
    """A data set of random uint8 images, the first training samples of a given number."""

    def build(height: int = 6, width: int = 6, channels: int = 2, train: int = 33, kind: str = "uint8") -> Dataset:
        from ensemble_trainer.sources import Part, numbered

        rng = np.random.default_rng(0)

        def part(name: str, count: int) -> Part:
            images = rng.integers(0, 256, (count, height, width, channels)).astype(kind)
            return Part(images, np.arange(count, dtype=np.int64) % 3, numbered(name, count))

        return Dataset(part("t", train), part("v", 7), part("h", 5), ("a", "b", "c"))

    return build


@pytest.fixture
def spec() -> Callable[..., HPOSearchSpec]:
    """A search whose `parameters` are the given documents."""

    def build(*parameters: dict[str, Any]) -> HPOSearchSpec:
        document = {
            "library": {"storage": {"path": "/nowhere"}},
            "dataset": {"builtin": "digits"},
            "parameters": list(parameters),
            "maxTrialCount": 10,
        }
        return HPOSearchSpec.model_validate(document)

    return build


@pytest.fixture
def archive(tmp_path: Path) -> Callable[..., Path]:
    """Write an `.npz` of 60 grey 5×4 images in 3 classes, with some arrays replaced; None leaves one out."""

    def build(**changes: Any) -> Path:
        rng = np.random.default_rng(1)
        arrays: dict[str, Any] = {
            "images": rng.integers(0, 256, (60, 5, 4), dtype=np.uint8),
            "labels": np.arange(60) % 3,
        }
        arrays = {name: array for name, array in (arrays | changes).items() if array is not None}
        np.savez(tmp_path / "data.npz", **arrays)
        return tmp_path / "data.npz"

    return build
