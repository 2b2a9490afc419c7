from __future__ import annotations

from pathlib import Path

import pytest

from ensemble_core.serving import installation
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


def test_that_of_an_image_comes_first_with_its_native_backend(image: Path, tmp_path: Path):
    (image / "TRITON_VERSION").write_text("2.59.0\n")
    found = installation.find()
    assert (found.name, found.version, found.folder) == ("tritonserver", "2.59.0", image)
    folder = tmp_path / "made"
    installation.prepare_backends(folder)
    assert {path.name for path in folder.iterdir()} == {"python", "onnxruntime", "averaging", "member"}
    assert (folder / "onnxruntime" / "libtriton.so").is_file()
    assert installation.command(folder, "0.0.0.0", PORTS, "p")[0] == str(image / "bin" / "tritonserver")


def test_the_version_of_an_image_may_be_in_its_environment(image: Path, monkeypatch):
    monkeypatch.setenv("TRITON_SERVER_VERSION", "2.60.0")
    assert installation.find().version == "2.60.0"


def test_with_a_key_the_repository_and_its_like_are_closed(tmp_path: Path):
    rule = "model-repository,shared-memory,trace,logging:ensemble-control=secret"
    closed = installation.command(tmp_path, "0.0.0.0", PORTS, "p", "secret")
    assert f"--http-restricted-api={rule}" in closed
    assert f"--grpc-restricted-protocol={rule}" in closed
    assert not any("restricted" in option for option in installation.command(tmp_path, "127.0.0.1", PORTS, "p"))
