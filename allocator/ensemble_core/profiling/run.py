"""Profiling as a command does it: each servable model of a selection's sources without a valid profile, one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ensemble_core.api.documents import Documents
from ensemble_core.api.ensembleselection import EnsembleSelection
from ensemble_core.engines import DEFAULT, OTHERS, Engine, version_of
from ensemble_core.errors import UserError
from ensemble_core.library.joined import JoinedModel, join
from ensemble_core.library.library import SERVABLE, Library
from ensemble_core.library.records import Profile
from ensemble_core.library.store import open_store
from ensemble_core.profiling.half import OtherSamplesError, judged_by
from ensemble_core.profiling.measure import (
    LEAST_BATCH,
    Device,
    MeasurementError,
    add_to_profile,
    find_device,
    lacking,
)

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Profiled:
    """What a run did.

    Args:
        device_type: That it measured on.
        measured: Models that were measured with the engine that selections count with.
        known: Models whose profile with that engine was there.
        failures: Why others could not be measured.
        remarks: Why models could not be measured with other engines.
        profiles: What there is now of the models and engines, by model.
    """

    device_type: str
    measured: int
    known: int
    failures: tuple[str, ...]
    remarks: tuple[str, ...]
    profiles: tuple[Profile, ...]


@dataclass(frozen=True)
class _Task:
    """A model with the engine and batch sizes to measure."""

    model: JoinedModel
    engine: Engine
    batch_sizes: frozenset[int]


def run_profiling(
    documents: Documents, selection: EnsembleSelection, progress: Progress, compared: Sequence[int] = ()
) -> Profiled:
    """Measure what is missing; each profile is stored at once, so that the next run continues after the last one.

    Args:
        documents: The file with the selection and the searches it refers to.
        selection: One of its selections.
        progress: Called with the number of measurements done, the number of all, and a note.
        compared: Batch sizes to measure too, with every engine that the device has; none for the selection's alone.
    """
    cost = selection.spec.cost
    where = f"{documents.file}: EnsembleSelection {selection.metadata.name}"
    device = find_device(where, cost)
    versions = _versions(cost.engine, device, all_of_them=bool(compared))
    if cost.engine not in versions:
        raise UserError(f"{where}: spec.cost.engine", f"the package {cost.engine} is not installed")
    libraries = [
        Library.open(open_store(storage, f"{where}: spec.sources[{index}].storage"))
        for index, storage in enumerate(documents.source_storages(selection))
    ]
    models = [model for model in join(libraries).models() if model.record.servable]
    sizes = frozenset({LEAST_BATCH, cost.batch_size, *compared})
    judged, unjudged = _judged(libraries, versions)
    tasks = _tasks(models, libraries, device.device_type, versions, sizes, judged)
    total = len(models) * len(versions)
    problems: dict[Engine, list[str]] = {engine: [] for engine in versions}
    for done, task in enumerate(tasks, start=total - len(tasks)):
        libraries[task.model.library].store.check_writable()
        progress(done, total, f"{task.model.record.id} {task.engine}" if compared else task.model.record.id)
        try:
            add_to_profile(libraries[task.model.library], task.model.record, device, task.engine, task.batch_sizes)
        except (MeasurementError, OtherSamplesError) as failure:
            problems[task.engine].append(str(failure))
    progress(total, total, "")
    failures = tuple(problems[cost.engine])
    asked = sum(task.engine == cost.engine for task in tasks)
    return Profiled(
        device_type=device.device_type,
        measured=asked - len(failures),
        known=len(models) - asked,
        failures=failures,
        remarks=(
            *(f"{told}, by {engine}" for engine in versions if engine != cost.engine for told in problems[engine]),
            *unjudged,
        ),
        profiles=_profiles(models, libraries, device.device_type, versions, sizes, judged),
    )


def _versions(engine: Engine, device: Device, all_of_them: bool) -> dict[Engine, str]:
    """The engine, and if they are wanted all others that the device has, those that are installed."""
    others: tuple[Engine, ...] = (DEFAULT, *OTHERS["cpu" if device.gpu is None else "gpu"]) if all_of_them else ()
    return {each: found for each in dict.fromkeys((engine, *others)) if (found := version_of(each)) is not None}


Judged = list[Mapping[Engine, str | None]]


def _judged(libraries: Sequence[Library], engines: Iterable[Engine]) -> tuple[Judged, tuple[str, ...]]:
    """Engines that can run each library's models, with the digest of the samples that they are judged by, none if they
    need none; and why others cannot."""
    judged: Judged = []
    problems: dict[str, None] = {}
    for library in libraries:
        own: dict[Engine, str | None] = {}
        for engine in engines:
            try:
                own[engine] = judged_by(library, engine)
            except UserError as error:
                problems[str(error)] = None
        judged.append(own)
    return judged, tuple(problems)


def _tasks(
    models: Sequence[JoinedModel],
    libraries: Sequence[Library],
    device_type: str,
    versions: Mapping[Engine, str],
    batch_sizes: frozenset[int],
    judged: Judged,
) -> list[_Task]:
    """What is missing: batch sizes without a measurement of the very file by this version of the engine."""
    stored = {engine: [library.profiles(device_type, engine) for library in libraries] for engine in versions}
    tasks = []
    for model in models:
        file = model.record.files.get(SERVABLE)
        for engine, inputs in judged[model.library].items():
            profile = stored[engine][model.library].get(model.record.id) if file else None
            if missing := lacking(profile, file.sha256 if file else "", versions[engine], batch_sizes, inputs):
                tasks.append(_Task(model, engine, frozenset(missing)))
    return tasks


def _profiles(
    models: Sequence[JoinedModel],
    libraries: Sequence[Library],
    device_type: str,
    versions: Mapping[Engine, str],
    batch_sizes: frozenset[int],
    judged: Judged,
) -> tuple[Profile, ...]:
    """Those that lack nothing, models in their order."""
    stored = {engine: [library.profiles(device_type, engine) for library in libraries] for engine in versions}
    return tuple(
        profile
        for model in models
        for engine, inputs in judged[model.library].items()
        if (profile := stored[engine][model.library].get(model.record.id))
        and (file := model.record.files.get(SERVABLE))
        and not lacking(profile, file.sha256, versions[engine], batch_sizes, inputs)
    )
