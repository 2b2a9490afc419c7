"""Profiling as a command does it: each servable model of a selection's sources without a valid profile, one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ensemble_core.api.documents import Documents
from ensemble_core.api.ensembleselection import Cost, EnsembleSelection
from ensemble_core.errors import UserError
from ensemble_core.library.joined import JoinedModel, join
from ensemble_core.library.library import SERVABLE, Library
from ensemble_core.library.records import Profile
from ensemble_core.library.store import open_store
from ensemble_core.profiling.measure import (
    LEAST_BATCH,
    Device,
    MeasurementError,
    engine_version,
    find_device,
    make_profile,
    measure,
)

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Profiled:
    """What a run did: models measured, models whose profile was there, and why others could not be measured."""

    device_type: str
    measured: int
    known: int
    failures: tuple[str, ...]


@dataclass(frozen=True)
class _Task:
    """A model with the batch sizes to measure."""

    model: JoinedModel
    batch_sizes: tuple[int, ...]


def run_profiling(documents: Documents, selection: EnsembleSelection, progress: Progress) -> Profiled:
    """Measure what is missing; each profile is stored at once, so that the next run continues after the last one.

    Args:
        documents: The file with the selection and the searches it refers to.
        selection: One of its selections.
        progress: Called with the number of models done, the number of all, and a note.
    """
    cost = selection.spec.cost
    where = f"{documents.file}: EnsembleSelection {selection.metadata.name}"
    device, version = find_device(where, cost), engine_version(cost.engine)
    if version is None:
        raise UserError(f"{where}: spec.cost.engine", f"the package {cost.engine} is not installed")
    libraries = [
        Library.open(open_store(storage, f"{where}: spec.sources[{index}].storage"))
        for index, storage in enumerate(documents.source_storages(selection))
    ]
    models = [model for model in join(libraries).models() if model.record.servable]
    stored = [library.profiles(device.device_type, cost.engine) for library in libraries]
    tasks = _tasks(models, stored, version, {LEAST_BATCH, cost.batch_size})
    failures: list[str] = []
    for done, task in enumerate(tasks, start=len(models) - len(tasks)):
        progress(done, len(models), task.model.record.id)
        try:
            _profile(libraries[task.model.library], task, device, cost)
        except MeasurementError as failure:
            failures.append(str(failure))
    progress(len(models), len(models), "")
    return Profiled(device.device_type, len(tasks) - len(failures), len(models) - len(tasks), tuple(failures))


def _tasks(
    models: Sequence[JoinedModel], stored: Sequence[Mapping[str, Profile]], version: str, batch_sizes: set[int]
) -> list[_Task]:
    """What is missing: batch sizes without a measurement of the very file by this version of the engine."""
    tasks = []
    for model in models:
        profile, file = stored[model.library].get(model.record.id), model.record.files.get(SERVABLE)
        valid = profile and file and (profile.model_sha256, profile.engine_version) == (file.sha256, version)
        missing = batch_sizes - {batch.batch_size for batch in (profile.batches if profile and valid else ())}
        if missing:
            tasks.append(_Task(model, tuple(sorted(missing))))
    return tasks


def _profile(library: Library, task: _Task, device: Device, cost: Cost) -> None:
    record = task.model.record
    if SERVABLE not in record.files:
        raise MeasurementError(f"{record.id}: has no {SERVABLE} yet")
    answer = measure(record, library.file(record, SERVABLE), library.header.signature, device, task.batch_sizes)
    sha256 = record.files[SERVABLE].sha256
    stored = library.profile(device.device_type, cost.engine, record.id)
    library.write_profile(make_profile(record, sha256, device, cost.engine, answer, stored))
