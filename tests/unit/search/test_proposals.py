"""Proposals depend on the seed and the number alone, also after a restart."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_core.api.hposearch import HPOSearchSpec
from ensemble_core.library.records import Claim, Rung
from ensemble_trainer.proposals import SAMPLERS, Proposal, Proposer
from ensemble_trainer.space import SearchSpace, search_space

CONDITIONAL: list[dict[str, Any]] = [
    {"name": "convolution", "parameterType": "categorical", "feasibleSpace": {"list": ["v1", "next"]}},
    {
        "name": "blocksStage4",
        "parameterType": "int",
        "feasibleSpace": {"min": 1, "max": 9},
        "condition": {"parameter": "convolution", "in": ["next"]},
    },
]


def make_space() -> SearchSpace:
    content = {
        "library": {"storage": {"path": "/unused"}},
        "dataset": {"builtin": "digits"},
        "maxTrialCount": 12,
        "parameters": CONDITIONAL,
    }
    return search_space(HPOSearchSpec.model_validate(content))


def claim(number: int, proposal: Proposal) -> Claim:
    return Claim(
        trial=number,
        attempt=1,
        sequence=number,
        parameters=proposal.parameters,
        bracket=0,
        sampler_attributes=proposal.sampler_attributes,
        study_attributes=proposal.study_attributes,
    )


def rung(value: float | None) -> Rung:
    return Rung(epoch=1, sequence=1, value=value, goes_on=False, started_at=0, finished_at=1, slot=0)


@pytest.mark.parametrize("algorithm", sorted(SAMPLERS))
@settings(max_examples=20)
@given(seed=st.integers(0, 2**31 - 1), restart=st.integers(0, 8), told=st.sets(st.integers(0, 7)))
def test_a_rebuilt_study_proposes_the_same(algorithm: str, seed: int, restart: int, told: set[int]) -> None:
    straight = Proposer(algorithm, seed, make_space())
    expected = [straight.propose(number) for number in range(10)]
    rebuilt = Proposer(algorithm, seed, make_space())
    rebuilt.restore(claim(number, expected[number]) for number in range(restart))
    for number in sorted(told & set(range(restart))):
        rebuilt.tell(number, [rung(0.5 if number % 2 else None)])
    assert [rebuilt.propose(number) for number in range(restart, 10)] == expected[restart:]


def test_conditional_parameters_take_their_default_where_they_do_not_count() -> None:
    proposer = Proposer("random", 0, make_space())
    proposals = [proposer.propose(number).parameters for number in range(40)]
    values = {kind: {p["blocksStage4"] for p in proposals if p["convolution"] == kind} for kind in ("v1", "next")}
    assert len(values["v1"]) == 1
    assert len(values["next"]) > 3


def test_proposals_are_asked_for_in_order() -> None:
    with pytest.raises(ValueError, match="proposal 0 is next, not 3"):
        Proposer("random", 0, make_space()).propose(3)
