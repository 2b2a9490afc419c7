from __future__ import annotations

import json
from typing import Any

import pytest

from ensemble_core.cli import main


def test_select_prints_reports_and_says_when_nothing_changed(
    workspace: Any, reference: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = reference.pool(5, 60, 3, seed=2)
    library = workspace.library("a", pool, {f"m{row}": row for row in range(5)})
    workspace.profile(library, {f"m{row}": 1.0 + row for row in range(5)})
    budgets = [{"name": "none", "inferenceTimeSeconds": 0.5}, {"name": "some", "inferenceTimeSeconds": 9.0}]
    workspace.documents(["a"], budgets)
    report = workspace.folder / "report.json"
    arguments = ["select", "--spec", str(workspace.file), "--report", f"file:{report}"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "budget none: no ensemble, because the cheapest model m0 costs 1 s, the budget is 0.5 s" in printed
    assert "budget some: " in printed
    content = json.loads(report.read_text())
    assert content["state"] == "Succeeded"
    assert [b["name"] for b in content["result"]["summary"]["budgets"]] == ["none", "some"]
    assert (workspace.folder / f"a/selections/{content['result']['digest']}.json").exists()
    assert main(arguments) == 0
    assert "nothing has changed" in capsys.readouterr().out


def test_select_refuses_what_was_not_profiled(
    workspace: Any, reference: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace.library("a", reference.pool(2, 60, 3, seed=2), {"m0": 0, "m1": 1})
    workspace.documents(["a"], [{"name": "b", "memoryMiB": 100}])
    assert main(["select", "--spec", str(workspace.file)]) == 2
    assert "2 of 2 servable models have no profile" in capsys.readouterr().err
