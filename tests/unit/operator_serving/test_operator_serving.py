from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from play import SETTINGS
from restricted import breaches, loose_ends, tokens
from specs import names, storages, workloads
from stage import DIGESTS, SPEC, Stage, summary

from ensemble_core.api.common import Storage
from ensemble_core.api.ensembledeployment import EnsembleDeployment
from ensemble_core.api.hposearch import HPOSearch
from ensemble_operator import serving
from ensemble_operator.deployment_aim import build_optimise_job, wanted_part
from ensemble_operator.jobs import Outcome
from ensemble_operator.names import Owner
from ensemble_operator.reports import typed
from ensemble_operator.serving import (
    QUEUE_METRIC,
    SAMPLE_MIB,
    Allocation,
    Served,
    build_autoscaler,
    build_deployment,
    build_disruption_budget,
    build_identity,
    build_network_policy,
    build_record,
    build_service,
    build_service_monitor,
    child_of,
    device_pod,
    endpoint,
    ports_of,
)
from ensemble_operator.storages import reference, resolve
from ensemble_operator.workload import Start
from ensemble_operator.world import Manifest

UID = "6f1c1c1e-0000-4000-8000-000000000001"
QUEUE = {"kueue.x-k8s.io/queue-name": "gpus"}
CLAIM = {"persistentVolumeClaim": {"claimName": "libraries", "subPath": "digits"}}
S3 = {"s3": {"bucket": "libraries"}, "credentialsSecretRef": {"name": "keys"}}
OURS = {"ensemble-operator.io/uid": UID}


def owner(name: str = "digits") -> Owner:
    return Owner("EnsembleDeployment", name, "lab", UID, QUEUE)


def search(storage: Manifest) -> HPOSearch:
    spec = {"library": {"storage": storage}, "dataset": {"builtin": "digits"}, "maxTrialCount": 4}
    return reference(HPOSearch.model_validate({"metadata": {"name": "digits"}, "spec": spec}))


def served(name: str = "digits", storage: Manifest = CLAIM, **spec: Any) -> Served:
    deployment = EnsembleDeployment.model_validate({"metadata": {"name": name}, "spec": SPEC | spec})
    allocation = typed(Allocation, summary(DIGESTS[0]))
    assert allocation is not None
    resolved = resolve([wanted_part(deployment), search(storage)])
    return Served(owner(name), deployment.spec, SETTINGS, resolved, allocation)


def test_a_revision_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name takes a whole pod template, and every object of the revision has it."""
    made: list[str] = []
    build = serving.build_template
    monkeypatch.setattr(serving, "build_template", lambda one, name: (made.append(name), build(one, name))[1])
    one = served()
    build_record(one, "basis", "wish")
    build_identity(one)
    deployment = build_deployment(one, 2)
    assert made == ["", one.revision]
    assert deployment["metadata"]["labels"]["ensemble-operator.io/revision"] == one.revision


def optimise(one: Served) -> Manifest:
    start = Start("digits-allocate-0", "allocate", "s", "b", 1, Outcome("Absent"))
    return build_optimise_job(one.owner, start, one.resolved, one.spec, one.settings, DIGESTS[0])


def containers(manifest: Manifest) -> dict[str, Manifest]:
    pod = manifest["spec"]["template"]["spec"]
    return {one["name"]: one for one in (*pod.get("initContainers", ()), *pod["containers"])}


def test_device_pod() -> None:
    devices = [
        {"name": "large", "type": "gpu", "count": 2},
        {"name": "slices", "type": "gpu", "count": 2, "resourceName": "nvidia.com/mig-1g.10gb"},
        {"name": "more", "type": "gpu", "count": 1},
        {"name": "cores", "type": "cpu", "count": 3, "coresPerDevice": 4, "memoryMiB": 512},
        {"name": "others", "type": "cpu", "count": 1},
    ]
    found = device_pod(served(devices=devices).spec)
    assert found.devices == (("nvidia.com/gpu", 3), ("nvidia.com/mig-1g.10gb", 2))
    assert found.cpu == 3 * 4 + 1 + 5
    of_requests = round((10 - 3) * 128 * SAMPLE_MIB)  # in flight beside those of two devices
    assert found.memory == 2048 + of_requests + 3 * 512 + 1024 + 5 * 1024
    assert found.memory_limit == 2048 + of_requests + 3 * 512 + 4096 + 5 * 4096


LATENCY = {"objective": "latency", "latency": {"requestsInFlight": 32, "samplesPerRequest": 16}}


@pytest.mark.parametrize(
    ("spec", "samples"),
    [
        ({}, 0),
        ({"serving": {"segmentSize": 1024, "maxBatchSize": 1024}}, 3 * 1024 - 384),
        ({"serving": {"segmentSize": 64}}, 0),
        ({"optimization": LATENCY}, 32 * 16 - 384),
    ],
    ids=str,
)
def test_a_pod_that_optimises_has_memory_for_the_samples_in_flight(spec: Manifest, samples: int) -> None:
    devices = [{"name": "cores", "type": "cpu", "count": 2, "memoryMiB": 512}]
    assert device_pod(served(devices=devices, **spec).spec).memory == 2048 + 2 * 512 + round(samples * SAMPLE_MIB)


@pytest.mark.parametrize(
    "settings",
    [
        *({"combiner": "vote"}, {"scores": "logits"}, {"routing": "weights"}, {"quorum": 1}, {"retries": 1}),
        *({"deadlineSeconds": 5}, {"segmentSize": 64}, {"maxBatchSize": 64}),
    ],
    ids=str,
)
def test_what_is_served_otherwise_is_another_revision(settings: Manifest) -> None:
    assert served(serving=settings).revision != served().revision


def test_both_pods_have_the_same_devices() -> None:
    one = served()
    optimising, serving = containers(optimise(one)), containers(build_deployment(one, 1))
    for container in (optimising["ensemble"], serving["triton"], serving["render"]):
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"
        assert container["resources"]["requests"]["nvidia.com/gpu"] == "4"
    assert optimising["ensemble"]["resources"]["requests"]["cpu"] == serving["triton"]["resources"]["requests"]["cpu"]
    assert "nvidia.com/gpu" not in serving["agent"]["resources"]["limits"]


def test_commands() -> None:
    one = served(serving={"httpPort": 9000, "grpcPort": 9001, "metricsPort": 9002})
    name = child_of(one.owner, one.revision)
    found = {key: container["command"] for key, container in containers(build_deployment(one, 1)).items()}
    found |= {key: container["command"] for key, container in containers(optimise(one)).items()}
    spec = ["--spec", "/etc/ensemble/spec.yaml", "--name", "digits"]
    ports = ["--http-port", "9000", "--grpc-port", "9001", "--metrics-port", "9002"]
    assert found == {
        "render": ["ensemble", "render", *spec, "--selection", DIGESTS[0], "--output", "/repository"],
        "triton": ["ensemble", "server", "--repository", "/repository", "--address", "0.0.0.0", *ports],
        "agent": [
            *["ensemble", "agent", "--repository", "/repository", "--http-port", "9000"],
            *["--report", f"configmap:lab/{name}-report"],
        ],
        "ensemble": [
            *["ensemble", "allocate", *spec],
            *["--report", "configmap:lab/digits-allocate-0-report", "--selection", DIGESTS[0]],
        ],
    }


def test_only_who_must_has_credentials_and_a_token() -> None:
    one = served(storage=S3)
    template = build_deployment(one, 1)["spec"]["template"]
    assert tokens(template) == ["agent"]
    assert tokens(optimise(one)["spec"]["template"]) == ["ensemble"]
    with_keys = {
        name
        for name, container in containers(build_deployment(one, 1)).items()
        if any("secretKeyRef" in variable.get("valueFrom", {}) for variable in container["env"])
    }
    assert with_keys == {"render"}
    claims = containers(build_deployment(served(), 1))
    storage = {name for name, c in claims.items() if any("/mnt/" in mount["mountPath"] for mount in c["volumeMounts"])}
    assert storage == {"render"}


def test_each_agent_reports_under_the_name_of_its_pod() -> None:
    named = {"name": "ENSEMBLE_REPORT_KEY", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    assert {name for name, one in containers(build_deployment(served(), 1)).items() if named in one["env"]} == {"agent"}


def test_no_other_container_is_the_agents_user() -> None:
    """They see its processes, and whoever is its user could read its token through /proc."""
    pod = build_deployment(served(), 1)["spec"]["template"]["spec"]
    assert pod["shareProcessNamespace"]
    users = {
        container["name"]: {**pod["securityContext"], **container["securityContext"]}
        for container in (*pod["initContainers"], *pod["containers"])
    }
    assert {name: context["runAsUser"] for name, context in users.items()} == {
        "render": 65532,
        "triton": 65532,
        "agent": 65531,
    }
    # The token of a pod with several users belongs to root and the group of `fsGroup`.
    assert {context["runAsGroup"] for context in users.values()} == {pod["securityContext"]["fsGroup"]}
    assert all(context["capabilities"] == {"drop": ["ALL"]} for context in users.values())
    assert all(context["allowPrivilegeEscalation"] is False for context in users.values())


def test_shared_memory_is_part_of_the_memory() -> None:
    """What `allocate` says of a pod's memory includes its /dev/shm."""
    pod = build_deployment(served(), 1)["spec"]["template"]["spec"]
    volume = {one["name"]: one for one in pod["volumes"]}["shared-memory"]
    assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "300Mi"}
    triton = containers(build_deployment(served(), 1))["triton"]
    assert triton["resources"]["limits"]["memory"] == triton["resources"]["requests"]["memory"] == "1701Mi"
    assert {"name": "shared-memory", "mountPath": "/dev/shm"} in triton["volumeMounts"]


def test_a_pod_takes_requests_when_the_front_model_does() -> None:
    triton = containers(build_deployment(served(), 1))["triton"]
    ready = {"path": "/v2/models/digits/ready", "port": "http"}
    assert triton["readinessProbe"]["httpGet"] == triton["startupProbe"]["httpGet"] == ready
    assert triton["startupProbe"]["periodSeconds"] * triton["startupProbe"]["failureThreshold"] == 3600
    assert triton["livenessProbe"]["httpGet"] == {"path": "/v2/health/live", "port": "http"}
    assert [port["name"] for port in triton["ports"]] == ["http", "grpc", "metrics"]


def test_a_pod_that_ends_still_answers_for_a_while_and_then_what_it_has() -> None:
    one = served(serving={"httpPort": 9000, "deadlineSeconds": 100.5})
    pod = build_deployment(one, 1)["spec"]["template"]["spec"]
    before_the_end = containers(build_deployment(one, 1))["triton"]["lifecycle"]["preStop"]["exec"]["command"]
    assert before_the_end == [
        *["ensemble", "drain", "--repository", "/repository", "--http-port", "9000"],
        *["--after", "10", "--within", "101"],
    ]
    assert pod["terminationGracePeriodSeconds"] == 10 + 101 + 20


def test_deployment() -> None:
    one = served(rollout={"progressDeadlineSeconds": 77}, podOverrides={"labels": {"team": "a"}})
    revision = one.revision
    made = build_deployment(one, 3)
    pod = made["spec"]["template"]
    assert made["metadata"]["name"] == f"digits-{revision}"
    assert made["metadata"]["labels"].items() >= {**QUEUE, "ensemble-operator.io/revision": revision}.items()
    assert made["metadata"]["ownerReferences"][0]["uid"] == UID
    assert made["spec"]["replicas"] == 3
    assert made["spec"]["progressDeadlineSeconds"] == 77
    assert made["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    selector = made["spec"]["selector"]["matchLabels"]
    assert selector == OURS | {"ensemble-operator.io/revision": revision}
    assert pod["metadata"]["labels"].items() >= {**selector, "team": "a"}.items()
    assert not QUEUE.keys() & pod["metadata"]["labels"].keys()  # Kueue itself puts it there
    assert pod["spec"]["shareProcessNamespace"] is True
    assert pod["spec"]["restartPolicy"] == "Always"
    (spread,) = pod["spec"]["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")


def test_the_users_topology_stands_alone() -> None:
    given = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
    made = build_deployment(served(podOverrides={"topologySpreadConstraints": [given]}), 1)
    assert made["spec"]["template"]["spec"]["topologySpreadConstraints"] == [given]


def test_service() -> None:
    one = served(serving={"httpPort": 8080, "service": {"type": "NodePort", "annotations": {"a": "b"}}})
    made = build_service(one.owner, one.spec.serving, "0a", ports_of(one.spec.serving))
    assert made["metadata"]["name"] == "digits"
    assert made["metadata"]["annotations"] == {"a": "b"}
    assert made["spec"]["type"] == "NodePort"
    assert made["spec"]["selector"] == OURS | {"ensemble-operator.io/revision": "0a"}
    assert [(port["name"], port["port"], port["targetPort"]) for port in made["spec"]["ports"]] == [
        ("http", 8080, "http"),
        ("grpc", 8001, "grpc"),
        ("metrics", 8002, "metrics"),
    ]
    assert endpoint(one.owner, ports_of(one.spec.serving)) == "http://digits.lab.svc:8080"


def test_a_service_of_a_name_that_begins_with_a_digit_is_nobody_elses() -> None:
    one, other = served("3d"), served("e3d")
    name = build_service(one.owner, one.spec.serving, "0a", ports_of(one.spec.serving))["metadata"]["name"]
    assert re.fullmatch("e3d-[0-9a-f]{6}-serve", name)
    assert endpoint(one.owner, ports_of(one.spec.serving)) == f"http://{name}.lab.svc:8000"
    assert (
        build_service(other.owner, other.spec.serving, "0a", ports_of(other.spec.serving))["metadata"]["name"] == "e3d"
    )


def test_disruption_budget() -> None:
    assert build_disruption_budget(owner(), "0a")["spec"] == {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": OURS | {"ensemble-operator.io/revision": "0a"}},
    }


def test_network_policy() -> None:
    spec = build_network_policy(owner())["spec"]
    assert spec["podSelector"]["matchLabels"] == OURS | {"app.kubernetes.io/component": "serve"}
    assert spec["policyTypes"] == ["Ingress"]
    (rule,) = spec["ingress"]
    assert [port["port"] for port in rule["ports"]] == ["http", "grpc", "metrics"]
    assert "from" not in rule


def test_autoscaler() -> None:
    one = served(serving={"autoscaling": {"minReplicas": 2, "maxReplicas": 8, "targetQueueMilliseconds": 20}})
    assert one.spec.serving.autoscaling is not None
    spec = build_autoscaler(one.owner, one.spec.serving.autoscaling, "0a")["spec"]
    assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "digits-0a"}
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 8)
    (metric,) = spec["metrics"]
    assert metric["pods"]["metric"] == {"name": QUEUE_METRIC, "selector": {"matchLabels": {"model": "digits"}}}
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "20"}


def test_service_monitor() -> None:
    made = build_service_monitor(owner(), 15)
    service = build_service(owner(), served().spec.serving, "0a", ports_of(served().spec.serving))
    assert made["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert made["spec"]["endpoints"] == [{"port": "metrics", "path": "/metrics", "interval": "15s"}]


def test_record() -> None:
    one = served()
    made = build_record(one, "basis", "wish")
    name = f"digits-{one.revision}"
    assert made["metadata"]["name"] == f"{name}-spec"
    assert made["immutable"] is True
    assert made["data"]["spec.yaml"] == one.resolved.text
    assert Allocation.model_validate(json.loads(made["data"]["allocation.json"])) == one.allocation
    volume = {v["name"]: v for v in build_deployment(one, 1)["spec"]["template"]["spec"]["volumes"]}["spec"]
    assert volume["configMap"]["name"] == made["metadata"]["name"]


@pytest.mark.parametrize(
    "change",
    [
        lambda one: replace(one, allocation=one.allocation.model_copy(update={"digest": DIGESTS[3]})),
        lambda one: replace(one, allocation=one.allocation.model_copy(update={"memory_mib": 5.0})),
        lambda one: replace(one, resolved=replace(one.resolved, text="other")),
        lambda one: replace(one, settings=replace(one.settings, core_image="core:2")),
        lambda one: replace(one, spec=served(serving={"grpcPort": 9001}).spec),
        lambda one: replace(one, spec=served(podOverrides={"annotations": {"a": "b"}}).spec),
    ],
)
def test_another_revision_for_everything_that_pods_depend_on(change: Any) -> None:
    assert change(served()).revision != served().revision


@pytest.mark.parametrize(
    "change",
    [
        {"serving": {"replicas": 7, "monitoring": {"serviceMonitor": True}, "service": {"type": "NodePort"}}},
        {"serving": {"autoscaling": {"maxReplicas": 3}}},
        {"rollout": {"strategy": "Recreate", "progressDeadlineSeconds": 30}},
        {"suspend": True},
    ],
)
def test_the_same_revision_for_all_else(change: Manifest) -> None:
    assert served(**change).revision == served().revision


# --- any document


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    devices = [
        {
            "name": f"d{i}",
            "type": draw(st.sampled_from(["gpu", "cpu"])),
            "count": draw(st.integers(1, 64)),
            "coresPerDevice": draw(st.integers(1, 256)),
            "resourceName": draw(st.sampled_from(["nvidia.com/gpu", "amd.com/gpu"])),
        }
        for i in range(draw(st.integers(1, 4)))
    ]
    ports = draw(st.lists(st.integers(1024, 65535), min_size=3, max_size=3, unique=True))
    serving = dict(zip(("httpPort", "grpcPort", "metricsPort"), ports, strict=True))
    image = draw(st.one_of(st.none(), st.text(min_size=1, max_size=40)))
    return draw(workloads()) | {"devices": devices, "serving": serving | ({"image": image} if image else {})}


@settings(max_examples=60)
@given(names, storages(), documents())
def test_any_document_makes_sound_pods(name: str, storage: Manifest, spec: Manifest) -> None:
    one = served(name, storage, **spec)
    deployment, job = build_deployment(one, 1), optimise(one)
    made = [deployment, job, build_record(one, "b", "w"), *build_identity(one), build_network_policy(one.owner)]
    assert made == [deployment, job, build_record(one, "b", "w"), *build_identity(one), build_network_policy(one.owner)]
    for manifest in made:
        assert len(manifest["metadata"]["name"]) <= 63
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", manifest["metadata"]["name"])
        assert manifest["metadata"]["labels"].items() >= OURS.items()
        for value in manifest["metadata"]["labels"].values():
            assert re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", value)
    for workload in (deployment, job):
        template = workload["spec"]["template"]
        assert breaches(template) == []
        assert loose_ends(template) == []
        assert template["metadata"]["labels"].items() >= OURS.items()
        for container in containers(workload).values():
            command = container["command"]
            assert command[:1] == ["ensemble"]
            assert all(isinstance(part, str) for part in command)
            # Nothing that a user writes is part of a command but names, which are DNS labels.
            assert all(re.fullmatch(r"[-A-Za-z0-9/:.]+", part) for part in command)
    selector = deployment["spec"]["selector"]["matchLabels"]
    assert deployment["spec"]["template"]["metadata"]["labels"].items() >= selector.items()


@settings(max_examples=40)
@given(documents())
def test_any_document_can_be_decided_about(spec: Manifest) -> None:
    stage = Stage.set(**spec)
    stage.decide()
    stage.steps()
    if spec["suspend"]:
        return
    stage.serve()
    assert stage.decide().conditions[0].status == "True"


def test_storage_is_of_the_api() -> None:
    """What the tests give as storage is what the API takes."""
    for storage in (CLAIM, S3):
        Storage.model_validate(storage)
