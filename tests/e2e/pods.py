"""Pods of a test's own, which the `restricted` Pod Security Standard admits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.e2e.cluster import Manifest

USER = 65532


def pod(name: str, containers: Sequence[Manifest], volumes: Sequence[Manifest] = (), **spec: Any) -> Manifest:
    """A pod that runs to its end, without a token."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "fsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": list(containers),
            "volumes": list(volumes),
            **spec,
        },
    }


def container(name: str, image: str, mounts: Sequence[Manifest], **more: Any) -> Manifest:
    """A small container whose own files are read-only."""
    return {
        "name": name,
        "image": image,
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": list(mounts),
        **more,
    }
