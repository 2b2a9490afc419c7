"""What serves an ensemble: the pods of a revision, and how requests, Prometheus and an autoscaler find them (pure)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, NamedTuple

from pydantic import Field, TypeAdapter

from ensemble_core.api.common import GROUP, Digest
from ensemble_core.api.ensembledeployment import Autoscaling, EnsembleDeploymentSpec, Serving
from ensemble_core.api.load import requests_of
from ensemble_core.frozen import canonical, digest
from ensemble_operator.identity import identity, report_name, service_account, spec_name, specification
from ensemble_operator.names import BASIS, COMPONENT, OWNER_NAME, OWNER_UID, REVISION, Owner, child_name, metadata
from ensemble_operator.pods import (
    TOKEN_MOUNT,
    Resources,
    command,
    container,
    pod_spec,
    report_env,
    shared_memory,
    spec_volume,
    template,
    token_volume,
    workload_container,
)
from ensemble_operator.reports import Finite, Number, Untrusted, Word
from ensemble_operator.settings import Settings
from ensemble_operator.storages import Claim, Resolved
from ensemble_operator.world import Manifest

WISH = f"{GROUP}/wish"
ALLOCATION_KEY = "allocation.json"  # beside the specification of a revision
STORAGES_KEY = "storages.json"
REPOSITORY = "/repository"
REPORT_KEY_ENV: Manifest = {"name": "ENSEMBLE_REPORT_KEY", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
REPOSITORY_MOUNT: Manifest = {"name": "repository", "mountPath": REPOSITORY}
# Mean milliseconds that a request to a model waits for its members, by pod and with the model's name as label `model`.
# Triton's own queue time of the front model stays near zero, for that model takes every request at once: the counters
# are its own. The administrator guide has the rule for the Prometheus adapter.
QUEUE_METRIC = "ensemble_queue_milliseconds"

HEADROOM_MIB = 2048  # what Triton, Python and the averaging take beside the models
CPU_DEVICE_MIB = (1024, 4096)  # requested for a CPU device that does not say, and its limit
GPU_HOST_MIB = (1024, 4096)  # memory of the machine for each GPU
# Samples that benchmarks have in flight, beyond those that the headroom holds: images of 224×224 float32, in the
# client's region of /dev/shm and in the averaging backend's, where that is in Python.
SAMPLE_MIB = 1.25
SAMPLES_IN_HEADROOM = 3 * 128
AGENT = Resources(cpu=0.05, memory=192, memory_limit=512)
# Of the pod's group, so that it reads the token and the repository, and not the server's user: to who is the same user
# and sees its processes, /proc would show its files, the token among them.
AGENT_USER = 65531
RENDER_CPU = 0.1
DRAIN_SECONDS = 10  # in which a pod that is to end still takes requests, of those who have not heard of it yet
END_SECONDS = 20  # for Triton to end, beyond the above and the longest that a request may take
LOADING_SECONDS = 3600  # after which a server that has not loaded its models is started again


_STORAGES = TypeAdapter(tuple[tuple[Claim, ...], tuple[str, ...]])
Mebibytes = Annotated[Finite, Field(gt=0, le=1 << 24)]


class AllocatedMember(Untrusted):
    model_id: Word
    sha256: Digest


class AllocatedDevice(Untrusted):
    name: Word


Share = Annotated[Finite, Field(ge=0, le=1)]


class Throughput(Untrusted):
    samples_per_second: Annotated[Finite, Field(ge=0, le=1e12)]


class AllocatedSelection(Untrusted):
    digest: Digest


class Allocation(Untrusted):
    """What `ensemble allocate` reports, as far as it matters here; very large matrices are left out of reports.

    Args:
        shares: Of each member's samples, by device; none if free devices take the next ones.
        bound: Samples/s that no matrix exceeds, by the members' profiles.
        shared_memory_mib: Of /dev/shm.
        memory_mib: What one pod takes, /dev/shm included.
    """

    digest: Digest
    selection: AllocatedSelection
    members: Annotated[tuple[AllocatedMember, ...], Field(strict=False, max_length=256)] = ()
    devices: Annotated[tuple[AllocatedDevice, ...], Field(strict=False, max_length=1024)] = ()
    matrix: Annotated[
        tuple[Annotated[tuple[Number, ...], Field(strict=False, max_length=256)], ...],
        Field(strict=False, max_length=1024),
    ] = ()
    shares: Annotated[
        tuple[Annotated[tuple[Share, ...], Field(strict=False, max_length=256)], ...],
        Field(strict=False, max_length=1024),
    ] = ()
    throughput: Throughput | None = None
    bound: Annotated[Finite, Field(ge=0, le=1e12)] | None = None
    shared_memory_mib: Annotated[Mebibytes, Field(alias="sharedMemoryMiB")]
    memory_mib: Annotated[Mebibytes, Field(alias="memoryMiB")]

    def text(self) -> str:
        """The same as JSON, always in the same words."""
        return canonical(self.model_dump(mode="json", by_alias=True, exclude_none=True)).decode()


@dataclass(frozen=True)
class Served:
    """Everything that a revision is made of.

    Args:
        resolved: The documents, and what their storages need.
        allocation: Of the ensemble to the devices.
    """

    owner: Owner
    spec: EnsembleDeploymentSpec
    settings: Settings
    resolved: Resolved
    allocation: Allocation

    @cached_property
    def revision(self) -> str:
        """Names everything that the pods depend on: another one means other pods, the same one the same pods."""
        return digest([self.resolved.text, self.allocation.text(), build_template(self, "")])[:8]


def image(spec: EnsembleDeploymentSpec, settings: Settings) -> str:
    """The server's image. What measures an allocation and what renders it use the same: it has the server's version."""
    return spec.serving.image or settings.core_image


def device_pod(spec: EnsembleDeploymentSpec) -> Resources:
    """What the main container of a pod on these devices needs: the pod that optimises, and those that serve.

    A pod that optimises tries many matrices, so its memory is what the devices may take, and requests of benchmarks.
    What serves takes what its allocation was found to need.
    """
    gpus = [device for device in spec.devices if device.type == "gpu"]
    cpus = [device for device in spec.devices if device.type == "cpu"]
    counts = {name: sum(d.count for d in gpus if d.resource_name == name) for name in {d.resource_name for d in gpus}}
    number = sum(device.count for device in gpus)
    requests = requests_of(spec)
    samples = max(0, max(requests.in_flight) * requests.samples - SAMPLES_IN_HEADROOM)

    def memory(bound: int) -> int:
        of_cpus = sum(device.count * (device.memory_mib or CPU_DEVICE_MIB[bound]) for device in cpus)
        return HEADROOM_MIB + round(samples * SAMPLE_MIB) + of_cpus + number * GPU_HOST_MIB[bound]

    return Resources(
        cpu=sum(device.count * device.cores_per_device for device in cpus) + number,
        memory=memory(0),
        memory_limit=memory(1),
        devices=tuple(sorted(counts.items())),
    )


def child_of(owner: Owner, revision: str) -> str:
    """The name of a revision's Deployment, and the stem of the names of what belongs to it."""
    return child_name(owner.name, revision)


def service_name(owner: Owner) -> str:
    """Name of the Service: the deployment's, which may begin with a digit as a Service's may not."""
    return owner.name if owner.name[0].isalpha() else child_name(owner.name, "serve")


class Ports(NamedTuple):
    """By the names that they have in pods and in the Service."""

    http: int
    grpc: int
    metrics: int


def ports_of(serving: Serving) -> Ports:
    """Those of the revision that a document makes."""
    return Ports(serving.http_port, serving.grpc_port, serving.metrics_port)


def endpoint(owner: Owner, ports: Ports) -> str:
    """Where clients of the cluster send requests over HTTP."""
    return f"http://{service_name(owner)}.{owner.namespace}.svc:{ports.http}"


# --- a revision -----------------------------------------------------------------------------------------------------


def build_record(served: Served, basis: str, wish: str) -> Manifest:
    """The ConfigMap that remembers a revision: what it reads, and the allocation that it serves.

    Args:
        basis: Names what the allocation was found for, so that it is found again without a job.
        wish: Names the part of the deployment's own document that pods depend on.
    """
    revision = served.revision
    notes = {BASIS: basis, WISH: wish}
    record = specification(served.owner, "serve", child_of(served.owner, revision), served.resolved.text, notes)
    record["metadata"]["labels"][REVISION] = revision
    record["data"][ALLOCATION_KEY] = served.allocation.text()
    record["data"][STORAGES_KEY] = canonical([served.resolved.claims, served.resolved.secrets]).decode()
    return record


def read_storages(text: str, storages: str) -> Resolved | None:
    """What a revision reads, from its record; none from one that does not tell."""
    try:
        claims, secrets = _STORAGES.validate_json(storages)
    except ValueError:
        return None
    return Resolved(text, claims, secrets)


def build_identity(served: Served) -> tuple[Manifest, ...]:
    """Who the agent is, and its report; the pods of a revision share one ConfigMap, with a key for each."""
    child = child_of(served.owner, served.revision)
    return identity(served.owner, "serve", child, served.spec.service_account_name)


def build_deployment(served: Served, replicas: int) -> Manifest:
    """The Deployment of a revision. Its template never changes, so Kubernetes never rolls it: that is done here."""
    owner, revision = served.owner, served.revision
    child = child_of(owner, revision)
    extra = {REVISION: revision, **owner.queue}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(owner, "serve", child, child=child, extra_labels=extra),
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 0,
            "progressDeadlineSeconds": served.spec.rollout.progress_deadline_seconds,
            # Of use only if somebody edits the template: putting it right must not need spare devices.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "selector": {"matchLabels": selected_by(owner, revision)},
            "template": build_template(served, revision),
        },
    }


def selected_by(owner: Owner, revision: str) -> dict[str, str]:
    """Labels that the pods of a revision have, and no others."""
    return {OWNER_UID: owner.uid, REVISION: revision}


def build_template(served: Served, revision: str) -> Manifest:
    """The pod: `render` writes the model repository, `triton` serves it, `agent` keeps it as it was allocated.

    Only `render` touches storage, and only `agent` has a token. Processes are visible between containers, so that the
    agent sees which models' processes have died; it is a user of its own, so that its files are not.
    """
    owner, spec, allocation = served.owner, served.spec, served.allocation
    child = child_of(owner, revision)
    shared, shared_mount = shared_memory(math.ceil(allocation.shared_memory_mib))
    needs = replace(device_pod(spec), memory=math.ceil(allocation.memory_mib), memory_limit=None)
    pod = pod_spec(
        served.settings,
        spec.pod_overrides,
        service_account(child, spec.service_account_name),
        [_triton(served, needs, shared_mount), _agent(served, child)],
        init_containers=[_render(served, needs)],
        volumes=[
            spec_volume(spec_name(child)),
            *served.resolved.volumes,
            token_volume(),
            {"name": "repository", "emptyDir": {}},
            shared,
        ],
        restart_policy="Always",
        shareProcessNamespace=True,
        terminationGracePeriodSeconds=DRAIN_SECONDS + _longest(spec.serving) + END_SECONDS,
        **({} if spec.pod_overrides.topology_spread_constraints else _spread(owner)),
    )
    return template(owner, "serve", spec.pod_overrides, pod, child=child, extra_labels={REVISION: revision})


def _render(served: Served, needs: Resources) -> Manifest:
    arguments = ("--selection", served.allocation.selection.digest, "--output", REPOSITORY)
    return workload_container(
        "render",
        image(served.spec, served.settings),
        served.settings,
        # It looks whether these are the devices of the allocation. Kubernetes gives them to `triton` afterwards.
        replace(needs, cpu=RENDER_CPU),
        served.resolved,
        command=command(("render",), served.owner, arguments=arguments),
        mounts=[REPOSITORY_MOUNT],
    )


def _triton(served: Served, needs: Resources, shared_mount: Manifest) -> Manifest:
    ports = ports_of(served.spec.serving)._asdict()
    loaded = {"httpGet": {"path": f"/v2/models/{served.owner.name}/ready", "port": "http"}, "timeoutSeconds": 5}
    options = [part for name, port in ports.items() for part in (f"--{name}-port", str(port))]
    return container(
        "triton",
        image(served.spec, served.settings),
        served.settings,
        needs,
        command=("ensemble", "server", "--repository", REPOSITORY, "--address", "0.0.0.0", *options),
        mounts=[REPOSITORY_MOUNT, shared_mount],
        ports=[{"name": name, "containerPort": port, "protocol": "TCP"} for name, port in ports.items()],
        # The server is up before its models are: a pod takes requests when the front model does.
        startupProbe={**loaded, "periodSeconds": 5, "failureThreshold": LOADING_SECONDS // 5},
        readinessProbe={**loaded, "periodSeconds": 5},
        livenessProbe={
            "httpGet": {"path": "/v2/health/live", "port": "http"},
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        lifecycle={"preStop": {"exec": {"command": _drain(served.spec.serving)}}},
    )


def _drain(serving: Serving) -> list[str]:
    """What comes before the server's end: Triton by itself ends members first, and what is in flight fails."""
    of = ("--repository", REPOSITORY, "--http-port", str(serving.http_port))
    return ["ensemble", "drain", *of, "--after", str(DRAIN_SECONDS), "--within", str(_longest(serving))]


def _longest(serving: Serving) -> int:
    """Seconds that a request may take."""
    return math.ceil(serving.deadline_seconds)


def _agent(served: Served, child: str) -> Manifest:
    port, report = served.spec.serving.http_port, f"configmap:{served.owner.namespace}/{report_name(child)}"
    agent = container(
        "agent",
        image(served.spec, served.settings),
        served.settings,
        AGENT,
        command=("ensemble", "agent", "--repository", REPOSITORY, "--http-port", str(port), "--report", report),
        # Every copy has one.
        env=(*report_env(served.owner), REPORT_KEY_ENV),
        mounts=[REPOSITORY_MOUNT, TOKEN_MOUNT],
    )
    return {**agent, "securityContext": {**agent["securityContext"], "runAsUser": AGENT_USER}}


def _spread(owner: Owner) -> Manifest:
    """Copies of a revision on different nodes where that can be."""
    constraint = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {OWNER_UID: owner.uid}},
        "matchLabelKeys": [REVISION],
    }
    return {"topologySpreadConstraints": [constraint]}


# --- what all revisions share ---------------------------------------------------------------------------------------


def build_service(owner: Owner, serving: Serving, revision: str, ports: Ports) -> Manifest:
    """The Service, which sends requests to one revision, under the ports of this one."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(owner, "serve", service_name(owner), annotations=serving.service.annotations),
        "spec": {
            "type": serving.service.type,
            "selector": selected_by(owner, revision),
            "ports": [
                {"name": name, "port": port, "targetPort": name, "protocol": "TCP"}
                for name, port in ports._asdict().items()
            ],
        },
    }


def build_disruption_budget(owner: Owner, revision: str) -> Manifest:
    """Drains take one pod at a time of those that get requests.

    A least number of pods would let no node be drained that has the only one. Pods that do not answer may always go.
    """
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(owner, "serve", service_name(owner)),
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": selected_by(owner, revision)},
        },
    }


def build_network_policy(owner: Owner) -> Manifest:
    """Nothing but the server's three ports can be reached, whatever else listens in the pod.

    Triton's API for models, logs and shared memory is on these ports too; a key that only the pod knows guards it. Who
    may send requests is for policies of the namespace to say, and so is what the pods themselves may reach: their
    storage, and the API server.
    """
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(owner, "serve", service_name(owner)),
        "spec": {
            "podSelector": {"matchLabels": {OWNER_UID: owner.uid, COMPONENT: "serve"}},
            "policyTypes": ["Ingress"],
            "ingress": [{"ports": [{"protocol": "TCP", "port": name} for name in ("http", "grpc", "metrics")]}],
        },
    }


def build_autoscaler(owner: Owner, autoscaling: Autoscaling, revision: str) -> Manifest:
    """Makes copies of the revision that gets requests, by the time that they wait."""
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": metadata(owner, "serve", service_name(owner)),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": child_of(owner, revision)},
            "minReplicas": autoscaling.min_replicas,
            "maxReplicas": autoscaling.max_replicas,
            "metrics": [
                {
                    "type": "Pods",
                    "pods": {
                        "metric": {"name": QUEUE_METRIC, "selector": {"matchLabels": {"model": owner.name}}},
                        "target": {
                            "type": "AverageValue",
                            "averageValue": str(autoscaling.target_queue_milliseconds),
                        },
                    },
                }
            ],
        },
    }


def build_service_monitor(owner: Owner, interval_seconds: int) -> Manifest:
    """How the Prometheus operator finds the pods that get requests."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": metadata(owner, "serve", service_name(owner)),
        "spec": {
            "selector": {"matchLabels": {OWNER_UID: owner.uid, COMPONENT: "serve"}},
            "targetLabels": [OWNER_NAME],
            "endpoints": [{"port": "metrics", "path": "/metrics", "interval": f"{interval_seconds}s"}],
        },
    }
