"""What others define: their schemas and sources, as Go modules bring them. They are read where they lie."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest


def module(path: str) -> Path:
    """The folder of the newest downloaded version of a Go module; the test is skipped without any."""
    folder = _modules() / path
    found = sorted(folder.parent.glob(f"{folder.name}@v*"))
    if not found:
        pytest.skip(f"needs the Go module {path}, which the test bed downloads when it is built")
    return found[-1]


def _modules() -> Path:
    if given := os.environ.get("GOMODCACHE"):
        return Path(given)
    try:
        told = subprocess.run(["go", "env", "GOMODCACHE"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return Path.home() / "go/pkg/mod"
    return Path(told.stdout.strip())


@pytest.fixture(scope="session")
def kuberay() -> Path:
    return module("github.com/ray-project/kuberay/ray-operator")


@pytest.fixture(scope="session")
def kueue() -> Path:
    return module("sigs.k8s.io/kueue")


@pytest.fixture(scope="session")
def kubernetes() -> Path:
    return module("k8s.io/kubernetes")
