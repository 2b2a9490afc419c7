"""A namespace for each test, and the operator by its chart."""

from __future__ import annotations

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

    @contextmanager
    def explained(self, namespace: Namespace) -> Iterator[None]:
        """Print the namespace's state and the operator's log if something goes wrong."""
        try:
            yield
        except BaseException:
            print(namespace.state())
            print(Namespace(RELEASE_NAMESPACE).told("logs", f"deployment/{RELEASE}-ensemble-operator", "--tail=300"))
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
    with namespace_of(RELEASE_NAMESPACE, keep=True):
        installed = Release(images)
        try:
            yield installed
        finally:
            installed.uninstall()


@pytest.fixture
def namespace(release: Release) -> Iterator[Namespace]:
    """A namespace that goes while the operator is still there."""
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
            run("kubectl", "delete", "namespace", name, "--timeout=120s", seconds=150)
