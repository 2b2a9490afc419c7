"""Any specification is refused by the API models, or every kind decides something about it that can be told."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.play import Play, body_of
from tests.support.restricted import breaches
from tests.support.specs import searches, selections

from ensemble_core.errors import UserError
from ensemble_operator.kinds import KINDS
from ensemble_operator.reconcile import parsed

SAMPLES = [
    yaml.safe_load(path.read_text())
    for path in sorted((Path(__file__).parents[3] / "crds" / "samples").glob("*.yaml"))
    if "complete" in path.name
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def damaged(draw: st.DrawFn) -> dict[str, Any]:
    """A complete sample in which a few values are anything, are gone, or are of another place."""
    sample = copy.deepcopy(draw(st.sampled_from(SAMPLES)))
    for _ in range(draw(st.integers(0, 3))):
        inside: Any = sample["spec"]
        while isinstance(inside, dict | list) and inside:
            key = draw(st.sampled_from(sorted(inside) if isinstance(inside, dict) else range(len(inside))))
            if not isinstance(inside[key], dict | list) or draw(st.integers(0, 3)) == 0:
                what = draw(st.integers(0, 3))
                if what == 0 and isinstance(inside, dict):
                    del inside[key]
                elif what == 1 and isinstance(inside, dict):
                    inside[draw(st.text(max_size=8))] = draw(VALUES)
                else:
                    inside[key] = draw(VALUES)
                break
            inside = inside[key]
    return {"kind": sample["kind"], "spec": sample["spec"]}


def drawn(kind: str, specs: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return specs.map(lambda spec: {"kind": kind, "spec": spec})


documents = st.one_of(damaged(), drawn("HPOSearch", searches()), drawn("EnsembleSelection", selections()))


def check(document: dict[str, Any], counts: dict[str, int]) -> None:
    kind, body = KINDS[document["kind"]], body_of(document["kind"], "x", document["spec"])
    try:
        parsed(kind, body)
    except UserError:
        counts["refused"] += 1
        return
    play = Play(kind, body)
    decision = play.step()
    for verdict in decision.conditions:
        assert verdict.reason != "InternalError"
        assert verdict.message or (verdict.type, verdict.status) != ("Degraded", "True")
    for manifest in decision.objects:
        assert manifest["metadata"]["namespace"] == "lab"
        assert [owner["uid"] for owner in manifest["metadata"]["ownerReferences"]] == [body["metadata"]["uid"]]
        if manifest["kind"] in ("Job", "Deployment"):
            assert breaches(manifest["spec"]["template"]) == []
    play.step()  # also of what it has made itself
    counts["decided"] += 1


def run(examples: int) -> None:
    counts = {"refused": 0, "decided": 0}
    many = settings(max_examples=examples, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    many(given(documents)(lambda document: check(document, counts)))()
    assert counts["refused"] > examples / 10
    assert counts["decided"] > examples / 10


def test_specifications_are_refused_or_decided() -> None:
    run(300)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_ten_thousand_specifications_are_refused_or_decided() -> None:
    run(10_000)
