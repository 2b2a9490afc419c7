"""What all verbs have in common."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ensemble_core.cli import main
from ensemble_core.commands import validate

COMMAND = (sys.executable, "-c", "import sys; from ensemble_core.cli import main; sys.exit(main())")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_reads_is_given_up_quietly(unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*COMMAND, "--help"], stdout=write, stderr=subprocess.PIPE, timeout=60, env=environment)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_another_pipe_that_breaks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(arguments: object) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(validate, "run", run)
    with pytest.raises(BrokenPipeError):
        main(["validate", "file.yaml"])
