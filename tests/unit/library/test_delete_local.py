"""What only a folder has: unfinished writes, the lock, empty folders."""

from __future__ import annotations

from pathlib import Path

from ensemble_core.library import Library, LocalStore, collect


def test_hidden_files_of_the_format_go_and_no_folder_stays(library: Library) -> None:
    root = Path(library.store.url)
    temporary = f".tmp-{'0' * 32}"
    library.store.replace("library.json", b"no", b"no")  # leaves the lock
    for folder in ("models/x/1", "", "trials/digits-0000/1"):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / temporary).write_bytes(b"half")
    library.store.write("models/inner/library.json", b"inner")
    foreign = [root / "mine" / temporary, root / ".tmp-mine", root / "models/inner/models/x" / temporary]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"foreign")
    foreign.append(root / "models/inner/library.json")
    collect.delete(library.store, collect.deletion(library.store, "digits"), lambda gone: None)
    assert sorted(path for path in root.rglob("*") if path.is_file()) == sorted(foreign)
    assert {path.name for path in root.iterdir()} == {"mine", ".tmp-mine", "models"}


def test_a_folder_that_was_never_made_is_fine(tmp_path: Path) -> None:
    assert collect.deletion(LocalStore(tmp_path / "none"), "digits").files == 0
    assert not (tmp_path / "none").exists()
