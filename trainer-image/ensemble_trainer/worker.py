"""What runs in a slot's process: one trial at a time, kept warm between its rungs.

A trial's own mishaps come back as `Broken`; what storage or a newer attempt refuses is raised, for it is nobody's
trial's fault.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ensemble_core.api.hposearch import HPOSearchSpec
from ensemble_core.library import names
from ensemble_core.library.cache import cache_folder
from ensemble_core.library.library import Library, same_data
from ensemble_core.library.records import Export, Metrics, ModelRecord, Origin
from ensemble_core.library.store import open_store
from ensemble_trainer.datasets import Dataset, load_dataset
from ensemble_trainer.seeds import hashed

MAX_MESSAGE = 4 * 1024
# Texts of torch's, CUDA's libraries' and ONNX Runtime's plain errors when there is no memory left.
OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "_ALLOC_FAILED", "Failed to allocate memory")
Reason = Literal["Diverged", "Raised", "OutOfMemory", "Lost"]
MakeRun = Callable[[dict[str, Any], Dataset, int, HPOSearchSpec], Any]


@dataclass(frozen=True)
class Order:
    """What a slot is to do for a trial: train to `epoch`, or, trained so far, export and publish."""

    trial: int
    attempt: int
    parameters: dict[str, Any]
    epoch: int
    slot: int  # that is asked
    resumed: bool = False  # whether a checkpoint may be in the library


@dataclass(frozen=True)
class Reached:
    """A rung: `metrics` on the validation samples after `epoch` epochs. Times in Unix seconds."""

    epoch: int
    metrics: Metrics
    started_at: float
    finished_at: float


@dataclass(frozen=True)
class Broken:
    """A trial that failed."""

    reason: Reason
    message: str
    started_at: float
    finished_at: float


@dataclass(frozen=True)
class Published:
    """A model that is in the library now, and its export, which is there as well."""

    record: ModelRecord
    export: Export


def resnet_run(parameters: dict[str, Any], dataset: Dataset, trial: int, spec: HPOSearchSpec) -> Any:
    """A trial of the trainer; torch is imported only where trials run."""
    from ensemble_trainer.training import TrialRun, TrialSettings

    threads = max(1, int(spec.resources_per_trial.cpu))
    settings = TrialSettings(seed=hashed(spec.seed, "trial", trial), threads=threads, stem=spec.trainer.stem)
    return TrialRun(parameters, dataset, settings)


@dataclass
class Worker:
    """One slot's process; `start` before anything else."""

    search: str
    spec: HPOSearchSpec
    make_run: MakeRun = resnet_run
    _trial: int | None = field(default=None, init=False)
    _run: Any = field(default=None, init=False)

    def start(self) -> int:
        """Open the library and map the data set; returns the process id."""
        self._library = Library.open(open_store(self.spec.library.storage))
        self._dataset = load_dataset(self.spec.dataset, dataset_cache())
        # This node's files may be others than the driver's.
        same_data(self._library.header, self._library.store.url, self._dataset.header(), "the data set on this node")
        if self.make_run is resnet_run:
            import ensemble_trainer.training  # noqa: F401 — seconds that would else count as the first trial's
        return os.getpid()

    def advance(self, order: Order) -> Reached | Broken:
        """Train to the order's epoch, leave a checkpoint, tell the metrics."""
        started = time.time()
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            self._fetch_checkpoint(order, folder / "restored")
            try:
                metrics = self._prepare(order, folder / "restored").advance(order.epoch)
                self._run.save(folder / "saved")
            except Exception as error:
                return self._broken(error, started)
            self._library.save_checkpoint(self.search, order.trial, order.attempt, order.epoch, folder / "saved")
        return Reached(order.epoch, metrics, started, time.time())

    def finish(self, order: Order) -> Published | Broken:
        """Export the model, predict with what was exported, publish both, drop the checkpoints.

        The time of the export is recorded before the model is: once a model is there nothing is left to write, and a
        driver that slept meanwhile and was replaced has nothing to add.
        """
        started = time.time()
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            self._fetch_checkpoint(order, folder / "restored")
            try:
                run = self._prepare(order, folder / "restored")
                if run.epoch < order.epoch:
                    run.advance(order.epoch)  # its last checkpoint is lost
                exported = run.export(folder / "exported")
                record = self._record(order, exported)
            except Exception as error:
                return self._broken(error, started)
            self._library.check_attempt(self.search, order.attempt)
            export = Export(started_at=started, finished_at=time.time(), slot=order.slot, attempt=order.attempt)
            self._library.write_export(self.search, order.trial, order.attempt, export)
            record = self._library.publish(record, exported.files)
        self._forget()
        self._library.drop_checkpoints(self.search, order.trial, order.attempt)
        return Published(record, export)

    def _record(self, order: Order, exported: Any) -> ModelRecord:
        return ModelRecord(
            id=names.trial_id(self.search, order.trial),
            family=self.spec.trainer.family,
            hyperparameters=order.parameters,
            validation=exported.validation,
            parameters=exported.parameters,
            flops=exported.flops,
            epochs=order.epoch,
            origin=Origin(search=self.search, trial=order.trial, attempt=order.attempt, rung=order.epoch),
            servable=True,
            files={},
        )

    def _fetch_checkpoint(self, order: Order, folder: Path) -> None:
        if order.resumed and self._trial != order.trial:
            self._library.load_checkpoint(self.search, order.trial, folder)

    def _prepare(self, order: Order, checkpoint: Path) -> Any:
        """The trial's warm run, or a new one, continued from its checkpoint if there is one."""
        if self._trial == order.trial:
            return self._run
        self._forget()
        self._run = self.make_run(order.parameters, self._dataset, order.trial, self.spec)
        if checkpoint.exists():
            self._run.restore(checkpoint)
            if self._run.epoch > order.epoch:  # left by a driver that went on after it had been replaced
                self._run = self.make_run(order.parameters, self._dataset, order.trial, self.spec)
        self._trial = order.trial
        return self._run

    def _broken(self, error: Exception, started: float) -> Broken:
        reason, message = reason_of(error), message_of(error)
        traceback.clear_frames(error.__traceback__)  # they hold the trial's arrays
        self._forget()
        return Broken(reason, message, started, time.time())

    def _forget(self) -> None:
        """Free the memory of the trial for the next one."""
        self._trial = self._run = None
        gc.collect()
        if self.make_run is resnet_run:
            import torch

            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def dataset_cache() -> Path:
    """Where this node keeps data sets, memory-mapped by all its slots."""
    return cache_folder() / "datasets"


def reason_of(error: Exception) -> Reason:
    """By name where the type is torch's or the trainer's, so that it need not be imported here."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & {"MemoryError", "OutOfMemoryError"} or any(sign in str(error) for sign in OUT_OF_MEMORY):
        return "OutOfMemory"
    return "Diverged" if "Diverged" in kinds else "Raised"


def message_of(error: Exception) -> str:
    """The error in one line, and the end of the traceback where it is no known mishap; at most 4 KiB."""
    line = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if reason_of(error) != "Raised":
        return line[:MAX_MESSAGE]
    trace = "".join(traceback.format_tb(error.__traceback__)[-3:])
    head = line[: MAX_MESSAGE // 2]
    return f"{head}\n{trace[-(MAX_MESSAGE - len(head) - 1) :]}".rstrip()
