"""What the Helm chart renders, and the rights that it gives the operator."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/ensemble-operator"
KUBERNETES = "1.34"  # without a cluster to ask, Helm takes its own


class Right(NamedTuple):
    """A verb on a resource, or on a part of one: `hposearches/status`."""

    group: str
    resource: str
    verb: str


def go_tool(name: str) -> str:
    """A program on the path, or where `go install` puts it."""
    folders = [os.environ["PATH"]]
    if shutil.which("go"):
        paths = subprocess.run(["go", "env", "GOBIN", "GOPATH"], capture_output=True, text=True, check=True, timeout=60)
        binaries, home = paths.stdout.splitlines()
        folders.append(binaries or f"{home}/bin")
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        pytest.fail(f"{name} is neither on the path nor where `go install` puts programs; `make tools` installs it")
    return found


@cache
def cluster_role() -> dict[str, Any]:
    """The operator's ClusterRole of an installation for the whole cluster."""
    options = ["--show-only=templates/rbac.yaml", f"--kube-version={KUBERNETES}"]
    command = [go_tool("helm"), "template", "ensemble-operator", str(CHART), *options]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    (found,) = [one for one in yaml.safe_load_all(ran.stdout) if one and one["kind"] == "ClusterRole"]
    return dict(found)


def granted() -> set[Right]:
    """All rights of that role."""
    return {
        Right(*right)
        for rule in cluster_role()["rules"]
        for right in itertools.product(rule["apiGroups"], rule["resources"], rule["verbs"])
    }
