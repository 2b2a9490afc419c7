"""`ensemble allocate` on the real server, with two tiny networks on two cores."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from tests.support.broken import no_process_starts

from ensemble_core.allocation import harness
from ensemble_core.allocation.candidate import Candidate
from ensemble_core.allocation.matrix import Matrix
from ensemble_core.allocation.plan import Member
from ensemble_core.allocation.prepare import (
    allocated_plan,
    find_ensemble,
    load_allocation,
    load_plan,
    overridden,
    pace_of,
    profiled,
    subject_of,
)
from ensemble_core.api.documents import load_documents
from ensemble_core.api.ensembleselection import BEST_SINGLE
from ensemble_core.commands import allocate, plan, profile, select
from ensemble_core.errors import UserError
from ensemble_core.library.library import Library
from ensemble_core.library.records import SPLITS, ModelRecord, Origin, Signature, Split
from ensemble_core.library.splits import LabelledIds, make_header
from ensemble_core.library.store import open_store
from ensemble_core.metrics import metrics
from ensemble_core.serving.client import ask
from ensemble_core.serving.server import TritonServer

pytestmark = pytest.mark.timeout(600)

SAMPLES, CLASSES = 120, 3  # enough to judge half precision by
SIGNATURE = Signature(input_type="uint8", input_shape=(4, 4, 1), classes=CLASSES)
DOCUMENTS = """
apiVersion: ensemble-operator.io/v1alpha1
kind: EnsembleSelection
metadata: {name: tiny}
spec:
  sources: [{storage: {path: library}}]
  cost: {coresPerDevice: 1, batchSize: 16}
  weights: [0]
  budgets: [{name: all, inferenceTimeSeconds: 100}, {name: none, inferenceTimeSeconds: 0.000001}]
---
apiVersion: ensemble-operator.io/v1alpha1
kind: EnsembleDeployment
metadata: {name: tiny}
spec:
  selectionRef: {name: tiny, budgetName: all}
  devices: [{name: cores, type: cpu, count: 2}]
  optimization:
    {algorithm: bounded-greedy, maxBenchmarks: 3, maxNeighs: 2, maxIter: 1, secondsPerBenchmark: 0.2,
     batchSizes: [8, 32]}
  serving: {segmentSize: 32}
"""


def network(seed: int, path: Path) -> None:
    """Writes a linear classifier of the raw samples, with the softmax and the cast inside."""
    size = int(np.prod(SIGNATURE.input_shape))
    weights = np.random.default_rng(seed).normal(0, 0.02, (size, CLASSES)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["INPUT"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["PROBABILITIES"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("INPUT", TensorProto.UINT8, ["N", *SIGNATURE.input_shape])],
        [helper.make_tensor_value_info("PROBABILITIES", TensorProto.FLOAT, ["N", CLASSES])],
        [onnx.numpy_helper.from_array(weights, "weights")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def images(split: Split) -> Any:
    shape = (SAMPLES, *SIGNATURE.input_shape)
    return np.random.default_rng(SPLITS.index(split)).integers(0, 256, shape, np.uint8)


def publish(library: Library, seed: int, folder: Path, change: Callable[[Path], None] | None = None) -> None:
    folder.mkdir()
    network(seed, folder / "model.onnx")
    if change is not None:
        change(folder / "model.onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    files = {"model.onnx": folder / "model.onnx"}
    for split in SPLITS:
        files[f"predictions-{split}.npy"] = folder / f"predictions-{split}.npy"
        np.save(files[f"predictions-{split}.npy"], session.run(None, {"INPUT": images(split)})[0])
    probabilities = np.load(files["predictions-validation.npy"])
    record = ModelRecord(
        id=f"tiny-{seed:04d}", family="linear", hyperparameters={}, parameters=48, servable=True, files={},
        validation=metrics(probabilities, library.labels("validation")), origin=Origin(),
    )  # fmt: skip
    library.publish(record, files)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of documents beside its library of two profiled, selected models that err on different samples."""
    folder = tmp_path_factory.mktemp("allocate")
    file = folder / "tiny.yaml"
    file.write_text(DOCUMENTS)
    documents = load_documents(file)
    storage = documents.result_storage(documents.selection())
    splits = {
        split: LabelledIds(np.array([f"{split}-{i}" for i in range(SAMPLES)]), np.arange(SAMPLES) % CLASSES)
        for split in SPLITS
    }
    library = Library.create(open_store(storage), make_header(SIGNATURE, ["a", "b", "c"], splits), splits)
    for seed in (1, 2):
        publish(library, seed, folder / f"model-{seed}")
    assert verb(profile, "--spec", str(file)) == 0
    assert verb(select, "--spec", str(file)) == 0
    return file


def verb(module: ModuleType, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return int(module.run(parser.parse_args(arguments)))


class Refused:
    """In the server's place: a run that needs it fails."""

    def __init__(self) -> None:
        raise AssertionError("a server was started")


def test_allocate_measures_once_and_what_it_finds_can_be_served(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    assert verb(allocate, "--spec", str(spec), "--report", f"file:{report}") == 0
    documents = load_documents(spec)
    found = load_allocation(documents, documents.deployment())
    assert (len(found.members), len(found.benchmarks)) == (2, 3)
    assert all(b.throughput.samples_per_second > 0 for b in found.benchmarks)
    assert found.throughput.samples_per_second >= found.start.throughput.samples_per_second > 0
    content = json.loads(report.read_text())
    assert (content["state"], content["result"]["digest"]) == ("Succeeded", found.digest)
    assert content["result"]["summary"]["matrix"] == [list(row) for row in found.matrix]
    assert "3 benchmarks" in capsys.readouterr().out

    monkeypatch.setattr(harness, "TritonServer", Refused)
    assert verb(allocate, "--spec", str(spec)) == 0
    assert "nothing has changed" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="a server was started"):
        verb(allocate, "--spec", str(spec), "--budget", BEST_SINGLE)

    plan = load_plan(documents, documents.deployment())
    library = Library.open(open_store(documents.result_storage(documents.selection())))
    expected = sum(
        member.weight * library.predictions(library.model(member.model_id), "heldout") for member in plan.members
    )
    with TritonServer() as server:
        server.apply(plan)
        assert np.abs(ask(server.url, plan.name, images("heldout")) - expected).max() < 1e-5


def test_the_default_algorithm_measures_few_and_begins_with_the_incumbent(
    spec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = spec.with_name("guided.yaml")
    changed.write_text(without(DOCUMENTS, "algorithm: bounded-greedy, maxBenchmarks: 3", "maxBenchmarks: 5"))
    assert verb(allocate, "--spec", str(spec)) == 0
    before = load_allocation(load_documents(spec), load_documents(spec).deployment())
    assert verb(allocate, "--spec", str(changed)) == 0
    found = load_allocation(load_documents(changed), load_documents(changed).deployment())
    assert found.algorithm == "guided"
    assert 2 <= len(found.benchmarks) <= 5
    assert found.benchmarks[0].matrix == before.matrix
    assert found.benchmarks[0].repeat == 1
    assert found.benchmarks[0].throughput not in [b.throughput for b in before.benchmarks]  # but measured anew
    assert found.bound is not None
    assert found.bound > 0
    assert "of the bound by profiles" in capsys.readouterr().out


def test_samples_are_routed_by_the_shares_that_were_allocated(spec: Path) -> None:
    changed = spec.with_name("weights.yaml")
    rows = "matrix: [{device: cpu0, batchSizes: [8, 32]}, {device: cpu1, batchSizes: [32, 8]}]"
    text = without(DOCUMENTS, "algorithm: bounded-greedy, maxBenchmarks: 3", f"maxBenchmarks: 1, {rows}")
    changed.write_text(without(text, "segmentSize: 32", "segmentSize: 32, routing: weights"))
    assert verb(allocate, "--spec", str(changed)) == 0
    documents = load_documents(changed)
    found = load_allocation(documents, documents.deployment())
    assert found.matrix == ((8, 32), (32, 8))
    assert found.shares is not None
    assert [sum(column) for column in zip(*found.shares, strict=True)] == pytest.approx([1, 1], abs=1e-3)
    ensemble = find_ensemble(documents, documents.deployment())
    uneven = found.model_copy(update={"shares": ((0.25, 0.6), (0.75, 0.4))})
    samples = np.repeat(images("heldout"), 32, axis=0)
    with TritonServer() as server:
        for chosen in (found, uneven):
            plan = allocated_plan(ensemble, subject_of(ensemble), chosen)
            server.apply(plan)
            before = answered_by(server)
            ask(server.url, plan.name, samples)
            counts = answered_by(server)
            for worker in plan.workers:
                name = plan.model_name(worker)
                answered = sum(count - before.get(key, 0) for key, count in counts.items() if name in key)
                assert answered == pytest.approx(worker.share * len(samples), abs=32)


def answered_by(server: TritonServer) -> dict[str, int]:
    """Samples that workers have answered, by the labels of the counter, one of which names the worker."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.ports.metrics}/metrics", timeout=60) as answer:
        lines = re.findall(r"^ensemble_samples_total\{(.*)\} (\d+)", answer.read().decode(), re.MULTILINE)
    return {labels: int(count) for labels, count in lines}


def test_the_same_members_are_planned_on_more_devices_by_their_profiles(
    spec: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = load_documents(spec)
    kind = subject_of(find_ensemble(documents, documents.deployment())).devices[0].device_type
    assert verb(allocate, "--spec", str(spec)) == 0
    monkeypatch.setattr(harness, "TritonServer", Refused)
    capsys.readouterr()
    assert verb(plan, "--spec", str(spec), "--devices", f"5x{kind}:1024", "--max-benchmarks", "3") == 0
    text = capsys.readouterr().out
    assert text.startswith(f"2 members on 5 × {kind}\n")
    assert all(f"tiny-000{seed}@" in text for seed in (1, 2))
    assert [line.split()[0] for line in text.splitlines()[-5:]] == [f"cpu{i}" for i in range(5)]
    with pytest.raises(UserError, match="has no profile on gpu-other, but on"):
        verb(plan, "--spec", str(spec), "--devices", "1xgpu-other:1024")


def test_the_best_single_model_is_allocated_alone(spec: Path) -> None:
    assert verb(allocate, "--spec", str(spec), "--budget", BEST_SINGLE, "--max-benchmarks", "1") == 0
    documents = load_documents(spec)
    found = load_allocation(documents, overridden(documents.deployment(), BEST_SINGLE, 1))
    assert [member.weight for member in found.members] == [1]
    assert len(found.benchmarks) == 1


def test_a_server_that_dies_between_benchmarks_is_survived(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    servers: list[TritonServer] = []

    def start() -> TritonServer:
        servers.append(TritonServer())
        return servers[-1]

    monkeypatch.setattr(harness, "TritonServer", start)
    documents = load_documents(spec)
    ensemble = find_ensemble(documents, overridden(documents.deployment(), BEST_SINGLE, 1))
    with harness.Triton() as triton:
        subject, profiles = profiled(ensemble)
        pace = pace_of(subject, profiles)
        bench = harness.Bench(subject, ensemble.signature, pace, triton)
        assert bench(Candidate(Matrix(((8,), (0,))))).samples_per_second > 0
        assert servers[0].pid is not None
        os.kill(servers[0].pid, signal.SIGKILL)
        assert bench(Candidate(Matrix(((8,), (8,))))).samples_per_second > 0
        assert len(servers) == 1  # it was started again, not given up
        broken = replace(subject_of(ensemble), members=(broken_member(ensemble.members[0], spec.parent),))
        failed = harness.Bench(broken, ensemble.signature, pace, triton)(Candidate(Matrix(((8,), (0,)))))
        assert failed.samples_per_second == 0
        assert failed.reason
        assert bench(Candidate(Matrix(((32,), (0,))))).samples_per_second > 0


def test_a_member_that_takes_more_memory_than_there_is_is_told_with_its_device(spec: Path) -> None:
    documents = load_documents(spec)
    ensemble = find_ensemble(documents, overridden(documents.deployment(), BEST_SINGLE, 1))
    subject, profiles = profiled(ensemble)
    hungry = replace(subject, members=(hungry_member(ensemble.members[0], spec.parent),), chosen=())
    with harness.Triton() as triton:
        bench = harness.Bench(hungry, ensemble.signature, pace_of(subject, profiles), triton)
        failed = bench(Candidate(Matrix(((0,), (8,)))))
    assert (failed.samples_per_second, failed.device) == (0, 1)
    assert failed.reason is not None
    assert "hungry--cpu1--b8" in failed.reason


def test_members_whose_processes_cannot_start_end_it_at_once_in_their_own_words(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_process_starts(monkeypatch)
    changed = spec.with_name("broken.yaml")
    changed.write_text(without(DOCUMENTS, "segmentSize: 32", "segmentSize: 40"))  # so that nothing is known yet
    with pytest.raises(UserError) as told:
        verb(allocate, "--spec", str(changed))
    assert "the server cannot serve the members even at the smallest batch size: " in told.value.problem
    assert "tiny-0001--" in told.value.problem
    assert "its process ended with exit code 127 before it could answer" in told.value.problem
    assert "stub: error while loading shared libraries: libpython3.so" in told.value.problem


def broken_member(member: Member, folder: Path) -> Member:
    (folder / "broken.onnx").write_bytes(b"no network")
    return member.model_copy(update={"model_id": "broken", "onnx": str(folder / "broken.onnx")})


def hungry_member(member: Member, folder: Path) -> Member:
    """The network, with 2^50 numbers beside it when it runs."""
    model = onnx.load(member.onnx)
    output = model.graph.node[-1].output[0]
    model.graph.node[-1].output[0] = "lean"
    model.graph.node.extend(
        [
            helper.make_node("Shape", ["INPUT"], ["shape"], start=0, end=1),
            helper.make_node("Mul", ["shape", "many"], ["much"]),
            helper.make_node("ConstantOfShape", ["much"], ["zeros"]),
            helper.make_node("ReduceMax", ["zeros"], ["zero"], keepdims=0),
            helper.make_node("Add", ["lean", "zero"], [output]),
        ]
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2**50]), "many"))
    onnx.save(model, folder / "hungry.onnx")
    return member.model_copy(update={"model_id": "hungry", "onnx": str(folder / "hungry.onnx")})


def without(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


Change = Callable[[str], str]


@pytest.mark.parametrize(
    ("change", "arguments", "where", "words"),
    [
        (lambda t: without(t, "count: 2", "count: 60"), (), "spec.devices[0].count", ("60", "cores")),
        (
            lambda t: without(t, "count: 2", "count: 1, memoryMiB: 64"),
            (),
            "spec.devices[0]",
            ("needs", "of 64 MiB left", "MiB too few"),
        ),
        (
            lambda t: without(t, "segmentSize: 32", "segmentSize: 32, quorum: 3"),
            (),
            "spec.serving.quorum",
            ("3 is more than the ensemble's 2 members",),
        ),
        (lambda t: t, ("--budget", "none"), "--budget", ("none has no ensemble", "cheapest")),
        (
            lambda t: t,
            ("--budget", "some"),
            "--budget",
            ("some is none of the budgets all, none, best-single",),
        ),
        (lambda t: t, ("--max-benchmarks", "0"), "--max-benchmarks", ("0", "greater than or equal to 1")),
        (
            lambda t: without(t, "weights: [0]", "weights: [0.5]"),
            (),
            "spec.selectionRef.name",
            ("run `ensemble select",),
        ),
    ],
    ids=["cores", "memory", "quorum", "no ensemble", "no budget", "no benchmarks", "not selected"],
)
def test_bad_input_is_named_and_nothing_is_written(
    spec: Path, change: Change, arguments: tuple[str, ...], where: str, words: tuple[str, ...]
) -> None:
    changed = spec.with_name("changed.yaml")
    changed.write_text(change(DOCUMENTS))
    before = sorted(str(path) for path in spec.parent.rglob("*.json"))
    with pytest.raises(UserError) as refused:
        verb(allocate, "--spec", str(changed), *arguments)
    assert refused.value.where.endswith(where)
    assert all(word in refused.value.problem for word in words), refused.value.problem
    assert sorted(str(path) for path in spec.parent.rglob("*.json")) == before


def test_a_plan_that_was_not_allocated_is_not_served(spec: Path) -> None:
    documents = load_documents(spec)
    with pytest.raises(UserError, match=r"run `ensemble allocate .* --budget all` first"):
        load_plan(documents, overridden(documents.deployment(), None, 17))
