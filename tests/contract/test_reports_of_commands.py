"""What commands really report is what the operator reads."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.support.play import Play, body_of, condition, reasons_of

from ensemble_core.cli import main
from ensemble_core.errors import UserError
from ensemble_core.library import names
from ensemble_core.report import open_report
from ensemble_operator import ensembleselection, hposearch
from ensemble_operator.jobs import INTERRUPTED
from ensemble_operator.reports import read_report
from ensemble_operator.world import Ref

UNIT = Path(__file__).parents[1] / "unit"
UID = "uid-1"
SEARCH: dict[str, Any] = {
    "library": {"storage": {"persistentVolumeClaim": {"claimName": "libraries"}}},
    "dataset": {"builtin": "digits"},
    "maxTrialCount": 12,
}


def module(path: str) -> ModuleType:
    """A test module of the commands, for what it builds."""
    spec = importlib.util.spec_from_file_location(f"contract_{Path(path).stem}", UNIT / f"{path}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded  # where dataclasses look
    spec.loader.exec_module(loaded)
    return loaded


def read(file: Path, verb: str) -> Any:
    config_map = {"data": {"report.json": file.read_text()}}
    return read_report(config_map, verb, "a" * 64, UID, 3)


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ENSEMBLE_ATTEMPT", "3")
    monkeypatch.setenv("ENSEMBLE_OWNER_UID", UID)
    return tmp_path / "report.json"


def test_success(target: Path) -> None:
    report = open_report(f"file:{target}", "train", "a" * 64)
    report.succeed({"digest": "b" * 64, "summary": {"models": 3}})
    found = read(target, "train")
    assert (found.state, found.result.digest, found.result.summary) == ("Succeeded", "b" * 64, {"models": 3})


def test_failure(target: Path) -> None:
    open_report(f"file:{target}", "train", "a" * 64).fail(UserError("spec.dataset", "no such folder"), "line")
    found = read(target, "train")
    assert found.state == "Failed"
    assert found.error.text() == "spec.dataset: no such folder\nline"


def test_interruption(target: Path) -> None:
    open_report(f"file:{target}", "train", "a" * 64).interrupt()
    found = read(target, "train")
    assert (found.state, found.progress.note) == ("Running", INTERRUPTED)


def test_a_result_without_a_digest(target: Path) -> None:
    open_report(f"file:{target}", "delete", "a" * 64).succeed({"digest": None, "summary": {"files": 3}})
    assert read(target, "delete").state == "Succeeded"


def test_a_search(tmp_path: Path) -> None:
    driver = module("search/test_driver")
    library, spec = driver.make_library(tmp_path), driver.make_spec(objectives=[{"metric": "crossEntropy"}])
    search = driver.begun(library, spec)
    one = Play(hposearch.KIND, body_of("HPOSearch", driver.NAME, SEARCH))
    one.settle()
    child = one.workload()
    child["status"] = {"jobDeploymentStatus": "Running"}
    seen: list[Any] = []

    def look() -> None:
        told = driver.summary(search, search.spans, loop.running())
        one.report(child, "train", progress={"stage": "train", "summary": json.loads(json.dumps(told))})
        seen.append(one.step().status)

    loop = driver.Driver(search, driver.FakeSlots(library))
    loop.changed = look
    loop.run()
    assert {"0/12", "3/12", "11/12"} <= {status["progress"] for status in seen}
    assert all("trialsRunning" in status for status in seen)
    last = driver.final_summary(search, search.spans)
    one.report(child, "train", "Succeeded", result={"digest": library.digest(), "summary": last})
    decision = one.settle()
    assert reasons_of(decision)[0] == "+Trained"
    assert decision.status["progress"] == "12/12"
    assert decision.status["library"]["digest"] == library.digest()
    assert decision.status["library"]["models"] == 12
    assert decision.status["currentOptimalTrial"]["observation"]["crossEntropy"] > 0
    assert {"startTime", "completionTime", "occupancyPercent", "paretoFront"} <= set(decision.status)


def test_a_selection(target: Path, tmp_path: Path) -> None:
    fixtures = module("selection/conftest")
    workspace = fixtures.Workspace(tmp_path)
    library = workspace.library("a", fixtures.make_pool(5, 60, 3, 2), {f"m{row}": row for row in range(5)})
    workspace.profile(library, {f"m{row}": 1.0 + row for row in range(5)})
    budgets = [{"name": "none", "inferenceTimeSeconds": 0.5}, {"name": "some", "inferenceTimeSeconds": 9.0}]
    workspace.documents(["a"], budgets)
    assert main(["select", "--spec", str(workspace.file), "--report", f"file:{target}"]) == 0
    result = json.loads(target.read_text())["result"]
    source = body_of("HPOSearch", "digits", SEARCH)
    ready = [condition("Ready", observedGeneration=1)]
    source["status"] = {"conditions": ready, "library": {"models": 5, "digest": "a" * 64}}
    spec = {"sources": [{"hpoSearchName": "digits"}], "budgets": budgets}
    one = Play(
        ensembleselection.KIND,
        body_of("EnsembleSelection", "digits", spec),
        others={Ref("HPOSearch", "digits"): source},
    )
    one.settle()
    one.report(one.workload(), "select", "Succeeded", result=result)
    decision = one.settle()
    assert reasons_of(decision)[0] == "+Selected"
    none, some = decision.status["budgets"]
    assert "the cheapest model m0 costs 1 s" in none["reason"]
    assert {"validation", "heldout", "cost"} <= set(some)
    assert decision.status["libraryDigests"] == [library.digest()]
    assert decision.status["front"]
    assert decision.status["summary"].startswith("none 0, some ")


def test_a_poll(target: Path, tmp_path: Path) -> None:
    """What a poll tells of a library that stays as it is, is what the selection has told of it."""
    fixtures = module("selection/conftest")
    workspace = fixtures.Workspace(tmp_path)
    library = workspace.library("a", fixtures.make_pool(5, 60, 3, 2), {f"m{row}": row for row in range(5)})
    workspace.profile(library, {f"m{row}": 1.0 + row for row in range(5)})
    budgets = [{"name": "some", "inferenceTimeSeconds": 9.0}]
    workspace.documents(["a"], budgets)
    sources = [{"storage": {"s3": {"bucket": "libraries"}}}]
    body = body_of("EnsembleSelection", "digits", {"sources": sources, "budgets": budgets})
    one = Play(ensembleselection.KIND, body)

    def run(verb: str) -> str:
        """The Job that has not ended does it; the one that there is then."""
        (job,) = [found for ref, found in one.children.items() if ref.kind == "Job" and "status" not in found]
        arguments = ["--poll"] if verb == "poll" else []
        assert main(["select", *arguments, "--spec", str(workspace.file), "--report", f"file:{target}"]) == 0
        one.later(60)
        one.report(job, verb, "Succeeded", result=json.loads(target.read_text())["result"])
        job["status"] = {"conditions": [condition("Complete")]}
        one.settle()
        return " ".join(ref.name for ref, found in one.children.items() if ref.kind == "Job" and "status" not in found)

    one.settle()
    polling = run("select")
    assert polling.startswith("digits-poll-")
    assert run("poll") == ""
    del one.children[Ref("Job", polling)]
    one.settle()
    (tmp_path / "a" / names.record("m4")).unlink()
    assert run("poll").startswith("digits-select-")
