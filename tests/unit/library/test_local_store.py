"""A local store under sudden death and competition of processes."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_core.api.common import PersistentVolumeClaimStorage, Storage
from ensemble_core.errors import OutageError, UserError
from ensemble_core.library import LocalStore, open_store, storage_at
from ensemble_core.library import store as store_module

_FORK = multiprocessing.get_context("fork")
_SIZE = 300_000


def _write_for_ever(root: Path, source: Path) -> None:
    store = LocalStore(root)
    for number in range(10**9):
        store.write("written", bytes([number % 256]) * _SIZE)
        store.create(f"created/{os.getpid()}-{number % 20}", bytes([number % 256]) * _SIZE)
        store.delete(f"created/{os.getpid()}-{(number + 10) % 20}")
        source.write_bytes(bytes([number % 256]) * _SIZE)
        store.upload("uploaded", source)


def _assert_whole(store: LocalStore) -> int:
    """Every file that can be seen has one complete content; the number of files."""
    contents = store.read_many(store.list(""))
    for path, content in contents.items():
        assert len(content) == _SIZE, path
        assert content == content[:1] * _SIZE, path
    return len(contents)


def test_no_reader_ever_sees_half_a_file(tmp_path: Path) -> None:
    store, chance = LocalStore(tmp_path / "library"), random.Random(0)
    for _ in range(20):
        writer = _FORK.Process(target=_write_for_ever, args=(store.root, tmp_path / "source"))
        writer.start()
        try:
            deadline = time.monotonic() + 60
            while _assert_whole(store) < 3:
                assert time.monotonic() < deadline
            until = time.monotonic() + chance.uniform(0, 0.05)
            while time.monotonic() < until:
                _assert_whole(store)
        finally:
            assert writer.pid is not None
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
        _assert_whole(store)
        for path in store.list(""):
            store.delete(path)
    assert all(Path(path).name.startswith(".tmp-") for path in store.leftovers(0))
    assert store.list("") == ()


def test_unfinished_writes_are_found_by_age(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    (tmp_path / "models").mkdir()
    for name, age in (("old", 100_000), ("young", 10)):
        unfinished = tmp_path / "models" / f".tmp-{name}"
        unfinished.write_bytes(b"12345")
        os.utime(unfinished, (time.time() - age,) * 2)
    assert {path: entry.bytes for path, entry in store.leftovers(86_400).items()} == {"models/.tmp-old": 5}
    store.delete("models/.tmp-old")
    assert os.listdir(tmp_path / "models") == [".tmp-young"]
    assert store.list("") == ()


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_library_that_cannot_be_written_is_named(tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_open_temporary", failing(code))
    with pytest.raises(UserError, match=f"cannot be written: {os.strerror(code)}") as refused:
        LocalStore(tmp_path).check_writable()
    assert refused.value.where == str(tmp_path)


def test_whether_a_library_can_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LocalStore(tmp_path).check_writable()
    LocalStore(tmp_path / "missing").check_writable()
    assert os.listdir(tmp_path) == []
    monkeypatch.setattr(store_module, "_open_temporary", failing(errno.ENOSPC))
    LocalStore(tmp_path).check_writable()  # there may be room again when something is to be stored


def failing(code: int) -> Callable[[Path], Any]:
    def fail(place: Path) -> Any:
        raise OSError(code, os.strerror(code))

    return fail


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)
    store.write("trials/digits-0000/claim-2.json", b"{}")

    def fail(folder: object) -> None:
        raise OSError(errno.EIO, "Input/output error", str(folder))

    monkeypatch.setattr(os, "scandir", fail)
    for look in (store.list, store.entries):
        with pytest.raises(OSError, match="Input/output error"):
            look("trials/")


def test_a_folder_that_is_deleted_while_it_is_filled_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, make, deleted = LocalStore(tmp_path / "library"), Path.mkdir, []

    def make_after_a_deletion(folder: Path, *arguments: object, **options: object) -> None:
        if folder.name == "digits-0000" and not deleted:
            deleted.append(folder.parent)
            folder.parent.rmdir()
        make(folder, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", make_after_a_deletion)
    store.write("models/digits-0000/record.json", b"{}")
    assert store.read("models/digits-0000/record.json") == b"{}"
    assert deleted


def _compete(root: Path, number: int, together: multiprocessing.synchronize.Barrier) -> list[bool]:
    store, won = LocalStore(root), []
    for race in range(30):
        together.wait(timeout=60)
        won.append(store.create(f"races/{race}.json", str(number).encode() * 1000))
    return won


def test_of_eight_processes_one_creates(tmp_path: Path) -> None:
    with _FORK.Manager() as manager:
        together = manager.Barrier(8)
        with _FORK.Pool(8) as pool:
            outcomes = pool.starmap_async(_compete, [(tmp_path, number, together) for number in range(8)]).get(120)
    store = LocalStore(tmp_path)
    for race in range(30):
        winners = [number for number in range(8) if outcomes[number][race]]
        assert len(winners) == 1
        assert store.read(f"races/{race}.json") == str(winners[0]).encode() * 1000


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.write("models/record.json", b"old")
    locked = _FORK.Event()

    def hold() -> None:
        with store._locked():
            locked.set()
            time.sleep(600)

    holder = _FORK.Process(target=hold)
    holder.start()
    assert locked.wait(timeout=60)
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert store.replace("models/record.json", b"old", b"new")


def test_a_lock_that_is_held_on_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemble_core.library.store.LOCK_SECONDS", 0.0)
    store = LocalStore(tmp_path)
    store.write("models/record.json", b"old")
    with store._locked(), pytest.raises(UserError, match=f"{tmp_path}/.lock: is locked"):
        store.replace("models/record.json", b"old", b"new")
    assert store.read("models/record.json") == b"old"


def test_a_symbolic_link_that_leaves_the_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    store = LocalStore(tmp_path / "library")
    store.write("models/x/weights", b"1")
    (tmp_path / "library" / "models" / "y").symlink_to(tmp_path / "outside")
    for action in (lambda: store.read("models/y/secret"), lambda: store.write("models/y/secret", b"")):
        with pytest.raises(UserError, match=r"models/y/secret: leaves the library through a symbolic link"):
            action()
    assert (tmp_path / "outside" / "secret").read_bytes() == b"secret"
    (tmp_path / "other name").symlink_to(tmp_path / "library")
    assert LocalStore(tmp_path / "other name").read("models/x/weights") == b"1"


_PATH = st.lists(st.sampled_from(["a", "ab", "b.json", "b"]), min_size=1, max_size=3).map("/".join)


@given(written=st.sets(_PATH, max_size=6), prefix=st.one_of(st.just(""), _PATH, _PATH.map(lambda p: p + "/")))
def test_a_listing_is_the_paths_that_begin_with_the_prefix(
    tmp_path_factory: pytest.TempPathFactory, written: set[str], prefix: str
) -> None:
    files = {path for path in written if not any(other.startswith(path + "/") for other in written)}
    store = LocalStore(tmp_path_factory.mktemp("store"))
    for path in files:
        store.write(path, path.encode())
    assert store.list(prefix) == tuple(sorted(path for path in files if path.startswith(prefix)))
    assert tuple(store.entries(prefix)) == store.list(prefix)
    for path in files:
        store.delete(path)
    assert list(store.root.iterdir()) == []


def test_locations_become_storages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage_at("s3://bucket/some/prefix/").document()["s3"] == {"bucket": "bucket", "prefix": "some/prefix"}
    assert open_store(storage_at("library")).url == str(tmp_path / "library")
    for wrong in ("s3://key:secret@bucket/x", "gs://bucket/x", "", "s3://"):
        with pytest.raises(UserError) as error:
            storage_at(wrong)
        assert "secret" not in str(error.value)
    claim = Storage(persistent_volume_claim=PersistentVolumeClaimStorage(claim_name="models"))
    with pytest.raises(UserError, match=r"storage\.persistentVolumeClaim: is only reachable in a cluster"):
        open_store(claim)


def test_a_full_disk_is_an_outage_that_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store, source = LocalStore(tmp_path), tmp_path / "source"
    store.write("written", b"before")
    source.write_bytes(b"after")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        for write in (
            lambda: store.write("written", b"after"),
            lambda: store.create("created", b"after"),
            lambda: store.upload("uploaded", source),
        ):
            with pytest.raises(OutageError, match=r"is full \(No space left on device\); make room there"):
                write()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "written"]
    assert store.read("written") == b"before"
    store.write("written", b"after")
    assert store.read("written") == b"after"
