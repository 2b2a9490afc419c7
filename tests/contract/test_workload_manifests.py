"""What the operator emits for searches and selections is what Kubernetes, KubeRay and Kueue accept."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from tests.support.closed import builtin, closed, errors
from tests.support.play import Play, body_of, condition
from tests.support.specs import names, searches, selections

from ensemble_operator import ensembleselection, hposearch, jobs, training
from ensemble_operator.names import KUEUE_LABELS, RAYJOB_LIMIT
from ensemble_operator.world import Manifest, Ref

DEFINITIONS = {
    "ConfigMap": ("api__v1", "io.k8s.api.core.v1.ConfigMap"),
    "ServiceAccount": ("api__v1", "io.k8s.api.core.v1.ServiceAccount"),
    "Job": ("apis__batch__v1", "io.k8s.api.batch.v1.Job"),
    "Role": ("apis__rbac.authorization.k8s.io__v1", "io.k8s.api.rbac.v1.Role"),
    "RoleBinding": ("apis__rbac.authorization.k8s.io__v1", "io.k8s.api.rbac.v1.RoleBinding"),
    "NetworkPolicy": ("apis__networking.k8s.io__v1", "io.k8s.api.networking.v1.NetworkPolicy"),
}
FEW = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


Wrong = Callable[[Manifest], list[str]]  # what is wrong with a manifest


@pytest.fixture(scope="session")
def wrong_rayjob(kuberay: Path) -> Wrong:
    crd = yaml.load((kuberay / "config/crd/bases/ray.io_rayjobs.yaml").read_text(), yaml.CSafeLoader)
    (version,) = [version for version in crd["spec"]["versions"] if version["name"] == "v1"]
    schema = closed(version["schema"]["openAPIV3Schema"])
    # The schema of metadata is Kubernetes' own.
    return lambda manifest: errors(schema, {**manifest, "metadata": {}})


@pytest.fixture(scope="session")
def wrong_builtin(kubernetes: Path) -> Wrong:
    folder = kubernetes / "api/openapi-spec/v3"
    schemas = {
        kind: builtin(json.loads((folder / f"{file}_openapi.json").read_text()), definition)
        for kind, (file, definition) in DEFINITIONS.items()
    }
    return lambda manifest: errors(schemas[manifest["kind"]], manifest)


def search_objects(name: str, spec: dict[str, Any], kuberay: bool = True) -> tuple[Manifest, ...]:
    labels = {KUEUE_LABELS[0]: "gpus", KUEUE_LABELS[1]: "high"}
    body = body_of("HPOSearch", name, {**spec, "suspend": False}, labels=labels)
    return Play(hposearch.KIND, body, frozenset({"RayJob"} if kuberay else ())).decide().objects


def selection_objects(name: str, spec: dict[str, Any], found: dict[str, Any]) -> tuple[Manifest, ...]:
    others = {Ref("HPOSearch", source): body_of("HPOSearch", source, found) for source in ("a", "b")}
    for body in others.values():
        ready = [condition("Ready", observedGeneration=1)]
        body["status"] = {"conditions": ready, "library": {"models": 3, "digest": "a" * 64}}
    body = body_of("EnsembleSelection", name, {**spec, "suspend": False})
    return Play(ensembleselection.KIND, body, others=others).decide().objects


@FEW
@given(name=names, spec=searches())
def test_kuberay_accepts_every_rayjob(wrong_rayjob: Wrong, name: str, spec: dict[str, Any]) -> None:
    for made in search_objects(name, {**spec, "engine": "rayjob"}):
        if made["kind"] == "RayJob":
            assert wrong_rayjob(made) == []


@FEW
@given(name=names, spec=searches(), selection=selections())
def test_kubernetes_accepts_everything_else(
    wrong_builtin: Wrong, name: str, spec: dict[str, Any], selection: dict[str, Any]
) -> None:
    made = (*search_objects(name, spec, False), *search_objects(name, spec), *selection_objects(name, selection, spec))
    for manifest in made:
        if manifest["kind"] != "RayJob":
            assert wrong_builtin(manifest) == []


def test_the_schemas_notice_what_is_wrong(wrong_rayjob: Wrong, wrong_builtin: Wrong) -> None:
    wrong = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {}, "spec": {"entrypoit": "x", "suspend": "no"}}
    assert len(wrong_rayjob(wrong)) == 2
    assert wrong_builtin({"kind": "Job", "spec": {"backofLimit": 3}})


def test_names_are_as_long_as_kuberay_takes_them(kuberay: Path) -> None:
    text = (kuberay / "controllers/ray/utils/constant.go").read_text()
    (cluster,) = re.findall(r"MaxRayClusterNameLength = (\d+)", text)
    (less,) = re.findall(r"MaxRayJobNameLength = MaxRayClusterNameLength - (\d+)", text)
    assert int(cluster) - int(less) == RAYJOB_LIMIT


def test_kuberay_has_the_states_that_we_read(kuberay: Path) -> None:
    text = (kuberay / "apis/ray/v1/rayjob_types.go").read_text()
    deployment = set(re.findall(r'JobDeploymentStatus = "(\w+)"', text))
    assert {"Running", "Complete", "Failed", "ValidationFailed", "Suspending", "Suspended"} <= deployment
    assert {"SUCCEEDED", "STOPPED", "FAILED"} <= set(re.findall(r'JobStatus = "(\w+)"', text))
    assert "HTTPMode" in re.findall(r'JobSubmissionMode = "(\w+)"', text)


def test_the_network_policy_knows_kuberays_pods(kuberay: Path) -> None:
    manifests = yaml.safe_load_all((kuberay / "config/manager/manager.yaml").read_text())
    (deployment,) = [manifest for manifest in manifests if manifest["kind"] == "Deployment"]
    assert deployment["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"] in training.KUBERAY


def test_kueue_has_these_labels(kueue: Path) -> None:
    text = (kueue / "pkg/controller/constants/constants.go").read_text()
    known = dict(re.findall(r'(QueueLabel|WorkloadPriorityClassLabel)\s+= "([^"]+)"', text))
    assert tuple(known.values()) == KUEUE_LABELS


@pytest.mark.parametrize("kuberay_there", [True, False])
def test_kueue_can_queue_what_we_make(kuberay_there: bool) -> None:
    """What Kueue's webhook demands of a RayJob; a Job needs its label alone."""
    claim = {"persistentVolumeClaim": {"claimName": "libraries"}}
    spec = {"library": {"storage": claim}, "dataset": {"builtin": "digits"}, "maxTrialCount": 4}
    made = search_objects("digits", spec, kuberay_there)[-1]
    assert made["metadata"]["labels"][KUEUE_LABELS[0]] == "gpus"
    assert made["metadata"]["labels"][KUEUE_LABELS[1]] == "high"
    assert "suspend" not in made["spec"]
    if made["kind"] == "RayJob":
        assert made["spec"]["shutdownAfterJobFinishes"] is True
        assert "clusterSelector" not in made["spec"]
        cluster = made["spec"]["rayClusterSpec"]
        assert "enableInTreeAutoscaling" not in cluster
        assert all(group["groupName"] != "head" for group in cluster["workerGroupSpecs"])
        assert cluster["rayVersion"] == jobs.RAY_VERSION
