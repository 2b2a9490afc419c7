"""What table and page show is what the libraries hold."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from ensemble_core.runner.gather import as_served, different_members, front_facts


def point(seconds: float | None, entropy: float, members: int = 1) -> Any:
    return SimpleNamespace(
        cost=SimpleNamespace(inference_time_seconds=seconds), cross_entropy=entropy, members=("m",) * members
    )


def test_the_front_in_seconds_falls_though_other_quantities_keep_more_points() -> None:
    points = (point(0.3, 0.5, 2), point(0.1, 0.9), point(0.2, 0.95), point(None, 0.1), point(0.3, 0.6), point(0.4, 0.5))
    assert front_facts(SimpleNamespace(front=points)) == ((0.1, 0.9, 1), (0.3, 0.5, 2))  # type: ignore[arg-type]


def test_the_ensemble_that_is_served_has_the_quality_of_its_answers(make_facts: Any) -> None:
    facts = make_facts()
    voting = replace(facts.endpoint, heldout=facts.best_single.heldout)
    found = [as_served(each, voting).heldout for each in facts.ensembles]
    assert found == [facts.ensembles[0].heldout, facts.ensembles[1].heldout, facts.best_single.heldout]
    assert [as_served(each, facts.endpoint) for each in facts.ensembles] == list(facts.ensembles)


def test_no_points_no_front() -> None:
    assert front_facts(SimpleNamespace(front=())) == ()  # type: ignore[arg-type]


def test_different_members_are_counted_whatever_their_order() -> None:
    def budget(*ids: str) -> Any:
        return SimpleNamespace(members=[SimpleNamespace(library=0, model_id=model) for model in ids])

    result: Any = SimpleNamespace(budgets=[budget("a", "b"), budget("b", "a"), budget("a"), budget()])
    assert different_members(result) == 2
