"""Of every specification: what is built is complete, the same each time, within limits, and `restricted`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.play import SETTINGS, UID, Play, body_of, condition
from tests.support.restricted import breaches, loose_ends, tokens
from tests.support.specs import names, searches, selections

from ensemble_operator import ensembleselection, hposearch, training, workload
from ensemble_operator.names import Owner
from ensemble_operator.world import Manifest, Ref

MANY = settings(max_examples=60)


def templates(objects: tuple[Manifest, ...]) -> Iterator[Manifest]:
    for made in objects:
        if made["kind"] == "Job":
            yield made["spec"]["template"]
        if made["kind"] == "RayJob":
            cluster = made["spec"]["rayClusterSpec"]
            yield cluster["headGroupSpec"]["template"]
            yield from (group["template"] for group in cluster["workerGroupSpecs"])


def check(one: Play) -> tuple[Manifest, ...]:
    """Decide, and check what holds for everything that is decided."""
    decision = one.decide()
    for made in decision.objects:
        metadata = made["metadata"]
        assert len(metadata["name"]) <= (47 if made["kind"] == "RayJob" else 63)
        assert metadata["namespace"] == "lab"
        assert metadata["labels"]["ensemble-operator.io/uid"] == UID
        assert metadata["ownerReferences"][0]["uid"] == UID
        assert all(len(value) <= 63 for value in metadata["labels"].values())
        assert len(json.dumps(made)) < 1_000_000
    for template in templates(decision.objects):
        assert breaches(template) == []
        assert loose_ends(template) == []
        assert template["metadata"]["labels"]["ensemble-operator.io/uid"] == UID
        assert template["metadata"]["labels"]["app.kubernetes.io/component"] in ("train", "select", "delete")
        for container in [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]:
            assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
            assert container["resources"]
        names = {secret["name"] for secret in template["spec"]["imagePullSecrets"]}
        assert "registry" in names
    return decision.objects


@MANY
@given(names, searches(), st.booleans())
def test_searches(name: str, spec: dict[str, Any], kuberay: bool) -> None:
    one = Play(hposearch.KIND, body_of("HPOSearch", name, spec), frozenset({"RayJob"} if kuberay else ()))
    objects = check(one)
    for made in objects:
        if made["kind"] == "RayJob":
            words = shlex.split(made["spec"]["entrypoint"])
            assert words[words.index("--name") + 1] == name
    for template in templates(objects):
        main = template["spec"]["containers"][0]["name"]
        assert tokens(template) == ([] if main == "ray-worker" else [main])


@MANY
@given(names, searches())
def test_deletions(name: str, spec: dict[str, Any]) -> None:
    spec["library"]["deletionPolicy"] = "Delete"
    dates = {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["ensemble-operator.io/library"]}
    objects = check(Play(hposearch.KIND, body_of("HPOSearch", name, spec, **dates)))
    (template,) = templates(objects)
    assert tokens(template) == ["ensemble"]


@MANY
@given(names, selections(), searches())
def test_selections(name: str, spec: dict[str, Any], found: dict[str, Any]) -> None:
    others = {}
    for source in ("a", "b"):
        body = body_of("HPOSearch", source, found)
        body["status"] = {
            "conditions": [condition("Ready", observedGeneration=1)],
            "library": {"models": 3, "digest": "a" * 64},
        }
        others[Ref("HPOSearch", source)] = body
    objects = check(Play(ensembleselection.KIND, body_of("EnsembleSelection", name, spec), others=others))
    for template in templates(objects):
        assert tokens(template) == ["ensemble"]


OWNER = Owner("HPOSearch", "digits", "lab", UID)
CLAIM = {"persistentVolumeClaim": {"claimName": "libraries"}}
SPEC: dict[str, Any] = {"library": {"storage": CLAIM}, "dataset": {"builtin": "digits"}, "maxTrialCount": 40}


def built(**spec: Any) -> Manifest:
    kuberay = frozenset({"RayJob"} if spec.get("engine") == "rayjob" else ())
    made: Manifest = (
        Play(hposearch.KIND, body_of("HPOSearch", "digits", {**SPEC, **spec}), kuberay).decide().objects[-1]
    )
    return made


def test_a_job_takes_no_more_than_all_of_its_trials_need() -> None:
    made = built(engine="job", maxTrialCount=1, resourcesPerTrial={"cpu": 2, "gpu": 1})
    (main,) = made["spec"]["template"]["spec"]["containers"]
    assert (main["resources"]["requests"]["cpu"], main["resources"]["limits"]["nvidia.com/gpu"]) == ("2000m", "1")


def test_the_pod_of_a_job_field_by_field() -> None:
    made = built(
        engine="job",
        parallelTrialCount=4,
        resourcesPerTrial={"cpu": 1.5, "gpu": 0.5},
        workers={"memoryMiB": 4096, "gpuResourceName": "nvidia.com/mig-1g.10gb"},
    )
    child = made["metadata"]["name"]
    spec = made["spec"]["template"]["spec"]
    (main,) = spec.pop("containers")
    assert spec == {
        "imagePullSecrets": [{"name": "registry"}],
        "serviceAccountName": child,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Never",
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [
            {"name": "tmp", "emptyDir": {}},
            {"name": "cache", "emptyDir": {}},
            {"name": "spec", "configMap": {"name": f"{child}-spec"}},
            {"name": "claim-0", "persistentVolumeClaim": {"claimName": "libraries"}},
            {
                "name": "token",
                "projected": {
                    "sources": [
                        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
                        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                        {
                            "downwardAPI": {
                                "items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]
                            }
                        },
                    ]
                },
            },
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "512Mi"}},
        ],
    }
    (path,) = [mount["mountPath"] for mount in main["volumeMounts"] if mount["name"] == "claim-0"]
    assert main == {
        "name": "ensemble",
        "image": "trainer:1",
        "imagePullPolicy": "IfNotPresent",
        "command": [
            *("ensemble", "train", "--spec", "/etc/ensemble/spec.yaml", "--name", "digits"),
            *("--report", f"configmap:lab/{child}-report"),
        ],
        "env": [
            {"name": "HOME", "value": "/tmp"},
            {"name": "TMPDIR", "value": "/tmp"},
            {"name": "ENSEMBLE_CACHE", "value": "/var/cache/ensemble"},
            {"name": "ENSEMBLE_ATTEMPT", "value": "1"},
            {"name": "ENSEMBLE_OWNER_UID", "value": UID},
        ],
        "resources": {
            "requests": {"cpu": "6000m", "memory": "4096Mi", "nvidia.com/mig-1g.10gb": "2"},
            "limits": {"memory": "4096Mi", "nvidia.com/mig-1g.10gb": "2"},
        },
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "cache", "mountPath": "/var/cache/ensemble"},
            {"name": "spec", "mountPath": "/etc/ensemble", "readOnly": True},
            {"name": "claim-0", "mountPath": path},
            {"name": "token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": True},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
    }


def test_a_ray_cluster_trains_on_its_workers_alone() -> None:
    workers = {"replicas": 3, "cpu": 8, "gpu": 2, "memoryMiB": 65536}
    overrides = {"resources": {"requests": {"memory": "96Gi"}}, "nodeSelector": {"pool": "gpu"}}
    made = built(engine="rayjob", workers=workers, podOverrides=overrides, serviceAccountName="cloud")
    cluster = made["spec"]["rayClusterSpec"]
    head, (group,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    store = {"object-store-memory": str(100 * 2**20)}
    assert head["rayStartParams"] == {"dashboard-host": "0.0.0.0", "num-cpus": "0", "num-gpus": "0"} | store
    assert group["rayStartParams"] == {"num-cpus": "8", "num-gpus": "2"} | store
    assert group["replicas"] == 3
    (worker,) = group["template"]["spec"]["containers"]
    assert worker["resources"] == {
        "requests": {"cpu": "8000m", "memory": "96Gi", "nvidia.com/gpu": "2"},
        "limits": {"nvidia.com/gpu": "2"},
    }
    (driver,) = head["template"]["spec"]["containers"]
    assert driver["resources"] == {"requests": {"cpu": "500m", "memory": "2048Mi"}, "limits": {"memory": "4096Mi"}}
    for template in (head["template"], group["template"]):
        assert template["spec"]["nodeSelector"] == {"pool": "gpu"}
        assert template["spec"]["serviceAccountName"] == "cloud"
    assert "command" not in driver
    assert "ENSEMBLE_ATTEMPT" not in [variable["name"] for variable in worker["env"]]


def test_only_the_search_itself_and_kuberay_reach_ray() -> None:
    mine = {"ensemble-operator.io/uid": UID, "app.kubernetes.io/component": "train"}
    assert training.network_policy(OWNER, "RayJob")["spec"] == {
        "podSelector": {"matchLabels": mine},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": [{"podSelector": {"matchLabels": mine}}]},
            {
                "from": [
                    {
                        "namespaceSelector": {},
                        "podSelector": {
                            "matchExpressions": [
                                {
                                    "key": "app.kubernetes.io/name",
                                    "operator": "In",
                                    "values": ["kuberay-operator", "kuberay"],
                                }
                            ]
                        },
                    }
                ],
                "ports": [{"protocol": "TCP", "port": 8265}],
            },
        ],
    }
    alone = training.network_policy(OWNER, "Job")["spec"]
    assert alone == {"podSelector": {"matchLabels": mine}, "policyTypes": ["Ingress"], "ingress": []}


@pytest.mark.parametrize(
    ("given_resources", "expected"),
    [
        ({"limits": {"memory": "1Gi"}}, {"requests": {"cpu": "2000m"}, "limits": {"memory": "1Gi"}}),
        (
            {"requests": {"cpu": 4, "ephemeral-storage": "9Gi"}},
            {
                "requests": {"memory": "8192Mi", "cpu": 4, "ephemeral-storage": "9Gi"},
                "limits": {"memory": "8192Mi"},
            },
        ),
    ],
)
def test_resources_that_the_user_names_are_the_users(given_resources: Any, expected: Any) -> None:
    made = built(engine="job", podOverrides={"resources": given_resources})
    assert made["spec"]["template"]["spec"]["containers"][0]["resources"] == expected


def test_an_account_of_the_users_is_bound_and_none_is_made() -> None:
    one = Play(hposearch.KIND, body_of("HPOSearch", "digits", {**SPEC, "serviceAccountName": "cloud"}))
    objects = one.decide().objects
    assert "ServiceAccount" not in [made["kind"] for made in objects]
    (binding,) = [made for made in objects if made["kind"] == "RoleBinding"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "cloud", "namespace": "lab"}]


def test_the_pause_grows_and_ends_growing() -> None:
    one = Play(hposearch.KIND, body_of("HPOSearch", "digits", SPEC))
    start = workload.Start("x", "train", "", "", 1, workload.Outcome("Lost", ended=one.now))
    pauses = []
    for attempt in (1, 2, 5, 6, 1000):
        lost = workload.Start("x", "train", "", "", attempt, start.outcome)
        pauses.append(workload.pause(one.world(), lost))
    assert pauses == [10, 20, 160, 300, 300]
    assert SETTINGS.image_pull_secrets == ("registry",)
