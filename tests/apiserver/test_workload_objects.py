"""The real API server takes what the operator makes for searches and selections, its admission of pods included."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.play import Play, body_of, condition

from ensemble_operator import ensembleselection, hposearch
from ensemble_operator.names import CHILD
from ensemble_operator.world import Manifest, Ref

pytestmark = pytest.mark.apiserver

SAMPLES = Path(__file__).parents[2] / "crds/samples"
NAMESPACE = "lab"
PLURALS = {
    "ConfigMap": "api/v1/namespaces/lab/configmaps",
    "ServiceAccount": "api/v1/namespaces/lab/serviceaccounts",
    "Pod": "api/v1/namespaces/lab/pods",
    "Role": "apis/rbac.authorization.k8s.io/v1/namespaces/lab/roles",
    "RoleBinding": "apis/rbac.authorization.k8s.io/v1/namespaces/lab/rolebindings",
    "Job": "apis/batch/v1/namespaces/lab/jobs",
    "NetworkPolicy": "apis/networking.k8s.io/v1/namespaces/lab/networkpolicies",
}


def sample(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((SAMPLES / f"{name}.yaml").read_text())
    return content


def decided() -> Iterator[Manifest]:
    """Objects for the samples: with and without KubeRay, and those that delete a library."""
    for name in ("hposearch-minimal", "hposearch-complete"):
        given = sample(name)
        for engine in ("rayjob", "job"):
            body = body_of("HPOSearch", given["metadata"]["name"], {**given["spec"], "engine": engine})
            yield from Play(hposearch.KIND, body).decide().objects
        dates = {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["ensemble-operator.io/library"]}
        spec = {**given["spec"], "library": {**given["spec"]["library"], "deletionPolicy": "Delete"}}
        yield from Play(hposearch.KIND, body_of("HPOSearch", given["metadata"]["name"], spec, **dates)).decide().objects
    for name in ("ensembleselection-minimal", "ensembleselection-complete"):
        given = sample(name)
        search = body_of("HPOSearch", given["metadata"]["name"], sample("hposearch-complete")["spec"])
        ready = [condition("Ready", observedGeneration=1)]
        search["status"] = {"conditions": ready, "library": {"models": 3, "digest": "a" * 64}}
        others = {Ref("HPOSearch", given["metadata"]["name"]): search}
        body = body_of("EnsembleSelection", given["metadata"]["name"], given["spec"])
        one = Play(ensembleselection.KIND, body, others=others)
        yield from one.step().objects
        # Once it has ended, the storages among its sources are polled.
        one.workload()["status"] = {"conditions": [condition("Complete")]}
        yield from (made for made in one.decide().objects if "-poll-" in made["metadata"]["name"])


def pods(made: Manifest) -> Iterator[Manifest]:
    """The pods that a Job's or RayJob's templates make."""
    templates = [made["spec"]["template"]] if made["kind"] == "Job" else []
    if made["kind"] == "RayJob":
        cluster = made["spec"]["rayClusterSpec"]
        templates = [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    for number, template in enumerate(templates):
        metadata = {**template["metadata"], "name": f"{template['metadata']['labels'][CHILD]}-{number}"}
        # There is no such class on this server, which is not what is asked.
        spec = {
            key: value
            for key, value in template["spec"].items()
            if key not in ("priorityClassName", "runtimeClassName")
        }
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": {**metadata, "namespace": NAMESPACE}, "spec": spec}


@pytest.fixture(scope="module")
def namespace(api_server: Any) -> str:
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}
    status, answer = api_server.request("POST", "/api/v1/namespaces", body)
    assert status in (201, 409), answer
    return NAMESPACE


@pytest.mark.usefixtures("namespace")
def test_everything_is_taken(api_server: Any) -> None:
    refused = []
    kinds = set()
    for made in decided():
        for manifest in (made, *pods(made)):
            if manifest["kind"] not in PLURALS:
                continue
            kinds.add(manifest["kind"])
            place = f"/{PLURALS[manifest['kind']]}?dryRun=All&fieldValidation=Strict"
            status, answer = api_server.request("POST", place, manifest)
            if status != 201:
                refused.append(f"{manifest['kind']} {manifest['metadata']['name']}: {answer.get('message')}")
    assert refused == []
    assert kinds == set(PLURALS)


@pytest.mark.usefixtures("namespace")
def test_the_server_would_refuse_a_pod_with_a_privilege(api_server: Any) -> None:
    made = next(pod for one in decided() for pod in pods(one))
    made["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    status, answer = api_server.request("POST", f"/{PLURALS['Pod']}?dryRun=All", made)
    assert status == 403
    assert "restricted" in answer["message"]
