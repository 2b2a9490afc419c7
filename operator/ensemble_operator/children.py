"""Which kinds of objects a custom resource can have."""

from __future__ import annotations

from collections.abc import Mapping

_OF_WORKLOADS = ("Job", "Pod", "ConfigMap", "ServiceAccount", "Role", "RoleBinding")
_OF_SERVING = (
    "Deployment",
    "Service",
    "PodDisruptionBudget",
    "NetworkPolicy",
    "HorizontalPodAutoscaler",
    "ServiceMonitor",
)

CHILDREN: Mapping[str, tuple[str, ...]] = {
    "HPOSearch": ("RayJob", *_OF_WORKLOADS, "NetworkPolicy"),
    "EnsembleSelection": _OF_WORKLOADS,
    "EnsembleDeployment": (*_OF_WORKLOADS, *_OF_SERVING),
}
