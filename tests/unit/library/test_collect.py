"""What `ensemble library gc` takes, and what it must never take."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ensemble_core.errors import UserError
from ensemble_core.library import Library, collect
from ensemble_core.library.records import Claim, Failure, ModelRecord

Publish = Callable[..., ModelRecord]
Claims = Callable[..., Claim]


def _reasons(library: Library, unreferenced: bool = False) -> list[str]:
    return [removal.reason for removal in collect.plan(library, unreferenced)]


def _checkpoint(library: Library, trial: int, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "weights").write_bytes(b"12345")
    library.save_checkpoint("digits", trial, 1, 3, folder)


def _age(library: Library, prefix: str) -> None:
    for path in library.store.list(prefix):
        place = library.store.local(path)
        assert place is not None
        os.utime(place, (time.time() - 100_000,) * 2)


def _fail(library: Library, trial: int) -> None:
    failure = Failure(sequence=1, reason="Raised", message="", parameters={}, started_at=0, finished_at=1, slot=0)
    library.write_failure("digits", trial, 1, failure)


def test_a_healthy_library_loses_nothing(library: Library, publish: Publish, claim: Claims) -> None:
    library.claim("digits", claim(0))
    publish(0)
    publish(1, search=None)
    library.write_result("selections", "s", {"budgets": []})
    assert collect.plan(library) == ()


def test_checkpoints_go_when_their_trial_has_ended(
    library: Library, publish: Publish, claim: Claims, tmp_path: Path
) -> None:
    for trial in range(3):
        library.claim("digits", claim(trial))
        _checkpoint(library, trial, tmp_path / "state")
    publish(0)
    _fail(library, 1)
    removals = collect.plan(library)
    assert [r.reason for r in removals] == [f"checkpoints of digits-000{t}, which has ended" for t in (0, 1)]
    assert all(r.bytes > 5 and len(r.paths) == 2 for r in removals)
    collect.remove(library, removals)
    assert {path.split("/")[1] for path in library.store.list("trials/") if "checkpoint" in path} == {"digits-0002"}
    assert collect.plan(library) == ()


def test_files_of_overtaken_attempts_go(library: Library, publish: Publish, claim: Claims) -> None:
    library.claim("digits", claim(0))
    publish(0)
    library.claim("digits", claim(0, 2))
    assert collect.plan(library) == ()  # the trial is under way
    stored = publish(0, attempt=2)
    collect.remove(library, collect.plan(library))
    assert sorted(library.store.list("models/")) == sorted(
        ["models/digits-0000/record.json", *(file.path for file in stored.files.values())]
    )
    assert library.verify() == []


def test_imports_that_were_cut_short_go_after_a_day(library: Library) -> None:
    library.store.write("models/0123456789abcdef/x/model.onnx", b"12345")
    assert _reasons(library) == []
    _age(library, "models/")
    assert _reasons(library) == ["files of 0123456789abcdef that no record names"]


def test_unfinished_writes_go_after_a_day(library: Library) -> None:
    folder = library.store.local("models")
    assert folder is not None
    folder.mkdir()
    unfinished = folder / ".tmp-1"
    unfinished.write_bytes(b"12345")
    assert _reasons(library) == []
    os.utime(unfinished, (time.time() - 100_000,) * 2)
    collect.remove(library, collect.plan(library))
    assert not unfinished.exists()


def test_inputs_that_were_replaced_go_after_a_day(library: Library) -> None:
    first, second = (library.keep_inputs(np.full((12, 8, 8, 1), value, np.uint8), "inputs") for value in (1, 2))
    assert _reasons(library) == []  # somebody may be reading them
    _age(library, "splits/")
    assert _reasons(library) == ["validation inputs that others have replaced"]
    collect.remove(library, collect.plan(library))
    assert not library.store.entries(first.file.path)
    assert np.load(library.samples(second)).max() == 2


def test_inputs_that_are_kept_again_while_others_are_removed_stay(library: Library) -> None:
    one, other = (np.full((12, 8, 8, 1), value, np.uint8) for value in (1, 2))
    library.keep_inputs(one, "inputs")
    library.keep_inputs(other, "inputs")
    _age(library, "splits/")
    planned = collect.plan(library)
    kept = library.keep_inputs(one, "inputs")
    collect.remove(library, planned)
    assert library.inputs() == kept
    assert np.load(library.samples(kept)).max() == 1


def test_inputs_that_are_being_written_again_stay(library: Library) -> None:
    """The file comes before the record that names it."""
    one, other = (np.full((12, 8, 8, 1), value, np.uint8) for value in (1, 2))
    first = library.keep_inputs(one, "inputs")
    library.keep_inputs(other, "inputs")
    _age(library, "splits/")
    planned = collect.plan(library)
    library.store.write(first.file.path, library.store.read(first.file.path))
    collect.remove(library, planned)
    assert np.load(library.samples(first)).max() == 1


def test_models_go_only_when_asked_and_nothing_picked_them(library: Library, publish: Publish, claim: Claims) -> None:
    for trial in range(4):
        library.claim("digits", claim(trial))
        publish(trial)
    member = {"library": 0, "modelId": "digits-0000", "weight": 1.0}
    candidates = [{"modelId": f"digits-000{trial}", "kept": True} for trial in range(4)]
    paths = [{"w": 0.1, "steps": [{"modelId": "digits-0003"}]}]
    selection = {"budgets": [{"members": [member], "paths": paths}], "models": candidates}
    library.write_result("selections", "s", selection)
    library.write_result("allocations", "a", {"members": [{"modelId": "digits-0001"}]})
    assert _reasons(library) == []
    gone = ["model digits-0002, which nothing refers to", "model digits-0003, which nothing refers to"]
    assert _reasons(library, unreferenced=True) == gone
    collect.remove(library, collect.plan(library, unreferenced=True))
    assert [model.id for model in library.models()] == ["digits-0000", "digits-0001"]
    assert [state.removed for state in library.trials("digits").values()] == [False, False, True, True]
    assert collect.plan(library, unreferenced=True) == ()


def test_models_of_a_running_search_stay(library: Library, publish: Publish, claim: Claims) -> None:
    library.claim("digits", claim(0))
    publish(0)
    library.claim("digits", claim(1))
    assert _reasons(library, unreferenced=True) == []
    _fail(library, 1)
    assert _reasons(library, unreferenced=True) == ["model digits-0000, which nothing refers to"]


def test_a_removal_that_is_killed_anywhere_is_completed_by_the_next(
    library: Library, publish: Publish, claim: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.claim("digits", claim(0))
    publish(0)
    (removal,) = collect.plan(library, unreferenced=True)
    delete, left = library.store.delete, [2]

    def die(path: str) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        delete(path)

    monkeypatch.setattr(library.store, "delete", die)
    with pytest.raises(KeyboardInterrupt):
        collect.remove(library, [removal])
    monkeypatch.undo()
    assert library.models() == ()
    assert library.verify() == []
    collect.remove(library, collect.plan(library))
    assert library.store.list("models/") == ()
    assert library.trials("digits")[0].removed


def test_nothing_goes_from_a_library_that_cannot_be_read(library: Library, publish: Publish) -> None:
    publish(0)
    library.store.write("models/digits-0000/record.json", b"{")
    with pytest.raises(UserError, match=r"record\.json"):
        collect.plan(library)
