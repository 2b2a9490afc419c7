"""The library's contract on a real S3 server, and what only S3 has."""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemble_core.api.common import S3Storage, Storage
from ensemble_core.commands import library as command
from ensemble_core.errors import UserError
from ensemble_core.library import Library, S3Store, Store, open_store, storage_at
from ensemble_core.library.records import ModelRecord

_UNIT = Path(__file__).parents[1] / "unit" / "library"


def _content(name: str) -> dict[str, Any]:
    """The tests and fixtures of a module beside the local ones."""
    spec = importlib.util.spec_from_file_location(f"s3_{name}", _UNIT / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {key: value for key, value in vars(module).items() if not key.startswith("_")}


globals().update({**_content("conftest"), **_content("test_library_contract"), **_content("test_delete")})


@pytest.fixture
def store(s3: Any) -> Store:
    return open_store(Storage(s3=S3Storage(bucket=s3.name, prefix="some/prefix")))


def test_the_url_tells_bucket_and_prefix(store: Store, s3: Any) -> None:
    assert store.url == f"s3://{s3.name}/some/prefix"
    assert store.local("library.json") is None


def test_validation_samples_come_from_the_bucket(library: Library) -> None:
    samples = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), np.uint8)
    kept = library.keep_inputs(samples, "inputs")
    opened = Library.open(library.store)
    assert opened.inputs() == kept
    assert np.array_equal(np.load(opened.samples(kept), mmap_mode="r"), samples)
    assert opened.verify() == []


def test_other_prefixes_of_the_bucket_are_not_seen(store: Store, s3: Any) -> None:
    other = open_store(Storage(s3=S3Storage(bucket=s3.name, prefix="some/prefix-2")))
    whole = open_store(Storage(s3=S3Storage(bucket=s3.name)))
    store.write("one.json", b"1")
    other.write("two.json", b"2")
    assert store.list("") == ("one.json",)
    assert whole.list("some/") == ("some/prefix-2/two.json", "some/prefix/one.json")


def test_large_files_go_up_and_down_in_parts(store: Store, tmp_path: Path) -> None:
    large = np.random.default_rng(0).bytes(120 * 2**20)
    (tmp_path / "large").write_bytes(large)
    store.upload("large", tmp_path / "large")
    store.download("large", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == large


def test_a_missing_bucket_and_an_unreachable_server_are_told(s3: Any) -> None:
    missing = open_store(Storage(s3=S3Storage(bucket=f"{s3.name}-not", prefix="x")))
    with pytest.raises(UserError, match=f"s3://{s3.name}-not/x: s3.bucket: the bucket does not exist"):
        Library.open(missing)
    with pytest.raises(UserError, match=f"s3://{s3.name}-not/x: s3.bucket: the bucket does not exist"):
        missing.create("library.json", b"")
    unreachable = open_store(Storage(s3=S3Storage(bucket=s3.name, endpoint="http://127.0.0.1:9")))
    with pytest.raises(UserError, match=f"s3://{s3.name}: s3.endpoint: cannot be used"):
        Library.open(unreachable)


def test_a_store_that_ignores_conditions_is_refused(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put = store._files.pipe_file
    monkeypatch.setattr(store._files, "pipe_file", lambda key, data, mode="", **extra: put(key, data, **extra))
    with pytest.raises(UserError, match="ignores If-None-Match"):
        store.create("library.json", b"")
    assert store.list("") == ()


def test_a_creation_whose_answer_got_lost_is_ours(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create("other.json", b"")
    put = store._files.pipe_file

    def put_twice(key: str, data: bytes, **extra: Any) -> None:
        put(key, data, **extra)
        put(key, data, **extra)

    monkeypatch.setattr(store._files, "pipe_file", put_twice)
    assert store.create("claim.json", b"mine")
    assert not store.create("claim.json", b"again")


def test_copies_are_shared_and_repaired(
    library: Library, publish: Callable[..., ModelRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = publish(0)
    copy = library.file(stored, "model.onnx")
    content = copy.read_bytes()
    downloads: list[str] = []
    download = library.store.download
    monkeypatch.setattr(library.store, "download", lambda p, t: (downloads.append(p), download(p, t))[1])
    assert Library(library.store, library.header).file(stored, "model.onnx") == copy
    assert downloads == []
    copy.write_bytes(content[:-1])
    assert Library(library.store, library.header).file(stored, "model.onnx").read_bytes() == content
    assert downloads == [stored.files["model.onnx"].path]


@pytest.mark.parametrize(("damage", "told"), [(lambda d: d[:-1], "truncated"), (lambda d: d[:-1] + b"?", "corrupt")])
def test_damaged_objects_are_refused_by_name(
    library: Library, publish: Callable[..., ModelRecord], damage: Callable[[bytes], bytes], told: str
) -> None:
    stored = publish(0)
    path = stored.files["predictions-validation.npy"].path
    library.store.write(path, damage(library.store.read(path)))
    with pytest.raises(UserError, match=f"{library.store.url}/{path}: is {told}"):
        library.predictions(stored, "validation")
    assert len(library.verify()) == 1


def test_a_library_is_copied_checked_and_cleaned_by_its_url(
    s3: Any,
    publish: Callable[..., ModelRecord],
    library: Library,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stored, copy = publish(0), f"s3://{s3.name}/copy"
    assert _ensemble("export", library.store.url, stored.id, "--to", str(tmp_path / "local")) == 0
    assert _ensemble("export", str(tmp_path / "local"), stored.id, "--to", copy) == 0
    assert _ensemble("verify", copy) == 0
    capsys.readouterr()
    assert _ensemble("ls", copy, "--json") == 0
    assert [ModelRecord.model_validate(model) for model in json.loads(capsys.readouterr().out)] == [stored]
    assert _ensemble("gc", copy, "--unreferenced") == 0
    assert open_store(storage_at(copy)).list("models/") == ()


def _ensemble(*words: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(words))
