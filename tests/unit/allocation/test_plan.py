from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from ensemble_core.allocation.candidate import Candidate
from ensemble_core.allocation.matrix import Matrix
from ensemble_core.allocation.plan import Answering, Plan, Worker, pins, plan_of
from ensemble_core.allocation.result import Subject
from ensemble_core.api.ensembledeployment import Serving
from ensemble_core.library.records import Signature

SIGNATURE = Signature(input_type="uint8", input_shape=(8, 8, 1), classes=10)


def make_plan(subject: Subject) -> Plan:
    return plan_of(
        Candidate(Matrix(((8, 32), (8, 0)))), subject.members, subject.devices, SIGNATURE, subject.deployment
    )


def test_a_worker_for_each_element_that_is_not_zero(make_subject: Callable[..., Subject]) -> None:
    plan = make_plan(make_subject())
    assert plan.workers == (
        Worker(member=0, device="cpu0", batch_size=8),
        Worker(member=1, device="cpu0", batch_size=32),
        Worker(member=0, device="cpu1", batch_size=8),
    )
    assert [plan.model_name(worker) for worker in plan.workers] == [
        "m-0000--cpu0--b8",
        "m-0001--cpu0--b32",
        "m-0000--cpu1--b8",
    ]
    assert (plan.name, plan.segment_size, plan.max_batch_size) == ("digits", 128, 4096)
    assert plan.device("cpu1").cores == (1,)


def serving(subject: Subject, **settings: Any) -> Subject:
    """The same with other settings of `serving`."""
    spec = subject.deployment.spec.model_copy(update={"serving": Serving.model_validate(settings)})
    return replace(subject, deployment=subject.deployment.model_copy(update={"spec": spec}))


def test_how_answers_become_one_is_as_the_deployment_says(make_subject: Callable[..., Subject]) -> None:
    assert make_plan(make_subject()).answering == Answering()
    settings = {"combiner": "vote", "scores": "logits", "quorum": 1, "retries": 2, "deadlineSeconds": 0.5}
    assert make_plan(serving(make_subject(), **settings)).answering == Answering(
        rule="vote", scores="logits", quorum=1, retries=2, deadline_seconds=0.5
    )


def test_a_quorum_of_more_than_all_members_is_refused(make_subject: Callable[..., Subject]) -> None:
    assert make_plan(serving(make_subject(), quorum=2)).answering.quorum == 2
    with pytest.raises(ValidationError, match="a quorum of 3 is more than all 2 members"):
        make_plan(serving(make_subject(), quorum=3))


def test_samples_are_routed_as_the_candidate_says(make_subject: Callable[..., Subject]) -> None:
    subject = make_subject()
    candidate = Candidate(Matrix(((8, 32), (8, 0))), ((0.25, 1.0), (0.75, 0.0)))
    plan = plan_of(candidate, subject.members, subject.devices, SIGNATURE, subject.deployment)
    assert plan.answering.routing == "weights"
    assert [worker.share for worker in plan.workers] == [0.25, 1.0, 0.75]
    pulled = make_plan(subject)
    assert pulled.answering.routing == "pull"
    assert [worker.share for worker in pulled.workers] == [1.0, 1.0, 1.0]


def test_a_plan_survives_json(make_subject: Callable[..., Subject]) -> None:
    plan = make_plan(make_subject())
    assert Plan.model_validate_json(plan.model_dump_json(by_alias=True)) == plan


def test_a_plan_that_refers_to_nothing_is_refused(make_subject: Callable[..., Subject]) -> None:
    content = make_plan(make_subject()).model_dump()
    with pytest.raises(ValidationError, match="every member needs a worker"):
        Plan.model_validate({**content, "workers": content["workers"][:1]})
    with pytest.raises(ValidationError, match="not in the plan"):
        Plan.model_validate({**content, "workers": [{"member": 0, "device": "cpu9", "batch_size": 8}]})
    with pytest.raises(ValidationError, match="same id"):
        Plan.model_validate({**content, "members": content["members"][:1] * 2})


def test_cores_are_dealt_again_where_a_container_has_others(make_subject: Callable[..., Subject]) -> None:
    plan = make_plan(make_subject())
    assert [device.cores for device in plan.on_cores([7, 5, 9], shared=False).devices] == [(5,), (7,)]
    assert plan.on_cores([0, 1], shared=False) == plan
    with pytest.raises(ValueError, match="needs 2 cores; this process may use 1"):
        plan.on_cores([7], shared=False)


@pytest.mark.parametrize(
    ("needed", "allowed", "shared", "pinned"),
    [
        (2, 2, False, True),  # a whole machine
        (2, 8, False, True),  # a part of one's own machine
        (2, 2, True, True),  # a pod with exclusive cores, or a node that is no larger
        (2, 8, True, False),  # two pods would both take the first two
        (3, 2, True, True),  # one core and a GPU that feeds on the same cores
    ],
)
def test_cores_that_other_pods_may_use_are_not_kept_to(needed: int, allowed: int, shared: bool, pinned: bool) -> None:
    assert pins(needed, allowed, shared) is pinned


def test_a_container_with_more_cores_than_devices_keeps_to_none_on_a_shared_node(
    make_subject: Callable[..., Subject],
) -> None:
    plan = make_plan(make_subject())
    free = plan.on_cores(range(8), shared=True)
    assert [(device.cores, device.pinned) for device in free.devices] == [((0,), False), ((1,), False)]
    assert free.on_cores([4, 5], shared=True) == plan.on_cores([4, 5], shared=False)
