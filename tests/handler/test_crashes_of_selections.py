"""A real selection under the real engine, killed at every write of its life."""

from __future__ import annotations

from typing import Any

import pytest
from tests.handler import lives
from tests.handler.bench import KEY, Bench, Step, resource, search

from ensemble_operator.ensembleselection import KIND
from ensemble_operator.queue import Key

SELECTION = Key("EnsembleSelection", "lab", "best")
SMALL = {"name": "small", "parametersMillions": 1.0}
LARGE = {"name": "large", "inferenceTimeSeconds": 0.1}
MEMBER = {"library": 0, "modelId": "digits-0003", "weight": 1.0}


def stage() -> Bench:
    """A search that has found nothing yet."""
    bench = lives.stand(KIND, SELECTION)
    bench.cluster.put(search())
    return bench


def begin(bench: Bench, **spec: Any) -> None:
    bench.cluster.put(resource(SELECTION, {"sources": [{"hpoSearchName": "digits"}], "budgets": [SMALL], **spec}))


def begin_once(bench: Bench) -> None:
    begin(bench, updatePolicy={"mode": "Once"})


def begin_polled(bench: Bench) -> None:
    begin(bench, sources=[{"storage": {"persistentVolumeClaim": {"claimName": "imported"}}}])


def poll(digest: str) -> Step:
    """The poll has told this of the storage."""

    def tell(bench: Bench) -> None:
        bench.tell("Succeeded", "poll", result={"summary": {"sources": [{"digest": digest * 64}]}})
        bench.end()

    return tell


def expire(bench: Bench) -> None:
    """Kubernetes deletes the poll's Job in its time."""
    for kind, name in bench.cluster.names("Job"):
        if "-poll-" in name:
            bench.cluster.remove(kind, "lab", name)


def library(digest: str, ready: bool = True) -> Step:
    """The search's library has grown to this."""

    def grow(bench: Bench) -> None:
        condition = {"type": "Ready", "status": str(ready), "observedGeneration": 1}
        changed = {"changedTime": bench.now.isoformat()}
        found = {"models": 3, "digest": digest * 64} | changed
        bench.cluster.change(*KEY, {"status": {"library": found, "conditions": [condition]}})

    return grow


def run(bench: Bench) -> None:
    bench.tell("Running", "select", progress={"stage": "select", "done": 1, "total": 2})


def succeed(digest: str) -> Step:
    def tell(bench: Bench) -> None:
        budgets = [
            {"name": one["name"], "members": [MEMBER], "memberCount": 1}
            for one in bench.cluster.objects[SELECTION]["spec"]["budgets"]
        ]
        summary = {"budgets": budgets, "sources": [{"digest": "a" * 64}]}
        bench.tell("Succeeded", "select", result={"digest": digest * 64, "summary": summary})
        bench.end()

    return tell


def fail(bench: Bench) -> None:
    bench.tell("Failed", "select", error={"message": "no"})
    bench.end("Failed")


def ask_for_more(bench: Bench) -> None:
    bench.change(budgets=[SMALL, LARGE])


def ask_for_less(bench: Bench) -> None:
    bench.change(budgets=[SMALL])


FIRST = (begin, library("a"), run, succeed("1"))
LIVES: dict[str, tuple[Step, ...]] = {
    "whole": (
        *FIRST,
        *(library("b", ready=False), library("c"), run, succeed("2")),
        *(ask_for_more, run, succeed("3")),
        *(lives.suspend, lives.resume, lives.delete),
    ),
    "grown": (*FIRST, library("b", ready=False), lives.wait, run, succeed("2")),
    "grown while it runs": (begin, library("a"), run, library("b"), succeed("1"), succeed("2")),
    "changed while it runs": (begin, library("a"), run, ask_for_more, run, succeed("1")),
    "changed back": (*FIRST, ask_for_more, succeed("2"), ask_for_less),
    "once": (begin_once, library("a"), succeed("1"), library("b")),
    "suspended": (begin, library("a"), run, lives.suspend, lives.resume, lives.wait, run, succeed("1")),
    "polled": (begin_polled, run, succeed("1"), poll("a"), expire, poll("b"), run, succeed("2"), poll("a")),
    "tried again": (begin, library("a"), run, fail, lives.lose, lives.wait, succeed("1")),
}
# How many Jobs there are to be, each with its own name.
RUNS = {
    "whole": 3,
    "grown": 2,
    "grown while it runs": 2,
    "changed while it runs": 2,
    "changed back": 2,
    "once": 1,
    "suspended": 2,
    "polled": 5,  # two selections, three polls of which two have the same name
    "tried again": 2,
}
BEYOND = ("whole",)  # lives after which there is no selection


@pytest.mark.parametrize("life", LIVES)
def test_the_lives_are_what_they_are_meant_to_be(life: str) -> None:
    bench = stage().live(LIVES[life])
    jobs = lives.made(bench, "Job")
    assert len(jobs) == RUNS[life]
    selecting = [job for job in jobs if "-poll-" not in job]
    assert len(set(selecting)) == len(selecting)
    assert lives.strangers(bench) == []
    if life in BEYOND:
        assert set(bench.cluster.objects) == {KEY}
    else:
        assert bench.condition("Ready")["status"] == "True"
        assert bench.condition("Progressing")["status"] == "False"


@pytest.mark.parametrize("life", LIVES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_any_write(life: str, when: str) -> None:
    for _, found, expected, where in lives.killed(stage, LIVES[life], when):
        assert found == expected, where


@pytest.mark.parametrize("life", LIVES)
def test_killed_after_every_write(life: str) -> None:
    bench, whole = lives.killed_all_the_time(stage, LIVES[life]), stage().live(LIVES[life])
    assert lives.timeless(bench.cluster.objects) == lives.timeless(whole.cluster.objects)
    assert lives.made(bench, "Job") == lives.made(whole, "Job")


@pytest.mark.parametrize("life", LIVES)
def test_deleted_at_any_write(life: str) -> None:
    for bench, where in lives.deleted_at_any_write(stage, LIVES[life]):
        assert set(bench.cluster.objects) == {KEY}, where
