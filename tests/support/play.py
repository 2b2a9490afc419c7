"""A custom resource and its children, acted out: what a kind decides is carried out, and tests play the cluster."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from ensemble_core.api.crd import RESOURCES
from ensemble_operator import status
from ensemble_operator.differences import stamped
from ensemble_operator.identity import report_name, spec_name
from ensemble_operator.names import ATTEMPT, CHILD, text_hash
from ensemble_operator.settings import Settings
from ensemble_operator.world import Decision, Manifest, Ref, World

SETTINGS = Settings(trainer_image="trainer:1", core_image="core:1", image_pull_secrets=("registry",))
START = datetime(2026, 1, 1, 12, tzinfo=UTC)
STATUSES = {model.__name__: status_model for model, status_model, _, _ in RESOURCES}
UID = "6f1c1c1e-0000-4000-8000-000000000001"


def body_of(kind: str, name: str, spec: Manifest, **metadata: Any) -> Manifest:
    return {
        "apiVersion": "ensemble-operator.io/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "lab", "uid": UID, "generation": 1, **metadata},
        "spec": spec,
    }


def parsed(kind: Any, body: Manifest) -> Any:
    given = {
        **body,
        "metadata": {key: body["metadata"][key] for key in ("name", "namespace", "labels") if key in body["metadata"]},
    }
    given.pop("status", None)
    return kind.model.model_validate_json(json.dumps(given), strict=True)


def time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Play:
    """One resource of a kind in a cluster without a server."""

    kind: Any
    body: Manifest
    capabilities: frozenset[str] = frozenset({"RayJob"})
    children: dict[Ref, Manifest] = field(default_factory=dict)
    others: dict[Ref, Manifest] = field(default_factory=dict)
    deleting: dict[Ref, Manifest] = field(default_factory=dict)
    now: datetime = START

    def world(self) -> World[Any]:
        return World(
            resource=parsed(self.kind, self.body),
            body=copy.deepcopy(self.body),
            children=copy.deepcopy(self.children),
            deleting=copy.deepcopy(self.deleting),
            others=copy.deepcopy(self.others),
            capabilities=self.capabilities,
            now=self.now,
            settings=SETTINGS,
        )

    def decide(self) -> Decision:
        """Decide twice, to see that it is pure, and that the status is one."""
        decision: Decision = self.kind.decide(self.world())
        assert decision == self.kind.decide(self.world())
        told = {**decision.status, "conditions": status.conditions((), decision.conditions, 1, self.now)}
        STATUSES[self.body["kind"]].model_validate_json(json.dumps(told), strict=True)
        assert [verdict.type for verdict in decision.conditions] == ["Ready", "Progressing", "Degraded"]
        json.dumps(decision.objects).encode()
        return decision

    def step(self, writes: int = 1000) -> Decision:
        """Decide and carry it out, as far as this many writes go; everything that is made is made now."""
        decision = self.decide()
        desired = {Ref(one["kind"], one["metadata"]["name"]): one for one in decision.objects}
        new = [ref for ref in desired if ref not in self.children]
        old = [ref for ref in self.children if ref not in desired and ref not in decision.keep and ref.kind != "Pod"]
        for ref in new[:writes]:
            made = copy.deepcopy(stamped(desired[ref]))
            made["metadata"]["creationTimestamp"] = time(self.now)
            self.children[ref] = made
        for ref in old[: max(writes - len(new), 0)]:
            del self.children[ref]
        if writes > len(new) + len(old):
            self.body["status"] = status.status(self.body, decision.conditions, decision.status, self.now)
        return decision

    def settle(self) -> Decision:
        """Step until nothing changes."""
        for _ in range(5):
            before = copy.deepcopy((self.children, self.body))
            decision = self.step()
            if (self.children, self.body) == before:
                return decision
        raise AssertionError("does not settle")

    def later(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def change(self, **spec: Any) -> None:
        """Change the specification."""
        self.body["spec"].update(spec)
        self.body["metadata"]["generation"] += 1

    def refs(self, kind: str) -> list[str]:
        return sorted(ref.name for ref in self.children if ref.kind == kind)

    def workload(self) -> Manifest:
        """The only Job or RayJob."""
        (found,) = [one for ref, one in self.children.items() if ref.kind in ("Job", "RayJob")]
        return found

    def remove(self, manifest: Manifest) -> None:
        del self.children[Ref(manifest["kind"], manifest["metadata"]["name"])]

    def report(self, child: Manifest, verb: str, state: str = "Running", **content: Any) -> None:
        """What the child's workload reports."""
        name = child["metadata"]["name"]
        text = self.children[Ref("ConfigMap", spec_name(name))]["data"]["spec.yaml"]
        report = {
            "schemaVersion": 1,
            "verb": verb,
            "specHash": text_hash(text),
            "attempt": int(child["metadata"]["annotations"][ATTEMPT]),
            "ownerUid": self.body["metadata"]["uid"],
            "sequence": 1,
            "state": state,
            **content,
        }
        self.children[Ref("ConfigMap", report_name(name))]["data"] = {"report.json": json.dumps(report)}

    def pod(self, child: Manifest, phase: str = "Running", suffix: str = "0", **status: Any) -> Manifest:
        """A pod of the child."""
        labels = {**child["metadata"]["labels"], CHILD: child["metadata"]["name"]}
        name = f"{child['metadata']['name']}-{suffix}"
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": labels, "creationTimestamp": time(self.now)},
            "spec": {},
            "status": {"phase": phase, **status},
        }
        self.children[Ref("Pod", name)] = pod
        return pod


def condition(kind: str, status: str = "True", **further: Any) -> Manifest:
    return {"type": kind, "status": status, **further}


def reasons_of(decision: Decision) -> tuple[str, str, str]:
    """The conditions in short: `+Trained -Trained -AsExpected` are Ready, Progressing and Degraded."""
    told = [("+" if verdict.status == "True" else "-") + verdict.reason for verdict in decision.conditions]
    return told[0], told[1], told[2]


def of_kind(objects: Iterable[Manifest], kind: str) -> list[Manifest]:
    return [one for one in objects if one["kind"] == kind]
