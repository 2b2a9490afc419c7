"""What a slot's process tells of mishaps, and that it trains on the library's own data only."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemble_core.api.hposearch import HPOSearchSpec
from ensemble_core.errors import UserError
from ensemble_core.library.library import Library
from ensemble_core.library.records import Metrics, ModelRecord
from ensemble_core.library.searches import Fenced
from ensemble_core.library.store import LocalStore, open_store
from ensemble_trainer import worker as worker_module
from ensemble_trainer.datasets import load_dataset
from ensemble_trainer.export import Exported
from ensemble_trainer.worker import MAX_MESSAGE, Broken, Order, Published, Worker, message_of, reason_of


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HPOSearchSpec:
    monkeypatch.setenv("ENSEMBLE_CACHE", str(tmp_path / "cache"))
    write_data(tmp_path, classes=3)
    content = {
        "library": {"storage": {"path": str(tmp_path / "library")}},
        "dataset": {"arrays": str(tmp_path / "data.npz")},
        "maxTrialCount": 4,
    }
    spec = HPOSearchSpec.model_validate(content)
    dataset = load_dataset(spec.dataset, None)
    Library.create(LocalStore(tmp_path / "library"), dataset.header(), dataset.labels())
    return spec


def write_data(folder: Path, classes: int) -> None:
    np.savez(folder / "data.npz", images=np.zeros((60, 8, 8, 1), np.uint8), labels=np.arange(60) % classes)


def test_a_node_with_other_data_is_refused(spec: HPOSearchSpec, tmp_path: Path) -> None:
    Worker("noise", spec, lambda *_: None).start()
    write_data(tmp_path, classes=2)
    with pytest.raises(UserError, match="the data set on this node"):
        Worker("noise", spec, lambda *_: None).start()


class Large:
    """A trial that runs out of memory in a call of a call."""

    def advance(self, until_epoch: int) -> Any:
        self._train(until_epoch)

    def _train(self, _: int) -> None:
        raise MemoryError("no room for the gradients")


def test_a_broken_trial_is_gone_before_the_memory_is_given_back(
    spec: HPOSearchSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[weakref.ref[Large]] = []
    alive: list[bool] = []

    def make_run(*_: Any) -> Large:
        run = Large()
        runs.append(weakref.ref(run))
        return run

    worker = Worker("noise", spec, make_run)
    worker.start()
    monkeypatch.setattr(gc, "collect", lambda: alive.append(any(run() is not None for run in runs)))
    outcome = worker.advance(Order(trial=0, attempt=1, parameters={}, epoch=1, slot=0))
    assert isinstance(outcome, Broken)
    assert (outcome.reason, outcome.message) == ("OutOfMemory", "MemoryError: no room for the gradients")
    assert len(runs) == 1
    assert alive[-1] is False


class Trained:
    """A trial of which only the export is left."""

    epoch = 9

    def export(self, folder: Path) -> Exported:
        folder.mkdir()
        files = {key: folder / key for key in ("model.onnx", "predictions-validation.npy", "predictions-heldout.npy")}
        for file in files.values():
            file.write_bytes(b"made by training")
        metrics = Metrics(cross_entropy=0.5, error=0.5, macro_f1=0.5, top5_error=0.0)
        return Exported(files, parameters=1000, flops=10**6, validation=metrics)


def test_once_a_model_is_there_nothing_is_left_to_write(spec: HPOSearchSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library.open(open_store(spec.library.storage))
    order = Order(trial=0, attempt=library.begin_attempt("noise"), parameters={}, epoch=9, slot=3)
    before: list[tuple[str, ...]] = []

    def publish(self: Library, *arguments: Any) -> ModelRecord:
        before.append(library.store.list("trials/"))
        return Library.publish(self, *arguments)

    monkeypatch.setattr(worker_module, "Library", type("Watched", (Library,), {"publish": publish}))
    worker = Worker("noise", spec, lambda *_: Trained())
    worker.start()
    published = worker.finish(order)
    assert isinstance(published, Published)
    assert (published.record, published.export.slot) == (library.model("noise-0000"), 3)
    assert before == [("trials/noise-0000/1/export.json",)] == [library.store.list("trials/")]


def test_for_an_attempt_that_was_replaced_nothing_is_written(spec: HPOSearchSpec) -> None:
    library = Library.open(open_store(spec.library.storage))
    order = Order(trial=0, attempt=library.begin_attempt("noise"), parameters={}, epoch=9, slot=0)
    library.begin_attempt("noise")
    worker = Worker("noise", spec, lambda *_: Trained())
    worker.start()
    with pytest.raises(Fenced, match="has taken over"):
        worker.finish(order)
    assert library.store.list("trials/") + library.store.list("models/") == ()


@pytest.mark.parametrize(
    "text",
    [
        "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "Failed to allocate memory for requested buffer of size 1073741824",
    ],
)
def test_plain_errors_of_want_of_memory_are_known_by_their_text(text: str) -> None:
    assert reason_of(RuntimeError(text)) == "OutOfMemory"


def test_reasons_and_messages() -> None:
    out_of_memory = type("OutOfMemoryError", (RuntimeError,), {})
    diverged = type("Diverged", (Exception,), {})
    assert reason_of(MemoryError()) == "OutOfMemory"
    assert reason_of(out_of_memory("CUDA out of memory")) == "OutOfMemory"
    assert reason_of(diverged("nan")) == "Diverged"
    assert reason_of(ValueError("x")) == "Raised"
    assert message_of(MemoryError()) == "MemoryError"
    assert message_of(diverged("the loss is nan")) == "Diverged: the loss is nan"
    try:
        raise ValueError("x" * 10_000)
    except ValueError as error:
        message = message_of(error)
    assert len(message) <= MAX_MESSAGE
    assert message.startswith("ValueError: xxx")
    assert "test_reasons_and_messages" in message
