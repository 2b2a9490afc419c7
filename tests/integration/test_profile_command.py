"""`ensemble profile` on real ONNX models in real processes, and `ensemble select` on what it measured."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from ensemble_core.api.common import Storage
from ensemble_core.cli import main
from ensemble_core.devices import cpu_device_type
from ensemble_core.errors import UserError
from ensemble_core.library.library import Library
from ensemble_core.library.records import ModelRecord, Origin, Profile, Signature
from ensemble_core.library.splits import LabelledIds, make_header
from ensemble_core.library.store import LocalStore, open_store
from ensemble_core.metrics import metrics
from ensemble_core.profiling import measure as measuring

CLASSES, PIXELS = 5, 16


def write_model(path: Path, seed: int, hidden: int) -> None:
    """A network uint8 [-1, 16] → float32 [-1, 5] with one hidden layer."""
    random = np.random.default_rng(seed)
    weights = {
        "W1": random.normal(size=(PIXELS, hidden)).astype(np.float32),
        "W2": random.normal(size=(hidden, CLASSES)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["INPUT"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "W1"], ["h"]),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("MatMul", ["t", "W2"], ["z"]),
        helper.make_node("Softmax", ["z"], ["PROBABILITIES"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("INPUT", TensorProto.UINT8, [None, PIXELS])],
        [helper.make_tensor_value_info("PROBABILITIES", TensorProto.FLOAT, [None, CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


class Workplace:
    """A library of ONNX models, and a document that selects from it."""

    def __init__(self, folder: Path) -> None:
        random = np.random.default_rng(0)
        self.folder = folder
        self.labels = random.integers(0, CLASSES, 40)
        ids = np.array([f"s{i}" for i in range(40)])
        splits = {
            "validation": LabelledIds(ids[:20], self.labels[:20]),
            "heldout": LabelledIds(ids[20:], self.labels[20:]),
        }
        signature = Signature(input_type="uint8", input_shape=(PIXELS,), classes=CLASSES)
        header = make_header(signature, [f"c{i}" for i in range(CLASSES)], splits)
        self.library = Library.create(open_store(Storage(path=str(folder / "library"))), header, splits)

    def add(self, name: str, model: bytes, servable: bool = True) -> None:
        probabilities = np.random.default_rng(len(name)).dirichlet(np.ones(CLASSES), 40).astype(np.float32)
        files = {"predictions-validation.npy": probabilities[:20], "predictions-heldout.npy": probabilities[20:]}
        paths = {key: self.folder / key for key in files}
        for key, array in files.items():
            np.save(paths[key], array, allow_pickle=False)
        if servable:
            paths["model.onnx"] = self.folder / "model.onnx"
            paths["model.onnx"].write_bytes(model)
        record = ModelRecord(
            id=name,
            family="test",
            hyperparameters={},
            validation=metrics(probabilities[:20], self.labels[:20]),
            origin=Origin(),
            servable=servable,
            files={},
        )
        self.library.publish(record, paths)

    def add_network(self, name: str, hidden: int) -> None:
        write_model(self.folder / "net.onnx", seed=hidden, hidden=hidden)
        self.add(name, (self.folder / "net.onnx").read_bytes())

    def run(self, verb: str, **cost: Any) -> int:
        budgets = [{"name": "all", "inferenceTimeSeconds": 1000}]
        spec = {"sources": [{"storage": {"path": "library"}}], "budgets": budgets, "cost": cost}
        head = {"apiVersion": "ensemble-operator.io/v1alpha1", "kind": "EnsembleSelection", "metadata": {"name": "s"}}
        (self.folder / "s.yaml").write_text(yaml.safe_dump({**head, "spec": spec}))
        return main([verb, "--spec", str(self.folder / "s.yaml"), "--report", f"file:{self.folder / 'report.json'}"])

    def profiles(self) -> dict[str, Profile]:
        return self.library.profiles(cpu_device_type(1), "onnxruntime")


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the models for which a measuring process was started."""
    started: list[str] = []
    original = measuring.measure

    def counted(record: ModelRecord, *arguments: Any) -> Any:
        started.append(record.id)
        return original(record, *arguments)

    monkeypatch.setattr(measuring, "measure", counted)
    return started


def test_a_library_that_cannot_be_written_is_told_before_anything_is_measured(
    workplace: Workplace, measured: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(store: LocalStore) -> None:
        raise UserError(store.url, "cannot be written")

    workplace.add_network("small", 8)
    monkeypatch.setattr(LocalStore, "check_writable", refuse)
    assert workplace.run("profile") == 2
    assert measured == []
    assert f"{workplace.library.store.url}: cannot be written" in capsys.readouterr().err


def test_models_are_measured_once_and_then_selected_from(
    workplace: Workplace, measured: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    workplace.add_network("small", 8)
    workplace.add_network("large", 256)
    workplace.add("predictions-only", b"", servable=False)
    assert workplace.run("profile") == 0
    profiles = workplace.profiles()
    assert set(profiles) == {"small", "large"}
    for name, profile in profiles.items():
        assert profile.model_sha256 == workplace.library.model(name).files["model.onnx"].sha256
        assert profile.engine_version == onnxruntime.__version__
        assert profile.cores == 1
        assert [batch.batch_size for batch in profile.batches] == [8, 32]
        for batch in profile.batches:
            assert len(batch.passes) == 5
            assert batch.seconds == sorted(batch.passes)[2]
            assert 10 < batch.memory_mib < 500
            assert batch.foreign_cores >= 0
    assert workplace.run("profile") == 0
    assert sorted(measured) == ["large", "small"]
    assert workplace.run("select") == 0
    assert "budget all: " in capsys.readouterr().out


def test_only_what_is_missing_is_measured(workplace: Workplace, measured: list[str]) -> None:
    workplace.add_network("first", 8)
    assert workplace.run("profile") == 0
    before = workplace.profiles()["first"]
    workplace.add_network("second", 16)
    assert workplace.run("profile") == 0
    assert measured == ["first", "second"]
    assert workplace.run("profile", batchSize=64) == 0
    after = workplace.profiles()["first"]
    assert [batch.batch_size for batch in after.batches] == [8, 32, 64]
    assert after.batches[:2] == before.batches
    stale = after.model_copy(update={"engine_version": "0.1"})
    workplace.library.write_profile(stale)
    assert workplace.run("profile") == 0
    assert measured[-1] == "first"
    assert [batch.batch_size for batch in workplace.profiles()["first"].batches] == [8, 32]


def test_an_interrupted_run_is_continued(
    workplace: Workplace, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        workplace.add_network(name, 8)
    counted = measuring.measure

    def interrupted(record: ModelRecord, *arguments: Any) -> Any:
        if record.id == "b":
            raise KeyboardInterrupt
        return counted(record, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "measure", interrupted)
        assert workplace.run("profile") == 130
    assert set(workplace.profiles()) == {"a"}
    assert workplace.run("profile") == 0
    assert measured == ["a", "b", "c"]


def test_a_model_that_cannot_be_measured_does_not_stop_the_others(
    workplace: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    workplace.add("broken", b"this is no ONNX file")
    workplace.add_network("working", 8)
    assert workplace.run("profile") == 1
    assert set(workplace.profiles()) == {"working"}
    assert "broken: " in capsys.readouterr().err
    report = (workplace.folder / "report.json").read_text()
    assert '"state": "Failed"' in report
    assert "1 model could not be measured: broken: " in report


def test_a_process_that_is_killed_is_told_as_such(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workplace.add_network("victim", 8)
    python = workplace.folder / "python"
    python.write_text("#!/bin/sh\nkill -9 $$\n")
    python.chmod(0o755)
    monkeypatch.setattr(measuring, "CHILD", (str(python),))
    assert workplace.run("profile") == 1
    assert "victim: the process was killed by signal 9" in capsys.readouterr().err


def test_a_device_that_is_not_here_is_bad_input(workplace: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    workplace.add_network("small", 8)
    assert workplace.run("profile", deviceType="gpu-nvidia-none-1mib") == 2
    assert f"gpu-nvidia-none-1mib is not here; with coresPerDevice 1 this machine has {cpu_device_type(1)}" in (
        capsys.readouterr().err
    )
    assert workplace.run("profile", coresPerDevice=256) == 2
    available = len(os.sched_getaffinity(0))
    assert f"256 is more than the {available} cores that this process may use" in capsys.readouterr().err
    assert workplace.profiles() == {}
