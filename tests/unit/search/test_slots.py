"""How a cluster of this machine's own is started; what runs on it is tested with real trials."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from ensemble_core.errors import OutageError
from ensemble_trainer import slots


def late(times: int, folders: list[Path]) -> Callable[..., None]:
    """Ray's start, which fails so many times."""

    def init(**settings: Any) -> None:
        folders.append(Path(settings["_temp_dir"]))
        if len(folders) <= times:
            raise Exception("The current node timed out during startup.")

    return init


def test_a_cluster_that_comes_up_too_late_is_started_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []
    monkeypatch.setattr(ray, "init", late(2, folders))
    with slots._cluster():
        assert [folder.exists() for folder in folders] == [False, False, True]
    assert not folders[-1].exists()


def test_a_cluster_that_never_comes_up_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []
    monkeypatch.setattr(ray, "init", late(slots.STARTS, folders))
    with (
        pytest.raises(OutageError, match="does not start on this machine: The current"),
        slots._cluster(),
    ):
        pass
    assert [folder.exists() for folder in folders] == [False] * slots.STARTS
