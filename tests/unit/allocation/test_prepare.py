from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ensemble_core import engines
from ensemble_core.allocation import prepare
from ensemble_core.allocation.matrix import Matrix
from ensemble_core.allocation.plan import Engines
from ensemble_core.allocation.prepare import Ensemble, allocated_plan, allocation_of, overridden, profiled, subject_of
from ensemble_core.allocation.result import (
    AllocatedMember,
    AllocationResult,
    Start,
    Subject,
    Throughput,
    device_fingerprint,
)
from ensemble_core.api.ensembledeployment import EnsembleDeployment, Serving
from ensemble_core.api.ensembleselection import BEST_SINGLE
from ensemble_core.commands import allocate, plan
from ensemble_core.commands.allocate import accuracies, summary
from ensemble_core.engines import HALF
from ensemble_core.errors import UserError
from ensemble_core.library.records import Accuracy, BatchProfile, Profile, Score, Signature
from ensemble_core.profiling.half import LEAST_SAMPLES, NO_INPUTS, OtherSamplesError

KIND = "cpu-test-1c"
SCORE = Score(cross_entropy=0.5, error=0.25)
SIGNATURE = Signature(input_type="uint8", input_shape=(8, 8, 1), classes=10)


class Profiles:
    """A library that has a profile of each member by each engine: (seconds of 2000 samples, MiB) at any batch size."""

    store = SimpleNamespace(url="libraries/digits", check_writable=lambda: None)
    kept: str | None = "e" * 64  # digest of validation samples
    rows = LEAST_SAMPLES

    def __init__(self, subject: Subject, **engines: tuple[float, float]) -> None:
        self._sha256 = {member.model_id: member.sha256 for member in subject.members}
        self._engines = engines
        self.looks = 0

    def profiled_on(self, engine: str, model: str) -> tuple[str, ...]:
        return ("cpu-x-1c",) if engine in self._engines else ()

    def profile(self, kind: str, engine: str, model: str) -> Profile | None:
        if engine not in self._engines:
            return None
        accuracy = Accuracy(samples=8, float32=SCORE, half=SCORE, changed=0.0) if engine in HALF else None
        seconds, memory = self._engines[engine]
        return Profile(
            model=model, model_sha256=self._sha256[model], device_type=kind, engine=engine, engine_version="1", cores=1,
            load_seconds=0.1, accuracy=accuracy, inputs=accuracy and self.kept,
            batches=tuple(
                BatchProfile(batch_size=size, passes=(seconds,), seconds=seconds, memory_mib=memory)
                for size in (8, 32)
            ),
        )  # fmt: skip

    def inputs(self) -> Any:
        self.looks += 1
        return self.kept and SimpleNamespace(file=SimpleNamespace(sha256=self.kept), rows=range(self.rows))


@pytest.fixture
def on_this_machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ensemble]:
    """The ensemble of a subject, whose devices and server this machine has; its profiles are those given by engine."""

    def found(subject: Subject, **engines: tuple[float, float]) -> Ensemble:
        machine = SimpleNamespace(memory_mib=1e6, gpus=())
        monkeypatch.setattr(prepare, "this_machine", lambda devices: machine)
        monkeypatch.setattr(prepare, "device_rows", lambda where, devices, machine: subject.devices)
        monkeypatch.setattr(prepare, "server_version", lambda names: subject.server)
        monkeypatch.setattr(prepare, "load_settings", lambda deployment: subject.load)
        monkeypatch.setattr(prepare, "version_of", lambda engine: "1")
        monkeypatch.setattr(prepare, "why_not", lambda engine: None)
        library: Any = Profiles(subject, **engines)
        return Ensemble(
            where="ensemble.yaml: EnsembleDeployment digits",
            deployment=subject.deployment,
            selection=subject.selection,
            members=subject.members,
            records=cast(Any, tuple(SimpleNamespace(id=member.model_id) for member in subject.members)),
            libraries=(library,) * len(subject.members),
            results=cast(Any, SimpleNamespace(header=SimpleNamespace(signature=SIGNATURE))),
        )

    return found


def allocation(subject: Subject, engines: Engines = ()) -> AllocationResult:
    """What was found for a subject: its two members on their own devices, in batches of 8 and of 32."""
    matrix, throughput = ((8, 0), (0, 32)), Throughput(samples_per_second=100.0)
    return AllocationResult(
        name=subject.deployment.metadata.name,
        digest=subject.digest(),
        selection=subject.selection,
        members=tuple(AllocatedMember(**member.model_dump(exclude={"onnx"})) for member in subject.members),
        devices=subject.devices,
        device_fingerprint=device_fingerprint(subject.devices),
        matrix=matrix,
        algorithm="guided",
        throughput=throughput,
        start=Start(matrix=matrix, throughput=throughput),
        benchmarks=(),
        server=subject.server,
        engines=engines,
    )


def test_what_is_profiled_is_run_by_the_engines_that_the_profiles_are_of(
    make_subject: Callable[..., Subject], on_this_machine: Callable[..., Ensemble]
) -> None:
    ensemble = on_this_machine(make_subject(), onnxruntime=(2.0, 100.0), openvino=(1.0, 300.0))
    subject, profiles = profiled(ensemble)
    assert subject.engines(Matrix(((8, 0), (0, 32)))) == (("openvino", None), (None, "openvino"))
    assert [own[KIND].curve.at(32) for own in profiles] == [300.0, 300.0]


def test_a_pod_has_the_memory_of_the_engines_that_were_allocated_and_not_of_those_chosen_now(
    make_subject: Callable[..., Subject], on_this_machine: Callable[..., Ensemble]
) -> None:
    ensemble = on_this_machine(make_subject(), onnxruntime=(1.0, 100.0), openvino=(2.0, 300.0))
    subject, profiles = profiled(ensemble)
    assert subject.engines(Matrix(((8, 0), (0, 32)))) == ()
    served = (allocation(subject), allocation(subject, (("openvino", None), (None, "onnxruntime"))))
    plain, other = (summary(found, allocated_plan(ensemble, subject, found), profiles)["memoryMiB"] for found in served)
    assert other - plain == 200


def with_engines(subject: Subject, *engines: str) -> Subject:
    document = subject.deployment.document()
    document["spec"]["optimization"]["engines"] = list(engines)
    return replace(subject, deployment=EnsembleDeployment.model_validate(document))


HALF_FASTER = {"onnxruntime": (4.0, 100.0), "openvino": (3.0, 100.0), "openvino-bf16": (1.0, 100.0)}


def test_half_precision_is_used_where_it_is_asked_for(
    make_subject: Callable[..., Subject], on_this_machine: Callable[..., Ensemble]
) -> None:
    matrix = Matrix(((8, 0), (0, 32)))
    subject, _ = profiled(on_this_machine(make_subject(), **HALF_FASTER))
    assert subject.engines(matrix) == (("openvino", None), (None, "openvino"))  # nobody asked
    told: list[str] = []
    asked = with_engines(make_subject(), "openvino", "openvino-bf16")
    ensemble = on_this_machine(asked, **HALF_FASTER)
    subject, profiles = profiled(ensemble, told.append)
    assert subject.engines(matrix) == (("openvino-bf16", None), (None, "openvino-bf16"))
    assert told == []
    found = allocation(subject, subject.engines(matrix))
    assert found.in_half
    assert not allocation(subject, (("openvino", None), (None, "onnxruntime"))).in_half
    plan = allocated_plan(ensemble, subject, found)
    assert set(accuracies(plan, profiles)) == {("m-0000", "openvino-bf16"), ("m-0001", "openvino-bf16")}
    (first, _) = summary(found, plan, profiles)["accuracy"]
    assert first == {
        "modelId": "m-0000", "engine": "openvino-bf16", "samples": 8, "changed": 0.0,
        "float32": {"crossEntropy": 0.5, "error": 0.25}, "half": {"crossEntropy": 0.5, "error": 0.25},
    }  # fmt: skip
    assert "accuracy" not in summary(
        allocation(subject), allocated_plan(ensemble, subject, allocation(subject)), profiles
    )


def test_half_precision_needs_validation_samples(
    make_subject: Callable[..., Subject], on_this_machine: Callable[..., Ensemble], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Profiles, "kept", None)
    asked = with_engines(make_subject(), "openvino", "openvino-bf16", "openvino-fp16")
    told: list[str] = []
    subject, _ = profiled(on_this_machine(asked, **HALF_FASTER), told.append)
    assert subject.engines(Matrix(((8, 0), (0, 32)))) == (("openvino", None), (None, "openvino"))
    assert told == [f"openvino-bf16, openvino-fp16 not used: libraries/digits: {NO_INPUTS}"]


def test_half_precision_needs_validation_samples_enough_to_tell(
    make_subject: Callable[..., Subject], on_this_machine: Callable[..., Ensemble], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Profiles, "rows", LEAST_SAMPLES - 1)
    told: list[str] = []
    asked = with_engines(make_subject(), "openvino", "openvino-bf16")
    subject, _ = profiled(on_this_machine(asked, **HALF_FASTER), told.append)
    assert subject.engines(Matrix(((8, 0), (0, 32)))) == (("openvino", None), (None, "openvino"))
    assert told == [
        "openvino-bf16 not used: libraries/digits: keeps 99 validation samples; half precision is "
        "checked by 100 at least"
    ]


def test_an_allocation_in_half_precision_is_one_of_the_samples_that_members_are_judged_by(
    make_subject: Callable[..., Subject], on_this_machine: Callable[..., Ensemble], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = with_engines(make_subject(), "openvino", "openvino-bf16")
    found: list[tuple[str, str]] = []
    for kept in (None, "e" * 64, "f" * 64):
        monkeypatch.setattr(Profiles, "kept", kept)
        of_half, plain = (
            on_this_machine(each, **HALF_FASTER, **{"openvino-fp16": (9.0, 1.0)}) for each in (asked, make_subject())
        )
        subject, _ = profiled(of_half)
        assert subject.digest() == subject_of(of_half).digest()  # known without measuring
        assert cast(Any, of_half.libraries[0]).looks == 2  # once each time, however many members and engines
        found.append((subject.digest(), profiled(plain)[0].digest()))
        assert cast(Any, plain.libraries[0]).looks == 0
    assert len({half for half, _ in found}) == 3
    assert {plain for _, plain in found} == {make_subject().digest()}


def test_a_model_that_was_scored_on_other_samples_stays_as_it_is_and_why_is_told(
    make_subject: Callable[..., Subject], on_this_machine: Callable[..., Ensemble], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(library: Any, record: Any, *rest: Any) -> Profile:
        raise OtherSamplesError("inputs.npy", f"are not those of {record.id}")

    monkeypatch.setattr(prepare, "add_to_profile", refuse)
    asked = with_engines(make_subject(), "openvino", "openvino-bf16")
    ensemble = on_this_machine(asked, onnxruntime=(4.0, 100.0), openvino=(3.0, 100.0))
    told: list[str] = []
    subject, _ = profiled(ensemble, told.append)
    assert subject.engines(Matrix(((8, 0), (0, 32)))) == (("openvino", None), (None, "openvino"))
    assert [line for line in told if not line.startswith("measuring")] == [
        f"openvino-bf16 is not used for {name} on {KIND}: inputs.npy: are not those of {name}"
        for name in ("m-0000", "m-0001")
    ]


def test_half_precision_needs_a_cpu_that_computes_so(
    make_subject: Callable[..., Subject], on_this_machine: Callable[..., Ensemble], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = with_engines(make_subject(), "openvino", "openvino-bf16", "openvino-fp16")
    ensemble = on_this_machine(asked, **HALF_FASTER)
    monkeypatch.setattr(engines, "cpu_precisions", lambda: frozenset({"FP32", "BF16"}))
    monkeypatch.setattr(prepare, "why_not", engines.why_not)
    monkeypatch.setattr(prepare, "version_of", lambda engine: None if engine == "openvino-fp16" else "1")
    told: list[str] = []
    profiled(ensemble, told.append)
    assert told == ["openvino-fp16 is not used: this CPU does not compute in FP16"]


class ReadOnly:
    """A store that cannot be written."""

    def check_writable(self) -> None:
        raise UserError("library", "cannot be written")


def test_a_library_that_cannot_be_written_is_told_before_anything_is_measured(
    make_subject: Callable[..., Subject], on_this_machine: Callable[..., Ensemble], monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble = on_this_machine(make_subject())
    cast(Any, ensemble.libraries[0]).store = ReadOnly()
    monkeypatch.setattr(prepare, "add_to_profile", None)
    with pytest.raises(UserError, match="cannot be written"):
        profiled(ensemble)
    known = on_this_machine(make_subject(), onnxruntime=(2.0, 100.0), openvino=(1.0, 300.0))
    cast(Any, known.libraries[0]).store = ReadOnly()
    subject, profiles = profiled(known)
    monkeypatch.setattr(allocate, "Triton", None)
    results: Any = SimpleNamespace(store=ReadOnly())
    with pytest.raises(UserError, match="cannot be written"):
        allocate._optimise(replace(known, results=results), subject, profiles, cast(Any, None))


def test_a_plan_names_the_device_types_that_there_are_profiles_of(
    make_subject: Callable[..., Subject], on_this_machine: Callable[..., Ensemble], monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble = on_this_machine(make_subject(), onnxruntime=(1.0, 100.0))
    monkeypatch.setattr(plan, "find_ensemble", lambda documents, deployment: ensemble)
    documents: Any = SimpleNamespace(deployment=lambda name: ensemble.deployment)
    monkeypatch.setattr(plan, "load_documents", lambda file: documents)
    parser = argparse.ArgumentParser()
    plan.add_arguments(parser)
    with pytest.raises(UserError, match="m-0000 has no profile on V100-16GB, but on cpu-x-1c"):
        plan.run(parser.parse_args(["--spec", "documents.yaml", "--devices", "8xV100-16GB"]))


OTHERWISE = {
    "nothing was allocated for this ensemble, these settings and such devices: run `ensemble allocate": [{}],
    "was allocated with server nvidia-pytriton 0.6.0; this machine has server nvidia-pytriton 0.7.0: "
    "run `ensemble allocate": [
        {"version": "0.6.0", "engine": "onnxruntime 1.30.0", "averaging": "python"},
        {"version": "0.6.0"},
        {"version": "0.6.0", "engine": "onnxruntime 1.30.0"},
    ],
    "was allocated with engines onnxruntime 1.31.1, openvino 2026.1 and averaging backend native; "
    "this machine has engines onnxruntime 1.31.1 and an unknown averaging backend: run `ensemble allocate": [
        {"engine": "onnxruntime 1.31.1, openvino 2026.1", "averaging": "native"}
    ],
}


@pytest.mark.parametrize(("told", "servers"), OTHERWISE.items(), ids=("another ensemble", "nearest", "several"))
def test_what_of_the_server_was_otherwise_when_it_was_allocated_is_told(
    make_subject: Callable[..., Subject],
    on_this_machine: Callable[..., Ensemble],
    results: Any,
    told: str,
    servers: list[dict[str, str]],
) -> None:
    subject = make_subject()
    another = replace(make_subject(members=3), server=subject.server.model_copy(update={"version": "0.6.0"}))
    before = [replace(subject, server=subject.server.model_copy(update=each)) for each in servers if each]
    for each in (another, *before):
        results.write_result("allocations", each.digest(), allocation(each).document())
    ensemble = replace(on_this_machine(subject), results=results)
    documents: Any = SimpleNamespace(file="ensemble.yaml")
    with pytest.raises(UserError, match=f"^ensemble.yaml: EnsembleDeployment digits: {told}"):
        allocation_of(documents, ensemble, subject)


def test_an_allocation_on_other_devices_than_the_document_names_says_how_to_allocate_on_these(
    make_subject: Callable[..., Subject], on_this_machine: Callable[..., Ensemble], results: Any
) -> None:
    """The machine may have more than the document names."""
    before = make_subject()
    subject = replace(before, devices=before.devices[:1])
    results.write_result("allocations", before.digest(), allocation(before).document())
    ensemble, documents = replace(on_this_machine(subject), results=results), SimpleNamespace(file="ensemble.yaml")
    with pytest.raises(UserError) as refused:
        allocation_of(cast(Any, documents), ensemble, subject)
    budget = ensemble.selection.budget_name
    command = f"ensemble allocate --spec ensemble.yaml --name digits --budget {budget}"
    assert str(refused.value) == (
        f"ensemble.yaml: EnsembleDeployment digits: spec.devices: was allocated on 2 × {KIND}; on this machine the "
        f"document names 1 × {KIND}: run `{command}` for them"
    )


def test_a_quorum_is_of_the_ensemble_that_the_document_names(make_subject: Callable[..., Subject]) -> None:
    deployment = make_subject().deployment
    spec = deployment.spec.model_copy(update={"serving": Serving(quorum=2, retries=1)})
    deployment = deployment.model_copy(update={"spec": spec})

    def serving(found: EnsembleDeployment) -> Serving:
        return found.spec.serving

    assert serving(overridden(deployment, None, 7)) == serving(overridden(deployment, "large", None)) == spec.serving
    other = overridden(deployment, BEST_SINGLE, None)
    assert other.spec.selection_ref.budget_name == BEST_SINGLE
    assert serving(other) == Serving(retries=1)
