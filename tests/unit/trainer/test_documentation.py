"""The table of hyperparameters says what the trainer takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ensemble_trainer.space import TABLE_5

PAGE = Path(__file__).parents[3] / "docs" / "trainer.md"


def rows() -> dict[str, list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): row[1:] for row in cells}


def test_every_hyperparameter_has_a_row() -> None:
    assert list(rows()) == list(TABLE_5)


@pytest.mark.parametrize("name", TABLE_5)
def test_spaces_are_those_of_the_trainer(name: str) -> None:
    given, known = rows()[name], TABLE_5[name]
    if known.kind == "choice":
        assert given[:2] == [", ".join(known.choices)] * 2
        return
    default, allowed = ([float(value) for value in cell.split(" to ")] for cell in given[:2])
    assert default == [known.space.low, known.space.high]
    assert allowed == [known.lowest, known.highest]
