"""A pod of somebody who uses the ensemble: it has the samples, and reads the library to compare."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.cluster import Manifest, Namespace
from tests.e2e.conftest import Images
from tests.e2e.pods import container, pod

GRPC_PORT, HTTP_PORT = 8001, 8000
POD_SECONDS = 120.0
UNLOAD = """
import urllib.error, urllib.request
try:
    print(urllib.request.urlopen(urllib.request.Request({url!r}, b"{{}}"), timeout=10).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""
SCRIPT = Path(__file__).with_name("client.py")


@dataclass(frozen=True)
class Client:
    """Pods that can read a library.

    Args:
        library: Its URL, as such a pod sees it.
        env, volumes, mounts: What the pod needs for that.
    """

    namespace: Namespace
    images: Images
    library: str
    env: Sequence[Manifest] = ()
    volumes: Sequence[Manifest] = ()
    mounts: Sequence[Manifest] = ()

    def ask(self, search: Manifest, service: str, members: Sequence[Manifest]) -> str:
        """Ask for the held-out samples of a search and compare the answers with the mean of the members."""
        spec = {**search["spec"], "library": {"storage": {"path": "/tmp/none"}}}
        document = {
            "apiVersion": search["apiVersion"],
            "kind": "HPOSearch",
            "metadata": {"name": "digits"},
            "spec": spec,
        }
        data = {"client.py": SCRIPT.read_text(), "spec.yaml": json.dumps(document)}
        self.namespace.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "client"}, "data": data})
        output = ("--split", "heldout", "--output", "/samples", "--report", "file:/tmp/report.json")
        dataset = ["ensemble", "dataset", "--spec", "/client/spec.yaml", "--name", "digits", *output]
        address = ("--url", f"{service}:{GRPC_PORT}", "--model", "digits")
        predict = [
            "ensemble",
            "predict",
            *address,
            "--input",
            "/samples/images.npy",
            "--output",
            "/samples/answers.npy",
        ]
        compare = ["python", "/client/client.py", "/samples", self.library, json.dumps(members)]
        said = self._run(
            "ask",
            [("samples", self.images.trainer, dataset), ("predict", self.images.core, predict)],
            ("compare", self.images.core, compare),
        )
        self.namespace.kubectl("delete", "configmap", "client")
        return said

    def control(self, service: str) -> str:
        """Try to unload the ensemble from outside its pod; the HTTP status."""
        script = UNLOAD.format(url=f"http://{service}:{HTTP_PORT}/v2/repository/models/digits/unload")
        return self._run("control", [], ("control", self.images.core, ["python", "-c", script])).rsplit(maxsplit=1)[-1]

    def verify(self) -> str:
        """Digest every file of the library; AssertionError if anything is wrong."""
        return self._run("verify", [], ("verify", self.images.core, ["ensemble", "library", "verify", self.library]))

    def models(self) -> list[Manifest]:
        """Records of the library's models."""
        records: list[Manifest] = json.loads(self.run("ensemble", "library", "ls", self.library, "--json"))
        return records

    def run(self, *command: str) -> str:
        """What a command prints in a pod that can read the library."""
        said = self._run("command", [], ("command", self.images.core, list(command)))
        return re.sub(r"^\[pod/[^]]*\] ", "", said, flags=re.MULTILINE)

    def _run(self, name: str, before: Sequence[tuple[str, str, list[str]]], last: tuple[str, str, list[str]]) -> str:
        """What a pod prints that runs some containers one after the other; it is gone afterwards."""
        volumes: list[Manifest] = [
            {"name": "tmp", "emptyDir": {}},
            {"name": "samples", "emptyDir": {}},
            {"name": "client", "configMap": {"name": "client", "optional": True}},
            *self.volumes,
        ]
        first = [self._container(*one) for one in before]
        self.namespace.apply(pod(name, [self._container(*last)], volumes, initContainers=first))
        said = self.namespace.wait_pod(name, POD_SECONDS)
        self.namespace.kubectl("delete", "pod", name, "--grace-period=0", "--force")
        return said

    def _container(self, name: str, image: str, command: list[str]) -> Manifest:
        mounts = [{"name": volume, "mountPath": f"/{volume}"} for volume in ("tmp", "samples", "client")]
        env = [{"name": "ENSEMBLE_CACHE", "value": "/tmp/cache"}, *self.env]
        return container(name, image, [*mounts, *self.mounts], command=command, env=env)
