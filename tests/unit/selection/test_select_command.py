from __future__ import annotations

import json
from typing import Any

import pytest

from ensemble_core.cli import main
from ensemble_core.commands.select import summary
from ensemble_core.errors import UserError
from ensemble_core.library.records import Metrics
from ensemble_core.library.store import LocalStore
from ensemble_core.report import encode
from ensemble_core.selection.pool import Pool
from ensemble_core.selection.result import (
    BudgetResult,
    CostBasis,
    Costs,
    FrontPoint,
    MemberResult,
    ModelReference,
    SelectionResult,
    Single,
)


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


@pytest.mark.parametrize("content", ["{", "[]", "{}", "\xff"])
def test_what_cannot_be_read_of_another_selection_is_told_and_passed_over(
    workspace: Any, reference: Any, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    workspace.library("a", reference.pool(2, 60, 3, seed=2), {"m0": 0, "m1": 1})
    workspace.documents(["a"], [{"name": "b", "parametersMillions": 9.0}])
    other = workspace.folder / "a/selections" / f"{'0' * 64}.json"
    other.parent.mkdir()
    other.write_bytes(content.encode("latin-1"))
    assert main(["select", "--spec", str(workspace.file)]) == 0
    printed = capsys.readouterr()
    assert "budget b: " in printed.out
    (told,) = printed.err.splitlines()
    assert told.startswith(f"{other}: ")
    assert told.endswith("; it is passed over")
    assert other.exists()


def test_a_library_that_cannot_be_written_is_told_before_the_selection(
    workspace: Any, reference: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.library("a", reference.pool(2, 60, 3, seed=2), {"m0": 0, "m1": 1})
    workspace.documents(["a"], [{"name": "b", "parametersMillions": 9.0}])

    def refuse(store: LocalStore) -> None:
        raise UserError(store.url, "cannot be written")

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "check_writable", refuse)
        patch.setattr(Pool, "true_class", None)
        assert main(["select", "--spec", str(workspace.file)]) == 2
        assert capsys.readouterr().err == f"ensemble select: {workspace.folder / 'a'}: cannot be written\n"
    assert main(["select", "--spec", str(workspace.file)]) == 0
    monkeypatch.setattr(LocalStore, "check_writable", refuse)
    assert main(["select", "--spec", str(workspace.file)]) == 0  # nothing is to be written


def test_select_refuses_what_was_not_profiled(
    workspace: Any, reference: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace.library("a", reference.pool(2, 60, 3, seed=2), {"m0": 0, "m1": 1})
    workspace.documents(["a"], [{"name": "b", "memoryMiB": 100}])
    assert main(["select", "--spec", str(workspace.file)]) == 2
    assert "2 of 2 servable models have no profile" in capsys.readouterr().err


def test_a_poll_tells_what_the_sources_are_and_writes_nothing(
    workspace: Any, reference: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    libraries = [
        workspace.library(name, reference.pool(2, 60, 3, seed=2), {f"{name}0": 0, f"{name}1": 1}) for name in "ab"
    ]
    workspace.documents(["a", "b"], [{"name": "small", "parametersMillions": 9.0}])
    before = sorted(workspace.folder.rglob("*"))
    report = workspace.folder / "report.json"
    arguments = ["select", "--poll", "--spec", str(workspace.file), "--report", f"file:{report}"]
    assert main(arguments) == 0
    content = json.loads(report.read_text())
    digests = [library.digest() for library in libraries]
    assert (content["verb"], content["state"]) == ("poll", "Succeeded")
    assert content["result"] == {"summary": {"sources": [{"digest": digest} for digest in digests]}}
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == digests
    report.unlink()
    assert sorted(workspace.folder.rglob("*")) == before
    # What a selection says of its sources is the same.
    assert main([one for one in arguments if one != "--poll"]) == 0
    sources = json.loads(report.read_text())["result"]["summary"]["sources"]
    assert [source["digest"] for source in sources] == digests

    (workspace.folder / "b/library.json").unlink()
    assert main(arguments) == 2
    assert json.loads(report.read_text())["state"] == "Failed"


COSTS = Costs(inference_time_seconds=1 / 3, memory_mib=1e4 / 3, parameters_millions=10 / 3)
METRICS = Metrics(cross_entropy=1 / 3, error=1 / 7, macro_f1=6 / 7, top5_error=1 / 70)


def result_of(budgets: int, members: int) -> SelectionResult:
    """As large as it can be."""
    model = Single(
        library=0,
        model_id="a-long-name-of-a-search-0000",
        servable=True,
        cost=COSTS,
        validation=METRICS,
        heldout=METRICS,
    )
    member = MemberResult(**dict(model), weight=1 / members)
    point = FrontPoint(
        members=(ModelReference(library=0, model_id=model.model_id),) * members, cross_entropy=1 / 3, cost=COSTS
    )
    ensemble = {"members": (member,) * members, "validation": METRICS, "heldout": METRICS, "cost": COSTS, "weight": 0.5}
    return SelectionResult(
        name="x",
        digest="a" * 64,
        spec_hash="b" * 64,
        fingerprint="c" * 64,
        sources=(),
        cost=CostBasis(engine="onnxruntime", batch_size=32),
        combiner="average",
        best_single=model,
        budgets=tuple(BudgetResult(name=f"budget-{i}", limits=COSTS, **ensemble) for i in range(budgets)),
        front=(point,) * min(budgets, 100),
        models=(),
    )


@pytest.mark.parametrize(
    ("budgets", "members", "listed", "front"), [(2, 40, 40, 2), (30, 40, 18, 30), (100, 40, 1, 0), (100, 256, 1, 0)]
)
def test_the_report_of_many_large_ensembles_lists_their_first_members(
    budgets: int, members: int, listed: int, front: int
) -> None:
    told = summary(result_of(budgets, members))
    report = encode({"specHash": "d" * 64, "state": "Succeeded", "result": {"digest": "a" * 64, "summary": told}})
    assert len(report) <= 64 * 1024
    read = json.loads(report)["result"]["summary"]
    assert "omitted" not in read
    assert [(len(one["members"]), one["memberCount"]) for one in read["budgets"]] == [(listed, members)] * budgets
    assert [one["members"] for one in read["front"]] == [members] * front
