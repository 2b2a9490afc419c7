"""The Triton server of this machine, and how it must be started.

Either that of NVIDIA's image, in /opt/tritonserver with the native ONNX Runtime and Python backends (not verified yet),
or that of the package nvidia-pytriton, which has the Python backend alone.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import sys
import sysconfig
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from ensemble_core import engines
from ensemble_core.serving import native
from ensemble_core.serving.errors import ServingError

NVIDIA = Path("/opt/tritonserver")
BACKENDS = Path(__file__).parent / "backends"
OURS = ("averaging", "member")
STUB = "triton_python_backend_stub"
# Which averaging backend is taken: `native`, `python`, or the native one if it can be had here.
CHOICE = "ENSEMBLE_AVERAGING"
# The header that opens what is closed to others; gRPC has it with a prefix of Triton's.
CONTROL_HEADER = "ensemble-control"
CONTROLLED = "model-repository,shared-memory,trace,logging"
LOCALLY_CONTROLLED = "model-repository,trace,logging"  # on one machine, clients send samples through shared memory


@dataclass(frozen=True)
class Ports:
    """TCP ports of the endpoints; 0 means any free one."""

    http: int = 0
    grpc: int = 0
    metrics: int = 0

    def numbers(self) -> tuple[int, int, int]:
        return self.http, self.grpc, self.metrics


@dataclass(frozen=True)
class Installation:
    """A server.

    Args:
        name, version: For digests of what was measured on it.
        folder: Holds `bin/tritonserver` and its own `backends/`.
        stub: Runs Python models, if it is not among the backend's files.
        variables: Of the environment, that it and its Python processes need.
    """

    name: str
    version: str
    folder: Path
    stub: Path | None = None
    variables: dict[str, str] = field(default_factory=dict)


def find() -> Installation:
    """The server of this machine; ServingError if there is none."""
    if (NVIDIA / "bin" / "tritonserver").is_file():
        told = NVIDIA / "TRITON_VERSION"
        release = told.read_text().strip() if told.is_file() else os.environ.get("TRITON_SERVER_VERSION", "unknown")
        return Installation("tritonserver", release, NVIDIA, variables={"PYTHONPATH": sysconfig.get_path("purelib")})
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise ServingError("the Triton server is missing: pip install --no-deps nvidia-pytriton")
    folder = Path(spec.submodule_search_locations[0]) / "tritonserver"
    packages = Path(sysconfig.get_path("purelib"))
    return Installation(
        "nvidia-pytriton",
        version("nvidia-pytriton"),
        folder,
        stub=folder / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}" / STUB,
        variables={
            "LD_LIBRARY_PATH": f"{packages / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}",
            "PYTHONPATH": str(packages),
            "VIRTUAL_ENV": sys.prefix,
            "PATH": f"{sys.prefix}/bin:{os.environ.get('PATH', os.defpath)}",
        },
    )


def averaging() -> Literal["native", "python"]:
    """Which averaging backend servers get here, built now if need be; ServingError as of `prepare_backends`."""
    library, _ = _native_averaging()
    return "python" if library is None else "native"


def prepare_backends(folder: Path) -> str:
    """Fill a backend directory: Triton's Python backend with its stub, its native ONNX Runtime if it has one, ours.

    Returns which averaging backend it is, and why, for people to read. ServingError if `$ENSEMBLE_AVERAGING` wants the
    native one and it cannot be had.
    """
    server = find()
    shutil.copytree(server.folder / "backends" / "python", folder / "python")
    if server.stub is not None:
        copied = Path(shutil.copy(server.stub, folder / "python"))
        copied.chmod(copied.stat().st_mode | stat.S_IXUSR)
    onnxruntime = server.folder / "backends" / "onnxruntime"
    if onnxruntime.is_dir():
        (folder / onnxruntime.name).symlink_to(onnxruntime)
    for name in OURS:
        (folder / name).mkdir()
    _copy_python("member", folder)
    shutil.copy(engines.__file__, folder / "member")
    library, note = _native_averaging()
    if library is None:
        _copy_python("averaging", folder)
    else:
        shutil.copy(library, folder / "averaging")
    return note


def python_backends(folder: Path) -> frozenset[str]:
    """Those of a backend directory whose models are processes of their own."""
    return frozenset(path.parent.name for path in folder.glob("*/model.py"))


def _copy_python(name: str, folder: Path) -> None:
    for source in (*(BACKENDS / name).glob("*.py"), *(BACKENDS / "common").glob("*.py")):
        shutil.copy(source, folder / name)


def _native_averaging() -> tuple[Path | None, str]:
    choice = os.environ.get(CHOICE, "")
    if choice not in ("", "native", "python"):
        raise ServingError(f"{CHOICE} is {choice!r}; native or python can be chosen")
    if choice == "python":
        return None, f"answers are averaged in Python: {CHOICE} says so"
    try:
        return native.library(), "answers are averaged in C++"
    except native.BuildError as error:
        if choice == "native":
            raise
        return None, f"answers are averaged in Python, for there is no backend in C++: {error}"


def environment() -> dict[str, str]:
    """The variables that the server and its Python processes need to find their libraries."""
    # Members bring their own threads, pinned to their cores; NumPy needs none beside them.
    return {**os.environ, **find().variables, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def command(folder: Path, address: str, ports: Ports, prefix: str, key: str, controlled: str) -> list[str]:
    """The server's command line.

    Args:
        folder: Holds `models/` and `backends/`.
        address: What the endpoints listen on.
        ports: Of the endpoints.
        prefix: Begins the names of the server's shared memory, is its own, and is told as its name.
        key: Only requests with it in the header `ensemble-control` may use what is controlled.
        controlled: Triton's names of what is closed to others, `CONTROLLED` or `LOCALLY_CONTROLLED`.
    """
    rule = f"{controlled}:{CONTROL_HEADER}={key}"
    options = {
        "http-restricted-api": rule,
        "grpc-restricted-protocol": rule,
        "model-repository": folder / "models",
        "backend-directory": folder / "backends",
        "model-control-mode": "explicit",
        "model-load-thread-count": 4,
        # What is in flight may end; a model that once failed to load would keep the server for as long, too.
        "exit-timeout-secs": 5,
        "id": prefix,
        **{f"{field.name}-address": address for field in fields(ports)},
        **{f"{field.name}-port": getattr(ports, field.name) for field in fields(ports)},
    }
    python = {"shm-region-prefix-name": prefix, "shm-default-byte-size": 1 << 20, "stub-timeout-seconds": 300}
    return [
        str(find().folder / "bin" / "tritonserver"),
        "--disable-auto-complete-config",  # it starts every Python model twice, and ours say all there is
        *(f"--{name}={value}" for name, value in options.items()),
        *(f"--backend-config=python,{name}={value}" for name, value in python.items()),
    ]
