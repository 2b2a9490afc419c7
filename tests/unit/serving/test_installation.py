from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ensemble_core.serving import installation, native
from ensemble_core.serving.errors import ServingError
from ensemble_core.serving.installation import Ports

PORTS = Ports(8000, 8001, 8002)


def test_the_server_of_the_package_is_found():
    found = installation.find()
    assert found.name == "nvidia-pytriton"
    assert (found.folder / "bin" / "tritonserver").is_file()
    assert found.stub.is_file()


@pytest.fixture
def image(tmp_path: Path, monkeypatch) -> Path:
    """A folder like that of NVIDIA's image."""
    for name in ("bin/tritonserver", "backends/python/libtriton_python.so", "backends/onnxruntime/libtriton.so"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(installation, "NVIDIA", tmp_path)
    return tmp_path


def test_that_of_an_image_comes_first_with_its_native_backend(image: Path, tmp_path: Path, monkeypatch):
    (image / "TRITON_VERSION").write_text("2.59.0\n")
    found = installation.find()
    assert (found.name, found.version, found.folder) == ("tritonserver", "2.59.0", image)
    folder = tmp_path / "made"
    monkeypatch.setenv(installation.CHOICE, "python")
    assert "in Python" in installation.prepare_backends(folder)
    assert {path.name for path in folder.iterdir()} == {"python", "onnxruntime", "averaging", "member"}
    assert (folder / "onnxruntime" / "libtriton.so").is_file()
    command = installation.command(folder, "0.0.0.0", PORTS, "p", "key", installation.CONTROLLED)
    assert command[0] == str(image / "bin" / "tritonserver")


def test_the_version_of_an_image_may_be_in_its_environment(image: Path, monkeypatch):
    monkeypatch.setenv("TRITON_SERVER_VERSION", "2.60.0")
    assert installation.find().version == "2.60.0"


@pytest.mark.parametrize(
    ("controlled", "names"),
    [
        (installation.CONTROLLED, "model-repository,shared-memory,trace,logging"),
        (installation.LOCALLY_CONTROLLED, "model-repository,trace,logging"),
    ],
)
def test_the_repository_and_its_like_are_closed(tmp_path: Path, controlled: str, names: str):
    closed = installation.command(tmp_path, "0.0.0.0", PORTS, "p", "secret", controlled)
    assert f"--http-restricted-api={names}:ensemble-control=secret" in closed
    assert f"--grpc-restricted-protocol={names}:ensemble-control=secret" in closed


@pytest.fixture
def backends(image: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "backends-made"
    folder.mkdir()
    return folder


def test_the_averaging_in_cpp_is_taken_where_it_can_be_had(backends: Path, tmp_path: Path, monkeypatch):
    (tmp_path / native.LIBRARY).write_text("library")
    monkeypatch.setattr(native, "library", lambda: tmp_path / native.LIBRARY)
    assert installation.prepare_backends(backends) == "answers are averaged in C++"
    assert installation.averaging() == "native"
    assert [path.name for path in (backends / "averaging").iterdir()] == [native.LIBRARY]
    assert installation.python_backends(backends) == {"member"}


def test_elsewhere_it_is_the_one_in_python_and_people_are_told_why(backends: Path, monkeypatch):
    def library() -> Path:
        raise native.BuildError("cmake is missing")

    monkeypatch.setattr(native, "library", library)
    told = installation.prepare_backends(backends)
    assert told == "answers are averaged in Python, for there is no backend in C++: cmake is missing"
    assert installation.python_backends(backends) == {"averaging", "member"}
    assert installation.averaging() == "python"
    monkeypatch.setenv(installation.CHOICE, "native")
    with pytest.raises(ServingError, match="cmake is missing"):
        installation._native_averaging()
    monkeypatch.setenv(installation.CHOICE, "rust")
    with pytest.raises(ServingError, match="ENSEMBLE_AVERAGING is 'rust'"):
        installation._native_averaging()


@pytest.fixture
def source(tmp_path: Path, monkeypatch) -> Path:
    """Sources whose build needs no compiler, and an empty cache."""
    monkeypatch.setenv("ENSEMBLE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "source"
    (folder / "core").mkdir(parents=True)
    (folder / "core" / "one.cc").write_text("1")
    (folder / "CMakeLists.txt").write_text(f"""
        cmake_minimum_required(VERSION 3.18)
        project(stand_in LANGUAGES NONE)
        add_custom_target({native.AVERAGING} COMMAND cmake -E copy core/one.cc ${{CMAKE_BINARY_DIR}}/{native.LIBRARY}
            WORKING_DIRECTORY ${{CMAKE_SOURCE_DIR}})
    """)
    return folder


@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is missing")
def test_it_is_built_once_for_each_text_of_its_sources(source: Path, monkeypatch):
    first = native.library(source)
    assert first.read_text() == "1"
    (source / "core" / "one.cc").write_text("2")
    second = native.library(source)
    assert (second.read_text(), first.read_text()) == ("2", "1")
    monkeypatch.setenv("PATH", "")
    assert native.library(source) == second
    assert [path.name for path in second.parent.iterdir()] == [native.LIBRARY]
    (source / "core" / "one.cc").write_text("3")
    with pytest.raises(native.BuildError, match="cmake is missing"):
        native.library(source)


@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is missing")
def test_a_build_that_fails_tells_the_last_words(source: Path):
    (source / "CMakeLists.txt").write_text('message(FATAL_ERROR "no such luck")')
    with pytest.raises(native.BuildError, match="no such luck"):
        native.library(source)


def test_one_that_was_installed_is_taken(source: Path):
    (source / native.LIBRARY).touch()
    assert native.library(source) == source / native.LIBRARY


def test_without_sources_there_is_none(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("ENSEMBLE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(native.BuildError, match="not installed"):
        native.library(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setenv("ENSEMBLE_CACHE", str(tmp_path / "file"))
    with pytest.raises(native.BuildError, match="cannot be kept"):
        native.library(tmp_path)
