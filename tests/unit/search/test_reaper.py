"""Nothing that uses a cluster's folder outlives the process that made it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ensemble_trainer import reaper

HOLD = "import sys, time; f = open(sys.argv[1]); print('open', flush=True); time.sleep(600)"


def holder(file: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(file)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"open\n"
    return process


def test_what_has_a_file_of_the_folder_open_is_ended(tmp_path: Path) -> None:
    folder, other = tmp_path / "cluster", tmp_path / "cluster-2"
    for place in (folder, other):
        place.mkdir()
        (place / "log").touch()
    with holder(folder / "log") as one, holder(folder / "log") as spared, holder(other / "log") as another:
        try:
            command = [sys.executable, "-S", "-E", reaper.__file__, str(folder), str(spared.pid)]
            with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
                assert one.poll() is None
                assert process.stdin is not None
                process.stdin.close()  # as when the driver dies
                assert process.wait(60) == 0
            assert one.wait(60) == -9
            assert spared.poll() is None
            assert another.poll() is None
            assert not folder.exists()
            assert other.exists()
        finally:
            for process in (one, spared, another):
                process.kill()
