"""The `restricted` Pod Security Standard, as far as a pod's specification can break it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
SECCOMP = ("RuntimeDefault", "Localhost")


def breaches(template: Mapping[str, Any]) -> list[str]:
    """What a pod, or a pod template, has that `restricted` refuses; ours must have read-only roots too."""
    return list(_breaches(template))


def _breaches(template: Mapping[str, Any]) -> Iterator[str]:
    spec = template["spec"]
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield field
    for volume in spec.get("volumes", ()):
        kinds = set(volume) - {"name"}
        if len(kinds) != 1 or not kinds <= VOLUMES:
            yield f"volume {volume['name']}: {kinds}"
    for key, value in template["metadata"].get("annotations", {}).items():
        if "apparmor" in key or "seccomp" in key:
            yield f"annotation {key}: {value}"
    pod = spec.get("securityContext", {})
    if pod.get("sysctls") or pod.get("windowsOptions") or pod.get("seLinuxOptions"):
        yield "the pod's security context"
    for container in (*spec.get("initContainers", ()), *spec["containers"]):
        where = f"container {container['name']}"
        own = container.get("securityContext", {})
        if own.get("privileged") or own.get("allowPrivilegeEscalation") is not False:
            yield f"{where}: privileges"
        if own.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{where}: capabilities {own.get('capabilities')}"
        if {**pod, **own}.get("runAsNonRoot") is not True or not {**pod, **own}.get("runAsUser"):
            yield f"{where}: may be root"
        if {**pod, **own}.get("seccompProfile", {}).get("type") not in SECCOMP:
            yield f"{where}: seccomp"
        if own.get("readOnlyRootFilesystem") is not True:
            yield f"{where}: root file system"
        if any(port.get("hostPort") for port in container.get("ports", ())):
            yield f"{where}: host port"


def loose_ends(template: Mapping[str, Any]) -> list[str]:
    """Mounts without a volume, volumes nobody mounts, two mounts at one path, names that occur twice."""
    spec = template["spec"]
    containers = [*spec.get("initContainers", ()), *spec["containers"]]
    volumes = [volume["name"] for volume in spec.get("volumes", ())]
    mounted = {mount["name"] for container in containers for mount in container.get("volumeMounts", ())}
    found = [f"no volume {name}" for name in mounted - set(volumes)]
    found += [f"volume {name} is not mounted" for name in set(volumes) - mounted]
    lists = {"volumes": volumes, "containers": [container["name"] for container in containers]}
    for container in containers:
        lists[f"mounts of {container['name']}"] = [mount["mountPath"] for mount in container["volumeMounts"]]
        lists[f"variables of {container['name']}"] = [variable["name"] for variable in container["env"]]
    return found + [f"{what}: {names}" for what, names in lists.items() if len(names) != len(set(names))]


def tokens(template: Mapping[str, Any]) -> list[str]:
    """The containers that have a token of the service account."""
    spec = template["spec"]
    assert spec["automountServiceAccountToken"] is False
    holders = {
        volume["name"]
        for volume in spec["volumes"]
        if any("serviceAccountToken" in source for source in volume.get("projected", {}).get("sources", ()))
    }
    return [
        container["name"]
        for container in (*spec.get("initContainers", ()), *spec["containers"])
        if any(mount["name"] in holders for mount in container["volumeMounts"])
    ]
