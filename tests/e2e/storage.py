"""Storage that tests break: an S3 server that checks keys, and a volume that is soon full."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.e2e.client_pod import Client
from tests.e2e.cluster import Manifest, Namespace, run
from tests.e2e.conftest import Images
from tests.e2e.pods import container, pod

VOLUME: Manifest = {"name": "library", "persistentVolumeClaim": {"claimName": "libraries"}}
MOUNT: Manifest = {"name": "library", "mountPath": "/library"}


def on_claim(namespace: Namespace, images: Images) -> Client:
    """A client of the sample's library on the claim."""
    return Client(namespace, images, "/library/digits", volumes=[VOLUME], mounts=[MOUNT])


# Where this pod's files are on its node: the kubelet keeps the pod's volumes beside its /etc/hosts.
PLACE = """
import pathlib
mounts = (line.split() for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines())
[hosts] = [fields[3] for fields in mounts if fields[4] == "/etc/hosts"]
print(pathlib.Path(hosts).parent / "volumes" / "kubernetes.io~empty-dir" / "room")
"""
FILL = """
import pathlib, sys
with open("/room/filler", "wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(4096))
    except OSError:
        pass
"""


@dataclass(frozen=True)
class Room:
    """A small volume, in the memory of a pod that can fill it up."""

    namespace: Namespace

    def fill(self) -> None:
        self._do(FILL)

    def clear(self) -> None:
        self._do("import os; os.remove('/room/filler')")

    def _do(self, script: str) -> str:
        return self.namespace.kubectl("exec", "room", "--", "python", "-c", script)


@contextmanager
def small_volume(namespace: Namespace, images: Images, mebibytes: int) -> Iterator[Room]:
    """A claim `libraries` on a volume with so little room."""
    name = f"room-{namespace.name}"
    namespace.apply(_keeper(images.core, mebibytes))
    namespace.kubectl("wait", "pod/room", "--for=condition=Ready", "--timeout=60s")
    room = Room(namespace)
    node = (namespace.get("pod", "room") or {})["spec"]["nodeName"]
    path = namespace.kubectl("exec", "room", "--", "python", "-c", PLACE).strip()
    volume: Manifest = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "storageClassName": name,
            "capacity": {"storage": f"{mebibytes}Mi"},
            "accessModes": ["ReadWriteMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "local": {"path": path},
            "nodeAffinity": {
                "required": {
                    "nodeSelectorTerms": [
                        {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}
                    ]
                }
            },
        },
    }
    claim: Manifest = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "libraries"},
        "spec": {
            "storageClassName": name,
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": f"{mebibytes}Mi"}},
        },
    }
    namespace.apply(volume, claim)
    try:
        yield room
    finally:
        run("kubectl", "delete", "persistentvolume", name, "--wait=false")


def _keeper(image: str, mebibytes: int) -> Manifest:
    keeps = container("room", image, [{"name": "room", "mountPath": "/room"}], command=["sleep", "infinity"])
    volume = {"name": "room", "emptyDir": {"medium": "Memory", "sizeLimit": f"{mebibytes}Mi"}}
    return pod("room", [keeps], [volume])


# --- S3 -------------------------------------------------------------------------------------------------------------

SECRET = "s3-credentials"
OPEN_REQUESTS = 4  # those below; from then on the server asks for signatures
MAKE_USER = """
import boto3, json
iam, allow = boto3.client("iam"), {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
iam.create_user(UserName="researcher")
key = iam.create_access_key(UserName="researcher")["AccessKey"]
policy = json.dumps({"Version": "2012-10-17", "Statement": [allow]})
iam.put_user_policy(UserName="researcher", PolicyName="all", PolicyDocument=policy)
boto3.client("s3").create_bucket(Bucket="libraries")
print(json.dumps({"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}))
"""


def serve_s3_with_keys(namespace: Namespace, images: Images) -> dict[str, str]:
    """Start an S3 server, with an empty bucket, that refuses who does not sign with the keys that are returned."""
    variables = {
        "INITIAL_NO_AUTH_ACTION_COUNT": str(OPEN_REQUESTS),
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9000",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nobody",
    }
    service: Manifest = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "s3"},
        "spec": {"selector": {"app": "s3"}, "ports": [{"port": 9000}]},
    }
    server = container(
        "s3",
        images.s3,
        [{"name": "tmp", "mountPath": "/tmp"}],
        env=[{"name": name, "value": value} for name, value in variables.items()],
        readinessProbe={"tcpSocket": {"port": 9000}, "periodSeconds": 1},
    )
    runs = pod("s3", [server], [{"name": "tmp", "emptyDir": {}}])
    runs["metadata"]["labels"] = {"app": "s3"}
    namespace.apply(service, runs)
    namespace.kubectl("wait", "pod/s3", "--for=condition=Ready", "--timeout=60s")
    keys: dict[str, str] = json.loads(namespace.kubectl("exec", "s3", "--", "python", "-c", MAKE_USER))
    return keys


def give_keys(namespace: Namespace, keys: dict[str, str]) -> None:
    """Make or change the Secret."""
    namespace.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": keys})
