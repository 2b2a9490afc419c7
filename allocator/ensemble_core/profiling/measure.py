"""A model's profile on a device, measured in a fresh process that has the device to itself."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Set
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ensemble_core.api.ensembleselection import Cost
from ensemble_core.devices import cpu_device_type, gpu_devices
from ensemble_core.engines import HALF, Engine
from ensemble_core.errors import UserError
from ensemble_core.library.library import SERVABLE, Library
from ensemble_core.library.records import BatchProfile, ModelRecord, Profile, Signature
from ensemble_core.profiling.child import Settings
from ensemble_core.profiling.half import Truth, judge, truth_of

LEAST_BATCH = 8  # measured too, so that memory at other batch sizes can be estimated
CHILD = (sys.executable, "-P", "-m", "ensemble_core.profiling.child")
CHILD_SECONDS = 3600.0


@dataclass(frozen=True)
class Device:
    """What models are measured on: a group of cores, or a GPU with a group of cores that feeds it."""

    device_type: str
    cores: tuple[int, ...]
    gpu: int | None = None


@dataclass(eq=False)
class MeasurementError(Exception):
    """A model could not be measured; the reason is one sentence."""

    reason: str

    def __str__(self) -> str:
        return self.reason


def find_device(where: str, cost: Cost) -> Device:
    """The device of this machine that `spec.cost` names; without a device type, the last `coresPerDevice` cores.

    The last, because other work of the machine tends to be on the first. UserError if this machine has no such device.
    """
    available = sorted(os.sched_getaffinity(0))
    if cost.cores_per_device > len(available):
        raise UserError(
            f"{where}: spec.cost.coresPerDevice",
            f"{cost.cores_per_device} is more than the {len(available)} cores that this process may use",
        )
    cores = tuple(available[-cost.cores_per_device :])
    own = Device(cpu_device_type(len(cores)), cores)
    devices = [own, *(Device(gpu.device_type, cores, gpu.ordinal) for gpu in gpu_devices())]
    wanted = cost.device_type or own.device_type
    found = next((device for device in devices if device.device_type == wanted), None)
    if found is None:
        there = ", ".join(sorted({device.device_type for device in devices}))
        raise UserError(
            f"{where}: spec.cost.deviceType",
            f"{wanted} is not here; with coresPerDevice {cost.cores_per_device} this machine has {there}",
        )
    return found


def measure(
    record: ModelRecord,
    model: Path,
    signature: Signature,
    device: Device,
    batch_sizes: Iterable[int],
    engine: Engine,
    truth: Truth | None = None,
) -> dict[str, Any]:
    """Run the measuring process to its end; its answer, or MeasurementError.

    With validation samples the answer has what they tell of an engine of half precision; OtherSamplesError as `judge`.
    """
    settings = Settings(
        model=str(model),
        input_type=signature.input_type,
        input_shape=list(signature.input_shape),
        cores=list(device.cores),
        gpu=device.gpu,
        batch_sizes=sorted(batch_sizes),
        engine=engine,
    )
    if truth is None:
        return _run(record.id, settings)
    with tempfile.TemporaryDirectory() as folder:
        found = _run(record.id, replace(settings, inputs=str(truth.inputs), answers=folder))
        if found.get("refused") is None:
            float32, half = (np.load(Path(folder) / f"{name}.npy", allow_pickle=False) for name in ("float32", "half"))
            found |= judge(record.id, truth, float32, half)
        return {**found, "inputs": truth.sha256}


def _run(model: str, settings: Settings) -> dict[str, Any]:
    command = [*CHILD, json.dumps(asdict(settings))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=CHILD_SECONDS)
    except subprocess.TimeoutExpired:
        raise MeasurementError(f"{model}: not measured within {CHILD_SECONDS:.0f} s") from None
    if done.returncode < 0:
        raise MeasurementError(f"{model}: the process was killed by signal {-done.returncode}; out of memory?")
    if done.returncode > 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise MeasurementError(f"{model}: {lines[-1]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def make_profile(
    record: ModelRecord, sha256: str, device: Device, engine: Engine, answer: dict[str, Any], stored: Profile | None
) -> Profile:
    """The profile from a measuring process's answer.

    What `stored`, as it is now, has of the same file and version of the engine stays: selections may count on it.
    """
    new = [BatchProfile(**batch, seconds=statistics.median(batch["passes"])) for batch in answer["batches"]]
    same = stored and (stored.model_sha256, stored.engine_version) == (sha256, answer["engine_version"])
    batches = {batch.batch_size: batch for batch in (*new, *(stored.batches if stored and same else ()))}
    return Profile(
        model=record.id,
        model_sha256=sha256,
        device_type=device.device_type,
        engine=engine,
        engine_version=answer["engine_version"],
        cores=len(device.cores),
        load_seconds=answer["load_seconds"],
        batches=tuple(batches[size] for size in sorted(batches)),
        largest_difference=answer.get("largest_difference"),
        agreement=answer.get("agreement"),
        accuracy=answer.get("accuracy"),
        inputs=answer.get("inputs"),
        refused=answer.get("refused"),
    )


def lacking(
    stored: Profile | None, sha256: str, version: str, batch_sizes: Set[int], inputs: str | None = None
) -> Set[int]:
    """Batch sizes that a stored profile lacks: all of another file or version, none where the engine was refused.

    Of an engine of half precision all, too, if it was judged by other validation samples than those of the digest.
    """
    if stored is None or (stored.model_sha256, stored.engine_version, stored.inputs) != (sha256, version, inputs):
        return batch_sizes
    return batch_sizes - {batch.batch_size for batch in stored.batches} if stored.refused is None else frozenset()


def add_to_profile(
    library: Library, record: ModelRecord, device: Device, engine: Engine, batch_sizes: Iterable[int]
) -> Profile:
    """Measure a model at some batch sizes, and store them with what is known of it; MeasurementError if that fails.

    UserError if the engine is of half precision and the library keeps no validation samples, too few, or others than
    the model was scored on.
    """
    truth = truth_of(library, record) if engine in HALF else None
    if SERVABLE not in record.files:
        raise MeasurementError(f"{record.id}: has no {SERVABLE} yet")
    model = library.file(record, SERVABLE)
    answer = measure(record, model, library.header.signature, device, batch_sizes, engine, truth)
    stored = library.profile(device.device_type, engine, record.id)
    profile = make_profile(record, record.files[SERVABLE].sha256, device, engine, answer, stored)
    library.write_profile(profile)
    return profile
