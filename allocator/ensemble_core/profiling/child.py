"""One model alone on a device, measured in a process of its own: `python -m ensemble_core.profiling.child SETTINGS`.

SETTINGS is a JSON object with the fields of `Settings`; the answer is one line of JSON on stdout. The process imports
numpy and ONNX Runtime only: what else it held would count as the model's memory.

Inputs are seeded random samples of the model's type and shape, one batch used again and again: libraries hold no
inputs, and the time of a convolutional network does not depend on their values.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SAMPLES = 2000  # that a cost is told for
PASSES = 5
ROUNDS = 3  # at most, when other processes disturb
FOREIGN_CORES = 0.1  # with more of other processes' load …
SPREAD = 0.1  # … and passes that differ by more than this share of their median, a round is repeated
_PR_SET_PDEATHSIG = 1
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Args:
        model: The ONNX file.
        input_type: `uint8` or `float32`.
        input_shape: Of one sample.
        cores: Cores to run on, for a CPU.
        gpu: Ordinal of the GPU, else none.
        batch_sizes: Ascending.
    """

    model: str
    input_type: str
    input_shape: list[int]
    cores: list[int]
    gpu: int | None
    batch_sizes: list[int]


@dataclass(frozen=True)
class Batch:
    """Measured at one batch size: seconds of each pass over 2000 samples, peak MiB, cores that others took."""

    batch_size: int
    passes: list[float]
    memory_mib: float
    foreign_cores: float

    @property
    def spread(self) -> float:
        return (max(self.passes) - min(self.passes)) / statistics.median(self.passes)


Pass = Callable[[int], object]  # runs the model on one batch of this size


def main() -> None:
    settings = Settings(**json.loads(sys.argv[1]))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # nobody waits for it once the command is gone
    os.sched_setaffinity(0, settings.cores)  # before any thread is made, so that all inherit it
    print(json.dumps(measure(settings)))


def measure(settings: Settings) -> dict[str, Any]:
    """Load the model and run it at every batch size, in ascending order."""
    import onnxruntime  # after the affinity is set

    before = _gpu_memory(settings.gpu)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = len(settings.cores), 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    providers = [("CUDAExecutionProvider", {"device_id": settings.gpu}), "CPUExecutionProvider"]
    start = time.perf_counter()
    session = onnxruntime.InferenceSession(
        settings.model, options, providers=providers if settings.gpu is not None else providers[1:]
    )
    load_seconds = time.perf_counter() - start
    if settings.gpu is not None and "CUDAExecutionProvider" not in session.get_providers():
        raise RuntimeError("this ONNX Runtime has no CUDA: install onnxruntime-gpu")
    batches = []
    for size in settings.batch_sizes:
        _reset_peak()
        batch = _least_disturbed(_runner(session, settings, size), size, settings.cores)
        memory = _peak_mib() if settings.gpu is None else _gpu_memory(settings.gpu) - before
        batches.append({**asdict(batch), "memory_mib": memory})
    return {"engine_version": onnxruntime.__version__, "load_seconds": load_seconds, "batches": batches}


def _runner(session: Any, settings: Settings, size: int) -> Pass:
    import numpy as np

    random = np.random.default_rng(0)
    shape = (size, *settings.input_shape)
    if settings.input_type == "uint8":
        inputs: Any = random.integers(0, 256, shape, np.uint8)
    else:
        inputs = random.random(shape, np.float32)
    name = session.get_inputs()[0].name
    return lambda samples: session.run(None, {name: inputs[:samples]})


def _least_disturbed(run: Pass, size: int, cores: list[int]) -> Batch:
    """A calm round, or of at most three the one with the least foreign load."""
    for samples in {size, SAMPLES % size or size}:  # warm: buffers of both sizes are there
        run(samples)
    rounds: list[Batch] = []
    while len(rounds) < ROUNDS:
        rounds.append(_round(run, size, cores))
        if rounds[-1].foreign_cores <= FOREIGN_CORES or rounds[-1].spread <= SPREAD:
            break
    return min(rounds, key=lambda batch: batch.foreign_cores)


def _round(run: Pass, size: int, cores: list[int]) -> Batch:
    start, busy, own = time.perf_counter(), _busy_seconds(cores), _own_seconds()
    passes = [_pass(run, size) for _ in range(PASSES)]
    foreign = (_busy_seconds(cores) - busy) - (_own_seconds() - own)
    return Batch(size, passes, 0.0, round(max(0.0, foreign / (time.perf_counter() - start)), 3))


def _pass(run: Pass, size: int) -> float:
    start = time.perf_counter()
    for first in range(0, SAMPLES, size):
        run(min(size, SAMPLES - first))
    return time.perf_counter() - start


def _own_seconds() -> float:
    return time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID)


def _busy_seconds(cores: list[int]) -> float:
    """Time that these cores spent on anything, stolen time included; in ticks of usually 10 ms."""
    wanted = {f"cpu{core}" for core in cores}
    rows = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    # user nice system idle iowait irq softirq steal
    return sum(sum(map(int, row[1:9])) - int(row[4]) - int(row[5]) for row in rows if row and row[0] in wanted) / _TICKS


def _reset_peak() -> None:
    """Let the kernel forget the peak; where that is not allowed, ascending batch sizes keep peaks meaningful."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_mib() -> float:
    """Peak resident memory of this process since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def _gpu_memory(ordinal: int | None) -> float:
    """MiB in use on a GPU, by anyone: containers hide which process is which. Unverified on a machine with a GPU."""
    if ordinal is None:
        return 0.0
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", f"--id={ordinal}"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout)


if __name__ == "__main__":
    main()
