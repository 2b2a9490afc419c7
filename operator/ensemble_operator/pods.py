"""Pods: what all have in common, under the `restricted` Pod Security Standard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ensemble_core.api.common import PodOverrides
from ensemble_operator.names import Component, Owner, labels
from ensemble_operator.settings import Settings
from ensemble_operator.storages import Resolved
from ensemble_operator.world import Manifest

USER = 65532
SPEC_FOLDER = "/etc/ensemble"
SPEC_KEY = "spec.yaml"
CACHE = "/var/cache/ensemble"
SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
TOKEN_SECONDS = 3600
# Annotations of pods by which older clusters loosen what `restricted` demands.
_LOOSENING = ("container.apparmor.security.beta.kubernetes.io/", "seccomp.security.alpha.kubernetes.io/")

TOKEN_MOUNT: Manifest = {"name": "token", "mountPath": SERVICE_ACCOUNT, "readOnly": True}
SPEC_MOUNT: Manifest = {"name": "spec", "mountPath": SPEC_FOLDER, "readOnly": True}


@dataclass(frozen=True)
class Resources:
    """Requests and limits of a container; memory is limited to what is requested unless more is said.

    Args:
        cpu: Cores that are requested; more may be used while nobody else wants them.
        memory: MiB.
        memory_limit: MiB; none for as much as requested.
        devices: Counted devices by resource name.
    """

    cpu: float
    memory: int
    memory_limit: int | None = None
    devices: tuple[tuple[str, int], ...] = ()

    def manifest(self) -> Manifest:
        devices = {name: str(count) for name, count in self.devices if count}
        return {
            "requests": {"cpu": f"{round(self.cpu * 1000)}m", "memory": f"{self.memory}Mi", **devices},
            "limits": {"memory": f"{self.memory_limit or self.memory}Mi", **devices},
        }


def container(
    name: str,
    image: str,
    settings: Settings,
    resources: Resources,
    *,
    command: Sequence[str] = (),
    env: Iterable[Manifest] = (),
    mounts: Iterable[Manifest] = (),
    **further: object,
) -> Manifest:
    """A container that may write to `/tmp`, the cache and what is mounted, and whose last log lines stay readable."""
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": settings.image_pull_policy,
        **({"command": list(command)} if command else {}),
        "env": [
            {"name": "HOME", "value": "/tmp"},
            {"name": "TMPDIR", "value": "/tmp"},
            {"name": "ENSEMBLE_CACHE", "value": CACHE},
            *env,
        ],
        "resources": resources.manifest(),
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "cache", "mountPath": CACHE},
            *mounts,
        ],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        **further,
    }


def workload_container(
    name: str,
    image: str,
    settings: Settings,
    resources: Resources,
    resolved: Resolved,
    *,
    command: Sequence[str],
    env: Iterable[Manifest] = (),
    mounts: Iterable[Manifest] = (),
    reports: bool = False,
    **further: object,
) -> Manifest:
    """A container that reads the specification and touches storage; with `reports` it has the pod's token too."""
    return container(
        name,
        image,
        settings,
        resources,
        command=command,
        env=[*resolved.env, *env],
        mounts=[SPEC_MOUNT, *resolved.mounts, *([TOKEN_MOUNT] if reports else []), *mounts],
        **further,
    )


def command(
    verb: Sequence[str], owner: Owner, report: str | None = None, arguments: Sequence[str] = ()
) -> tuple[str, ...]:
    """The command line of a workload; `report` names the ConfigMap that takes its report."""
    target = ("--report", f"configmap:{owner.namespace}/{report}") if report else ()
    return ("ensemble", *verb, "--spec", f"{SPEC_FOLDER}/{SPEC_KEY}", "--name", owner.name, *target, *arguments)


def report_env(owner: Owner, attempt: int = 1) -> tuple[Manifest, ...]:
    """What a report must repeat."""
    return (
        {"name": "ENSEMBLE_ATTEMPT", "value": str(attempt)},
        {"name": "ENSEMBLE_OWNER_UID", "value": owner.uid},
    )


def spec_volume(config_map: str) -> Manifest:
    """The specification; `config_map` is `<child>-spec`."""
    return {"name": "spec", "configMap": {"name": config_map}}


def token_volume() -> Manifest:
    """A token of the pod's service account, for the container that mounts it."""
    return {
        "name": "token",
        "projected": {
            "sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": TOKEN_SECONDS}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {
                    "downwardAPI": {
                        "items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}],
                    }
                },
            ]
        },
    }


def shared_memory(mebibytes: int) -> tuple[Manifest, Manifest]:
    """`/dev/shm` of that size as volume and mount; what is written there counts as its container's memory."""
    volume = {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": f"{mebibytes}Mi"}}
    return volume, {"name": "shared-memory", "mountPath": "/dev/shm"}


def pod_spec(
    settings: Settings,
    overrides: PodOverrides,
    service_account: str,
    containers: Sequence[Manifest],
    *,
    init_containers: Sequence[Manifest] = (),
    volumes: Iterable[Manifest] = (),
    restart_policy: str = "Never",
    **further: object,
) -> Manifest:
    """A pod; of `overrides`, resources are for the first of `containers`."""
    given = overrides.document()
    secrets = dict.fromkeys([*settings.image_pull_secrets, *overrides.image_pull_secrets])
    placed = {
        key: given[key]
        for key in (
            "nodeSelector",
            "tolerations",
            "affinity",
            "topologySpreadConstraints",
            "priorityClassName",
            "runtimeClassName",
        )
        if given.get(key)
    }
    return {
        **placed,
        **({"imagePullSecrets": [{"name": name} for name in secrets]} if secrets else {}),
        "serviceAccountName": service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": restart_policy,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **({"initContainers": list(init_containers)} if init_containers else {}),
        "containers": [_with_resources(containers[0], given.get("resources", {})), *containers[1:]],
        "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "cache", "emptyDir": {}}, *volumes],
        **further,
    }


def template(
    owner: Owner,
    component: Component,
    overrides: PodOverrides,
    spec: Manifest,
    *,
    child: str | None = None,
    extra_labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Manifest:
    """A pod template. Labels of ours win over the overrides'."""
    kept = {key: value for key, value in overrides.annotations.items() if not key.startswith(_LOOSENING)}
    noted = {**kept, **(annotations or {})}
    return {
        "metadata": {
            "labels": {**overrides.labels, **(extra_labels or {}), **labels(owner, component, child)},
            **({"annotations": noted} if noted else {}),
        },
        "spec": spec,
    }


def _with_resources(main: Manifest, given: Mapping[str, Mapping[str, object]]) -> Manifest:
    """What the user says of a resource stands alone: our own limit must not contradict the user's request."""
    named = {name for amounts in given.values() for name in amounts}
    resources = {
        side: {name: amount for name, amount in main["resources"].get(side, {}).items() if name not in named}
        | dict(given.get(side, {}))
        for side in ("requests", "limits")
    }
    return {**main, "resources": {side: amounts for side, amounts in resources.items() if amounts}}
