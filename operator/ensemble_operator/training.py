"""What trains a library: a Job with Ray on one node, or a RayJob, and the policy that fences Ray's ports (pure)."""

from __future__ import annotations

import math
import shlex
from typing import Literal

from ensemble_core.api.hposearch import HPOSearchSpec
from ensemble_operator.identity import report_name, service_account, spec_name
from ensemble_operator.jobs import WorkerGroup, build_rayjob
from ensemble_operator.names import APPLICATION, COMPONENT, OWNER_UID, Component, Owner, metadata
from ensemble_operator.pods import (
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
from ensemble_operator.settings import Settings
from ensemble_operator.storages import Resolved
from ensemble_operator.workload import Start, reporting_job
from ensemble_operator.world import Manifest

TRAIN: Component = "train"
LEAST_SHARE = 0.0001  # of a GPU, for Ray
DASHBOARD_PORT = 8265
KUBERAY = ("kuberay-operator", "kuberay")  # names of its pods: installed by Helm, by kustomize
OBJECT_STORE = {"object-store-memory": str(100 * 1024 * 1024)}  # of Ray; models and data travel as files
SHARED_MEMORY_MIB = 512
# For all of Ray's processes: the driver's environment does not reach its workers.
RAY_ENV: tuple[Manifest, ...] = (
    {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
    # A trial without GPUs of its own sees those of its node.
    {"name": "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "value": "0"},
)
# The head runs Ray's control plane and the driver, which proposes trials and trains nothing.
HEAD = Resources(cpu=0.5, memory=2048, memory_limit=4096)

Engine = Literal["Job", "RayJob"]


def train_job(owner: Owner, start: Start, resolved: Resolved, spec: HPOSearchSpec, settings: Settings) -> Manifest:
    """A Job with Ray on one node: all trials that run at a time share its pod."""
    volume, mount = shared_memory(SHARED_MEMORY_MIB)
    devices = ((spec.workers.gpu_resource_name, gpus_at_a_time(spec)),)
    main = workload_container(
        "ensemble",
        settings.trainer_image,
        settings,
        Resources(spec.trials_at_a_time * spec.resources_per_trial.cpu, spec.workers.memory_mib, None, devices),
        resolved,
        command=command([TRAIN], owner, report_name(start.child)),
        env=report_env(owner, start.attempt),
        mounts=[mount],
        reports=True,
    )
    return reporting_job(owner, start, resolved, spec, settings, main, volumes=[volume])


def gpus_at_a_time(spec: HPOSearchSpec) -> int:
    """GPUs for all trials that run at a time; a trial's share lies on one GPU."""
    gpu = spec.resources_per_trial.gpu
    if gpu >= 1 or gpu == 0:
        return round(spec.trials_at_a_time * gpu)
    per_gpu = math.floor(1 / max(gpu, LEAST_SHARE) + 1e-9)  # despite roundings
    return math.ceil(spec.trials_at_a_time / per_gpu)


def train_rayjob(owner: Owner, start: Start, resolved: Resolved, spec: HPOSearchSpec, settings: Settings) -> Manifest:
    """A RayJob: the driver runs on the head, which trains nothing and alone may report; workers train."""
    return build_rayjob(
        owner,
        TRAIN,
        start.child,
        _head(owner, start, resolved, spec, settings),
        WorkerGroup(
            _worker(owner, start, resolved, spec, settings),
            spec.workers.replicas,
            {"num-cpus": str(spec.workers.cpu), "num-gpus": str(spec.workers.gpu), **OBJECT_STORE},
        ),
        shlex.join(command([TRAIN], owner, report_name(start.child), ["--ray", "auto"])),
        {"dashboard-host": "0.0.0.0", "num-cpus": "0", "num-gpus": "0", **OBJECT_STORE},
        annotations=start.annotations,
    )


def _head(owner: Owner, start: Start, resolved: Resolved, spec: HPOSearchSpec, settings: Settings) -> Manifest:
    volume, mount = shared_memory(SHARED_MEMORY_MIB)
    head = workload_container(
        "ray-head",
        settings.trainer_image,
        settings,
        HEAD,
        resolved,
        command=(),  # KubeRay's
        env=[*report_env(owner, start.attempt), *RAY_ENV],
        mounts=[mount],
        reports=True,
    )
    volumes = [spec_volume(spec_name(start.child)), *resolved.volumes, token_volume(), volume]
    # Resources of the overrides are for those who train.
    overrides = spec.pod_overrides.model_copy(update={"resources": None})
    account = service_account(start.child, spec.service_account_name)
    pod = pod_spec(settings, overrides, account, [head], volumes=volumes)
    return template(owner, TRAIN, overrides, pod, child=start.child)


def _worker(owner: Owner, start: Start, resolved: Resolved, spec: HPOSearchSpec, settings: Settings) -> Manifest:
    volume, mount = shared_memory(SHARED_MEMORY_MIB)
    workers = spec.workers
    worker = container(
        "ray-worker",
        settings.trainer_image,
        settings,
        Resources(workers.cpu, workers.memory_mib, None, ((workers.gpu_resource_name, workers.gpu),)),
        env=[*resolved.env, *RAY_ENV],
        mounts=[*resolved.mounts, mount],
    )
    account = service_account(start.child, spec.service_account_name)
    pod = pod_spec(settings, spec.pod_overrides, account, [worker], volumes=[*resolved.volumes, volume])
    return template(owner, TRAIN, spec.pod_overrides, pod, child=start.child)


def network_policy(owner: Owner, engine: Engine) -> Manifest:
    """Whoever reaches Ray's ports runs code: only pods of the same search do, and KubeRay its dashboard.

    Ray within a Job is reached by nobody. The name is one that no custom resource, and so nobody's child, can have.
    """
    kuberay = {"key": APPLICATION, "operator": "In", "values": list(KUBERAY)}
    mine = {OWNER_UID: owner.uid, COMPONENT: TRAIN}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(owner, TRAIN, f"{owner.name}.{TRAIN}"),
        "spec": {
            "podSelector": {"matchLabels": mine},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [{"podSelector": {"matchLabels": mine}}]},
                {
                    "from": [{"namespaceSelector": {}, "podSelector": {"matchExpressions": [kuberay]}}],
                    "ports": [{"protocol": "TCP", "port": DASHBOARD_PORT}],
                },
            ]
            if engine == "RayJob"
            else [],
        },
    }
