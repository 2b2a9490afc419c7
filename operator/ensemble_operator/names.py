"""Names, labels and owner references of the objects that belong to a custom resource."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ensemble_core.api.common import API_VERSION, GROUP
from ensemble_operator.world import Manifest

FIELD_MANAGER = "ensemble-operator"
MANAGED_BY = "app.kubernetes.io/managed-by"
APPLICATION = "app.kubernetes.io/name"
COMPONENT = "app.kubernetes.io/component"
OWNER_KIND = f"{GROUP}/kind"
OWNER_NAME = f"{GROUP}/name"
OWNER_UID = f"{GROUP}/uid"
CHILD = f"{GROUP}/child"
ATTEMPT = f"{GROUP}/attempt"
BASIS = f"{GROUP}/basis"
SPEC_HASH = f"{GROUP}/spec-hash"
SEEN = f"{GROUP}/seen"
REVISION = f"{GROUP}/revision"
LIBRARY_FINALIZER = f"{GROUP}/library"
KUEUE_LABELS = ("kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class")

NAME_LIMIT = 63
RAYJOB_LIMIT = 47  # KubeRay appends to it

Component = Literal["train", "select", "poll", "allocate", "serve", "delete"]


class Named(Protocol):
    """A parsed custom resource."""

    @property
    def kind(self) -> str: ...

    @property
    def metadata(self) -> Any: ...


@dataclass(frozen=True)
class Owner:
    """The custom resource that objects belong to.

    Args:
        queue: Those of its labels that are Kueue's; they go to whatever Kueue can queue.
    """

    kind: str
    name: str
    namespace: str
    uid: str
    queue: Mapping[str, str] = field(default_factory=dict)


def owner_of(resource: Named, body: Manifest) -> Owner:
    """The owner that a custom resource is, as parsed and as read."""
    metadata = body["metadata"]
    given = metadata.get("labels") or {}
    queue = {label: given[label] for label in KUEUE_LABELS if label in given}
    return Owner(resource.kind, metadata["name"], metadata["namespace"], metadata["uid"], queue)


def labels(owner: Owner, component: Component, child: str | None = None) -> dict[str, str]:
    """Labels of every object and pod; `child` is the name of the workload that an object belongs to."""
    common = {
        MANAGED_BY: FIELD_MANAGER,
        APPLICATION: "ensemble",
        COMPONENT: component,
        OWNER_KIND: owner.kind,
        OWNER_NAME: owner.name,
        OWNER_UID: owner.uid,
    }
    return common | ({CHILD: child} if child else {})


def metadata(
    owner: Owner,
    component: Component,
    name: str,
    *,
    child: str | None = None,
    extra_labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Manifest:
    """Metadata of an object that goes when its owner goes."""
    return {
        "name": name,
        "namespace": owner.namespace,
        "labels": {**(extra_labels or {}), **labels(owner, component, child)},
        **({"annotations": dict(annotations)} if annotations else {}),
        "ownerReferences": [owner_reference(owner)],
    }


def owner_reference(owner: Owner) -> Manifest:
    return {
        "apiVersion": API_VERSION,
        "kind": owner.kind,
        "name": owner.name,
        "uid": owner.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def child_name(name: str, suffix: str, limit: int = NAME_LIMIT) -> str:
    """`<name>-<suffix>` as a DNS-1035 label of at most `limit` characters.

    A name that is too long is cut, and one that begins with a digit gets a letter; a part of its hash then keeps it
    apart from others.
    """
    plain = f"{name}-{suffix}"
    if len(plain) <= limit and name[0].isalpha():
        return plain
    ending = f"-{text_hash(name)[:6]}-{suffix}"
    stem = name if name[0].isalpha() else f"e{name}"
    return stem[: limit - len(ending)].rstrip("-") + ending


def text_hash(text: str) -> str:
    """SHA-256 in hexadecimal digits; of a specification's text it is what its report must repeat."""
    return hashlib.sha256(text.encode()).hexdigest()
