from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from typing import Any

import pytest
from tests.support import play as play_support
from tests.support.play import Play, body_of, condition, of_kind, reasons_of, time

from ensemble_core.api.hposearch import HPOSearchStatus
from ensemble_operator.hposearch import KIND, engine_of
from ensemble_operator.training import gpus_at_a_time
from ensemble_operator.workload import told
from ensemble_operator.world import Manifest, Ref

CLAIM = {"persistentVolumeClaim": {"claimName": "libraries", "subPath": "digits"}}
SPEC = {"library": {"storage": CLAIM}, "dataset": {"builtin": "digits"}, "maxTrialCount": 40}
SUMMARY: dict[str, Any] = {
    "trials": {"total": 14, "pending": 0, "running": 2, "succeeded": 4, "earlyStopped": 7, "failed": 1},
    "best": {
        "modelId": "digits-0003",
        "trial": "digits-0003",
        "value": 0.2312,
        "parameters": [{"name": "learningRate", "value": "0.001"}],
        "metrics": {
            "crossEntropy": 0.2312,
            "error": 0.05,
            "macroF1": 0.94,
            "top5Error": 0.0,
            "parameters": 9,
            "flops": 1,
        },
    },
    "front": [{"modelId": "digits-0003", "values": [0.2312, 1e6]}, {"modelId": "digits-0004", "values": [0.3, None]}],
    "models": 11,
    "libraryDigest": "a" * 64,
    "occupancy": 0.9712,
    "attempt": 1,
    "startTime": "2026-01-01T12:00:00Z",
    "completionTime": None,
}


def play(spec: dict[str, Any] | None = None, **further: Any) -> Play:
    body = body_of("HPOSearch", "digits", {**SPEC, **(spec or {})}, labels={"kueue.x-k8s.io/queue-name": "gpus"})
    return Play(KIND, body, **further)


def running(one: Play, summary: Any = SUMMARY) -> Manifest:
    """The present RayJob, made to run and to report."""
    one.settle()
    child = one.workload()
    child["status"] = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
    one.report(child, "train", progress={"stage": "train", "note": "best cross-entropy 0.2312", "summary": summary})
    return child


def finish(one: Play, child: Manifest, **summary: Any) -> None:
    ended = {**SUMMARY, "completionTime": "2026-01-01T13:00:00Z", **summary}
    one.report(child, "train", "Succeeded", result={"digest": "a" * 64, "summary": ended})


def test_a_new_search_gets_a_rayjob_and_what_it_needs_in_this_order() -> None:
    decision = play().step()
    assert [one["kind"] for one in decision.objects] == [
        "ConfigMap",
        "ServiceAccount",
        "ConfigMap",
        "Role",
        "RoleBinding",
        "NetworkPolicy",
        "RayJob",
    ]
    assert reasons_of(decision) == ("-Starting", "+Starting", "-AsExpected")
    rayjob = decision.objects[-1]
    assert rayjob["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    specification = decision.objects[0]
    assert specification["immutable"] is True
    child = rayjob["metadata"]["name"]
    assert rayjob["spec"]["entrypoint"] == (
        f"ensemble train --spec /etc/ensemble/spec.yaml --name digits --report configmap:lab/{child}-report --ray auto"
    )
    role = of_kind(decision.objects, "Role")[0]
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [f"{child}-report"], "verbs": ["patch"]}
    ]


def test_nothing_changes_while_nothing_happens() -> None:
    one = play()
    one.settle()
    before = json.dumps(sorted(map(str, one.children)))
    one.later(3600)
    one.settle()
    assert json.dumps(sorted(map(str, one.children))) == before


@pytest.mark.parametrize(
    ("spec", "capabilities", "present", "engine"),
    [
        ({}, {"RayJob"}, None, "RayJob"),
        ({}, set(), None, "Job"),
        ({"engine": "job"}, {"RayJob"}, None, "Job"),
        ({"engine": "rayjob"}, {"RayJob"}, None, "RayJob"),
        ({"engine": "rayjob"}, set(), None, None),
        ({"workers": {"replicas": 0}}, {"RayJob"}, None, "Job"),
        ({}, {"RayJob"}, "Job", "Job"),
        ({}, set(), "RayJob", "RayJob"),
    ],
)
def test_the_engine(spec: Any, capabilities: set[str], present: Any, engine: Any) -> None:
    world = play(spec).world()
    assert engine_of(world.resource.spec, frozenset(capabilities), present) == engine


def test_a_search_does_not_change_its_engine_when_kuberay_comes() -> None:
    one = play(capabilities=frozenset())
    one.settle()
    one.capabilities = frozenset({"RayJob"})
    one.settle()
    assert one.workload()["kind"] == "Job"


def test_without_kuberay_a_rayjob_cannot_be() -> None:
    decision = play({"engine": "rayjob"}, capabilities=frozenset()).step()
    assert reasons_of(decision) == ("-KubeRayMissing", "-KubeRayMissing", "+KubeRayMissing")
    assert "install KubeRay, or use engine: job" in decision.conditions[0].message
    assert of_kind(decision.objects, "Job") == []


def test_a_rayjob_without_workers_is_refused() -> None:
    one = play()
    one.settle()
    one.change(engine="rayjob", workers={"replicas": 0})
    decision = one.step()
    # The RayJob of the former specification goes on, for nothing else can be concluded.
    assert reasons_of(decision) == ("-InvalidSpec", "-InvalidSpec", "+InvalidSpec")
    assert "spec.workers.replicas: 0 leaves nobody to train" in decision.conditions[2].message
    assert one.refs("RayJob")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"resourcesPerTrial": {"cpu": 8.0}}, "spec.workers.cpu: 4 is less than the 8 of a trial"),
        ({"resourcesPerTrial": {"gpu": 0.5}}, "spec.workers.gpu: 0 is less than the 0.5 of a trial"),
    ],
)
def test_workers_that_no_trial_fits_on_are_refused(spec: Any, words: str) -> None:
    decision = play(spec).step()
    assert reasons_of(decision)[2] == "+InvalidSpec"
    assert words in decision.conditions[2].message
    assert reasons_of(play({**spec, "engine": "job"}).step())[0] == "-Starting"


@pytest.mark.parametrize(
    ("parallel", "gpu", "gpus"),
    [
        (1, 0, 0),
        (4, 1, 4),
        (4, 2, 8),
        (16, 0.5, 8),
        (5, 0.4, 3),
        (4, 0.3, 2),
        (1, 0.1, 1),
        (40, 0.025, 1),
        (9, 1e-320, 1),
    ],
)
def test_gpus_of_one_pod(parallel: int, gpu: float, gpus: int) -> None:
    spec = {"parallelTrialCount": parallel, "resourcesPerTrial": {"cpu": 1.0, "gpu": float(gpu)}}
    assert gpus_at_a_time(play(spec).world().resource.spec) == gpus


def test_what_a_running_search_tells() -> None:
    one = play()
    running(one)
    decision = one.step()
    assert reasons_of(decision) == ("-Training", "+Training", "-AsExpected")
    assert decision.conditions[1].message == ("12 of 40 trials have ended; best cross-entropy 0.2312")
    assert decision.status == {
        "startTime": "2026-01-01T12:00:00Z",
        "attempt": 1,
        "progress": "12/40",
        "trials": 14,
        "trialsPending": 0,
        "trialsRunning": 2,
        "trialsSucceeded": 4,
        "trialsEarlyStopped": 7,
        "trialsFailed": 1,
        "currentOptimalTrial": {
            "bestTrialName": "digits-0003",
            "modelId": "digits-0003",
            "value": 0.2312,
            "parameterAssignments": [{"name": "learningRate", "value": "0.001"}],
            "observation": {"crossEntropy": 0.2312, "error": 0.05, "macroF1": 0.94, "top5Error": 0.0},
        },
        "paretoFront": [{"modelId": "digits-0003", "values": [0.2312, 1e6]}],
        "library": {"models": 11, "digest": "a" * 64, "changedTime": time(one.now)},
        "occupancyPercent": 97.1,
    }


def test_the_library_tells_when_it_changed() -> None:
    one = play()
    child = running(one)
    one.step()
    first = time(one.now)
    one.later(60)
    assert one.step().status["library"]["changedTime"] == first
    one.report(child, "train", progress={"summary": {**SUMMARY, "libraryDigest": "b" * 64}})
    assert one.step().status["library"]["changedTime"] == time(one.now)


def test_a_finished_search_is_ready_and_stays_so_without_its_rayjob() -> None:
    one = play()
    child = running(one)
    finish(one, child)
    decision = one.settle()
    assert reasons_of(decision) == ("+Trained", "-Trained", "-AsExpected")
    assert decision.conditions[0].message == "12 of 40 trials have ended; best crossEntropy 0.2312 (digits-0003)"
    assert decision.status["completionTime"] == "2026-01-01T13:00:00Z"
    assert one.refs("RayJob")
    one.remove(one.workload())
    assert reasons_of(one.settle())[0] == "+Trained"
    assert one.refs("RayJob") == []


def test_a_finished_search_that_is_suspended_is_still_ready() -> None:
    one = play()
    finish(one, running(one))
    one.change(suspend=True)
    assert reasons_of(one.settle()) == ("+Trained", "-Trained", "-AsExpected")


def test_a_search_continues_when_more_trials_are_asked_for() -> None:
    one = play()
    first = running(one)
    finish(one, first, trials={**SUMMARY["trials"], "total": 40, "running": 0, "succeeded": 32})
    one.settle()
    one.later(60)
    one.change(maxTrialCount=60)
    decision = one.settle()
    assert reasons_of(decision) == ("-Starting", "+Starting", "-AsExpected")
    assert decision.status["progress"] == "40/60"  # from the report of the start before
    names = one.refs("RayJob")
    assert len(names) == 2
    assert first["metadata"]["name"] in names
    # Only the present one has an identity.
    assert (
        one.refs("Role") == one.refs("ServiceAccount") == [name for name in names if name != first["metadata"]["name"]]
    )
    one.later(60)
    one.change(maxTrialCount=80)
    one.settle()
    assert first["metadata"]["name"] not in one.refs("RayJob")
    # What the first has told is all that is known of the library yet.
    assert len(one.refs("ConfigMap")) == 6
    assert one.body["status"]["progress"] == "40/80"
    assert one.body["status"]["library"]["models"] == 11


def test_a_changed_search_stops_what_runs() -> None:
    one = play()
    first = running(one)
    one.later(1)
    one.change(parallelTrialCount=4)
    one.settle()
    assert one.refs("RayJob") == [one.workload()["metadata"]["name"]]
    assert one.workload()["metadata"]["name"] != first["metadata"]["name"]


def test_new_images_restart_nothing() -> None:
    one = play()
    name = running(one)["metadata"]["name"]
    world = one.world()
    upgraded = replace(world, settings=replace(world.settings, trainer_image="trainer:2"))
    assert KIND.decide(upgraded).objects[-1]["metadata"]["name"] == name


def test_suspending_removes_the_rayjob_and_resuming_makes_the_next_attempt() -> None:
    one = play()
    first = running(one)
    one.change(suspend=True)
    decision = one.settle()
    assert reasons_of(decision) == ("-Suspended", "-Suspended", "-AsExpected")
    assert one.refs("RayJob") == []
    assert decision.status["progress"] == "12/40"
    assert (decision.status["trialsRunning"], decision.status["trialsPending"]) == (0, 2)
    one.later(60)
    one.change(suspend=False)
    one.settle()
    second = one.workload()
    assert second["metadata"]["name"] == f"{first['metadata']['name']}-2"
    env = second["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "ENSEMBLE_ATTEMPT", "value": "2"} in env


def test_suspending_before_anything_was_reported_repeats_the_attempt() -> None:
    one = play({"suspend": True})
    one.settle()
    assert one.refs("RayJob") == []
    one.change(suspend=False)
    one.settle()
    assert not one.workload()["metadata"]["name"].endswith("-2")


def test_a_lost_search_continues_after_a_growing_pause() -> None:
    one = play()
    child = running(one)
    for attempt, pause in ((1, 10), (2, 20), (3, 40)):
        child["status"] = {
            "jobDeploymentStatus": "Failed",
            "reason": "JobStatusCheckTimeoutExceeded",
            "endTime": time(one.now),
        }
        decision = one.settle()
        assert reasons_of(decision) == ("-Lost", "+Lost", "-AsExpected")
        assert f"attempt {attempt} was lost: JobStatusCheckTimeoutExceeded" in decision.conditions[1].message
        assert decision.again_after == pytest.approx(pause)
        assert decision.status["progress"] == f"{11 + attempt}/40"
        one.later(pause + 1)
        one.settle()
        (child,) = [
            manifest
            for manifest in one.children.values()
            if manifest["metadata"]["name"].endswith(f"-{attempt + 1}") and manifest["kind"] == "RayJob"
        ]
        one.report(child, "train", progress={"summary": progressed(attempt)})


def progressed(trials: int) -> dict[str, Any]:
    return {**SUMMARY, "trials": {**SUMMARY["trials"], "succeeded": 4 + trials}}


def lose(one: Play, summary: Any = SUMMARY) -> Manifest:
    """The newest RayJob reports and is lost; the next one is there after that."""
    rayjobs = [child for ref, child in one.children.items() if ref.kind == "RayJob"]
    child = max(rayjobs, key=lambda one: int(one["metadata"]["annotations"]["ensemble-operator.io/attempt"]))
    one.report(child, "train", progress={"summary": summary})
    child["status"] = {"jobDeploymentStatus": "Failed", "reason": "AppFailed", "endTime": time(one.now)}
    return child


def test_a_search_that_is_lost_at_the_same_place_again_and_again_needs_a_person() -> None:
    one = play()
    one.settle()
    for _ in range(2):
        lose(one)
        assert reasons_of(one.settle())[2] == "-AsExpected"
        one.later(600)
        one.settle()
    lose(one)
    decision = one.settle()
    assert reasons_of(decision) == ("-Lost", "+Lost", "+Lost")
    assert "the last 3 attempts were lost at the same place: AppFailed" in decision.conditions[2].message
    one.later(600)
    decision = one.settle()  # the next attempt, which is as likely to fail
    assert reasons_of(decision) == ("-Lost", "+Starting", "+Lost")
    assert len(one.refs("RayJob")) == 4
    (child,) = [one.children[Ref("RayJob", name)] for name in one.refs("RayJob") if name.endswith("-4")]
    child["status"] = {"jobDeploymentStatus": "Running"}
    one.report(child, "train", progress={"summary": progressed(1)})
    assert reasons_of(one.settle()) == ("-Training", "+Training", "-AsExpected")
    lose(one, progressed(1))
    assert reasons_of(one.settle()) == ("-Lost", "+Lost", "-AsExpected")
    assert len(one.refs("RayJob")) == 3  # what was lost before that is not kept for ever


def test_the_next_attempt_does_not_tell_that_nothing_was_done() -> None:
    one = play()
    lost = running(one)
    lost["status"] = {"jobDeploymentStatus": "Failed", "endTime": time(one.now)}
    one.settle()
    one.later(600)
    one.settle()
    (child,) = [c for r, c in one.children.items() if r.kind == "RayJob" and r.name.endswith("-2")]
    child["status"] = {"jobDeploymentStatus": "Running"}
    decision = one.settle()
    assert decision.status["progress"] == "12/40"
    best = "best crossEntropy 0.2312 (digits-0003)"
    assert decision.conditions[1].message == f"12 of 40 trials have ended; {best}"
    one.report(child, "train", progress={"note": "waits for workers"})
    assert one.settle().conditions[1].message == "12 of 40 trials have ended; waits for workers"


def test_a_pod_that_is_being_ended_is_no_failure() -> None:
    """As when its node is drained in the midst of the search."""
    one = play(capabilities=frozenset())
    one.settle()
    job = one.workload()
    pod = one.pod(job)
    one.report(job, "train", progress={"note": "interrupted", "summary": SUMMARY})
    one.later(7200)
    pod["metadata"]["deletionTimestamp"] = time(one.now)
    place = Ref("Pod", pod["metadata"]["name"])
    one.deleting[place] = one.children.pop(place)
    decision = one.settle()
    assert reasons_of(decision) == ("-Starting", "+Starting", "-AsExpected")
    assert f"pod {place.name} is being ended" in decision.conditions[1].message
    one.deleting.clear()
    assert reasons_of(one.settle()) == ("-Starting", "+Starting", "-AsExpected")


def test_a_search_whose_rayjobs_vanish_is_not_started_in_a_loop() -> None:
    one = play()
    one.remove(running(one))
    assert reasons_of(one.settle())[0] == "-Lost"
    assert one.refs("RayJob") == []
    one.later(11)
    one.settle()
    assert len(one.refs("RayJob")) == 1


def test_the_library_is_not_forgotten_when_attempts_are_lost_without_a_word() -> None:
    one = play()
    child = running(one)
    one.settle()
    for attempt in range(2, 5):
        child["status"] = {"jobDeploymentStatus": "Failed", "endTime": time(one.now)}
        one.settle()
        one.later(600)
        one.settle()
        (child,) = [c for r, c in one.children.items() if r.kind == "RayJob" and r.name.endswith(f"-{attempt}")]
        assert one.body["status"]["library"]["digest"] == "a" * 64
        assert one.body["status"]["progress"] == "12/40"


QUEUE = "kueue.x-k8s.io/queue-name"


def unpullable(one: Play) -> Manifest:
    waiting = {"name": "ray-head", "image": "trainer:1", "state": {"waiting": {"reason": "ImagePullBackOff"}}}
    return one.pod(one.workload(), "Pending", containerStatuses=[waiting])


@pytest.mark.parametrize("capabilities", [frozenset({"RayJob"}), frozenset()])
def test_a_queue_that_is_put_right_takes_effect_on_what_waits(capabilities: frozenset[str]) -> None:
    one = play(capabilities=capabilities)
    one.settle()
    waiting = one.workload()
    waiting["spec"]["suspend"] = True  # Kueue's doing
    one.settle()
    assert one.workload() is waiting
    one.body["metadata"]["labels"][QUEUE] = "cpus"
    decision = one.step()
    assert reasons_of(decision)[0] == "-Queued"
    assert decision.again_after is not None
    assert not one.refs("Job") + one.refs("RayJob")
    assert reasons_of(one.settle())[0] == "-Starting"
    assert one.workload()["metadata"]["labels"][QUEUE] == "cpus"
    assert one.workload()["metadata"]["name"] == waiting["metadata"]["name"]


def test_what_never_began_is_made_anew_when_its_image_is_put_right(monkeypatch: pytest.MonkeyPatch) -> None:
    one = play()
    one.settle()
    pod = unpullable(one)
    assert reasons_of(one.settle())[2] == "+ImagePullFailed"
    one.workload()["metadata"]["labels"]["mutated"] = "by-a-webhook"
    one.settle()
    monkeypatch.setattr(play_support, "SETTINGS", replace(play_support.SETTINGS, trainer_image="trainer:2"))
    one.step()
    assert one.refs("RayJob") == []
    one.remove(pod)
    one.settle()
    head = one.workload()["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert head["image"] == "trainer:2"


@pytest.mark.parametrize("begun", ["state", "lastState", "report", "counted", "goes", "runs"])
def test_what_has_begun_is_not_made_anew(begun: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = play(capabilities=frozenset())
    one.settle()
    job, pod = one.workload(), unpullable(one)
    container = pod["status"]["containerStatuses"][0]
    if begun == "state":
        other = {"name": "profile", "state": {"terminated": {"exitCode": 0}}}
        pod["status"]["initContainerStatuses"] = [other]
    elif begun == "lastState":
        container["lastState"] = {"terminated": {"exitCode": 1}}
    elif begun == "report":
        one.report(job, "train", progress={"note": "x"})
    elif begun == "counted":
        job["status"] = {"failed": 1}
    elif begun == "goes":
        one.deleting = {Ref("Pod", "x"): {"metadata": {"name": "x"}}}
    else:
        pod["status"] = {"phase": "Running"}
    monkeypatch.setattr(play_support, "SETTINGS", replace(play_support.SETTINGS, trainer_image="trainer:2"))
    one.settle()
    assert one.workload() is job


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("2026W011T00+00", None),
        ("2026-W01-1T00:00+00:00", "2025-12-29T00:00:00Z"),
        ("20260101T120000+0200", "2026-01-01T10:00:00Z"),
        ("0001-01-01T00:00:00Z", None),
        ("2026-01-01T12:00:00", None),
    ],
)
def test_times_are_told_as_the_server_takes_them(text: str, told: str | None) -> None:
    one = play()
    running(one, {**SUMMARY, "startTime": text})
    found = one.step().status.get("startTime")
    assert found == told or (told is None and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found))


def test_numbers_that_are_too_large_together_stay_within_bounds() -> None:
    one = play()
    running(one, {**SUMMARY, "trials": {"pending": 2**31 - 1, "running": 1}})
    one.change(suspend=True)
    assert one.settle().status["trialsPending"] == 2**31 - 1


def test_a_search_that_is_lost_before_it_told_anything_needs_a_person() -> None:
    one = play()
    one.settle()
    one.workload()["status"] = {"jobDeploymentStatus": "Failed", "reason": "SubmissionFailed", "endTime": time(one.now)}
    assert reasons_of(one.settle()) == ("-Lost", "+Lost", "+Lost")


def test_a_failed_search_says_why_and_is_tried_again_when_its_rayjob_is_deleted() -> None:
    one = play()
    child = running(one)
    error = {"field": "spec.dataset", "message": "no such folder", "logTail": "Traceback"}
    one.report(child, "train", "Failed", error=error, progress={"summary": SUMMARY})
    decision = one.settle()
    assert reasons_of(decision) == ("-TrainingFailed", "-TrainingFailed", "+TrainingFailed")
    name = child["metadata"]["name"]
    assert decision.conditions[2].message == (
        "spec.dataset: no such folder\nTraceback\nchange the specification, or delete RayJob"
        f" {name} to have it tried again as it is; if a field is wrong that cannot be changed, make a new HPOSearch"
    )
    assert decision.status["progress"] == "12/40"
    one.later(60)
    one.remove(one.workload())
    one.settle()
    assert one.workload()["metadata"]["name"] == f"{name}-2"


def test_a_failed_search_is_tried_again_when_it_is_suspended_and_resumed() -> None:
    one = play()
    child = running(one)
    one.report(child, "train", "Failed", error={"message": "no such bucket"})
    one.settle()
    one.change(suspend=True)
    assert reasons_of(one.settle())[0] == "-Suspended"
    assert one.refs("RayJob") == []
    one.later(60)
    one.change(suspend=False)
    one.settle()
    assert one.workload()["metadata"]["name"] == f"{child['metadata']['name']}-2"


@pytest.mark.parametrize("tamper", ["deleted", "forged", "garbage"])
def test_a_report_that_is_tampered_with_does_no_harm(tamper: str) -> None:
    one = play()
    child = running(one)
    one.settle()
    ref = Ref("ConfigMap", f"{child['metadata']['name']}-report")
    if tamper == "deleted":
        del one.children[ref]
    elif tamper == "forged":
        one.body["metadata"]["uid"], forged = "other", one.body["metadata"]["uid"]
        one.report(child, "train", "Succeeded", result={"digest": "c" * 64})
        one.body["metadata"]["uid"] = forged
    else:
        one.children[ref]["data"] = {"report.json": "x" * 100}
    decision = one.settle()
    assert reasons_of(decision)[0] == "-Training"
    assert ref in one.children
    child["status"] = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
    decision = one.settle()
    assert reasons_of(decision) == ("-ReportMissing", "-ReportMissing", "+ReportMissing")
    assert f"delete RayJob {child['metadata']['name']} to have it run again" in decision.conditions[0].message


@pytest.mark.parametrize(
    "wrong",
    [
        {"trials": {"succeeded": -1}},
        {"best": {"modelId": 3}},
        {"front": [{"modelId": "x", "values": [1.0] * 5}]},
        {"front": [{"modelId": "x", "values": [1.0]}] * 101},
        {"libraryDigest": "x"},
        {"occupancy": -7.0},
    ],
)
def test_a_wrong_summary_leaves_the_status_empty(wrong: dict[str, Any]) -> None:
    one = play()
    running(one, {**SUMMARY, **wrong})
    decision = one.step()
    assert decision.status == {}
    assert reasons_of(decision)[0] == "-Training"


def test_no_attack_on_a_shell() -> None:
    """Names are DNS labels; even so, the entrypoint is quoted as a shell takes it."""
    one = play()
    one.settle()
    assert shlex.split(one.workload()["spec"]["entrypoint"])[:2] == ["ensemble", "train"]


# --- deletion -------------------------------------------------------------------------------------------------------


def deleted(storage: Any = CLAIM, **further: Any) -> Play:
    one = play({"library": {"storage": storage, "deletionPolicy": "Delete"}}, **further)
    assert one.settle().finalizer
    one.body["metadata"] |= {"deletionTimestamp": time(one.now), "finalizers": ["ensemble-operator.io/library"]}
    return one


def test_a_library_that_is_kept_needs_no_finalizer() -> None:
    one = play()
    assert not one.settle().finalizer
    one.body["metadata"]["deletionTimestamp"] = time(one.now)
    decision = one.step()
    assert (decision.objects, decision.finalizer) == ((), False)


def test_the_library_is_deleted_once_training_has_ended() -> None:
    one = deleted()
    rayjob = one.workload()
    pod = one.pod(rayjob)
    decision = one.step()
    assert reasons_of(decision) == ("-DeletingLibrary", "+DeletingLibrary", "-AsExpected")
    assert one.refs("RayJob") == []
    decision = one.step()
    name = pod["metadata"]["name"]
    assert decision.conditions[1].message == f"waits until the pods that write the library have ended: Pod {name}"
    one.remove(pod)
    one.deleting = {Ref("Pod", name): pod}
    decision = one.step()
    assert decision.objects == ()
    assert decision.conditions[1].message == f"waits until the pods that write the library have ended: Pod {name}"
    one.deleting = {Ref("Pod", f"worker-{number}"): pod for number in range(7)}
    assert one.step().conditions[1].message.endswith("Pod worker-3, Pod worker-4 and 2 more")
    one.deleting = {}
    one.settle()
    job = one.workload()
    assert job["metadata"]["labels"]["app.kubernetes.io/component"] == "delete"
    assert "kueue.x-k8s.io/queue-name" not in job["metadata"]["labels"]
    assert job["spec"]["activeDeadlineSeconds"] > 0
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[:3] == ["ensemble", "library", "delete"]
    # Its own pod does not stop it.
    one.pod(job)
    one.deleting = {Ref("Pod", "other"): {"metadata": {"name": "other"}}}
    assert one.step().objects
    job["status"] = {"conditions": [condition("Complete")]}
    assert not one.step().finalizer


def test_a_library_that_cannot_be_deleted_says_what_to_do() -> None:
    one = deleted()
    one.step()
    one.settle()
    one.workload()["status"] = {"conditions": [condition("Failed", message="DeadlineExceeded")]}
    decision = one.settle()
    assert reasons_of(decision) == ("-LibraryDeletionFailed", "-LibraryDeletionFailed", "+LibraryDeletionFailed")
    assert "DeadlineExceeded" in decision.conditions[0].message
    assert "or set spec.library.deletionPolicy: Retain" in decision.conditions[0].message
    assert decision.finalizer
    one.change(library={"storage": CLAIM, "deletionPolicy": "Retain"})
    assert not one.step().finalizer


def interrupted(one: Play, note: str, reason: str) -> None:
    """The Job of the deletion has ended without a verdict."""
    job = one.workload()
    one.report(job, "delete", progress={"note": note})
    job["status"] = {
        "conditions": [condition("Failed", reason=reason, message=reason, lastTransitionTime=time(one.now))]
    }


def test_a_deletion_that_storage_does_not_let_begin_says_so_and_goes_on() -> None:
    one = deleted()
    one.step()
    one.settle()
    interrupted(one, "interrupted: s3://libraries: does not answer any more", "BackoffLimitExceeded")
    decision = one.settle()
    assert reasons_of(decision) == ("-Lost", "+Lost", "+Lost")
    assert "s3://libraries: does not answer any more; the next one continues at" in decision.conditions[2].message
    assert (decision.finalizer, decision.again_after) == (True, 10.0)
    one.later(11)
    one.settle()
    assert [name[-2:] for name in one.refs("Job")][-1] == "-2"


@pytest.mark.parametrize("note", ["interrupted", "interrupted: s3://libraries: does not answer any more"])
def test_a_deletion_that_exceeds_its_deadline_is_given_up(note: str) -> None:
    one = deleted()
    one.step()
    one.settle()
    interrupted(one, note, "DeadlineExceeded")
    for _ in range(2):
        decision = one.settle()
        assert reasons_of(decision) == ("-LibraryDeletionFailed", "-LibraryDeletionFailed", "+LibraryDeletionFailed")
        assert note.removeprefix("interrupted: ") in decision.conditions[2].message or note == "interrupted"
        assert len(one.refs("Job")) == 1
        one.later(3600)


def test_a_namespace_that_goes_is_not_held() -> None:
    one = deleted()
    one.step()
    one.settle()
    refused = (
        'jobs.batch "x" is forbidden: unable to create new content in namespace lab because it is being terminated'
    )
    one.body["status"]["conditions"] = [condition("Degraded", reason="ApplyFailed", message=f"Job x: {refused}")]
    decision = one.decide()
    assert not decision.finalizer
    assert "the namespace is being deleted" in decision.conditions[1].message


def other(kind: str, name: str, spec: dict[str, Any], **metadata: Any) -> dict[Ref, Manifest]:
    return {Ref(kind, name): body_of(kind, name, spec, **metadata)}


def bucket(prefix: str = "digits", secret: str = "writer", **further: str) -> dict[str, Any]:
    return {"s3": {"bucket": "libraries", "prefix": prefix, **further}, "credentialsSecretRef": {"name": secret}}


BUDGETS = [{"name": "small", "memoryMiB": 64.0}]
ELSEWHERE = other("HPOSearch", "else", SPEC | {"library": {"storage": bucket()}})
USERS = {
    "by name": other("EnsembleSelection", "a", {"sources": [{"hpoSearchName": "digits"}], "budgets": BUDGETS}),
    "by storage": other("EnsembleSelection", "a", {"sources": [{"storage": CLAIM}], "budgets": BUDGETS}),
    "as output": other(
        "EnsembleSelection", "a", {"sources": [{"hpoSearchName": "else"}], "library": CLAIM, "budgets": BUDGETS}
    )
    | ELSEWHERE,
    "by another search": other("EnsembleSelection", "a", {"sources": [{"hpoSearchName": "b"}], "budgets": BUDGETS})
    | other("HPOSearch", "b", SPEC),
    "perhaps": other("EnsembleSelection", "a", {"sources": "?"}),
}


@pytest.mark.parametrize("how", USERS)
def test_a_library_in_use_is_not_deleted(how: str) -> None:
    one = deleted(others=USERS[how])
    users = ("EnsembleSelection", "EnsembleDeployment", "HPOSearch")
    assert KIND.references(one.world().resource, one.body, {}) == tuple(Ref(kind, "*") for kind in users)
    decision = one.settle()
    assert reasons_of(decision) == ("-LibraryInUse", "-LibraryInUse", "+LibraryInUse")
    assert "is still used by EnsembleSelection a; delete these first" in decision.conditions[0].message
    assert decision.finalizer
    assert one.refs("RayJob") == []
    one.others = other("HPOSearch", "b", SPEC)  # which keeps its own models
    one.settle()
    assert one.workload()["kind"] == "Job"


SAME_PLACE = {
    "another secret": bucket(secret="reader"),
    "no secret": {"s3": {"bucket": "libraries", "prefix": "digits"}},
    "a region": bucket(region="eu-west-1"),
    "a slash": bucket(endpoint="http://minio:9000/"),
    "another address": bucket(endpoint="http://minio.lab.svc:9000"),
}


@pytest.mark.parametrize("how", SAME_PLACE)
def test_a_place_is_the_same_however_it_is_reached(how: str) -> None:
    one = deleted(storage=bucket(endpoint="http://minio:9000"))
    by_name = {"sources": [{"hpoSearchName": "b"}], "budgets": BUDGETS}
    search = SPEC | {"library": {"storage": SAME_PLACE[how]}}
    for users in (
        other("EnsembleSelection", "a", {"sources": [{"storage": SAME_PLACE[how]}], "budgets": BUDGETS}),
        other("EnsembleSelection", "a", by_name | {"library": SAME_PLACE[how]}) | other("HPOSearch", "b", SPEC),
        other("EnsembleSelection", "a", by_name) | other("HPOSearch", "b", search),
    ):
        one.others = users
        assert reasons_of(one.settle())[0] == "-LibraryInUse"


@pytest.mark.parametrize("place", [bucket("digits-2"), bucket("digits/2"), bucket(""), CLAIM])
def test_another_place_is_not_in_the_way(place: Any) -> None:
    selection = {"sources": [{"hpoSearchName": "b"}, {"storage": place}], "library": place, "budgets": BUDGETS}
    search = SPEC | {"library": {"storage": place}}
    one = deleted(bucket(), others=other("EnsembleSelection", "a", selection) | other("HPOSearch", "b", search))
    one.step()
    one.settle()
    assert one.workload()["metadata"]["labels"]["app.kubernetes.io/component"] == "delete"


@pytest.mark.parametrize("found", ["absent", "unreadable"])
def test_a_selection_of_a_search_whose_library_nobody_knows_may_use_it(found: str) -> None:
    others = other("EnsembleSelection", "a", {"sources": [{"hpoSearchName": "b"}], "budgets": BUDGETS})
    one = deleted(others=others | (other("HPOSearch", "b", {"library": "?"}) if found == "unreadable" else {}))
    assert "is still used by EnsembleSelection a; delete" in one.settle().conditions[0].message


def test_resources_that_are_going_themselves_do_not_use_the_library() -> None:
    spec = {"sources": [{"hpoSearchName": "digits"}], "budgets": BUDGETS}
    others = other("EnsembleSelection", "a", spec, deletionTimestamp="2026-01-01T00:00:00Z")
    others |= other("EnsembleSelection", "b", {"sources": [{"hpoSearchName": "else"}], "budgets": BUDGETS})
    others |= other("HPOSearch", "digits", SPEC) | ELSEWHERE
    one = deleted(others=others)
    one.step()
    one.settle()
    assert one.workload()["metadata"]["labels"]["app.kubernetes.io/component"] == "delete"
    assert play().kind.references(play().world().resource, play().body, {}) == ()


def deployment(selection: str, **metadata: Any) -> dict[Ref, Manifest]:
    spec = {"selectionRef": {"name": selection, "budgetName": "small"}, "devices": [{"name": "cpu", "type": "cpu"}]}
    return other("EnsembleDeployment", "served", spec, **metadata)


def test_a_library_that_is_served_is_not_deleted() -> None:
    """Also after its selection is gone: new pods still load models from it."""
    elsewhere = {"sources": [{"hpoSearchName": "else"}], "budgets": BUDGETS}
    selections = other("EnsembleSelection", "b", elsewhere) | ELSEWHERE
    selection = {"sources": [{"hpoSearchName": "digits"}], "budgets": BUDGETS}
    one = deleted(others=other("EnsembleSelection", "a", selection) | deployment("a"))
    message = one.settle().conditions[0].message
    assert "is still used by EnsembleSelection a, EnsembleDeployment served; delete these first" in message
    for gone in (deployment("a"), other("EnsembleDeployment", "served", {"devices": "?"})):
        one.others = gone | selections
        decision = one.settle()
        assert reasons_of(decision)[0] == "-LibraryInUse"
        assert "is still used by EnsembleDeployment served; delete" in decision.conditions[0].message
    one.others = deployment("b") | selections
    one.settle()
    assert one.workload()["kind"] == "Job"


def test_a_library_is_deleted_whatever_else_of_the_search_is_refused() -> None:
    one = deleted()
    one.body["spec"]["dataset"] = {"arrays": "digits.npz", "storage": {"path": "/data"}}
    one.step()
    one.settle()
    assert one.workload()["metadata"]["labels"]["app.kubernetes.io/component"] == "delete"
    one.body["spec"]["library"]["storage"] = {"path": "/library"}
    decision = one.step()
    assert decision.finalizer
    assert "spec.library.deletionPolicy: Retain lets the search go" in decision.conditions[2].message


def test_a_search_that_was_refused_from_the_start_can_be_deleted() -> None:
    one = play({"library": {"storage": {"path": "/library"}, "deletionPolicy": "Delete"}})
    decision = one.settle()
    assert reasons_of(decision)[2] == "+InvalidSpec"
    assert not decision.finalizer
    one.body["metadata"]["finalizers"] = ["ensemble-operator.io/library"]
    assert one.settle().finalizer


def test_no_child_has_the_name_of_another_resources_child() -> None:
    """An EnsembleDeployment may be called `digits-train`, and its NetworkPolicy is called the same."""
    for capabilities in (frozenset({"RayJob"}), frozenset[str]()):
        (fence,) = of_kind(play(capabilities=capabilities).step().objects, "NetworkPolicy")
        assert fence["metadata"]["name"] == "digits.train"  # names of custom resources have no dots


def test_what_cannot_stand_in_a_status_is_left_out() -> None:
    assert told(lambda: HPOSearchStatus(trials=7)) == {"trials": 7}
    assert told(lambda: HPOSearchStatus(trials=-1)) == {}
