from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemble_core.serving.backends.member import rows
from ensemble_core.serving.backends.member.rows import MOST, Rows


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rows, "SHARED_MEMORY", tmp_path)
    return tmp_path


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Regions that were mapped, in order."""
    keys: list[str] = []
    make = rows._mapped

    def counted(key: str) -> Any:
        keys.append(key)
        return make(key)

    monkeypatch.setattr(rows, "_mapped", counted)
    return keys


def write(folder: Path, key: str, value: int, count: int = 4) -> None:
    """A new file of this name."""
    folder.joinpath(key).unlink(missing_ok=True)
    folder.joinpath(key).write_bytes(bytes([value] * count))


def kept(reader: Rows) -> list[str]:
    return list(reader._maps)


def test_rows_of_as_many_regions_as_there_are_clients_stay_mapped(folder: Path, mapped: list[str]) -> None:
    reader = Rows(np.dtype(np.uint8), (2,))
    names = [f"region-{client}" for client in range(16)]
    for client, name in enumerate(names):
        write(folder, name, client)
    for client, name in [*enumerate(names)] * 3:
        assert reader.read(f"/{name}", 2, 1).tolist() == [[client, client]]
    assert mapped == names


def test_what_was_not_used_for_longest_is_mapped_no_more(folder: Path) -> None:
    reader = Rows(np.dtype(np.uint8), (2,))
    names = [f"region-{client}" for client in range(MOST + 1)]
    for name in names:
        write(folder, name, 1)
    for name in (*names[:-1], names[0], names[-1]):
        reader.read(name, 0, 2)
    assert kept(reader) == [*names[2:-1], names[0], names[-1]]


def test_a_region_whose_file_is_gone_is_mapped_no_more(folder: Path) -> None:
    reader = Rows(np.dtype(np.uint8), (2,))
    write(folder, "gone", 1)
    write(folder, "there", 2)
    held = reader.read("gone", 0, 2)
    folder.joinpath("gone").unlink()
    reader.read("there", 0, 2)
    assert kept(reader) == ["there"]
    assert held.tolist() == [[1, 1], [1, 1]]  # who still computes with it has it
    with pytest.raises(FileNotFoundError):
        reader.read("gone", 0, 2)


def test_a_region_that_grew_or_is_another_one_of_the_name_is_mapped_anew(folder: Path, mapped: list[str]) -> None:
    reader = Rows(np.dtype(np.uint8), (2,))
    write(folder, "a", 1)
    assert reader.read("a", 0, 2).tolist() == [[1, 1], [1, 1]]
    with folder.joinpath("a").open("ab") as file:
        file.write(bytes([5, 6]))
    assert reader.read("a", 4, 1).tolist() == [[5, 6]]
    folder.joinpath("a").rename(folder / "b")
    write(folder, "a", 7, 6)
    assert reader.read("a", 4, 1).tolist() == [[7, 7]]
    assert mapped == ["a"] * 3


@pytest.mark.parametrize(("key", "offset", "samples"), [("../a", 0, 1), ("a", -1, 1), ("a", 3, 1), ("a", 0, 3)])
def test_rows_outside_of_a_region_are_refused(folder: Path, key: str, offset: int, samples: int) -> None:
    write(folder, "a", 1)
    with pytest.raises(ValueError, match=r"region|buffer"):
        Rows(np.dtype(np.uint8), (2,)).read(key, offset, samples)
