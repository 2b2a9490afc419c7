"""`ensemble library delete`: everything that the format owns goes, nothing else, wherever it is stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ensemble_core import cli
from ensemble_core.errors import UserError
from ensemble_core.library import Library, Store, collect
from ensemble_core.library.inputs import DECLINED
from ensemble_core.library.records import BatchProfile, Claim, Failure, ModelRecord, Profile, Rung

Publish = Callable[..., ModelRecord]
Claims = Callable[..., Claim]
Rungs = Callable[..., Rung]


class StoppedError(Exception):
    """Stands for SIGKILL: nothing after it runs."""


@pytest.fixture
def full(library: Library, publish: Publish, claim: Claims, rung: Rungs, tmp_path: Path) -> Library:
    """A library with every kind of file that there is."""
    state = tmp_path / "state"
    state.mkdir()
    (state / "weights").write_bytes(b"12345")
    library.store.create("searches/digits/spec.json", b"{}")
    library.keep_inputs(np.zeros((12, 8, 8, 1), np.uint8), "inputs")
    library.store.write(DECLINED, b"{}")
    library.begin_attempt("digits")
    for trial in range(3):
        library.claim("digits", claim(trial))
        library.write_rung("digits", trial, 1, rung(1))
        library.save_checkpoint("digits", trial, 1, 1, state)
    failure = Failure(sequence=9, reason="Raised", message="", parameters={}, started_at=0, finished_at=1, slot=0)
    library.write_failure("digits", 2, 1, failure)
    stored = publish(0)
    publish(7, search=None)
    batch = BatchProfile(batch_size=1, passes=(1.0,), seconds=1.0, memory_mib=1.0)
    library.write_profile(
        Profile(
            model=stored.id,
            model_sha256="0" * 64,
            device_type="cpu",
            engine="onnxruntime",
            engine_version="1",
            cores=1,
            load_seconds=1.0,
            batches=(batch,),
        )
    )
    for kind in ("selections", "allocations", "benchmarks"):
        library.write_result(kind, "d" * 64, {"kind": kind})  # type: ignore[arg-type]
    return library


def delete(store: Store, search: str = "digits") -> None:
    while (planned := collect.deletion(store, search)).files:
        collect.delete(store, planned, lambda gone: None)


def test_everything_goes_but_what_others_put_there(full: Library) -> None:
    foreign = {"notes.txt", "models/readme.md", "trials/mine/x.json", "data/library.json", "searches/list.json"}
    for path in foreign:
        full.store.write(path, b"foreign")
    told: list[int] = []
    planned = collect.deletion(full.store, "digits")
    collect.delete(full.store, planned, told.append)
    assert set(full.store.list("")) == foreign
    assert planned.steps[-1] == ("library.json",)
    assert told == sorted(told)
    assert told[-1] == planned.files
    assert planned.bytes > 3000  # a model has 1000, and there are checkpoints
    assert collect.deletion(full.store, "digits").files == 0  # again: nothing to do


def test_a_library_inside_another_s_folders_stays(full: Library) -> None:
    inner = {
        f"{folder}/{path}"
        for folder in ("models/inner", "trials/inner-0001/1")
        for path in ("library.json", "models/digits-0000/record.json", "selections/x.json")
    }
    for path in inner:
        full.store.write(path, b"inner")
    delete(full.store)
    assert set(full.store.list("")) == inner


@pytest.mark.parametrize("deletions", [1, 5, 11, 23, -2, -1])
def test_stopped_anywhere_the_next_has_the_rest(full: Library, deletions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    files = collect.deletion(full.store, "digits").files
    left = deletions % files
    plain = full.store.delete

    def stopping(path: str) -> None:
        nonlocal left
        if left == 0:
            raise StoppedError
        left -= 1
        plain(path)

    with monkeypatch.context() as patch:
        patch.setattr(collect, "DELETIONS", 1)
        patch.setattr(full.store, "delete", stopping)
        with pytest.raises(StoppedError):
            delete(full.store)
    assert full.store.list("library.json")
    Library.open(full.store).models()  # what is left of it can be read
    delete(full.store)
    assert full.store.list("") == ()


def test_a_shared_library_loses_what_is_the_search_s_own(full: Library, publish: Publish, claim: Claims) -> None:
    # A name like that of a trial.
    full.store.create("searches/digits-0001/spec.json", b'{"spec": {}, "startedAt": 1.5}')
    full.claim("digits-0001", claim(4))
    kept = publish(4, search="digits-0001")
    assert collect.deletion(full.store, "digits").others == {"digits-0001"}
    delete(full.store)
    library = Library.open(full.store)
    assert [model.id for model in library.models()] == [kept.id, "import-0007"]
    assert library.verify() == []
    left = set(full.store.list(""))
    assert not [path for path in left if collect._search_of(path) == "digits"]
    assert not [path for path in left if path.startswith("profiles/")]
    assert {path.split("/")[0] for path in left} >= {"selections", "splits", "library.json"}
    delete(full.store, "digits-0001")
    assert full.store.list("") == ()


def test_what_is_no_library_is_refused(store: Store) -> None:
    assert collect.deletion(store, "digits").files == 0  # nothing there
    store.write("notes.txt", b"foreign")
    assert collect.deletion(store, "digits").files == 0
    store.write("models/resnet/1/model.onnx", b"of a Triton repository")
    with pytest.raises(UserError, match=r"is no model library: it has no library.json, though models/resnet"):
        collect.deletion(store, "digits")
    assert len(store.list("")) == 2


def test_a_library_of_a_newer_format_is_refused(full: Library) -> None:
    header = json.loads(full.store.read("library.json"))
    full.store.write("library.json", json.dumps({**header, "format": 99}).encode())
    with pytest.raises(UserError, match="format 99 is newer"):
        collect.deletion(full.store, "digits")


def test_what_a_dying_driver_wrote_after_the_deletion_goes_too(full: Library, rung: Rungs) -> None:
    delete(full.store)
    full.write_rung("digits", 1, 1, rung(3))
    delete(full.store)
    assert full.store.list("") == ()


def document(storage: str) -> str:
    return f"""
apiVersion: ensemble-operator.io/v1alpha1
kind: HPOSearch
metadata: {{name: digits}}
spec: {{library: {{storage: {storage}}}, dataset: {{builtin: digits}}, maxTrialCount: 3}}
"""


def storage_of(store: Store) -> str:
    bucket, _, prefix = store.url.removeprefix("s3://").partition("/")
    return f"{{s3: {{bucket: {bucket}, prefix: {prefix}}}}}" if "s3://" in store.url else f"{{path: {store.url}}}"


def test_the_command_reports(full: Library, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec, report = tmp_path / "spec.yaml", tmp_path / "report.json"
    spec.write_text(document(storage_of(full.store)))
    command = ["library", "delete", "--spec", str(spec), "--name", "digits", "--report", f"file:{report}"]
    files = collect.deletion(full.store, "digits").files
    assert cli.main(command) == 0
    assert full.store.list("") == ()
    told = json.loads(report.read_text())
    assert (told["verb"], told["state"]) == ("delete", "Succeeded")
    assert told["result"]["summary"]["files"] == told["progress"]["done"] == files
    assert f"{files} files deleted" in capsys.readouterr().out
    assert cli.main(command) == 0
    full.store.write("models/resnet/1/model.onnx", b"of a Triton repository")
    assert cli.main(command) == 2
    assert json.loads(report.read_text())["error"]["field"] == full.store.url
