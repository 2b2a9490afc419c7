"""One model alone on a device, measured in a process of its own: `python -m ensemble_core.profiling.child SETTINGS`.

SETTINGS is a JSON object with the fields of `Settings`; the answer is one line of JSON on stdout. The process imports
numpy and the engine only: what else it held would count as the model's memory. ONNX Runtime, with whose answers those
of other engines are compared, comes when all is measured.

Inputs are seeded random samples of the model's type and shape, one batch used again and again: the time of a
convolutional network does not depend on their values. What engines of half precision are judged by is given.
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemble_core.outofmemory import lacks_memory
from ensemble_core.profiling.energy import metered

if TYPE_CHECKING:
    from ensemble_core.engines import Array, Engine, Model

SAMPLES = 2000  # that a cost is told for
PASSES = 5
ROUNDS = 3  # at most, when other processes disturb
FOREIGN_CORES = 0.1  # with more of other processes' load …
SPREAD = 0.1  # … and passes that differ by more than this share of their median, a round is repeated
COMPARED = 256  # samples that two engines answer
# Of answers, relative to the largest one or to 1: other engines add in another order, and TensorRT multiplies with
# 10 bits (TF32). More of a difference, or of less than so many samples the same class, and an engine is not used.
TOLERANCE = {"openvino": 1e-5, "tensorrt": 1e-3}
AGREEMENT = 0.99
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
        engine: That runs it.
        inputs: A `.npy` of samples to answer instead of seeded ones.
        answers: A folder for the answers to them, which somebody else judges: `float32.npy`, `half.npy`.
    """

    model: str
    input_type: str
    input_shape: list[int]
    cores: list[int]
    gpu: int | None
    batch_sizes: list[int]
    engine: Engine
    inputs: str | None = None
    answers: str | None = None


@dataclass(frozen=True)
class Batch:
    """Measured at one batch size: seconds of each pass over 2000 samples, peak MiB, cores that others took, and joules
    of a pass where the device tells."""

    batch_size: int
    passes: list[float]
    memory_mib: float
    foreign_cores: float
    energy_joules: float | None = None

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
    """Load the model and run it at every batch size, in ascending order.

    Another engine than ONNX Runtime may be unable to, or answer otherwise: then `refused` says why. Only memory, which
    there may be more of the next time, is an error.
    """
    from ensemble_core import engines  # with numpy: after the affinity is set

    head: dict[str, Any] = {"engine_version": engines.version_of(settings.engine)}
    load = _loader(settings, settings.engine)
    if settings.engine == engines.DEFAULT:
        return head | _measured(settings, load)[0]
    try:
        found, model = _measured(settings, load)
        answers = _answers(settings, model)
    except Exception as error:  # engines raise what they like; why it is refused is told, and the default stays
        if lacks_memory(f"{type(error).__name__}: {error}"):
            raise
        lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
        return head | {"load_seconds": 0.0, "batches": [], "refused": lines[-1] if lines else type(error).__name__}
    if settings.answers is not None:
        # A GPU may compute float32 in less: the answers that the stored predictions are compared with are the CPU's.
        expected = _answers(settings, _loader(replace(settings, gpu=None), engines.DEFAULT)())
        _save(Path(settings.answers), float32=expected, half=answers)
        return head | found
    expected = _answers(settings, _loader(settings, engines.DEFAULT)())
    return head | found | difference(expected, answers, TOLERANCE[settings.engine])


def _loader(settings: Settings, engine: Engine) -> Callable[[], Model]:
    """Has the engine imported, and loads the model with it."""
    from ensemble_core import engines

    cores = () if settings.gpu is not None else tuple(settings.cores)
    place = engines.Place(len(settings.cores), cores, settings.gpu, settings.batch_sizes[-1])
    load = engines.loader(engine)
    return lambda: load(Path(settings.model), place)


def _measured(settings: Settings, load: Callable[[], Model]) -> tuple[dict[str, Any], Model]:
    before = _gpu_memory(settings.gpu)
    start = time.perf_counter()
    model = load()
    load_seconds = time.perf_counter() - start
    batches = []
    for size in settings.batch_sizes:
        _reset_peak()
        batch = _least_disturbed(_runner(model, settings, size), size, settings.cores, settings.gpu)
        memory = _peak_mib() if settings.gpu is None else _gpu_memory(settings.gpu) - before
        batches.append({**asdict(batch), "memory_mib": memory})
    return {"load_seconds": load_seconds, "batches": batches}, model


def _runner(model: Model, settings: Settings, size: int) -> Pass:
    inputs = _inputs(settings, size)
    return lambda samples: model.run(inputs[:samples])


def _answers(settings: Settings, model: Model) -> list[Array]:
    """To the samples given or to seeded ones, in batches of the largest size measured at most."""
    inputs, largest = _compared(settings), settings.batch_sizes[-1]
    return [model.run(inputs[first : first + largest]) for first in range(0, len(inputs), largest)]


def _compared(settings: Settings) -> Array:
    import numpy as np

    if settings.inputs is None:
        return _inputs(settings, COMPARED)
    return np.asarray(np.load(settings.inputs, mmap_mode="r", allow_pickle=False))


def _save(folder: Path, **answers: list[Array]) -> None:
    import numpy as np

    for name, batches in answers.items():
        np.save(folder / f"{name}.npy", np.concatenate(batches), allow_pickle=False)


def difference(expected: list[Array], answers: list[Array], tolerance: float) -> dict[str, Any]:
    """What a profile says of an engine's answers, batch by batch, given those of ONNX Runtime.

    `refused` says why, if they differ by more than the tolerance or mean other classes. The figures are left out where
    they are no numbers.
    """
    import numpy as np

    if [each.shape for each in expected] != [each.shape for each in answers]:
        return {"refused": f"answers of shape {answers[0].shape}, not {expected[0].shape}"}
    wanted, given = np.concatenate(expected), np.concatenate(answers)
    finite = np.isfinite(wanted)
    if not np.array_equal(finite, np.isfinite(given)):
        return {"refused": "answers that are no finite numbers, or are where ONNX Runtime's are not"}
    largest = float(np.abs(wanted - given)[finite].max(initial=0.0))
    agreement = float((wanted.argmax(axis=1) == given.argmax(axis=1)).mean())
    found: dict[str, Any] = {"largest_difference": largest, "agreement": agreement}
    most = tolerance * max(1.0, float(np.abs(wanted[finite]).max(initial=0.0)))
    if largest > most or agreement < AGREEMENT:
        found["refused"] = (
            f"answers differ by up to {largest:.2g} from those of ONNX Runtime ({most:.2g} is allowed), "
            f"with the same class for {agreement:.1%} of samples"
        )
    return found


def _inputs(settings: Settings, size: int) -> Array:
    import numpy as np

    random = np.random.default_rng(0)
    shape = (size, *settings.input_shape)
    if settings.input_type == "uint8":
        return random.integers(0, 256, shape, np.uint8)
    return random.random(shape, np.float32)


def _least_disturbed(run: Pass, size: int, cores: list[int], gpu: int | None = None) -> Batch:
    """A calm round, or of at most three the one with the least foreign load."""
    for samples in {size, SAMPLES % size or size}:  # warm: buffers of both sizes are there
        run(samples)
    rounds: list[Batch] = []
    while len(rounds) < ROUNDS:
        rounds.append(_round(run, size, cores, gpu))
        if rounds[-1].foreign_cores <= FOREIGN_CORES or rounds[-1].spread <= SPREAD:
            break
    return min(rounds, key=lambda batch: batch.foreign_cores)


def _round(run: Pass, size: int, cores: list[int], gpu: int | None) -> Batch:
    ended = metered(gpu)
    start, busy, own = time.perf_counter(), _busy_seconds(cores), _own_seconds()
    passes = [_pass(run, size) for _ in range(PASSES)]
    foreign = (_busy_seconds(cores) - busy) - (_own_seconds() - own)
    seconds, joules = time.perf_counter() - start, ended()
    return Batch(size, passes, 0.0, round(max(0.0, foreign / seconds), 3), None if joules is None else joules / PASSES)


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
