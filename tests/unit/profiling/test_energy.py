"""Energy, by counters and samples that a test makes up."""

from __future__ import annotations

from pathlib import Path

import pytest

from ensemble_core.profiling.energy import joules, metered


def counter(root: Path, place: str, name: str, microjoules: int, most: int = 1_000_000_000) -> Path:
    folder = root / "sys/class/powercap" / place
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")
    return folder / "energy_uj"


def test_processors_are_added_and_their_parts_are_not(tmp_path: Path) -> None:
    first = counter(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    second = counter(tmp_path, "intel-rapl:1", "package-1", 7_000_000)
    part = counter(tmp_path, "intel-rapl:0:0", "core", 1_000_000)
    ended = metered(None, tmp_path)
    first.write_text("6500000\n")
    second.write_text("9000000\n")
    part.write_text("2000000\n")
    assert ended() == pytest.approx(3.5)


def test_a_counter_that_began_anew_is_understood(tmp_path: Path) -> None:
    energy = counter(tmp_path, "intel-rapl:0", "package-0", 9_000_000, most=10_000_000)
    ended = metered(None, tmp_path)
    energy.write_text("500000\n")
    assert ended() == pytest.approx(1.5)


def test_a_machine_that_does_not_tell(tmp_path: Path) -> None:
    assert metered(None, tmp_path)() is None
    energy = counter(tmp_path, "intel-rapl:0", "package-0", 0)
    energy.write_text("")  # as of a counter that may not be read
    assert metered(None, tmp_path)() is None


def test_energy_is_mean_power_times_time() -> None:
    assert joules("100.0\n200.0\n150.0\n", 4.0) == pytest.approx(600.0)
    assert joules("100.0\n200.0\n1", 4.0) == pytest.approx(600.0)
    assert joules("", 4.0) is None
    assert joules("[N/A]\n", 4.0) is None


def test_a_machine_without_the_tools_of_a_gpu_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert metered(0)() is None
