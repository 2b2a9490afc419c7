"""What the images promise, as far as it can be read in their Dockerfiles."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCKERFILES = [ROOT / folder / "Dockerfile" for folder in ("operator", "trainer-image", "allocator")]
OPERATOR, TRAINER, CORE = DOCKERFILES
LABELS = {"title", "description", "version"}


def instructions(dockerfile: Path) -> list[str]:
    """One line for each instruction."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.startswith("#")]
    return [line.strip() for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]


def stage(dockerfile: Path, name: str) -> list[str]:
    found = instructions(dockerfile)
    first = next(index for index, line in enumerate(found) if line.endswith(f" AS {name}"))
    rest = found[first + 1 :]
    return rest[: next(index for index, line in enumerate(rest) if line.startswith("FROM "))]


def packages(requirements: str) -> set[str]:
    return set(re.findall(r"^([a-z0-9._-]+)==", (ROOT / "requirements" / requirements).read_text(), re.MULTILINE))


def test_trainer_and_core_have_the_same_first_layers() -> None:
    assert stage(TRAINER, "core") == stage(CORE, "core")


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_an_image_is_labelled_and_runs_as_nobody(dockerfile: Path) -> None:
    text = "\n".join(instructions(dockerfile))
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert set(re.findall(r"org\.opencontainers\.image\.(\w+)=", text)) == LABELS
    assert f"ARG VERSION={version}\n" in text
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE)[-1] == "65532:65532"


@pytest.mark.parametrize("dockerfile", [*DOCKERFILES, ROOT / "tests/e2e/Dockerfile"], ids=lambda path: path.parent.name)
def test_every_package_is_pinned_by_its_hash(dockerfile: Path) -> None:
    for command in re.findall(r"pip install ([^;&|]+)", "\n".join(instructions(dockerfile))):
        assert "--require-hashes" in command or command.strip() == "--no-deps /tmp/wheel/*.whl", command
        assert "--no-deps" in command


def test_the_operator_has_nothing_that_learns() -> None:
    assert not packages("operator.txt") & {"torch", "ray", "numpy", "scipy", "onnxruntime"}


def test_the_core_has_no_torch() -> None:
    assert not packages("core.txt") & {"torch", "ray", "optuna"}


def test_without_accelerators_everything_else_is_the_same() -> None:
    left_out = packages("local.txt") - packages("cpu.txt")
    assert packages("cpu.txt") < packages("local.txt")
    assert all(re.match("nvidia-|cuda-|triton$", name) for name in left_out)
    assert packages("core.txt") < packages("cpu.txt")
