"""Whichever write the operator stops after, what it does next ends where it would have ended."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from tests.support.play import Play, body_of, condition, time

from ensemble_operator import ensembleselection, hposearch
from ensemble_operator.world import Ref

CLAIM = {"persistentVolumeClaim": {"claimName": "libraries"}}
SEARCH: dict[str, Any] = {"library": {"storage": CLAIM}, "dataset": {"builtin": "digits"}, "maxTrialCount": 40}
SELECTION: dict[str, Any] = {
    "sources": [{"hpoSearchName": "digits"}],
    "budgets": [{"name": "small", "parametersMillions": 1.0}],
}
RESULT = {"digest": "d" * 64, "summary": {"budgets": [{"name": "small", "memberCount": 0}]}}


def new_search() -> Play:
    return Play(hposearch.KIND, body_of("HPOSearch", "digits", copy.deepcopy(SEARCH)))


def running_search() -> Play:
    one = new_search()
    one.settle()
    one.report(one.workload(), "train", progress={"note": "x"})
    one.later(60)
    return one


def lost_search() -> Play:
    one = running_search()
    one.workload()["status"] = {"jobDeploymentStatus": "Failed", "endTime": time(one.now)}
    one.settle()
    one.later(60)
    return one


def changed_search() -> Play:
    one = running_search()
    one.change(parallelTrialCount=4)
    return one


def raised_search() -> Play:
    one = running_search()
    one.report(one.workload(), "train", "Succeeded", result={"digest": "d" * 64, "summary": {"models": 3}})
    one.settle()
    one.change(maxTrialCount=80)
    return one


def suspended_search() -> Play:
    one = running_search()
    one.change(suspend=True)
    return one


def resumed_search() -> Play:
    one = suspended_search()
    one.settle()
    one.change(suspend=False)
    return one


def deleted_search() -> Play:
    one = running_search()
    one.body["spec"]["library"]["deletionPolicy"] = "Delete"
    one.body["metadata"] |= {"deletionTimestamp": time(one.now), "finalizers": ["ensemble-operator.io/library"]}
    return one


def source(digest: str) -> dict[Ref, Any]:
    body = body_of("HPOSearch", "digits", SEARCH)
    ready = [condition("Ready", observedGeneration=1)]
    body["status"] = {"conditions": ready, "library": {"models": 3, "digest": digest * 64}}
    return {Ref("HPOSearch", "digits"): body}


def new_selection() -> Play:
    body = body_of("EnsembleSelection", "digits", copy.deepcopy(SELECTION))
    return Play(ensembleselection.KIND, body, others=source("a"))


def grown_selection() -> Play:
    one = new_selection()
    one.settle()
    one.report(one.workload(), "select", "Succeeded", result=RESULT)
    one.settle()
    one.later(60)
    one.others = source("b")
    return one


def changed_selection() -> Play:
    one = grown_selection()
    one.settle()
    one.later(60)
    one.change(keepAtLeast=3)
    return one


SCENES = (
    new_search,
    lost_search,
    changed_search,
    raised_search,
    suspended_search,
    resumed_search,
    deleted_search,
    new_selection,
    grown_selection,
    changed_selection,
)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_every_interruption_ends_where_none_would_have(scene: Callable[[], Play]) -> None:
    whole = scene()
    whole.settle()
    for writes in range(16):
        cut = scene()
        for first in range(3):  # and it may be stopped again and again
            cut.step(max(writes - first, 0))
        cut.settle()
        assert sorted(cut.children) == sorted(whole.children)
        assert cut.body["status"] == whole.body["status"]
