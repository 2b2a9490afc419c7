"""What counts as different, and what does not."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.handler.memory import merged

from ensemble_operator.differences import contains, differs, merge_patch, misplaced, quantity, stamped, without_none

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text(max_size=2), JSON, max_size=4)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("500m", "0.5"),
        (2, "2"),
        ("8192Mi", "8589934592"),
        ("1Gi", "1073741824"),
        ("1e3", "1000"),
        ("1k", "1000"),
        ("100n", "0.0000001"),
        (0.5, "0.5"),
    ],
)
def test_quantities(text: Any, value: str) -> None:
    assert quantity(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", "m", "1X", "1.2.3", "abc", None, True, [], {}, "1 ", "-"])
def test_no_quantities(text: Any) -> None:
    assert quantity(text) is None


@pytest.mark.parametrize(
    ("observed", "desired"),
    [
        ({"cpu": "500m"}, {"cpu": "0.5"}),
        ({"memory": "8Gi"}, {"memory": "8192Mi"}),
        ({"cpu": "2"}, {"cpu": 2}),
        ({"a": 1, "b": 2}, {"a": 1}),
        ({}, {"a": None, "b": {}, "c": [], "d": "", "e": False, "f": 0}),
        ({"ports": [{"port": 80, "protocol": "TCP"}]}, {"ports": [{"port": 80}]}),
        ({"a": [1, 2]}, {"a": (1, 2)}),
    ],
)
def test_contained(observed: Any, desired: Any) -> None:
    assert contains(observed, desired)


@pytest.mark.parametrize(
    ("observed", "desired"),
    [
        ({"cpu": "400m"}, {"cpu": "0.5"}),
        ({}, {"a": 1}),
        ({"a": {}}, {"a": {"b": "x"}}),
        ({"ports": [{"port": 80}, {"port": 81}]}, {"ports": [{"port": 80}]}),
        ({"a": "x"}, {"a": {"b": 1}}),
        ({"a": True}, {"a": False}),
        ({"a": "1"}, {"a": "one"}),
        ({"a": []}, {"a": ["x"]}),
    ],
)
def test_not_contained(observed: Any, desired: Any) -> None:
    assert not contains(observed, desired)


@given(OBJECTS)
def test_everything_contains_itself(document: Any) -> None:
    assert contains(document, document)


@given(OBJECTS, OBJECTS)
def test_merge_patch_makes_the_one_of_the_other(before: Any, after: Any) -> None:
    before, after = without_none(before), without_none(after)
    assert without_none(merged(before, merge_patch(before, after))) == after


@given(OBJECTS)
def test_nothing_to_patch_between_equals(document: Any) -> None:
    assert merge_patch(document, document) == {}


def manifest(**extra: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "lab"}, **extra}


def test_an_applied_object_differs_no_more() -> None:
    desired = stamped(manifest(data={"a": "1"}))
    observed = stamped(manifest(data={"a": "1"}))
    observed["metadata"]["uid"] = "1"
    assert not differs(desired, observed)


def test_what_is_desired_no_more_differs() -> None:
    assert differs(stamped(manifest(data={"a": "1"})), stamped(manifest(data={"a": "1", "b": "2"})))


def test_what_is_made_once_never_differs() -> None:
    assert not differs(stamped(manifest(data={"a": "1"}, immutable=True)), manifest(data={"a": "2"}, immutable=True))
    assert not differs(stamped(manifest() | {"kind": "Job"}), manifest(spec={"suspend": True}) | {"kind": "Job"})


def test_objects_of_kinds_that_are_not_read_are_refused() -> None:
    """They would never be pruned."""
    body = {"kind": "EnsembleSelection", "metadata": {"name": "small", "namespace": "lab", "uid": "1"}}
    assert misplaced(manifest() | {"kind": "Deployment"}, body) == "is of no kind that is read"


def test_stamp_is_the_same_whatever_the_order() -> None:
    assert stamped(manifest(data={"a": "1", "b": "2"})) == stamped(manifest(data={"b": "2", "a": "1"}))
