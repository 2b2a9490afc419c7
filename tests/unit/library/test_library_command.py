"""`ensemble library` as a user types it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ensemble_core.allocation.result import Throughput
from ensemble_core.commands import library as command
from ensemble_core.engines import Engine, Place, loader
from ensemble_core.errors import UserError
from ensemble_core.library import Library, LocalStore
from ensemble_core.library.records import BatchProfile, Claim, ModelRecord, Profile
from ensemble_core.metrics import metrics

Publish = Callable[..., ModelRecord]


def ensemble(*words: object) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., Path]:
    """Writes an ONNX classifier of 4×4 images into three classes."""

    def make(
        name: str = "INPUT",
        sample: tuple[object, ...] = ("N", 4, 4, 1),
        kind: int = TensorProto.UINT8,
        softmax: bool = True,
        others: tuple[str, ...] = (),
    ) -> Path:
        weights = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
        nodes = [
            helper.make_node("Cast", [name], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["f"], ["flat"], axis=1),
            helper.make_node("Gemm", ["flat", "w", "b"], ["z"]),
            helper.make_node("Softmax" if softmax else "Identity", ["z"], ["PROBABILITIES"]),
        ]
        graph = helper.make_graph(
            nodes,
            "classifier",
            [helper.make_tensor_value_info(name, kind, sample)],
            [helper.make_tensor_value_info(each, TensorProto.FLOAT, ("N", 3)) for each in (*others, "PROBABILITIES")],
            [
                helper.make_tensor("w", TensorProto.FLOAT, (16, 3), weights.ravel()),
                helper.make_tensor("b", TensorProto.FLOAT, (3,), [0.5, 0.5, 0.5]),
            ],
        )
        path = tmp_path / "classifier.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
        return path

    return make


@pytest.fixture
def shelf(tmp_path: Path) -> list[str]:
    """Options that import predictions and create the library."""
    rng, options = np.random.default_rng(0), []
    for split, samples in (("validation", 12), ("heldout", 8)):
        np.save(tmp_path / f"p-{split}.npy", rng.dirichlet([1, 1, 1], samples).astype(np.float32))
        np.save(tmp_path / f"l-{split}.npy", (np.arange(samples) % 3).astype(np.uint8))
        options += [f"--predictions-{split}", str(tmp_path / f"p-{split}.npy")]
        options += [f"--labels-{split}", str(tmp_path / f"l-{split}.npy")]
    return [*options, "--create", "--input-type", "uint8", "--input-shape", "4,4,1"]


def test_models_are_listed_best_first(library: Library, publish: Publish, capsys: pytest.CaptureFixture[str]) -> None:
    stored = sorted((publish(seed) for seed in range(3)), key=lambda m: m.validation.cross_entropy)
    assert ensemble("ls", library.store.url) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["MODEL", "FAMILY", "CROSS-ENTROPY", "ERROR", "PARAMETERS", "EPOCHS", "SERVABLE"]
    assert [line.split()[0] for line in lines[1:]] == [model.id for model in stored]
    assert lines[1].split()[1:] == [
        "resnet",
        f"{stored[0].validation.cross_entropy:.4f}",
        f"{stored[0].validation.error:.2%}",
        "1,000",
        "3",
        "yes",
    ]
    assert ensemble("ls", library.store.url, "--json") == 0
    assert [m["id"] for m in json.loads(capsys.readouterr().out)] == [model.id for model in stored]


def test_a_model_is_shown_with_its_profiles(
    library: Library, publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    stored, profile = publish(0), _profile("digits-0000")
    library.write_profile(profile)
    library.write_profile(_profile("digits-0001"))
    assert ensemble("show", library.store.url, "digits-0000") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == {"record": stored.document(), "profiles": [profile.document()]}


def _profile(model: str) -> Profile:
    batch = BatchProfile(batch_size=32, passes=(0.1, 0.2, 0.3), seconds=0.2, memory_mib=50)
    return Profile(
        model=model,
        model_sha256="0" * 64,
        device_type="cpu-epyc-2c",
        engine="onnxruntime",
        engine_version="1.23",
        cores=2,
        load_seconds=0.1,
        batches=(batch,),
    )


def test_verify_tells_every_problem(library: Library, publish: Publish, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = publish(0), publish(1)
    assert ensemble("verify", library.store.url) == 0
    assert "2 models" in capsys.readouterr().out
    damaged = [first.files["model.onnx"].path, second.files["predictions-heldout.npy"].path]
    for path in damaged:
        library.store.write(path, b"damaged")
    library.store.write("models/digits-0002/record.json", b"{}")
    assert ensemble("verify", library.store.url) == 1
    problems = capsys.readouterr().err.splitlines()
    assert [p.split(": ")[0] for p in problems] == [
        f"{library.store.url}/{path}" for path in (*damaged, "models/digits-0002/record.json")
    ]


def test_verify_reads_profiles_searches_and_results_as_their_readers_do(
    library: Library, publish: Publish, claim: Callable[..., Claim], capsys: pytest.CaptureFixture[str]
) -> None:
    publish(0)
    library.write_profile(_profile("digits-0000"))
    library.claim("digits", claim(0))
    library.claim("digits", claim(1))
    throughput = Throughput(samples_per_second=100.0).document()
    library.write_result("benchmarks", "1" * 64, {"matrix": [[8]], "throughput": throughput})
    library.store.write("searches/digits/spec.json", b'{"spec": {}, "startedAt": 1.5}')
    for search in ("other-1", "other-2"):  # what no reader looks at
        library.store.write(f"trials/{search}-0000/1/rung-1.json", b"{")
    assert ensemble("verify", library.store.url) == 0
    assert capsys.readouterr().err == ""
    broken = {
        "searches/digits/spec.json": b'{"spec": {}, "start',
        "trials/digits-0000/claim-1.json": b"{}",
        "trials/digits-0001/1/rung-1.json": b"{}",
        "profiles/cpu-epyc-2c/onnxruntime/digits-0000.json": b'{"model": "digi',
        "profiles/cpu-epyc-2c/onnxruntime/digits-0001.json": profile_text(library, "digits-0000"),
        f"selections/{'2' * 64}.json": b"{}",
        f"selections/{'3' * 64}.json": b"[1",
        f"allocations/{'4' * 64}.json": b"{}",
        f"allocations/{'5' * 64}.json": b'{"name": ',
        f"benchmarks/{'1' * 64}.json": b'{"matrix": [[8]]}',
        f"benchmarks/{'6' * 64}.json": b"",
    }
    for path, data in broken.items():
        library.store.write(path, data)
    assert ensemble("verify", library.store.url) == 1
    told = [line.split(": ")[0] for line in capsys.readouterr().err.splitlines()]
    assert told == [f"{library.store.url}/{path}" for path in broken]


def profile_text(library: Library, model: str) -> bytes:
    return library.store.read(f"profiles/cpu-epyc-2c/onnxruntime/{model}.json")


def test_a_shelf_model_needs_no_search(
    shelf: list[str], model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "library"
    assert ensemble("add", target, *shelf, "--onnx", model(), "--family", "logistic") == 0
    library = Library.open(LocalStore(target))
    (stored,) = library.models()
    assert stored.id == stored.files["model.onnx"].sha256[:16]
    assert (stored.servable, stored.parameters, stored.family) == (True, 51, "logistic")
    assert stored.validation == metrics(np.load(tmp_path / "p-validation.npy"), library.labels("validation"))
    assert library.header.class_names == ("0", "1", "2")
    assert library.ids("heldout").tolist() == [str(i) for i in range(8)]
    assert capsys.readouterr().out.startswith(stored.id)
    before = library.store.entries("")
    assert ensemble("add", target, *shelf, "--onnx", model(), "--family", "logistic") == 0
    assert library.store.entries("") == before


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_model_answers_probabilities_though_its_graph_has_another_output_before(
    shelf: list[str], model: Callable[..., Path], tmp_path: Path, engine: Engine
) -> None:
    samples = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 1), np.uint8)
    wanted = loader("onnxruntime")(model(), Place(1, (), None, 8)).run(samples)
    path = model(others=("z",))
    assert ensemble("add", tmp_path / "library", *shelf, "--onnx", path) == 0
    answers = loader(engine)(path, Place(1, (), None, 8)).run(samples)
    assert answers == pytest.approx(wanted, abs=1e-5)


def test_predictions_alone_are_not_servable(shelf: list[str], tmp_path: Path) -> None:
    assert ensemble("add", tmp_path / "library", *shelf, "--class-names", "x,y,z") == 0
    library = Library.open(LocalStore(tmp_path / "library"))
    (stored,) = library.models()
    assert stored.id == stored.files["predictions-validation.npy"].sha256[:16]
    assert not stored.servable
    assert library.header.class_names == ("x", "y", "z")
    existing = [word for word in shelf if word != "--create"]
    assert ensemble("add", tmp_path / "library", *existing) == 0
    assert library.models() == (stored,)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"name": "images"}, "must have the input INPUT and the output PROBABILITIES, not ['images']"),
        (
            {"sample": ("N", 8, 2, 1)},
            "INPUT is tensor(uint8) ['N', 8, 2, 1], the library's models take uint8 [N, 4, 4, 1]",
        ),
        ({"sample": (1, 4, 4, 1)}, "INPUT is tensor(uint8) [1, 4, 4, 1]"),
        ({"kind": TensorProto.FLOAT}, "INPUT is tensor(float)"),
        ({"softmax": False}, "PROBABILITIES is no probability distribution"),
    ],
)
def test_a_model_of_another_signature_is_refused(
    shelf: list[str], model: Callable[..., Path], tmp_path: Path, options: dict[str, object], told: str
) -> None:
    path = model(**options)
    with pytest.raises(UserError) as error:
        ensemble("add", tmp_path / "library", *shelf, "--onnx", path)
    assert str(error.value).startswith(f"{path}: ")
    assert told in str(error.value)
    assert not (tmp_path / "library").exists()


def test_files_that_are_no_models_are_refused(shelf: list[str], model: Callable[..., Path], tmp_path: Path) -> None:
    path = model()
    content = onnx.load(path)
    content.graph.initializer[0].data_location = TensorProto.EXTERNAL
    content.graph.initializer[0].external_data.add(key="location", value="../../secret")
    for damaged, told in (
        (content.SerializeToString(), "keeps weights in other files"),
        (b"no model", "is no ONNX file"),
        (b"", "ONNX Runtime cannot load it"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{path}: {told}"):
            ensemble("add", tmp_path / "library", *shelf, "--onnx", path)
    path.unlink()
    with pytest.raises(UserError, match=f"{path}: is missing"):
        ensemble("add", tmp_path / "library", *shelf, "--onnx", path)
    assert not (tmp_path / "library").exists()


@pytest.mark.parametrize("inner", [False, True])
def test_a_constant_in_another_file_is_refused(
    shelf: list[str], model: Callable[..., Path], tmp_path: Path, inner: bool
) -> None:
    path = model()
    content = onnx.load(path)
    tensor = TensorProto(data_location=TensorProto.EXTERNAL, data_type=TensorProto.FLOAT, dims=[1])
    tensor.external_data.add(key="location", value="../../secret")
    node = helper.make_node("Constant", [], ["secret"], value=tensor)
    branch = helper.make_graph([node], "branch", [], [])
    content.graph.node.append(helper.make_node("If", ["c"], ["s"], then_branch=branch) if inner else node)
    path.write_bytes(content.SerializeToString())
    with pytest.raises(UserError, match=f"{path}: keeps weights in other files"):
        ensemble("add", tmp_path / "library", *shelf, "--onnx", path)


def test_a_model_that_fails_on_two_samples_is_refused(
    shelf: list[str], model: Callable[..., Path], tmp_path: Path
) -> None:
    path = model()
    content = onnx.load(path)
    content.graph.node[0].input[0] = "one"
    content.graph.node.insert(0, helper.make_node("Reshape", ["INPUT", "shape"], ["one"]))
    content.graph.initializer.append(helper.make_tensor("shape", TensorProto.INT64, [4], [1, 4, 4, 1]))
    path.write_bytes(content.SerializeToString())
    with pytest.raises(UserError, match=f"{path}: ONNX Runtime cannot run it: "):
        ensemble("add", tmp_path / "library", *shelf, "--onnx", path)
    assert not (tmp_path / "library").exists()


@pytest.mark.parametrize(
    ("file", "array", "told"),
    [
        ("p-heldout", np.full((8, 3), 0.5, np.float32), "row 0 is no probability distribution"),
        ("p-heldout", np.full((7, 3), 1 / 3, np.float32), "it must be float32 (8, 3)"),
        ("p-validation", np.ones(12, np.float32), "it must be (N, C)"),
        ("l-heldout", np.full(8, 3), "label 3 of sample 0 is outside the classes 0 to 2"),
        ("l-heldout", np.ones(8), "is float64 (8,); it must be integers"),
        ("l-validation", np.ones((0,), np.int64), "N ≥ 1"),
    ],
)
def test_wrong_arrays_are_refused(shelf: list[str], tmp_path: Path, file: str, array: np.ndarray, told: str) -> None:
    np.save(tmp_path / f"{file}.npy", array)
    with pytest.raises(UserError) as error:
        ensemble("add", tmp_path / "library", *shelf)
    assert str(error.value).startswith(f"{tmp_path}/{file}.npy: ")
    assert told in str(error.value)
    assert not (tmp_path / "library").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--input-shape", "4,x"], "--input-shape: must be 1 to 4 positive integers like 8,8,1, not '4,x'"),
        (["--class-names", "x,y"], "l-validation.npy: label 2 of sample 2 is outside the classes 0 to 1"),
        (["--class-names", "x,y,x"], "classNames: must be 3 different names"),
    ],
)
def test_wrong_options_are_refused(shelf: list[str], tmp_path: Path, options: list[str], told: str) -> None:
    with pytest.raises(UserError) as error:
        ensemble("add", tmp_path / "library", *shelf, *options)
    assert told in str(error.value)
    assert not (tmp_path / "library").exists()


def test_creation_needs_its_options(shelf: list[str], tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="--create: needs --labels-validation, --labels-heldout, --input-type, --input-shape too"
    ):
        ensemble("add", tmp_path / "library", *shelf[:2], *shelf[4:6], "--create")
    with pytest.raises(UserError, match="is no model library"):
        ensemble("add", tmp_path / "library", *shelf[:2], *shelf[4:6])


def test_another_model_of_the_same_id_is_refused(shelf: list[str], model: Callable[..., Path], tmp_path: Path) -> None:
    ensemble("add", tmp_path / "library", *shelf, "--onnx", model())
    np.save(tmp_path / "p-heldout.npy", np.full((8, 3), 1 / 3, np.float32))
    before = LocalStore(tmp_path / "library").entries("")
    with pytest.raises(UserError, match=r"has another model \w+ already: its predictions-heldout\.npy differs"):
        ensemble("add", tmp_path / "library", *shelf, "--onnx", model())
    assert LocalStore(tmp_path / "library").entries("") == before


def test_models_are_exported_with_their_profiles(
    library: Library, publish: Publish, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = [publish(seed) for seed in range(3)]
    library.write_profile(_profile("digits-0001"))
    for _ in range(2):  # again is no change
        assert ensemble("export", library.store.url, "digits-0000", "digits-0001", "--to", tmp_path / "copy") == 0
    copy = Library.open(LocalStore(tmp_path / "copy"))
    assert copy.models() == tuple(stored[:2])
    assert copy.verify() == []
    assert list(copy.profiles("cpu-epyc-2c", "onnxruntime")) == ["digits-0001"]
    assert capsys.readouterr().out.count("copied to") == 4


def test_an_export_checks_everything_first(library: Library, publish: Publish, tmp_path: Path) -> None:
    publish(0)
    stored = publish(1)
    library.store.write(stored.files["model.onnx"].path, b"damaged")
    with pytest.raises(UserError, match="is truncated"):
        ensemble("export", library.store.url, "digits-0000", "digits-0001", "--to", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.fixture
def imported(shelf: list[str], model: Callable[..., Path], tmp_path: Path) -> Library:
    """A library with one model and its predictions for the samples of `inputs.npy`."""
    classifier, given = model(), {}
    for split, samples in (("validation", 12), ("heldout", 8)):
        given[split] = np.random.default_rng(samples).integers(0, 2, (samples, 4, 4, 1), np.uint8)
        np.save(
            tmp_path / f"p-{split}.npy", loader("onnxruntime")(classifier, Place(1, (), None, 12)).run(given[split])
        )
    np.save(tmp_path / "inputs.npy", given["validation"])
    assert ensemble("add", tmp_path / "library", *shelf, "--onnx", classifier) == 0
    return Library.open(LocalStore(tmp_path / "library"))


def test_inputs_are_kept_with_the_labels(imported: Library, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ensemble("inputs", imported.store.url, tmp_path / "inputs.npy") == 0
    assert "keeps 12 of 12 validation samples, 0.00 MiB" in capsys.readouterr().out
    kept = imported.inputs()
    assert kept is not None
    assert kept.rows == tuple(range(12))
    assert np.array_equal(np.load(imported.samples(kept)), np.load(tmp_path / "inputs.npy"))
    assert ensemble("export", imported.store.url, imported.models()[0].id, "--to", tmp_path / "other") == 0
    other = Library.open(LocalStore(tmp_path / "other"))
    assert other.inputs() == kept
    assert other.samples(kept).read_bytes() == imported.samples(kept).read_bytes()


def test_a_library_can_do_without_inputs(imported: Library, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ensemble("inputs", imported.store.url, tmp_path / "inputs.npy") == 0
    model = imported.models()[0].id
    assert ensemble("export", imported.store.url, model, "--to", tmp_path / "other", "--without-inputs") == 0
    other = Library.open(LocalStore(tmp_path / "other"))
    assert not other.store.list("splits/validation/inputs")
    assert [each.id for each in other.models()] == [model]
    capsys.readouterr()
    assert ensemble("inputs", imported.store.url, "--remove") == 0
    assert "keeps no validation samples any more" in capsys.readouterr().out
    assert not imported.store.list("splits/validation/inputs")
    for options in ([], [tmp_path / "inputs.npy", "--remove"]):
        with pytest.raises(SystemExit):
            ensemble("inputs", imported.store.url, *options)
    with pytest.raises(SystemExit):
        ensemble("export", "--help")
    assert "the validation samples that the library keeps" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda samples: samples[::-1], "does not go with the library's predictions: [0-9a-f]{16} answers to sample "),
        (lambda samples: samples[1:], r"is uint8 \(11, 4, 4, 1\); it must be uint8 \(12, 4, 4, 1\)"),
        (lambda samples: samples.astype(np.float32), r"is float32 \(12, 4, 4, 1\); it must be uint8"),
        (lambda samples: samples.transpose(0, 3, 1, 2), r"is uint8 \(12, 1, 4, 4\); it must be uint8"),
    ],
)
def test_inputs_of_other_samples_are_refused(
    imported: Library, tmp_path: Path, change: Callable[[np.ndarray], np.ndarray], told: str
) -> None:
    np.save(tmp_path / "inputs.npy", change(np.load(tmp_path / "inputs.npy")))
    with pytest.raises(UserError, match=f"inputs.npy: {told}"):
        ensemble("inputs", imported.store.url, tmp_path / "inputs.npy")
    assert imported.inputs() is None
    with pytest.raises(UserError, match=r"nowhere\.npy: is missing"):
        ensemble("inputs", imported.store.url, tmp_path / "nowhere.npy")


def test_gc_tells_before_it_removes(library: Library, publish: Publish, capsys: pytest.CaptureFixture[str]) -> None:
    publish(0)
    before = library.store.entries("")
    assert ensemble("gc", library.store.url, "--unreferenced", "--dry-run") == 0
    told = capsys.readouterr().out
    assert "model digits-0000, which nothing refers to" in told
    assert "would remove 0.00 MiB in 4 files" in told
    assert library.store.entries("") == before
    assert ensemble("gc", library.store.url) == 0
    assert library.store.entries("") == before
    assert ensemble("gc", library.store.url, "--unreferenced") == 0
    assert library.models() == ()
