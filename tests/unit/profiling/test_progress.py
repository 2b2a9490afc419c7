"""What `ensemble profile` shows while it measures."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ensemble_core.commands import profile
from ensemble_core.profiling.run import Profiled

DOCUMENT = """
apiVersion: ensemble-operator.io/v1alpha1
kind: EnsembleSelection
metadata: {name: digits}
spec:
  sources: [{storage: {path: library}}]
  budgets: [{name: all, inferenceTimeSeconds: 1}]
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command, with a measurement of 48 models that takes no time."""

    def measured(documents: Any, selection: Any, progress: profile.Progress, sizes: Sequence[int]) -> Profiled:
        progress(4, 48, "digits-0003 openvino")
        progress(5, 48, "digits-0004 openvino")
        progress(48, 48, "")
        return Profiled("cpu-x-1c", 44, 4, (), (), ())

    def ran(*arguments: str) -> int:
        file = tmp_path / "documents.yaml"
        file.write_text(DOCUMENT)
        parser = argparse.ArgumentParser()
        profile.add_arguments(parser)
        return profile.run(parser.parse_args(["--spec", str(file), *arguments]))

    monkeypatch.setattr(profile, "run_profiling", measured)
    return ran


def test_progress_is_told_in_lines_beside_the_output(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """At most one in five seconds."""
    assert run("--compare") == 0
    output, errors = capsys.readouterr()
    assert errors == "profile: 4/48 digits-0003 openvino\n"
    assert output == "44 models measured on cpu-x-1c, 4 were known\n"


def test_a_single_model_is_no_models(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(profile, "run_profiling", lambda *_: Profiled("cpu-x-1c", 1, 0, (), (), ()))
    assert run() == 0
    assert capsys.readouterr().out == "1 model measured on cpu-x-1c, 0 were known\n"


def test_who_reads_reports_is_told_once(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--report", f"file:{tmp_path / 'report.json'}") == 0
    assert capsys.readouterr().err == ""
    assert '"stage": "profiles"' in (tmp_path / "report.json").read_text()
