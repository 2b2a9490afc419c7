from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.specs import names

from ensemble_operator.names import Owner, child_name, labels, metadata, owner_of
from ensemble_operator.world import Manifest

DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
OWNER = Owner("HPOSearch", "digits", "lab", "uid-1", {"kueue.x-k8s.io/queue-name": "gpus"})


@given(names, st.sampled_from(["train-0123abcd", "train-0123abcd-17", "select-0123abcd-100000"]), st.integers(40, 63))
def test_child_names_are_dns_labels_within_the_limit(name: str, suffix: str, limit: int) -> None:
    child = child_name(name, suffix, limit)
    assert len(child) <= limit
    assert DNS_1035.fullmatch(child)
    assert child.endswith(f"-{suffix}")


@given(st.lists(names, min_size=2, max_size=5, unique=True))
def test_resources_of_different_names_have_children_of_different_names(given_names: list[str]) -> None:
    children = {child_name(name, "train-0123abcd", 47) for name in given_names}
    assert len(children) == len(given_names)


def test_names_that_fit_stay_readable() -> None:
    assert child_name("digits", "train-0123abcd") == "digits-train-0123abcd"
    assert child_name("9digits", "x") == "e9digits-dc5823-x"


def test_metadata_names_the_owner_once() -> None:
    made = metadata(OWNER, "train", "x", child="x", extra_labels={"app.kubernetes.io/component": "mine", "a": "b"})
    assert made["ownerReferences"] == [
        {
            "apiVersion": "ensemble-operator.io/v1alpha1",
            "kind": "HPOSearch",
            "name": "digits",
            "uid": "uid-1",
            "controller": True,
            "blockOwnerDeletion": False,
        }
    ]
    assert made["labels"] == labels(OWNER, "train", "x") | {"a": "b"}
    assert made["labels"]["app.kubernetes.io/managed-by"] == "ensemble-operator"
    assert made["labels"]["app.kubernetes.io/component"] == "train"
    assert made["labels"]["ensemble-operator.io/child"] == "x"


@pytest.mark.parametrize("given_labels", [None, {"team": "a", "kueue.x-k8s.io/priority-class": "high"}])
def test_owners_know_their_queue(given_labels: dict[str, str] | None) -> None:
    class Named:
        kind = "HPOSearch"
        metadata = None

    body: Manifest = {"metadata": {"name": "a", "namespace": "b", "uid": "c", "labels": given_labels}}
    queue = {"kueue.x-k8s.io/priority-class": "high"} if given_labels else {}
    assert owner_of(Named(), body) == Owner("HPOSearch", "a", "b", "c", queue)
