"""The operator's real process against a real API server that writes an audit log and can be restarted.

The operator has the rights that the chart gives it and no other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.apiserver.chart import ROOT, cluster_role
from tests.apiserver.server import AUDIT_LOG, OPERATOR, OPERATOR_TOKEN, ApiServer, api_server, etcd, free_ports

from ensemble_operator.cluster import APIS

DEADLINE = 60.0  # seconds for anything to happen
CUSTOM = ("HPOSearch", "EnsembleSelection", "EnsembleDeployment")
KINDS = ("ConfigMap", "Job", "Role", "RoleBinding", "ServiceAccount")
COLLECTIONS = {
    kind: f"/{'apis' if '/' in api.version else 'api'}/{api.version}/namespaces/{{}}/{api.plural}"
    for kind, api in APIS.items()
} | {"Event": "/apis/events.k8s.io/v1/namespaces/{}/events"}
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
RBAC = "rbac.authorization.k8s.io"
WRITES = ("create", "update", "patch", "delete", "deletecollection")
# What it does each minute is done each second here, and what was lost is tried again after a second.
START = (
    "import sys; from ensemble_operator import engine, workload; engine.CAPABILITIES_SECONDS = 1.0;"
    " workload.FIRST_PAUSE = 1.0; from ensemble_operator.main import main; sys.exit(main([]))"
)


@dataclass
class Cluster:
    """An API server, its etcd, and what tests do with them."""

    folder: Path
    etcd_port: int
    port: int
    running: ExitStack = field(default_factory=ExitStack)
    _audited: list[dict[str, Any]] = field(default_factory=list)
    _read: int = 0

    def start(self) -> None:
        """Start the API server; etcd goes on."""
        self.server: ApiServer = self.running.enter_context(api_server(self.folder, self.etcd_port, self.port))

    def stop(self) -> None:
        self.running.close()

    def audit(self) -> list[dict[str, Any]]:
        """The operator's requests that were answered, in order."""
        with (self.folder / AUDIT_LOG).open("rb") as log:
            log.seek(self._read)
            lines, _, _ = log.read().rpartition(b"\n")
        self._read += len(lines) + bool(lines)
        events = map(json.loads, lines.splitlines())
        self._audited += [event for event in events if event["stage"] == "ResponseComplete"]
        return self._audited

    def writes(self) -> list[tuple[str, str, str, int]]:
        """Verb, resource, namespace/name and status code of the operator's writes."""
        return [
            (
                event["verb"],
                event["objectRef"]["resource"],
                f"{event['objectRef'].get('namespace')}/{event['objectRef'].get('name')}",
                event["responseStatus"]["code"],
            )
            for event in self.audit()
            if event["verb"] in WRITES
        ]

    def request(self, method: str, path: str, body: Any = None, merge: bool = False) -> dict[str, Any]:
        """As an administrator; the answer must be good."""
        content_type = "application/merge-patch+json" if merge else "application/json"
        code, answer = self.server.request(method, path, body, content_type)
        assert code < 300, answer
        return answer

    def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        code, answer = self.server.request("GET", f"{COLLECTIONS[kind].format(namespace)}/{name}")
        return answer if code == 200 else None

    def list(self, kind: str, namespace: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self.request("GET", COLLECTIONS[kind].format(namespace))["items"]
        return sorted(items, key=lambda item: item["metadata"]["name"])

    def create(self, kind: str, namespace: str, manifest: dict[str, Any]) -> dict[str, Any]:
        return self.request("POST", COLLECTIONS[kind].format(namespace), manifest)

    def patch(self, kind: str, namespace: str, name: str, patch: dict[str, Any], part: str = "") -> dict[str, Any]:
        return self.request("PATCH", f"{COLLECTIONS[kind].format(namespace)}/{name}{part}", patch, merge=True)

    def delete(self, kind: str, namespace: str, name: str) -> None:
        self.request("DELETE", f"{COLLECTIONS[kind].format(namespace)}/{name}", {"propagationPolicy": "Background"})

    def namespace(self, name: str) -> str:
        self.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        return name

    def condition(self, kind: str, namespace: str, name: str, of: str) -> dict[str, Any]:
        """A condition, empty as long as there is none."""
        found = self.get(kind, namespace, name) or {}
        conditions = found.get("status", {}).get("conditions", ())
        return next((one for one in conditions if one["type"] == of), {})

    def empty(self, kind: str, namespace: str) -> None:
        """Delete all objects of a kind, if there is such a kind."""
        background = {"propagationPolicy": "Background"}
        code, answer = self.server.request("DELETE", COLLECTIONS[kind].format(namespace), background)
        assert code in (200, 404), answer

    def sweep(self, namespace: str) -> None:
        """Nobody else collects what belonged to resources that have gone."""
        for kind in COLLECTIONS:
            self.empty(kind, namespace)

    def define(self, definition: dict[str, Any]) -> None:
        """Make a kind of resources, and wait until it is there."""
        self.request("POST", DEFINITIONS, definition)
        spec = definition["spec"]
        place = f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}"
        until(lambda: self.server.request("GET", place)[0] == 200, what=place)

    def undefine(self, name: str) -> None:
        self.request("DELETE", f"{DEFINITIONS}/{name}")
        until(lambda: self.server.request("GET", f"{DEFINITIONS}/{name}")[0] == 404, what=name)

    def install_definitions(self) -> None:
        for one in definitions():
            self.define(one)

    def grant(self, role: str) -> None:
        """Let the operator have the rights of a ClusterRole."""
        subject = {"apiGroup": RBAC, "kind": "User", "name": OPERATOR}
        reference = {"apiGroup": RBAC, "kind": "ClusterRole", "name": role}
        binding = {"metadata": {"name": f"operator-{role}"}, "roleRef": reference, "subjects": [subject]}
        self.request("POST", f"/apis/{RBAC}/v1/clusterrolebindings", binding)


@contextmanager
def new_cluster(folder: Path) -> Iterator[Cluster]:
    """An API server without our definitions."""
    with etcd(folder) as etcd_port:
        cluster = Cluster(folder, etcd_port, *free_ports(1))
        cluster.start()
        try:
            cluster.request("POST", f"/apis/{RBAC}/v1/clusterroles", cluster_role())
            cluster.grant(cluster_role()["metadata"]["name"])
            yield cluster
        finally:
            cluster.stop()


@dataclass
class Operator:
    """A running operator."""

    process: subprocess.Popen[bytes]
    log: Path
    metrics_port: int
    health_port: int

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health_port}/healthz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def complaints(self) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line["level"] in ("warning", "error", "critical")]


@contextmanager
def operator(cluster: Cluster, through: str = "", start: str = "", **environment: str) -> Iterator[Operator]:
    """The operator's process, which is killed at the end if it still runs; warnings are errors in it.

    Args:
        through: Address of a proxy before the API server.
        start: The program; by default one that is in a hurry.
    """
    metrics_port, health_port = free_ports(2)
    log = cluster.folder / f"operator-{metrics_port}.log"
    given = {
        "PATH": os.environ["PATH"],
        "KUBECONFIG": str(kubeconfig(cluster, through)),
        "TRAINER_IMAGE": "trainer:test",
        "CORE_IMAGE": "core:test",
        "METRICS_PORT": str(metrics_port),
        "HEALTH_PORT": str(health_port),
        **environment,
    }
    command = [sys.executable, "-W", "error", "-c", start or START]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output, env=given) as one:
        try:
            yield Operator(one, log, metrics_port, health_port)
        finally:
            one.kill()


def kubeconfig(cluster: Cluster, through: str = "") -> Path:
    path = cluster.folder / f"kubeconfig{'-through-proxy' if through else ''}"
    direct = {
        "server": f"https://127.0.0.1:{cluster.server.port}",
        "certificate-authority": str(cluster.server.certificate),
    }
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "it",
        "clusters": [{"name": "it", "cluster": {"server": through} if through else direct}],
        "users": [{"name": "it", "user": {"token": OPERATOR_TOKEN}}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
    }
    path.write_text(yaml.safe_dump(content))
    return path


def children(cluster: Cluster, namespace: str) -> dict[str, list[str]]:
    """Owned objects by kind."""
    return {
        kind: [one["metadata"]["name"] for one in cluster.list(kind, namespace) if "ownerReferences" in one["metadata"]]
        for kind in KINDS
    }


def counts(cluster: Cluster, namespace: str) -> dict[str, int]:
    return {kind: len(names) for kind, names in children(cluster, namespace).items()}


def for_searches(number: int) -> dict[str, int]:
    """How many objects belong to running searches."""
    return {"ConfigMap": 2 * number, "Job": number, "Role": number, "RoleBinding": number, "ServiceAccount": number}


def jobs_made(cluster: Cluster, namespace: str) -> Counter[str]:
    """How often a Job of each name was made."""
    writes = cluster.writes()
    made = (name for verb, resource, name, code in writes if (verb, resource, code) == ("create", "jobs", 201))
    return Counter(name for name in made if name.startswith(f"{namespace}/"))


def until(condition: Callable[[], object], seconds: float = DEADLINE, what: str = "") -> None:
    """Wait until it holds; what it last raised or answered is told if it does not in time."""
    end, last = time.monotonic() + seconds, None
    while time.monotonic() < end:
        try:
            last = condition()
        except (OSError, AssertionError) as error:
            last = error
        else:
            if last:
                return
        time.sleep(0.1)
    pytest.fail(f"not within {seconds:g} s {what}: {last!r}")


def search(name: str, trials: int = 24, **spec: Any) -> dict[str, Any]:
    sample: dict[str, Any] = yaml.safe_load((ROOT / "crds/samples/hposearch-minimal.yaml").read_text())
    sample["metadata"] = {"name": name}
    sample["spec"] |= {"engine": "job", "maxTrialCount": trials, **spec}
    return sample


def sample(kind: str, name: str) -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load((ROOT / f"crds/samples/{kind.lower()}-minimal.yaml").read_text())
    manifest["metadata"] = {"name": name}
    return manifest


def definitions() -> list[dict[str, Any]]:
    """Of our kinds."""
    return [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("*.yaml"))]


def definition(group: str, version: str, kind: str) -> dict[str, Any]:
    """Of a kind of others, without its schema."""
    plural = f"{kind.lower()}s"
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"},
            "versions": [{"name": version, "served": True, "storage": True, "schema": schema}],
        },
    }


RAY_JOB = definition("ray.io", "v1", "RayJob")
SERVICE_MONITOR = definition("monitoring.coreos.com", "v1", "ServiceMonitor")
