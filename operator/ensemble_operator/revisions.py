"""Revisions of a served ensemble as they are in the cluster, and what each remembers (pure)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ensemble_core.api.ensembledeployment import EnsembleDeployment
from ensemble_operator.identity import spec_name
from ensemble_operator.names import BASIS, REVISION, Owner, owner_of
from ensemble_operator.pods import SPEC_KEY
from ensemble_operator.rollout import Seen, seen
from ensemble_operator.serving import (
    ALLOCATION_KEY,
    STORAGES_KEY,
    WISH,
    Allocation,
    Ports,
    Served,
    child_of,
    read_storages,
    service_name,
)
from ensemble_operator.storages import Resolved
from ensemble_operator.world import Manifest, World


@dataclass(frozen=True)
class Record:
    """What the ConfigMap of a revision remembers.

    Args:
        text: The documents that its pods read.
        resolved: The same with what their storages need; none in a record that does not tell.
        basis: What its allocation was found for.
        wish: The part of the deployment's own document that it was made for.
        created: As Kubernetes writes it.
    """

    revision: str
    text: str
    resolved: Resolved | None
    allocation: Allocation
    basis: str
    wish: str
    created: str


@dataclass(frozen=True)
class Look:
    """What there is of a deployment.

    Args:
        records: By revision, the newest first.
        deployments: By revision.
        selected: The revision that the Service sends requests to; none if there is no Service.
        service: The ports of the Service; none if there is no Service.
        ports: By revision, of those that have a Deployment, as their pods have them.
    """

    owner: Owner
    records: Mapping[str, Record]
    deployments: Mapping[str, Manifest]
    selected: str | None
    service: Ports | None
    ports: Mapping[str, Ports]

    @property
    def there(self) -> dict[str, Seen]:
        return {revision: seen(deployment) for revision, deployment in self.deployments.items()}

    def record_of(self, basis: str) -> Record | None:
        """The newest record of an allocation for this basis."""
        return next((record for record in self.records.values() if record.basis == basis), None)


def look_at(world: World[EnsembleDeployment]) -> Look:
    """What there is, by revision."""
    owner = owner_of(world.resource, world.body)
    records = [record for manifest in world.of_kind("ConfigMap") if (record := _record(owner, manifest)) is not None]
    newest = sorted(records, key=lambda record: (record.created, record.revision), reverse=True)
    deployments = {_revision(one): one for one in world.of_kind("Deployment")}
    service = (world.child("Service", service_name(owner)) or {}).get("spec") or {}
    found = {revision: _ports(_listed(one), "containerPort") for revision, one in deployments.items()}
    return Look(
        owner=owner,
        records={record.revision: record for record in newest},
        deployments={revision: one for revision, one in deployments.items() if revision},
        selected=(service.get("selector") or {}).get(REVISION),
        service=_ports(service.get("ports") or (), "port"),
        ports={revision: ports for revision, ports in found.items() if ports is not None},
    )


def _listed(deployment: Manifest) -> list[Manifest]:
    """The ports that a Deployment's pods list."""
    return [port for one in deployment["spec"]["template"]["spec"]["containers"] for port in one.get("ports") or ()]


def _ports(listed: Iterable[Manifest], field: str) -> Ports | None:
    """Ports by their names; none if one is missing, as where somebody else has changed them."""
    numbers = {one.get("name"): one[field] for one in listed}
    return Ports(*map(numbers.__getitem__, Ports._fields)) if numbers.keys() >= set(Ports._fields) else None


def _record(owner: Owner, manifest: Manifest) -> Record | None:
    """The record in a ConfigMap; none if it is no record."""
    metadata, data = manifest["metadata"], manifest.get("data") or {}
    revision, notes = _revision(manifest), metadata.get("annotations") or {}
    if not revision or metadata["name"] != spec_name(child_of(owner, revision)):
        return None
    try:
        allocation = Allocation.model_validate(json.loads(data.get(ALLOCATION_KEY, "")))
    except ValueError:
        return None
    created = metadata.get("creationTimestamp") or ""
    text = data.get(SPEC_KEY, "")
    resolved = read_storages(text, data.get(STORAGES_KEY, ""))
    return Record(revision, text, resolved, allocation, notes.get(BASIS, ""), notes.get(WISH, ""), created)


def rebuilt(world: World[EnsembleDeployment], look: Look, revision: str | None) -> Served | None:
    """What a revision is made of, from its record; none if its pods would be others now."""
    record = look.records.get(revision or "")
    if record is None or record.resolved is None:
        return None
    served = Served(look.owner, world.resource.spec, world.settings, record.resolved, record.allocation)
    return served if served.revision == revision else None


def _revision(manifest: Manifest) -> str:
    return str(manifest["metadata"]["labels"].get(REVISION, ""))
