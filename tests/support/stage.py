"""An EnsembleDeployment without a server: objects are applied as the engine does, and tests play all the others."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Self

from tests.support.play import START, Play, body_of, time

from ensemble_core.api.common import API_VERSION
from ensemble_operator import status
from ensemble_operator.differences import differs, is_create_only, ref, stamped, superfluous
from ensemble_operator.ensembledeployment import KIND
from ensemble_operator.identity import report_name, spec_name
from ensemble_operator.names import BASIS, CHILD, REVISION, text_hash
from ensemble_operator.serving import ALLOCATION_KEY
from ensemble_operator.world import Decision, Manifest, Ref

DIGESTS = [f"{i:064x}" for i in range(1, 10)]
GPUS = [{"name": "large", "type": "gpu", "count": 4}]
SPEC: Manifest = {
    "selectionRef": {"name": "digits", "budgetName": "small"},
    "devices": GPUS,
    "serving": {"replicas": 2},
}
SEARCH = {
    "library": {"storage": {"persistentVolumeClaim": {"claimName": "libraries"}}},
    "dataset": {"builtin": "digits"},
    "maxTrialCount": 24,
}
SELECTION = {
    "sources": [{"hpoSearchName": "digits"}],
    "budgets": [{"name": "small", "parametersMillions": 1}, {"name": "none", "parametersMillions": 0.001}],
}
MEMBERS = [{"library": 0, "modelId": f"digits-{i}", "weight": 0.5} for i in range(2)]


def other(kind: str, spec: Manifest, status: Manifest, **metadata: Any) -> Manifest:
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"name": "digits", "namespace": "lab", "uid": f"uid-{kind}", "generation": 1} | metadata,
        "spec": copy.deepcopy(spec),
        "status": {"observedGeneration": 1} | status,
    }


def summary(selection: str) -> Manifest:
    """What `ensemble allocate` reports of four GPUs and two members."""
    return {
        "name": "digits",
        "digest": text_hash(selection),
        "selection": {"name": "digits", "budgetName": "small", "digest": selection},
        "members": [{"modelId": f"digits-{i}", "weight": 0.5, "sha256": f"{i}" * 64} for i in range(2)],
        "devices": [{"name": f"gpu{i}", "type": "gpu"} for i in range(4)],
        "matrix": [[8, 0], [0, 8], [32, 0], [0, 128]],
        "throughput": {"samplesPerSecond": 305.4, "spread": 0.01, "how": "measured"},
        "bound": 326.0,
        "benchmarks": 7,
        "sharedMemoryMiB": 300,
        "memoryMiB": 1700.5,
    }


@dataclass
class Stage(Play):
    """A Play that applies like the engine, and in which Deployments and Jobs are acted out."""

    writes: list[str] = field(default_factory=list)

    @classmethod
    def set(cls, **spec: Any) -> Self:
        body = body_of("EnsembleDeployment", "digits", copy.deepcopy(SPEC) | spec, creationTimestamp=time(START))
        made = cls(KIND, body)
        made.others[Ref("HPOSearch", "digits")] = other("HPOSearch", SEARCH, {})
        made.others[Ref("EnsembleSelection", "digits")] = other("EnsembleSelection", SELECTION, {})
        made.select(DIGESTS[0])
        return made

    # --- the engine

    def step(self) -> Decision:
        """Decide and carry it out, as the engine does."""
        decision: Decision = self.kind.decide(self.world())
        self.writes = []
        refs = [ref(one) for one in decision.objects]
        assert len(refs) == len(set(refs)), "an object is desired twice"
        for desired in map(stamped, decision.objects):
            self._apply(desired)
        owned = [one for one in self.children.values() if one["kind"] != "Pod"]
        for gone in superfluous(decision, owned):
            self._delete(ref(gone))
        told = status.status(self.body, decision.conditions, decision.status, self.now)
        if told != self.body.get("status"):
            self.writes.append("status")
        self.body["status"] = told
        return decision

    def _apply(self, desired: Manifest) -> None:
        place, moment = ref(desired), time(self.now)
        there = self.children.get(place)
        if there is not None and not differs(desired, there):
            return
        self.writes.append(f"{place.kind}/{place.name}")
        if there is None:
            made = copy.deepcopy(desired)
            made["metadata"] |= {"creationTimestamp": moment, "uid": f"{place.kind}-{place.name}", "generation": 1}
            self.children[place] = made
            return
        assert not is_create_only(desired)
        if place.kind == "Deployment":
            assert there["spec"]["template"] == desired["spec"]["template"], "pods of a revision change"
        generation = there["metadata"].get("generation", 1) + (there.get("spec") != desired.get("spec"))
        kept = {key: there["metadata"][key] for key in ("creationTimestamp", "uid")} | {"generation": generation}
        there |= copy.deepcopy({key: value for key, value in desired.items() if key != "metadata"})
        there["metadata"] = copy.deepcopy(desired["metadata"]) | kept

    def _delete(self, place: Ref) -> None:
        self.writes.append(f"delete {place.kind}/{place.name}")
        gone = self.children.pop(place)
        if place.kind in ("Deployment", "Job"):
            name = gone["metadata"]["name"]
            pods = [
                r for r, one in self.children.items() if r.kind == "Pod" and one["metadata"]["labels"][CHILD] == name
            ]
            for pod in pods:
                del self.children[pod]

    def steps(self, times: int = 6) -> Decision:
        """Step until nothing is written."""
        for _ in range(times):
            decision = self.step()
            if not self.writes:
                return decision
        raise AssertionError(f"does not settle: {self.writes}")

    # --- the others

    def select(self, digest: str, **status: Any) -> None:
        """The selection has a result, of the specification that it has now."""
        budgets = [
            {"name": "small", "members": MEMBERS},
            {"name": "none", "members": [], "reason": "the cheapest model has 0.1 millions"},
        ]
        manifest = self.others[Ref("EnsembleSelection", "digits")]
        manifest["status"] = {"digest": digest, "budgets": budgets} | status
        self.selection_says("Ready", "True", "Selected")

    def selection_says(self, kind: str, status: str, reason: str, message: str = "") -> None:
        """A condition of the selection, about the specification that it has now."""
        manifest = self.others[Ref("EnsembleSelection", "digits")]
        generation, told = manifest["metadata"]["generation"], manifest["status"]
        told["observedGeneration"] = generation
        others = [one for one in told.get("conditions", ()) if one["type"] != kind]
        said = {"type": kind, "status": status, "reason": reason, "message": message}
        told["conditions"] = [*others, said | {"observedGeneration": generation, "lastTransitionTime": time(self.now)}]

    def edit_selection(self, **spec: Any) -> None:
        """Change the selection's specification; its own reconcile has not seen it yet."""
        manifest = self.others[Ref("EnsembleSelection", "digits")]
        manifest["spec"] = manifest["spec"] | spec
        manifest["metadata"]["generation"] += 1

    def digest(self) -> str:
        return str(self.others[Ref("EnsembleSelection", "digits")]["status"]["digest"])

    def jobs(self) -> list[Manifest]:
        """Those that have not ended."""
        jobs = [one for place, one in sorted(self.children.items()) if place.kind == "Job"]
        return [one for one in jobs if "status" not in one]

    def job(self) -> Manifest:
        (found,) = self.jobs()
        return found

    def optimised(self, **further: Any) -> None:
        """The Job has found an allocation."""
        job = self.job()
        command = job["spec"]["template"]["spec"]["containers"][0]["command"]
        result = summary(command[command.index("--selection") + 1]) | further
        self.report(job, "allocate", "Succeeded", result={"digest": result["digest"], "summary": result})
        job["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}

    def report(self, child: Manifest, *args: Any, **content: Any) -> None:
        """What the child's workload reports; nothing, if somebody has deleted what it needs for that."""
        name = child["metadata"]["name"]
        if {Ref("ConfigMap", report_name(name)), Ref("ConfigMap", spec_name(name))} <= self.children.keys():
            super().report(child, *args, **content)

    def failed(self, message: str = "no") -> None:
        """The Job has failed."""
        job = self.job()
        self.report(job, "allocate", "Failed", error={"message": message})
        job["status"] = {"conditions": [{"type": "Failed", "status": "True", "message": "BackoffLimitExceeded"}]}

    def deployments(self) -> dict[str, Manifest]:
        """By revision."""
        return {
            one["metadata"]["labels"][REVISION]: one
            for place, one in sorted(self.children.items())
            if place.kind == "Deployment"
        }

    def the_deployment(self) -> Manifest:
        (found,) = self.deployments().values()
        return found

    def play_deployment(self, deployment: Manifest, answering: int | None = None, reason: str | None = None) -> None:
        """What its controller says: so many copies answer, by default all."""
        wanted = deployment["spec"]["replicas"]
        ready = wanted if answering is None else answering
        before = {one["type"]: one for one in deployment.get("status", {}).get("conditions", ())}
        if reason is None and (ready >= wanted or "Progressing" not in before):
            reason = "NewReplicaSetAvailable" if ready >= wanted else "ReplicaSetUpdated"
        reason = reason or before["Progressing"]["reason"]
        deployment["status"] = {
            "observedGeneration": deployment["metadata"]["generation"],
            "availableReplicas": ready,
            "readyReplicas": ready,
            "conditions": [{"type": "Progressing", "status": "True", "reason": reason}],
        }

    def play_pod(self, deployment: Manifest, phase: str = "Running", suffix: str = "0", **status: Any) -> None:
        made = self.pod(deployment, phase, suffix, **status)
        made["metadata"]["labels"] |= deployment["spec"]["template"]["metadata"]["labels"]

    def unschedulable(self, child: Manifest, since: float = 10, words: str = "1 Insufficient nvidia.com/gpu.") -> None:
        """The scheduler has found no node for so many seconds."""
        words = f"0/1 nodes are available: {words}"
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
        moment = {"lastTransitionTime": time(self.now - timedelta(seconds=since))}
        self.play_pod(child, "Pending", conditions=[condition | moment])

    def play_agent(self, deployment: Manifest, note: str = "", suffix: str = "0", **told: Any) -> None:
        """What the agent of a copy reports."""
        name = deployment["metadata"]["name"]
        pod = f"{name}-{suffix}"
        if Ref("Pod", pod) not in self.children:
            self.play_pod(deployment, suffix=suffix)
        report = {
            "schemaVersion": 1,
            "verb": "agent",
            "specHash": text_hash(self.children[Ref("ConfigMap", spec_name(name))]["data"]["spec.yaml"]),
            "attempt": 1,
            "ownerUid": self.body["metadata"]["uid"],
            "sequence": 3,
            "state": "Running",
            "progress": {"stage": "serving", "done": 5, "total": 5, "note": note, "summary": told},
        }
        data = self.children[Ref("ConfigMap", report_name(name))].setdefault("data", {})
        data[pod] = json.dumps(report)

    def serve(self) -> str:
        """Until the present document is served; its revision."""
        self.steps()
        if self.jobs():
            self.optimised()
            self.steps()
        for deployment in self.deployments().values():
            self.play_deployment(deployment)
        self.steps()
        (revision,) = self.deployments()
        return revision

    def selected(self) -> str | None:
        service = self.children.get(Ref("Service", "digits"))
        return None if service is None else service["spec"]["selector"].get(REVISION)

    def remembered(self) -> dict[str, str]:
        """Bases of allocations by revision."""
        return {
            one["metadata"]["labels"][REVISION]: one["metadata"]["annotations"][BASIS]
            for place, one in self.children.items()
            if place.kind == "ConfigMap" and ALLOCATION_KEY in one.get("data", {})
        }
