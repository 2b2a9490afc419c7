from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from ensemble_core.runner.facts import EnsembleFacts, RunFacts
from ensemble_core.runner.table import notes, summary_table
from ensemble_core.runner.wording import THIN, duration, given, number, percent, short_names, verdict

Make = Callable[..., RunFacts]


def printed(facts: RunFacts, width: int = 140) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(summary_table(facts))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined,no-any-return]


def row(lines: list[str], name: str) -> str:
    return " ".join(next(line for line in lines if line.strip().startswith(name)).split())


def against(facts: RunFacts, error: float, cross_entropy: float) -> tuple[EnsembleFacts, EnsembleFacts]:
    best = facts.best_single
    assert best.heldout is not None
    changed = best.heldout.model_copy(
        update={"error": best.heldout.error + error, "cross_entropy": best.heldout.cross_entropy + cross_entropy}
    )
    return replace(facts.ensembles[0], heldout=changed), best


def test_one_row_for_the_best_single_and_each_budget(make_facts: Make) -> None:
    lines = printed(make_facts())
    assert row(lines, "best single model") == "best single model 1 2.40 0.0720 0.0300 5 000"
    assert row(lines, "small") == "small ≤ 0.1 s 2 1.60 0.0480 0.0900 1 230 better"
    assert "(served)" in row(lines, "large")


def test_a_reason_stands_below(make_facts: Make) -> None:
    facts = make_facts()
    none = replace(facts.ensembles[0], heldout=None, validation=None, members=(), cost=None, reason="[bold]too dear")
    facts = replace(facts, ensembles=(none,))
    assert row(printed(facts), "small ≤").endswith("no ensemble")
    assert notes(facts) == "quality on 450 held-out samples\nsmall: [bold]too dear"


def test_other_answers_than_the_average_are_told_below(make_facts: Make) -> None:
    facts = make_facts()
    voting = replace(facts.endpoint, combined="the members' vote", heldout=facts.best_single.heldout)
    assert notes(replace(facts, endpoint=voting)).splitlines()[1] == (
        "what is served answers the members' vote; the other ensembles' quality is of averages"
    )


def test_it_fits_a_terminal_of_80_columns(make_facts: Make) -> None:
    lines = printed(make_facts(), width=80)
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)


@pytest.mark.parametrize(
    ("error", "cross_entropy", "outcome", "text"),
    [
        (-0.01, -0.1, "better", "better"),
        (0.01, 0.1, "worse", "worse"),
        (0.0, 0.0, "equal", "equal"),
        (0.01, -0.1, "mixed", "error worse, cross-entropy better"),
        (-0.01, 0.1, "mixed", "error better, cross-entropy worse"),
        (0.0, -0.1, "better", "cross-entropy better, error equal"),
        (0.01, 0.0, "worse", "error worse, cross-entropy equal"),
    ],
)
def test_verdict(make_facts: Make, error: float, cross_entropy: float, outcome: str, text: str) -> None:
    found = verdict(*against(make_facts(), error, cross_entropy))
    assert found is not None
    assert (found.outcome, found.text) == (outcome, text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (float("-inf"), "–"),
        (0.0, "0"),
        (0.03412, "0.0341"),
        (0.9996, "1.00"),
        (-1.5, "−1.50"),
        (12345.6, f"12{THIN}300"),
        (5.94e-8, "5.94×10⁻⁸"),
        (-2e-8, "−2×10⁻⁸"),
        (0.00012, "0.000120"),
        (3e12, "3×10¹²"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert number(value) == text


def test_numbers_as_people_write_them() -> None:
    assert [given(value) for value in (0.1, 2.0, 12_300.0, 0, 1e-7, float("nan"))] == [
        "0.1", "2", f"12{THIN}300", "0", "1×10⁻⁷", "–",
    ]  # fmt: skip
    assert percent(0.02667) == "2.67"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (2.34, "2.3 s"),
        (45.2, "45 s"),
        (59.97, "1 min"),
        (312.4, "5 min 12 s"),
        (3600, "1 h 00 min"),
        (190_000, "2 d 4 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds).replace(THIN, " ") == text


def test_short_names_stay_distinct() -> None:
    assert short_names(["digits-0001", "digits-0002"]) == {"digits-0001": "0001", "digits-0002": "0002"}
    assert short_names(["one-0001"]) == {"one-0001": "one-0001"}
    long = ["x" * 30 + "a" + "y" * 30, "x" * 30 + "b" + "y" * 30]
    assert short_names(long) == {name: name for name in long}
    assert short_names(["f" * 40, "e" * 40]) == {"f" * 40: "fffffff…ffffff", "e" * 40: "eeeeeee…eeeeee"}
