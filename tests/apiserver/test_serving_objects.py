"""What serves an ensemble, on a real API server: accepted, admitted under `restricted`, and not written twice."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from play import of_kind
from stage import Stage

from ensemble_operator.cluster import APIS, FIELD_MANAGER
from ensemble_operator.differences import contains, differs, stamped

pytestmark = pytest.mark.apiserver
Manifest = dict[str, Any]
APPLY = "application/apply-patch+yaml"


class Namespace:
    """The namespace `lab`, in which only restricted pods are admitted."""

    def __init__(self, server: Any) -> None:
        self.server = server

    def path(self, manifest: Manifest) -> str:
        api, name = APIS[manifest["kind"]], manifest["metadata"]["name"]
        root = "/apis/" if "/" in api.version else "/api/"
        return f"{root}{api.version}/namespaces/lab/{api.plural}/{name}"

    def get(self, manifest: Manifest) -> Manifest:
        code, found = self.server.request("GET", self.path(manifest))
        assert code == 200, found
        return dict(found)

    def apply(self, manifest: Manifest) -> Manifest:
        path = f"{self.path(manifest)}?fieldManager={FIELD_MANAGER}&force=true&fieldValidation=Strict"
        code, made = self.server.request("PATCH", path, manifest, APPLY)
        assert code in (200, 201), made
        return dict(made)

    def admit(self, template: Manifest) -> None:
        """A pod of the template, tried and not made."""
        body = {"apiVersion": "v1", "kind": "Pod", **template}
        body["metadata"] = {**template["metadata"], "name": "x"}
        code, answer = self.server.request("POST", "/api/v1/namespaces/lab/pods?dryRun=All", body)
        assert code == 201, answer


@pytest.fixture(scope="module")
def lab(api_server: Any) -> Namespace:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "lab", "labels": labels}}
    code, answer = api_server.request("POST", "/api/v1/namespaces", body)
    assert code in (201, 409), answer
    return Namespace(api_server)


def test_objects_are_accepted_and_written_once(lab: Namespace) -> None:
    serving = {"replicas": 2, "autoscaling": {"minReplicas": 1, "maxReplicas": 4}}
    stage = Stage.set(serving=serving, podOverrides={"nodeSelector": {"gpu": "a"}})
    decisions = [stage.step()]
    stage.optimised()
    decisions.append(stage.step())
    stage.play_deployment(stage.the_deployment())
    stage.change(serving={**serving, "httpPort": 9000, "service": {"type": "LoadBalancer"}})
    decisions += [stage.step()]
    for deployment in stage.deployments().values():
        stage.play_deployment(deployment)
    decisions += [stage.step(), stage.step()]  # requests move, and with them disruption budget and autoscaler
    stage.change(serving={"replicas": 1, "httpPort": 9000})
    decisions.append(stage.step())
    kinds = set()
    for decision in decisions:
        for desired in map(stamped, decision.objects):
            made = lab.apply(desired)
            kinds.add(desired["kind"])
            assert contains(made, desired), desired["kind"]
            assert not differs(desired, lab.get(desired)), desired["kind"]
        for workload in (*of_kind(decision.objects, "Deployment"), *of_kind(decision.objects, "Job")):
            lab.admit(workload["spec"]["template"])
    assert kinds >= {"Job", "Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "HorizontalPodAutoscaler"}


def test_an_autoscalers_replicas_stay(lab: Namespace) -> None:
    """Switching autoscaling on leaves the number of copies; what the autoscaler sets is not set back."""
    stage = Stage.set(serving={"replicas": 3})
    stage.serve()
    lab.apply(stamped(of_kind(stage.step().objects, "Deployment")[0]))
    stage.change(serving={"autoscaling": {"minReplicas": 1, "maxReplicas": 4}})
    (desired,) = of_kind(stage.step().objects, "Deployment")
    assert lab.apply(stamped(desired))["spec"]["replicas"] == 3
    scale = {"spec": {"replicas": 4}}
    code, answer = lab.server.request("PATCH", f"{lab.path(desired)}/scale", scale, "application/merge-patch+json")
    assert code == 200, answer
    stage.the_deployment()["spec"]["replicas"] = lab.get(desired)["spec"]["replicas"]
    (desired,) = of_kind(stage.step().objects, "Deployment")
    assert lab.apply(stamped(desired))["spec"]["replicas"] == 4
