"""The Triton server of the package nvidia-pytriton, and how it must be started."""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import sys
import sysconfig
from dataclasses import dataclass, fields
from pathlib import Path

from ensemble_core.serving.errors import ServingError

BACKENDS = Path(__file__).parent / "backends"
OURS = ("averaging", "member")


@dataclass(frozen=True)
class Ports:
    """TCP ports of the endpoints; 0 means any free one."""

    http: int = 0
    grpc: int = 0
    metrics: int = 0

    def numbers(self) -> tuple[int, int, int]:
        return self.http, self.grpc, self.metrics


def tritonserver() -> Path:
    """The folder of the server; ServingError if its package is not installed."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise ServingError("the Triton server is missing: pip install --no-deps nvidia-pytriton")
    return Path(spec.submodule_search_locations[0]) / "tritonserver"


def prepare_backends(folder: Path) -> None:
    """Fill a backend directory: Triton's Python backend with the stub of this Python, and ours."""
    server = tritonserver()
    stub = f"{sys.version_info.major}.{sys.version_info.minor}/triton_python_backend_stub"
    shutil.copytree(server / "backends" / "python", folder / "python")
    copied = Path(shutil.copy(server / "python_backend_stubs" / stub, folder / "python"))
    copied.chmod(copied.stat().st_mode | stat.S_IXUSR)
    for name in OURS:
        (folder / name).mkdir()
        for source in (*(BACKENDS / name).glob("*.py"), *(BACKENDS / "common").glob("*.py")):
            shutil.copy(source, folder / name)


def environment() -> dict[str, str]:
    """The variables that the server and its Python processes need to find their libraries."""
    packages = Path(sysconfig.get_path("purelib"))
    libraries = f"{packages / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
    return {
        **os.environ,
        "LD_LIBRARY_PATH": libraries,
        "PYTHONPATH": str(packages),
        "VIRTUAL_ENV": sys.prefix,
        "PATH": f"{sys.prefix}/bin:{os.environ.get('PATH', os.defpath)}",
        # Members bring their own threads, pinned to their cores; NumPy needs none beside them.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def command(folder: Path, address: str, ports: Ports, prefix: str) -> list[str]:
    """The server's command line; `prefix` begins the names of its shared memory, and is its own."""
    options = {
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
        str(tritonserver() / "bin" / "tritonserver"),
        "--disable-auto-complete-config",  # it starts every Python model twice, and ours say all there is
        *(f"--{name}={value}" for name, value in options.items()),
        *(f"--backend-config=python,{name}={value}" for name, value in python.items()),
    ]
