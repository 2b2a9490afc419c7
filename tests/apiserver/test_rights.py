"""The operator may do just what it does: the chart's grant against the audit logs of all tests that ran before.

A life of all three kinds comes first, so that these tests also hold when they run alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.apiserver.chart import ROOT, Right, granted
from tests.apiserver.operator_bench import (
    RAY_JOB,
    SERVICE_MONITOR,
    Cluster,
    operator,
    sample,
    search,
    until,
)
from tests.apiserver.player import Player
from tests.apiserver.server import AUDIT_LOG, STARTS

from ensemble_operator.children import CHILDREN
from ensemble_operator.names import CHILD, REVISION
from ensemble_operator.world import NAMESPACE_GOES

pytestmark = pytest.mark.apiserver

Event = dict[str, Any]
DISCOVERY = re.compile(r"/api|/apis|/api/v1|/apis/[^/]+/[^/]+")
SERVING = {"autoscaling": {"minReplicas": 1, "maxReplicas": 2}, "monitoring": {"serviceMonitor": True}}


@pytest.fixture(scope="module")
def audited(shared_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    """Everything that the operator has asked of any API server."""
    for definition in (RAY_JOB, SERVICE_MONITOR):
        shared_cluster.define(definition)
    player = Player(shared_cluster, shared_cluster.namespace("rights"))
    with operator(shared_cluster) as one:
        until(one.healthy)
        live(player)
        assert [line for line in one.complaints() if "cannot watch" not in line["message"]] == []
    shared_cluster.sweep(player.namespace)
    for definition in (RAY_JOB, SERVICE_MONITOR):
        shared_cluster.undefine(definition["metadata"]["name"])
    logs = tmp_path_factory.getbasetemp().rglob(AUDIT_LOG)
    return [event for log in logs for event in read(log)]


def read(log: Path) -> Iterator[Event]:
    """A log without what the server refused because it was just starting and knew no rights yet."""
    starts = [line.split() for line in (log.parent / STARTS).read_text().splitlines()]
    times = [(datetime.fromisoformat(began), datetime.fromisoformat(ready)) for began, ready in starts]
    for event in map(json.loads, log.read_text().splitlines()):
        moment = datetime.fromisoformat(event["requestReceivedTimestamp"])
        if decision(event) == "allow" or not any(began <= moment <= ready for began, ready in times):
            yield event


def decision(event: Event) -> str:
    return str(event["annotations"]["authorization.k8s.io/decision"])


def live(player: Player) -> None:
    """From nothing to an ensemble that is served, and back."""
    cluster, namespace = player.cluster, player.namespace
    library = search("digits")["spec"]["library"] | {"deletionPolicy": "Delete"}
    cluster.create("HPOSearch", namespace, search("digits", library=library))
    cluster.create("HPOSearch", namespace, search("rays", engine="rayjob", workers={"replicas": 1}))
    cluster.create("EnsembleSelection", namespace, sample("EnsembleSelection", "digits"))
    served = sample("EnsembleDeployment", "digits")
    served["spec"]["serving"] = SERVING
    cluster.create("EnsembleDeployment", namespace, served)
    player.train("digits")
    player.select("digits")
    player.allocate("digits")
    player.answer("digits")
    player.wait_for("EnsembleDeployment", "digits", "Ready", "+Serving")
    until(
        lambda: {kind for kind, _ in owned(player)} == {kind for kinds in CHILDREN.values() for kind in kinds} - {"Pod"}
    )
    clear(player)
    for kind in ("EnsembleDeployment", "EnsembleSelection", "HPOSearch"):
        cluster.delete(kind, namespace, "digits")
    player.succeed(player.job("delete", "digits"), {}, "0" * 64)
    until(lambda: cluster.get("HPOSearch", namespace, "digits") is None)
    player.collect()
    assert {name for _, name in player.everything() if name.startswith("digits")} == set()


def owned(player: Player) -> dict[tuple[str, str], Event]:
    return {place: one for place, one in player.everything().items() if "ownerReferences" in one["metadata"]}


def clear(player: Player) -> None:
    """What nobody wants is deleted: here copies of everything, made by somebody who left owner and labels in them."""
    before = owned(player)
    for (kind, name), one in before.items():
        if kind != "Job":  # whose copies are no easy thing to make
            player.cluster.create(kind, player.namespace, copied(one, f"{name}-copy"))

    def gone() -> bool:
        assert owned(player).keys() == before.keys(), owned(player).keys() ^ before.keys()
        return True

    until(gone, what="the copies are gone")


def copied(manifest: Event, name: str) -> Event:
    own = {label: value for label, value in manifest["metadata"]["labels"].items() if label not in (CHILD, REVISION)}
    metadata = {"name": name, "labels": own, "ownerReferences": manifest["metadata"]["ownerReferences"]}
    copy = {field: value for field, value in manifest.items() if field != "status"} | {"metadata": metadata}
    if manifest["kind"] == "Service":
        unique = ("clusterIP", "clusterIPs")
        copy["spec"] = {field: value for field, value in manifest["spec"].items() if field not in unique}
    return copy


def asked(event: Event) -> Iterator[Right]:
    """The rights that a request needs; an object that an apply makes is created."""
    where = event["objectRef"]
    resource = "/".join(part for part in (where["resource"], where.get("subresource")) if part)
    made = event["verb"] == "patch" and event["responseStatus"]["code"] == 201
    for verb in (event["verb"], *(["create"] if made else [])):
        yield Right(where.get("apiGroup", ""), resource, verb)


def test_nothing_that_it_asks_is_forbidden(audited: list[Event]) -> None:
    assert [shown(one) for one in audited if decision(one) != "allow"] == []
    refused = [one["responseStatus"].get("message", "") for one in audited if one["responseStatus"]["code"] == 403]
    assert [message for message in refused if NAMESPACE_GOES not in message] == []


def shown(event: Event) -> tuple[Any, ...]:
    return tuple(event[field] for field in ("requestReceivedTimestamp", "verb", "requestURI", "annotations"))


def test_it_asks_for_all_that_it_may_and_for_nothing_else(audited: list[Event]) -> None:
    """Discovery aside, to which everybody has a right."""
    of_resources = [one for one in audited if "objectRef" in one]
    discovery = {one["requestURI"].partition("?")[0] for one in audited if "objectRef" not in one}
    assert {path for path in discovery if not DISCOVERY.fullmatch(path)} == set()
    assert {right for one in of_resources for right in asked(one)} == granted()


def test_the_administrator_guide_tells_all_rights() -> None:
    assert documented() == {(right.resource, right.verb) for right in granted()}


def documented() -> set[tuple[str, str]]:
    """Resource and verb of each line of the guide's table."""
    guide = (ROOT / "docs/administrator-guide.md").read_text()
    table = guide.partition("\n| Resources | Verbs | Why |\n")[2].partition("\n\n")[0]
    rows = [row.split("|")[1:3] for row in table.splitlines()[1:]]
    return {
        (resource, verb.strip())
        for resources, verbs in rows
        for resource in re.findall("`([^`]+)`", resources)
        for verb in verbs.split(",")
    }
