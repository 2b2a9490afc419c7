"""The averaging backend in C++: that of the image, or one that is built on this machine and kept in the user's cache.

`python -m ensemble_core.serving.native` builds it if need be, and prints where it is.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ensemble_core.library.cache import cache_folder
from ensemble_core.serving.errors import ServingError

SOURCE = Path(__file__).parent / "backends" / "averaging"
AVERAGING, FAKE = "triton_averaging", "triton_fake"  # the second are members for tests and benchmarks
LIBRARY = f"lib{AVERAGING}.so"
BUILD_SECONDS = 1800


class BuildError(ServingError):
    """The backend cannot be built here; the message says why."""


def library(source: Path = SOURCE, target: str = AVERAGING) -> Path:
    """The backend's library; built now, if it was not before. BuildError if this machine cannot build it."""
    name = f"lib{target}.so"
    if (source / name).is_file():
        return source / name
    kept = cache_folder() / "averaging" / _digest(source, target) / name
    if not kept.is_file():
        options = ("-D", "AVERAGING_TESTS=ON") if target == FAKE else ()
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".build-") as folder:
                built = build(source, Path(folder), *options, target=target)
                os.replace(built, kept)  # whole or not at all: others may build it now, too
        except OSError as error:
            raise BuildError(f"it cannot be kept: {error}") from None
    return kept


def build(source: Path, folder: Path, *options: str, target: str = AVERAGING) -> Path:
    """Build one of the libraries in a folder; BuildError with the compiler's last words, or with what is missing."""
    if not (source / "CMakeLists.txt").is_file():
        raise BuildError("its sources are not installed")
    if shutil.which("cmake") is None:
        raise BuildError("cmake is missing")
    configure = ["cmake", "-S", str(source), "-B", str(folder), *options]
    compile_ = ["cmake", "--build", str(folder), "--target", target, "--parallel", str(len(os.sched_getaffinity(0)))]
    for command in (configure, compile_):
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=BUILD_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise BuildError(f"its build takes more than {BUILD_SECONDS} s") from None
        if done.returncode != 0:
            if "CMAKE_CXX_COMPILER" in done.stdout:
                raise BuildError("a C++ compiler is missing")
            raise BuildError("its build failed\n" + "\n".join(done.stdout.splitlines()[-20:]))
    return folder / f"lib{target}.so"


def _digest(source: Path, target: str) -> str:
    """Of all that a library is made of: another text, machine or C library makes another one."""
    digest = hashlib.sha256(repr((target, platform.machine(), platform.libc_ver())).encode())
    folders = ("core", "triton", "tests") if target == FAKE else ("core", "triton")
    for path in sorted([source / "CMakeLists.txt", *(path for name in folders for path in source.glob(f"{name}/*"))]):
        if path.is_file():
            digest.update(f"{path.relative_to(source)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:32]


if __name__ == "__main__":
    try:
        print(library())
    except BuildError as error:
        sys.exit(f"the averaging backend in C++: {error}")
