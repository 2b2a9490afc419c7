"""A Triton server with fake members, and the ways to average what they answer."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb

from ensemble_core.library.records import Signature
from ensemble_core.serving import exposition, installation, native
from ensemble_core.serving.installation import Ports
from ensemble_core.serving.process import ServerProcess

MODELS = Path(__file__).parent / "models"
CPP, PYTHON, NATIVE_ENSEMBLE = "averaging", "averaging_python", "ensemble"  # backends of front models
MAX_BATCH_SIZE = 1 << 16


@dataclass(frozen=True)
class Design:
    """A way to average.

    Args:
        name: For people.
        backend: CPP, PYTHON, or NATIVE_ENSEMBLE for Triton's own ensemble with a mean in Python.
        by_reference: Whether the members are Python models that take references, or in C++ and take samples.
    """

    name: str
    backend: str
    by_reference: bool = False


class Fakes:
    """A running server.

    Args:
        folder: With its models and backends.
        signature: Of all its models.
        segment: Samples of a segment, and of a call of a member at most.
    """

    def __init__(self, folder: Path, signature: Signature, segment: int) -> None:
        self._folder, self._signature, self._segment = folder, signature, segment
        self.process = ServerProcess(folder, "127.0.0.1", Ports(), threading.Event())

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.process.ports.grpc}"

    @contextlib.contextmanager
    def members(self, count: int, by_reference: bool = False, delay_us: int = 0) -> Iterator[list[str]]:
        """Names of members that are loaded meanwhile; a call takes those in C++ so many microseconds."""
        names = [f"{'reference' if by_reference else 'zero'}-{delay_us}-{index}" for index in range(count)]
        configs = [self._reference(name) if by_reference else self._zero(name, delay_us) for name in names]
        with self._loaded(configs):
            yield names

    @contextlib.contextmanager
    def front(self, design: Design, members: Sequence[str]) -> Iterator[str]:
        """Name of a front model that is loaded meanwhile."""
        name = f"{design.backend}-{len(members)}"
        if design.backend == NATIVE_ENSEMBLE:
            configs = [self._mean(f"mean-{len(members)}", len(members)), self._ensemble(name, members)]
        else:
            configs = [self._averaging(name, design, members)]
        with self._loaded(configs):
            yield name

    def copied(self, model: str) -> int:
        """Bytes of inputs that a front model says it has copied so far."""
        snapshot = exposition.read(f"127.0.0.1:{self.process.ports.metrics}", time.monotonic())
        return round(sum(snapshot.of("ensemble_copied_bytes_total", model=model).values()))

    @contextlib.contextmanager
    def _loaded(self, configs: Sequence[Any]) -> Iterator[None]:
        with contextlib.ExitStack() as loaded:
            for config in configs:
                self._write(config)
                self.process.control.load(config.name)
                loaded.callback(self.process.control.unload, config.name)
            yield

    def _write(self, config: Any) -> None:
        folder = self._folder / "models" / config.name
        (folder / "1").mkdir(parents=True, exist_ok=True)
        (folder / "config.pbtxt").write_text(str(config))
        if config.backend == "python":
            source = "mean" if config.name.startswith("mean") else "reference"
            shutil.copy(MODELS / f"{source}.py", folder / "1" / "model.py")
            shutil.copy(installation.BACKENDS / "common" / "tensors.py", folder / "1")

    def _config(self, name: str, backend: str) -> Any:
        """A model of the signature."""
        config = pb.ModelConfig(name=name, backend=backend, max_batch_size=MAX_BATCH_SIZE)
        config.input.add(name="INPUT", data_type=pb.TYPE_FP32, dims=self._signature.input_shape)
        config.output.add(name="PROBABILITIES", data_type=pb.TYPE_FP32, dims=[self._signature.classes])
        config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)
        return config

    def _zero(self, name: str, delay_us: int) -> Any:
        config = self._config(name, "fake")
        config.parameters["delay_us"].string_value = str(delay_us)
        return config

    def _reference(self, name: str) -> Any:
        config = self._config(name, "python")
        del config.input[:], config.output[:]
        config.max_batch_size = 0
        config.input.add(name="SEG", data_type=pb.TYPE_INT64, dims=[4])
        config.output.add(name="PROBABILITIES", data_type=pb.TYPE_FP32, dims=[-1, self._signature.classes])
        config.output.add(name="CALL", data_type=pb.TYPE_INT64, dims=[1])
        return config

    def _averaging(self, name: str, design: Design, members: Sequence[str]) -> Any:
        config = self._config(name, design.backend)
        config.output.add(name="ANSWERED", data_type=pb.TYPE_BOOL, dims=[len(members)])
        given = "SEG" if design.by_reference else "INPUT"
        entries = [
            {"model": each, "weight": 1.0, "workers": [{"model": each, "batch": self._segment, "input": given}]}
            for each in members
        ]
        config.parameters["workers"].string_value = json.dumps({"members": entries})
        config.parameters["segment_size"].string_value = str(self._segment)
        return config

    def _mean(self, name: str, members: int) -> Any:
        config = self._config(name, "python")
        del config.input[:]
        for index in range(members):
            config.input.add(name=f"ANSWER_{index}", data_type=pb.TYPE_FP32, dims=[self._signature.classes])
        return config

    def _ensemble(self, name: str, members: Sequence[str]) -> Any:
        config = self._config(name, "")
        del config.instance_group[:]
        config.platform = "ensemble"
        last = pb.ModelEnsembling.Step(model_name=f"mean-{len(members)}", model_version=-1)
        for index, each in enumerate(members):
            step = config.ensemble_scheduling.step.add(model_name=each, model_version=-1)
            step.input_map["INPUT"] = "INPUT"
            step.output_map["PROBABILITIES"] = last.input_map[f"ANSWER_{index}"] = f"answer_{index}"
        last.output_map["PROBABILITIES"] = "PROBABILITIES"
        config.ensemble_scheduling.step.append(last)
        return config


@contextlib.contextmanager
def started(signature: Signature, segment: int) -> Iterator[Fakes]:
    """A server that has the averaging backends in C++ and in Python; BuildError where the first cannot be built."""
    os.environ[installation.CHOICE] = "native"
    fake = native.library(target=native.FAKE)
    with tempfile.TemporaryDirectory(prefix="serving-") as name:
        folder = Path(name)
        (folder / "models").mkdir()
        backends = folder / "backends"
        installation.prepare_backends(backends)
        for backend in ("fake", PYTHON):
            (backends / backend).mkdir()
        (backends / "fake" / fake.name).symlink_to(fake)
        for part in ("averaging", "common"):
            for source in (installation.BACKENDS / part).glob("*.py"):
                shutil.copy(source, backends / PYTHON)
        fakes = Fakes(folder, signature, segment)
        fakes.process.start()
        try:
            yield fakes
        finally:
            fakes.process.end()
