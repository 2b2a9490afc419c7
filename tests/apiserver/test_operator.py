"""The operator's process on a real API server: it converges, is quiet, and survives everything that happens to it."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import load_kube_config
from tests.apiserver.operator_bench import (
    CUSTOM,
    KINDS,
    RAY_JOB,
    Cluster,
    Operator,
    children,
    counts,
    definitions,
    for_searches,
    jobs_made,
    kubeconfig,
    new_cluster,
    operator,
    sample,
    search,
    until,
)

from ensemble_operator.cluster import KubernetesCluster, RefusedError

pytestmark = pytest.mark.apiserver


def test_makes_children_with_their_owner_and_tells(cluster: Cluster, namespace: str, running: Operator) -> None:
    made = cluster.create("HPOSearch", namespace, search("digits"))
    until(lambda: counts(cluster, namespace) == for_searches(1))
    for kind in KINDS:
        for one in cluster.list(kind, namespace):
            owner = one["metadata"]["ownerReferences"][0]
            assert (owner["uid"], owner["kind"], owner["name"]) == (made["metadata"]["uid"], "HPOSearch", "digits")
    until(lambda: cluster.condition("HPOSearch", namespace, "digits", "Progressing").get("status") == "True")
    ready = cluster.condition("HPOSearch", namespace, "digits", "Ready")
    assert (ready["status"], ready["observedGeneration"]) == ("False", 1)
    until(lambda: cluster.list("Event", namespace))
    event = cluster.list("Event", namespace)[0]
    assert (event["regarding"]["uid"], event["type"]) == (made["metadata"]["uid"], "Normal")
    assert running.complaints() == []


def test_every_kind_says_what_it_waits_for(cluster: Cluster, namespace: str, running: Operator) -> None:
    for kind in CUSTOM:
        cluster.create(kind, namespace, sample(kind, "digits"))
    for kind in CUSTOM:
        until(lambda kind=kind: cluster.condition(kind, namespace, "digits", "Ready"), what=kind)
        assert cluster.condition(kind, namespace, "digits", "Ready")["reason"] not in ("InternalError", "InvalidSpec")


def test_deleted_children_come_back(cluster: Cluster, namespace: str, running: Operator) -> None:
    cluster.create("HPOSearch", namespace, search("digits"))
    until(lambda: counts(cluster, namespace) == for_searches(1))
    before = children(cluster, namespace)
    for kind in ("ConfigMap", "Role", "RoleBinding", "ServiceAccount"):
        for name in before[kind]:
            cluster.delete(kind, namespace, name)
    until(lambda: children(cluster, namespace) == before)


def test_changed_children_are_set_right_but_never_a_job(cluster: Cluster, namespace: str, running: Operator) -> None:
    cluster.create("HPOSearch", namespace, search("digits"))
    until(lambda: counts(cluster, namespace) == for_searches(1))
    names = children(cluster, namespace)
    cluster.patch("Job", namespace, names["Job"][0], {"spec": {"suspend": True}})
    rules = cluster.list("Role", namespace)[0]["rules"]
    wider = [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]
    cluster.patch("Role", namespace, names["Role"][0], {"rules": wider})
    until(lambda: cluster.list("Role", namespace)[0]["rules"] == rules)
    time.sleep(1)
    assert cluster.list("Job", namespace)[0]["spec"]["suspend"] is True


def test_suspended_and_resumed(cluster: Cluster, namespace: str, running: Operator) -> None:
    cluster.create("HPOSearch", namespace, search("digits"))
    until(lambda: counts(cluster, namespace) == for_searches(1))
    cluster.patch("HPOSearch", namespace, "digits", {"spec": {"suspend": True}})
    until(lambda: children(cluster, namespace)["Job"] == [])
    until(lambda: cluster.condition("HPOSearch", namespace, "digits", "Ready").get("reason") == "Suspended")
    cluster.patch("HPOSearch", namespace, "digits", {"spec": {"suspend": False}})
    until(lambda: len(children(cluster, namespace)["Job"]) == 1)


def test_foreign_object_of_a_wanted_name(cluster: Cluster, namespace: str, running: Operator) -> None:
    cluster.create("HPOSearch", namespace, search("digits"))
    until(lambda: counts(cluster, namespace) == for_searches(1))
    name = children(cluster, namespace)["ServiceAccount"][0]
    cluster.delete("HPOSearch", namespace, "digits")
    for kind in KINDS:
        for child in children(cluster, namespace)[kind]:
            cluster.delete(kind, namespace, child)  # nobody collects here
    cluster.request("DELETE", f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies")
    foreign = cluster.create("ServiceAccount", namespace, {"metadata": {"name": name}})
    cluster.create("HPOSearch", namespace, search("digits"))
    until(lambda: cluster.condition("HPOSearch", namespace, "digits", "Degraded").get("reason") == "NameTaken")
    assert cluster.get("ServiceAccount", namespace, name) == foreign
    cluster.delete("ServiceAccount", namespace, name)
    until(lambda: counts(cluster, namespace) == for_searches(1))
    until(lambda: cluster.condition("HPOSearch", namespace, "digits", "Degraded").get("status") == "False")


def test_fields_that_pods_do_not_have_are_told(cluster: Cluster, namespace: str, running: Operator) -> None:
    """The server would drop them from what is created."""
    wrong = search("digits", podOverrides={"affinity": {"nodeAffinityy": {}}})
    cluster.create("HPOSearch", namespace, wrong)
    until(lambda: cluster.condition("HPOSearch", namespace, "digits", "Degraded").get("reason") == "ApplyFailed")
    assert "nodeAffinityy" in cluster.condition("HPOSearch", namespace, "digits", "Degraded")["message"]
    assert children(cluster, namespace)["Job"] == []
    cluster.patch("HPOSearch", namespace, "digits", {"spec": {"podOverrides": None}})
    until(lambda: counts(cluster, namespace)["Job"] == 1)
    until(lambda: cluster.condition("HPOSearch", namespace, "digits", "Degraded").get("status") == "False")


def test_an_apply_with_fields_that_pods_do_not_have_is_refused(cluster: Cluster, namespace: str) -> None:
    """The server answers it with 500, though it will never accept it."""
    pod = {"containers": [{"name": "a", "image": "a"}], "affinity": {"nodeAffinityy": {}}}
    labels = {"app": "a"}
    template = {"metadata": {"labels": labels}, "spec": pod}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "a", "namespace": namespace},
        "spec": {"selector": {"matchLabels": labels}, "template": template},
    }

    async def apply() -> None:
        configuration = Configuration()
        await load_kube_config(config_file=str(kubeconfig(cluster)), client_configuration=configuration)  # type: ignore[no-untyped-call]
        client = KubernetesCluster(configuration)
        try:
            await client.apply(deployment)
        finally:
            await client.close()

    with pytest.raises(RefusedError, match="nodeAffinityy"):
        asyncio.run(apply())


def test_metrics_and_a_graceful_end(cluster: Cluster, namespace: str, running: Operator) -> None:
    cluster.create("HPOSearch", namespace, search("digits"))
    series = f'ensemble_condition{{kind="HPOSearch",name="digits",namespace="{namespace}",type="Ready"}} 0.0'
    until(lambda: series in running.metrics())
    assert 'ensemble_operator_reconciles_total{kind="HPOSearch",result="changed"}' in running.metrics()
    cluster.delete("HPOSearch", namespace, "digits")
    until(lambda: f'namespace="{namespace}"' not in running.metrics())
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(20) == 0
    assert running.complaints() == []


@pytest.mark.parametrize("rounds", [5, pytest.param(50, marks=pytest.mark.nightly)])
def test_killed_at_random(cluster: Cluster, namespace: str, rounds: int) -> None:
    """However often it is killed, the same objects come of it, and no Job is made twice."""
    chance, number = random.Random(rounds), 6
    for index in range(number):
        cluster.create("HPOSearch", namespace, search(f"digits-{index}", trials=4))
    for trial in range(rounds):
        with operator(cluster) as one:
            until(one.healthy)
            for index in range(number):
                cluster.patch("HPOSearch", namespace, f"digits-{index}", {"spec": {"maxTrialCount": 5 + trial}})
            time.sleep(chance.uniform(0, 0.6))
            one.process.kill()
            one.process.wait(10)
    with operator(cluster) as one:
        until(one.healthy)
        until(lambda: observed(cluster, namespace, "HPOSearch"))
        until(lambda: complete(cluster, namespace, number))
        assert one.complaints() == []
    wanted = {one["metadata"]["uid"] for one in cluster.list("HPOSearch", namespace)}
    owners = [one["metadata"]["ownerReferences"][0]["uid"] for one in cluster.list("Job", namespace)]
    assert sorted(owners) == sorted(wanted)
    assert set(jobs_made(cluster, namespace).values()) == {1}


def complete(cluster: Cluster, namespace: str, number: int) -> bool:
    """Each search has one Job with all it needs; of the Job before it no more than the ConfigMaps remain."""
    found = children(cluster, namespace)
    jobs = found["Job"]
    needed = {f"{job}-{what}" for job in jobs for what in ("spec", "report")}
    exact = all(found[kind] == jobs for kind in ("Role", "RoleBinding", "ServiceAccount"))
    return len(jobs) == number and exact and needed <= set(found["ConfigMap"]) and len(found["ConfigMap"]) <= 4 * number


def observed(cluster: Cluster, namespace: str, kind: str) -> bool:
    return all(
        one.get("status", {}).get("observedGeneration") == one["metadata"]["generation"]
        for one in cluster.list(kind, namespace)
    )


def test_two_operators_at_once(cluster: Cluster, namespace: str, running: Operator) -> None:
    number = 8
    with operator(cluster) as second:
        until(second.healthy)
        for index in range(number):
            cluster.create("HPOSearch", namespace, search(f"digits-{index}", trials=4))
        until(lambda: counts(cluster, namespace) == for_searches(number))
        for index in range(number):
            cluster.patch("HPOSearch", namespace, f"digits-{index}", {"spec": {"maxTrialCount": 5}})
        until(lambda: observed(cluster, namespace, "HPOSearch"))
        until(lambda: complete(cluster, namespace, number))
        time.sleep(2)
        written = len(cluster.writes())
        time.sleep(3)
        assert cluster.writes()[written:] == []
        assert [*running.complaints(), *second.complaints()] == []
    assert set(jobs_made(cluster, namespace).values()) == {1}
    assert len(jobs_made(cluster, namespace)) == 2 * number


def test_api_server_restarted(cluster: Cluster, namespace: str, running: Operator) -> None:
    cluster.create("HPOSearch", namespace, search("before"))
    until(lambda: counts(cluster, namespace) == for_searches(1))
    cluster.stop()
    time.sleep(5)
    cluster.start()
    cluster.create("HPOSearch", namespace, search("after"))
    cluster.delete("Role", namespace, children(cluster, namespace)["Role"][0])
    until(lambda: counts(cluster, namespace) == for_searches(2))
    assert running.process.poll() is None
    assert running.healthy()


def test_kuberay_comes_and_goes(cluster: Cluster, namespace: str, running: Operator) -> None:
    rays = f"/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
    cluster.create("HPOSearch", namespace, search("digits", engine="rayjob"))
    until(lambda: cluster.condition("HPOSearch", namespace, "digits", "Degraded").get("reason") == "KubeRayMissing")
    cluster.define(RAY_JOB)
    until(lambda: len(cluster.request("GET", rays)["items"]) == 1)
    name = cluster.request("GET", rays)["items"][0]["metadata"]["name"]
    cluster.request("DELETE", f"{rays}/{name}")
    until(lambda: len(cluster.request("GET", rays)["items"]) == 1)
    cluster.undefine("rayjobs.ray.io")
    until(lambda: cluster.condition("HPOSearch", namespace, "digits", "Degraded").get("reason") == "KubeRayMissing")
    assert running.process.poll() is None


def test_definitions_go_and_come(cluster: Cluster, namespace: str, running: Operator) -> None:
    """Of what is not there any more nothing is asked; the rest goes on, and what comes back is seen."""
    (definition,) = (one for one in definitions() if one["spec"]["names"]["kind"] == "EnsembleDeployment")
    cluster.undefine(definition["metadata"]["name"])
    try:
        until(lambda: any("has no EnsembleDeployment" in line["message"] for line in running.lines()))
        cluster.create("HPOSearch", namespace, search("digits"))
        until(lambda: counts(cluster, namespace) == for_searches(1))
    finally:
        cluster.define(definition)
    cluster.create("EnsembleDeployment", namespace, sample("EnsembleDeployment", "digits"))
    until(lambda: cluster.condition("EnsembleDeployment", namespace, "digits", "Ready"))
    assert running.process.poll() is None


def test_only_given_namespaces_are_touched(cluster: Cluster, namespace: str) -> None:
    other = cluster.namespace("not-watched")
    with operator(cluster, WATCH_NAMESPACES=namespace) as one:
        until(one.healthy)
        cluster.create("HPOSearch", other, search("digits"))
        cluster.create("HPOSearch", namespace, search("digits"))
        until(lambda: counts(cluster, namespace) == for_searches(1))
        time.sleep(1)
        assert sum(counts(cluster, other).values()) == 0
    cluster.delete("HPOSearch", other, "digits")


def test_waits_for_its_definitions(tmp_path: Path) -> None:
    with new_cluster(tmp_path) as cluster, operator(cluster) as one:
        until(one.healthy)
        cluster.install_definitions()
        namespace = cluster.namespace("lab")
        cluster.create("HPOSearch", namespace, search("digits"))
        until(lambda: counts(cluster, namespace) == for_searches(1))
        assert one.process.poll() is None


def test_started_before_the_api_server(cluster: Cluster, namespace: str) -> None:
    cluster.stop()
    with operator(cluster) as one:
        until(lambda: any("not available" in line["message"] for line in one.lines()))
        cluster.start()
        cluster.create("HPOSearch", namespace, search("digits"))
        until(lambda: counts(cluster, namespace) == for_searches(1))


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "TRAINER_IMAGE: is not set"),
        ({"TRAINER_IMAGE": "a", "CORE_IMAGE": "b", "WORKERS": "none"}, "WORKERS: 'none' must be a whole number"),
        ({"TRAINER_IMAGE": "a", "CORE_IMAGE": "b", "KUBECONFIG": "/nowhere"}, "KUBECONFIG: there is no cluster"),
    ],
)
def test_wrong_environment_is_one_line(environment: dict[str, str], said: str) -> None:
    command = [sys.executable, "-m", "ensemble_operator.main"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_tells_the_environment() -> None:
    command = [sys.executable, "-m", "ensemble_operator.main", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "WATCH_NAMESPACES" in done.stdout
