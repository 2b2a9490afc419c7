from __future__ import annotations

from collections.abc import Callable

import pytest

from ensemble_core.allocation.candidate import Candidate
from ensemble_core.allocation.matrix import Matrix
from ensemble_core.allocation.plan import plan_of
from ensemble_core.allocation.result import Subject
from ensemble_core.allocation.shortage import short_of_memory, with_workers
from ensemble_core.library.records import Signature

SIGNATURE = Signature(input_type="uint8", input_shape=(8, 8, 1), classes=10)


@pytest.mark.parametrize("other", ["resnet-1", "a-net-1", "2.net-1"])
@pytest.mark.parametrize(
    "failure", ["{}: bad alloc", "failed to load '{}' (out of memory)", "one of {}, was: bad_alloc"]
)
def test_a_member_whose_name_ends_another_ones_is_not_meant(
    make_subject: Callable[..., Subject], other: str, failure: str
) -> None:
    subject = make_subject()
    members = [
        member.model_copy(update={"model_id": name})
        for member, name in zip(subject.members, ("net-1", other), strict=True)
    ]
    candidate = Candidate(Matrix(((8, 8), (8, 8))))
    plan = plan_of(candidate, members, subject.devices, SIGNATURE, subject.deployment, ())
    for member in ("net-1", other):
        reason = failure.format(f"{member}--cpu1--b8")
        assert with_workers(reason, plan) == f"out of memory: {member} on cpu1 with batches of 8; {reason}"
        assert short_of_memory(reason, plan) == 1
    assert short_of_memory(failure.format("net-1--cpu1--b80"), plan) is None
