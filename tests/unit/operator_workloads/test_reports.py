from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ensemble_operator import search_status, selection_status
from ensemble_operator.reports import MAX_BYTES, Report, clean, last_lines, read_report

HASH, UID = "a" * 64, "uid-1"
REPORT: dict[str, Any] = {
    "schemaVersion": 1,
    "verb": "train",
    "specHash": HASH,
    "attempt": 2,
    "ownerUid": UID,
    "sequence": 7,
    "state": "Running",
    "progress": {"stage": "train", "done": 3, "total": 8, "note": "best cross-entropy 0.2", "summary": {"models": 3}},
}


def stored(**changes: Any) -> dict[str, Any]:
    return {"data": {"report.json": json.dumps({**REPORT, **changes})}}


def read(config_map: Any) -> Report | None:
    return read_report(config_map, "train", HASH, UID, 2)


def test_a_report_is_read() -> None:
    report = read(stored())
    assert report is not None
    assert (report.state, report.progress.done, report.progress.total) == ("Running", 3, 8)
    assert report.progress.summary == {"models": 3}
    done = read(stored(state="Succeeded", result={"digest": "b" * 64, "summary": {"x": 1}}))
    assert done is not None
    assert done.result.digest == "b" * 64


def test_an_error_says_where_and_what() -> None:
    error = {"field": "spec.dataset", "message": "no such folder", "logTail": "line 1\nline 2", "value": 3}
    report = read(stored(state="Failed", error=error))
    assert report is not None
    assert report.error.text() == "spec.dataset: no such folder\nline 1\nline 2"


@pytest.mark.parametrize(
    "changes",
    [
        {"verb": "select"},
        {"specHash": "b" * 64},
        {"attempt": 1},
        {"ownerUid": "uid-2"},
        {"schemaVersion": 2},
        {"state": "Done"},
        {"attempt": "2"},
        {"attempt": True},
        {"sequence": -1},
        {"progress": {"done": -3}},
        {"progress": {"done": 2**40}},
        {"progress": {"done": 0.5}},
        {"progress": []},
        {"progress": {"summary": [1]}},
        {"progress": {"note": 7}},
        {"result": {"digest": "B" * 64}},
        {"result": {"digest": "b" * 64 + "\n"}},
        {"error": "oh"},
        {"error": {"message": None}},
    ],
)
def test_reports_of_others_and_wrong_ones_are_ignored(changes: dict[str, Any]) -> None:
    assert read(stored(**changes)) is None


@pytest.mark.parametrize(
    "config_map",
    [
        None,
        {},
        {"data": None},
        {"data": {}},
        {"data": {"report.json": ""}},
        {"data": {"report.json": "{"}},
        {"data": {"report.json": "null"}},
        {"data": {"report.json": "[" * 60_000}},
        {"data": {"report.json": '{"a":' * 10_000}},
        {"data": {"report.json": "9" * 5000}},
        {"data": {"report.json": json.dumps(REPORT)[:-1] + ', "x": NaN}'}},
        {"data": {"report.json": json.dumps(REPORT | {"x": "y" * MAX_BYTES})}},
        {"binaryData": {"report.json": "e30="}},
    ],
)
def test_what_is_no_report_is_ignored(config_map: Any) -> None:
    assert read(config_map) is None


def test_texts_are_cut_and_cleaned() -> None:
    report = read(stored(progress={"note": "a\x1b[31mb\ud800\u202ec" + "d" * 1000}, error={"message": "m" * 9000}))
    assert report is not None
    assert report.progress.note.startswith("a[31mb?c")
    assert len(report.progress.note) == 253
    assert len(report.error.message) == 4096
    report.progress.note.encode()


def test_the_last_lines_of_a_log_are_whole() -> None:
    log = "\n".join(f"line {i}" for i in range(10_000))
    kept = last_lines(log, 200).splitlines()
    assert kept[-1] == "line 9999"
    assert all(line.startswith("line ") for line in kept)
    assert len("\n".join(kept)) <= 200
    assert last_lines("x" * 500, 100) == "x" * 99 + "…"


@given(st.text(max_size=300), st.integers(1, 100))
def test_clean_text_is_short_and_can_be_stored(text: str, limit: int) -> None:
    assert len(clean(text, limit)) <= limit
    assert len(last_lines(text, limit)) <= limit
    clean(text, limit).encode()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def with_keys(*keys: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=dict.fromkeys(keys, json_values))


@settings(max_examples=400)
@given(with_keys(*REPORT, "result", "error"))
@example({"progress": {"summary": {"": float("nan")}}})
def test_no_report_makes_the_reader_raise(changes: dict[str, Any]) -> None:
    report = read(stored(**changes))
    assert report is None or report.attempt == 2


TRAIN = with_keys("trials", "best", "front", "models", "libraryDigest", "occupancy", "attempt", "startTime")
SELECT = with_keys("budgets", "front", "sources", "cost")


@settings(max_examples=300)
@given(TRAIN, SELECT)
def test_no_summary_makes_its_reader_raise(train: dict[str, Any], select: dict[str, Any]) -> None:
    running = read(stored(progress={"summary": train}))
    assert running is None or search_status.summary_of(running) is None or running.state == "Running"
    picked = read(stored(state="Succeeded", result={"digest": "b" * 64, "summary": select}))
    assert picked is None or selection_status.result_of(picked) is None or picked.state == "Succeeded"
