"""From documents to what is allocated: the selected members as files, and the devices as rows."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ensemble_core.allocation.engines import Figures, choose
from ensemble_core.allocation.harness import load_settings, server_version
from ensemble_core.allocation.machine import this_machine
from ensemble_core.allocation.memory import Memory
from ensemble_core.allocation.pace import Pace
from ensemble_core.allocation.plan import DeviceRow, Member, Plan, plan_of
from ensemble_core.allocation.result import AllocationResult, SelectionOf, ServerVersion, Subject
from ensemble_core.allocation.rows import device_rows, memory_remarks
from ensemble_core.allocation.speeds import Speeds
from ensemble_core.allocation.stored import allocated_elsewhere, stored_allocation
from ensemble_core.api.documents import Documents
from ensemble_core.api.ensembledeployment import EnsembleDeployment, EnsembleDeploymentSpec, Optimization
from ensemble_core.api.ensembleselection import BEST_SINGLE, EnsembleSelection
from ensemble_core.api.options import check_option
from ensemble_core.engines import DEFAULT, HALF, OTHERS, Engine, version_of, why_not
from ensemble_core.errors import UserError
from ensemble_core.library.library import SERVABLE, Library
from ensemble_core.library.parsing import validated
from ensemble_core.library.records import ModelRecord, Profile, Signature
from ensemble_core.library.store import open_store
from ensemble_core.profiling.half import OtherSamplesError, judged_by
from ensemble_core.profiling.measure import Device, MeasurementError, add_to_profile, lacking
from ensemble_core.selection.result import MemberResult, SelectionResult
from ensemble_core.selection.run import find_result, read_result

Tell = Callable[[str], None]


def overridden(deployment: EnsembleDeployment, budget: str | None, max_benchmarks: int | None) -> EnsembleDeployment:
    """A deployment with another budget or number of benchmarks, as the options of a command say.

    Another budget's ensemble may have fewer members than the quorum, which then is all of them.
    """
    spec = deployment.spec
    reference, optimization, serving = spec.selection_ref, spec.optimization, spec.serving
    if budget is not None and budget != reference.budget_name:
        reference = reference.model_copy(update={"budget_name": budget})
        serving = serving.model_copy(update={"quorum": None})
    if max_benchmarks is not None:
        check_option("--max-benchmarks", Optimization, "max_benchmarks", max_benchmarks)
        optimization = optimization.model_copy(update={"max_benchmarks": max_benchmarks})
    return deployment.model_copy(
        update={
            "spec": spec.model_copy(
                update={"selection_ref": reference, "optimization": optimization, "serving": serving}
            )
        }
    )


@dataclass(frozen=True)
class Ensemble:
    """A budget's ensemble with its files.

    Args:
        where: File and document of the deployment, for messages.
        deployment: With what options override.
        selection: Which ensemble it is.
        members: Its members; paths of verified local files.
        records: Of the same members, for their profiles.
        libraries: Of the same members.
        results: The library that keeps allocations and benchmarks.
    """

    where: str
    deployment: EnsembleDeployment
    selection: SelectionOf
    members: tuple[Member, ...]
    records: tuple[ModelRecord, ...]
    libraries: tuple[Library, ...]
    results: Library

    @property
    def signature(self) -> Signature:
        return self.results.header.signature


def find_ensemble(documents: Documents, deployment: EnsembleDeployment, digest: str | None = None) -> Ensemble:
    """The ensemble that a deployment refers to, as its selection has it now, or in the result of a digest.

    Raises:
        UserError: there is no such result, or the selection was not run for what the libraries hold now, or it has no
            such budget or no ensemble for it, or fewer members than the quorum, or a member cannot be served.
    """
    where = f"{documents.file}: EnsembleDeployment {deployment.metadata.name}"
    reference = deployment.spec.selection_ref
    selection = documents.selection(reference.name)
    result = _current(where, documents, selection) if digest is None else read_result(documents, selection, digest)
    chosen = _chosen(_budget_field(where, documents, deployment), result, reference.budget_name)
    check_quorum(where, deployment.spec.serving.quorum, len(chosen))
    storages = documents.source_storages(selection)
    opened = {index: Library.open(open_store(storages[index])) for index in {member.library for member in chosen}}
    libraries = tuple(opened[member.library] for member in chosen)
    records = tuple(library.model(member.model_id) for library, member in zip(libraries, chosen, strict=True))
    names = _unique([member.model_id for member in chosen])
    return Ensemble(
        where=where,
        deployment=deployment,
        selection=SelectionOf(name=reference.name, budget_name=reference.budget_name, digest=result.digest),
        members=tuple(
            _member(where, name, member.weight, library, record)
            for name, member, library, record in zip(names, chosen, libraries, records, strict=True)
        ),
        records=records,
        libraries=libraries,
        results=Library.open(open_store(documents.result_storage(selection))),
    )


def subject_of(ensemble: Ensemble, tell: Tell = lambda text: None) -> Subject:
    """What is allocated on this machine's devices; which engines run the members, `profiled` tells.

    Args:
        ensemble: The members.
        tell: Called with what is doubtful about the devices, and why engines of half precision, which somebody asked
            for, are not used.

    Raises:
        UserError: the machine has fewer GPUs or cores than the spec's devices.
        NoServerError: the server is not installed.
    """
    spec = ensemble.deployment.spec
    machine = this_machine(spec.devices)
    rows = device_rows(f"{ensemble.where}: spec.devices", spec.devices, machine)
    for remark in memory_remarks(spec.devices, machine):
        tell(remark)
    return Subject(
        deployment=ensemble.deployment,
        selection=ensemble.selection,
        members=ensemble.members,
        devices=rows,
        server=server_version(engines_of(spec)),
        load=load_settings(ensemble.deployment),
        judged_by=_judged_by(ensemble, tell),
    )


def _judged_by(ensemble: Ensemble, tell: Tell) -> tuple[str | None, ...]:
    """By which samples half precision is judged for each member; empty if no engine of it is asked for and there."""
    wanted = {engine: why_not(engine) for engine in engines_of(ensemble.deployment.spec) if engine in HALF}
    for engine, reason in wanted.items():
        if reason:
            tell(f"{engine} is not used: {reason}")
    there = [engine for engine, reason in wanted.items() if reason is None]
    if not there:
        return ()
    found: dict[str, str | None] = {}
    for url, library in {library.store.url: library for library in ensemble.libraries}.items():
        try:
            found[url] = judged_by(library, there[0])
        except UserError as error:
            found[url] = None
            tell(f"{', '.join(there)} not used: {error}")
    return tuple(found[library.store.url] for library in ensemble.libraries)


def engines_of(spec: EnsembleDeploymentSpec) -> tuple[Engine, ...]:
    """ONNX Runtime, and what else the spec lets run members on its types of devices."""
    others = [engine for device in spec.devices for engine in OTHERS[device.type]]
    return tuple(dict.fromkeys((DEFAULT, *(each for each in others if each in spec.optimization.engines))))


Profiles = tuple[Mapping[str, Figures], ...]  # of each member, by type of device


def profiled(ensemble: Ensemble, tell: Tell = lambda text: None) -> tuple[Subject, Profiles]:
    """What is allocated, run by the fastest engines, and their figures; what lacks is measured.

    Args:
        ensemble: The members.
        tell: Called with what is doubtful about the devices, with what is measured next, and with why an engine is not
            used for a member.

    Raises:
        UserError: as of `subject_of`, or a member cannot be measured with ONNX Runtime.
        NoServerError: the server is not installed.
    """
    subject = subject_of(ensemble, tell)
    judges = subject.judged_by or (None,) * len(ensemble.members)
    first = {row.device_type: row for row in reversed(subject.devices)}
    profiles = tuple(
        {kind: _figures(ensemble, index, judges[index], row, tell) for kind, row in first.items()}
        for index in range(len(ensemble.members))
    )
    chosen = tuple({kind: own.engines for kind, own in of_member.items()} for of_member in profiles)
    return replace(subject, chosen=chosen), profiles


def stored_figures(ensemble: Ensemble, index: int) -> dict[str, Figures]:
    """Of a member on the types of devices that it was measured on with ONNX Runtime, whoever measured it."""
    library, record, member = ensemble.libraries[index], ensemble.records[index], ensemble.members[index]
    spec = ensemble.deployment.spec
    found = {}
    for kind in library.profiled_on(DEFAULT, record.id):
        profiles = {
            engine: library.profile(kind, engine, record.id) for engine in (DEFAULT, *spec.optimization.engines)
        }
        own = {engine: each for engine, each in profiles.items() if each and each.model_sha256 == member.sha256}
        if DEFAULT in own:
            found[kind] = choose(own, spec.batch_sizes)
    return found


def memory_of(subject: Subject, profiles: Profiles) -> Memory:
    """Capacity of the devices, and need of each member on each type of them."""
    return Memory(
        capacity=tuple(row.memory_mib for row in subject.devices),
        kinds=tuple(row.device_type for row in subject.devices),
        curves=tuple({kind: own.curve for kind, own in of_member.items()} for of_member in profiles),
    )


def speeds_of(subject: Subject, profiles: Profiles) -> Speeds:
    """Samples/s of each member alone on the devices."""
    return Speeds(
        kinds=tuple(row.device_type for row in subject.devices),
        times=tuple({kind: own.times for kind, own in of_member.items()} for of_member in profiles),
    )


def pace_of(subject: Subject, profiles: Profiles) -> Pace:
    """How fast the members are on the devices."""
    speeds = speeds_of(subject, profiles)
    return Pace.of(speeds.kinds, speeds.times)


def load_allocation(documents: Documents, deployment: EnsembleDeployment) -> AllocationResult:
    """The allocation of a deployment for what the libraries hold now, on such devices as this machine has.

    Raises:
        UserError: as of `find_ensemble` and `subject_of`, or nothing was allocated.
    """
    ensemble = find_ensemble(documents, deployment)
    return allocation_of(documents, ensemble, subject_of(ensemble))


def load_plan(documents: Documents, deployment: EnsembleDeployment) -> Plan:
    """The plan of that allocation, with this machine's files and cores; UserErrors as of `load_allocation`."""
    ensemble = find_ensemble(documents, deployment)
    subject = subject_of(ensemble)
    return allocated_plan(ensemble, subject, allocation_of(documents, ensemble, subject))


def allocated_plan(ensemble: Ensemble, subject: Subject, found: AllocationResult) -> Plan:
    """The plan of an allocation of an ensemble."""
    signature, deployment = ensemble.signature, ensemble.deployment
    return plan_of(found.candidate, subject.members, subject.devices, signature, deployment, found.engines)


def allocation_of(documents: Documents, ensemble: Ensemble, subject: Subject) -> AllocationResult:
    """What was allocated for a subject; UserError if nothing was, or only on other devices or with another server."""
    found = stored_allocation(ensemble.results, subject)
    if found is not None:
        return found
    reference, name = ensemble.selection, ensemble.deployment.metadata.name
    command = f"ensemble allocate --spec {documents.file} --name {name} --budget {reference.budget_name}"
    if elsewhere := allocated_elsewhere(ensemble.results, subject):
        there, here = types_of(elsewhere.devices), types_of(subject.devices)
        problem = f"was allocated on {there}; on this machine the document names {here}: run `{command}` for them"
        raise UserError(f"{ensemble.where}: spec.devices", problem)
    if others := _allocated_with_others(ensemble.results, subject):
        before, now = min((_differences(other, subject.server) for other in others), key=lambda pair: len(pair[0]))
        problem = (
            f"was allocated with {' and '.join(before)}; this machine has {' and '.join(now)}: run `{command}` again"
        )
        raise UserError(ensemble.where, problem)
    problem = f"nothing was allocated for this ensemble, these settings and such devices: run `{command}` first"
    raise UserError(ensemble.where, problem)


def _allocated_with_others(results: Library, subject: Subject) -> list[ServerVersion]:
    """Other servers that the same subject was allocated with."""
    stored = sorted(results.results("allocations").items())
    found = [validated(AllocationResult, content, f"allocations/{key}.json") for key, content in stored]
    return [each.server for each in found if replace(subject, server=each.server).digest() == each.digest]


def _differences(before: ServerVersion, now: ServerVersion) -> tuple[list[str], list[str]]:
    """In words, what of a server was otherwise before, and what it is now."""
    pairs = list(zip(_words(before), _words(now), strict=True))
    return [old for old, new in pairs if old != new], [new for old, new in pairs if old != new]


def _words(server: ServerVersion) -> tuple[str, str, str]:
    """What a server consists of."""
    averaging = "an unknown averaging backend" if server.averaging is None else f"averaging backend {server.averaging}"
    return f"server {server.name} {server.version}", f"engines {server.engine}", averaging


def types_of(devices: Sequence[DeviceRow]) -> str:
    """Types of devices in words, with their numbers."""
    return ", ".join(f"{count} × {kind}" for kind, count in Counter(row.device_type for row in devices).items())


def _figures(ensemble: Ensemble, index: int, judge: str | None, row: DeviceRow, tell: Tell) -> Figures:
    """Of a member on a type of device, by the fastest of the engines that it has there.

    Half precision is judged by samples of the digest `judge`, and not used if there is none.
    """
    spec, name = ensemble.deployment.spec, ensemble.members[index].model_id
    profiles: dict[Engine, Profile] = {}
    for engine in (each for each in engines_of(spec) if each in (DEFAULT, *OTHERS[row.type])):
        version = version_of(engine)
        if version is None or (engine in HALF and judge is None):
            continue
        try:
            profiles[engine] = _profile(ensemble, index, judge if engine in HALF else None, row, engine, version, tell)
        except (MeasurementError, OtherSamplesError) as failure:
            if engine == DEFAULT:
                problem = f"no profile on {row.device_type}: {failure}"
                raise UserError(f"{ensemble.where}: spec.devices", problem) from failure
            tell(f"{engine} is not used for {name} on {row.device_type}: {failure}")
            continue
        if reason := profiles[engine].refused:
            tell(f"{engine} is not used for {name} on {row.device_type}: {reason}")
    return choose(profiles, spec.batch_sizes)


def _profile(
    ensemble: Ensemble, index: int, judge: str | None, row: DeviceRow, engine: Engine, version: str, tell: Tell
) -> Profile:
    """The stored profile of a member on a type of device, at three batch sizes or more; what lacks is measured."""
    library, record, member = ensemble.libraries[index], ensemble.records[index], ensemble.members[index]
    stored = library.profile(row.device_type, engine, record.id)
    sizes = sizes_to_profile(ensemble.deployment.spec.batch_sizes)
    missing = lacking(stored, member.sha256, version, sizes, judge)
    if stored is not None and not missing:
        return stored
    library.store.check_writable()
    tell(f"measuring {member.model_id} on {row.device_type} with {engine}")
    device = Device(row.device_type, row.cores, None)
    if row.type == "gpu":
        device = Device(row.device_type, tuple(sorted(os.sched_getaffinity(0))), row.ordinal)
    return add_to_profile(library, record, device, engine, missing)


def sizes_to_profile(batch_sizes: Sequence[int]) -> set[int]:
    """The smallest, the middle and the largest: what lies between is interpolated."""
    return {batch_sizes[0], batch_sizes[len(batch_sizes) // 2], batch_sizes[-1]}


def _current(where: str, documents: Documents, selection: EnsembleSelection) -> SelectionResult:
    result = find_result(documents, selection)
    if result is None:
        name = selection.metadata.name
        command = f"ensemble select --spec {documents.file} --name {name}"
        problem = f"{name} was not selected for what its libraries hold now: run `{command}` first"
        raise UserError(f"{where}: spec.selectionRef.name", problem)
    return result


def _budget_field(where: str, documents: Documents, deployment: EnsembleDeployment) -> str:
    """What named the budget: the document, or the option that overrides it."""
    given = documents.deployment(deployment.metadata.name).spec.selection_ref.budget_name
    named = deployment.spec.selection_ref.budget_name == given
    return f"{where}: spec.selectionRef.budgetName" if named else "--budget"


def _chosen(where: str, result: SelectionResult, name: str) -> tuple[MemberResult, ...]:
    """Members of a budget's ensemble, or the best single model alone; `where` the name comes from."""
    if members := result.members(name):
        return members
    budget = result.budget(name)
    if budget is None:
        budgets = [*(budget.name for budget in result.budgets), BEST_SINGLE]
        raise UserError(where, f"{name} is none of the budgets {', '.join(budgets)}")
    raise UserError(where, f"{name} has no ensemble: {budget.reason}")


def check_quorum(where: str, quorum: int | None, members: int) -> None:
    """UserError if an ensemble has fewer members than the quorum; `where` its deployment is."""
    if quorum is not None and quorum > members:
        raise UserError(f"{where}: spec.serving.quorum", f"{quorum} is more than the ensemble's {members} members")


def _unique(names: Sequence[str]) -> list[str]:
    """Names of which later equals get their position: members of joined libraries may have one id."""
    return [f"{name}-{index}" if name in names[:index] else name for index, name in enumerate(names)]


def _member(where: str, name: str, weight: float, library: Library, record: ModelRecord) -> Member:
    if not record.servable:
        raise UserError(
            f"{where}: spec.selectionRef", f"the member {record.id} of {library.store.url} cannot be served"
        )
    path = library.file(record, SERVABLE).resolve()
    return Member(model_id=name, weight=weight, onnx=str(path), sha256=record.files[SERVABLE].sha256)
