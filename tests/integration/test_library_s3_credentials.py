"""Storages with different Secrets in one process, and what is told of an S3 server that refuses or is gone.

The server checks signatures and policies: each of two users may use one bucket.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from ensemble_core import cli
from ensemble_core.api.common import CredentialsSecretRef, S3Storage, Storage
from ensemble_core.errors import OutageError, UserError
from ensemble_core.library import Library, Store, open_store
from ensemble_core.library.store import credentials

SECONDS = 120
SELECTION = """
apiVersion: ensemble-operator.io/v1alpha1
kind: EnsembleSelection
metadata: {{name: tiny}}
spec:
  sources: [{{storage: {}}}]
  budgets: [{{name: all, parametersMillions: 1}}]
"""


@dataclass(frozen=True)
class Server:
    """An S3 server of its own: its process can be stopped."""

    endpoint: str
    process: subprocess.Popen[bytes]
    users: dict[str, dict[str, str]]  # secret's name → keys

    def storage(self, bucket: str, secret: str | None) -> Storage:
        reference = CredentialsSecretRef(name=secret) if secret else None
        return Storage(
            s3=S3Storage(bucket=bucket, prefix="library", endpoint=self.endpoint, region="us-east-1"),
            credentials_secret_ref=reference,
        )

    def store(self, bucket: str, secret: str | None) -> Store:
        return open_store(self.storage(bucket, secret))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + SECONDS
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < deadline
            time.sleep(0.05)
        endpoint = f"http://127.0.0.1:{port}"
        users = {name: _user(endpoint, name) for name in ("red.team", "blue-team")}
        plain = {"Content-Type": "text/plain"}
        reset = urllib.request.Request(f"{endpoint}/moto-api/reset-auth", b"0", plain, method="POST")
        urllib.request.urlopen(reset, timeout=60).close()  # from now on requests are checked
        yield Server(endpoint, process, users)
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


def _user(endpoint: str, name: str) -> dict[str, str]:
    """A user who may use the bucket of its own name alone; its keys."""
    bucket = name.replace(".", "-")
    anyone = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "region_name": "us-east-1"}
    iam: Any = boto3.client("iam", endpoint_url=endpoint, **anyone)
    boto3.client("s3", endpoint_url=endpoint, **anyone).create_bucket(Bucket=bucket)
    iam.create_user(UserName=bucket)
    resource = [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": resource}]}
    iam.put_user_policy(UserName=bucket, PolicyName="own", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName=bucket)["AccessKey"]
    return {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}


@pytest.fixture(autouse=True)
def environment(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As of a pod that was given both Secrets, and nothing else."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "ENSEMBLE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ENSEMBLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    for secret, prefix in (("red.team", "ENSEMBLE_S3_RED_TEAM_"), ("blue-team", "ENSEMBLE_S3_BLUE_TEAM_")):
        for key, value in server.users[secret].items():
            monkeypatch.setenv(prefix + key, f"{value}\n")


def test_keys_are_found_by_the_secrets_name() -> None:
    secret = CredentialsSecretRef(name="my.keys-2")
    prefix = "ENSEMBLE_S3_MY_KEYS_2_"
    assert credentials(secret, {}) == credentials(None, {f"{prefix}AWS_ACCESS_KEY_ID": "a"}) == {}
    given = {f"{prefix}AWS_ACCESS_KEY_ID": "a\n", f"{prefix}AWS_SECRET_ACCESS_KEY": "b", "AWS_SESSION_TOKEN": "c"}
    assert credentials(secret, given) == {"key": "a", "secret": "b"}
    assert credentials(secret, {**given, f"{prefix}AWS_SESSION_TOKEN": "d"})["token"] == "d"


def test_two_storages_with_different_secrets_are_used_by_one_process(server: Server) -> None:
    red, blue = server.store("red-team", "red.team"), server.store("blue-team", "blue-team")
    assert red.create("file", b"red")
    assert blue.create("file", b"blue")
    assert (red.read("file"), blue.read("file"), red.list("")) == (b"red", b"blue", ("file",))


def test_the_environments_own_credentials_count_without_a_secret(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in server.users["red.team"].items():
        monkeypatch.setenv(key, value)
    assert server.store("red-team", None).list("nothing") == ()
    assert server.store("red-team", "secret-without-variables").list("nothing") == ()
    with pytest.raises(UserError, match="access is denied"):
        server.store("blue-team", None).list("")


def test_refused_credentials_name_the_field(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    where = r"^s3://red-team/library: credentialsSecretRef: "
    with pytest.raises(UserError, match=f"{where}access is denied"):
        Library.open(server.store("red-team", "blue-team"))
    monkeypatch.setenv("ENSEMBLE_S3_RED_TEAM_AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(UserError, match=f"{where}access is denied"):
        Library.open(server.store("red-team", "red.team"))
    monkeypatch.delenv("ENSEMBLE_S3_RED_TEAM_AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match=f"{where}cannot be used: Partial credentials"):
        Library.open(server.store("red-team", "red.team"))


def test_a_command_tells_in_one_line_and_ends_with_2(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "tiny.yaml"
    spec.write_text(SELECTION.format(json.dumps(server.storage("red-team", "blue-team").document())))
    assert cli.main(["select", "--spec", str(spec), "--report", f"file:{tmp_path}/report.json"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ensemble select: s3://red-team/library: credentialsSecretRef: access is denied")
    error = json.loads((tmp_path / "report.json").read_text())["error"]
    assert error["field"] == "s3://red-team/library: credentialsSecretRef"


def test_a_server_that_stops_answering_midway_is_no_mistake_of_the_user(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after its first answer: the command ends with 1 and no verdict, so that it is tried again."""
    spec = tmp_path / "tiny.yaml"
    spec.write_text(SELECTION.format(json.dumps(server.storage("red-team", "red.team").document())))
    store = server.store("red-team", "red.team")
    assert store.list("nothing") == ()
    server.process.kill()
    server.process.wait()
    with pytest.raises(OutageError, match=r"^s3://red-team/library: does not answer any more"):
        store.list("")
    monkeypatch.setattr("ensemble_core.selection.subject.open_store", lambda storage, where: store)
    assert cli.main(["select", "--spec", str(spec), "--report", f"file:{tmp_path}/report.json"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ensemble select: s3://red-team/library: does not answer any more")
    assert json.loads((tmp_path / "report.json").read_text())["state"] == "Running"
    with pytest.raises(UserError, match=r"^s3://red-team/library: s3.endpoint: cannot be used"):
        Library.open(server.store("red-team", "red.team"))
