"""A small library of three classes, in whichever store the module's `store` fixture gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ensemble_core.library import LabelledIds, Library, LocalStore, Store, make_header
from ensemble_core.library.records import SPLITS, Claim, Header, ModelRecord, Origin, Rung, Signature, Split
from ensemble_core.metrics import metrics

SAMPLES = {"validation": 12, "heldout": 8}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return LocalStore(tmp_path / "library")


@pytest.fixture
def splits() -> dict[Split, LabelledIds]:
    return {
        split: LabelledIds(
            ids=np.array([f"{split}-{i}" for i in range(SAMPLES[split])]), labels=np.arange(SAMPLES[split]) % 3
        )
        for split in SPLITS
    }


@pytest.fixture
def header(splits: dict[Split, LabelledIds]) -> Header:
    return make_header(Signature(input_type="uint8", input_shape=(8, 8, 1), classes=3), ("a", "b", "c"), splits)


@pytest.fixture
def library(store: Store, header: Header, splits: dict[Split, LabelledIds]) -> Library:
    return Library.create(store, header, splits)


@pytest.fixture
def files(tmp_path: Path) -> Callable[[int], dict[str, Path]]:
    """Makes the files of a model from a seed."""

    def make(seed: int) -> dict[str, Path]:
        folder = tmp_path / f"trained-{seed}"
        folder.mkdir(exist_ok=True)
        rng = np.random.default_rng(seed)
        (folder / "model.onnx").write_bytes(rng.bytes(1000))
        for split in SPLITS:
            rows = rng.dirichlet([1, 1, 1], SAMPLES[split]).astype(np.float32)
            np.save(folder / f"predictions-{split}.npy", rows)
        return {path.name: path for path in sorted(folder.iterdir())}

    return make


@pytest.fixture
def record(splits: dict[Split, LabelledIds], files: Callable[[int], dict[str, Path]]) -> Callable[..., ModelRecord]:
    """Makes the record, without files, of a trial's model, or of an imported one when no search is given."""

    def make(seed: int, attempt: int = 1, search: str | None = "digits") -> ModelRecord:
        predictions = np.load(files(seed)["predictions-validation.npy"])
        origin = Origin(search=search, trial=seed, attempt=attempt, rung=3) if search else Origin()
        return ModelRecord(
            id=f"{search or 'import'}-{seed:04d}",
            family="resnet",
            hyperparameters={"learningRate": 0.1},
            validation=metrics(predictions, splits["validation"].labels),
            parameters=1000,
            epochs=3,
            origin=origin,
            servable=True,
            files={},
        )

    return make


@pytest.fixture
def publish(
    library: Library, record: Callable[..., ModelRecord], files: Callable[[int], dict[str, Path]]
) -> Callable[..., ModelRecord]:
    """Publishes a model made from a seed."""

    def make(seed: int, attempt: int = 1, search: str | None = "digits") -> ModelRecord:
        return library.publish(record(seed, attempt, search), files(seed))

    return make


@pytest.fixture
def claim() -> Callable[..., Claim]:
    def make(trial: int, attempt: int = 1, rungs: tuple[Rung, ...] = ()) -> Claim:
        parameters = {"learningRate": 0.1}
        return Claim(trial=trial, attempt=attempt, sequence=trial, parameters=parameters, bracket=0, rungs=rungs)

    return make


@pytest.fixture
def rung() -> Callable[..., Rung]:
    def make(epoch: int, value: float = 0.5) -> Rung:
        return Rung(epoch=epoch, sequence=epoch, value=value, goes_on=True, started_at=0, finished_at=1, slot=0)

    return make
