"""The benchmark of allocators with real members, in small: who was measured how often, not how fast they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def printed() -> str:
    results = ROOT / "benchmarks" / "RESULTS.md"
    before = results.read_bytes()
    command = [sys.executable, "benchmarks/real_members.py", "--small"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580)
    assert (done.returncode, done.stderr) == (0, "")
    assert results.read_bytes() == before
    return done.stdout


def rows(printed: str) -> dict[str, list[str]]:
    """Cells of all tables by their first; of later tables those that are not in earlier ones."""
    lines = [line for line in printed.splitlines() if line[:1] == "|"]
    cells = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in lines]
    return {row[0]: row for row in reversed(cells)}


def test_every_allocator_has_its_own_benchmarks_and_all_are_compared(printed: str) -> None:
    found = rows(printed)
    counts = {name: found[name][1] for name in ("worst-fit", "best-batch", "bounded-greedy, seed 0")}
    assert counts == {"worst-fit": "1", "best-batch": "1", "bounded-greedy, seed 0": "3"}
    assert found["worst-fit, fastest batch sizes"][1] == "-"
    assert 1 <= int(found["guided, seed 0"][1]) <= 3
    assert found["worst-fit"][4] == "1.00"
    for name in (*counts, "guided, seed 0", "worst-fit, fastest batch sizes"):
        assert int(found[name][2]) > 0


def test_members_are_profiled_at_the_batch_sizes_allowed(printed: str) -> None:
    for name in ("residual", "plain"):
        assert [size in rows(printed)[name][1] for size in ("(8)", "(32)", "(128)")] == [True, True, False]


def test_two_rounds_are_no_verdict(printed: str) -> None:
    assert "No verdict: 2 undisturbed rounds are too few." in printed
