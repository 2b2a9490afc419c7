"""Members in half precision by the real OpenVINO and the real server: judged by validation samples, then served."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tests.integration.test_allocate_triton import DOCUMENTS, SAMPLES, SIGNATURE, images, network, publish, verb

from ensemble_core import engines
from ensemble_core.allocation.prepare import find_ensemble, load_allocation, load_plan, profiled
from ensemble_core.api.common import Storage
from ensemble_core.api.documents import load_documents
from ensemble_core.commands import allocate, profile, select
from ensemble_core.devices import cpu_device_type
from ensemble_core.engines import Engine
from ensemble_core.library.library import Library
from ensemble_core.library.records import SPLITS, Profile
from ensemble_core.library.splits import LabelledIds, make_header
from ensemble_core.library.store import open_store
from ensemble_core.profiling import measure
from ensemble_core.profiling.half import CHANGED
from ensemble_core.serving.client import ask
from ensemble_core.serving.server import TritonServer

pytestmark = pytest.mark.timeout(600)

KIND = cpu_device_type(1)
HERE: tuple[Engine, ...] = tuple(each for each in ("openvino-bf16", "openvino-fp16") if engines.version_of(each))
HALF: Engine = HERE[0] if HERE else "openvino-bf16"
computes_so = pytest.mark.skipif(not HERE, reason="this CPU computes in neither BF16 nor FP16")


def cancels(path: Path) -> None:
    """The first network, of which half precision leaves nothing: differences of large numbers, at half the scale."""
    network(1, path)
    model = onnx.load(path)
    (weights,) = model.graph.initializer
    small = numpy_helper.to_array(weights)
    large = np.random.default_rng(0).uniform(8, 16, small.shape).astype(np.float32)
    model.graph.initializer.pop()
    model.graph.initializer.extend(
        [numpy_helper.from_array(0.5 * small + large, "plus"), numpy_helper.from_array(large, "minus")]
    )
    cast, flatten, _, softmax = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(
        [
            cast,
            flatten,
            helper.make_node("MatMul", ["flat", "plus"], ["one"]),
            helper.make_node("MatMul", ["flat", "minus"], ["other"]),
            helper.make_node("Sub", ["one", "other"], ["logits"]),
            softmax,
        ]
    )
    onnx.save(model, path)


class Place:
    """Documents that ask for half precision beside a library of two models, of which the first alone bears it."""

    def __init__(self, folder: Path, half: Engine = HALF) -> None:
        self.spec = folder / "tiny.yaml"
        self.spec.write_text(
            DOCUMENTS.replace("optimization:\n    {", f"optimization:\n    {{engines: [openvino, {half}], ")
        )
        network(1, folder / "network.onnx")
        run = engines.loader("onnxruntime")(folder / "network.onnx", engines.Place(1, (), None, SAMPLES)).run
        splits = {
            split: LabelledIds(
                np.array([f"{split}-{i}" for i in range(SAMPLES)]), run(images(split)).argmax(axis=1).astype(np.int64)
            )
            for split in SPLITS
        }
        header = make_header(SIGNATURE, ["a", "b", "c"], splits)
        self.library = Library.create(open_store(Storage(path=str(folder / "library"))), header, splits)
        publish(self.library, 1, folder / "model-1")
        publish(self.library, 2, folder / "model-2", cancels)

    def profile(self, model: str, engine: str) -> Profile:
        found = self.library.profile(KIND, engine, model)
        assert found is not None
        return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = Place(tmp_path_factory.mktemp("half"))
    made.library.keep_inputs(images("validation"), "inputs")
    assert verb(profile, "--spec", str(made.spec)) == 0
    assert verb(select, "--spec", str(made.spec)) == 0
    return made


@computes_so
def test_what_half_precision_does_to_models_is_told_and_kept(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert verb(profile, "--spec", str(place.spec), "--compare", "8") == 0
    told = capsys.readouterr().out.splitlines()
    kept = place.library.inputs()
    assert kept is not None
    for engine in HERE:
        good, bad = place.profile("tiny-0001", engine), place.profile("tiny-0002", engine)
        assert good.refused is None
        assert good.accuracy is not None
        assert (good.accuracy.samples, good.accuracy.float32.error) == (SAMPLES, 0.0)
        assert good.accuracy.changed <= CHANGED
        assert good.accuracy.half.cross_entropy != good.accuracy.float32.cross_entropy  # it really is another one
        assert good.batches
        assert {good.inputs, bad.inputs} == {kept.file.sha256}
        assert bad.accuracy is not None
        assert bad.accuracy.half.cross_entropy > bad.accuracy.float32.cross_entropy + 0.001
        assert bad.refused is not None
        assert any(line.startswith(f"tiny-0001 by {engine}: cross-entropy ") for line in told)
        assert f"tiny-0002 is not for {engine}: {bad.refused}" in told
    assert place.profile("tiny-0001", "openvino").accuracy is None
    assert verb(profile, "--spec", str(place.spec), "--compare", "8") == 0
    assert capsys.readouterr().out.splitlines()[:-1] == told[:-1]


@computes_so
def test_a_member_that_bears_half_precision_is_served_in_it(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    documents = load_documents(place.spec)
    profiled(find_ensemble(documents, documents.deployment()))
    stored = place.profile("tiny-0001", HALF)
    faster = tuple(
        batch.model_copy(update={"seconds": batch.seconds / 100, "passes": tuple(each / 100 for each in batch.passes)})
        for batch in stored.batches
    )
    place.library.write_profile(stored.model_copy(update={"batches": faster}))
    capsys.readouterr()
    assert verb(allocate, "--spec", str(place.spec)) == 0
    output = capsys.readouterr().out
    assert f"  {HALF} runs tiny-0001 on " in output
    assert f"  tiny-0001 by {HALF}: cross-entropy " in output
    found, plan = load_allocation(documents, documents.deployment()), load_plan(documents, documents.deployment())
    assert found.in_half
    assert f", {HALF} {engines.version_of('openvino')}" in found.server.engine
    assert {worker.engine for worker in plan.workers} == {HALF}
    samples = images("heldout")
    direct = engines.loader(HALF)(Path(plan.members[0].onnx), engines.Place(1, (), None, SAMPLES)).run(samples)
    stored_answers = place.library.predictions(place.library.model("tiny-0001"), "heldout")
    with TritonServer() as server:
        server.apply(plan)
        answers = ask(server.url, plan.name, samples)
    assert np.abs(answers - direct).max() < 1e-3
    assert 1e-5 < np.abs(answers - stored_answers).max() < 0.1  # half precision shows, and does no harm
    assert (answers.argmax(axis=1) == place.library.labels("heldout")).mean() > 0.9


@computes_so
def test_without_validation_samples_members_stay_as_they_are_and_why_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place(tmp_path)
    assert verb(profile, "--spec", str(place.spec), "--compare", "8") == 0
    told = f"{place.library.store.url}: keeps no validation samples, by which half precision is checked: run "
    assert [line.startswith(told) for line in capsys.readouterr().out.splitlines()].count(True) == 1
    assert place.library.profile(KIND, HALF, "tiny-0001") is None
    assert verb(select, "--spec", str(place.spec)) == 0
    documents = load_documents(place.spec)
    said: list[str] = []
    subject, _ = profiled(find_ensemble(documents, documents.deployment()), said.append)
    assert any(
        f" not used: {place.library.store.url}: keeps no validation samples" in line
        and "`ensemble library inputs`" in line
        for line in said
    )
    assert HALF not in {engine for own in subject.chosen for chosen in own.values() for engine in chosen.values()}


@computes_so
def test_models_that_were_scored_on_other_samples_stay_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place(tmp_path)
    place.library.keep_inputs(images("validation")[::-1].copy(), "inputs")
    assert verb(profile, "--spec", str(place.spec), "--compare", "8") == 0
    assert "these validation samples do not go with the predictions of tiny-0001" in capsys.readouterr().out
    assert verb(select, "--spec", str(place.spec)) == 0
    documents = load_documents(place.spec)
    said: list[str] = []
    subject, _ = profiled(find_ensemble(documents, documents.deployment()), said.append)
    assert re.match(
        rf"{HALF} is not used for tiny-0001 on {KIND}: .*inputs-[0-9a-f]{{16}}\.npy: these validation samples do not ",
        said[-1],
    )
    assert HALF not in {engine for own in subject.chosen for chosen in own.values() for engine in chosen.values()}
    assert place.library.profile(KIND, HALF, "tiny-0001") is None
    place.library.keep_inputs(images("validation"), "inputs")
    said.clear()
    other, _ = profiled(find_ensemble(documents, documents.deployment()), said.append)
    assert said == [f"measuring tiny-0001 on {KIND} with {HALF}"]
    assert other.digest() != subject.digest()


# The measuring process on a CPU that says of itself that it computes in BF16 alone, and then does not.
AS_IF = """
from dataclasses import replace
from ensemble_core import engines
from ensemble_core.profiling import child

engines.cpu_precisions = lambda: frozenset({"FP32", "BF16"})
engines._HINTS["bf16"] = "f32"
load = engines.loader


def loader(engine):
    def changed(path, place):
        model = load(engine)(path, place)
        return replace(model, run=lambda rows: model.run(rows)[:, ::CHANGE]) if "-" in engine else model

    return changed


engines.loader = loader
child.main()
"""


@pytest.mark.parametrize("change", [1, -1], ids=("as good", "worse"))
def test_from_samples_to_the_verdict_on_whatever_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: int
) -> None:
    monkeypatch.setattr(engines, "cpu_precisions", lambda: frozenset({"FP32", "BF16"}))
    monkeypatch.setattr(measure, "CHILD", (sys.executable, "-P", "-c", AS_IF.replace("CHANGE", str(change))))
    place = Place(tmp_path, "openvino-bf16")
    place.library.keep_inputs(images("validation"), "inputs")
    assert verb(profile, "--spec", str(place.spec), "--compare", "8") == 0
    told, kept = capsys.readouterr().out, place.library.inputs()
    found = place.profile("tiny-0001", "openvino-bf16")
    assert kept is not None
    assert found.inputs == kept.file.sha256
    assert found.accuracy is not None
    assert found.accuracy.samples == SAMPLES
    assert found.batches
    assert (found.refused is None, found.accuracy.changed > 0.1) == (change == 1, change == -1)
    assert f"tiny-0001 by openvino-bf16: cross-entropy {found.accuracy.half.cross_entropy:.4f} " in told or change == -1
    assert (f"tiny-0001 is not for openvino-bf16: {found.refused}" in told) is (change == -1)
    assert verb(select, "--spec", str(place.spec)) == 0
    documents, said = load_documents(place.spec), list[str]()
    subject, profiles = profiled(find_ensemble(documents, documents.deployment()), said.append)
    assert subject.judged_by == (kept.file.sha256,) * len(subject.members)
    judged = {engine for own in profiles for figures in own.values() for engine in figures.accuracies}
    assert judged == ({"openvino-bf16"} if change == 1 else set())


def test_a_cpu_that_does_not_compute_so_is_told_in_one_line(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engines, "cpu_precisions", lambda: frozenset({"FP32"}))
    said: list[Any] = []
    documents = load_documents(place.spec)
    subject, _ = profiled(find_ensemble(documents, documents.deployment()), said.append)
    reason = f"{HALF} is not used: this CPU does not compute in {engines.HALF[HALF]}"
    assert [line for line in said if not line.startswith("measuring")] == [reason]
    assert HALF not in subject.server.engine
