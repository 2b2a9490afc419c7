"""A namespace for each test, and the operator by its chart."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from tests.e2e.cluster import Manifest, Namespace, run

CHART = Path(__file__).parents[2] / "charts" / "ensemble-operator"
RELEASE, RELEASE_NAMESPACE = "ensemble", "ensemble-system"
DEPLOYMENT = f"{RELEASE}-ensemble-operator"
OPERATOR = f"app.kubernetes.io/instance={RELEASE}"
RESTRICTED = {
    "pod-security.kubernetes.io/enforce": "restricted",
    "pod-security.kubernetes.io/enforce-version": "latest",
}


@dataclass(frozen=True)
class Images:
    """Names of images that the cluster can pull or has."""

    operator: str
    trainer: str
    core: str
    s3: str


@dataclass(frozen=True)
class Release:
    """The operator, as Helm installs it."""

    images: Images

    def install(self, **values: object) -> None:
        """Install it, or change its values, and wait until it is ready."""
        images = {name: reference(getattr(self.images, name)) for name in ("operator", "trainer", "core")}
        run(
            *("helm", "upgrade", RELEASE, CHART, "--install", "--namespace", RELEASE_NAMESPACE),
            *("--wait", "--timeout", "3m", "--values", "-"),
            text=yaml.safe_dump({"images": images, **values}),
            seconds=200,
        )

    def uninstall(self) -> None:
        run("helm", "uninstall", RELEASE, "--namespace", RELEASE_NAMESPACE, "--wait", "--ignore-not-found", seconds=200)

    def kill(self) -> None:
        """End the operator's pod at once, as if its node had gone; another is made meanwhile."""
        self.namespace.kubectl("delete", "pod", "--selector", OPERATOR, "--force", "--grace-period=0")

    def wait_back(self) -> None:
        self.namespace.kubectl("rollout", "status", f"deployment/{DEPLOYMENT}", "--timeout=180s", seconds=200)

    def complaints(self, seconds: int) -> list[str]:
        """What the operator has logged in the last seconds beside its normal doings."""
        lines = self.namespace.kubectl("logs", f"deployment/{DEPLOYMENT}", f"--since={seconds}s").splitlines()
        return [line for line in lines if json.loads(line)["level"] not in ("info", "debug")]

    def restarts(self) -> int:
        """How often the operator's container has ended by itself."""
        pods = self.namespace.pods(OPERATOR)
        return sum(status["restartCount"] for pod in pods for status in pod["status"].get("containerStatuses", ()))

    @property
    def namespace(self) -> Namespace:
        return Namespace(RELEASE_NAMESPACE)

    @contextmanager
    def explained(self, namespace: Namespace) -> Iterator[None]:
        """Print the namespace's state and the operator's log if something goes wrong."""
        try:
            yield
        except BaseException:
            print(namespace.state())
            print(self.namespace.told("logs", f"deployment/{DEPLOYMENT}", "--tail=300"))
            raise


def reference(image: str) -> dict[str, str]:
    repository, _, tag = image.rpartition(":")
    return {"repository": repository, "tag": tag}


@pytest.fixture(scope="session")
def images() -> Images:
    """Of $OPERATOR_IMAGE and so on; tests/e2e/cluster.sh sets them."""
    variables = ("KUBECONFIG", "OPERATOR_IMAGE", "TRAINER_IMAGE", "CORE_IMAGE", "S3_IMAGE")
    if missing := [name for name in variables if not os.environ.get(name)]:
        pytest.fail(f"{', '.join(missing)} must be set: `make e2e` does")
    return Images(*(os.environ[name] for name in variables[1:]))


@pytest.fixture
def release(images: Images) -> Iterator[Release]:
    """The operator's release, which a test installs with values of its own."""
    with release_of(images) as made:
        yield made


@pytest.fixture(scope="module")
def operator(images: Images) -> Iterator[Release]:
    """The operator, installed for the whole cluster and all tests of a file."""
    with release_of(images) as made:
        made.install(scope="cluster")
        yield made


@contextmanager
def release_of(images: Images) -> Iterator[Release]:
    with namespace_of(RELEASE_NAMESPACE, keep=True):
        made = Release(images)
        try:
            yield made
        finally:
            made.uninstall()


@pytest.fixture
def namespace(release: Release) -> Iterator[Namespace]:
    """A namespace that goes while the operator is still there."""
    with namespace_of(f"e2e-{uuid.uuid4().hex[:8]}") as made:
        yield made


@pytest.fixture
def place(operator: Release) -> Iterator[Namespace]:
    """A namespace for a test whose operator is there for the whole file."""
    with namespace_of(f"e2e-{uuid.uuid4().hex[:8]}") as made:
        yield made


@contextmanager
def namespace_of(name: str, keep: bool = False) -> Iterator[Namespace]:
    """A namespace that takes restricted pods alone."""
    made: Manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}}
    run("kubectl", "apply", "--filename", "-", text=yaml.safe_dump(made))
    try:
        yield Namespace(name)
    finally:
        if not keep:
            run("kubectl", "delete", "namespace", name, "--ignore-not-found", "--timeout=120s", seconds=150)
