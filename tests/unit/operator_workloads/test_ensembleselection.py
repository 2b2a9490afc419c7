from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from tests.support.play import START, Play, body_of, condition, of_kind, reasons_of, time

from ensemble_operator.ensembleselection import KIND
from ensemble_operator.world import Decision, Manifest, Ref

SEARCH = {
    "library": {"storage": {"s3": {"bucket": "libraries"}, "credentialsSecretRef": {"name": "keys"}}},
    "dataset": {"builtin": "digits"},
    "maxTrialCount": 40,
}
BUDGETS = [{"name": "small", "parametersMillions": 1.0}, {"name": "large", "parametersMillions": 9.0}]
SPEC: dict[str, Any] = {"sources": [{"hpoSearchName": "digits"}], "budgets": BUDGETS}
STORAGE: dict[str, Any] = {"storage": {"persistentVolumeClaim": {"claimName": "imported"}}}
MEMBER = {"library": 0, "modelId": "digits-0003", "weight": 1.0, "servable": True, "cost": {}, "validation": {}}
SUMMARY: dict[str, Any] = {
    "cost": {"engine": "onnxruntime", "batchSize": 32},
    "combiner": "average",
    "sources": [{"storage": {"s3": {"bucket": "libraries"}}, "digest": "a" * 64}],
    "bestSingle": {},
    "budgets": [
        {
            "name": "small",
            "limits": {"parametersMillions": 1.0},
            "members": [MEMBER],
            "memberCount": 1,
            "validation": {"crossEntropy": 0.3, "error": 0.1, "macroF1": 0.9, "top5Error": 0.0},
            "heldout": {"crossEntropy": 0.4, "error": 0.2, "macroF1": 0.8, "top5Error": 0.0},
            "cost": {"parametersMillions": 0.5},
        },
        {"name": "large", "limits": {}, "members": [], "memberCount": 0, "reason": "no model costs so little"},
    ],
    "front": [{"members": 2, "crossEntropy": 0.3, "cost": {"parametersMillions": 0.5, "memoryMiB": 7.0}}],
}


def search(
    digest: str | None = "a" * 64, ready: bool = True, models: int = 40, changed: Any = START, name: str = "digits"
) -> dict[Ref, Manifest]:
    body = body_of("HPOSearch", name, SEARCH)
    body["status"] = {
        "conditions": [condition("Ready", "True" if ready else "False", observedGeneration=1)],
        "library": {"models": models, "digest": digest, "changedTime": time(changed)},
    }
    return {Ref("HPOSearch", name): body}


def play(others: Any = None, **spec: Any) -> Play:
    body = body_of("EnsembleSelection", "digits", {**SPEC, **spec}, labels={"kueue.x-k8s.io/queue-name": "gpus"})
    return Play(KIND, body, others=search() if others is None else others)


def finish(one: Play, child: Manifest | None = None, digest: str = "d" * 64, **summary: Any) -> Decision:
    child = child or one.workload()
    one.report(child, "select", "Succeeded", result={"digest": digest, "summary": {**SUMMARY, **summary}})
    child["status"] = {"conditions": [condition("Complete")]}
    return one.settle()


def jobs(one: Play) -> list[str]:
    """Names of the Jobs that have not ended."""
    found = (manifest for ref, manifest in sorted(one.children.items()) if ref.kind == "Job")
    return [manifest["metadata"]["name"] for manifest in found if not manifest.get("status")]


def test_a_selection_gets_a_job_and_what_it_needs() -> None:
    one = play()
    assert KIND.references(one.world().resource, one.body, {}) == (Ref("HPOSearch", "digits"),)
    decision = one.step()
    assert [made["kind"] for made in decision.objects] == [
        "ConfigMap",
        "ServiceAccount",
        "ConfigMap",
        "Role",
        "RoleBinding",
        "Job",
    ]
    assert reasons_of(decision) == ("-Starting", "+Starting", "-AsExpected")
    job = decision.objects[-1]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    pod = job["spec"]["template"]["spec"]
    assert "initContainers" not in pod
    child = job["metadata"]["name"]
    assert pod["containers"][0]["command"] == [
        *("ensemble", "select", "--spec", "/etc/ensemble/spec.yaml", "--name", "digits"),
        *("--report", f"configmap:lab/{child}-report"),
    ]
    assert "ENSEMBLE_S3_KEYS_AWS_ACCESS_KEY_ID" in [variable["name"] for variable in pod["containers"][0]["env"]]


@pytest.mark.parametrize("limit", ["inferenceTimeSeconds", "memoryMiB"])
def test_what_is_measured_is_profiled_first_on_the_same_device(limit: str) -> None:
    one = play(budgets=[{"name": "small", limit: 1.0}], cost={"coresPerDevice": 4})
    pod = one.step().objects[-1]["spec"]["template"]["spec"]
    (profile,) = pod["initContainers"]
    assert profile["command"] == ["ensemble", "profile", "--spec", "/etc/ensemble/spec.yaml", "--name", "digits"]
    assert profile["resources"] == pod["containers"][0]["resources"]
    assert profile["resources"]["requests"]["cpu"] == "4000m"
    assert "token" not in [mount["name"] for mount in profile["volumeMounts"]]
    job = one.workload()
    one.pod(job, "Pending", initContainerStatuses=[{"name": "profile", "state": {"running": {}}}])
    assert reasons_of(one.step())[:2] == ("-Profiling", "+Profiling")


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({}, "there is no HPOSearch digits in this namespace"),
        ({Ref("HPOSearch", "digits"): body_of("HPOSearch", "digits", {"dataset": 3})}, "digits is not valid"),
        ({Ref("HPOSearch", "digits"): body_of("HPOSearch", "digits", SEARCH)}, "digits has no models yet"),
        (search(models=0), "digits has no models yet"),
        (search(ready=False), "its library must be unchanged for 60 s"),
    ],
)
def test_a_selection_waits_for_its_sources(others: Any, words: str) -> None:
    decision = play(others).settle()
    assert reasons_of(decision) == ("-SourcesNotReady", "+SourcesNotReady", "-AsExpected")
    assert words in decision.conditions[1].message
    assert decision.objects == ()
    assert decision.again_after


def test_a_library_that_stops_growing_is_settled() -> None:
    one = play(search(ready=False))
    assert one.settle().again_after == 60
    one.later(59)
    assert one.settle().again_after == 1
    one.later(1)
    assert reasons_of(one.step())[0] == "-Starting"


def test_a_search_that_was_changed_since_is_not_finished() -> None:
    others = search()
    others[Ref("HPOSearch", "digits")]["metadata"]["generation"] = 2
    assert reasons_of(play(others).settle())[0] == "-SourcesNotReady"


def test_what_a_selection_tells() -> None:
    one = play()
    one.settle()
    job = one.workload()
    one.pod(job)
    one.report(job, "select", progress={"stage": "picks", "done": 0, "total": 1})
    decision = one.step()
    assert reasons_of(decision) == ("-Selecting", "+Selecting", "-AsExpected")
    assert decision.conditions[1].message == "picks: 0 of 1"
    decision = finish(one)
    assert reasons_of(decision) == ("+Selected", "-Selected", "-AsExpected")
    assert decision.conditions[0].message == "small 1, large 0; budget large has no ensemble: no model costs so little"
    assert decision.again_after is None
    assert decision.status == {
        "summary": "small 1, large 0",
        "crossEntropy": 0.3,
        "digest": "d" * 64,
        "libraryDigests": ["a" * 64],
        "completionTime": time(one.now),
        "budgets": [
            {
                "name": "small",
                "members": [{"library": 0, "modelId": "digits-0003", "weight": 1.0}],
                "memberCount": 1,
                "validation": {"crossEntropy": 0.3, "error": 0.1, "macroF1": 0.9, "top5Error": 0.0},
                "heldout": {"crossEntropy": 0.4, "error": 0.2, "macroF1": 0.8, "top5Error": 0.0},
                "cost": {"parametersMillions": 0.5},
            },
            {"name": "large", "members": [], "memberCount": 0, "reason": "no model costs so little"},
        ],
        "front": [{"members": 2, "crossEntropy": 0.3, "cost": {"memoryMiB": 7.0, "parametersMillions": 0.5}}],
    }
    first = decision.status["completionTime"]
    one.later(60)
    assert one.step().status["completionTime"] == first


def test_no_ensemble_at_all_needs_a_person() -> None:
    one = play()
    one.settle()
    decision = finish(
        one, budgets=[{"name": "small", "members": [], "memberCount": 0, "reason": "no model costs so little"}]
    )
    assert reasons_of(decision) == ("-NoEnsemble", "-NoEnsemble", "+NoEnsemble")


def test_a_library_that_has_grown_is_selected_from_again_while_the_result_stays() -> None:
    one = play()
    one.settle()
    finish(one)
    first = jobs(one)
    assert first == []
    one.later(60)
    one.others = search("b" * 64, ready=False, changed=one.now)
    decision = one.settle()
    assert reasons_of(decision) == ("+Selected", "+SourcesNotReady", "-AsExpected")
    assert decision.again_after == 60
    one.later(60)
    decision = one.settle()
    assert reasons_of(decision) == ("+Selected", "+Starting", "-AsExpected")
    assert decision.status["digest"] == "d" * 64
    (second,) = jobs(one)
    # Meanwhile it grows again: what runs goes on.
    one.others = search("c" * 64)
    one.settle()
    assert jobs(one) == [second]
    finish(one, one.children[Ref("Job", second)], "e" * 64)
    (third,) = jobs(one)
    assert one.body["status"]["digest"] == "e" * 64
    finish(one, one.children[Ref("Job", third)], "f" * 64)
    assert jobs(one) == []
    assert one.body["status"]["digest"] == "f" * 64
    assert len(one.refs("ConfigMap")) == 4


def test_a_library_that_ends_as_it_was_is_not_selected_from_again() -> None:
    one = play(search(ready=False), updatePolicy={"settleSeconds": 0})
    one.settle()
    finish(one)
    one.others = search(ready=True)
    one.settle()
    assert jobs(one) == []
    one.others = search("b" * 64)  # its last model came with its end
    one.settle()
    assert len(jobs(one)) == 1


def test_of_a_large_ensemble_the_first_members_are_listed() -> None:
    one = play()
    one.settle()
    decision = finish(one, budgets=[{"name": "small", "members": [MEMBER], "memberCount": 40}])
    assert decision.conditions[0].message == decision.status["summary"] == "small 40"
    assert (len(decision.status["budgets"][0]["members"]), decision.status["budgets"][0]["memberCount"]) == (1, 40)


def test_a_failed_run_beside_a_result_is_told_and_the_result_stays() -> None:
    one = play()
    one.settle()
    finish(one)
    for digit in "bce":
        one.later(60)
        one.others = search(digit * 64)
        one.settle()
        job = one.children[Ref("Job", jobs(one)[0])]
        one.report(job, "select", "Failed", error={"message": "m3 is corrupt"})
        job["status"] = {"conditions": [condition("Failed")]}
        decision = one.settle()
        assert reasons_of(decision) == ("+Selected", "-SelectionFailed", "+SelectionFailed")
        assert "m3 is corrupt\nchange the specification, or delete Job" in decision.conditions[2].message
        assert decision.status["digest"] == "d" * 64  # though it is more than two starts ago


def test_a_changed_specification_is_not_ready_with_the_old_result() -> None:
    one = play()
    one.settle()
    finish(one)
    one.change(budgets=[{"name": "tiny", "parametersMillions": 0.1}])
    decision = one.settle()
    assert reasons_of(decision) == ("-Starting", "+Starting", "-AsExpected")
    assert decision.status["digest"] == "d" * 64


def test_changing_only_when_to_select_selects_nothing() -> None:
    one = play()
    one.settle()
    finish(one)
    one.change(updatePolicy={"settleSeconds": 5})
    assert reasons_of(one.settle()) == ("+Selected", "-Selected", "-AsExpected")
    one.change(updatePolicy={"mode": "Once"})
    assert reasons_of(one.settle()) == ("+Selected", "-Selected", "-AsExpected")
    one.others = search("b" * 64)
    assert jobs(one) == []


def test_a_search_that_goes_on_with_the_same_library_starts_nothing() -> None:
    one = play()
    one.settle()
    finish(one)
    raised = search()
    raised[Ref("HPOSearch", "digits")]["spec"] = {**SEARCH, "maxTrialCount": 80, "workers": {"replicas": 3}}
    one.others = raised
    one.settle()
    assert jobs(one) == []


def test_once_is_once() -> None:
    one = play(updatePolicy={"mode": "Once"})
    one.settle()
    finish(one)
    one.others = search("b" * 64)
    assert reasons_of(one.settle()) == ("+Selected", "-Selected", "-AsExpected")
    one.change(keepAtLeast=5)
    one.settle()
    assert len(jobs(one)) == 1


# --- storages


def polled(**spec: Any) -> Play:
    """A selection from a storage and a search that has a result: of `a` and `d`."""
    policy = {"pollIntervalSeconds": 100}
    one = play(sources=[STORAGE, {"hpoSearchName": "digits"}], updatePolicy=policy, **spec)
    one.settle()
    finish(one, sources=[{"digest": "a" * 64}, {"digest": "d" * 64}])
    return one


def poll(one: Play, storage: str, state: str = "Succeeded", **content: Any) -> Decision:
    """The poll ends, and its Job is deleted in its time; it tells this digest of the storage."""
    job = one.children[Ref("Job", jobs(one)[0])]
    sources = [{"digest": storage * 64}, {"digest": "e" * 64}]
    one.report(job, "poll", state, **({"result": {"summary": {"sources": sources}}} | content))
    job["status"] = {"conditions": [condition("Complete" if state == "Succeeded" else "Failed")]}
    return one.settle()


def test_storages_are_polled_by_a_small_job_that_kubernetes_deletes_in_time() -> None:
    one = polled(podOverrides={"resources": {"limits": {"nvidia.com/gpu": 1}}, "nodeSelector": {"zone": "a"}})
    (name,) = jobs(one)
    job = one.children[Ref("Job", name)]
    assert name.startswith("digits-poll-")
    assert job["spec"]["ttlSecondsAfterFinished"] == 100
    assert "kueue.x-k8s.io/queue-name" not in job["metadata"]["labels"]
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert "initContainers" not in pod
    assert (pod["nodeSelector"], "nvidia.com/gpu" in container["resources"]["limits"]) == ({"zone": "a"}, False)
    assert container["command"] == [
        *("ensemble", "select", "--spec", "/etc/ensemble/spec.yaml", "--name", "digits"),
        *("--report", f"configmap:lab/{name}-report", "--poll"),
    ]
    spec = one.children[Ref("ConfigMap", f"{name}-spec")]["data"]["spec.yaml"]
    assert "EnsembleSelection" in spec
    assert "HPOSearch" in spec


def test_a_storage_that_stays_as_it_is_costs_one_job_in_each_period_and_nothing_else() -> None:
    one = polled()
    before, status = set(one.children), one.body["status"]
    assert reasons_of(one.settle()) == ("+Selected", "-Selected", "-AsExpected")
    for _ in range(3):
        (name,) = jobs(one)
        decision = poll(one, "a")
        assert decision.again_after is None
        job = Ref("Job", name)
        one.deleting[job] = one.children.pop(job)  # its time has come, and its pod goes first
        decision = one.decide()
        assert of_kind(decision.objects, "Job") == []
        one.settle()
        assert set(one.children) == before - {job}
        one.deleting.clear()
        one.later(100)
        one.settle()
        assert set(one.children) == before
        assert one.body["status"] == status


def test_a_storage_that_has_changed_is_selected_from_once() -> None:
    one = polled()
    decision = poll(one, "b")
    assert reasons_of(decision) == ("+Selected", "+Starting", "-AsExpected")
    (second,) = jobs(one)
    assert second.startswith("digits-select-")
    one.later(60)
    # What it finds may be newer than what the poll told.
    finish(one, one.children[Ref("Job", second)], "e" * 64, sources=[{"digest": "c" * 64}, {"digest": "d" * 64}])
    assert [name.split("-")[1] for name in jobs(one)] == ["poll"]
    assert reasons_of(poll(one, "c")) == ("+Selected", "-Selected", "-AsExpected")
    assert jobs(one) == []


def test_a_storage_that_is_again_as_it_was_is_selected_from_again() -> None:
    one = polled()
    names = set()
    for storage in "babab":
        one.later(60)
        poll(one, storage)
        (name,) = jobs(one)
        names.add(name)
        sources = [{"digest": storage * 64}, {"digest": "d" * 64}]
        finish(one, one.children[Ref("Job", name)], storage * 64, sources=sources)
        assert one.body["status"]["digest"] == storage * 64
    assert len(names) == 5


def test_a_lost_attempt_goes_on_for_what_the_poll_told() -> None:
    one = polled()
    poll(one, "b")
    (name,) = jobs(one)
    one.later(60)
    one.report(one.children[Ref("Job", name)], "select")
    one.remove(one.children[Ref("Job", name)])
    one.later(60)
    one.settle()
    assert jobs(one) == [f"{name}-2"]


def fail_selection(one: Play) -> None:
    (name,) = jobs(one)
    assert name.startswith("digits-select-")
    one.later(60)
    one.report(one.children[Ref("Job", name)], "select", "Failed", error={"message": "there is no library"})
    one.children[Ref("Job", name)]["status"] = {"conditions": [condition("Failed")]}
    assert reasons_of(one.settle()) == ("-SelectionFailed", "-SelectionFailed", "+SelectionFailed")


def test_a_selection_that_failed_is_tried_again_once_its_storages_are_others() -> None:
    """Before the first start nothing was known of them: the first poll may tell of a library that has come since."""
    one = play({}, sources=[STORAGE])
    one.settle()
    fail_selection(one)
    poll_alone(one, "a")
    fail_selection(one)
    decision = poll_alone(one, "a")
    assert reasons_of(decision) == ("-SelectionFailed", "-SelectionFailed", "+SelectionFailed")
    assert jobs(one) == []
    one.remove(one.children[Ref("Job", next(name for name in one.refs("Job") if "-poll-" in name))])
    one.settle()
    poll_alone(one, "b")
    (name,) = jobs(one)
    one.later(60)
    assert reasons_of(finish(one, one.children[Ref("Job", name)]))[0] == "+Selected"


def test_a_poll_that_fails_is_told_and_what_is_selected_stays() -> None:
    one = polled()
    decision = poll(one, "b", "Failed", error={"message": "imported has no library"}, result={})
    assert reasons_of(decision) == ("+Selected", "-Selected", "+SourcesNotReady")
    assert decision.conditions[2].message.endswith("have changed: imported has no library")
    one.remove(one.children[Ref("Job", one.refs("Job")[0])])
    assert reasons_of(one.settle()) == reasons_of(decision)  # until the next has told
    assert reasons_of(poll(one, "a"))[2] == "-AsExpected"


def test_a_poll_for_which_there_is_no_room_is_told() -> None:
    one = polled()
    (name,) = jobs(one)
    since = {"lastTransitionTime": time(one.now)}
    said = condition("PodScheduled", "False", reason="Unschedulable", message="no room.", **since)
    one.pod(one.children[Ref("Job", name)], "Pending", conditions=[said])
    one.later(30)
    assert reasons_of(one.settle()) == ("+Selected", "-Selected", "-AsExpected")
    one.later(31)
    decision = one.settle()
    assert reasons_of(decision) == ("+Selected", "-Selected", "+SourcesNotReady")
    assert "no room." in decision.conditions[2].message


@pytest.mark.parametrize("sources", [[], [{"digest": "b" * 64}], [{"digest": 3}] * 2, "b", [{"digest": "b" * 64}] * 17])
def test_a_poll_that_cannot_be_true_tells_nothing(sources: Any) -> None:
    one = polled()
    poll(one, "b", result={"summary": {"sources": sources}})
    assert jobs(one) == []


def test_a_report_without_its_sources_is_not_selected_from_for_ever() -> None:
    one = play({}, sources=[STORAGE])
    one.settle()
    finish(one, sources=[])
    for _ in range(2):
        one.later(60)
        poll_alone(one, "b")
        selecting = [name for name in jobs(one) if "-select-" in name]
        for name in selecting:
            finish(one, one.children[Ref("Job", name)], "e" * 64, sources=[])
    assert selecting == []


def poll_alone(one: Play, storage: str) -> Decision:
    """As `poll`, of a selection from one storage alone."""
    return poll(one, storage, result={"summary": {"sources": [{"digest": storage * 64}]}})


def test_once_polls_nothing() -> None:
    one = play({}, sources=[STORAGE], updatePolicy={"mode": "Once"})
    one.settle()
    finish(one)
    assert jobs(one) == []


def test_suspending_stops_all_and_keeps_the_result() -> None:
    one = polled()
    assert len(jobs(one)) == 1
    one.change(suspend=True)
    decision = one.settle()
    assert reasons_of(decision) == ("+Selected", "-Suspended", "-AsExpected")
    assert jobs(one) == []
    for _ in range(3):
        one.later(400)
        before = set(one.children)
        assert one.settle().objects == ()
        assert set(one.children) == before
    one.change(suspend=False)
    one.settle()
    assert [name.split("-")[1] for name in jobs(one)] == ["poll"]


@pytest.mark.parametrize("missing", [False, True])
def test_nothing_is_ready_for_a_specification_that_never_ran(missing: bool) -> None:
    one = play()
    one.settle()
    finish(one)
    if missing:
        one.change(sources=[{"hpoSearchName": "digits"}, {"hpoSearchName": "absent"}])
        expected = ("-SourcesNotReady", "+SourcesNotReady", "-AsExpected")
    else:
        one.change(budgets=[{"name": "tiny", "parametersMillions": 0.1}], suspend=True)
        expected = ("-Suspended", "-Suspended", "-AsExpected")
    for _ in range(3):
        decision = one.settle()
        assert reasons_of(decision) == expected
        assert decision.status["digest"] == "d" * 64
    one.others = {}  # now nobody can tell what the specification comes to
    assert reasons_of(one.settle())[0] == expected[0]


def test_what_is_ready_stays_ready_while_it_is_suspended_without_its_search() -> None:
    one = play()
    one.settle()
    finish(one)
    one.change(suspend=True)
    one.settle()
    one.others = {}
    assert reasons_of(one.settle()) == ("+Selected", "-Suspended", "-AsExpected")
    one.change(budgets=[{"name": "tiny", "parametersMillions": 0.1}])
    assert reasons_of(one.settle()) == ("-Suspended", "-Suspended", "-AsExpected")


def test_a_search_that_is_deleted_leaves_the_result() -> None:
    one = play()
    one.settle()
    finish(one)
    one.others = {}
    decision = one.settle()
    assert reasons_of(decision) == ("+Selected", "+SourcesNotReady", "-AsExpected")
    assert decision.status["digest"] == "d" * 64


@pytest.mark.parametrize("result", [{"digest": None}, {"summary": {"budgets": [{"name": "A b"}]}}])
def test_a_job_without_a_result_needs_a_person(result: dict[str, Any]) -> None:
    one = play()
    one.settle()
    job = one.workload()
    one.report(job, "select", "Succeeded", result={"digest": "d" * 64, "summary": SUMMARY} | result)
    job["status"] = {"conditions": [condition("Complete")]}
    decision = one.settle()
    assert reasons_of(decision) == ("-ReportMissing", "-ReportMissing", "+ReportMissing")
    assert decision.status == {}


def test_a_report_that_left_out_its_budgets_is_a_result_all_the_same() -> None:
    one = play()
    one.settle()
    decision = finish(one, budgets=[], omitted=True)
    assert reasons_of(decision)[0] == "+Selected"
    assert decision.conditions[0].message.endswith("they are in the library")
    assert decision.status["digest"] == "d" * 64


def test_paths_are_refused() -> None:
    decision = play({}, sources=[{"storage": {"path": "/etc"}}]).step()
    assert reasons_of(decision) == ("-InvalidSpec", "-InvalidSpec", "+InvalidSpec")
    assert "sources[0].storage.path: is only for one machine" in decision.conditions[2].message


def test_what_runs_for_an_older_specification_is_stopped() -> None:
    one = play()
    one.settle()
    (first,) = jobs(one)
    one.now += timedelta(seconds=1)
    one.change(keepAtLeast=5)
    one.settle()
    (second,) = jobs(one)
    assert first != second
    assert of_kind(one.decide().objects, "Job")[0]["metadata"]["name"] == second


def test_a_job_that_never_began_is_made_anew_in_another_queue() -> None:
    one = play()
    one.settle()
    one.body["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "cpus"
    one.step()
    assert one.refs("Job") == []
    one.settle()
    assert one.workload()["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "cpus"
