"""What a user gets wrong, through the command line: one message that tells where and what, code 2, nothing written.

Commands run in processes of their own, forked from one that has imported them, because importing takes seconds.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytestmark = pytest.mark.timeout(300)

DOCUMENTS = """
apiVersion: ensemble-operator.io/v1alpha1
kind: HPOSearch
metadata: {name: tiny}
spec:
  library: {storage: {path: library}}
  dataset: {arrays: data.npz, split: {validationPercent: 30, heldoutPercent: 30}}
  trainer: {maxEpochs: 1}
  algorithm: {name: random}
  parallelTrialCount: 1
  maxTrialCount: 3
  parameters:
    - {name: batchSize, parameterType: int, feasibleSpace: {min: 16, max: 16}}
    - {name: convolution, parameterType: categorical, feasibleSpace: {list: [v1, v2]}}
    - {name: stemFilters, parameterType: int, feasibleSpace: {min: 4, max: 8}}
    - {name: stageFilters, parameterType: int, feasibleSpace: {min: 4, max: 8}}
    - {name: blocksStage1, parameterType: int, feasibleSpace: {min: 1, max: 1}}
    - {name: blocksStage2, parameterType: int, feasibleSpace: {min: 1, max: 1}}
    - {name: blocksStage3, parameterType: int, feasibleSpace: {min: 1, max: 1}}
    - {name: blocksStage4, parameterType: int, feasibleSpace: {min: 1, max: 1}}
---
apiVersion: ensemble-operator.io/v1alpha1
kind: EnsembleSelection
metadata: {name: tiny}
spec:
  sources: [{hpoSearchName: tiny}]
  weights: [0]
  budgets:
    - {name: nothing, parametersMillions: 0.000001}
    - {name: small, parametersMillions: 0.001}
    - {name: large, inferenceTimeSeconds: 1000}
---
apiVersion: ensemble-operator.io/v1alpha1
kind: EnsembleDeployment
metadata: {name: tiny}
spec:
  selectionRef: {name: tiny, budgetName: large}
  devices: [{name: cores, type: cpu, count: 1}]
  optimization: {algorithm: worst-fit, secondsPerBenchmark: 0.1, batchSizes: [8]}
"""
FILE = "tiny.yaml"
MODEL = "models/tiny-0000"
SECONDS = 120.0  # for one command; a refusal takes far less

# Forks for each line of JSON {arguments, folder, output, errors}; answers with the exit code, -1 after a deadline.
FORKER = """
import importlib, json, os, signal, sys
from importlib.metadata import entry_points
from ensemble_core.cli import main
for entry in entry_points(group="ensemble.commands"):
    entry.load()
import onnx, onnxruntime
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.chdir(order["folder"])
            for stream, name in ((0, os.devnull), (1, order["output"]), (2, order["errors"])):
                os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), stream)
            signal.alarm(int(order["seconds"]))
            try:
                code = main(order["arguments"])
            except SystemExit as end:
                code = end.code
            except BaseException:
                import traceback
                traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Answer:
    code: int
    output: str
    errors: str


class Terminal:
    """Runs commands of `ensemble` in a folder, one at a time."""

    def __init__(self, scratch: Path, environment: dict[str, str]) -> None:
        self._output, self._errors = scratch / "output", scratch / "errors"
        command = [sys.executable, "-c", FORKER]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True)
        assert self._line() == "ready"

    def __call__(self, folder: Path, command: str) -> Answer:
        for file in (self._output, self._errors):
            file.write_bytes(b"")
        order = {
            "arguments": shlex.split(command),
            "folder": str(folder),
            "output": str(self._output),
            "errors": str(self._errors),
            "seconds": SECONDS,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        code = int(self._line())
        return Answer(code, self._output.read_text(), self._errors.read_text())

    def close(self) -> None:
        self._process.communicate(timeout=10)

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of all commands: a cache of their own, no Ray cluster of somebody else."""
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {**kept, "ENSEMBLE_CACHE": str(tmp_path_factory.mktemp("cache")), "COLUMNS": "120"}


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Iterator[Terminal]:
    opened = Terminal(tmp_path_factory.mktemp("terminal"), environment)
    yield opened
    opened.close()


def write_data(folder: Path, **changes: Any) -> None:
    """`data.npz`: 90 images of 3 classes; `None` leaves a field out."""
    random = np.random.default_rng(0)
    labels = np.arange(90) % 3
    images = (random.integers(0, 8, (90, 8, 8)) + 4 * labels[:, None, None]).astype(np.uint8)
    fields = {"images": images, "labels": labels, **changes}
    np.savez(folder / "data.npz", **{name: value for name, value in fields.items() if value is not None})


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with valid documents and data, and ports that are free; nothing has run."""
    folder = tmp_path_factory.mktemp("documents")
    with ExitStack() as held:
        ports = [held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(3)]
    serving = dict(zip(("httpPort", "grpcPort", "metricsPort"), ports, strict=True))
    (folder / FILE).write_text(f"{DOCUMENTS}  serving: {json.dumps(serving)}\n")
    write_data(folder)
    return folder


@pytest.fixture(scope="module")
def finished(
    documents: Path, tmp_path_factory: pytest.TempPathFactory, terminal: Terminal, environment: dict[str, str]
) -> Path:
    """The same after a whole run of three real trials, into this folder's `library`."""
    folder = tmp_path_factory.mktemp("finished") / "work"
    shutil.copytree(documents, folder)
    trained = terminal(folder, f"train --spec {FILE}")
    assert trained.code == 0, trained.errors
    weights = [json.loads(file.read_text())["parameters"] for file in folder.glob("library/models/*/record.json")]
    # One model fits the budget, which is worse than all of them.
    put("EnsembleSelection", "spec.budgets.1.parametersMillions", 1.0001e-6 * min(weights))(folder)
    ran = terminal(folder, f"run {FILE} --output .")
    (folder / "output.txt").write_text(ran.output + ran.errors)
    assert ran.code == 0, ran.output + ran.errors
    return folder


def digest(folder: Path) -> dict[str, str]:
    """All files and folders with the digest of what is in them; what is no file by its kind."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


# ------------------------------------------------------------------------------------------- how input is made wrong

Make = Callable[[Path], object]


def put(kind: str, path: str, value: Any) -> Make:
    """Set a field of the document of a kind; `a.0.b` goes through lists."""

    def make(folder: Path) -> None:
        contents = list(yaml.safe_load_all((folder / FILE).read_text()))
        at = next(content for content in contents if content["kind"] == kind)
        *way, last = (int(part) if part.isdigit() else part for part in path.split("."))
        for part in way:
            at = at[part]
        if value is ...:
            del at[last]
        else:
            at[last] = value
        (folder / FILE).write_text(yaml.safe_dump_all(contents, sort_keys=False))

    return make


def search(path: str, value: Any) -> Make:
    return put("HPOSearch", f"spec.{path}", value)


def selection(path: str, value: Any) -> Make:
    return put("EnsembleSelection", f"spec.{path}", value)


def deployment(path: str, value: Any) -> Make:
    return put("EnsembleDeployment", f"spec.{path}", value)


def parameter(name: str, kind: str, space: dict[str, Any], **more: Any) -> Make:
    """One parameter in place of all."""
    return search("parameters", [{"name": name, "parameterType": kind, "feasibleSpace": space, **more}])


def data(**changes: Any) -> Make:
    return lambda folder: write_data(folder, **changes)


def file(name: str, content: bytes | str) -> Make:
    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def array(name: str, content: Any) -> Make:
    def make(folder: Path) -> None:
        np.save(folder / name, np.asarray(content), allow_pickle=False)

    return make


def replaced(old: str, new: str) -> Make:
    def make(folder: Path) -> None:
        text = (folder / FILE).read_text()
        assert old in text
        (folder / FILE).write_text(text.replace(old, new, 1))

    return make


def tampered(name: str, path: str, value: Any) -> Make:
    """Set a field of a JSON file in the library; the parts of the path are divided by `/`."""

    def make(folder: Path) -> None:
        place = folder / "library" / name
        content = at = json.loads(place.read_text())
        *way, last = path.split("/")
        for part in way:
            at = at[part]
        at[last] = value
        place.write_text(json.dumps(content))

    return make


def cut(name: str, size: int) -> Make:
    """Only the first bytes of a file in the library are left."""

    def make(folder: Path) -> None:
        os.truncate(folder / "library" / name, size)

    return make


def flipped(name: str) -> Make:
    """The last byte of a file in the library is another."""

    def make(folder: Path) -> None:
        content = (folder / "library" / name).read_bytes()
        (folder / "library" / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    return make


def removed(name: str) -> Make:
    return lambda folder: (folder / name).unlink()


def images(folder: Path) -> None:
    """`photos`: one image in each of two folders, of different sizes."""
    from PIL import Image

    for name, size in (("cat", 8), ("dog", 9)):
        (folder / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (size, size)).save(folder / "photos" / name / "1.png")


def all_of(*makes: Make) -> Make:
    def make(folder: Path) -> None:
        for one in makes:
            one(folder)

    return make


def nothing(folder: Path) -> None:
    """The input is right; the command is not."""


# Another specification than that of the stored result: predictions are read again.
ANEW = selection("weights", [0.5])


def pickled(folder: Path) -> None:
    labels = np.array([{"class": 1}] * 90, dtype=object)
    np.savez(folder / "data.npz", images=np.zeros((90, 8, 8), np.uint8), labels=labels)


def cut_archive(folder: Path) -> None:
    content = (folder / "data.npz").read_bytes()
    (folder / "data.npz").write_bytes(content[: len(content) // 2])


def damaged_archive(folder: Path) -> None:
    """The archive is complete, an array in it is not."""
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((90, 8, 8), np.uint8))
    with zipfile.ZipFile(folder / "data.npz", "w") as archive:
        archive.writestr("images.npy", buffer.getvalue()[:-100])
        archive.writestr("labels.npy", b"")


def not_finite(folder: Path) -> None:
    values = np.ones((90, 8, 8), np.float32)
    values[17, 3, 3] = np.nan
    write_data(folder, images=values)


def alias_bomb() -> str:
    lines = ['a0: &a0 ["x", "x", "x", "x", "x", "x", "x", "x", "x"]']
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    return "\n".join(lines)


def other_library(folder: Path) -> None:
    """`other`: a library of other labels, next to the first."""
    shutil.copytree(folder / "library", folder / "other")
    header = json.loads((folder / "other/library.json").read_text())
    header["classNames"] = ["a", "b", "c"]
    content = {"classNames": header["classNames"], "splits": header["splits"]}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    header["fingerprint"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "other/library.json").write_text(json.dumps(header))


# -------------------------------------------------------------------------------------------------------- the cases


@dataclass(frozen=True)
class Case:
    """Wrong input.

    Args:
        name: Of the test.
        make: What it does to a folder with valid documents, and a library if `needs` says so.
        commands: Each is refused.
        told: What the message holds: file, field, value, what is allowed.
    """

    name: str
    make: Make
    commands: tuple[str, ...]
    told: tuple[str, ...]


VALIDATE, TRAIN, RUN = f"validate {FILE}", f"train --spec {FILE}", f"run {FILE}"
PROFILE, SELECT, ALLOCATE, SERVE = (f"{verb} --spec {FILE}" for verb in ("profile", "select", "allocate", "serve"))
SEARCH, SELECTION, DEPLOYMENT = (
    f"{FILE}: document {index} ({kind} tiny): spec"
    for index, kind in enumerate(("HPOSearch", "EnsembleSelection", "EnsembleDeployment"), start=1)
)
BEGUN = f"{FILE} (HPOSearch tiny): spec"

DOCUMENT_CASES = (
    Case(
        "unknown field",
        replaced("maxEpochs", "maxEpoch"),
        (VALIDATE, TRAIN, RUN),
        (f"{SEARCH}.trainer.maxEpoch: unknown field; did you mean maxEpochs?",),
    ),
    Case(
        "unknown field of the top",
        replaced("metadata", "meta"),
        (VALIDATE, SELECT),
        ("meta: unknown field", "metadata", "is missing"),
    ),
    Case(
        "wrong type",
        search("maxTrialCount", "many"),
        (VALIDATE, TRAIN, RUN),
        (f'{SEARCH}.maxTrialCount: "many" must be a whole number',),
    ),
    Case(
        "number in quotes",
        search("maxTrialCount", "3"),
        (TRAIN,),
        (f'{SEARCH}.maxTrialCount: "3" must be a whole number',),
    ),
    Case(
        "fraction for a whole number",
        search("trainer.maxEpochs", 1.5),
        (TRAIN, RUN),
        (f"{SEARCH}.trainer.maxEpochs: 1.5 must be a whole number",),
    ),
    Case("boolean for a number", search("seed", True), (TRAIN,), (f"{SEARCH}.seed: true must be a whole number",)),
    Case(
        "list for an object", search("dataset", ["data.npz"]), (TRAIN, RUN), (f"{SEARCH}.dataset: must be an object",)
    ),
    Case(
        "bound exceeded",
        search("dataset.split.validationPercent", 90),
        (VALIDATE, TRAIN, RUN),
        (f"{SEARCH}.dataset.split.validationPercent: 90 must be less than or equal to 80",),
    ),
    Case(
        "below a bound",
        deployment("serving.segmentSize", 0),
        (ALLOCATE, RUN),
        (f"{DEPLOYMENT}.serving.segmentSize: 0 must be greater than or equal to 1",),
    ),
    Case(
        "splits without training samples",
        search("dataset.split", {"validationPercent": 60, "heldoutPercent": 40}),
        (TRAIN, RUN),
        (f"{SEARCH}.dataset.split.heldoutPercent: 40", "below 100 together"),
    ),
    Case(
        "unknown algorithm",
        search("algorithm.name", "hyperbnd"),
        (VALIDATE, TRAIN, RUN),
        (f'{SEARCH}.algorithm.name: "hyperbnd" must be one of async-hyperband, random',),
    ),
    Case(
        "algorithm of allocation",
        deployment("optimization.algorithm", "worstfit"),
        (ALLOCATE, SERVE, RUN),
        (f'{DEPLOYMENT}.optimization.algorithm: "worstfit" must be one of', "did you mean worst-fit?"),
    ),
    Case(
        "two data sets",
        search("dataset.builtin", "digits"),
        (TRAIN, RUN),
        (f"{SEARCH}.dataset: must have exactly one of builtin, procedural, arrays, imageFolder",),
    ),
    Case(
        "unknown data set",
        search("dataset", {"builtin": "mnist"}),
        (TRAIN, RUN),
        (f'{SEARCH}.dataset.builtin: "mnist" must be digits',),
    ),
    Case(
        "unknown kind",
        replaced("kind: HPOSearch", "kind: HpoSearch"),
        (VALIDATE, RUN),
        (f"{FILE}: document 1: kind", '"HpoSearch" must be one of', "did you mean HPOSearch?"),
    ),
    Case(
        "no kind",
        replaced("kind: HPOSearch", "seed: 1"),
        (VALIDATE,),
        (f"{FILE}: document 1: kind: is missing", "HPOSearch"),
    ),
    Case(
        "another version",
        replaced("v1alpha1", "v2"),
        (VALIDATE, RUN),
        ("document 1 (HPOSearch tiny): apiVersion", '"ensemble-operator.io/v2" must be ensemble-operator.io/v1alpha1'),
    ),
    Case("name with a capital", put("HPOSearch", "metadata.name", "Tiny"), (TRAIN, RUN), ('metadata.name: "Tiny"',)),
    Case(
        "budget without a limit",
        selection("budgets.0", {"name": "any"}),
        (SELECT, RUN),
        (f"{SELECTION}.budgets[0]: must have at least one of inferenceTimeSeconds",),
    ),
    Case(
        "budget of nothing",
        selection("budgets.2.inferenceTimeSeconds", 0),
        (SELECT, RUN),
        (f"{SELECTION}.budgets[2].inferenceTimeSeconds: 0 must be greater than 0",),
    ),
    Case(
        "two budgets of a name",
        selection("budgets.1.name", "large"),
        (SELECT, RUN),
        (f"{SELECTION}.budgets: must not have two items of the same name: large",),
    ),
    Case("no budgets", selection("budgets", []), (SELECT, RUN), (f"{SELECTION}.budgets: must have at least 1 item",)),
    Case(
        "no devices", deployment("devices", []), (ALLOCATE, RUN), (f"{DEPLOYMENT}.devices: must have at least 1 item",)
    ),
    Case(
        "unknown type of device",
        deployment("devices.0.type", "tpu"),
        (ALLOCATE, RUN),
        (f'{DEPLOYMENT}.devices[0].type: "tpu" must be one of gpu, cpu',),
    ),
    Case(
        "port out of range",
        deployment("serving.grpcPort", 80010),
        (SERVE, RUN),
        (f"{DEPLOYMENT}.serving.grpcPort: 80010 must be less than or equal to 65535",),
    ),
    Case(
        "one port twice",
        deployment("serving", {"httpPort": 8800, "grpcPort": 8800}),
        (SERVE, RUN),
        (f"{DEPLOYMENT}.serving: must have different httpPort, grpcPort and metricsPort",),
    ),
    Case(
        "storage in a cluster only",
        search("library.storage", {"persistentVolumeClaim": {"claimName": "c"}}),
        (TRAIN, RUN),
        ("spec.library.storage.persistentVolumeClaim: ", "only reachable in a cluster"),
    ),
    # Spaces.
    Case(
        "min above max",
        parameter("batchSize", "int", {"min": 32, "max": 16}),
        (VALIDATE, TRAIN, RUN),
        (f"{SEARCH}.parameters[0].feasibleSpace.max: 16 must be at least min: the space is empty",),
    ),
    Case(
        "min above the default max",
        parameter("batchSize", "int", {"min": 100}),
        (TRAIN, RUN),
        (
            f"{BEGUN}.parameters[0].feasibleSpace",
            "batchSize has an empty search space: max 48 (the default) is below min 100",
        ),
    ),
    Case(
        "empty list",
        parameter("activation", "categorical", {"list": []}),
        (VALIDATE, TRAIN, RUN),
        (f"{SEARCH}.parameters[0].feasibleSpace.list: must have at least 1 item",),
    ),
    Case(
        "unknown parameter",
        parameter("learning_rate", "double", {"min": 0.001, "max": 0.01}),
        (TRAIN, RUN),
        (
            f"{BEGUN}.parameters[0].name: 'learning_rate' is unknown; did you mean learningRate?",
            "allowed: learningRate, batchSize",
        ),
    ),
    Case(
        "parameter of another type",
        parameter("learningRate", "int", {"min": 1, "max": 2}),
        (TRAIN, RUN),
        (f"{BEGUN}.parameters[0].parameterType: learningRate is 'int'; it must be double or discrete",),
    ),
    Case(
        "unknown choice",
        parameter("activation", "categorical", {"list": ["relu", "gelu"]}),
        (TRAIN, RUN),
        (f"{BEGUN}.parameters[0].feasibleSpace.list[1]: activation cannot be 'gelu'; allowed: tanh, relu, elu",),
    ),
    Case(
        "beyond what the trainer can",
        parameter("learningRate", "double", {"min": 0.1, "max": 100}),
        (TRAIN, RUN),
        (f"{BEGUN}.parameters[0].feasibleSpace.max: learningRate cannot be 100", "a number from 1e-08 to 10"),
    ),
    Case(
        "logarithm of zero",
        parameter("l2", "double", {"min": 0, "max": 1, "distribution": "logUniform"}),
        (TRAIN, RUN),
        (f"{SEARCH}.parameters[0].feasibleSpace.min: 0", "must be above 0 under logUniform"),
    ),
    Case(
        "a parameter twice",
        search("parameters.1", {"name": "batchSize", "parameterType": "int", "feasibleSpace": {"min": 8, "max": 9}}),
        (TRAIN, RUN),
        (f"{SEARCH}.parameters: must not have two items of the same name: batchSize",),
    ),
    Case(
        "condition on an unknown parameter",
        search("parameters.0.condition", {"parameter": "convlution", "in": ["v1"]}),
        (VALIDATE, TRAIN, RUN),
        (
            f"{SEARCH}.parameters: must have conditions only on values of a categorical or discrete parameter of the",
            "list that has no condition itself: convlution in v1",
        ),
    ),
    Case(
        "brackets that never decide",
        search("algorithm", {"name": "async-hyperband", "settings": {"brackets": 3}}),
        (TRAIN, RUN),
        (f"{SEARCH}.algorithm.settings: must let every bracket decide in time",),
    ),
    # References.
    Case(
        "unknown selection", deployment("selectionRef.name", "tny"), (VALIDATE, ALLOCATE, SERVE, RUN), ("tny", "tiny")
    ),
    Case(
        "unknown budget",
        deployment("selectionRef.budgetName", "larg"),
        (VALIDATE, RUN),
        (
            f"{FILE}: EnsembleDeployment tiny: spec.selectionRef.budgetName",
            '"larg" is no budget of this file; did you mean large?; there is nothing, small, large',
        ),
    ),
    Case(
        "unknown search",
        selection("sources.0.hpoSearchName", "tinny"),
        (VALIDATE, PROFILE, SELECT, RUN),
        ("tinny", "tiny"),
    ),
    Case(
        "sources without a search",
        selection("sources", [{"storage": {"path": "library"}}]),
        (RUN,),
        (f"{FILE}: EnsembleSelection tiny: spec.sources: needs a source with hpoSearchName",),
    ),
    Case("no library yet", nothing, (PROFILE, SELECT, ALLOCATE, SERVE), ("library: is no model library: it has no",)),
    Case(
        "a name that is not there",
        nothing,
        (f"{TRAIN} --name digits",),
        (f"{FILE}: has no HPOSearch named digits", "there is tiny"),
    ),
    # The machine.
    Case(
        "more cores than there are",
        deployment("devices.0.coresPerDevice", 200),
        (RUN,),
        (f"{FILE}: EnsembleDeployment tiny: spec.devices[0].count: 1 (cores of 200 cores) makes 200 cores", "cores"),
    ),
    Case(
        "more devices than there are cores",
        deployment("devices.0.count", 64),
        (RUN,),
        ("spec.devices[0].count: 64 (cores) makes 64 cores",),
    ),
    Case(
        "GPUs where there are none",
        deployment("devices.0", {"name": "gpus", "type": "gpu"}),
        (RUN,),
        ("spec.devices[0].count: 1 (gpus) makes 1 GPU with", "0 GPUs"),
    ),
    Case(
        "cores per trial",
        search("resourcesPerTrial", {"cpu": 200}),
        (TRAIN, RUN),
        (f"{BEGUN}.resourcesPerTrial.cpu: 200 is more than this machine's",),
    ),
    Case(
        "GPUs per trial",
        search("resourcesPerTrial", {"gpu": 1}),
        (TRAIN,),
        (f"{BEGUN}.resourcesPerTrial.gpu: 1 is more than this machine's 0 GPUs",),
    ),
    Case(
        "cores for costs",
        selection("cost", {"coresPerDevice": 200}),
        (PROFILE, RUN),
        (f"{FILE}: EnsembleSelection tiny: spec.cost.coresPerDevice: 200 is more than the",),
    ),
    Case(
        "device type of another machine",
        selection("cost", {"deviceType": "cpu-pdp-11-1c"}),
        (PROFILE, RUN),
        (f"{FILE}: EnsembleSelection tiny: spec.cost.deviceType: cpu-pdp-11-1c is not here", "this machine has cpu-"),
    ),
)

OTHER_SELECTION = """kind: EnsembleSelection
metadata: {name: tiny}
spec: {sources: [{hpoSearchName: tiny}], budgets: [{name: a, memoryMiB: 1}]}
---
apiVersion: ensemble-operator.io/v1alpha1
kind: EnsembleSelection"""
YAML_CASES = (
    Case(
        "missing file",
        removed(FILE),
        (VALIDATE, TRAIN, SELECT, SERVE, RUN),
        (f"{FILE}: cannot be read: No such file or directory",),
    ),
    Case(
        "a folder for a file",
        nothing,
        ("validate .", "train --spec .", "run ."),
        (".: cannot be read: Is a directory",),
    ),
    Case(
        "no YAML",
        file(FILE, "kind: HPOSearch\n  spec: [1,"),
        (VALIDATE, TRAIN, RUN),
        (f"{FILE}: ", "is not YAML", "line 2"),
    ),
    Case("tabs", file(FILE, "kind: HPOSearch\nspec:\n\tseed: 1\n"), (VALIDATE,), ("is not YAML", "line 3")),
    Case("empty", file(FILE, ""), (VALIDATE, TRAIN, RUN), (f"{FILE}: holds no document; allowed kinds are HPOSearch",)),
    Case("comments alone", file(FILE, "# nothing\n---\n"), (VALIDATE, RUN), (f"{FILE}: holds no document",)),
    Case("text", file(FILE, "hello"), (VALIDATE, RUN), (f'{FILE}: document 1: "hello" must be an object',)),
    Case("binary", file(FILE, bytes(range(256)) * 4), (VALIDATE, TRAIN, RUN), (f"{FILE}: is not UTF-8 text",)),
    Case("nul bytes", file(FILE, b"kind: \0\0"), (VALIDATE, RUN), (f"{FILE}: ", "is not YAML")),
    Case(
        "ten megabytes",
        file(FILE, b"# " + b"x" * 10_000_000),
        (VALIDATE, TRAIN, RUN),
        (f"{FILE}: is larger than 1048576 bytes",),
    ),
    Case("alias bomb", file(FILE, alias_bomb()), (VALIDATE, RUN), (f"{FILE}: has more than 100000 values",)),
    Case(
        "contains itself",
        file(FILE, "a: &a [*a]"),
        (VALIDATE, RUN),
        (f"{FILE}: has more than 100000 values, or one that contains itself",),
    ),
    Case("nested deeply", file(FILE, "[" * 20_000), (VALIDATE, RUN), (f"{FILE}: document 1: is nested too deeply",)),
    Case(
        "a key twice",
        replaced("  trainer:", "  seed: 1\n  seed: 2\n  trainer:"),
        (VALIDATE, TRAIN, RUN),
        (f"{FILE}: document 1: line", "the key seed is given twice"),
    ),
    Case(
        "a tag of Python",
        file(FILE, "kind: !!python/object/apply:os.system ['true']"),
        (VALIDATE,),
        (f"{FILE}: document 1: is not YAML", "python/object/apply"),
    ),
    Case("not a number", replaced("maxEpochs: 1", "maxEpochs: .nan"), (VALIDATE, TRAIN), ("spec.trainer.maxEpochs",)),
    Case(
        "a name twice",
        replaced(
            "kind: EnsembleSelection",
            OTHER_SELECTION,
        ),
        (VALIDATE, SELECT, RUN),
        (f"{FILE}: document 3 (EnsembleSelection tiny): metadata.name: ",),
    ),
    Case(
        "no deployment",
        lambda folder: (folder / FILE).write_text((folder / FILE).read_text().split("---")[0]),
        (RUN, SERVE),
        (f"{FILE}: needs one EnsembleDeployment, but has none",),
    ),
)

DATA_CASES = (
    Case(
        "arrays that are missing",
        removed("data.npz"),
        (TRAIN, RUN),
        (f"{BEGUN}.dataset.arrays: ", "data.npz does not exist"),
    ),
    Case(
        "image folder that is missing",
        search("dataset", {"imageFolder": "photos"}),
        (TRAIN, RUN),
        (f"{BEGUN}.dataset.imageFolder: ", "photos is not a folder"),
    ),
    Case(
        "image folder without classes",
        all_of(search("dataset", {"imageFolder": "photos"}), file("photos/readme.txt", "none")),
        (TRAIN, RUN),
        ("photos: has no folders with images, one per class",),
    ),
    Case(
        "images of two sizes",
        all_of(search("dataset", {"imageFolder": "photos"}), images),
        (TRAIN, RUN),
        ("photos/dog/1.png: has 9×9 pixels, others 8×8; set spec.dataset.imageSize",),
    ),
    Case(
        "image that is none",
        all_of(search("dataset", {"imageFolder": "photos"}), images, file("photos/dog/2.png", "woof")),
        (TRAIN,),
        ("photos/dog/2.png: is not an image that can be read",),
    ),
    Case(
        "text for arrays",
        file("data.npz", "hello"),
        (TRAIN, RUN),
        ("data.npz: is neither an .npz file nor a folder of .npy files",),
    ),
    Case(
        "empty file for arrays",
        file("data.npz", ""),
        (TRAIN, RUN),
        ("data.npz: is neither an .npz file nor a folder of .npy files",),
    ),
    Case(
        "one array for an archive",
        all_of(array("one.npy", [1, 2]), search("dataset.arrays", "one.npy")),
        (TRAIN,),
        ("one.npy: is neither an .npz file nor a folder of .npy files",),
    ),
    Case("cut archive", cut_archive, (TRAIN, RUN), ("data.npz: is neither an .npz file nor a folder of .npy files",)),
    Case("damaged array in an archive", damaged_archive, (TRAIN, RUN), ("data.npz: images: cannot be read",)),
    Case("pickle", pickled, (TRAIN, RUN), ("data.npz: labels: holds Python objects (pickle), which are never loaded")),
    Case("no images", data(images=None), (TRAIN, RUN), ("data.npz: images: is missing; there are: labels",)),
    Case("no labels", data(labels=None), (TRAIN, RUN), ("data.npz: labels: is missing; there are: images",)),
    Case(
        "fewer labels than images",
        data(labels=np.arange(80) % 3),
        (TRAIN, RUN),
        ("data.npz: labels: has shape [80]; 90 images need [90]",),
    ),
    Case(
        "labels of two dimensions",
        data(labels=np.eye(90, 3, dtype=int)),
        (TRAIN, RUN),
        ("data.npz: labels: has shape [90, 3]; 90 images need [90]",),
    ),
    Case(
        "images of one dimension",
        data(images=np.zeros(90, np.uint8)),
        (TRAIN, RUN),
        ("data.npz: images: has shape [90]; it must be [N,H,W,C] or [N,H,W]",),
    ),
    Case("a number for images", data(images=np.uint8(1)), (TRAIN,), ("data.npz: images: has shape []",)),
    Case(
        "signed images",
        data(images=np.zeros((90, 8, 8), np.int64)),
        (TRAIN, RUN),
        ("data.npz: images: has type int64; allowed: uint8 or floating point",),
    ),
    Case(
        "labels with fractions",
        data(labels=np.zeros(90)),
        (TRAIN,),
        ("data.npz: labels: has type float64; labels are integers from 0",),
    ),
    Case(
        "labels outside the classes",
        data(classNames=np.array(["a", "b"])),
        (TRAIN, RUN),
        ("data.npz: labels: sample 2 has label 2, outside the 2 classes",),
    ),
    Case(
        "negative labels",
        data(labels=np.arange(90) % 3 - 1),
        (TRAIN, RUN),
        ("data.npz: labels: sample 0 has label -1, outside the 2 classes",),
    ),
    Case(
        "labels with gaps",
        data(labels=np.arange(90) % 3 * 2),
        (TRAIN,),
        ("data.npz: labels: has no sample of class 1",),
    ),
    Case("NaN", not_finite, (TRAIN, RUN), ("data.npz: images: sample 17 contains NaN",)),
    Case("ids that repeat", data(ids=np.array(["a"] * 90)), (TRAIN,), ("data.npz: ids: must be 90 different ids",)),
    Case(
        "one class",
        data(labels=np.zeros(90, int)),
        (TRAIN, RUN),
        ("data.npz: has 1 class; classification needs at least 2",),
    ),
    Case(
        "no samples",
        data(images=np.zeros((0, 8, 8), np.uint8), labels=np.zeros(0, int)),
        (TRAIN, RUN),
        ("data.npz", "class"),
    ),
    Case(
        "empty validation split",
        data(images_validation=np.zeros((0, 8, 8), np.uint8), labels_validation=np.zeros(0, int)),
        (TRAIN, RUN),
        ("data.npz: the validation split has 0 samples; it needs at least 1",),
    ),
    Case(
        "too few samples to split",
        data(images=np.zeros((2, 8, 8), np.uint8), labels=np.arange(2)),
        (TRAIN, RUN),
        ("data.npz: the ", "split has", "it needs at least", "(spec.dataset.split)"),
    ),
    Case(
        "parts of two shapes",
        data(images_heldout=np.zeros((3, 9, 9), np.uint8), labels_heldout=np.arange(3)),
        (TRAIN,),
        ("data.npz: images: the parts' images differ in shape or type",),
    ),
    Case(
        "a library that is a file",
        all_of(file("library", "x"), search("library.storage.path", "library")),
        (TRAIN, f"{RUN} --output .", SELECT, "library ls library"),
        ("library", "folder"),
    ),
    Case(
        "output that is a file",
        file("out", "x"),
        (f"{RUN} --output out",),
        ("--output: ", "out is in its place"),
    ),
    Case(
        "output below a file",
        nothing,
        (
            f"{RUN} --output {FILE}/x",
            f"render --spec {FILE} --selection {'0' * 64} --output {FILE}/x",
            f"dataset --spec {FILE} --output {FILE}/x",
        ),
        ("--output: ", f"{FILE}/x cannot be written: ", f"{FILE} is in its place"),
    ),
)

IMPORT = "library add new --create --predictions-validation v.npy --predictions-heldout v.npy"
RECORD = f"{MODEL}/record.json"
HERE = f"{RUN} --output ."
LIBRARY_CASES = (
    Case(
        "no library",
        nothing,
        (
            "library ls nowhere",
            "library gc nowhere",
            "library verify nowhere",
            "library show nowhere tiny-0000",
            "library export nowhere tiny-0000 --to there",
        ),
        ("is no model library: it has no library.json",),
    ),
    Case(
        "another task",
        tampered("library.json", "task", "regression"),
        (TRAIN, SELECT, HERE, "library ls library"),
        ("library/library.json: task: ", "classification"),
    ),
    Case(
        "newer format",
        tampered("library.json", "format", 2),
        (TRAIN, SELECT, HERE, "library ls library"),
        ("library/library.json: format 2 is newer than this version reads (up to 1)",),
    ),
    Case(
        "tampered fingerprint",
        tampered("library.json", "fingerprint", "0" * 64),
        (TRAIN, SELECT, HERE),
        ("library/library.json: fingerprint: does not belong to its classes and splits",),
    ),
    Case(
        "header that is no JSON",
        file("library/library.json", "{"),
        (TRAIN, SELECT, HERE, "library ls library"),
        ("library/library.json: is not JSON",),
    ),
    Case(
        "empty header", file("library/library.json", ""), (TRAIN, SELECT, HERE), ("library/library.json: is not JSON",)
    ),
    Case(
        "another data set",
        data(labels=(np.arange(90) + 1) % 3),
        (TRAIN, HERE),
        ("library: fingerprint is", "that of the data set given is"),
    ),
    Case(
        "another split",
        search("dataset.split.seed", 1),
        (TRAIN, HERE),
        ("library: fingerprint is", "that of the data set given is"),
    ),
    Case(
        "images of another size",
        data(images=np.zeros((90, 9, 9), np.uint8)),
        (TRAIN, HERE),
        ("library: signature is", "that of the data set given is"),
    ),
    Case(
        "another specification",
        search("seed", 7),
        (TRAIN, HERE),
        (
            f"{BEGUN}.seed: differs from the first start of search tiny in this library, which had seed 0",
            "library/searches/tiny/spec.json",
        ),
    ),
    Case(
        "tampered start",
        tampered("searches/tiny/spec.json", "startedAt", "noon"),
        (TRAIN, HERE),
        ("library/searches/tiny/spec.json: startedAt: ",),
    ),
    Case(
        "truncated predictions",
        all_of(ANEW, cut(f"{MODEL}/1/predictions-validation.npy", 200)),
        (SELECT,),
        (f"library/{MODEL}/1/predictions-validation.npy: is truncated: it has 200 bytes, its record says",),
    ),
    Case(
        "predictions that are gone",
        all_of(ANEW, removed(f"library/{MODEL}/1/predictions-validation.npy")),
        (SELECT,),
        (f"library/{MODEL}/1/predictions-validation.npy: is missing",),
    ),
    Case(
        "changed predictions",
        all_of(ANEW, flipped(f"{MODEL}/1/predictions-validation.npy")),
        (SELECT,),
        (f"library/{MODEL}/1/predictions-validation.npy: is corrupt: its SHA-256 is",),
    ),
    Case(
        "path that leaves the library",
        tampered(RECORD, "files/predictions-validation.npy/path", "../../../etc/passwd"),
        (TRAIN, PROFILE, SELECT, "library ls library", f"library show library {Path(MODEL).name}"),
        (f"library/{RECORD}: files.predictions-validation.npy.path: ", "../../../etc/passwd"),
    ),
    Case(
        "path into another model",
        tampered(RECORD, "files/predictions-validation.npy/path", "models/tiny-0001/1/predictions-validation.npy"),
        (SELECT,),
        (
            f"library/{RECORD}: files.predictions-validation.npy.path: ",
            "models/tiny-0001/1/predictions-validation.npy is outside the model's folder",
        ),
    ),
    Case(
        "digest that is wrong",
        tampered(RECORD, "files/predictions-validation.npy/sha256", "0" * 64),
        (SELECT,),
        (f"library/{MODEL}/1/predictions-validation.npy: is corrupt: its SHA-256 is", "0" * 64),
    ),
    Case(
        "digest that is none",
        tampered(RECORD, "files/predictions-validation.npy/sha256", "no"),
        (TRAIN, SELECT),
        (f"library/{RECORD}: files.predictions-validation.npy.sha256: ", "no"),
    ),
    Case(
        "id of another model",
        tampered(RECORD, "id", "tiny-0001"),
        (TRAIN, SELECT, "library ls library"),
        (f"library/{RECORD}: id: is 'tiny-0001', the folder says 'tiny-0000'",),
    ),
    Case(
        "record of another library",
        tampered(RECORD, "fingerprint", "0" * 64),
        (SELECT,),
        (f"library/{RECORD}: fingerprint: is of another library",),
    ),
    Case(
        "record that is no JSON",
        file(f"library/{RECORD}", '{"id": '),
        (TRAIN, PROFILE, SELECT, "library ls library"),
        (f"library/{RECORD}: ", "JSON"),
    ),
    Case(
        "changed labels",
        all_of(ANEW, flipped("splits/validation/labels.npy")),
        (SELECT,),
        ("library/splits/validation: ",),
    ),
    Case(
        "claim that is no JSON",
        file("library/trials/tiny-0000/claim-1.json", "{"),
        (TRAIN,),
        ("library/trials/tiny-0000/claim-1.json: ", "JSON"),
    ),
    Case(
        "profile that is no JSON",
        lambda folder: [p.write_text("{") for p in folder.glob("library/profiles/*/*/tiny-0000.json")],
        (PROFILE, SELECT),
        ("tiny-0000.json: ", "JSON"),
    ),
    Case(
        "joined with another data set",
        all_of(other_library, selection("sources", [{"hpoSearchName": "tiny"}, {"storage": {"path": "other"}}])),
        (PROFILE, SELECT),
        ("other: classNames is", "that of", "library is"),
    ),
    Case(
        "a library twice",
        selection("sources", [{"hpoSearchName": "tiny"}, {"hpoSearchName": "tiny"}]),
        (SELECT, HERE),
        (f"{SELECTION}.sources: must not have a library twice",),
    ),
    Case(
        "no profiles",
        selection("cost", {"batchSize": 7}),
        (SELECT,),
        (
            f"{FILE}: EnsembleSelection tiny: spec.cost: 3 of 3 servable models have no profile on 1 core(s)",
            "with onnxruntime at batch size 7",
            f"run `ensemble profile --spec {FILE} --name tiny`",
        ),
    ),
    Case(
        "no selection yet",
        selection("budgets.0.parametersMillions", 0.5),
        (ALLOCATE, SERVE),
        (
            f"{FILE}: EnsembleDeployment tiny: spec.selectionRef.name: tiny was not selected for what",
            f"run `ensemble select --spec {FILE} --name tiny` first",
        ),
    ),
    Case(
        "model that is not there",
        nothing,
        (
            "library show library tiny-0099",
            "library export library tiny-0099 --to there",
            "library show library ../tiny-0000",
        ),
        ("library: has no model",),
    ),
    Case(
        "no place for a library",
        nothing,
        ("library ls ftp://host/library", "library ls ''"),
        ("is no library; give a folder or s3://bucket/prefix",),
    ),
    Case("bucket with a bad name", nothing, ("library ls s3://A_b/x",), ("s3://A_b/x: ", "bucket")),
    Case(
        "import of a missing file",
        nothing,
        ("library add library --predictions-validation v.npy --predictions-heldout h.npy",),
        ("v.npy: is missing",),
    ),
    Case(
        "import of another shape",
        all_of(array("v.npy", np.full((5, 3), 1 / 3, np.float32)), array("h.npy", np.full((27, 3), 1 / 3, np.float32))),
        ("library add library --predictions-validation v.npy --predictions-heldout h.npy",),
        ("v.npy: is float32 (5, 3); it must be float32 (27, 3)",),
    ),
    Case(
        "import of no probabilities",
        array("v.npy", np.ones((27, 3), np.float32)),
        ("library add library --predictions-validation v.npy --predictions-heldout v.npy",),
        ("v.npy: row 0 is no probability distribution: [1.0, 1.0, 1.0]",),
    ),
    Case(
        "import of no network",
        all_of(array("v.npy", np.full((27, 3), 1 / 3, np.float32)), file("m.onnx", "x")),
        ("library add library --onnx m.onnx --predictions-validation v.npy --predictions-heldout v.npy",),
        ("m.onnx: is no ONNX file",),
    ),
    Case(
        "library without its options",
        array("v.npy", np.full((27, 3), 1 / 3, np.float32)),
        ("library add new --create --predictions-validation v.npy --predictions-heldout v.npy",),
        ("--create: needs --labels-validation, --labels-heldout, --input-type, --input-shape too",),
    ),
    Case(
        "shape that is none",
        array("v.npy", np.full((27, 3), 1 / 3, np.float32)),
        (f"{IMPORT} --labels-validation v.npy --labels-heldout v.npy --input-type uint8 --input-shape 8x8",),
        ("--input-shape: must be 1 to 4 positive integers like 8,8,1, not '8x8'",),
    ),
    Case(
        "samples that are missing",
        nothing,
        ("predict --url localhost:1 --model tiny --input x.npy --output y.npy",),
        ("--input x.npy: cannot be read: No such file or directory"),
    ),
    Case(
        "samples that are text",
        nothing,
        (f"predict --url localhost:1 --model tiny --input {FILE} --output y.npy",),
        (f"--input {FILE}: is not a readable .npy file",),
    ),
    Case(
        "samples in an archive",
        nothing,
        ("predict --url localhost:1 --model tiny --input data.npz --output y.npy",),
        ("--input data.npz: is an archive of arrays; one .npy file is needed",),
    ),
    Case(
        "no folder for the answers",
        nothing,
        ("predict --url localhost:1 --model tiny --input heldout/images.npy --output no/y.npy",),
        ("--output: there is no folder", "/no"),
    ),
    Case(
        "report to nowhere",
        nothing,
        (f"{SELECT} --report nonsense", f"{SELECT} --report file:", f"{SELECT} --report configmap:one"),
        ("--report: ", "must be file:PATH or configmap:NAMESPACE/NAME"),
    ),
    Case(
        "report to a folder",
        nothing,
        (f"{SELECT} --report file:library", f"{TRAIN} --report file:{FILE}/report.json"),
        ("--report: ", " cannot be written: ", " is in its place"),
    ),
    Case(
        "report outside of a cluster",
        nothing,
        (f"{SELECT} --report configmap:a/b",),
        ("--report: 'configmap:a/b' needs a pod of a cluster",),
    ),
    Case(
        "digest that is none",
        nothing,
        (f"{ALLOCATE} --selection latest", f"render --spec {FILE} --selection latest --output new"),
        ("--selection: 'latest' must be a digest: 64 hexadecimal digits",),
    ),
    Case(
        "digest of nothing",
        nothing,
        (f"{ALLOCATE} --selection {'0' * 64}", f"render --spec {FILE} --selection {'0' * 64} --output new"),
        ("--selection: ", f"library has no selections/{'0' * 64}.json; run `ensemble select --name tiny`"),
    ),
    Case(
        "folder that was not rendered",
        nothing,
        (
            "server --repository library --address 127.0.0.1 --http-port 1 --grpc-port 2 --metrics-port 3",
            "agent --repository library --http-port 1",
        ),
        ("library/control-key: is missing or too short: run `ensemble render` again",),
    ),
    Case(
        "benchmarks below one",
        nothing,
        (f"{ALLOCATE} --max-benchmarks 0",),
        ("--max-benchmarks: 0 must be greater than or equal to 1",),
    ),
    Case(
        "budget of an option",
        nothing,
        (f"{ALLOCATE} --budget huge",),
        ("ensemble allocate: --budget: huge is none of the budgets nothing, small, large, best-single",),
    ),
    Case(
        "budget without an ensemble",
        nothing,
        (f"{ALLOCATE} --budget nothing",),
        (
            "ensemble allocate: --budget: nothing has no ensemble: the cheapest model tiny-",
            "the budget is 1e-06 million parameters",
        ),
    ),
    Case(
        "allocation for other devices",
        deployment("devices.0.memoryMiB", 9999),
        (SERVE,),
        (
            f"{FILE}: EnsembleDeployment tiny: nothing was allocated for this ensemble",
            "run `ensemble allocate",
        ),
    ),
    Case(
        "cores to allocate",
        deployment("devices.0.coresPerDevice", 200),
        (ALLOCATE, SERVE),
        (f"{FILE}: EnsembleDeployment tiny: spec.devices[0].count: 1 (cores of 200 cores) makes 200 cores",),
    ),
    Case(
        "GPUs to allocate",
        deployment("devices.0", {"name": "gpus", "type": "gpu"}),
        (ALLOCATE,),
        ("spec.devices[0].count: 1 (gpus) makes 1 GPU", "0 GPUs"),
    ),
)


def parameters(cases: tuple[Case, ...]) -> list[Any]:
    return [
        pytest.param(case, command, id=f"{case.name}: {command.split(' ')[0]}")
        for case in cases
        for command in case.commands
    ]


def refused(terminal: Terminal, folder: Path, command: str, *told: str) -> str:
    """Runs a command that must end with code 2 and one message, and write nothing; the message."""
    before = digest(folder)
    answer = terminal(folder, command)
    print(answer.errors)
    verb = command.split(" ")[0]
    assert (answer.code, answer.output) == (2, ""), answer.errors
    first, *others = answer.errors.splitlines()
    assert first.startswith(f"ensemble {verb}: ")
    assert all(line.startswith(f"{FILE}: ") for line in others), answer.errors  # one for each wrong field
    missing = [words for words in told if words not in answer.errors]
    assert not missing, answer.errors
    assert digest(folder) == before
    return answer.errors


@pytest.mark.parametrize(("case", "command"), parameters((*DOCUMENT_CASES, *YAML_CASES, *DATA_CASES)))
def test_wrong_documents_and_data(
    case: Case, command: str, terminal: Terminal, documents: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "work"
    shutil.copytree(documents, folder)
    case.make(folder)
    refused(terminal, folder, command, *case.told)


@pytest.fixture
def work(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """The finished folder, to change at will. In its own place, because results are known by where libraries are."""
    kept = tmp_path / "kept"
    finished.rename(kept)
    shutil.copytree(kept, finished)
    yield finished
    shutil.rmtree(finished)
    kept.rename(finished)


@pytest.mark.parametrize(("case", "command"), parameters(LIBRARY_CASES))
def test_wrong_libraries(case: Case, command: str, terminal: Terminal, work: Path) -> None:
    case.make(work)
    refused(terminal, work, command, *case.told)


def test_devices_that_cannot_hold_the_members(terminal: Terminal, work: Path) -> None:
    for profile in work.glob("library/profiles/*/*/*.json"):
        content = json.loads(profile.read_text())
        for batch in content["batches"]:
            batch["memoryMiB"] = 100.0
        profile.write_text(json.dumps(content))
    deployment("devices.0.memoryMiB", 64)(work)
    assert terminal(work, SELECT).code == 0
    where = f"{FILE}: EnsembleDeployment tiny: spec.devices[0]: the devices cannot hold the members: tiny-"
    lack = "needs 100 MiB at batch size 8, but cpu0 has 64 of 64 MiB left, 36 MiB too few; add devices or memoryMiB"
    refused(terminal, work, ALLOCATE, where, lack)


@pytest.mark.parametrize("field", ["httpPort", "grpcPort", "metricsPort"])
def test_a_port_in_use(field: str, terminal: Terminal, work: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        deployment(f"serving.{field}", port)(work)
        told = f"{FILE}: EnsembleDeployment tiny: spec.serving.{field}: port {port} of 127.0.0.1 is in use"
        refused(terminal, work, SERVE, told)
        refused(terminal, work, HERE, told)


def test_a_refusal_is_reported_where_a_report_was_asked_for(terminal: Terminal, work: Path) -> None:
    name = f"{MODEL}/1/predictions-validation.npy"
    all_of(ANEW, cut(name, 200))(work)
    before = digest(work)
    answer = terminal(work, f"{SELECT} --report file:reports/failed.json")
    assert answer.code == 2
    report = json.loads((work / "reports/failed.json").read_text())
    assert report["state"] == "Failed"
    assert report["error"]["field"].endswith(f"library/{name}")
    assert "is truncated" in report["error"]["message"]
    assert f"ensemble select: {report['error']['field']}: {report['error']['message']}\n" == answer.errors
    (work / "reports/failed.json").unlink()
    assert digest(work) == before


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("trian", "ensemble: no verb 'trian'; there are run, validate, train"),
        ("train", "ensemble train: error: the following arguments are required: --spec"),
        (f"train --spce {FILE}", "ensemble train: error: the following arguments are required: --spec"),
        (f"{TRAIN} --epochs 3", "unrecognized arguments: --epochs 3"),
        ("validate", "ensemble validate: error: the following arguments are required: FILE"),
        ("run", "ensemble run: error: the following arguments are required: FILE"),
        (f"{ALLOCATE} --max-benchmarks many", "argument --max-benchmarks: invalid int value: 'many'"),
        ("render --spec x", "ensemble render: error: the following arguments are required: --selection, --output"),
        ("agent --repository x --http-port 70000", "argument --http-port: 70000 must be from 1 to 65535"),
        ("server --repository x", "required: --address, --http-port, --grpc-port, --metrics-port"),
        ("predict --model tiny", "ensemble predict: error: the following arguments are required: --url, --input"),
        (
            "library",
            "ensemble library: error: the following arguments are required: ls|show|verify|add|inputs|export|gc",
        ),
        ("library list library", "invalid choice: 'list'"),
        ("library show library", "the following arguments are required: MODEL"),
        (f"dataset --spec {FILE} --split test --output x", "argument --split: invalid choice: 'test'"),
    ],
)
def test_wrong_arguments(command: str, told: str, terminal: Terminal, documents: Path) -> None:
    before = digest(documents)
    answer = terminal(documents, command)
    print(answer.errors)
    *usage, last = answer.errors.splitlines()
    assert (answer.code, answer.output) == (2, "")
    assert told in last
    assert not usage or usage[0].startswith("usage: ensemble ")
    assert digest(documents) == before


def test_the_installed_command_says_the_same(terminal: Terminal, documents: Path, tmp_path: Path) -> None:
    shutil.copytree(documents, tmp_path / "work")
    search("maxTrialCount", "many")(tmp_path / "work")
    command = [str(Path(sys.executable).with_name("ensemble")), *VALIDATE.split()]
    done = subprocess.run(command, cwd=tmp_path / "work", capture_output=True, text=True, timeout=SECONDS)
    forked = terminal(tmp_path / "work", VALIDATE)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", forked.errors)


# ------------------------------------------------------------------------------------ what is wrong only in the end


def test_a_budget_below_the_cheapest_model_is_a_reason_and_the_others_still_run(finished: Path) -> None:
    told = (finished / "output.txt").read_text()
    models = {record["id"]: record["parameters"] for record in records(finished)}
    cheapest = min(models, key=lambda model: models[model])
    cost = f"{models[cheapest] / 1e6:.4g} million parameters"
    reason = f"the cheapest model {cheapest} costs {cost}, the budget is 1e-06 million parameters"
    assert f"budget nothing: no ensemble, because {reason}" in told
    (result,) = [json.loads(file.read_text()) for file in finished.glob("library/selections/*.json")]
    budgets = {budget["name"]: budget for budget in result["budgets"]}
    assert budgets["nothing"]["members"] == []
    assert budgets["nothing"]["reason"] == reason
    small, large = ({m["modelId"] for m in budgets[name]["members"]} for name in ("small", "large"))
    assert small == {cheapest} != large
    assert (finished / "report.html").exists()


def test_a_deployed_budget_without_an_ensemble_ends_the_run(terminal: Terminal, work: Path) -> None:
    deployment("selectionRef.budgetName", "nothing")(work)
    answer = terminal(work, HERE)
    assert answer.code == 1
    assert len(answer.errors.splitlines()) == 1
    assert answer.errors.startswith("ensemble run: the budget nothing, which spec.selectionRef.budgetName deploys, has")
    assert "no ensemble: the cheapest model tiny-" in answer.errors


def test_a_quorum_of_more_than_the_members_ends_the_run_before_it_allocates(terminal: Terminal, work: Path) -> None:
    deployment("serving", {"quorum": 9})(work)
    answer = terminal(work, HERE)
    assert answer.code == 2
    (line,) = answer.errors.splitlines()
    assert line.startswith("ensemble run: ")
    assert ": EnsembleDeployment tiny: spec.serving.quorum: 9 is more than the ensemble's " in line
    assert "allocate" not in answer.output


def test_a_stage_that_fails_gives_the_run_its_message(terminal: Terminal, work: Path) -> None:
    name = f"{MODEL}/1/predictions-validation.npy"
    all_of(ANEW, cut(name, 200))(work)
    answer = terminal(work, HERE)
    assert answer.code == 2
    (line,) = answer.errors.splitlines()
    assert line.startswith("ensemble run: select: ")
    assert f"library/{name}: is truncated: it has 200 bytes" in line


@pytest.fixture(scope="module", autouse=True)
def diverging(
    documents: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A search whose trials all diverge; it goes on beside the tests of documents."""
    folder = tmp_path_factory.mktemp("diverging") / "work"
    shutil.copytree(documents, folder)
    values = np.full((90, 8, 8), 3e38, np.float32)
    values[::9] = -3e38  # the difference from the mean is beyond float32
    write_data(folder, images=values)
    search("maxFailedTrialCount", 1)(folder)
    command = [sys.executable, "-m", "ensemble_core.cli", *TRAIN.split()]
    with (folder / "errors").open("w") as errors:
        process = subprocess.Popen(command, cwd=folder, env=environment, stderr=errors, text=True)
    try:
        yield folder, process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def test_trials_that_diverge_are_recorded_until_they_are_too_many(
    diverging: tuple[Path, subprocess.Popen[str]], terminal: Terminal
) -> None:
    folder, process = diverging
    assert process.wait(SECONDS) == 1
    *lines, last = (folder / "errors").read_text().splitlines()
    assert ["failed: Diverged: " in line for line in lines] == [True, True]
    assert last.startswith(
        "ensemble train: 2 trials of tiny failed, more than maxFailedTrialCount 1; the last: Diverged"
    )
    failures = [json.loads(file.read_text()) for file in sorted(folder.glob("library/trials/*/1/failure.json"))]
    assert [failure["reason"] for failure in failures] == ["Diverged", "Diverged"]
    assert all(failure["parameters"]["batchSize"] == 16 for failure in failures)
    assert all("nan" in failure["message"] for failure in failures)
    assert records(folder) == []
    again = terminal(folder, TRAIN)
    assert (again.code, again.errors) == (1, f"{last}\n")


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(folder.glob("library/models/*/record.json"))]


# ----------------------------------------------------------------------------------------------- samples for a server


@pytest.fixture(scope="module")
def address(finished: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the gRPC endpoint of the finished deployment."""
    report = tmp_path_factory.mktemp("served") / "report.json"
    command = [sys.executable, "-m", "ensemble_core.cli", *SERVE.split(), "--report", f"file:{report}"]
    process = subprocess.Popen(command, cwd=finished, env=environment, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + SECONDS
        while not (report.exists() and "grpc" in (told := json.loads(report.read_text())).get("progress", {})):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield told["progress"]["grpc"]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


@pytest.mark.parametrize(
    ("samples", "told"),
    [
        (np.zeros((2, 8, 8, 1), np.float32), "--input x.npy: the samples are float32; the model takes uint8"),
        (
            np.zeros((2, 8, 8), np.uint8),
            "--input x.npy: the samples have shape [2, 8, 8]; the model takes [N, 8, 8, 1]",
        ),
        (
            np.zeros((8, 8, 1), np.uint8),
            "--input x.npy: the samples have shape [8, 8, 1]; the model takes [N, 8, 8, 1]",
        ),
        (np.uint8(1), "--input x.npy: the samples have shape []; the model takes [N, 8, 8, 1]"),
        (np.array(["a"]), "--input x.npy: the samples are str32; the model takes uint8"),
    ],
)
def test_wrong_samples(samples: Any, told: str, address: str, terminal: Terminal, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", samples)
    refused(terminal, tmp_path, f"predict --url {address} --model tiny --input x.npy --output y.npy", told)


def test_a_worker_is_not_asked(address: str, finished: Path, terminal: Terminal, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 8, 8, 1), np.uint8))
    stored = [json.loads(file.read_text()) for file in finished.glob("library/allocations/*.json")]
    found = next(each for each in stored if each["selection"]["budgetName"] == "large")
    engine = found["engines"][0][0] if found["engines"] else "onnxruntime"
    other = "" if engine == "onnxruntime" else f"--{engine}"
    worker = f"{found['members'][0]['modelId']}--cpu0--b{found['matrix'][0][0]}{other}"
    told = (
        f"{address}: {worker}: is no ensemble that is served; the model to ask has the name of its EnsembleDeployment"
    )
    refused(terminal, tmp_path, f"predict --url {address} --model {worker} --input x.npy --output y.npy", told)


def test_a_server_that_is_not_there(terminal: Terminal, address: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 8, 8, 1), np.uint8))
    with socket.create_server(("127.0.0.1", 0)) as held:
        free = held.getsockname()[1]
    before = digest(tmp_path)
    for url, model, told in (
        (f"127.0.0.1:{free}", "tiny", f"ensemble predict: 127.0.0.1:{free}: "),
        (address, "tniy", f"ensemble predict: {address}: "),
    ):
        answer = terminal(tmp_path, f"predict --url {url} --model {model} --input x.npy --output y.npy")
        print(answer.errors)
        assert (answer.code, answer.output) == (1, "")
        assert answer.errors.startswith(told)
        assert len(answer.errors.splitlines()) == 1
    assert digest(tmp_path) == before
