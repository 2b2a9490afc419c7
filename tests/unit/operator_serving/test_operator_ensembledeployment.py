from __future__ import annotations

import copy
from typing import Any

import pytest
from play import SETTINGS, reasons_of, time
from stage import DIGESTS, Stage

from ensemble_core.api.ensembledeployment import EnsembleDeploymentStatus, Optimization
from ensemble_operator.identity import report_name
from ensemble_operator.serving import STORAGES_KEY
from ensemble_operator.world import Decision, Ref

SELECTION, SEARCH = Ref("EnsembleSelection", "digits"), Ref("HPOSearch", "digits")
PATIENCE = 61


def message(decision: Decision, kind: str = "Progressing") -> str:
    (found,) = [verdict.message for verdict in decision.conditions if verdict.type == kind]
    return found


# --- the first time


def test_from_a_document_to_answers(stage: Stage) -> None:
    assert reasons_of(stage.steps()) == ("-Starting", "+Starting", "-AsExpected")
    assert stage.refs("Deployment") == stage.refs("Service") == []
    stage.pod(stage.job())
    stage.report(
        stage.job(), "allocate", progress={"stage": "benchmarks", "done": 3, "total": 20, "note": "best so far 200"}
    )
    decision = stage.steps()
    assert reasons_of(decision) == ("-Optimising", "+Optimising", "-AsExpected")
    assert message(decision) == "benchmark 3 of at most 20, best so far 200"

    stage.optimised()
    decision = stage.steps()
    assert reasons_of(decision) == ("-RollingOut", "+RollingOut", "-AsExpected")
    deployment = stage.the_deployment()
    assert stage.selected() == deployment["metadata"]["labels"]["ensemble-operator.io/revision"]
    stage.play_deployment(deployment, answering=1)
    decision = stage.steps()
    assert reasons_of(decision) == ("+Serving", "+Scaling", "-AsExpected")
    stage.play_deployment(deployment)
    stage.play_agent(deployment, loaded=[{"modelId": "digits-0", "digest": "0" * 64}], revivals=0, repaired=0)
    decision = stage.steps()
    assert reasons_of(decision) == ("+Serving", "-Serving", "-AsExpected")
    assert message(decision, "Ready") == "2 of 2 copies answer at http://digits.lab.svc:8000"
    status = EnsembleDeploymentStatus.model_validate(decision.status)
    assert (status.members, status.member_ids) == (2, ("digits-0", "digits-1"))
    assert [(row.device, row.batch_sizes) for row in status.matrix][2:] == [("gpu2", (32, 0)), ("gpu3", (0, 128))]
    assert status.performance is not None
    assert (status.performance.images_per_second, status.performance.obtained) == (305.4, "measured")
    assert status.performance.bound_images_per_second == 326.0
    assert (status.throughput, status.endpoint) == ("305 img/s", "http://digits.lab.svc:8000")
    assert status.ready_replicas == 2
    assert status.selection_digest == DIGESTS[0]
    assert [model.model_id for model in status.loaded] == ["digits-0"]


def test_the_optimising_identity_goes_when_its_work_is_done(stage: Stage) -> None:
    stage.serve()
    (job,) = stage.refs("Job")
    (deployment,) = stage.refs("Deployment")
    assert stage.refs("Role") == stage.refs("RoleBinding") == stage.refs("ServiceAccount") == [deployment]
    assert stage.refs("ConfigMap") == sorted(
        [f"{name}-{kind}" for name in (job, deployment) for kind in ("spec", "report")]
    )


def test_nothing_is_written_once_all_is_well(stage: Stage) -> None:
    stage.serve()
    for _ in range(3):
        stage.later(300)
        stage.step()
        assert stage.writes == []


# --- what is referred to


@pytest.mark.parametrize(
    ("arrange", "reasons", "words"),
    [
        (
            lambda s: s.others.pop(SELECTION),
            ("-SelectionMissing", "+SelectionMissing", "-AsExpected"),
            "there is no EnsembleSelection digits in this namespace",
        ),
        (
            lambda s: s.others[SELECTION].update(
                status={"conditions": [{"type": "Ready", "status": "False", "message": "waits for models"}]}
            ),
            ("-SelectionNotReady", "+SelectionNotReady", "-AsExpected"),
            "waits for EnsembleSelection digits: waits for models",
        ),
        (
            lambda s: s.others[SELECTION].update(status={"digest": "../../x"}),
            ("-SelectionNotReady", "+SelectionNotReady", "-AsExpected"),
            "waits for EnsembleSelection digits",
        ),
        (
            lambda s: s.others[SELECTION].update(spec={"sources": 3}),
            ("-SelectionNotReady", "+SelectionNotReady", "-AsExpected"),
            "waits for EnsembleSelection digits",
        ),
        (
            lambda s: s.change(selectionRef={"name": "digits", "budgetName": "large"}),
            ("-BudgetUnknown", "-BudgetUnknown", "+BudgetUnknown"),
            "EnsembleSelection digits has no budget large; there is small, none, best-single",
        ),
        (
            lambda s: s.change(selectionRef={"name": "digits", "budgetName": "none"}),
            ("-NoEnsemble", "-NoEnsemble", "+NoEnsemble"),
            "the budget none of EnsembleSelection digits has no ensemble: the cheapest model has 0.1 millions",
        ),
        (
            lambda s: s.select(DIGESTS[0], budgets=[]),
            ("-SelectionNotReady", "+SelectionNotReady", "-AsExpected"),
            "waits for the ensemble of the budget small of EnsembleSelection digits",
        ),
        (
            lambda s: s.others.pop(SEARCH),
            ("-SelectionNotReady", "+SelectionNotReady", "-AsExpected"),
            "EnsembleSelection digits names HPOSearch digits, which is missing or not valid",
        ),
        (
            lambda s: s.edit_selection(budgets=[{"name": "small", "parametersMillions": 2}]),
            ("-SelectionNotReady", "+SelectionNotReady", "-AsExpected"),
            "waits until EnsembleSelection digits has a result of its present specification",
        ),
        (
            lambda s: s.others[SEARCH]["spec"]["library"].update(storage={"path": "/data"}),
            ("-InvalidSpec", "-InvalidSpec", "+InvalidSpec"),
            "library.storage.path: is only for one machine",
        ),
    ],
)
def test_what_is_referred_to_is_not_there(stage: Stage, arrange: Any, reasons: tuple[str, ...], words: str) -> None:
    fresh = copy.deepcopy(stage)
    arrange(fresh)
    decision = fresh.steps()
    assert reasons_of(decision) == reasons
    assert words in message(decision)
    assert decision.objects == ()

    # What serves already goes on serving.
    revision = stage.serve()
    arrange(stage)
    decision = stage.steps()
    assert stage.selected() == revision
    assert list(stage.deployments()) == [revision]
    assert decision.status["readyReplicas"] == 2
    if "present specification" in words:
        assert reasons_of(decision) == ("+Serving", "-Serving", "-AsExpected")
    else:
        assert reasons_of(decision)[1:] == reasons[1:]


def test_the_best_single_model_needs_no_budget(stage: Stage) -> None:
    stage.change(selectionRef={"name": "digits", "budgetName": "best-single"})
    stage.steps()
    assert len(stage.jobs()) == 1


def test_ready_tells_of_the_document_and_not_of_a_newer_selection(stage: Stage) -> None:
    stage.serve()
    stage.select(DIGESTS[1])
    assert reasons_of(stage.steps()) == ("+Serving", "+Starting", "-AsExpected")
    stage.select(DIGESTS[0])
    stage.change(serving={"replicas": 2, "segmentSize": 64})
    decision = stage.steps()
    assert reasons_of(decision) == ("-Starting", "+Starting", "-AsExpected")
    assert message(decision, "Ready").endswith("; requests are answered as before")


@pytest.mark.parametrize("reason", ["", "SourcesNotReady"])
def test_a_budget_without_ensemble_is_told_of_the_present_specification_only(stage: Stage, reason: str) -> None:
    stage.change(selectionRef={"name": "digits", "budgetName": "none"})
    stage.selection_says("Ready", "False", "NoEnsemble")
    assert reasons_of(stage.steps()) == ("-NoEnsemble", "-NoEnsemble", "+NoEnsemble")
    stage.edit_selection(budgets=[{"name": "none", "parametersMillions": 5}])
    if reason:  # else the selection's own reconcile has not come to it yet
        stage.selection_says("Ready", "False", reason, "as it is")
    decision = stage.steps()
    assert reasons_of(decision) == ("-SelectionNotReady", "+SelectionNotReady", "-AsExpected")
    assert "until EnsembleSelection digits has a result of its present specification" in message(decision)


# --- the Job


def test_a_failed_job_says_why_and_stays(stage: Stage) -> None:
    stage.steps()
    failed = stage.job()
    stage.failed("digits-3 needs 900 MiB on gpu0")
    decision = stage.steps()
    assert reasons_of(decision) == ("-OptimisationFailed", "-OptimisationFailed", "+OptimisationFailed")
    assert "digits-3 needs 900 MiB on gpu0" in message(decision)
    assert "delete Job digits-allocate-" in message(decision)
    assert stage.refs("Job") == [failed["metadata"]["name"]]

    stage.later(60)
    stage.remove(failed)
    stage.steps()
    assert stage.job()["metadata"]["name"].endswith("-2")


def test_a_job_without_devices_leaves_the_old_revision_serving(stage: Stage) -> None:
    revision = stage.serve()
    stage.select(DIGESTS[1])
    stage.steps()
    job = stage.job()
    stage.unschedulable(job)
    decision = stage.steps()
    assert reasons_of(decision) == ("+Serving", "+InsufficientDevices", "-AsExpected")
    stage.later(PATIENCE)
    decision = stage.steps()
    assert reasons_of(decision) == ("+Serving", "-InsufficientDevices", "+InsufficientDevices")
    assert "1 Insufficient nvidia.com/gpu" in message(decision)
    assert (stage.selected(), list(stage.deployments())) == (revision, [revision])


def test_room_that_the_scheduler_has_not_seen_yet_is_not_told_of(stage: Stage) -> None:
    _, new = roll(stage)
    stage.unschedulable(stage.deployments()[new], since=2)
    decision = stage.steps()
    assert (reasons_of(decision)[1], decision.again_after) == ("+RollingOut", 3)
    stage.later(3)
    assert reasons_of(stage.steps())[1] == "+InsufficientDevices"


def test_recreate_gives_the_devices_of_the_old_revision_to_the_job(stage: Stage) -> None:
    stage.change(rollout={"strategy": "Recreate"})
    stage.serve()
    stage.select(DIGESTS[1])
    stage.steps()
    assert len(stage.deployments()) == 1
    job = stage.job()
    stage.unschedulable(job)
    stage.later(PATIENCE)
    stage.steps()
    assert stage.deployments() == {}
    stage.pod(job)  # it runs now
    assert reasons_of(stage.steps())[1] == "+Optimising"
    assert stage.deployments() == {}


@pytest.mark.parametrize(
    "further",
    [
        {"sharedMemoryMiB": -1},
        {"memoryMiB": None},
        {"memoryMiB": 1e300},
        {"selection": {"digest": DIGESTS[5]}},
        {"digest": "$(rm -rf /)"},
        {"matrix": [["8"]]},
        {"shares": [[1.5]]},
    ],
)
def test_a_report_that_cannot_be_true_is_no_result(stage: Stage, further: dict[str, Any]) -> None:
    stage.steps()
    stage.optimised(**further)
    decision = stage.steps()
    assert reasons_of(decision) == ("-ReportMissing", "-ReportMissing", "+ReportMissing")
    assert stage.deployments() == {}


def test_a_large_report_without_its_matrix_is_a_result(stage: Stage) -> None:
    stage.steps()
    stage.optimised(matrix=[], members=[], devices=[], omitted=True)
    decision = stage.steps()
    assert len(stage.deployments()) == 1
    assert "matrix" not in decision.status


def test_the_status_shows_what_each_device_gets_of_a_members_samples(stage: Stage) -> None:
    """As a document may have it."""
    stage.steps()
    stage.optimised(shares=[[0.25, 0], [0, 0.5], [0.75, 0], [0, 0.5]])
    rows = stage.steps().status["matrix"]
    assert rows[2] == {"device": "gpu2", "batchSizes": [32, 0], "shares": [0.75, 0.0]}
    assert Optimization.model_validate({"matrix": rows}).document()["matrix"] == rows


@pytest.mark.parametrize("shares", [[[0.5, 0.5]], [[1]] * 4, []])
def test_shares_that_are_not_those_of_the_matrix_are_not_shown(stage: Stage, shares: list[list[float]]) -> None:
    stage.steps()
    stage.optimised(shares=shares)
    rows = stage.steps().status["matrix"]
    assert [row["batchSizes"] for row in rows] == [[8, 0], [0, 8], [32, 0], [0, 128]]
    assert not any("shares" in row for row in rows)


def test_what_is_known_is_not_lost_with_a_report(stage: Stage) -> None:
    """Once a revision is made, nobody can change it through the report of the Job, or by deleting it."""
    revision = stage.serve()
    (job,) = stage.refs("Job")
    ended = stage.children[Ref("Job", job)]
    stage.report(ended, "allocate", "Succeeded", result={"digest": DIGESTS[7], "summary": {}})
    assert stage.serve() == revision
    for name in (f"{job}-report", f"{job}-spec"):
        del stage.children[Ref("ConfigMap", name)]
    stage.remove(ended)
    assert stage.steps().conditions[0].status == "True"
    assert (list(stage.deployments()), stage.jobs()) == ([revision], [])


# --- changes


@pytest.mark.parametrize(
    "change",
    [
        {"serving": {"replicas": 3}},
        {"serving": {"replicas": 2, "service": {"type": "LoadBalancer", "annotations": {"a": "b"}}}},
        {"serving": {"replicas": 2, "monitoring": {"serviceMonitor": True}}},
        {"serving": {"replicas": 2, "autoscaling": {"minReplicas": 1, "maxReplicas": 4}}},
        {"rollout": {"progressDeadlineSeconds": 60}},
    ],
)
def test_changes_that_leave_pods_as_they_are(stage: Stage, change: dict[str, Any]) -> None:
    stage.capabilities = frozenset({"ServiceMonitor"})
    revision = stage.serve()
    stage.change(**change)
    stage.steps()  # it asserts that no template changes
    assert (list(stage.deployments()), stage.jobs()) == ([revision], [])
    if change.get("serving", {}).get("replicas") == 3:
        assert stage.the_deployment()["spec"]["replicas"] == 3


@pytest.mark.parametrize(
    "change",
    [
        {"serving": {"replicas": 2, "httpPort": 9000}},
        {"podOverrides": {"labels": {"team": "a"}, "priorityClassName": "online"}},
        {"serviceAccountName": "cloud"},
    ],
)
def test_changes_that_need_new_pods_and_no_new_allocation(stage: Stage, change: dict[str, Any]) -> None:
    revision = stage.serve()
    stage.change(**change)
    stage.steps()
    assert len(stage.deployments()) == 2
    assert stage.jobs() == []
    assert stage.selected() == revision


@pytest.mark.parametrize(
    "change",
    [
        {"serving": {"replicas": 2, "segmentSize": 64}},
        {"serving": {"replicas": 2, "image": "triton:2"}},
        {"podOverrides": {"nodeSelector": {"gpu": "large"}}},
        {"optimization": {"seed": 7}},
        {"devices": [{"name": "cores", "type": "cpu", "count": 2, "coresPerDevice": 2}]},
    ],
)
def test_changes_that_need_a_new_allocation(stage: Stage, change: dict[str, Any]) -> None:
    first = stage.serve()
    stage.change(**change)
    stage.steps()
    assert (list(stage.deployments()), stage.selected()) == ([first], first)
    second = stage.serve()
    assert second != first

    # The way back needs no Job, and no other name.
    stage.body["spec"] = Stage.set().body["spec"]
    stage.steps()
    assert stage.jobs() == []
    assert set(stage.deployments()) == {first, second}


def test_the_selections_own_document_starts_nothing(stage: Stage) -> None:
    revision = stage.serve()
    manifest = stage.others[SELECTION]
    manifest["spec"]["budgets"][0]["parametersMillions"] = 2
    manifest["metadata"]["generation"] = 2
    stage.select(DIGESTS[0])
    stage.steps()
    assert (list(stage.deployments()), stage.jobs()) == ([revision], [])


@pytest.mark.parametrize("strategy", ["BlueGreen", "Recreate"])
@pytest.mark.parametrize(
    "reason", ["", "SourcesNotReady", "Starting", "Queued", "Lost", "SelectionFailed", "Suspended", "Selecting"]
)
def test_other_sources_begin_nothing_before_there_is_a_result_of_them(stage: Stage, strategy: str, reason: str) -> None:
    """The members of the result that is there are counted in the sources that were there."""
    stage.change(rollout={"strategy": strategy})
    revision = stage.serve()
    jobs, children = stage.refs("Job"), set(stage.children)
    stage.others[Ref("HPOSearch", "two")] = copy.deepcopy(stage.others[SEARCH])
    stage.others[Ref("HPOSearch", "two")]["metadata"]["name"] = "two"
    stage.edit_selection(sources=[{"hpoSearchName": "two"}, {"hpoSearchName": "digits"}])
    if reason:  # else the selection's own reconcile has not come to it yet
        stage.selection_says("Ready", "False", reason, "as it is")
        stage.selection_says("Progressing", "True", reason, "as it is")
    decision = stage.steps()
    assert reasons_of(decision) == ("+Serving", "+SelectionNotReady", "-AsExpected")
    assert "until EnsembleSelection digits has a result of its present specification" in message(decision)
    for _ in range(3):
        stage.later(PATIENCE)
        stage.steps()
    assert (stage.refs("Job"), set(stage.children)) == (jobs, children)
    assert (list(stage.deployments()), stage.selected()) == ([revision], revision)

    stage.remove(stage.the_deployment())  # what serves is maintained meanwhile
    stage.steps()
    assert list(stage.deployments()) == [revision]
    stage.select(DIGESTS[1])
    stage.steps()
    assert len(stage.jobs()) == 1


def test_the_best_single_model_of_a_selection_without_ensembles(stage: Stage) -> None:
    stage.change(selectionRef={"name": "digits", "budgetName": "best-single"})
    stage.selection_says("Ready", "False", "NoEnsemble")
    stage.steps()
    assert len(stage.jobs()) == 1


def test_a_newer_result_that_is_about_to_come_is_waited_for(stage: Stage) -> None:
    stage.selection_says("Progressing", "True", "Profiling")
    decision = stage.steps()
    assert reasons_of(decision) == ("-SelectionNotReady", "+SelectionNotReady", "-AsExpected")
    assert message(decision) == "waits for EnsembleSelection digits, which is at work on a new result"


def test_memory_of_two_generations(stage: Stage) -> None:
    revisions = []
    for digest in DIGESTS[:4]:
        stage.select(digest)
        stage.later(60)
        revisions.append(stage.serve())
    assert set(stage.remembered()) == set(revisions[2:])
    stage.select(DIGESTS[2])
    stage.steps()
    assert stage.jobs() == []
    assert set(stage.deployments()) == set(revisions[2:])


# --- rollout


def roll(stage: Stage) -> tuple[str, str]:
    """A rollout of new pods has begun; the old and the new revision."""
    old = stage.serve()
    stage.change(serving={"replicas": 2, "httpPort": 9000})
    stage.steps()
    (new,) = set(stage.deployments()) - {old}
    return old, new


def test_requests_go_to_new_pods_once_all_answer(stage: Stage) -> None:
    old, new = roll(stage)
    stage.play_deployment(stage.deployments()[new], answering=1)
    decision = stage.steps()
    assert reasons_of(decision) == ("-RollingOut", "+RollingOut", "-AsExpected")
    assert message(decision, "Ready") == "1 of 2 copies answer; requests are answered as before"
    assert stage.selected() == old
    stage.play_deployment(stage.deployments()[new])
    stage.step()
    assert (stage.selected(), set(stage.deployments())) == (new, {old, new})  # it still answers who has not heard yet
    stage.step()
    assert (stage.selected(), set(stage.deployments())) == (new, {new})
    assert reasons_of(stage.steps()) == ("+Serving", "-Serving", "-AsExpected")


def announced(stage: Stage) -> int:
    """The port of the Service for HTTP."""
    ports = stage.children[Ref("Service", "digits")]["spec"]["ports"]
    (port,) = [one["port"] for one in ports if one["name"] == "http"]
    return int(port)


def test_the_service_has_the_ports_of_the_revision_that_serves(stage: Stage) -> None:
    old, new = roll(stage)
    stage.play_deployment(stage.deployments()[new], answering=0, reason="ProgressDeadlineExceeded")
    decision = stage.steps()
    assert reasons_of(decision) == ("-RolloutFailed", "-RolloutFailed", "+RolloutFailed")
    assert (stage.selected(), announced(stage)) == (old, 8000)
    assert decision.status["endpoint"] == "http://digits.lab.svc:8000"
    stage.play_deployment(stage.deployments()[new])
    stage.step()
    assert (stage.selected(), announced(stage)) == (new, 9000)
    decision = stage.steps()
    assert message(decision, "Ready") == "2 of 2 copies answer at http://digits.lab.svc:9000"
    assert decision.status["endpoint"] == "http://digits.lab.svc:9000"


@pytest.mark.parametrize("gone", ["ConfigMap", "Service"])
def test_ports_are_those_of_the_pods_also_without_a_record_or_a_service(stage: Stage, gone: str) -> None:
    old, _ = roll(stage)
    for place in [place for place in stage.children if place.kind == gone]:
        del stage.children[place]
    stage.steps()
    assert (stage.selected(), announced(stage)) == (old, 8000)


def test_ports_change_while_no_pod_runs_with_the_revision(stage: Stage) -> None:
    """What nobody listens on may as well stay, until the new revision gets requests."""
    old = stage.serve()
    stage.change(suspend=True)
    stage.steps()
    stage.change(serving={"replicas": 2, "httpPort": 9000})
    assert stage.steps().status["endpoint"] == "http://digits.lab.svc:8000"
    assert (stage.selected(), announced(stage)) == (old, 8000)
    stage.change(suspend=False)
    new = stage.serve()
    assert new != old
    assert (stage.selected(), announced(stage)) == (new, 9000)


def test_recreated_pods_bring_their_ports(stage: Stage) -> None:
    stage.change(rollout={"strategy": "Recreate"})
    old = stage.serve()
    stage.change(serving={"replicas": 2, "httpPort": 9000})
    stage.step()
    assert (stage.selected(), announced(stage)) == (old, 8000)  # which may still answer
    stage.step()
    assert (stage.selected(), announced(stage)) == (*stage.deployments(), 9000)


def test_ports_that_somebody_changes_are_put_right(stage: Stage) -> None:
    stage.serve()
    service = stage.children[Ref("Service", "digits")]
    service["spec"]["ports"] = [{"name": "web", "port": 80}]
    service["metadata"]["annotations"].pop("ensemble-operator.io/applied", None)
    assert "endpoint" not in stage.step().status
    assert stage.steps().status["endpoint"] == "http://digits.lab.svc:8000"
    assert announced(stage) == 8000


def test_nothing_is_served_without_a_service(stage: Stage) -> None:
    stage.serve()
    stage.remove(stage.children[Ref("Service", "digits")])
    decision = stage.step()
    assert reasons_of(decision) == ("-RollingOut", "+RollingOut", "-AsExpected")
    assert message(decision) == "2 of 2 copies answer; there is no Service digits yet"
    assert "endpoint" not in decision.status
    assert reasons_of(stage.steps()) == ("+Serving", "-Serving", "-AsExpected")


def test_four_gpus_that_the_old_revision_holds(stage: Stage) -> None:
    old, new = roll(stage)
    stage.unschedulable(stage.deployments()[new])
    stage.later(PATIENCE)
    decision = stage.steps()
    assert reasons_of(decision) == ("-InsufficientDevices", "-InsufficientDevices", "+InsufficientDevices")
    assert "1 Insufficient nvidia.com/gpu" in message(decision)
    assert decision.status["readyReplicas"] == 2
    assert (stage.selected(), set(stage.deployments())) == (old, {old, new})
    stage.change(serving={"replicas": 2})  # back
    decision = stage.steps()
    assert reasons_of(decision) == ("+Serving", "-Serving", "-AsExpected")
    assert list(stage.deployments()) == [old]


def terminated(code: int, words: str, **further: Any) -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "message": words, **further}}


WAITING_FOR_ITS_IMAGE = {"waiting": {"reason": "ImagePullBackOff"}}
TROUBLES = [
    (
        "Pending",
        {
            "containerStatuses": [
                {"name": "triton", "image": "x:1", "state": {"waiting": {"reason": "ImagePullBackOff"}}}
            ]
        },
        "image x:1 cannot be pulled",
    ),
    (
        "Pending",
        {
            "initContainerStatuses": [
                {
                    "name": "render",
                    "ready": False,
                    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                    "lastState": terminated(2, "spec.devices: gpu0 is an A, not a B"),
                }
            ]
        },
        "container render of pod {pod} ended with code 2\nspec.devices: gpu0 is an A, not a B",
    ),
    (
        "Running",
        {
            "containerStatuses": [
                {"name": "agent", "ready": True, "state": {"running": {}}, "lastState": terminated(1, "lost")},
                {
                    "name": "triton",
                    "ready": False,
                    "state": {"running": {}},
                    "lastState": terminated(139, "a\nsegv"),
                },
            ]
        },
        "container triton of pod {pod} ended with code 139\na\nsegv",
    ),
    (
        "Running",
        {
            "containerStatuses": [
                {"name": "triton", "ready": False, "state": terminated(137, "", reason="OOMKilled")},
            ]
        },
        "container triton of pod {pod} needed more memory than its limit; raise podOverrides.resources.limits.memory",
    ),
]


@pytest.mark.parametrize(("phase", "status", "words"), TROUBLES)
@pytest.mark.parametrize("first", [True, False])
def test_pods_that_fail_have_their_words_in_the_condition(
    stage: Stage, first: bool, phase: str, status: dict[str, Any], words: str
) -> None:
    old = None
    if first:
        stage.steps()
        stage.optimised()
        stage.steps()
        (new,) = stage.deployments()
    else:
        old, new = roll(stage)
    deployment = stage.deployments()[new]
    stage.play_pod(deployment, phase, **status)
    decision = stage.steps()
    assert reasons_of(decision) == ("-RolloutFailed", "-RolloutFailed", "+RolloutFailed")
    assert words.format(pod=f"{deployment['metadata']['name']}-0") in message(decision)
    assert stage.selected() == (old or new)


def test_a_deadline_that_passes_fails_the_rollout(stage: Stage) -> None:
    old, new = roll(stage)
    stage.play_deployment(stage.deployments()[new], answering=0, reason="ProgressDeadlineExceeded")
    stage.play_agent(stage.deployments()[new], note="digits-1--gpu0--b8: load: out of memory")
    decision = stage.steps()
    assert reasons_of(decision) == ("-RolloutFailed", "-RolloutFailed", "+RolloutFailed")
    assert "after 600 s; the agent says: digits-1--gpu0--b8: load: out of memory; see `kubectl" in message(decision)
    assert stage.selected() == old


def test_pods_that_may_not_be_made(stage: Stage) -> None:
    _, new = roll(stage)
    deployment = stage.deployments()[new]
    stage.play_deployment(deployment, answering=0)
    failure = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: gpus"}
    deployment["status"]["conditions"].append(failure)
    decision = stage.steps()
    assert reasons_of(decision)[1] == "-RolloutFailed"
    assert "its pods cannot be made: exceeded quota: gpus" in message(decision)


def test_pods_that_fail_later(stage: Stage) -> None:
    stage.serve()
    deployment = stage.the_deployment()
    stage.play_deployment(deployment, answering=1)
    stage.play_pod(deployment, "Running", **TROUBLES[2][1])
    decision = stage.steps()
    assert reasons_of(decision) == ("+Serving", "-PodsFailing", "+PodsFailing")
    stage.play_deployment(deployment, answering=0)
    assert reasons_of(stage.steps()) == ("-PodsFailing", "-PodsFailing", "+PodsFailing")
    stage.remove(stage.children[Ref("Pod", f"{deployment['metadata']['name']}-0")])
    stage.play_deployment(deployment)
    assert reasons_of(stage.steps()) == ("+Serving", "-Serving", "-AsExpected")


def test_a_revision_that_never_answered_does_not_hold_devices_back(stage: Stage) -> None:
    stage.steps()
    stage.optimised()
    stage.steps()
    (broken,) = stage.deployments()
    stage.change(serving={"replicas": 2, "httpPort": 9000})
    stage.steps()
    (mended,) = stage.deployments()
    assert mended != broken
    assert stage.selected() == mended


def test_at_most_two_revisions_at_a_time(stage: Stage) -> None:
    old, second = roll(stage)
    stage.change(serving={"replicas": 2, "httpPort": 9100})
    stage.step()
    assert list(stage.deployments()) == [old]  # the second gives its devices back before the third asks for them
    stage.steps()
    (third,) = set(stage.deployments()) - {old}
    assert third != second


def test_recreate_removes_the_old_first(stage: Stage) -> None:
    stage.change(rollout={"strategy": "Recreate"})
    old = stage.serve()
    stage.change(serving={"replicas": 2, "httpPort": 9000})
    stage.step()
    assert stage.deployments() == {}
    stage.step()
    (new,) = stage.deployments()
    assert new != old
    assert stage.selected() == new


def test_suspend_takes_the_pods_and_leaves_the_service(stage: Stage) -> None:
    revision = stage.serve()
    stage.change(suspend=True)
    decision = stage.steps()
    assert reasons_of(decision) == ("-Suspended", "-Suspended", "-AsExpected")
    assert stage.refs("Deployment") == stage.refs("Role") == stage.refs("HorizontalPodAutoscaler") == []
    assert stage.selected() == revision
    assert decision.status["readyReplicas"] == 0
    stage.change(suspend=False)
    stage.steps()
    assert list(stage.deployments()) == [revision]
    assert stage.jobs() == []


def test_suspending_has_a_failed_optimisation_tried_again(stage: Stage) -> None:
    stage.steps()
    stage.failed()
    stage.steps()
    stage.change(suspend=True)
    stage.steps()
    assert stage.refs("Job") == []
    stage.later(60)
    stage.change(suspend=False)
    stage.steps()
    assert stage.job()["metadata"]["name"].endswith("-2")


def test_suspend_stops_a_job_whose_selection_is_gone(stage: Stage) -> None:
    stage.steps()
    stage.others.pop(SELECTION)
    stage.steps()
    assert len(stage.jobs()) == 1
    stage.change(suspend=True)
    stage.steps()
    assert stage.jobs() == []


def test_suspend_before_anything_was_found_out(stage: Stage) -> None:
    stage.steps()
    stage.change(suspend=True)
    stage.steps()
    assert stage.refs("Job") == []
    stage.change(suspend=False)
    stage.steps()
    assert len(stage.jobs()) == 1


# --- autoscaling


def test_an_autoscalers_number_is_not_reverted(stage: Stage) -> None:
    stage.change(serving={"replicas": 2, "autoscaling": {"minReplicas": 2, "maxReplicas": 8}})
    revision = stage.serve()
    (scaler,) = [one for place, one in stage.children.items() if place.kind == "HorizontalPodAutoscaler"]
    assert scaler["spec"]["scaleTargetRef"]["name"] == stage.the_deployment()["metadata"]["name"]
    stage.the_deployment()["spec"]["replicas"] = 5
    stage.steps()
    assert stage.the_deployment()["spec"]["replicas"] == 5

    # A new revision takes over with as many copies, and the autoscaler follows the requests.
    stage.play_deployment(stage.the_deployment())
    stage.change(serving={"httpPort": 9000, "autoscaling": {"minReplicas": 2, "maxReplicas": 8}})
    stage.steps()
    (new,) = set(stage.deployments()) - {revision}
    assert stage.deployments()[new]["spec"]["replicas"] == 5
    assert scaler["spec"]["scaleTargetRef"]["name"] == stage.deployments()[revision]["metadata"]["name"]
    stage.deployments()[revision]["spec"]["replicas"] = 6
    stage.steps()
    assert stage.deployments()[new]["spec"]["replicas"] == 6
    stage.play_deployment(stage.deployments()[new])
    stage.steps()
    assert list(stage.deployments()) == [new]
    assert scaler["spec"]["scaleTargetRef"]["name"] == stage.the_deployment()["metadata"]["name"]


def test_switching_autoscaling_on_and_off_keeps_copies(stage: Stage) -> None:
    stage.change(serving={"replicas": 4})
    stage.serve()
    stage.change(serving={"autoscaling": {"minReplicas": 1, "maxReplicas": 8}})
    stage.steps()
    assert stage.the_deployment()["spec"]["replicas"] == 4
    stage.change(serving={"replicas": 3})
    stage.steps()
    assert stage.the_deployment()["spec"]["replicas"] == 3
    assert stage.refs("HorizontalPodAutoscaler") == []


# --- the agent's report


def test_repairs_show_in_the_condition(stage: Stage) -> None:
    stage.serve()
    stage.play_agent(stage.the_deployment(), loaded=[], revivals=2, repaired=1)
    told = message(stage.steps(), "Ready")
    assert "revived dead models, 2 times" in told
    assert "put models right that differed from the allocation, 1 times" in told


MODELS = [{"modelId": f"digits-{i}", "digest": f"{i}" * 64} for i in range(2)]


def test_what_copies_tell_is_put_together_and_rests(stage: Stage) -> None:
    """One that is just starting, or is gone, takes nothing away from what the others have told."""
    stage.serve()
    deployment = stage.the_deployment()
    stage.play_agent(deployment, suffix="b", loaded=MODELS, revivals=2, repaired=0)
    stage.play_agent(deployment, suffix="c", loaded=MODELS, revivals=1, repaired=0)
    told = message(stage.steps(), "Ready")
    assert "revived dead models, 3 times" in told
    for suffix in ("a", "d"):
        stage.play_agent(deployment, note="loading", suffix=suffix, loaded=MODELS[:1], revivals=0, repaired=0)
        decision = stage.steps()
        assert message(decision, "Ready") == told
        assert decision.status["loaded"] == MODELS
    del stage.children[Ref("Pod", f"{deployment['metadata']['name']}-b")]
    decision = stage.steps()
    assert "revived dead models, 1 times" in message(decision, "Ready")
    assert decision.status["loaded"] == MODELS


def test_more_repairs_than_can_be_counted(stage: Stage) -> None:
    stage.serve()
    for suffix in "ab":
        stage.play_agent(stage.the_deployment(), suffix=suffix, loaded=[], revivals=2**31 - 1, repaired=0)
    assert f"revived dead models, {2**31 - 1} times" in message(stage.steps(), "Ready")


@pytest.mark.parametrize("text", [None, "{", "[]", "x" * 100_000])
def test_a_tampered_report_of_the_agent_changes_nothing(stage: Stage, text: str | None) -> None:
    stage.serve()
    stage.play_agent(stage.the_deployment(), loaded=MODELS, revivals=0, repaired=0)
    assert stage.steps().status["loaded"] == MODELS
    name = report_name(stage.the_deployment()["metadata"]["name"])
    data = stage.children[Ref("ConfigMap", name)]["data"]
    stage.children[Ref("ConfigMap", name)]["data"] = text and dict.fromkeys(data, text)
    decision = stage.steps()
    assert reasons_of(decision) == ("+Serving", "-Serving", "-AsExpected")
    assert "loaded" not in decision.status
    del stage.children[Ref("ConfigMap", name)]
    stage.steps()
    assert name in stage.refs("ConfigMap")


def test_wrong_models_in_the_agents_report_are_ignored(stage: Stage) -> None:
    stage.serve()
    stage.play_agent(stage.the_deployment(), loaded=[{"modelId": "x", "digest": "not one"}], revivals=0, repaired=0)
    assert "loaded" not in stage.steps().status


# --- deleted by hand


@pytest.mark.parametrize("kind", ["Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget", "Role", "ConfigMap"])
def test_what_somebody_deletes_comes_back(stage: Stage, kind: str) -> None:
    revision = stage.serve()
    (deployment,) = stage.refs("Deployment")
    gone = [place for place in stage.children if place.kind == kind and not place.name.startswith("digits-allocate")]
    for place in gone:
        del stage.children[place]
    stage.serve()
    assert set(gone) <= set(stage.children)
    assert (list(stage.deployments()), stage.selected()) == ([revision], revision)
    assert stage.refs("Deployment") == [deployment]


def test_a_service_monitor_is_made_where_there_can_be_one(stage: Stage) -> None:
    stage.change(serving={"monitoring": {"serviceMonitor": True}})
    stage.serve()
    assert "the cluster has no ServiceMonitor" in message(stage.steps(), "Ready")
    stage.capabilities = frozenset({"ServiceMonitor"})
    assert "ServiceMonitor" not in message(stage.steps(), "Ready")
    assert stage.refs("ServiceMonitor") == ["digits"]


def test_references(stage: Stage) -> None:
    world = stage.world()
    assert stage.kind.references(world.resource, world.body, {}) == (SELECTION,)
    assert stage.kind.references(world.resource, world.body, world.others) == (SELECTION, SEARCH)
    invalid = {SELECTION: {"metadata": {"name": "digits"}}}
    assert stage.kind.references(world.resource, world.body, invalid) == (SELECTION,)


def test_new_copies_wait_in_kueues_queue(stage: Stage) -> None:
    """For as long as it takes: nobody has to act."""
    old, new = roll(stage)
    deployment = stage.deployments()[new]
    condition = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}
    stage.play_pod(deployment, "Pending", conditions=[condition])
    (pod,) = [one for place, one in stage.children.items() if place == ("Pod", f"{deployment['metadata']['name']}-0")]
    pod["spec"] = {"schedulingGates": [{"name": "kueue.x-k8s.io/admission"}]}
    pod["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "gpus"
    stage.later(3600)
    stage.play_deployment(deployment, 0, "ProgressDeadlineExceeded")
    decision = stage.steps()
    assert reasons_of(decision) == ("-Queued", "+Queued", "-AsExpected")
    assert "waits in Kueue's queue gpus" in message(decision, "Progressing")
    assert "the old copies hold devices until" in message(decision, "Progressing")
    assert stage.selected() == old


def test_pods_wait_in_kueues_queue(stage: Stage) -> None:
    stage.body["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "gpus"}
    stage.steps()
    assert stage.job()["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    stage.job()["spec"]["suspend"] = True
    assert reasons_of(stage.steps()) == ("-Queued", "+Queued", "-AsExpected")
    del stage.job()["spec"]["suspend"]
    stage.optimised()
    stage.steps()
    assert stage.the_deployment()["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"


def test_lost_work_is_told_and_goes_on(stage: Stage) -> None:
    stage.steps()
    stage.report(stage.job(), "allocate", progress={"note": "interrupted"})
    condition = {"type": "Failed", "status": "True", "message": "node lost", "lastTransitionTime": time(stage.now)}
    stage.job()["status"] = {"conditions": [condition]}
    decision = stage.steps()
    assert reasons_of(decision)[1] == "+Lost"
    assert decision.again_after == 10
    stage.later(11)
    stage.steps()
    assert stage.job()["metadata"]["name"].endswith("-2")


def test_the_image_is_the_operators_unless_the_document_names_one(stage: Stage) -> None:
    stage.steps()
    assert stage.job()["spec"]["template"]["spec"]["containers"][0]["image"] == SETTINGS.core_image
    stage.change(serving={"image": "triton:9"})
    stage.steps()
    assert stage.job()["spec"]["template"]["spec"]["containers"][0]["image"] == "triton:9"


def test_a_revision_is_maintained_while_its_selection_has_nothing_to_say(stage: Stage) -> None:
    revision = stage.serve()
    stage.others.pop(SELECTION)
    stage.steps()
    made = copy.deepcopy(stage.the_deployment())

    stage.change(serving={"replicas": 3})
    stage.steps()
    assert stage.the_deployment()["spec"]["replicas"] == 3
    assert stage.the_deployment()["spec"]["template"] == made["spec"]["template"]

    for kind in ("ServiceAccount", "Role", "Deployment"):
        stage.remove(stage.children[Ref(kind, made["metadata"]["name"])])
    decision = stage.steps()
    assert list(stage.deployments()) == [revision]
    assert stage.the_deployment()["spec"]["template"] == made["spec"]["template"]
    assert {made["metadata"]["name"]} <= {*stage.refs("ServiceAccount")} & {*stage.refs("Role")}
    assert reasons_of(decision)[:2] == ("-SelectionMissing", "+SelectionMissing")

    stage.change(suspend=True)
    stage.steps()
    assert stage.deployments() == {}
    stage.change(suspend=False)
    stage.steps()
    assert list(stage.deployments()) == [revision]


@pytest.mark.parametrize("record", ["older", "forged"])
def test_a_record_that_does_not_tell_makes_nothing(stage: Stage, record: str) -> None:
    revision = stage.serve()
    stage.others.pop(SELECTION)
    (config_map,) = [one for one in stage.children.values() if STORAGES_KEY in one.get("data", {})]
    if record == "older":
        del config_map["data"][STORAGES_KEY]
    else:
        config_map["data"][STORAGES_KEY] = '[[["/mnt/x", "secrets", "", true]], []]'
    stage.steps()
    assert list(stage.deployments()) == [revision]
    stage.remove(stage.the_deployment())
    stage.steps()
    assert stage.deployments() == {}


def test_an_allocation_beyond_all_measure_is_none(stage: Stage) -> None:
    stage.steps()
    stage.optimised(throughput={"samplesPerSecond": 1e308})
    assert reasons_of(stage.steps())[2] == "+ReportMissing"


def test_an_optimisation_that_never_began_is_made_anew_in_another_queue(stage: Stage) -> None:
    stage.steps()
    job = stage.job()
    stage.body["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "gpus"}
    stage.steps()
    assert stage.job()["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert stage.job()["metadata"]["name"] == job["metadata"]["name"]
