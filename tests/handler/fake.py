"""A small kind in the place of HPOSearch, so that the engine is tested for itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ensemble_core.api.hposearch import HPOSearch
from ensemble_operator.names import Owner, labels, metadata, owner_of
from ensemble_operator.world import Decision, Manifest, Others, Ref, Verdict, World

Decide = Callable[[World[Any]], Decision]


def verdicts(ready: bool, reason: str, message: str = "so it is") -> tuple[Verdict, Verdict, Verdict]:
    return (
        Verdict("Ready", "True" if ready else "False", reason, message),
        Verdict("Progressing", "False" if ready else "True", reason, message),
        Verdict("Degraded", "False", reason, message),
    )


def config_map(owner: Owner, name: str, data: dict[str, str] | None = None, immutable: bool = False) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(owner, "train", name),
        **({"data": data} if data else {}),
        **({"immutable": True} if immutable else {}),
    }


def role(owner: Owner, name: str) -> Manifest:
    rule = {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [f"{name}-report"], "verbs": ["patch"]}
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": metadata(owner, "train", name),
        "rules": [rule],
    }


def service_account(owner: Owner, name: str) -> Manifest:
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(owner, "train", name)}


def job(owner: Owner, name: str) -> Manifest:
    container = {"name": "ensemble", "image": "trainer", "resources": {"requests": {"cpu": "0.5"}}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(owner, "train", name),
        "spec": {
            "backoffLimit": 3,
            "template": {
                "metadata": {"labels": labels(owner, "train")},
                "spec": {"restartPolicy": "Never", "containers": [container]},
            },
        },
    }


def decide(world: World[Any]) -> Decision:
    """A Job for each number of trials, with what it needs; done when the Job is."""
    owner = owner_of(world.resource, world.body)
    spec = world.resource.spec
    name = f"{owner.name}-{spec.max_trial_count}"
    around = (
        config_map(owner, f"{name}-spec", {"spec.yaml": str(spec.max_trial_count)}, immutable=True),
        config_map(owner, f"{name}-report"),
        service_account(owner, name),
        role(owner, name),
    )
    if spec.suspend:
        return Decision(around, verdicts(False, "Suspended"))
    found = world.child("Job", name)
    done = bool(found and (found.get("status") or {}).get("succeeded"))
    status = {"trials": spec.max_trial_count if done else 0}
    reason = "Trained" if done else "Training"
    return Decision((*around, job(owner, name)), verdicts(done, reason, f"{spec.max_trial_count} trials"), status)


def library(world: World[Any]) -> Decision:
    """Keeps the finalizer until a Job has deleted the library."""
    decision = decide(world)
    if "deletionTimestamp" not in world.body["metadata"]:
        return replace(decision, finalizer=True)
    job = world.child("Job", "digits-4")
    return replace(decision, finalizer=not (job and (job.get("status") or {}).get("succeeded")))


@dataclass
class FakeKind:
    """A kind whose decision a test can replace."""

    decision: Decide = decide
    wanted: tuple[Ref, ...] = ()
    model: type[Any] = HPOSearch

    def references(self, resource: Any, body: Manifest, read: Others) -> tuple[Ref, ...]:
        return self.wanted

    def decide(self, world: World[Any]) -> Decision:
        return self.decision(world)
