"""Whatever is wrong in a library is refused with the name of the file, and nothing is written."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ensemble_core.errors import UserError
from ensemble_core.library import LabelledIds, Library, LocalStore, join, make_header
from ensemble_core.library.parsing import load_array, load_array_bytes
from ensemble_core.library.records import Claim, Header, ModelRecord, Signature, Split

Publish = Callable[..., ModelRecord]
RECORD = "models/digits-0000/record.json"


def _edit(library: Library, path: str, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(library.store.read(path))
    change(content)
    library.store.write(path, json.dumps(content).encode())


def _refused(library: Library, action: Callable[[], object], *told: str) -> None:
    before = library.store.entries("")
    with pytest.raises(UserError) as error:
        action()
    assert all(part in str(error.value) for part in (library.store.url, *told)), str(error.value)
    assert library.store.entries("") == before


def test_a_folder_without_a_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no model library"):
        Library.open(LocalStore(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": 2}, "format 2 is newer than this version reads (up to 1)"),
        ({"format": 0}, "format"),
        ({"task": "regression"}, "task"),
        ({"fingerprint": "0" * 64}, "fingerprint"),
        ({"classNames": ["a", "b", "d"]}, "fingerprint"),
        ({"samples": {"validation": 12}}, "samples"),
        ({"unknown": 1}, "unknown"),
        ({"samples": {"validation": "many", "heldout": 8}}, "samples.validation"),
    ],
)
def test_a_wrong_header_is_refused(library: Library, change: dict[str, Any], told: str) -> None:
    _edit(library, "library.json", lambda content: content.update(change))
    _refused(library, lambda: Library.open(library.store), "library.json", told)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_header_that_is_no_object_is_refused(library: Library, content: bytes) -> None:
    library.store.write("library.json", content)
    _refused(library, lambda: Library.open(library.store), "library.json: is not")


@pytest.mark.parametrize("what", ["labels", "class_names", "input_type"])
def test_a_library_of_other_data_is_refused(
    library: Library, splits: dict[Split, LabelledIds], header: Header, what: str
) -> None:
    signature, class_names = header.signature, header.class_names
    if what == "labels":
        first = splits["heldout"]
        splits = {**splits, "heldout": LabelledIds(first.ids, (first.labels + 1) % 3)}
    elif what == "class_names":
        class_names = ("x", "y", "z")
    else:
        signature = Signature(input_type="float32", input_shape=(8, 8, 1), classes=3)
    other = make_header(signature, class_names, splits)
    _refused(library, lambda: Library.create(library.store, other, splits), "that of the data set given is")


def test_libraries_of_other_data_are_not_joined(
    library: Library, splits: dict[Split, LabelledIds], tmp_path: Path
) -> None:
    splits = {**splits, "validation": LabelledIds(splits["validation"].ids, splits["validation"].labels[::-1].copy())}
    other_header = make_header(library.header.signature, library.header.class_names, splits)
    other = Library.create(LocalStore(tmp_path / "other"), other_header, splits)
    _refused(library, lambda: join([library, other]), f"{tmp_path}/other: fingerprint is {other_header.fingerprint}")
    with pytest.raises(UserError, match="at least one"):
        join([])


@pytest.mark.parametrize(
    ("ids", "labels", "told"),
    [
        (["a", "b"], [0], "one shape"),
        ([], [], "no samples"),
        (["a", "b"], [0, 3], "label 3 of sample 1 is outside the classes 0 to 2"),
        (["a", "b"], [-1, 0], "label -1 of sample 0"),
        (["a", "a"], [0, 1], "ids repeat"),
    ],
)
def test_wrong_splits_are_refused(
    splits: dict[Split, LabelledIds], header: Header, ids: list[str], labels: list[int], told: str
) -> None:
    wrong = LabelledIds(np.array(ids, np.str_), np.array(labels, np.int64))
    with pytest.raises(UserError, match="validation") as error:
        make_header(header.signature, header.class_names, {**splits, "validation": wrong})
    assert told in str(error.value)


def test_tampered_and_missing_splits_are_refused(library: Library) -> None:
    path = "splits/heldout/labels.npy"
    labels = library.store.read(path)
    library.store.write(path, labels[:-8] + np.int64(0).tobytes())
    fresh = Library.open(library.store)
    _refused(library, lambda: fresh.labels("heldout"), "splits/heldout: does not have the digest")
    assert len(fresh.labels("validation")) == 12
    library.store.write(path, labels[:-1])
    _refused(library, lambda: fresh.labels("heldout"), f"{path}: is no complete .npy file")
    library.store.delete(path)
    _refused(library, lambda: fresh.labels("heldout"), f"{path}: is missing")


@pytest.mark.parametrize(
    "path",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "models/../../x",
        "models//x",
        "",
        "models/digits-0001/1/model.onnx",
        "splits/x",
    ],
)
def test_a_record_with_a_path_outside_its_folder_is_refused(library: Library, publish: Publish, path: str) -> None:
    publish(0)
    _edit(library, RECORD, lambda content: content["files"]["model.onnx"].update(path=path))
    _refused(library, library.models, RECORD, "path")
    _refused(library, lambda: library.model("digits-0000"), RECORD, "path")
    assert len(library.verify()) == 1


def test_a_file_that_is_a_link_out_of_the_library_is_refused(
    library: Library, publish: Publish, tmp_path: Path
) -> None:
    stored = publish(0)
    place = library.store.local(stored.files["model.onnx"].path)
    assert place is not None
    place.rename(tmp_path / "outside.onnx")
    place.symlink_to(tmp_path / "outside.onnx")
    _refused(library, lambda: library.file(stored, "model.onnx"), "model.onnx: leaves the library")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c.update(id="digits-0001"), "id: is 'digits-0001', the folder says 'digits-0000'"),
        (lambda c: c.update(fingerprint="0" * 64), "fingerprint: is of another library"),
        (lambda c: c.update(unknown=1), "unknown"),
        (lambda c: c["validation"].update(error=2), "validation.error"),
        (lambda c: c["validation"].update(crossEntropy="low"), "validation.crossEntropy"),
        (lambda c: c["files"].pop("predictions-heldout.npy"), "files: lacks predictions-heldout.npy"),
        (lambda c: c["files"].pop("model.onnx"), "files: lacks model.onnx"),
        (lambda c: c["files"]["model.onnx"].update(sha256="ABC"), "files.model.onnx.sha256"),
        (lambda c: c.pop("family"), "family"),
    ],
)
def test_a_tampered_record_is_refused(
    library: Library, publish: Publish, change: Callable[[dict[str, Any]], object], told: str
) -> None:
    publish(0)
    publish(1)
    _edit(library, RECORD, change)
    _refused(library, library.models, RECORD, told)
    problems = library.verify()
    assert len(problems) == 1
    assert told in problems[0]


def test_nothing_is_uploaded_for_a_record_that_readers_would_refuse(
    library: Library, record: Callable[..., ModelRecord], files: Callable[[int], dict[str, Path]]
) -> None:
    incomplete = {key: path for key, path in files(0).items() if "heldout" not in key}
    _refused(library, lambda: library.publish(record(0), incomplete), "lacks predictions-heldout.npy")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda data: data[:-1], "is truncated: it has"),
        (lambda data: data + b"\0", "has grown"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "is corrupt: its SHA-256"),
    ],
)
def test_damaged_predictions_are_refused(
    library: Library, publish: Publish, damage: Callable[[bytes], bytes], told: str
) -> None:
    stored = publish(0)
    path = stored.files["predictions-validation.npy"].path
    library.store.write(path, damage(library.store.read(path)))
    _refused(library, lambda: library.predictions(stored, "validation"), path, told)
    assert len(library.verify()) == 1
    library.store.delete(path)
    _refused(library, lambda: library.predictions(stored, "validation"), path, "is missing")


def _npy(array: Any, pickled: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=pickled)
    return buffer.getvalue()


_UNIFORM = np.full((12, 3), 1 / 3, np.float32)


def _with(row: list[float]) -> bytes:
    array = _UNIFORM.copy()
    array[7] = row
    return _npy(array)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (_npy(_UNIFORM)[:-1], "no complete .npy file"),
        (_npy(_UNIFORM) + b"\0", "holds 145 bytes of data where its header says 144"),
        (_npy(_UNIFORM)[:20], "no complete .npy file"),
        (b"", "no complete .npy file"),
        (pickle.dumps([1]), "no complete .npy file"),
        (_npy(np.array([{"a": 1}], object), pickled=True), "no complete .npy file"),
        (_npy(_UNIFORM.astype(np.float64)), "it must be float32 (12, 3)"),
        (_npy(_UNIFORM.astype(">f4")), "it must be float32 (12, 3)"),
        (_npy(_UNIFORM[:11]), "is float32 (11, 3); it must be float32 (12, 3)"),
        (_npy(_UNIFORM[:, :2]), "is float32 (12, 2)"),
        (_with([np.nan, 0.5, 0.5]), "row 7 is no probability distribution"),
        (_with([np.inf, 0.5, 0.5]), "row 7 is no probability distribution"),
        (_with([-0.5, 0.5, 1.0]), "row 7 is no probability distribution"),
        (_with([0.5, 0.25, 0.2]), "row 7 is no probability distribution"),
    ],
)
def test_what_are_no_predictions_is_refused_even_with_a_right_digest(
    library: Library, publish: Publish, content: bytes, told: str
) -> None:
    stored = publish(0)
    path = stored.files["predictions-validation.npy"].path
    library.store.write(path, content)
    right = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    _edit(library, RECORD, lambda c: c["files"]["predictions-validation.npy"].update(right))
    _refused(library, lambda: library.predictions(library.model("digits-0000"), "validation"), path, told)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 271), more=st.binary(max_size=4))
def test_no_part_of_an_array_file_is_taken_for_the_whole(tmp_path: Path, cut: int, more: bytes) -> None:
    whole = _npy(_UNIFORM)
    damaged = whole[:cut] + more
    assume(len(damaged) != len(whole))  # of the same length it is for the digest to tell
    (tmp_path / "part.npy").write_bytes(damaged)
    for load in (lambda: load_array(tmp_path / "part.npy", "part.npy"), lambda: load_array_bytes(damaged, "part.npy")):
        with pytest.raises(UserError, match=r"^part\.npy: "):
            load()


@pytest.mark.parametrize("shape", ["(-12, 3)", f"({10**14},)", f"({10**40},)", "(12, 3.0)", "[12, 3]", "(12,"])
def test_a_header_that_lies_is_refused(tmp_path: Path, shape: str) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(144)
    (tmp_path / "lie.npy").write_bytes(content)
    for load in (lambda: load_array(tmp_path / "lie.npy", "lie.npy"), lambda: load_array_bytes(content, "lie.npy")):
        with pytest.raises(UserError, match=r"^lie\.npy: "):
            load()


@pytest.mark.parametrize("model_id", ["digits-0009", "../x", "", "Digits"])
def test_an_unknown_model_is_refused(library: Library, model_id: str) -> None:
    _refused(library, lambda: library.model(model_id), f"has no model {model_id!r}")


def test_a_tampered_profile_claim_or_result_is_refused(library: Library) -> None:
    library.store.write("profiles/cpu/onnxruntime/digits-0000.json", b"{}")
    _refused(library, lambda: library.profile("cpu", "onnxruntime", "digits-0000"), "digits-0000.json", "modelSha256")
    _refused(library, lambda: library.profile("../cpu", "onnxruntime", "digits-0000"), "'profiles/../cpu/")
    library.store.write("trials/digits-0000/claim-1.json", b"{")
    _refused(library, lambda: library.claims("digits"), "trials/digits-0000/claim-1.json")
    other = Claim(trial=1, attempt=1, sequence=0, parameters={}, bracket=0)
    library.store.write("trials/digits-0000/claim-1.json", other.model_dump_json(by_alias=True).encode())
    for read in (library.claims, library.trials):
        _refused(library, lambda read=read: read("digits"), "claim-1.json: is the claim of trial 1 by attempt 1")
    library.store.write("selections/abc.json", b"[]")
    _refused(library, lambda: library.results("selections"), "selections/abc.json: is not a JSON object")
