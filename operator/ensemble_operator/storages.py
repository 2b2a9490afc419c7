"""What a command reads as its specification, and what its pod needs to reach the storages that are named in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from ensemble_core.api.ensembledeployment import EnsembleDeployment
from ensemble_core.api.ensembleselection import EnsembleSelection, EnsembleSelectionSpec
from ensemble_core.api.hposearch import HPOSearch
from ensemble_core.errors import UserError
from ensemble_operator.names import text_hash
from ensemble_operator.world import Manifest

Document = HPOSearch | EnsembleSelection | EnsembleDeployment

MOUNT = "/mnt/storage"
_KEYS = {"AWS_ACCESS_KEY_ID": False, "AWS_SECRET_ACCESS_KEY": False, "AWS_SESSION_TOKEN": True}  # key: may be absent
# Fields that say how pods run or what happens later; no command reads them, so changing them starts nothing again.
_NOT_READ = ("suspend", "podOverrides", "serviceAccountName", "updatePolicy", "rollout")
# What a reader of YAML takes for the end of a line, or refuses, though JSON allows it.
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


class Claim(NamedTuple):
    """A folder on a claim, as pods mount it."""

    path: str
    name: str
    folder: str
    written: bool


@dataclass(frozen=True)
class Resolved:
    """Documents as a command in a pod reads them.

    Args:
        text: `spec.yaml`; a claim is a path in it.
        volumes, mounts: Of the claims.
        env: Credentials, by reference to their Secrets.
        claims, secrets: What these are made of: enough to make them again without the documents.
    """

    text: str
    claims: tuple[Claim, ...] = ()
    secrets: tuple[str, ...] = ()

    @cached_property
    def volumes(self) -> tuple[Manifest, ...]:
        named = enumerate(self._names)
        return tuple({"name": f"claim-{i}", "persistentVolumeClaim": {"claimName": name}} for i, name in named)

    @cached_property
    def mounts(self) -> tuple[Manifest, ...]:
        return tuple(_mount(f"claim-{self._names.index(claim.name)}", claim) for claim in self.claims)

    @cached_property
    def env(self) -> tuple[Manifest, ...]:
        return tuple(_environment(self.secrets))

    @property
    def _names(self) -> list[str]:
        return sorted({claim.name for claim in self.claims})


def resolve(documents: Iterable[Document]) -> Resolved:
    """The documents, and what their storages need; the first is the one that the command is about.

    A folder on a claim is mounted at a path that depends on claim and folder alone: results in a library that name
    other libraries stay true in every pod. Data sets are mounted read-only.

    Raises:
        UserError: a storage that no pod can have.
    """
    contents = [_read_by_commands(document, document.document()) for document in documents]
    claims: dict[str, tuple[str, str]] = {}
    written: set[str] = set()
    secrets: list[str] = []
    for where, storage in [found for content in contents for found in _storages(content)]:
        if "path" in storage:
            raise UserError(f"{where}.path", "is only for one machine; give persistentVolumeClaim or s3")
        if claim := storage.pop("persistentVolumeClaim", None):
            storage["path"] = path = _mount_path(claim)
            claims[path] = (claim["claimName"], claim.get("subPath", ""))
            written |= set() if where.endswith(".dataset.storage") else {path}
        if (secret := storage.get("credentialsSecretRef")) and secret["name"] not in secrets:
            secrets.append(secret["name"])
    _refuse_alike(secrets)
    return Resolved(
        text="---\n".join(_yaml(content) for content in contents),
        claims=tuple(Claim(path, *claim, path in written) for path, claim in sorted(claims.items())),
        secrets=tuple(secrets),
    )


def essence(documents: Iterable[Document]) -> list[Manifest]:
    """What commands are asked to do in these documents, the same in every release that knows their fields."""
    return [_read_by_commands(document, document.essence()) for document in documents]


def environment_prefix(secret: str) -> str:
    """Of the variables that hold a Secret's keys."""
    return f"ENSEMBLE_S3_{re.sub('[^A-Z0-9]', '_', secret.upper())}_"


def reference(search: HPOSearch) -> HPOSearch:
    """A search as others need it: where its library is. What may change of a search does not change its reference."""
    return HPOSearch.model_validate(
        {
            "metadata": {"name": search.metadata.name},
            "spec": {
                "library": {"storage": search.spec.library.storage},
                "dataset": {"builtin": "digits"},  # a search must have one; nobody looks
                "parallelTrialCount": 1,
                "maxTrialCount": 1,
                "maxFailedTrialCount": 0,
            },
        }
    )


def named_searches(spec: EnsembleSelectionSpec) -> tuple[str, ...]:
    """Names of the searches among the sources of a selection, in that order."""
    return tuple(source.hpo_search_name for source in spec.sources if source.hpo_search_name)


def _read_by_commands(document: Document, content: Manifest) -> Manifest:
    """Of a document's content what commands read."""
    spec = {key: value for key, value in content["spec"].items() if key not in _NOT_READ}
    if isinstance(document, HPOSearch):
        spec["library"] = {"storage": spec["library"]["storage"]}
    return {**content, "kind": document.kind, "metadata": {"name": document.metadata.name}, "spec": spec}


def _storages(content: Manifest) -> Iterator[tuple[str, Manifest]]:
    """Every storage of a document with its field's path, in a fixed order."""
    spec = content["spec"]
    where = f"{content['kind']} {content['metadata']['name']}: spec"
    if content["kind"] == "HPOSearch":
        yield f"{where}.library.storage", spec["library"]["storage"]
        if "storage" in spec["dataset"]:
            yield f"{where}.dataset.storage", spec["dataset"]["storage"]
    if content["kind"] == "EnsembleSelection":
        for index, source in enumerate(spec["sources"]):
            if "storage" in source:
                yield f"{where}.sources[{index}].storage", source["storage"]
        if "library" in spec:
            yield f"{where}.library", spec["library"]


def _mount_path(claim: Manifest) -> str:
    return f"{MOUNT}-{text_hash(json.dumps([claim['claimName'], claim.get('subPath', '')]))[:8]}"


def _mount(volume: str, claim: Claim) -> Manifest:
    return {
        "name": volume,
        "mountPath": claim.path,
        **({"subPath": claim.folder} if claim.folder else {}),
        **({} if claim.written else {"readOnly": True}),
    }


def _refuse_alike(secrets: Iterable[str]) -> None:
    prefixes: dict[str, str] = {}
    for secret in secrets:
        other = prefixes.setdefault(environment_prefix(secret), secret)
        if other != secret:
            raise UserError("credentialsSecretRef.name", f"{secret} and {other} differ too little; rename one of them")


def _environment(secrets: Iterable[str]) -> Iterator[Manifest]:
    for secret in secrets:
        for key, optional in _KEYS.items():
            source = {"name": secret, "key": key} | ({"optional": True} if optional else {})
            yield {"name": environment_prefix(secret) + key, "valueFrom": {"secretKeyRef": source}}


def _yaml(content: Any) -> str:
    """JSON that is YAML too."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n"
