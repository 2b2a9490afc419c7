from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from play import reasons_of
from stage import DIGESTS, Stage

from ensemble_operator.rollout import Seen, Step, current, next_step, seen
from ensemble_operator.world import Manifest, Ref


def one(answering: int = 2, proven: bool = True, created: str = "1", wanted: int = 2) -> Seen:
    return Seen(wanted, answering, answering >= wanted, proven or answering > 0, False, created)


NEW, PARTLY, BROKEN, DOWN = one(0, False), one(1, False), one(0, False), one(0, True)


@pytest.mark.parametrize(
    ("strategy", "target", "there", "selected", "expected"),
    [
        # the first revision
        ("BlueGreen", None, {}, None, ("", None)),
        ("BlueGreen", "b", {}, None, ("b", "b")),
        ("Recreate", "b", {}, None, ("b", "b")),
        ("BlueGreen", "b", {"b": NEW}, "b", ("b", "b")),
        # another one
        ("BlueGreen", "b", {"a": one()}, "a", ("ab", "a")),
        ("BlueGreen", "b", {"a": one(), "b": NEW}, "a", ("ab", "a")),
        ("BlueGreen", "b", {"a": one(), "b": PARTLY}, "a", ("ab", "a")),
        ("BlueGreen", "b", {"a": one(), "b": one()}, "a", ("ab", "b")),
        ("BlueGreen", "b", {"a": one(), "b": one()}, "b", ("b", "b")),
        ("Recreate", "b", {"a": one()}, "a", ("", "a")),
        ("Recreate", "b", {}, "b", ("b", "b")),
        # the old one breaks down meanwhile
        ("BlueGreen", "b", {"a": DOWN, "b": NEW}, "a", ("ab", "a")),
        ("BlueGreen", "b", {"a": DOWN, "b": PARTLY}, "a", ("ab", "b")),
        # back again, or on to a third
        ("BlueGreen", "a", {"a": one(), "b": NEW}, "a", ("a", "a")),
        ("BlueGreen", "c", {"a": one(), "b": NEW}, "a", ("a", "a")),
        ("BlueGreen", "c", {"a": one(), "b": one()}, "b", ("b", "b")),
        # what never answered is not preserved
        ("BlueGreen", "b", {"a": BROKEN}, "a", ("b", "b")),
        ("BlueGreen", None, {"a": BROKEN}, "a", ("", "a")),
        # it is not known what comes next
        ("BlueGreen", None, {"a": one()}, "a", ("a", "a")),
        ("BlueGreen", None, {"a": one(), "b": NEW}, "a", ("a", "a")),
        ("Recreate", None, {"a": one()}, "a", ("a", "a")),
        # somebody deleted the Service, or turned it elsewhere
        ("BlueGreen", "b", {"a": one(), "b": NEW}, None, ("ab", "a")),
        ("BlueGreen", "b", {"a": one(), "b": one(1)}, None, ("ab", "a")),
        ("BlueGreen", "b", {"a": one(), "b": one(created="2")}, None, ("b", "b")),
        ("BlueGreen", "b", {"a": one(), "b": NEW}, "z", ("ab", "a")),
        # somebody deleted the Deployment
        ("BlueGreen", "a", {}, "a", ("a", "a")),
    ],
)
def test_next_step(strategy: Any, target: Any, there: Any, selected: Any, expected: tuple[str, str]) -> None:
    assert next_step(strategy, target, there, selected) == Step(frozenset(expected[0]), expected[1])


def test_devices_are_given_to_the_search_for_an_allocation_only_by_recreate() -> None:
    there = {"a": one()}
    assert next_step("Recreate", None, there, "a", devices_needed=True).revisions == frozenset()
    assert next_step("BlueGreen", None, there, "a", devices_needed=True).revisions == {"a"}


def test_current_prefers_what_answers() -> None:
    assert current({"a": DOWN, "b": one(1)}, None) == "b"
    assert current({"a": NEW}, "a") is None


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({}, (0, False, False, False)),
        ({"observedGeneration": 2, "availableReplicas": 2}, (2, True, True, False)),
        ({"observedGeneration": 1, "availableReplicas": 2}, (2, False, True, False)),
        ({"observedGeneration": 2, "availableReplicas": 1}, (1, False, True, False)),
        ({"conditions": [{"type": "Progressing", "reason": "NewReplicaSetAvailable"}]}, (0, False, True, False)),
        ({"conditions": [{"type": "Progressing", "reason": "ProgressDeadlineExceeded"}]}, (0, False, False, True)),
    ],
)
def test_seen(status: Manifest, expected: tuple[int, bool, bool, bool]) -> None:
    deployment = {"metadata": {"generation": 2}, "spec": {"replicas": 2}, "status": status}
    found = seen(deployment)
    assert (found.answering, found.complete, found.proven, found.expired) == expected


# --- whole rollouts, in any order of events


class Rollouts(RuleBasedStateMachine):
    """Documents change, Jobs and pods come to something or not, people delete things, and the operator looks at it."""

    @initialize()
    def begin(self) -> None:
        self.stage = Stage.set()

    @rule(port=st.sampled_from([8000, 9000, 9100]), segment=st.sampled_from([64, 128]), replicas=st.integers(1, 3))
    def edit(self, port: int, segment: int, replicas: int) -> None:
        self.stage.change(serving={"httpPort": port, "segmentSize": segment, "replicas": replicas})

    @rule(low=st.integers(1, 2), port=st.sampled_from([8000, 9000]))
    def autoscale(self, low: int, port: int) -> None:
        self.stage.change(serving={"httpPort": port, "autoscaling": {"minReplicas": low, "maxReplicas": 3}})

    @rule(strategy=st.sampled_from(["BlueGreen", "BlueGreen", "Recreate"]))
    def choose(self, strategy: str) -> None:
        self.stage.change(rollout={"strategy": strategy})

    @rule(digest=st.sampled_from(DIGESTS[:3]))
    def select(self, digest: str) -> None:
        self.stage.select(digest)

    @rule(suspend=st.sampled_from([True, False, False]))
    def suspend(self, suspend: bool) -> None:
        self.stage.change(suspend=suspend)

    @precondition(lambda self: self.stage.jobs())
    @rule(good=st.sampled_from([True, True, False]))
    def end_job(self, good: bool) -> None:
        self.stage.optimised() if good else self.stage.failed()

    @precondition(lambda self: self.stage.jobs())
    @rule()
    def starve_job(self) -> None:
        self.stage.unschedulable(self.stage.job())

    @precondition(lambda self: self.stage.deployments())
    @rule(which=st.integers(0, 1), answering=st.integers(0, 3))
    def play(self, which: int, answering: int) -> None:
        deployments = list(self.stage.deployments().values())
        deployment = deployments[which % len(deployments)]
        self.stage.play_deployment(deployment, min(answering, deployment["spec"]["replicas"]))

    @precondition(lambda self: self.stage.deployments())
    @rule(which=st.integers(0, 1))
    def starve(self, which: int) -> None:
        deployments = list(self.stage.deployments().values())
        deployment = deployments[which % len(deployments)]
        self.stage.play_deployment(deployment, 0, "ProgressDeadlineExceeded")
        self.stage.unschedulable(deployment)

    @rule(kind=st.sampled_from(["Deployment", "Service", "ConfigMap", "Job", "Role"]), which=st.integers(0, 5))
    def delete(self, kind: str, which: int) -> None:
        names = self.stage.refs(kind)
        if names:
            del self.stage.children[Ref(kind, names[which % len(names)])]

    @rule(seconds=st.sampled_from([1, 100]))
    def wait(self, seconds: int) -> None:
        self.stage.later(seconds)

    @rule(times=st.integers(1, 3))
    def operate(self, times: int) -> None:
        for _ in range(times):
            self._operate()

    def _operate(self) -> None:
        stage = self.stage
        answered = self._answers(stage.selected())
        known, jobs = set(stage.remembered().values()), set(stage.refs("Job"))
        stage.step()
        spec = stage.body["spec"]
        if answered and spec.get("rollout", {}).get("strategy") != "Recreate" and not spec.get("suspend"):
            assert self._answers(stage.selected()), "requests go nowhere"
        for job in stage.jobs():
            if job["metadata"]["name"] not in jobs:
                basis = job["metadata"]["annotations"]["ensemble-operator.io/basis"]
                assert basis not in known, "a Job for what is known"

    def _answers(self, revision: str | None) -> bool:
        deployment = self.stage.deployments().get(revision or "")
        return deployment is not None and seen(deployment).answering > 0

    @invariant()
    def never_more_than_two_revisions(self) -> None:
        if hasattr(self, "stage"):
            assert len(self.stage.deployments()) <= 2
            assert len(self.stage.jobs()) <= 1

    def teardown(self) -> None:
        """When everything goes well from now on, the document is served in the end, and nothing is written after."""
        stage = self.stage
        stage.change(suspend=False)
        for place in [place for place in stage.children if place.kind in ("Job", "Pod")]:
            del stage.children[place]
        for _ in range(12):
            stage.later(400)
            self._operate()
            if stage.jobs():
                stage.optimised()
            for deployment in stage.deployments().values():
                stage.play_deployment(deployment)
        decision = stage.steps(2)
        (revision,) = stage.deployments()
        assert stage.selected() == revision
        assert reasons_of(decision) == ("+Serving", "-Serving", "-AsExpected")
        assert decision.status["selectionDigest"] == stage.digest()
        assert len(stage.remembered()) <= 2


Rollouts.TestCase.settings = settings(max_examples=25, stateful_step_count=25, suppress_health_check=list(HealthCheck))
TestRollouts = Rollouts.TestCase


def test_copies_without_their_claim_do_not_ask_for_devices() -> None:
    stage = Stage.set()
    stage.steps()
    stage.optimised()
    stage.steps()
    (deployment,) = stage.deployments().values()
    stage.unschedulable(deployment, since=61, words='persistentvolumeclaim "libraries" not found. not found')
    decision = stage.steps()
    assert reasons_of(decision) == ("-ClaimNotReady", "-ClaimNotReady", "+ClaimNotReady")
    assert "`kubectl describe pvc libraries`" in decision.conditions[2].message


def test_four_gpus_for_one_revision_at_a_time() -> None:
    """On a node whose GPUs one pod holds, a newer selection waits; `Recreate` lets it have them."""
    stage = Stage.set(serving={"replicas": 1})
    old = stage.serve()
    stage.select(DIGESTS[1])
    stage.steps()
    stage.unschedulable(stage.job())
    stage.later(61)
    assert reasons_of(stage.steps()) == ("+Serving", "-InsufficientDevices", "+InsufficientDevices")
    assert list(stage.deployments()) == [old]

    stage.change(rollout={"strategy": "Recreate"})
    stage.steps()
    assert stage.deployments() == {}
    stage.pod(stage.job())
    stage.optimised()
    stage.steps()
    stage.play_deployment(stage.the_deployment())
    assert reasons_of(stage.steps()) == ("+Serving", "-Serving", "-AsExpected")
    assert list(stage.deployments()) != [old]
