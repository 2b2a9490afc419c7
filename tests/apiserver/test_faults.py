"""Whatever a bad network or an ailing API server does: the operator asks ever more slowly, and ends where it should."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from tests.apiserver.operator_bench import CUSTOM, Cluster, jobs_made, operator, sample, search, until
from tests.apiserver.player import Player
from tests.apiserver.proxy import Fault, Proxy, proxy

pytestmark = pytest.mark.apiserver

# In no hurry, other than in most tests: all that it asks is counted.
CALM = "import sys; from ensemble_operator.main import main; sys.exit(main([]))"
AT_MOST = 12  # requests for the same, at first; then one each second

FAULTS = {
    "too many requests": Fault(code=429, retry_after=2),
    "unavailable": Fault(code=503),
    "answers lost": Fault(loses=True),
    "lines cut short": Fault(abrupt=False),
    "watches gone in the stream": Fault(watches="broken"),
}
MORE_FAULTS = {
    "unavailable, with a time": Fault(code=503, retry_after=1),
    "internal errors": Fault(code=500),
    "slow": Fault(delay=0.5),
    "no answers": Fault(delay=60),
    "watches gone": Fault(watches="refused"),
    "watches fail": Fault(watches="refused", watch_code=500),
    "watches fail in the stream": Fault(watches="broken", watch_code=500),
}
NIGHTLY = [
    pytest.param(fault, 30, id=f"{name}, for long", marks=pytest.mark.nightly)
    for name, fault in (FAULTS | MORE_FAULTS).items()
]


@pytest.fixture(scope="module")
def network(shared_cluster: Cluster) -> Iterator[Proxy]:
    with proxy(shared_cluster.server) as one:
        yield one


@pytest.fixture(scope="module")
def expected(shared_cluster: Cluster) -> Any:
    """What comes of it all when nothing goes wrong."""
    player = Player(shared_cluster, shared_cluster.namespace("calm"))
    with operator(shared_cluster) as one:
        until(one.healthy)
        begin(player)
        go_on(player)
        until(lambda: settled(player))
        time.sleep(1)
        found = outcome(player)
    shared_cluster.sweep(player.namespace)
    return found


def begin(player: Player) -> None:
    player.cluster.create("HPOSearch", player.namespace, search("old"))
    player.job("train", "old")
    until(lambda: player.told("HPOSearch", "old", "Progressing"))


def go_on(player: Player) -> None:
    """What users do meanwhile."""
    cluster, namespace = player.cluster, player.namespace
    for role in cluster.list("Role", namespace):
        cluster.delete("Role", namespace, role["metadata"]["name"])
    cluster.create("HPOSearch", namespace, search("digits"))
    cluster.create("EnsembleSelection", namespace, sample("EnsembleSelection", "digits"))
    cluster.create("EnsembleDeployment", namespace, sample("EnsembleDeployment", "digits"))
    cluster.patch("HPOSearch", namespace, "old", {"spec": {"maxTrialCount": 30}})


def settled(player: Player) -> bool:
    resources = [one for kind in CUSTOM for one in player.cluster.list(kind, player.namespace)]
    current = [one.get("status", {}).get("observedGeneration") == one["metadata"]["generation"] for one in resources]
    return all(current) and all(player.jobs("train", name) for name in ("old", "digits"))


def outcome(player: Player) -> dict[tuple[str, str], Any]:
    """All objects by kind and name, of the custom resources their conditions."""
    return {
        place: {one["type"]: (one["status"], one["reason"]) for one in manifest.get("status", {}).get("conditions", ())}
        if place[0] in CUSTOM
        else None
        for place, manifest in player.everything().items()
    }


@pytest.mark.parametrize(
    ("fault", "seconds"), [*(pytest.param(fault, 2, id=name) for name, fault in FAULTS.items()), *NIGHTLY]
)
def test_converges_after(
    cluster: Cluster, namespace: str, network: Proxy, expected: Any, fault: Fault, seconds: int
) -> None:
    player = Player(cluster, namespace)
    with operator(cluster, network.address, CALM) as one:
        until(one.healthy)
        begin(player)
        since = len(network.asked)
        with network.troubled(fault):
            go_on(player)
            time.sleep(seconds / 2)
            network.cut()  # until then it hears of everything, but can do nothing about it
            time.sleep(seconds / 2)
        asked = network.asked[since:]
        until(lambda: same(outcome(player), expected), 60 + seconds)
        until(one.healthy)
        assert sorted(jobs_made(cluster, namespace).values()) == [1, 1, 1]
        assert most(asked)[1] <= AT_MOST + seconds, most(asked)


def same(found: Any, wanted: Any) -> bool:
    places = [place for place in found | wanted if place not in found or found[place] != wanted.get(place, 0)]
    assert [(place, found.get(place), wanted.get(place)) for place in places] == []
    return True


def most(asked: list[Any]) -> tuple[Any, int]:
    """What was asked for most often."""
    return Counter(asked).most_common(1)[0]
