"""A real search under the real engine, killed at every write of its life."""

from __future__ import annotations

import pytest
from tests.handler import lives
from tests.handler.bench import KEY, Bench, Step, search

from ensemble_operator.hposearch import KIND


def stage() -> Bench:
    return lives.stand(KIND, KEY, None, "RayJob")


def begin(bench: Bench) -> None:
    library = {"storage": {"persistentVolumeClaim": {"claimName": "libraries"}}, "deletionPolicy": "Delete"}
    bench.cluster.put(search(library=library))


def become(bench: Bench, **status: str) -> None:
    bench.cluster.change("RayJob", "lab", bench.workload("RayJob")["metadata"]["name"], {"status": status})


def run(bench: Bench) -> None:
    become(bench, jobDeploymentStatus="Running", jobStatus="RUNNING")
    bench.tell("Running", "train", "RayJob", progress={"summary": {"models": 3, "libraryDigest": "a" * 64}})


def lose(bench: Bench) -> None:
    become(bench, jobDeploymentStatus="Failed", reason="AppFailed", endTime="2025-12-31T00:00:00Z")


def succeed(bench: Bench) -> None:
    result = {"digest": "b" * 64, "summary": {"models": 4, "libraryDigest": "b" * 64}}
    bench.tell("Succeeded", "train", "RayJob", result=result)
    become(bench, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")


def ask_for_more(bench: Bench) -> None:
    bench.change(maxTrialCount=60)


LIVES: dict[str, tuple[Step, ...]] = {
    "continued": (begin, run, lose, run, succeed, ask_for_more),
    "suspended": (begin, run, lives.suspend, lives.resume, lives.wait),
    "deleted": (begin, run, lives.delete, Bench.end),
}


def test_the_lives_are_what_they_are_meant_to_be() -> None:
    continued = stage().live(LIVES["continued"])
    assert len(set(lives.made(continued, "RayJob"))) == len(lives.made(continued, "RayJob")) == 3
    assert continued.cluster.objects[KEY]["status"]["library"]["models"] == 4
    assert stage().live(LIVES["deleted"]).cluster.objects == {}
    suspended = stage().live(LIVES["suspended"])
    assert [name[-2:] for _, name in suspended.cluster.names("RayJob")] == ["-2"]


@pytest.mark.parametrize("life", LIVES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_any_write(life: str, when: str) -> None:
    for _, found, expected, where in lives.killed(stage, LIVES[life], when):
        assert found == expected, where
