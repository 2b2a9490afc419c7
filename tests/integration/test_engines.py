"""Members run by ONNX Runtime and by OpenVINO: what is measured, what is chosen, and what the real server answers."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.integration.test_allocate_triton import DOCUMENTS, SAMPLES, SIGNATURE, images, network, publish, verb

from ensemble_core import engines
from ensemble_core.allocation.plan import DeviceRow, Member, Plan, Worker
from ensemble_core.allocation.prepare import find_ensemble, load_allocation, load_plan, profiled
from ensemble_core.api.common import Storage
from ensemble_core.api.documents import load_documents
from ensemble_core.commands import allocate, profile, select
from ensemble_core.devices import cpu_device_type
from ensemble_core.library.library import Library
from ensemble_core.library.records import SPLITS, Profile
from ensemble_core.library.splits import LabelledIds, make_header
from ensemble_core.library.store import open_store
from ensemble_core.profiling.child import TOLERANCE
from ensemble_core.serving.client import ask
from ensemble_core.serving.errors import LoadError
from ensemble_core.serving.server import TritonServer

pytestmark = pytest.mark.timeout(600)

KIND = cpu_device_type(1)
UNKNOWN = "No conversion rule found for operations: com.microsoft.SampleOp"


def unknown_to_openvino(path: Path) -> None:
    """Put an identity at the model's end that ONNX Runtime has and OpenVINO has not."""
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    _end_with(model, helper.make_node("SampleOp", ["inner"], ["PROBABILITIES"], domain="com.microsoft"))
    onnx.save(model, path)


def random_at_its_end(path: Path) -> None:
    """Add noise to a model's answers, of which every engine draws its own."""
    model = onnx.load(path)
    _end_with(
        model,
        helper.make_node("RandomNormalLike", ["inner"], ["noise"], scale=0.01, seed=1.0),
        helper.make_node("Add", ["inner", "noise"], ["PROBABILITIES"]),
    )
    onnx.save(model, path)


def _end_with(model: onnx.ModelProto, *nodes: onnx.NodeProto) -> None:
    model.graph.node[-1].output[0] = "inner"
    model.graph.node.extend(nodes)


class Place:
    """Documents beside a library of two models, of which the second is changed; both are selected."""

    def __init__(self, folder: Path, change: Any) -> None:
        self.spec = folder / "tiny.yaml"
        self.spec.write_text(DOCUMENTS)
        splits = {
            split: LabelledIds(
                np.array([f"{split}-{i}" for i in range(SAMPLES)]), np.arange(SAMPLES) % SIGNATURE.classes
            )
            for split in SPLITS
        }
        storage = open_store(Storage(path=str(folder / "library")))
        self.library = Library.create(storage, make_header(SIGNATURE, ["a", "b", "c"], splits), splits)
        for seed in (1, 2):
            publish(self.library, seed, folder / f"model-{seed}", change if seed == 2 else None)

    def profile(self, model: str, engine: str) -> Profile:
        found = self.library.profile(KIND, engine, model)
        assert found is not None
        return found

    def make_faster(self, model: str, engine: str, factor: float) -> None:
        """As if a model had been measured so many times faster."""
        stored = self.profile(model, engine)
        batches = tuple(
            batch.model_copy(
                update={"seconds": batch.seconds / factor, "passes": tuple(each / factor for each in batch.passes)}
            )
            for batch in stored.batches
        )
        self.library.write_profile(stored.model_copy(update={"batches": batches}))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = Place(tmp_path_factory.mktemp("engines"), unknown_to_openvino)
    assert verb(profile, "--spec", str(made.spec)) == 0
    assert verb(select, "--spec", str(made.spec)) == 0
    return made


def test_every_engine_is_measured_and_told_in_one_table(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    before = place.profile("tiny-0001", "onnxruntime")
    assert verb(profile, "--spec", str(place.spec), "--compare", "1,8") == 0
    told = capsys.readouterr().out.splitlines()
    rows = [tuple(line.split()[:3]) for line in told if line.startswith("tiny-")]
    assert rows[:6] == [
        ("tiny-0001", engine, size) for engine in ("onnxruntime", "openvino") for size in ["1", "8", "16"]
    ]
    assert f"tiny-0002 is not for openvino: {UNKNOWN}" in told
    after, other = place.profile("tiny-0001", "onnxruntime"), place.profile("tiny-0001", "openvino")
    assert set(before.batches) < set(after.batches)  # what selections count with is as it was
    assert (other.engine_version, after.engine_version) == tuple(map(engines.version_of, ("openvino", "onnxruntime")))
    assert other.largest_difference is not None
    assert other.largest_difference <= TOLERANCE["openvino"]
    assert (other.agreement, other.refused) == (1.0, None)
    assert other.load_seconds > 0
    assert all(10 < batch.memory_mib < 1000 for batch in other.batches)
    assert place.profile("tiny-0002", "openvino").batches == ()
    assert verb(profile, "--spec", str(place.spec), "--compare", "1,8") == 0
    assert capsys.readouterr().out.splitlines() == [*told[:-1], f"0 models measured on {KIND}, 2 were known"]


def test_what_is_faster_is_served_and_what_an_engine_cannot_load_falls_back(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = load_documents(place.spec)
    ensemble = find_ensemble(documents, documents.deployment())
    told: list[str] = []
    profiled(ensemble, told.append)
    assert f"openvino is not used for tiny-0002 on {KIND}: {UNKNOWN}" in told
    place.make_faster("tiny-0001", "openvino", 100)
    capsys.readouterr()
    assert verb(allocate, "--spec", str(place.spec)) == 0
    output = capsys.readouterr().out
    assert f"openvino is not used for tiny-0002 on {KIND}: {UNKNOWN}" in output
    assert "  openvino runs tiny-0001 on " in output
    found = load_allocation(documents, documents.deployment())
    assert (
        found.server.engine
        == f"onnxruntime {engines.version_of('onnxruntime')}, openvino {engines.version_of('openvino')}"
    )
    plan = load_plan(documents, documents.deployment())
    used = {(plan.members[worker.member].model_id, worker.engine) for worker in plan.workers}
    assert used == {("tiny-0001", "openvino"), ("tiny-0002", "onnxruntime")}
    expected = sum(
        member.weight * place.library.predictions(place.library.model(member.model_id), "heldout")
        for member in plan.members
    )
    with TritonServer() as server:
        server.apply(plan)
        assert np.abs(ask(server.url, plan.name, images("heldout")) - expected).max() < 1e-5

    changed = place.spec.with_name("without.yaml")
    changed.write_text(DOCUMENTS.replace("optimization:\n    {", "optimization:\n    {engines: [], "))
    assert verb(allocate, "--spec", str(changed)) == 0
    documents = load_documents(changed)
    alone = load_allocation(documents, documents.deployment())
    assert alone.digest != found.digest
    assert alone.engines == ()
    assert alone.server.engine == f"onnxruntime {engines.version_of('onnxruntime')}"


def test_a_model_that_an_engine_answers_otherwise_is_not_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place(tmp_path, random_at_its_end)
    assert verb(profile, "--spec", str(place.spec), "--compare", "8") == 0
    assert "tiny-0002 is not for openvino: answers differ by up to 0.0" in capsys.readouterr().out
    refused = place.profile("tiny-0002", "openvino")
    assert refused.largest_difference is not None
    assert refused.largest_difference > TOLERANCE["openvino"]
    assert refused.refused is not None


def test_a_profile_of_another_version_is_measured_anew(place: Place) -> None:
    documents = load_documents(place.spec)
    ensemble = find_ensemble(documents, documents.deployment())
    for engine in ("onnxruntime", "openvino"):
        stored = place.profile("tiny-0001", engine)
        place.library.write_profile(stored.model_copy(update={"engine_version": "0.1"}))
    told: list[str] = []
    profiled(ensemble, told.append)
    measured = [f"measuring tiny-0001 on {KIND} with {engine}" for engine in ("onnxruntime", "openvino")]
    assert [each for each in told if each.startswith("measuring")] == measured
    for engine in ("onnxruntime", "openvino"):
        assert place.profile("tiny-0001", engine).engine_version == engines.version_of(engine)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("members")
    for seed in (0, 1):
        network(seed, made / f"{seed}.onnx")
    return made


def plan_of(folder: Path, *by: engines.Engine) -> Plan:
    """Two members, each on a core, by one engine each."""
    members = tuple(
        Member(
            model_id=f"m-{i}",
            weight=(0.7, 0.3)[i],
            onnx=str(path),
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for i, path in enumerate((folder / "0.onnx", folder / "1.onnx"))
    )
    cores = sorted(os.sched_getaffinity(0))
    devices = tuple(
        DeviceRow(
            name=f"cpu{i}", type="cpu", ordinal=i, cores=(cores[i % len(cores)],), memory_mib=1000, device_type=KIND
        )
        for i in (0, 1)
    )
    workers = tuple(Worker(member=i, device=f"cpu{i}", batch_size=16, engine=engine) for i, engine in enumerate(by))
    return Plan(
        name="both", signature=SIGNATURE, segment_size=32, max_batch_size=128, members=members, devices=devices,
        workers=workers,
    )  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[TritonServer]:
    with TritonServer() as running:
        yield running


def libraries_of(server: TritonServer, model: str) -> str:
    """Files that the process of a model has in memory."""
    return Path(f"/proc/{server.stub(model)}/maps").read_text()


def test_members_of_different_engines_answer_their_mean(server: TritonServer, folder: Path) -> None:
    plan = plan_of(folder, "onnxruntime", "openvino")
    server.apply(plan)
    samples = images("validation")
    direct = [
        engines.loader(worker.engine)(Path(plan.members[worker.member].onnx), engines.Place(1, (), None, 16)).run(
            samples
        )
        for worker in plan.workers
    ]
    expected = 0.7 * direct[0].astype(np.float64) + 0.3 * direct[1].astype(np.float64)
    for _ in range(3):
        assert np.abs(ask(server.url, "both", samples) - expected).max() < 1e-6
    assert np.abs(direct[0] - direct[1]).max() > 0.1  # wrong members would show
    maps = [libraries_of(server, plan.model_name(worker)) for worker in plan.workers]
    assert ["onnxruntime_pybind11" in each for each in maps] == [True, False]
    assert ["openvino_intel_cpu_plugin" in each for each in maps] == [False, True]


def test_a_member_moves_from_one_engine_to_another(server: TritonServer, folder: Path) -> None:
    samples = images("validation")
    server.apply(plan_of(folder, "onnxruntime", "onnxruntime"))
    before = ask(server.url, "both", samples)
    plan = plan_of(folder, "openvino", "openvino")
    server.apply(plan)
    assert np.abs(ask(server.url, "both", samples) - before).max() < 1e-5
    assert all("openvino_intel_cpu_plugin" in libraries_of(server, name) for name in plan.models - {"both"})


def test_an_engine_that_is_not_installed_is_named_at_load(server: TritonServer, folder: Path) -> None:
    server.apply(plan_of(folder, "onnxruntime", "onnxruntime"))
    copied = server.folder / "backends" / "member" / "engines.py"
    text = copied.read_text()
    copied.write_text(text.replace("    import openvino\n", "    import openvino_elsewhere\n"))
    with pytest.raises(LoadError) as told:
        server.apply(plan_of(folder, "onnxruntime", "openvino"))
    copied.write_text(text)
    assert np.isfinite(ask(server.url, "both", images("validation"))).all()
    assert "m-1--cpu1--b16--openvino" in str(told.value)
    assert "the engine openvino is not installed: No module named 'openvino_elsewhere'" in str(told.value)


def test_openvino_tells_nobody_that_it_was_imported() -> None:
    program = "import sys; from ensemble_core import engines; engines.loader('openvino'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "openvino" in loaded
    assert not [name for name in loaded if name.startswith("openvino_telemetry.")]
