"""In steady state, whatever that is, nothing is written; the API server's audit log is the witness."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from itertools import cycle, islice
from typing import Any, NamedTuple

import pytest
from tests.apiserver.operator_bench import CUSTOM, WRITES, Cluster, operator, sample, search, until
from tests.apiserver.player import BEGUN, Player

from ensemble_operator.cluster import APIS

pytestmark = pytest.mark.apiserver

ALIKE = ("keys-a", "keys.a")  # names of Secrets whose variables would have the same names


class Actor(NamedTuple):
    """Resources of one sort, and how they come to rest.

    Args:
        make: The resource of a name.
        play: What happens to it; the resources that it refers to have come to rest before.
        rests: The condition that it has then: type and reason.
    """

    kind: str
    make: Callable[[str], dict[str, Any]]
    play: Callable[[Player, str], None]
    rests: tuple[str, str]


def nothing(player: Player, name: str) -> None:
    """Nobody does anything."""


def begin(player: Player, name: str) -> None:
    """A search runs, and reports the same as long as anybody looks."""
    player.begin(player.job("train", name), stage="train", done=3, total=24, summary=BEGUN)


def fail(player: Player, name: str) -> None:
    player.fail(player.job("train", name), "out of memory")


def serve(player: Player, name: str) -> None:
    player.allocate(name)
    player.answer(name)


def misnamed(name: str) -> dict[str, Any]:
    """A search that the server takes, but no pod could have the variables of."""
    library, data = (
        {"s3": {"bucket": "ensembles", "prefix": secret}, "credentialsSecretRef": {"name": secret}} for secret in ALIKE
    )
    return search(name, library={"storage": library}, dataset={"arrays": "arrays", "storage": data})


def dependent(kind: str) -> Callable[[str], dict[str, Any]]:
    return lambda name: sample(kind, name)


ACTORS = {
    "trained": Actor("HPOSearch", search, Player.train, ("Ready", "+Trained")),
    "running": Actor("HPOSearch", search, begin, ("Progressing", "+Training")),
    "suspended": Actor("HPOSearch", lambda name: search(name, suspend=True), nothing, ("Ready", "-Suspended")),
    "invalid": Actor("HPOSearch", misnamed, nothing, ("Degraded", "+InvalidSpec")),
    "failed": Actor("HPOSearch", search, fail, ("Degraded", "+TrainingFailed")),
    "selection": Actor("EnsembleSelection", dependent("EnsembleSelection"), Player.select, ("Ready", "+Selected")),
    "deployment": Actor("EnsembleDeployment", dependent("EnsembleDeployment"), serve, ("Ready", "+Serving")),
}


def casting(number: int) -> dict[tuple[str, str], Actor]:
    """So many resources of all sorts by kind and name; selections read `digits`, and deployments serve from it."""
    sorts = islice(cycle(ACTORS), number - 2)
    parts = [("digits", "trained"), ("digits", "selection"), *((f"{sort}-{i}", sort) for i, sort in enumerate(sorts))]
    return {(ACTORS[sort].kind, name): ACTORS[sort] for name, sort in parts}


def perform(player: Player, cast: dict[tuple[str, str], Actor]) -> None:
    """Until all are at rest, kind by kind, for one needs the other."""
    for kind in CUSTOM:
        mine = {name: actor for (of, name), actor in cast.items() if of == kind}
        for name, actor in mine.items():
            player.cluster.create(kind, player.namespace, actor.make(name))
        for name, actor in mine.items():
            actor.play(player, name)
        for name, actor in mine.items():
            player.wait_for(kind, name, *actor.rests)


def versions(player: Player) -> dict[tuple[str, str], str]:
    events = player.cluster.list("Event", player.namespace)
    everything = player.everything() | {("Event", one["metadata"]["name"]): one for one in events}
    return {place: one["metadata"]["resourceVersion"] for place, one in everything.items()}


def looks(cluster: Cluster, namespace: str, since: int) -> Counter[tuple[str, str]]:
    """How often the operator has looked at each resource."""
    kinds = {api.plural: kind for kind, api in APIS.items() if kind in CUSTOM}
    asked = [event["objectRef"] for event in cluster.audit()[since:] if event["verb"] == "get" and "objectRef" in event]
    own = [one for one in asked if one.get("namespace") == namespace and one["resource"] in kinds]
    return Counter((kinds[one["resource"]], one["name"]) for one in own)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("number", "seconds", "resync"),
    [pytest.param(14, 20, 4, id="few"), pytest.param(100, 180, 30, id="many", marks=pytest.mark.nightly)],
)
def test_nothing_is_written_when_nothing_happens(
    cluster: Cluster, namespace: str, number: int, seconds: float, resync: float
) -> None:
    """Nor does a new process write, which looks at everything; all timers run down several times meanwhile."""
    player, cast, timers = Player(cluster, namespace), casting(number), {"RESYNC_SECONDS": str(resync)}
    assert len(cast) == number
    with operator(cluster, **timers) as first:
        until(first.healthy)
        perform(player, cast)
        time.sleep(2)
        before, since = versions(player), len(cluster.audit())
        with operator(cluster, **timers) as second:
            until(second.healthy)
            time.sleep(seconds)
            until(lambda: min(looks(cluster, namespace, since)[place] for place in cast) >= 4, what="all are looked at")
            assert [*first.complaints(), *second.complaints()] == []
    assert [write for write in cluster.audit()[since:] if write["verb"] in WRITES] == []
    assert versions(player) == before
    for (kind, name), actor in cast.items():
        player.wait_for(kind, name, *actor.rests)
