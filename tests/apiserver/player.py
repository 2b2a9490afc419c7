"""Acts out who is missing on a bare API server: kubelet, controllers, and the commands in the pods."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tests.apiserver.operator_bench import COLLECTIONS, Cluster, until
from tests.support.stage import DIGESTS, MEMBERS, summary

from ensemble_operator.identity import report_name, spec_name
from ensemble_operator.names import ATTEMPT, COMPONENT, OWNER_NAME, text_hash
from ensemble_operator.reports import REPORT_KEY

Manifest = dict[str, Any]
LIBRARY = "a" * 64
BEGUN = {"trials": {"total": 24, "running": 2, "succeeded": 3}, "models": 3, "libraryDigest": "b" * 64}
TRAINED = {
    "trials": {"total": 24, "succeeded": 20, "earlyStopped": 4},
    "best": {"modelId": "digits-0", "value": 0.25},
    "models": 24,
    "libraryDigest": LIBRARY,
}
SELECTED = {
    "budgets": [
        {"name": "small", "members": MEMBERS, "memberCount": len(MEMBERS), "validation": {"crossEntropy": 0.2}},
    ],
    "sources": [{"digest": LIBRARY}],
}
STATUSES: dict[str, Manifest] = {
    "Complete": {"succeeded": 1, "failed": 0},
    "Failed": {"succeeded": 0, "failed": 1},
}
BEFORE = {"Complete": "SuccessCriteriaMet", "Failed": "FailureTarget"}


@dataclass(frozen=True)
class Player:
    """What happens in a namespace beside the operator."""

    cluster: Cluster
    namespace: str

    # --- commands

    def jobs(self, component: str, name: str) -> list[Manifest]:
        """A resource's Jobs that have not ended."""
        found = [one for one in self.cluster.list("Job", self.namespace) if not one["status"].get("conditions")]
        wanted = {COMPONENT: component, OWNER_NAME: name}
        return [one for one in found if wanted.items() <= one["metadata"]["labels"].items()]

    def job(self, component: str, name: str) -> Manifest:
        """The only one, as soon as it is there."""
        until(lambda: self.jobs(component, name), what=f"a Job to {component} {name}")
        (found,) = self.jobs(component, name)
        return found

    def truth(self, job: Manifest, state: str, **content: Any) -> Manifest:
        """The report that a Job's command would write."""
        metadata = job["metadata"]
        spec = self.cluster.get("ConfigMap", self.namespace, spec_name(metadata["name"]))
        assert spec is not None
        return {
            "schemaVersion": 1,
            "verb": metadata["labels"][COMPONENT],
            "specHash": text_hash(spec["data"]["spec.yaml"]),
            "attempt": int(metadata["annotations"][ATTEMPT]),
            "ownerUid": metadata["ownerReferences"][0]["uid"],
            "sequence": 1,
            "state": state,
            **content,
        }

    def tell(self, job: Manifest, text: str) -> None:
        """Write a Job's report, whatever it says."""
        name = report_name(job["metadata"]["name"])
        self.cluster.patch("ConfigMap", self.namespace, name, {"data": {REPORT_KEY: text}})

    def begin(self, job: Manifest, **progress: Any) -> None:
        """Its pod runs, and the command in it reports that."""
        self.run(job)
        self.tell(job, json.dumps(self.truth(job, "Running", progress=progress)))

    def succeed(self, job: Manifest, summary: Manifest, digest: str) -> None:
        """The command reports success, and its Job completes."""
        self.tell(job, json.dumps(self.truth(job, "Succeeded", result={"digest": digest, "summary": summary})))
        self.end(job)

    def fail(self, job: Manifest, message: str) -> None:
        self.tell(job, json.dumps(self.truth(job, "Failed", error={"message": message})))
        self.end(job, "Failed")

    def train(self, name: str) -> None:
        self.succeed(self.job("train", name), TRAINED, LIBRARY)

    def select(self, name: str) -> None:
        self.succeed(self.job("select", name), SELECTED, DIGESTS[0])

    def allocate(self, name: str) -> None:
        found = summary(DIGESTS[0])
        self.succeed(self.job("allocate", name), found, found["digest"])

    # --- kubelet and controllers

    def run(self, job: Manifest) -> None:
        """Its pod runs."""
        template, name = job["spec"]["template"], f"{job['metadata']['name']}-0"
        owner = {"apiVersion": "batch/v1", "kind": "Job", "controller": True}
        owner |= {field: job["metadata"][field] for field in ("name", "uid")}
        metadata = {**template["metadata"], "name": name, "ownerReferences": [owner]}
        self.cluster.create("Pod", self.namespace, {"metadata": metadata, "spec": template["spec"]})
        self.cluster.patch("Pod", self.namespace, name, {"status": {"phase": "Running"}}, "/status")
        status = {"startTime": now(), "active": 1, "ready": 1}
        self.cluster.patch("Job", self.namespace, job["metadata"]["name"], {"status": status}, "/status")

    def end(self, job: Manifest, condition: str = "Complete") -> None:
        """Its pod and itself have ended."""
        name = job["metadata"]["name"]
        phase = {"status": {"phase": "Succeeded" if condition == "Complete" else "Failed"}}
        if self.cluster.get("Pod", self.namespace, f"{name}-0"):
            self.cluster.patch("Pod", self.namespace, f"{name}-0", phase, "/status")
        present = self.cluster.get("Job", self.namespace, name)
        assert present is not None
        times = {"startTime": present["status"].get("startTime") or now()}
        if condition == "Complete":
            times["completionTime"] = now()
        told = [
            {"type": kind, "status": "True", "lastProbeTime": now(), "lastTransitionTime": now()}
            for kind in (BEFORE[condition], condition)
        ]
        counts = {"active": 0, "ready": 0, "terminating": 0, "uncountedTerminatedPods": {}, **STATUSES[condition]}
        self.cluster.patch("Job", self.namespace, name, {"status": times | counts | {"conditions": told}}, "/status")

    def answer(self, name: str) -> None:
        """All copies of all Deployments of a resource take requests."""
        until(lambda: self.deployments(name), what=f"a Deployment of {name}")
        for one in self.deployments(name):
            wanted = one["spec"]["replicas"]
            copies = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
            proven = {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}
            status = {"observedGeneration": one["metadata"]["generation"], "conditions": [proven]}
            status |= dict.fromkeys(copies, wanted)
            self.cluster.patch("Deployment", self.namespace, one["metadata"]["name"], {"status": status}, "/status")

    def deployments(self, name: str) -> list[Manifest]:
        found = self.cluster.list("Deployment", self.namespace)
        return [one for one in found if one["metadata"]["labels"].get(OWNER_NAME) == name]

    def collect(self) -> None:
        """Objects go whose owners are gone."""
        while orphans := list(self._orphans()):
            for kind, name in orphans:
                self.cluster.delete(kind, self.namespace, name)

    def _orphans(self) -> Iterator[tuple[str, str]]:
        everything = self.everything()
        alive = {one["metadata"]["uid"] for one in everything.values()}
        for place, one in everything.items():
            owners = [owner["uid"] for owner in one["metadata"].get("ownerReferences", ())]
            if owners and alive.isdisjoint(owners):
                yield place

    def everything(self) -> dict[tuple[str, str], Manifest]:
        """All objects of the namespace but events, by kind and name."""
        kinds = [kind for kind in COLLECTIONS if kind != "Event"]
        answers = {kind: self.cluster.server.request("GET", COLLECTIONS[kind].format(self.namespace)) for kind in kinds}
        found = {kind: answer["items"] for kind, (code, answer) in answers.items() if code == 200}
        return {(kind, one["metadata"]["name"]): {"kind": kind} | one for kind, items in found.items() for one in items}

    def told(self, kind: str, name: str, of: str) -> str:
        """A condition in short: `+Trained`, `-Suspended`; empty if there is none."""
        found = self.cluster.condition(kind, self.namespace, name, of)
        return ("+" if found["status"] == "True" else "-") + str(found["reason"]) if found else ""

    def wait_for(self, kind: str, name: str, of: str, wanted: str) -> None:
        """Until a resource has that condition."""

        def holds() -> bool:
            told = self.told(kind, name, of)
            assert told == wanted, f"{told}: {self.cluster.condition(kind, self.namespace, name, of).get('message')}"
            return True

        until(holds, what=f"{wanted} {of} of {kind} {name}")


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
