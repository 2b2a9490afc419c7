"""One of Kueue's queues, for tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.e2e.cluster import Namespace, run

NAME = "e2e"  # of the cluster's queue; the namespace's is called research
NEEDED = ("rayjobs.ray.io", "clusterqueues.kueue.x-k8s.io")


@contextmanager
def queue_of(namespace: Namespace) -> Iterator[str]:
    """Name of a ClusterQueue that admits nothing yet; the namespace's LocalQueue `research` leads to it."""
    if missing := [name for name in NEEDED if not has(name)]:
        pytest.fail(f"the cluster has no {', '.join(missing)}: KubeRay and Kueue are needed")
    namespace.apply(Path(__file__).with_name("kueue.yaml"))
    try:
        yield NAME
    finally:
        run("kubectl", "delete", "clusterqueue,resourceflavor", NAME, "--wait=false")


def set_policy(queue: str, policy: str) -> None:
    """`None` admits, `Hold` admits nothing more, `HoldAndDrain` also evicts what was admitted."""
    patch = json.dumps({"spec": {"stopPolicy": policy}})
    run("kubectl", "patch", "clusterqueue", queue, "--type=merge", "--patch", patch)


def has(definition: str) -> bool:
    """Whether the cluster has a custom resource definition."""
    found = run("kubectl", "get", "crd", "--output=json", "--ignore-not-found", definition)
    return json.loads(found or "null") is not None
