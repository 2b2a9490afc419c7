"""A real Kubernetes API server with its own etcd, for as long as the tests last."""

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
from pathlib import Path
from typing import Any

import pytest

TOKEN = "administrator"
DEADLINE = 90.0  # seconds until the server must be ready


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
        context = ssl.create_default_context(cafile=str(self.certificate))
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=context, timeout=30)
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": content_type}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read().decode()
            is_json = "json" in (answer.getheader("Content-Type") or "")
            return answer.status, json.loads(text) if is_json else {"text": text}
        finally:
            connection.close()

    def ready(self) -> bool:
        """Whether it answers and has all its parts."""
        try:
            return self.request("GET", "/readyz")[0] == 200
        except (OSError, http.client.HTTPException):
            return False


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    if "KUBEBUILDER_ASSETS" not in os.environ:
        pytest.fail(
            "KUBEBUILDER_ASSETS must name a folder with etcd and kube-apiserver, as `cluster envtest` of the test bed"
            " or `setup-envtest use -p path` prints it"
        )
    assets, folder = Path(os.environ["KUBEBUILDER_ASSETS"]), tmp_path_factory.mktemp("apiserver")
    client, peer, port = free_ports(3)
    (folder / "tokens.csv").write_text(f"{TOKEN},admin,admin,system:masters\n")
    with ExitStack() as stack:
        stack.enter_context(process([assets / "etcd", *etcd_arguments(folder, client, peer)], folder / "etcd.log"))
        server = ApiServer(port, folder / "certificates" / "apiserver.crt")
        command = [assets / "kube-apiserver", *server_arguments(folder, client, port)]
        running = stack.enter_context(process(command, folder / "kube-apiserver.log"))
        wait_until_ready(server, running, folder / "kube-apiserver.log")
        yield server


def etcd_arguments(folder: Path, client: int, peer: int) -> list[str]:
    return [
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls=http://127.0.0.1:{client}",
        f"--advertise-client-urls=http://127.0.0.1:{client}",
        f"--listen-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-cluster=default=http://127.0.0.1:{peer}",
        "--unsafe-no-fsync",
    ]


def server_arguments(folder: Path, etcd: int, port: int) -> list[str]:
    key = folder / "service-accounts.key"
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True, timeout=60)
    return [
        f"--etcd-servers=http://127.0.0.1:{etcd}",
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
    ]


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
                running.wait(15)
            except subprocess.TimeoutExpired:
                running.kill()


def wait_until_ready(server: ApiServer, running: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end and running.poll() is None:
        if server.certificate.exists() and server.ready():
            return
        time.sleep(0.2)
    pytest.fail(f"the API server is not ready:\n{log.read_text()[-4000:]}")
