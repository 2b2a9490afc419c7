"""The operator's real process against a real API server that writes an audit log and can be restarted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.apiserver.conftest import (
    TOKEN,
    ApiServer,
    etcd_arguments,
    free_ports,
    process,
    server_arguments,
    wait_until_ready,
)

ROOT = Path(__file__).parents[2]
GROUP = "/apis/ensemble-operator.io/v1alpha1"
DEADLINE = 60.0  # seconds for anything to happen
OPERATOR_TOKEN, OPERATOR = "operator", "the-operator"
COLLECTIONS = {
    "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings",
    "Job": "/apis/batch/v1/namespaces/{}/jobs",
    "Event": "/apis/events.k8s.io/v1/namespaces/{}/events",
    "HPOSearch": GROUP + "/namespaces/{}/hposearches",
    "EnsembleSelection": GROUP + "/namespaces/{}/ensembleselections",
    "EnsembleDeployment": GROUP + "/namespaces/{}/ensembledeployments",
}
WRITES = ("create", "update", "patch", "delete", "deletecollection")
# What it does each minute is done each second here.
START = (
    "import sys; from ensemble_operator import engine; engine.CAPABILITIES_SECONDS = 1.0;"
    " from ensemble_operator.main import main; sys.exit(main([]))"
)


@dataclass
class Cluster:
    """An API server, its etcd, and what tests do with them."""

    folder: Path
    assets: Path
    etcd_port: int
    server: ApiServer
    running: ExitStack = field(default_factory=ExitStack)

    def start(self) -> None:
        """Start the API server; etcd goes on."""
        policy = {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [{"level": "Metadata", "users": [OPERATOR]}, {"level": "None"}],
        }
        (self.folder / "audit.yaml").write_text(yaml.safe_dump(policy))
        command = [
            self.assets / "kube-apiserver",
            *server_arguments(self.folder, self.etcd_port, self.server.port),
            f"--audit-policy-file={self.folder / 'audit.yaml'}",
            f"--audit-log-path={self.folder / 'audit.log'}",
        ]
        log = self.folder / "kube-apiserver.log"
        running = self.running.enter_context(process(command, log))
        wait_until_ready(self.server, running, log)

    def stop(self) -> None:
        self.running.close()

    def audit(self) -> list[dict[str, Any]]:
        """The operator's requests that were answered, in order."""
        lines = (self.folder / "audit.log").read_text().splitlines()
        return [event for line in lines if (event := json.loads(line))["stage"] == "ResponseComplete"]

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

    def install_definitions(self) -> None:
        for path in sorted((ROOT / "crds").glob("*.yaml")):
            manifest = yaml.safe_load(path.read_text())
            self.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", manifest)
        for plural in ("hposearches", "ensembleselections", "ensembledeployments"):
            until(lambda plural=plural: self.server.request("GET", f"{GROUP}/{plural}")[0] == 200)


@contextmanager
def new_cluster(folder: Path) -> Iterator[Cluster]:
    """An API server without our definitions."""
    assets = Path(os.environ["KUBEBUILDER_ASSETS"])
    client, peer, port = free_ports(3)
    users = f"{TOKEN},admin,admin,system:masters\n{OPERATOR_TOKEN},{OPERATOR},operator,system:masters\n"
    (folder / "tokens.csv").write_text(users)
    with process([assets / "etcd", *etcd_arguments(folder, client, peer)], folder / "etcd.log"):
        cluster = Cluster(folder, assets, client, ApiServer(port, folder / "certificates" / "apiserver.crt"))
        cluster.start()
        try:
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
def operator(cluster: Cluster, **environment: str) -> Iterator[Operator]:
    """The operator's process, which is killed at the end if it still runs; warnings are errors in it."""
    metrics_port, health_port = free_ports(2)
    log = cluster.folder / f"operator-{metrics_port}.log"
    given = {
        "PATH": os.environ["PATH"],
        "KUBECONFIG": str(kubeconfig(cluster)),
        "TRAINER_IMAGE": "trainer:test",
        "CORE_IMAGE": "core:test",
        "METRICS_PORT": str(metrics_port),
        "HEALTH_PORT": str(health_port),
        **environment,
    }
    with (
        log.open("wb") as output,
        subprocess.Popen([sys.executable, "-W", "error", "-c", START], stdout=output, stderr=output, env=given) as one,
    ):
        try:
            yield Operator(one, log, metrics_port, health_port)
        finally:
            one.kill()


def kubeconfig(cluster: Cluster) -> Path:
    path = cluster.folder / "kubeconfig"
    server = {
        "server": f"https://127.0.0.1:{cluster.server.port}",
        "certificate-authority": str(cluster.server.certificate),
    }
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "it",
        "clusters": [{"name": "it", "cluster": server}],
        "users": [{"name": "it", "user": {"token": OPERATOR_TOKEN}}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
    }
    path.write_text(yaml.safe_dump(content))
    return path


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
