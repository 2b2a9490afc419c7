"""Whatever is applied is refused, or gets conditions; the operator neither crashes nor loops."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.apiserver.operator_bench import COLLECTIONS, CUSTOM, Cluster, operator, sample, until
from tests.support.specs import searches, selections

pytestmark = pytest.mark.apiserver

EXAMPLES = 150  # of each sort
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def damaged(draw: st.DrawFn) -> dict[str, Any]:
    """A sample in which a few values are anything."""
    manifest = copy.deepcopy(draw(st.sampled_from([sample(kind, "x") for kind in CUSTOM])))
    for _ in range(draw(st.integers(1, 2))):
        inside = manifest["spec"]
        while isinstance(inside, dict) and inside:
            key = draw(st.sampled_from(sorted(inside)))
            if not isinstance(inside[key], dict) or draw(st.booleans()):
                inside[key] = draw(values)
                break
            inside = inside[key]
    return manifest


@st.composite
def valid(draw: st.DrawFn) -> dict[str, Any]:
    kind, specs = draw(st.sampled_from([("HPOSearch", searches()), ("EnsembleSelection", selections())]))
    return {"apiVersion": "ensemble-operator.io/v1alpha1", "kind": kind, "metadata": {}, "spec": draw(specs)}


@pytest.mark.timeout(600)
def test_refused_or_told(cluster: Cluster, namespace: str) -> None:
    made: list[tuple[str, str]] = []
    refused = 0

    def apply(manifest: dict[str, Any]) -> None:
        nonlocal refused
        name = f"x{len(made)}"
        content = {**manifest, "metadata": {"name": name}}
        code, answer = cluster.server.request("POST", COLLECTIONS[manifest["kind"]].format(namespace), content)
        assert code in (201, 400, 422), answer
        if code == 201:
            made.append((manifest["kind"], name))
        else:
            refused += 1

    few = settings(max_examples=EXAMPLES, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    with operator(cluster) as one:
        until(one.healthy)
        for strategy in (valid(), damaged()):
            few(given(strategy)(apply))()
        assert len(made) > EXAMPLES / 2
        assert refused > EXAMPLES / 10
        until(lambda: told(cluster, namespace) == len(made), 240)
        time.sleep(5)
        written = len(cluster.writes())
        asked = len(cluster.audit())
        time.sleep(10)
        assert [write for write in cluster.writes()[written:] if write[3] < 300] == []
        assert len(cluster.audit()) - asked < 10 * len(made)  # what waits is looked at each half minute at first
        assert one.process.poll() is None
        assert [line for line in one.complaints() if not line["message"].startswith("cannot apply")] == []
    for manifest in (manifest for kind in CUSTOM for manifest in cluster.list(kind, namespace)):
        for condition in manifest["status"]["conditions"]:
            assert condition["reason"] not in ("InternalError", "InvalidSpec", "NameTaken"), condition["message"]
            # Kubernetes alone knows what is right in pod overrides.
            assert condition["reason"] != "ApplyFailed" or manifest["spec"].get("podOverrides"), condition["message"]


def told(cluster: Cluster, namespace: str) -> int:
    return sum(
        manifest.get("status", {}).get("observedGeneration") == manifest["metadata"]["generation"]
        for kind in CUSTOM
        for manifest in cluster.list(kind, namespace)
    )
