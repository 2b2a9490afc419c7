"""Stages are processes: their reports are seen, their failures raised, and none outlives the run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from ensemble_core.runner import stages
from ensemble_core.runner.stages import Stage, StageFailed, follow, read_report, start

DEADLINE = 30.0

# Stands in for `ensemble_core.cli`: `python -m fake VERB ... --report file:PATH`.
FAKE = """
import json, os, pathlib, signal, sys, time

verb, target = sys.argv[1], pathlib.Path(sys.argv[-1].removeprefix("file:"))

def tell(sequence, state, **values):
    scratch = target.with_suffix(".new")
    owner = os.environ["ENSEMBLE_OWNER_UID"]
    scratch.write_text(json.dumps({"sequence": sequence, "state": state, "ownerUid": owner, **values}))
    scratch.replace(target)

print("hello", flush=True)
tell(1, "Running", progress={"done": 1, "total": 2})
if verb == "fail":
    sys.exit(7)
if verb == "silent":
    sys.exit(0)
if verb == "stubborn":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
if verb in ("wait", "stubborn"):
    tell(2, "Running", progress={"done": 2, "total": 2})
    time.sleep(600)
tell(3, "Succeeded", result={"summary": {"pid": os.getpid()}})
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    (tmp_path / "fake.py").write_text(textwrap.dedent(FAKE))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(stages, "PROGRAM", (sys.executable, "-m", "fake"))

    def make(verb: str) -> Stage:
        return Stage("a stage", verb, ("--spec", "x.yaml"), tmp_path / "reports" / f"{verb}.json")

    return make


def until(condition):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_reports_and_lines_arrive_and_the_last_report_is_returned(fake):
    seen, said = [], []
    last = follow(fake("work"), seen.append, said.append)
    assert last["state"] == "Succeeded"
    assert seen[-1] == last
    until(lambda: said == ["hello"])


def test_a_report_of_an_earlier_run_is_not_taken_for_this_one_s(fake):
    stage = fake("fail")
    stage.report.parent.mkdir(parents=True)
    stage.report.write_text(json.dumps({"sequence": 9, "state": "Succeeded", "result": {}}))
    seen = []
    with pytest.raises(StageFailed) as failed:
        follow(stage, seen.append, lambda line: None)
    assert failed.value.code == 7
    assert all(report["state"] == "Running" for report in seen)


def test_a_stage_whose_last_report_is_not_there_has_failed(fake):
    with pytest.raises(StageFailed, match="last report could not be stored"):
        follow(fake("silent"), lambda report: None, lambda line: None)


def test_reports_of_a_dying_stage_of_an_earlier_run_are_not_seen(fake):
    stage = fake("wait")
    stage.report.parent.mkdir(parents=True)
    stage.report.write_text(json.dumps({"sequence": 1, "state": "Running", "ownerUid": "another"}))
    assert read_report(stage) == {}


def test_an_interrupted_follower_ends_its_stage(fake):
    process = []

    def interrupt(report):
        process.append(report)
        raise KeyboardInterrupt

    stage = fake("wait")
    with pytest.raises(KeyboardInterrupt):
        follow(stage, interrupt, lambda line: None)
    assert process
    assert not running(stage)


def test_a_stage_that_does_not_end_is_killed(fake, monkeypatch):
    monkeypatch.setattr(stages, "STOP_SECONDS", 0.5)
    stage = fake("stubborn")
    started = start(stage, lambda line: None)
    until(lambda: read_report(stage).get("sequence") == 2)
    assert started.stop() == -signal.SIGKILL


def test_a_stage_ends_when_the_run_is_killed(fake, tmp_path):
    stage = fake("wait")
    program = f"""
import time
from pathlib import Path
from ensemble_core.runner import stages
stages.PROGRAM = {(sys.executable, "-m", "fake")!r}
stages.start(stages.Stage("a stage", "wait", ("--spec", "x.yaml"), Path({str(stage.report)!r}), {stage.owner!r}), print)
time.sleep(600)
"""
    run = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL)
    try:
        until(lambda: read_report(stage).get("sequence") == 2)
        assert running(stage)
    finally:
        run.kill()
        run.wait()
    until(lambda: not running(stage))


def running(stage: Stage) -> list[int]:
    """Processes whose command line names the stage's report."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and int(path.name) != os.getpid():
            try:
                line = (path / "cmdline").read_bytes()
            except OSError:
                continue
            if f"file:{stage.report}".encode() in line:
                found.append(int(path.name))
    return found
