"""What a reconcile has read and what it decides: the border between the engine and the kinds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

from ensemble_core.api.ensembledeployment import EnsembleDeployment
from ensemble_core.api.ensembleselection import EnsembleSelection
from ensemble_core.api.hposearch import HPOSearch
from ensemble_operator.settings import Settings

Manifest = dict[str, Any]
NAMESPACE_GOES = "because it is being terminated"  # the server's words where nothing can be made any more
Others = Mapping["Ref", Manifest]
Resource = TypeVar("Resource", HPOSearch, EnsembleSelection, EnsembleDeployment)


class Ref(NamedTuple):
    """An object of the resource's namespace."""

    kind: str
    name: str


@dataclass(frozen=True)
class World(Generic[Resource]):
    """Everything that a decision may depend on.

    Args:
        resource: The custom resource, parsed.
        body: The same as it was read: uid, generation, labels, deletionTimestamp, finalizers, status.
        children: Objects with our labels for this resource, pods included; those being deleted are left out.
        deleting: Children that are being deleted.
        others: Custom resources of the namespace that `Kind.references` asked for, of those that exist.
        capabilities: Optional APIs that the cluster has: `RayJob`, `ServiceMonitor`.
        now: UTC.
        settings: Of the operator.
    """

    resource: Resource
    body: Manifest
    children: Mapping[Ref, Manifest]
    deleting: Mapping[Ref, Manifest]
    others: Others
    capabilities: frozenset[str]
    now: datetime
    settings: Settings

    def child(self, kind: str, name: str) -> Manifest | None:
        return self.children.get(Ref(kind, name))

    def of_kind(self, kind: str) -> list[Manifest]:
        """Children of a kind by name."""
        return [manifest for ref, manifest in sorted(self.children.items()) if ref.kind == kind]


@dataclass(frozen=True)
class Verdict:
    """A condition without its times."""

    type: Literal["Ready", "Progressing", "Degraded"]
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str


@dataclass(frozen=True)
class Decision:
    """What should be, and what is to be told.

    Args:
        objects: Desired children, in the order in which they are applied.
        keep: Children that stay though they are not desired; every other one is deleted.
        conditions: Ready, Progressing and Degraded.
        status: The other fields of the status; what is left out is removed.
        finalizer: Whether the resource must have our finalizer.
        again_after: Seconds until it is looked at again without any event; none leaves it to the slow timer.
    """

    objects: tuple[Manifest, ...]
    conditions: tuple[Verdict, Verdict, Verdict]
    status: Mapping[str, Any] = field(default_factory=dict)
    keep: frozenset[Ref] = frozenset()
    finalizer: bool = False
    again_after: float | None = None


class Kind(Protocol[Resource]):
    """One of the three kinds: pure functions of what was read."""

    model: type[Resource]

    def references(self, resource: Resource, body: Manifest, read: Others) -> tuple[Ref, ...]:
        """Other custom resources to read; a name `*` means all of that kind in the namespace.

        It is asked again with what it named, of which `read` has those that exist, until it names no more. What it
        names in the first round counts as a whole, of what comes later only the specification.
        """

    def decide(self, world: World[Resource]) -> Decision:
        """What should be, from what is."""
