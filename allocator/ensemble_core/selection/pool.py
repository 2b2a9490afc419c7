"""Models of joined libraries with their costs and their validation predictions; held-out data is out of reach here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ensemble_core.api.ensembleselection import Budget, Cost
from ensemble_core.errors import UserError
from ensemble_core.frozen import digest
from ensemble_core.library.joined import Joined, JoinedModel
from ensemble_core.library.library import SERVABLE, Library
from ensemble_core.library.records import BatchProfile, ModelRecord, Profile
from ensemble_core.selection.result import Costs
from ensemble_core.selection.smobf import Floats, TrueClass

MEASURED = ("inference_time_seconds", "memory_mib")
QUANTITIES = (*MEASURED, "parameters_millions")


@dataclass(frozen=True)
class Candidate:
    """A model that a selection may use.

    Args:
        model: The model.
        cost: What is known of it.
        measured: Digest of the measurement that the cost comes from, none without one.
    """

    model: JoinedModel
    cost: Costs
    measured: str | None

    @property
    def id(self) -> str:
        return self.model.record.id

    def identity(self) -> list[object]:
        """What it is, for the digest of a selection."""
        return [self.model.library, self.id, digest(self.model.record.document()), self.measured]


@dataclass(frozen=True)
class Pool:
    """All that picks depend on beside the predictions.

    Args:
        candidates: Models that take part, by id; equal ids in the order of the sources.
        left_out: Models whose cost cannot be known, with the reason.
        device_type: On which costs were measured; none if no budget limits a measured cost and profiles do not tell.
        quantities: Names of the costs that a budget limits.
        limits: Of each budget, +∞ where it has none, shape (B, L).
    """

    candidates: tuple[Candidate, ...]
    left_out: tuple[tuple[Candidate, str], ...]
    device_type: str | None
    quantities: tuple[str, ...]
    limits: Floats

    def costs(self) -> Floats:
        """Cost of each candidate in each quantity, shape (L, M)."""
        rows = [[getattr(c.cost, name) for c in self.candidates] for name in self.quantities]
        return np.array(rows, np.float64)

    def true_class(self, joined: Joined, progress: Callable[[int, int], None]) -> TrueClass:
        """Validation probabilities of the true class, shape (M, N); one model's predictions are mapped at a time."""
        labels = joined.labels("validation")
        samples = np.arange(len(labels))
        result = np.empty((len(self.candidates), len(labels)), np.float32)
        for row, candidate in enumerate(self.candidates):
            progress(row, len(self.candidates))
            result[row] = joined.predictions(candidate.model, "validation")[samples, labels]
        progress(len(self.candidates), len(self.candidates))
        return result


@dataclass(frozen=True)
class Request:
    """Which costs count.

    Args:
        where: File and document, for messages.
        command: That measures costs, for messages.
        cost: Device type, engine and batch size.
        budgets: The limits.
    """

    where: str
    command: str
    cost: Cost
    budgets: tuple[Budget, ...]

    def quantities(self) -> tuple[str, ...]:
        return tuple(name for name in QUANTITIES if any(getattr(b, name) is not None for b in self.budgets))

    def needs_measurements(self) -> bool:
        return any(name in MEASURED for name in self.quantities())

    def limits(self) -> Floats:
        rows = [[getattr(budget, name) for name in self.quantities()] for budget in self.budgets]
        return np.array([[np.inf if limit is None else limit for limit in row] for row in rows], np.float64)

    def basis(self) -> str:
        device = self.cost.device_type or f"{self.cost.cores_per_device} core(s)"
        return f"on {device} with {self.cost.engine} at batch size {self.cost.batch_size}"

    def counts(self, profile: Profile, record: ModelRecord) -> bool:
        """Whether a profile is of this very model, batch size and number of cores."""
        if SERVABLE not in record.files:
            return False
        same_model = profile.model_sha256 == record.files[SERVABLE].sha256
        is_cpu = profile.device_type.startswith("cpu-")
        same_cores = self.cost.device_type is not None or not is_cpu or profile.cores == self.cost.cores_per_device
        return same_model and same_cores and any(b.batch_size == self.cost.batch_size for b in profile.batches)


Profiles = Mapping[tuple[int, str], Profile]  # by library and model


def make_pool(joined: Joined, request: Request) -> Pool:
    """Find every model's cost.

    Raises:
        UserError: no models, several device types to choose from, missing or mixed profiles.
    """
    models = sorted(joined.models(), key=lambda model: (model.record.id, model.library))
    if not models:
        raise UserError(f"{request.where}: spec.sources", "hold no models")
    device_type, profiles = _profiles(joined, models, request)
    _check_profiles(models, profiles, request)
    candidates = [_candidate(model, profiles.get(_key(model)), request) for model in models]
    reasons = [_unknown(candidate, request.quantities()) for candidate in candidates]
    taking_part = tuple(c for c, reason in zip(candidates, reasons, strict=True) if reason is None)
    left_out = tuple((c, reason) for c, reason in zip(candidates, reasons, strict=True) if reason is not None)
    if not taking_part:
        raise UserError(f"{request.where}: spec.sources", f"hold no model that can take part: {left_out[0][1]}")
    return Pool(taking_part, left_out, device_type, request.quantities(), request.limits())


def _key(model: JoinedModel) -> tuple[int, str]:
    return model.library, model.record.id


def device_types(library: Library, engine: str) -> set[str]:
    """Device types of which a library has profiles for an engine."""
    paths = [path.split("/") for path in library.store.list("profiles/")]
    return {parts[1] for parts in paths if len(parts) == 4 and parts[2] == engine}


def _profiles(joined: Joined, models: Sequence[JoinedModel], request: Request) -> tuple[str | None, Profiles]:
    """The device type that counts and the models' profiles on it that count.

    Without a named type it is the only one on which all servable models were measured; the allocation of an ensemble
    measures some models, maybe elsewhere, and that must neither make it ambiguous nor change a selection by parameters.
    """
    engine, named = request.cost.engine, request.cost.device_type
    names = {named} if named else {name for library in joined.libraries for name in device_types(library, engine)}
    found: dict[str, Profiles] = {}
    for name in sorted(names):
        stored = [library.profiles(name, engine) for library in joined.libraries]
        pairs = [(model, stored[model.library].get(model.record.id)) for model in models]
        found[name] = {_key(model): p for model, p in pairs if p is not None and request.counts(p, model.record)}
    if named:
        return named, found[named]
    servable = {_key(model) for model in models if model.record.servable}
    complete = [name for name, profiles in found.items() if profiles and servable <= profiles.keys()]
    needed = request.needs_measurements()
    candidates = complete or [name for name, profiles in found.items() if profiles and needed]
    if len(candidates) > 1 and needed:
        raise UserError(
            f"{request.where}: spec.cost.deviceType",
            f"must be given: there are profiles {request.basis()} of {', '.join(candidates)}",
        )
    return (candidates[0], found[candidates[0]]) if len(candidates) == 1 else (None, {})


def _check_profiles(models: Sequence[JoinedModel], profiles: Profiles, request: Request) -> None:
    if not request.needs_measurements():
        return
    servable = [model for model in models if model.record.servable]
    missing = [model.record.id for model in servable if _key(model) not in profiles]
    if missing:
        raise UserError(
            f"{request.where}: spec.cost",
            f"{len(missing)} of {len(servable)} servable models have no profile {request.basis()} "
            f"(the first is {missing[0]}): run `{request.command}`",
        )
    versions = Counter(profile.engine_version for profile in profiles.values())
    if len(versions) > 1:
        counts = ", ".join(f"{version}: {count} models" for version, count in sorted(versions.items()))
        raise UserError(
            f"{request.where}: spec.cost",
            f"profiles of different versions of {request.cost.engine} cannot be compared ({counts}): "
            f"run `{request.command}`",
        )


def _batch(profile: Profile, request: Request) -> BatchProfile:
    return next(batch for batch in profile.batches if batch.batch_size == request.cost.batch_size)


def _candidate(model: JoinedModel, profile: Profile | None, request: Request) -> Candidate:
    parameters, batch = model.record.parameters, profile and _batch(profile, request)
    cost = Costs(
        inference_time_seconds=batch.seconds if batch else None,
        memory_mib=batch.memory_mib if batch else None,
        parameters_millions=None if parameters is None else parameters / 1e6,
    )
    if profile is None or batch is None:
        return Candidate(model, cost, None)
    # Not of the whole profile: measurements at other batch sizes, which may be added later, change nothing here.
    return Candidate(model, cost, digest([profile.device_type, profile.engine_version, batch.document()]))


def _unknown(candidate: Candidate, quantities: Sequence[str]) -> str | None:
    """Why a model cannot take part: a limited cost that nobody can tell."""
    for name in quantities:
        if getattr(candidate.cost, name) is None:
            if name == "parameters_millions":
                return f"{candidate.id} does not tell its number of parameters, which a budget limits"
            return f"{candidate.id} is not servable: it cannot be measured, and a budget limits a measured cost"
    return None
