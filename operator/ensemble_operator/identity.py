"""Who a workload is: a service account that may patch one ConfigMap, its report, and nothing else."""

from __future__ import annotations

from ensemble_operator.names import Component, Owner, metadata
from ensemble_operator.pods import SPEC_KEY
from ensemble_operator.world import Manifest


def spec_name(child: str) -> str:
    """The ConfigMap with what a child reads."""
    return f"{child}-spec"


def report_name(child: str) -> str:
    """The ConfigMap with what a child reports."""
    return f"{child}-report"


def service_account(child: str, given: str | None) -> str:
    """The service account of a child's pods; `given` is `spec.serviceAccountName`."""
    return given or child


def specification(owner: Owner, component: Component, child: str, text: str, annotations: dict[str, str]) -> Manifest:
    """The ConfigMap with the documents that a child reads; it never changes."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(owner, component, spec_name(child), child=child, annotations=annotations),
        "immutable": True,
        "data": {SPEC_KEY: text},
    }


def identity(owner: Owner, component: Component, child: str, given: str | None = None) -> tuple[Manifest, ...]:
    """The report's ConfigMap, without data because only the workload writes it, and the right to patch it.

    Args:
        given: `spec.serviceAccountName`; without it the child gets an account of its own, named as the child.
    """
    own = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata(owner, component, child, child=child),
        "automountServiceAccountToken": False,
    }
    report = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(owner, component, report_name(child), child=child),
    }
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": metadata(owner, component, child, child=child),
        "rules": [
            {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [report_name(child)], "verbs": ["patch"]}
        ],
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": metadata(owner, component, child, child=child),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": child},
        "subjects": [{"kind": "ServiceAccount", "name": service_account(child, given), "namespace": owner.namespace}],
    }
    return (*(() if given else (own,)), report, role, binding)
