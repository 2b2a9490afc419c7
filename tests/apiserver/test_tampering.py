"""Reports are written by pods, and so by anybody: whatever they say or whoever removes them, the truth comes out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from tests.apiserver.operator_bench import Cluster, Operator, jobs_made, search, until
from tests.apiserver.player import BEGUN, LIBRARY, TRAINED, Player

from ensemble_operator.identity import report_name

pytestmark = pytest.mark.apiserver

Report = dict[str, Any]
AT_MOST = 60  # requests about a search for one change of its report: some looks, each with a list of each kind


def claims(**identity: Any) -> Callable[[Report], str]:
    """Success, in the name of somebody else."""
    won = {"state": "Succeeded", "result": {"digest": LIBRARY, "summary": TRAINED}}
    return lambda report: json.dumps(report | won | identity)


def tells(**summary: Any) -> Callable[[Report], str]:
    """Progress that cannot be."""
    return lambda report: json.dumps(report | {"progress": {"summary": BEGUN | summary}})


def says(text: str) -> Callable[[Report], str]:
    return lambda report: text


LIES: Mapping[str, Callable[[Report], str]] = {
    "another-owner": claims(ownerUid="00000000-0000-4000-8000-000000000000"),
    "another-specification": claims(specHash="0" * 64),
    "another-attempt": claims(attempt=2),
    "another-verb": claims(verb="select"),
    "another-schema": claims(schemaVersion=2),
    "no-json": says("{"),
    "no-object": says("[1]"),
    "nothing": says(""),
    "deep": says("[" * 100_000),
    "long": lambda report: json.dumps(report | {"progress": {"note": "x" * (900 << 10), "summary": BEGUN}}),
    "negative": tells(trials={"succeeded": -1}),
    "not-a-number": tells(best={"modelId": "digits-0", "value": float("nan")}),
    "text": tells(trials={"succeeded": "many"}),
    "huge": tells(models=10**30),
    "control": tells(libraryDigest="\x00" * 64),
}


def test_lies_are_not_believed(cluster: Cluster, namespace: str, running: Operator) -> None:
    """The search goes on as if nothing had been reported, until the truth is."""
    player, names = Player(cluster, namespace), [*LIES, "deleted"]
    for name in names:
        cluster.create("HPOSearch", namespace, search(name))
    jobs = {name: player.job("train", name) for name in names}
    for job in jobs.values():
        player.begin(job, summary=BEGUN)
    until(lambda: all(status(player, name).get("progress") == "3/24" for name in names), what="all have begun")
    since = len(cluster.audit())
    for name, lie in LIES.items():
        player.tell(jobs[name], lie(player.truth(jobs[name], "Running")))
    cluster.delete("ConfigMap", namespace, report_name(jobs["deleted"]["metadata"]["name"]))
    until(lambda: not any("progress" in status(player, name) for name in names), what="nobody is believed")
    assert {player.told("HPOSearch", name, "Progressing") for name in names} == {"+Training"}
    until(lambda: at_rest(cluster), what="nothing more is asked")
    asked = [one for one in cluster.audit()[since:] if one.get("objectRef", {}).get("namespace") == namespace]
    assert len(asked) < AT_MOST * len(names)
    for name, job in jobs.items():
        player.succeed(job, TRAINED, LIBRARY)
        player.wait_for("HPOSearch", name, "Ready", "+Trained")
    assert sorted(jobs_made(cluster, namespace).values()) == [1] * len(names)
    assert running.complaints() == []


def test_success_that_tells_nothing_is_told(cluster: Cluster, namespace: str, running: Operator) -> None:
    """The Job has ended, but nobody knows with what; deleted by hand, it is tried again."""
    player = Player(cluster, namespace)
    cluster.create("HPOSearch", namespace, search("digits"))
    job = player.job("train", "digits")
    player.succeed(job, {"trials": {"succeeded": "many"}}, LIBRARY)
    player.wait_for("HPOSearch", "digits", "Degraded", "+ReportMissing")
    player.tell(job, "")
    cluster.delete("Job", namespace, job["metadata"]["name"])
    player.train("digits")
    player.wait_for("HPOSearch", "digits", "Ready", "+Trained")


def status(player: Player, name: str) -> dict[str, Any]:
    found = player.cluster.get("HPOSearch", player.namespace, name) or {}
    return dict(found.get("status", {}))


def at_rest(cluster: Cluster) -> bool:
    """Whether a second passes without a request but those of timers that tests hurry."""
    before = len(of_resources(cluster))
    time.sleep(1)
    return len(of_resources(cluster)) == before


def of_resources(cluster: Cluster) -> list[dict[str, Any]]:
    return [one for one in cluster.audit() if "objectRef" in one and one["verb"] != "watch"]
