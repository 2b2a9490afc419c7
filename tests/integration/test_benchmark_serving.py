"""The benchmark of averaging, with small requests: what it counts is exact, what it times is not looked at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CPP, PYTHON = "averaging backend in C++", "averaging backend in Python (BLS)"
ENSEMBLE = "Triton's ensemble, mean in Python"
REFERENCES = "Python members by reference"


@pytest.fixture(scope="module")
def rows() -> list[list[str]]:
    """Cells of all tables that it prints."""
    results = ROOT / "benchmarks" / "RESULTS.md"
    before = results.read_bytes()
    done = subprocess.run(
        [sys.executable, "benchmarks/serving.py", "--small"], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert results.read_bytes() == before
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line[:1] == "|"]


@pytest.mark.parametrize(
    ("design", "way", "copies"),
    [
        (CPP, "shared memory", ["0", "0"]),
        (CPP, "gRPC", ["0", "0"]),
        (PYTHON, "shared memory", ["2", "3"]),  # once for itself, and once for each member
        (PYTHON, "gRPC", ["2", "3"]),
        (f"C++, {REFERENCES}", "shared memory", ["0", "0"]),
        (f"C++, {REFERENCES}", "gRPC", ["1", "1"]),
        (f"Python (BLS), {REFERENCES}", "shared memory", ["1", "1"]),
        (f"Python (BLS), {REFERENCES}", "gRPC", ["1", "1"]),
    ],
)
def test_how_often_an_input_is_copied_for_one_and_for_two_members(
    rows: list[list[str]], design: str, way: str, copies: list[str]
) -> None:
    assert [design, way, *copies] in rows


def test_every_design_is_timed_on_both_ways_and_under_load(rows: list[list[str]]) -> None:
    named = [row[0] for row in rows if row[1] not in ("shared memory", "gRPC")]
    assert [named.count(name) for name in (CPP, PYTHON, ENSEMBLE)] == [5, 5, 5]  # each of two sizes
    assert [named.count(name) for name in ("one member, total", "members alone")] == [4, 1]
