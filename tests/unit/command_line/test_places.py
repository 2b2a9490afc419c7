from __future__ import annotations

from pathlib import Path

import pytest

from ensemble_core.errors import UserError
from ensemble_core.places import check_file, check_folder, make_folder


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file and a folder, where the process is."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("folder").mkdir()


@pytest.mark.parametrize("name", ["file", "new", "folder/new", "new/newer"])
def test_files_that_can_be_written(name: str) -> None:
    assert check_file("--report", Path(name)) == Path(name)


@pytest.mark.parametrize("name", ["folder", "new", "folder/new", "new/newer"])
def test_folders_that_can_be_written(name: str) -> None:
    assert check_folder("--output", Path(name)) == Path(name)
    assert make_folder("--output", Path(name)).is_dir()


@pytest.mark.parametrize(
    ("check", "name", "obstacle"),
    [
        (check_file, "folder", "folder"),
        (check_file, "file/new", "/file"),
        (check_folder, "file", "file"),
        (check_folder, "file/new", "/file"),
        (make_folder, "file/new/newer", "/file"),
    ],
)
def test_what_is_in_the_way_is_told(check, name: str, obstacle: str) -> None:
    with pytest.raises(UserError, match=f"^--output: {name} cannot be written: .*{obstacle} is in its place$"):
        check("--output", Path(name))


def test_a_place_where_no_folder_can_be_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"^--output: new cannot be written: there can be no such folder$"):
        make_folder("--output", Path("new"))
