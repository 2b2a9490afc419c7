"""A real search under the real engine, killed at every write of its life."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from tests.handler.bench import KEY, Bench, search
from tests.handler.memory import CrashError, Fault, Write, nothing

from ensemble_operator import hposearch
from ensemble_operator.identity import report_name, spec_name
from ensemble_operator.names import ATTEMPT, text_hash

Step = Callable[[Bench], None]
TIMES = ("resourceVersion", "uid", "lastTransitionTime", "changedTime")


def begin(bench: Bench) -> None:
    library = {"storage": {"persistentVolumeClaim": {"claimName": "libraries"}}, "deletionPolicy": "Delete"}
    bench.cluster.put(search(library=library))


def newest(bench: Bench, kind: str = "RayJob") -> Any:
    """The workload that has not ended."""
    found = [one for place, one in bench.cluster.objects.items() if place[0] == kind and not ended(one)]
    (one,) = found
    return one


def ended(workload: Any) -> bool:
    status = workload.get("status", {})
    return status.get("jobDeploymentStatus") in ("Complete", "Failed") or "conditions" in status


def tell(bench: Bench, state: str, verb: str = "train", kind: str = "RayJob", **content: Any) -> None:
    workload = newest(bench, kind)
    child = workload["metadata"]["name"]
    text = bench.cluster.objects["ConfigMap", "lab", spec_name(child)]["data"]["spec.yaml"]
    report = {
        "schemaVersion": 1,
        "verb": verb,
        "specHash": text_hash(text),
        "attempt": int(workload["metadata"]["annotations"][ATTEMPT]),
        "ownerUid": bench.cluster.objects[KEY]["metadata"]["uid"],
        "state": state,
        **content,
    }
    bench.cluster.change("ConfigMap", "lab", report_name(child), {"data": {"report.json": json.dumps(report)}})


def become(bench: Bench, **status: str) -> None:
    bench.cluster.change("RayJob", "lab", newest(bench)["metadata"]["name"], {"status": status})


def run(bench: Bench) -> None:
    become(bench, jobDeploymentStatus="Running", jobStatus="RUNNING")
    tell(bench, "Running", progress={"summary": {"models": 3, "libraryDigest": "a" * 64}})


def lose(bench: Bench) -> None:
    become(bench, jobDeploymentStatus="Failed", reason="AppFailed", endTime="2025-12-31T00:00:00Z")


def succeed(bench: Bench) -> None:
    tell(bench, "Succeeded", result={"digest": "b" * 64, "summary": {"models": 4, "libraryDigest": "b" * 64}})
    become(bench, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")


def ask_for_more(bench: Bench) -> None:
    bench.cluster.change(*KEY, {"spec": {"maxTrialCount": 60}})


def suspend(bench: Bench) -> None:
    bench.cluster.change(*KEY, {"spec": {"suspend": True}})


def resume(bench: Bench) -> None:
    bench.cluster.change(*KEY, {"spec": {"suspend": False}})


def delete(bench: Bench) -> None:
    bench.cluster.remove(*KEY)


def be_deleted(bench: Bench) -> None:
    job = newest(bench, "Job")["metadata"]["name"]
    bench.cluster.change("Job", "lab", job, {"status": {"conditions": [{"type": "Complete", "status": "True"}]}})


LIVES: dict[str, tuple[Step, ...]] = {
    "continued": (begin, run, lose, run, succeed, ask_for_more),
    "suspended": (begin, run, suspend, resume),
    "deleted": (begin, run, delete, be_deleted),
}


def live(life: str, fault: Fault = nothing) -> Bench:
    """Go through a life; whenever the operator dies a new one takes over."""
    bench = Bench(kind=hposearch.KIND, capabilities=frozenset({"RayJob"}))  # type: ignore[arg-type]
    bench.cluster.fault = fault
    for step in LIVES[life]:
        step(bench)
        try:
            bench.settle()
        except CrashError:
            bench.cluster.fault = nothing
            bench.restart()
            bench.settle()
    return bench


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in TIMES}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def outcome(bench: Bench) -> Any:
    return timeless(dict(bench.cluster.objects)), Counter(bench.cluster.made)


@cache
def whole(life: str) -> tuple[Any, int]:
    """What comes of a life without interruption, and after how many writes."""
    bench = live(life)
    return outcome(bench), len(bench.cluster.writes)


def test_the_lives_are_what_they_are_meant_to_be() -> None:
    (objects, made), _ = whole("continued")
    assert len([place for place in made if place[0] == "RayJob"]) == 3
    assert max(made.values()) == 1
    assert objects[KEY]["status"]["library"]["models"] == 4
    assert whole("deleted")[0][0] == {}
    rayjobs = [place for place in whole("suspended")[0][0] if place[0] == "RayJob"]
    assert [place[2][-2:] for place in rayjobs] == ["-2"]


@pytest.mark.parametrize("life", LIVES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_any_write(life: str, when: str) -> None:
    expected, writes = whole(life)
    for index in range(writes):

        def crash(at: int, write: Write, moment: str, here: int = index) -> None:
            if (at, moment) == (here, when):
                raise CrashError

        found = outcome(live(life, crash))
        assert found == expected, f"killed {when} write {index}"
