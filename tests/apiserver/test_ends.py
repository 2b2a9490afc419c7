"""How resources end: by hand, with their library, or with their namespace."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from tests.apiserver.operator_bench import CUSTOM, KINDS, Cluster, Operator, jobs_made, sample, search, until
from tests.apiserver.player import LIBRARY, TRAINED, Player

pytestmark = pytest.mark.apiserver

AT_MOST = 10  # times that the same is tried within some seconds
DELETES = {"library": search("digits")["spec"]["library"] | {"deletionPolicy": "Delete"}}


def test_a_job_deleted_by_hand_is_tried_again(cluster: Cluster, namespace: str, running: Operator) -> None:
    """Once more for each time, under the next attempt's name, if it had begun."""
    player = Player(cluster, namespace)
    cluster.create("HPOSearch", namespace, search("digits"))
    first = player.job("train", "digits")["metadata"]["name"]
    for attempt in (first, f"{first}-2"):
        job = player.job("train", "digits")
        assert job["metadata"]["name"] == attempt
        player.begin(job)
        player.wait_for("HPOSearch", "digits", "Progressing", "+Training")
        cluster.delete("Job", namespace, attempt)
        player.collect()
    player.train("digits")
    player.wait_for("HPOSearch", "digits", "Ready", "+Trained")
    names = [f"{namespace}/{first}", f"{namespace}/{first}-2", f"{namespace}/{first}-3"]
    assert jobs_made(cluster, namespace) == Counter(names)


def test_a_search_goes_with_its_library(cluster: Cluster, namespace: str, running: Operator) -> None:
    """From apply to gone: not while a selection needs the library."""
    player = Player(cluster, namespace)
    cluster.create("HPOSearch", namespace, search("digits", **DELETES))
    cluster.create("EnsembleSelection", namespace, sample("EnsembleSelection", "digits"))
    job = player.job("train", "digits")
    player.begin(job)
    player.succeed(job, TRAINED, LIBRARY)
    player.begin(player.job("select", "digits"))
    cluster.delete("HPOSearch", namespace, "digits")
    player.wait_for("HPOSearch", "digits", "Degraded", "+LibraryInUse")
    cluster.delete("EnsembleSelection", namespace, "digits")
    player.collect()
    deletion = player.job("delete", "digits")
    player.begin(deletion)
    player.wait_for("HPOSearch", "digits", "Progressing", "+DeletingLibrary")
    player.succeed(deletion, {}, "0" * 64)
    until(lambda: cluster.get("HPOSearch", namespace, "digits") is None, what="the search is gone")
    player.collect()
    assert player.everything().keys() == set()
    assert sorted(jobs_made(cluster, namespace).values()) == [1, 1, 1]
    assert running.complaints() == []


def test_a_namespace_goes_in_the_midst_of_it(cluster: Cluster, namespace: str, running: Operator) -> None:
    """Nothing can be made there any more: that is tried ever more seldom, and what goes is forgotten."""
    player = Player(cluster, namespace)
    cluster.create("HPOSearch", namespace, search("kept"))
    cluster.create("HPOSearch", namespace, search("digits", **DELETES))
    cluster.create("EnsembleSelection", namespace, sample("EnsembleSelection", "digits"))
    cluster.create("EnsembleDeployment", namespace, sample("EnsembleDeployment", "digits"))
    for name in ("kept", "digits"):
        player.begin(player.job("train", name))
        player.wait_for("HPOSearch", name, "Progressing", "+Training")
    cluster.request("DELETE", f"/api/v1/namespaces/{namespace}")
    for kind in (*KINDS, "Pod"):
        cluster.empty(kind, namespace)
    player.wait_for("HPOSearch", "kept", "Degraded", "+ApplyFailed")
    time.sleep(5)
    for kind in CUSTOM:
        cluster.empty(kind, namespace)
    until(lambda: not any(cluster.list(kind, namespace) for kind in CUSTOM), what="the resources are gone")
    until(lambda: f'namespace="{namespace}"' not in running.metrics(), what="they are forgotten")
    refused = Counter(write for write in cluster.writes() if write[2].startswith(f"{namespace}/") and write[3] == 403)
    assert max(refused.values()) <= AT_MOST, refused
    assert len(running.complaints()) <= 2 * AT_MOST  # about two searches
    asked = len(cluster.audit())
    time.sleep(3)
    assert [one for one in cluster.audit()[asked:] if one.get("objectRef", {}).get("namespace") == namespace] == []
    assert running.process.poll() is None
