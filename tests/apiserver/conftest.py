"""Real Kubernetes API servers, each with its own etcd, for as long as the tests last."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from tests.apiserver import server
from tests.apiserver.operator_bench import CUSTOM, Cluster, Operator, new_cluster, operator, until
from tests.apiserver.server import ApiServer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What judges all that the operator has ever asked comes last."""
    items.sort(key=lambda item: item.path.name == "test_rights.py")


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A server without our definitions, and without an operator."""
    folder = tmp_path_factory.mktemp("apiserver")
    with server.etcd(folder) as etcd_port, server.api_server(folder, etcd_port, *server.free_ports(1)) as running:
        yield running


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A server with our definitions, on which an operator has the chart's rights and no other."""
    with new_cluster(tmp_path_factory.mktemp("operator")) as cluster:
        cluster.install_definitions()
        yield cluster


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    return shared_cluster


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own, empty afterwards."""
    name = cluster.namespace(re.sub("[^a-z0-9]+", "-", request.node.name.removeprefix("test_"))[:60].strip("-"))
    yield name
    for kind in CUSTOM:
        for one in cluster.list(kind, name):
            if one["metadata"].get("finalizers"):
                cluster.patch(kind, name, one["metadata"]["name"], {"metadata": {"finalizers": None}})
    cluster.sweep(name)


@pytest.fixture
def running(cluster: Cluster) -> Iterator[Operator]:
    with operator(cluster) as one:
        until(one.healthy)
        yield one
