"""Processes on this machine: a kube-apiserver with its etcd, and an audit log of what the operator asks it."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import yaml

TOKEN = "administrator"
DEADLINE = 90.0  # seconds until the server must be ready
OPERATOR_TOKEN, OPERATOR = "operator", "the-operator"
# Under these names the operator works here: with a token of its own, and with that of the chart's service account.
ACCOUNTS = (OPERATOR, "system:serviceaccount:system:ensemble-operator")
USERS = f"{TOKEN},admin,admin,system:masters\n{OPERATOR_TOKEN},{OPERATOR},operator\n"
AUDIT_LOG = "audit.log"
STARTS = "starts"  # beside it: when the server began to start, and when it was ready; one line for each time
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "users": list(ACCOUNTS)}, {"level": "None"}],
}


@dataclass(frozen=True)
class ApiServer:
    """An API server on this machine.

    Args:
        port: Its HTTPS port on 127.0.0.1.
        certificate: File with the certificate that it shows.
    """

    port: int
    certificate: Path

    def request(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json"
    ) -> tuple[int, dict[str, Any]]:
        """Send one request as an administrator; the status code and the JSON answer."""
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=self._trust, timeout=30)
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": content_type}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read().decode()
            is_json = "json" in (answer.getheader("Content-Type") or "")
            return answer.status, json.loads(text) if is_json else {"text": text}
        finally:
            connection.close()

    @cached_property
    def _trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.certificate))

    def ready(self) -> bool:
        """Whether it answers and has all its parts."""
        try:
            return self.request("GET", "/readyz")[0] == 200
        except (OSError, http.client.HTTPException):
            return False


def assets() -> Path:
    """The folder with etcd, kube-apiserver and kubectl."""
    if "KUBEBUILDER_ASSETS" not in os.environ:
        pytest.fail(
            "KUBEBUILDER_ASSETS must name a folder with etcd and kube-apiserver, as `cluster envtest` of the test bed"
            " or `setup-envtest use -p path` prints it"
        )
    return Path(os.environ["KUBEBUILDER_ASSETS"])


@contextmanager
def etcd(folder: Path) -> Iterator[int]:
    """A running etcd; its port."""
    client, peer = free_ports(2)
    command = [
        assets() / "etcd",
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls=http://127.0.0.1:{client}",
        f"--advertise-client-urls=http://127.0.0.1:{client}",
        f"--listen-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-cluster=default=http://127.0.0.1:{peer}",
        "--unsafe-no-fsync",
    ]
    with process(command, folder / "etcd.log"):
        yield client


@contextmanager
def api_server(folder: Path, etcd_port: int, port: int) -> Iterator[ApiServer]:
    """A running API server on an etcd; what is in the folder already, it goes on with."""
    key = folder / "service-accounts.key"
    if not key.exists():
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True, timeout=60)
    (folder / "tokens.csv").write_text(USERS)
    (folder / "audit.yaml").write_text(yaml.safe_dump(AUDIT_POLICY))
    command = [
        assets() / "kube-apiserver",
        f"--etcd-servers=http://127.0.0.1:{etcd_port}",
        f"--cert-dir={folder / 'certificates'}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={key}",
        f"--service-account-signing-key-file={key}",
        f"--token-auth-file={folder / 'tokens.csv'}",
        "--authorization-mode=RBAC",
        "--service-cluster-ip-range=10.0.0.0/24",
        # Without a controller manager nobody makes the default service accounts.
        "--disable-admission-plugins=ServiceAccount",
        f"--audit-policy-file={folder / 'audit.yaml'}",
        f"--audit-log-path={folder / AUDIT_LOG}",
        "--audit-log-maxsize=4000",  # MB: it is one file
    ]
    server, log = ApiServer(port, folder / "certificates" / "apiserver.crt"), folder / "kube-apiserver.log"
    began = datetime.now(UTC)
    with process(command, log) as running:
        wait_until_ready(server, running, log)
        with (folder / STARTS).open("a") as starts:
            starts.write(f"{began.isoformat()} {datetime.now(UTC).isoformat()}\n")
        yield server


def free_ports(count: int) -> list[int]:
    """Ports that are free now; all differ because all are held until all are known."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def process(command: list[Any], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended, and waited for, at the end."""
    with (
        log.open("wb") as output,
        subprocess.Popen(list(map(str, command)), stdout=output, stderr=output, stdin=subprocess.DEVNULL) as running,
    ):
        try:
            yield running
        finally:
            running.terminate()
            try:
                running.wait(3)  # an API server would wait for all that watch
            except subprocess.TimeoutExpired:
                running.kill()


def wait_until_ready(server: ApiServer, running: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end and running.poll() is None:
        if server.certificate.exists() and server.ready():
            return
        time.sleep(0.2)
    pytest.fail(f"the API server is not ready:\n{log.read_text()[-4000:]}")
