"""A real server with fake members behind the averaging backend, which is the one in C++ or the one in Python."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tritonclient import grpc
from tritonclient.grpc import model_config_pb2 as pb

from ensemble_core.serving import installation, native
from ensemble_core.serving.client import connect
from ensemble_core.serving.installation import Ports
from ensemble_core.serving.process import ServerProcess

ROOT = Path(__file__).parents[2]
WIDTH = 4  # numbers of a sample
# `address,undefined` or `thread`: what the backend in C++ is built with.
SANITIZER = os.environ.get("AVERAGING_SANITIZER")
SECONDS = 60


@dataclass(frozen=True)
class Worker:
    """A fake member's worker: its batch size and share, and how it behaves (parameters of the fake backend).

    With `code` it is a Triton Python model instead, which takes references to samples.
    """

    name: str
    batch: int = 8
    share: float = 1.0
    behaviour: dict[str, str] = field(default_factory=dict)
    classes: int = 2
    code: str | None = None


@dataclass(frozen=True)
class Answer:
    probabilities: npt.NDArray[np.float32]
    answered: npt.NDArray[np.bool_]
    parameter: str | None  # names of the members that answered everything, where the backend can tell
    disagreement: npt.NDArray[np.float32]


class Server:
    """The server, and what tests ask of it."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.kind = kind
        self.folder = folder
        self._numbers = itertools.count()
        self.process = ServerProcess(folder, "127.0.0.1", Ports(), threading.Event())

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.process.ports.grpc}"

    @contextlib.contextmanager
    def front(self, name: str, members: dict[str, list[Worker]], classes: int = 2, **parameters: Any) -> Iterator[str]:
        """A front model of fake members, loaded meanwhile; its name. Further parameters are the front model's own."""
        workers = [worker for each in members.values() for worker in each]
        name = f"{name}-{next(self._numbers)}"  # of which no earlier one is on its way out
        self._write_front(name, members, classes, parameters)
        for worker in workers:
            if worker.behaviour.get("missing") is None:
                self._write_worker(worker)
                self.process.control.load(worker.name)
        self.process.control.load(name)
        try:
            yield name
        finally:
            self.process.control.unload(name)
            for worker in workers:
                self.process.control.unload(worker.name)

    def write(self, config: pb.ModelConfig) -> None:
        folder = self.folder / "models" / config.name
        (folder / "1").mkdir(parents=True, exist_ok=True)
        (folder / "config.pbtxt").write_text(str(config))

    def _write_worker(self, worker: Worker) -> None:
        if worker.code is not None:
            return self._write_code(worker.name, worker.classes, worker.code)
        config = pb.ModelConfig(name=worker.name, backend="fake", max_batch_size=worker.batch)
        config.input.add(name="INPUT", data_type=pb.TYPE_FP32, dims=[WIDTH])
        config.output.add(name="PROBABILITIES", data_type=pb.TYPE_FP32, dims=[worker.classes])
        config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)
        for key, value in worker.behaviour.items():
            config.parameters[key].string_value = value
        self.write(config)

    def _write_code(self, name: str, classes: int, code: str) -> None:
        config = pb.ModelConfig(name=name, backend="python", max_batch_size=0)
        config.input.add(name="SEG", data_type=pb.TYPE_INT64, dims=[4])
        config.output.add(name="PROBABILITIES", data_type=pb.TYPE_FP32, dims=[-1, classes])
        config.output.add(name="CALL", data_type=pb.TYPE_INT64, dims=[1])
        config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)
        self.write(config)
        folder = self.folder / "models" / name / "1"
        (folder / "model.py").write_text(code)
        (folder / "tensors.py").write_text((self.folder / "backends" / "member" / "tensors.py").read_text())

    def _write_front(self, name: str, members: dict[str, list[Worker]], classes: int, given: dict[str, Any]) -> None:
        weights = given.pop("weights", [1.0] * len(members))
        config = pb.ModelConfig(name=name, backend="averaging", max_batch_size=100_000)
        config.input.add(name="INPUT", data_type=pb.TYPE_FP32, dims=[WIDTH])
        config.output.add(name="PROBABILITIES", data_type=pb.TYPE_FP32, dims=[classes])
        config.output.add(name="ANSWERED", data_type=pb.TYPE_BOOL, dims=[len(members)])
        config.output.add(name="DISAGREEMENT", data_type=pb.TYPE_FP32, dims=[1])
        config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)
        entries = [
            {
                "model": member,
                "weight": weight,
                "workers": [
                    {"model": w.name, "batch": w.batch, "share": w.share, "input": "SEG" if w.code else "INPUT"}
                    for w in workers
                ],
            }
            for (member, workers), weight in zip(members.items(), weights, strict=True)
        ]
        for key, value in {"workers": json.dumps({"members": entries}), **given}.items():
            config.parameters[key].string_value = str(value)
        self.write(config)

    def ask(self, model: str, samples: npt.NDArray[np.float32]) -> Answer:
        with connect(self.url) as client:
            given = grpc.InferInput("INPUT", list(samples.shape), "FP32")
            given.set_data_from_numpy(samples)
            answer = client.infer(model, [given], client_timeout=SECONDS)
            told = answer.get_response().parameters
            return Answer(
                answer.as_numpy("PROBABILITIES"),
                answer.as_numpy("ANSWERED"),
                told["answered"].string_param if "answered" in told else None,
                answer.as_numpy("DISAGREEMENT"),
            )

    def ask_all(self, model: str, requests: list[npt.NDArray[np.float32]]) -> list[Answer]:
        """Ask at the same time."""
        with ThreadPoolExecutor(len(requests)) as pool:
            return list(pool.map(lambda samples: self.ask(model, samples), requests))

    def metrics(self, name: str, **labels: str) -> int:
        """The sum of a counter's values that have these labels."""
        address = f"http://127.0.0.1:{self.process.ports.metrics}/metrics"
        with urllib.request.urlopen(address, timeout=SECONDS) as answer:
            lines = answer.read().decode().splitlines()
        total = 0.0
        for line in lines:
            if line.startswith(f"{name}{{"):
                found = dict(re.findall(r'(\w+)="([^"]*)"', line))
                total += float(line.split()[-1]) if labels.items() <= found.items() else 0.0
        return int(total)

    def executions(self, model: str) -> int:
        """Calls that a fake member's worker has ended."""
        with connect(self.url) as client:
            return int(client.get_inference_statistics(model).model_stats[0].execution_count)


def rows(count: int, first: float | None = None, seed: int = 0) -> npt.NDArray[np.float32]:
    """Samples whose first number is given, or random."""
    samples = np.random.default_rng(seed).integers(0, 50, (count, WIDTH)).astype(np.float32)
    if first is not None:
        samples[:, 0] = first
    return samples


@contextlib.contextmanager
def started(kind: str, fake: Path, folder: Path) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(installation.CHOICE, kind)
        (folder / "models").mkdir()
        (folder / "backends" / "fake").mkdir(parents=True)
        installation.prepare_backends(folder / "backends")
        (folder / "backends" / "fake" / fake.name).symlink_to(fake)
        server = Server(folder, kind)
        if SANITIZER and kind == "native":
            sanitize(folder / "backends" / "averaging", SANITIZER, environment)
        server.process.start()
        try:
            yield server
        finally:
            server.process.end()
        log = (folder / "server.log").read_text()
        assert not re.search(r"Sanitizer|runtime error", log), log[-10_000:]


def sanitize(backend: Path, sanitizer: str, environment: pytest.MonkeyPatch) -> None:
    """Put a backend there that was built with the sanitizer, whose own library the server must load first."""
    environment.delenv("LD_PRELOAD", raising=False)  # of another server; no tool should load it
    folder = ROOT / "build" / f"averaging-{sanitizer}"  # where `make test-backend` builds, too
    built = native.build(native.SOURCE, folder, "-D", f"AVERAGING_SANITIZER={sanitizer}")
    (backend / built.name).unlink()
    (backend / built.name).symlink_to(built)
    runtime = {"address": "libasan.so", "thread": "libtsan.so"}[sanitizer.split(",")[0]]
    found = subprocess.run(["c++", f"-print-file-name={runtime}"], capture_output=True, text=True, check=True)
    environment.setenv("LD_PRELOAD", found.stdout.strip())
    # What the server itself leaks at its end is not ours; what the backend leaks, its unit tests tell.
    environment.setenv("ASAN_OPTIONS", "detect_leaks=0")
    # The server itself was not built with it: only what the backend does can be judged.
    environment.setenv("TSAN_OPTIONS", "ignore_noninstrumented_modules=1")
