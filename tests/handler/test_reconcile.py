"""One look at a resource: what is written, what is left alone, and what is told."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.handler import lives
from tests.handler.bench import KEY, Bench, resource, search
from tests.handler.fake import config_map, decide, library, role, verdicts
from tests.handler.memory import Write, nothing
from tests.support.stage import SELECTION, SPEC

from ensemble_core.api.hposearch import HPOSearchStatus
from ensemble_operator import ensembledeployment, reasons
from ensemble_operator.cluster import ApiError, MissingError, RefusedError, UnavailableError
from ensemble_operator.names import LIBRARY_FINALIZER, MANAGED_BY, owner_of
from ensemble_operator.queue import Key, RetryError
from ensemble_operator.world import Decision, Manifest, Ref, Verdict, World

CHILDREN = [
    ("ConfigMap", "digits-4-report"),
    ("ConfigMap", "digits-4-spec"),
    ("Job", "digits-4"),
    ("Role", "digits-4"),
    ("ServiceAccount", "digits-4"),
]


def children(bench: Bench) -> list[tuple[str, str]]:
    return bench.cluster.names("ConfigMap", "Job", "Role", "ServiceAccount")


def finish(bench: Bench) -> None:
    bench.cluster.change("Job", "lab", "digits-4", {"status": {"succeeded": 1}})


def test_makes_the_desired_objects_and_tells(bench: Bench) -> None:
    bench.look()
    assert children(bench) == CHILDREN
    assert (bench.condition("Ready")["status"], bench.condition("Ready")["reason"]) == ("False", "Training")
    owner = bench.cluster.objects["Job", "lab", "digits-4"]["metadata"]["ownerReferences"][0]
    assert owner["uid"] == bench.cluster.objects[KEY]["metadata"]["uid"]


def test_second_look_writes_nothing(bench: Bench) -> None:
    bench.look()
    before = len(bench.cluster.writes)
    bench.look()
    assert bench.cluster.writes[before:] == []


def test_status_is_of_the_api(bench: Bench) -> None:
    bench.look()
    finish(bench)
    bench.look()
    status = HPOSearchStatus.model_validate(bench.cluster.objects[KEY]["status"])
    assert status.trials == 4
    assert status.observed_generation == 1


def test_done_is_concluded_from_the_job(bench: Bench) -> None:
    bench.look()
    finish(bench)
    bench.look()
    assert bench.condition("Ready")["status"] == "True"
    assert bench.condition("Progressing")["status"] == "False"


def test_superfluous_objects_are_deleted_workloads_first(bench: Bench) -> None:
    bench.look()
    bench.cluster.change(*KEY, {"spec": {"maxTrialCount": 5}})
    bench.look()
    assert children(bench) == [(kind, name.replace("4", "5")) for kind, name in CHILDREN]
    deleted = [write for write in bench.cluster.writes if write.verb == "delete"]
    assert deleted[0] == Write("delete", "Job", "digits-4")
    assert len(deleted) == len(CHILDREN)


def test_what_is_kept_stays(bench: Bench) -> None:
    bench.look()
    bench.kind.decision = lambda world: Decision((), verdicts(True, "Done"), keep=frozenset({Ref("Job", "digits-4")}))
    bench.look()
    assert children(bench) == [("Job", "digits-4")]


def test_suspend_takes_the_job_alone_away(bench: Bench) -> None:
    bench.look()
    bench.cluster.change(*KEY, {"spec": {"suspend": True}})
    bench.look()
    assert children(bench) == [one for one in CHILDREN if one[0] != "Job"]


def test_deleted_child_comes_back(bench: Bench) -> None:
    bench.look()
    bench.cluster.remove("Role", "lab", "digits-4")
    bench.look()
    assert children(bench) == CHILDREN


@pytest.mark.parametrize(
    "patch",
    [{"rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]}, {"rules": None}],
    ids=["widened", "emptied"],
)
def test_what_others_change_is_reverted(bench: Bench, patch: dict[str, Any]) -> None:
    bench.look()
    desired = bench.cluster.objects["Role", "lab", "digits-4"]["rules"]
    bench.cluster.change("Role", "lab", "digits-4", patch)
    bench.look()
    assert bench.cluster.objects["Role", "lab", "digits-4"]["rules"] == desired


def test_what_others_add_stays_and_costs_no_write(bench: Bench) -> None:
    bench.look()
    bench.cluster.change("ConfigMap", "lab", "digits-4-report", {"data": {"report.json": "{}"}})
    bench.cluster.change("ServiceAccount", "lab", "digits-4", {"imagePullSecrets": [{"name": "registry"}]})
    before = len(bench.cluster.writes)
    bench.look()
    assert bench.cluster.writes[before:] == []
    assert bench.cluster.objects["ConfigMap", "lab", "digits-4-report"]["data"] == {"report.json": "{}"}


def test_a_job_is_never_touched_again(bench: Bench) -> None:
    """Kueue suspends it and writes node selectors, and the next version of the operator would make it otherwise."""
    bench.look()
    bench.cluster.change("Job", "lab", "digits-4", {"spec": {"suspend": True, "backoffLimit": 9}})
    before = len(bench.cluster.writes)
    bench.look()
    assert bench.cluster.writes[before:] == []
    assert bench.cluster.objects["Job", "lab", "digits-4"]["spec"]["suspend"] is True


def test_a_field_that_is_desired_no_more_goes(bench: Bench) -> None:
    def with_data(data: dict[str, str]) -> None:
        bench.kind.decision = lambda world: Decision(
            (config_map(owner_of(world.resource, world.body), "settings", data),), verdicts(True, "Done")
        )
        bench.look()

    with_data({"a": "1", "b": "2"})
    with_data({"a": "1"})
    assert bench.cluster.objects["ConfigMap", "lab", "settings"]["data"] == {"a": "1"}


def test_foreign_objects_stay(bench: Bench) -> None:
    """Labels alone do not make an object ours."""
    bench.look()
    ours = bench.cluster.objects["ConfigMap", "lab", "digits-4-spec"]["metadata"]["labels"]
    foreign = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "1"}}
    bench.cluster.put(foreign | {"metadata": {"name": "other", "namespace": "lab", "labels": ours}})
    bench.cluster.put(foreign | {"metadata": {"name": "another", "namespace": "lab"}})
    before = len(bench.cluster.writes)
    bench.look()
    assert bench.cluster.writes[before:] == []


def test_taken_name_is_told_and_nothing_is_touched(bench: Bench) -> None:
    taken = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "digits-4", "namespace": "lab"}}
    taken["metadata"]["ownerReferences"] = [{"kind": "HPOSearch", "name": "other", "uid": "7", "controller": True}]
    before = bench.cluster.put(taken)
    with pytest.raises(RetryError):
        bench.look()
    assert bench.condition("Degraded")["reason"] == reasons.NAME_TAKEN
    assert "ServiceAccount digits-4 belongs to HPOSearch other" in bench.condition("Degraded")["message"]
    assert bench.cluster.objects["ServiceAccount", "lab", "digits-4"] == before
    assert ("Job", "digits-4") not in children(bench)
    bench.cluster.remove("ServiceAccount", "lab", "digits-4")
    bench.settle()
    assert children(bench) == CHILDREN
    assert bench.condition("Degraded")["status"] == "False"


def test_objects_of_a_namesake_that_is_gone_are_waited_for(bench: Bench) -> None:
    """`kubectl delete` and `kubectl apply` again: the garbage collector may come later."""
    bench.look()
    old = {place: one for place, one in bench.cluster.objects.items() if place[0] != "HPOSearch"}
    bench.cluster.remove(*KEY)
    bench.cluster.objects.update(old)
    bench.cluster.put(search())
    again = bench.look()
    assert again is not None
    assert again <= 5
    assert bench.condition("Degraded")["status"] == "False"
    told = "4 trials; waits until ConfigMap digits-4-spec, left by an earlier HPOSearch digits, is gone"
    assert bench.condition("Progressing")["message"] == told
    bench.now += timedelta(minutes=1)
    bench.look()
    told = "ConfigMap digits-4-spec, left by an earlier HPOSearch digits, is still there: delete it"
    assert bench.condition("Degraded")["message"] == told
    for place in old:
        del bench.cluster.objects[place]
    bench.settle()
    uids = {
        one["metadata"]["ownerReferences"][0]["uid"] for place, one in bench.cluster.objects.items() if place != KEY
    }
    assert uids == {bench.cluster.objects[KEY]["metadata"]["uid"]}


def test_a_child_that_lost_its_labels_is_repaired(bench: Bench) -> None:
    bench.look()
    bench.cluster.objects["Role", "lab", "digits-4"]["metadata"]["labels"] = {}
    bench.look()
    assert bench.cluster.objects["Role", "lab", "digits-4"]["metadata"]["labels"]


def test_a_child_that_is_being_deleted_is_absent_but_not_replaced(bench: Bench) -> None:
    bench.look()
    bench.cluster.change("Role", "lab", "digits-4", {"metadata": {"finalizers": ["example.com/wait"]}})
    bench.cluster.remove("Role", "lab", "digits-4")
    seen: list[World[Any]] = []
    bench.kind.decision = lambda world: (seen.append(world), decide(world))[1]
    before = len(bench.cluster.writes)
    again = bench.look()
    assert seen[0].child("Role", "digits-4") is None
    assert set(seen[0].deleting) == {Ref("Role", "digits-4")}
    assert [write.verb for write in bench.cluster.writes[before:]] == ["status"]
    told = "4 trials; waits until Role digits-4, which is being deleted since 2026-01-01T00:00:00Z, is gone"
    assert bench.condition("Progressing")["message"] == told
    assert again is not None
    assert again <= 5
    del bench.cluster.objects["Role", "lab", "digits-4"]
    bench.settle()
    assert children(bench) == CHILDREN


def test_a_child_that_is_held_in_deletion_is_told_and_looked_at_ever_more_slowly(bench: Bench) -> None:
    bench.look()
    bench.cluster.change("Job", "lab", "digits-4", {"metadata": {"finalizers": ["ray.io/rayjob-finalizer"]}})
    bench.cluster.remove("Job", "lab", "digits-4")  # at midnight
    pauses = []
    while bench.condition("Degraded")["status"] == "False" and len(pauses) < 10:
        pauses.append(bench.look())
        bench.now += timedelta(seconds=pauses[-1] or 0)
    assert pauses[0] == 5
    assert len(pauses) < 10
    place = "Job digits-4, which is being deleted since 2026-01-01T00:00:00Z, is still there"
    way_out = "bring back what removes its finalizers ray.io/rayjob-finalizer, or remove them yourself"
    assert bench.condition("Degraded")["message"] == f"{place}: {way_out}"
    later = []
    for _ in range(8):
        later.append(bench.look() or 0)
        bench.now += timedelta(seconds=later[-1])
    assert later == sorted(later)
    assert later[-1] > 300
    del bench.cluster.objects["Job", "lab", "digits-4"]
    bench.settle()
    assert children(bench) == CHILDREN
    assert bench.condition("Degraded")["status"] == "False"


def test_a_child_that_nobody_wants_any_more_is_told_if_it_is_held_in_deletion(bench: Bench) -> None:
    bench.look()
    bench.cluster.change("Job", "lab", "digits-4", {"metadata": {"finalizers": ["example.com/wait"]}})
    bench.cluster.change(*KEY, {"spec": {"maxTrialCount": 5}})
    bench.look()
    assert bench.cluster.objects["Job", "lab", "digits-4"]["metadata"]["deletionTimestamp"]
    assert bench.condition("Degraded")["status"] == "False"
    pause = bench.look() or 0
    assert pause <= 60
    bench.now += timedelta(seconds=pause)
    bench.look()
    assert bench.condition("Progressing")["message"] == "5 trials"
    assert "Job digits-4, which is being deleted since" in bench.condition("Degraded")["message"]
    del bench.cluster.objects["Job", "lab", "digits-4"]
    bench.look()
    assert bench.condition("Degraded")["status"] == "False"


def test_objects_outside_are_never_written(bench: Bench) -> None:
    def elsewhere(world: World[Any]) -> Decision:
        owner = replace(owner_of(world.resource, world.body), namespace="kube-system")
        return Decision((role(owner, "evil"),), verdicts(True, "Done"))

    bench.kind.decision = elsewhere
    with pytest.raises(RetryError):
        bench.look()
    assert bench.condition("Degraded")["reason"] == reasons.INTERNAL_ERROR
    assert bench.cluster.names("Role") == []


# ------------------------------------------------------------ conditions and events


def test_transition_times(bench: Bench) -> None:
    """They are of the last change of the status, whatever reason and message do."""
    bench.look()
    first = bench.condition("Ready")["lastTransitionTime"]
    bench.kind.decision = lambda world: Decision((), verdicts(False, "Waiting", "for a node"))
    bench.look()
    assert bench.condition("Ready")["reason"] == "Waiting"
    assert bench.condition("Ready")["lastTransitionTime"] == first
    bench.kind.decision = lambda world: Decision((), verdicts(True, "Done"))
    bench.look()
    assert bench.condition("Ready")["lastTransitionTime"] > first
    assert bench.condition("Degraded")["lastTransitionTime"] == first


def test_events_come_once_for_a_transition(bench: Bench) -> None:
    bench.look()
    bench.look()
    finish(bench)
    bench.look()
    bench.look()
    assert sorted(event["reason"] for event in bench.cluster.events.values()) == ["Trained", "Training"]
    assert {event["type"] for event in bench.cluster.events.values()} == {"Normal"}
    assert len([write for write in bench.cluster.writes if write.verb == "event"]) == 2


def test_progress_is_no_event(bench: Bench) -> None:
    for done in range(3):
        bench.kind.decision = lambda world, done=done: Decision((), verdicts(False, "Training", f"{done}/3"))
        bench.look()
    assert len(bench.cluster.events) == 1
    assert bench.condition("Progressing")["message"] == "2/3"


def test_other_status_fields_are_replaced_as_a_whole(bench: Bench) -> None:
    bench.kind.decision = lambda world: Decision((), verdicts(True, "Done"), {"trials": 4, "progress": "4/4"})
    bench.look()
    bench.kind.decision = lambda world: Decision((), verdicts(True, "Done"), {"trials": 0, "attempt": None})
    bench.look()
    assert set(bench.cluster.objects[KEY]["status"]) == {
        "trials",
        "paretoFront",
        "observedGeneration",
        "conditions",
    }


def test_observed_generation_follows_the_spec(bench: Bench) -> None:
    bench.look()
    bench.cluster.change(*KEY, {"spec": {"maxTrialCount": 5}})
    bench.look()
    assert bench.cluster.objects[KEY]["status"]["observedGeneration"] == 2
    assert bench.condition("Ready")["observedGeneration"] == 2


# ------------------------------------------------------------ what goes wrong


def test_invalid_spec_is_told_with_its_field_and_nothing_is_made(bench: Bench) -> None:
    bench.cluster.change(*KEY, {"spec": {"workers": {"cpu": "many"}}})
    bench.look()
    assert bench.condition("Degraded")["reason"] == reasons.INVALID_SPEC
    assert bench.condition("Degraded")["message"].startswith("spec.workers.cpu: ")
    assert children(bench) == []
    bench.cluster.change(*KEY, {"spec": {"workers": {"cpu": 2}}})
    bench.look()
    assert bench.condition("Degraded")["status"] == "False"


def test_invalid_spec_takes_no_running_thing_away(bench: Bench) -> None:
    bench.look()
    finish(bench)
    bench.look()
    bench.cluster.change(*KEY, {"spec": {"unknown": 1}})
    bench.look()
    assert children(bench) == CHILDREN
    assert (bench.condition("Ready")["status"], bench.condition("Ready")["reason"]) == ("False", "InvalidSpec")
    assert bench.cluster.objects[KEY]["status"]["trials"] == 4
    bench.cluster.change(*KEY, {"spec": {"unknown": None}})
    bench.look()
    assert bench.condition("Ready")["status"] == "True"


def test_error_in_a_decision_is_a_condition(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.look()

    def broken(world: World[Any]) -> Decision:
        raise KeyError("missing")

    bench.kind.decision = broken
    with caplog.at_level(logging.ERROR), pytest.raises(RetryError):
        bench.look()
    assert bench.condition("Degraded")["reason"] == reasons.INTERNAL_ERROR
    assert "KeyError" in bench.condition("Degraded")["message"]
    assert "Traceback" in caplog.text
    assert children(bench) == CHILDREN
    bench.kind.decision = decide
    bench.settle()
    assert bench.condition("Degraded")["status"] == "False"


def test_error_while_a_decision_is_carried_out_is_a_condition(bench: Bench) -> None:
    def fail(index: int, write: Write, when: str) -> None:
        if write.kind == "Role":
            raise KeyError("resourceVersion")

    bench.cluster.fault = fail
    with pytest.raises(RetryError):
        bench.look()
    assert bench.condition("Degraded")["reason"] == reasons.INTERNAL_ERROR
    assert "KeyError" in bench.condition("Degraded")["message"]
    bench.cluster.fault = nothing
    bench.settle()
    assert children(bench) == CHILDREN
    assert bench.condition("Degraded")["status"] == "False"


def test_a_refused_finalizer_is_told(bench: Bench) -> None:
    def refuse(index: int, write: Write, when: str) -> None:
        if write.verb == "finalizers":
            raise RefusedError(403, "Forbidden", "hposearches is forbidden")

    bench.kind.decision = library
    bench.cluster.fault = refuse
    with pytest.raises(RetryError):
        bench.look()
    assert bench.condition("Degraded")["reason"] == reasons.APPLY_FAILED
    assert bench.condition("Degraded")["message"] == "hposearches is forbidden"


@pytest.mark.parametrize("code", [403, 409, 422])
def test_refused_child_is_told_in_the_servers_words(bench: Bench, code: int) -> None:
    def refuse(index: int, write: Write, when: str) -> None:
        if write.kind == "Role" and when == "before":
            raise RefusedError(code, "Forbidden", "exceeded quota: count/roles")

    bench.cluster.fault = refuse
    with pytest.raises(RetryError):
        bench.look()
    assert bench.condition("Degraded")["reason"] == reasons.APPLY_FAILED
    assert bench.condition("Degraded")["message"] == "Role digits-4: exceeded quota: count/roles"
    assert bench.condition("Progressing")["reason"] == "Training"
    assert ("Job", "digits-4") not in children(bench)
    warnings = [event for event in bench.cluster.events.values() if event["type"] == "Warning"]
    assert [event["reason"] for event in warnings] == [reasons.APPLY_FAILED]


@pytest.mark.parametrize("write", [Write("create", "Job", "digits-4"), Write("apply", "Role", "digits-4")])
def test_a_request_that_fails_alone_is_told(bench: Bench, write: Write) -> None:
    """An admission webhook that is down: everything else goes well."""

    def fail(index: int, asked: Write, when: str) -> None:
        if asked == write:
            raise UnavailableError("failed calling webhook: connection refused", code=500)

    bench.cluster.fault = fail
    for _ in range(3):
        with pytest.raises(RetryError):
            bench.look()
    assert bench.condition("Degraded")["reason"] == reasons.APPLY_FAILED
    assert "failed calling webhook" in bench.condition("Degraded")["message"]
    assert [one.verb for one in bench.cluster.writes].count("status") == 1
    bench.cluster.fault = nothing
    bench.settle()
    assert children(bench) == CHILDREN
    assert bench.condition("Degraded")["status"] == "False"


@pytest.mark.parametrize("write", [Write("create", "Job", "digits-4"), Write("delete", "Job", "digits-4")])
def test_a_request_that_fails_once_is_not_told(bench: Bench, write: Write) -> None:
    """The API server's leader changes, for example."""
    if write.verb == "delete":
        bench.look()
        bench.cluster.change(*KEY, {"spec": {"suspend": True}})
    failed: list[Write] = []

    def fail(index: int, asked: Write, when: str) -> None:
        if asked == write and not failed:
            failed.append(asked)
            raise UnavailableError("etcdserver: leader changed", code=500)

    bench.cluster.fault = fail
    before = bench.cluster.objects[KEY].get("status")
    with pytest.raises(RetryError):
        bench.look()
    assert bench.cluster.objects[KEY].get("status") == before
    bench.settle()
    assert failed == [write]
    assert (("Job", "digits-4") in children(bench)) is (write.verb == "create")
    assert {event["type"] for event in bench.cluster.events.values()} == {"Normal"}


def test_a_deletion_that_fails_alone_is_told(bench: Bench) -> None:
    bench.look()

    def fail(index: int, asked: Write, when: str) -> None:
        if asked == Write("delete", "Job", "digits-4"):
            raise UnavailableError("failed calling webhook: connection refused", code=500)

    bench.cluster.fault = fail
    bench.cluster.change(*KEY, {"spec": {"suspend": True}})
    for _ in range(2):
        with pytest.raises(RetryError):
            bench.look()
    assert bench.condition("Degraded")["message"].startswith("Job digits-4: failed calling webhook")
    assert bench.condition("Progressing")["reason"] == "Suspended"


def test_a_refused_edit_keeps_no_other_object_from_its_own(bench: Bench) -> None:
    bench.look()
    bench.cluster.change("ServiceAccount", "lab", "digits-4", {"metadata": {"labels": {MANAGED_BY: "x"}}})
    bench.cluster.change("Role", "lab", "digits-4", {"rules": None})
    bench.cluster.remove("Job", "lab", "digits-4")

    def refuse(index: int, write: Write, when: str) -> None:
        if write == Write("apply", "ServiceAccount", "digits-4"):
            raise RefusedError(422, "Invalid", "no")

    bench.cluster.fault = refuse
    with pytest.raises(RetryError):
        bench.look()
    assert bench.condition("Degraded")["message"] == "ServiceAccount digits-4: no"
    assert bench.cluster.objects["Role", "lab", "digits-4"]["rules"]
    assert children(bench) == CHILDREN


def test_without_what_a_pod_needs_none_is_started(bench: Bench) -> None:
    def refuse(index: int, write: Write, when: str) -> None:
        if write.kind == "ServiceAccount":
            raise RefusedError(403, "Forbidden", "quota")

    bench.cluster.fault = refuse
    with pytest.raises(RetryError):
        bench.look()
    assert children(bench) == [one for one in CHILDREN if one[0] not in ("Job", "ServiceAccount")]


def test_a_refused_read_is_told(bench: Bench) -> None:
    bench.look()
    finish(bench)
    bench.look()

    def refuse(verb: str, kind: str) -> None:
        if (verb, kind) == ("list", "Job"):
            raise RefusedError(403, "Forbidden", "jobs.batch is forbidden")

    bench.cluster.on_read = refuse
    for _ in range(2):
        with pytest.raises(RetryError):
            bench.look()
    assert bench.condition("Degraded")["reason"] == reasons.APPLY_FAILED
    assert bench.condition("Degraded")["message"] == "jobs.batch is forbidden"
    assert bench.condition("Ready")["status"] == "True"
    assert children(bench) == CHILDREN
    bench.cluster.on_read = lambda verb, kind: None
    bench.settle()
    assert bench.condition("Degraded")["status"] == "False"


def test_references_to_a_kind_that_is_gone_are_references_to_nothing(bench: Bench) -> None:
    def gone(verb: str, kind: str) -> None:
        if kind == "EnsembleSelection":
            raise MissingError("the server could not find the requested resource")

    bench.kind.wanted = (Ref("EnsembleSelection", "*"), Ref("EnsembleSelection", "small"))
    bench.cluster.on_read = gone
    bench.look()
    assert children(bench) == CHILDREN


def test_refused_child_does_not_keep_old_ones(bench: Bench) -> None:
    """What is superfluous may be what fills the quota."""
    bench.look()

    def refuse(index: int, write: Write, when: str) -> None:
        if write == Write("create", "Job", "digits-5") and ("Job", "digits-4") in children(bench):
            raise RefusedError(403, "Forbidden", "exceeded quota: count/jobs.batch")

    bench.cluster.fault = refuse
    bench.cluster.change(*KEY, {"spec": {"maxTrialCount": 5}})
    bench.settle()
    assert ("Job", "digits-5") in children(bench)


@pytest.mark.parametrize(
    "error",
    [
        RefusedError(403, "Forbidden", "namespace is being terminated"),
        UnavailableError("limit reached on type Namespace", code=429),
        UnavailableError("failed calling webhook", code=500),
        MissingError("namespace not found"),
    ],
)
def test_events_that_cannot_be_written_do_not_matter(bench: Bench, error: ApiError) -> None:
    def refuse(index: int, write: Write, when: str) -> None:
        if write.verb == "event":
            raise error

    bench.cluster.fault = refuse
    bench.look()
    assert children(bench) == CHILDREN
    assert bench.condition("Ready")["reason"] == "Training"


def test_unavailable_server_leaves_the_status_and_is_asked_again(bench: Bench) -> None:
    bench.look()
    status = bench.cluster.objects[KEY]["status"]
    bench.cluster.change(*KEY, {"spec": {"maxTrialCount": 5}})

    def fail(index: int, write: Write, when: str) -> None:
        raise UnavailableError("too many requests", retry_after=7)

    bench.cluster.fault = fail
    with pytest.raises(RetryError) as raised:
        bench.look()
    assert raised.value.after == 7
    assert bench.cluster.objects[KEY]["status"] == status


def test_unavailable_server_is_told_once_in_the_log(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    def fail(verb: str, kind: str) -> None:
        raise UnavailableError("webhook does not answer")

    for _ in range(2):
        bench.cluster.on_read = fail
        for _ in range(3):
            with pytest.raises(RetryError):
                bench.look()
        bench.cluster.on_read = lambda verb, kind: None
        bench.look()
    assert [record.levelname for record in caplog.records if "webhook" in record.message].count("WARNING") == 2


@pytest.mark.parametrize("verb", ["get", "list"])
def test_unavailable_reads_change_nothing(bench: Bench, verb: str) -> None:
    def fail(asked: str, kind: str) -> None:
        if asked == verb:
            raise UnavailableError("etcd is away")

    bench.cluster.on_read = fail
    with pytest.raises(RetryError):
        bench.look()
    assert bench.cluster.writes == []


def test_resource_that_changed_meanwhile_is_looked_at_again(bench: Bench) -> None:
    def interfere(index: int, write: Write, when: str) -> None:
        if write.verb == "status" and when == "before" and bench.cluster.objects[KEY]["spec"]["maxTrialCount"] == 4:
            bench.cluster.change(*KEY, {"spec": {"maxTrialCount": 5}})

    bench.cluster.fault = interfere
    with pytest.raises(RetryError):
        bench.look()
    assert "status" not in bench.cluster.objects[KEY]
    bench.settle()
    assert bench.condition("Ready")["message"] == "5 trials"


def test_resource_that_is_deleted_meanwhile_is_no_error(bench: Bench) -> None:
    def interfere(index: int, write: Write, when: str) -> None:
        if write.verb == "status" and when == "before":
            bench.cluster.remove(*KEY)

    bench.cluster.fault = interfere
    bench.look()
    assert bench.look() is None
    assert bench.cluster.objects == {}


# ------------------------------------------------------------ deletion


def test_finalizer_comes_before_everything_else_and_goes_last(bench: Bench) -> None:
    bench.kind.decision = library
    bench.look()
    assert bench.cluster.writes[0] == Write("finalizers", "HPOSearch", "digits")
    assert bench.cluster.objects[KEY]["metadata"]["finalizers"] == [LIBRARY_FINALIZER]
    bench.cluster.remove(*KEY)
    bench.look()
    assert KEY in bench.cluster.objects
    finish(bench)
    bench.look()
    assert bench.cluster.objects == {}
    assert bench.look() is None


def test_finalizers_of_others_stay(bench: Bench) -> None:
    bench.cluster.change(*KEY, {"metadata": {"finalizers": ["example.com/other"]}})
    bench.kind.decision = library
    bench.look()
    bench.kind.decision = decide
    bench.look()
    assert bench.cluster.objects[KEY]["metadata"]["finalizers"] == ["example.com/other"]


def test_deleted_resource_without_our_finalizer_is_left_alone(bench: Bench) -> None:
    bench.cluster.change(*KEY, {"metadata": {"finalizers": ["example.com/other"]}})
    bench.look()
    bench.cluster.remove(*KEY)
    before = len(bench.cluster.writes)
    assert bench.look() is None
    assert bench.cluster.writes[before:] == []


@pytest.mark.parametrize("spec", [{"library": {"deletionPolicy": "Retain"}}, {"library": "?"}, {}])
def test_a_deleted_search_that_cannot_be_read_is_let_go(bench: Bench, spec: Manifest) -> None:
    bench.kind.decision = library
    bench.look()
    bench.cluster.objects[KEY]["spec"] = spec
    bench.cluster.remove(*KEY)
    bench.look()
    assert bench.cluster.objects == {}


def test_a_search_that_the_server_does_not_let_go_tells_why(bench: Bench) -> None:
    def refuse(index: int, write: Write, when: str) -> None:
        if write.verb == "finalizers":
            raise RefusedError(422, "Invalid", "spec.unknown: Forbidden")

    bench.kind.decision = library
    bench.look()
    bench.cluster.change(*KEY, {"spec": {"unknown": 1}})
    bench.cluster.remove(*KEY)
    bench.cluster.fault = refuse
    for _ in range(2):
        with pytest.raises(RetryError):
            bench.look()
        assert bench.condition("Degraded")["reason"] == reasons.APPLY_FAILED
        assert bench.condition("Degraded")["message"] == "spec.unknown: Forbidden"


def test_a_deleted_search_that_cannot_be_read_tells_how_to_let_it_go(bench: Bench) -> None:
    bench.kind.decision = library
    bench.look()
    bench.cluster.change(*KEY, {"spec": {"unknown": 1, "library": {"deletionPolicy": "Delete"}}})
    bench.cluster.remove(*KEY)
    bench.look()
    assert bench.condition("Degraded")["reason"] == reasons.INVALID_SPEC
    told = bench.condition("Degraded")["message"]
    assert told.startswith("spec.unknown: ")
    assert told.endswith("; spec.library.deletionPolicy: Retain lets the search go")
    bench.cluster.change(*KEY, {"spec": {"library": {"deletionPolicy": "Retain"}}})
    bench.look()
    assert bench.cluster.objects == {}


def test_a_pod_that_cannot_end_is_told_while_its_search_waits_to_go(bench: Bench) -> None:
    bench.kind.decision = library
    bench.look()
    labels = bench.cluster.objects["Job", "lab", "digits-4"]["spec"]["template"]["metadata"]["labels"]
    pod = {"name": "digits-4-x", "namespace": "lab", "labels": labels, "finalizers": ["example.com/held"]}
    bench.cluster.put({"apiVersion": "v1", "kind": "Pod", "metadata": pod, "spec": {"nodeName": "node-7"}})
    bench.cluster.remove("Pod", "lab", "digits-4-x")  # its grace ends at midnight
    bench.now += timedelta(minutes=2)
    bench.look()
    assert bench.condition("Degraded")["status"] == "False"  # nobody waits for it
    bench.now -= timedelta(minutes=2)
    bench.cluster.remove(*KEY)
    assert (bench.look() or 99) <= 60
    assert bench.condition("Degraded")["status"] == "False"
    bench.now += timedelta(minutes=1)
    bench.look()
    told = "Pod digits-4-x, which is being deleted since 2026-01-01T00:00:00Z, is still there: bring back node node-7,"
    assert bench.condition("Degraded")["message"].startswith(told)
    assert "kubectl delete pod digits-4-x --force" in bench.condition("Degraded")["message"]
    bench.cluster.change("Pod", "lab", "digits-4-x", {"status": {"phase": "Failed"}})
    bench.look()
    assert "finalizers example.com/held" in bench.condition("Degraded")["message"]


# ------------------------------------------------------------ reading


def test_a_decision_sees_children_others_and_capabilities(bench: Bench) -> None:
    seen: list[World[Any]] = []
    bench.kind.decision = lambda world: (seen.append(world), decide(world))[1]
    bench.kind.wanted = (Ref("HPOSearch", "other"), Ref("HPOSearch", "absent"), Ref("EnsembleSelection", "*"))
    bench.cluster.put(search("other"))
    selection = {"apiVersion": "ensemble-operator.io/v1alpha1", "kind": "EnsembleSelection"}
    for name in ("small", "large"):
        bench.cluster.put(selection | {"metadata": {"name": name, "namespace": "lab"}})
    bench.capabilities = frozenset({"RayJob"})
    bench.look()
    bench.look()
    assert sorted((ref.kind, ref.name) for ref in seen[1].children) == CHILDREN
    assert sorted(name for _, name in seen[1].others) == ["large", "other", "small"]
    assert seen[1].capabilities == {"RayJob"}
    dependents = bench.reconciler.dependents
    assert dependents.of(Key("HPOSearch", "lab", "other"), wide=False) == {KEY}
    assert dependents.of(Key("EnsembleSelection", "lab", "any"), wide=True) == {KEY}
    assert dependents.of(Key("EnsembleSelection", "lab", "any"), wide=False) == set()
    assert dependents.of(Key("HPOSearch", "elsewhere", "other"), wide=True) == set()


def test_a_deployment_reads_and_heeds_the_searches_of_its_selection_alone() -> None:
    key, selection = Key("EnsembleDeployment", "lab", "digits"), Key("EnsembleSelection", "lab", "digits")
    reads: list[tuple[str, str]] = []
    bench = lives.stand(ensembledeployment.KIND, key)
    bench.cluster.on_read = lambda verb, kind: reads.append((verb, kind))
    for name in ("digits", *(f"other-{number}" for number in range(9))):
        bench.cluster.put(search(name))
    bench.cluster.put(resource(key, SPEC))
    dependents, other = bench.reconciler.dependents, Key("HPOSearch", "lab", "other-0")

    bench.settle()
    assert "HPOSearch" not in {kind for _, kind in reads}  # it is not known yet which
    assert dependents.of(KEY, wide=True) == set()
    bench.cluster.put(resource(selection, SELECTION))
    reads.clear()
    bench.look()
    assert [verb for verb, kind in reads if kind == "HPOSearch"] == ["get"]
    assert dependents.of(selection, wide=False) == dependents.of(KEY, wide=True) == {key}
    # Where a search's library is, its specification tells; how far it is does not matter.
    assert dependents.of(KEY, wide=False) == dependents.of(other, wide=True) == set()

    bench.cluster.put(resource(selection, SELECTION | {"sources": [{"hpoSearchName": "other-0"}]}))
    bench.look()
    assert (dependents.of(other, wide=True), dependents.of(KEY, wide=True)) == ({key}, set())
    bench.cluster.remove(*key)
    bench.look()
    assert dependents.of(other, wide=True) == dependents.of(selection, wide=True) == set()


def test_pods_are_seen_and_never_deleted(bench: Bench) -> None:
    seen: list[World[Any]] = []
    bench.kind.decision = lambda world: (seen.append(world), decide(world))[1]
    bench.look()
    labels = bench.cluster.objects["Job", "lab", "digits-4"]["spec"]["template"]["metadata"]["labels"]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "digits-4", "uid": "job", "controller": True}
    pod = {"name": "digits-4-x", "namespace": "lab", "labels": labels, "ownerReferences": [owner]}
    bench.cluster.put({"apiVersion": "v1", "kind": "Pod", "metadata": pod})
    before = len(bench.cluster.writes)
    bench.look()
    assert [one["metadata"]["name"] for one in seen[-1].of_kind("Pod")] == ["digits-4-x"]
    assert bench.cluster.writes[before:] == []


def test_a_quiet_look_is_cheap(bench: Bench) -> None:
    bench.look()
    reads: list[tuple[str, str]] = []
    bench.cluster.on_read = lambda verb, kind: reads.append((verb, kind))
    bench.look()
    assert len(reads) == 8  # itself, and one list for each kind of children


def test_a_wish_that_is_repeated_in_vain_is_granted_ever_more_slowly(bench: Bench) -> None:
    def wish(seconds: float | None, message: str = "") -> float | None:
        bench.kind.decision = lambda world: Decision((), verdicts(False, "Waiting", message), again_after=seconds)
        after = bench.look()
        bench.now += timedelta(seconds=(after or 0) - 1)  # a look takes a second
        return after

    assert [wish(30) for _ in range(5)] == [30, 30, 60, 120, 240]
    assert wish(30, "news") == 30
    assert wish(17) == 17
    assert [wish(17) for _ in range(10)][-1] == 1800
    assert [wish(None), wish(17)] == [1800, 17]


def test_what_a_look_wrote_itself_is_no_news(bench: Bench) -> None:
    bench.look()
    version = bench.cluster.objects[KEY]["metadata"]["resourceVersion"]
    assert bench.reconciler.is_echo(KEY, version)
    bench.cluster.change(*KEY, {"spec": {"maxTrialCount": 5}})
    assert not bench.reconciler.is_echo(KEY, bench.cluster.objects[KEY]["metadata"]["resourceVersion"])


def test_series_of_a_resource_go_with_it(bench: Bench) -> None:
    def told() -> set[str]:
        names = {sample.labels.get("name") for family in bench.metrics.collect() for sample in family.samples}
        return names - {None}

    bench.look()
    assert told() == {"digits"}
    bench.cluster.remove(*KEY)
    bench.look()
    assert told() == set()


def test_degraded_verdicts_of_a_kind_are_warnings(bench: Bench) -> None:
    broken = Verdict("Degraded", "True", "TrainingFailed", "out of memory")
    bench.kind.decision = lambda world: Decision((), (*verdicts(False, "Failed")[:2], broken))
    bench.look()
    types = {event["reason"]: event["type"] for event in bench.cluster.events.values()}
    assert types == {"Failed": "Normal", "TrainingFailed": "Warning"}
