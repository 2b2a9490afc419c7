"""Names of starts outlive releases: what is as by default has no part in them."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from tests.support.play import Play, body_of, parsed
from tests.support.stage import DIGESTS, Stage

from ensemble_core.api.common import PodOverrides
from ensemble_core.api.ensembledeployment import EnsembleDeployment, EnsembleDeploymentSpec, Optimization
from ensemble_core.api.ensembleselection import Budget, EnsembleSelection, EnsembleSelectionSpec
from ensemble_core.api.hposearch import Algorithm, HPOSearch, HPOSearchSpec, HyperbandSettings
from ensemble_core.frozen import Frozen
from ensemble_operator import ensembledeployment, hposearch
from ensemble_operator.deployment_aim import wish_of
from ensemble_operator.names import BASIS, SPEC_HASH
from ensemble_operator.storages import resolve
from ensemble_operator.workload import hash_of

SEARCH: dict[str, Any] = {
    "library": {"storage": {"s3": {"bucket": "libraries", "prefix": "digits"}}},
    "dataset": {"procedural": {"samples": 400}},
    "maxTrialCount": 40,
    "algorithm": {"settings": {"brackets": 2}},
    "podOverrides": {"nodeSelector": {"zone": "a"}, "tolerations": [{"key": "gpu"}]},
}
SELECTION: dict[str, Any] = {
    "sources": [{"hpoSearchName": "digits"}],
    "budgets": [{"name": "small", "parametersMillions": 1.0}],
}


def document(model: type[Any], spec: dict[str, Any]) -> Any:
    return model.model_validate({"metadata": {"name": "digits"}, "spec": spec})


def test_hashes_are_what_they_were() -> None:
    """Another value starts every workload of every cluster again: finished searches, selections, optimisations."""
    search, selection = document(HPOSearch, SEARCH), document(EnsembleSelection, SELECTION)
    assert hash_of([search], search.spec) == "e62582673e40926626ec0bf6e1c448be073351fea0dfcf41bb249ade8146b534"
    assert (
        hash_of([selection, search], selection.spec)
        == "4d4805a46b32988bb55a1e7e01f2dcf47e9b859ce19a1d4ad8af0907756fd81f"
    )
    stage = Stage.set(optimization={"seed": 7}, podOverrides={"nodeSelector": {"zone": "a"}})
    stage.steps()
    job = stage.job()["metadata"]
    assert job["annotations"][BASIS] == "23dbda16416438858823e78c81ec369b74a07f2d8d6e1796f82139a1f9590756"
    assert wish_of(stage.world()) == "465d7c5ab83ec216891f9c37db88ccfe20b5458194092ea1efcf867362d3ccf1"


class LaterSettings(HyperbandSettings):
    later: int = 3


class LaterAlgorithm(Algorithm):
    settings: LaterSettings = Field(default_factory=LaterSettings)
    later: Frozen = Field(default_factory=Frozen)


class LaterOverrides(PodOverrides):
    later: tuple[int, ...] = (1, 2)


class LaterSearchSpec(HPOSearchSpec):
    algorithm: LaterAlgorithm = Field(default_factory=LaterAlgorithm)
    pod_overrides: LaterOverrides = Field(default_factory=LaterOverrides)
    later: LaterSettings = Field(default_factory=LaterSettings)
    latest: str | None = None


class LaterSearch(HPOSearch):
    spec: LaterSearchSpec


class LaterBudget(Budget):
    later: float = 0.5


class LaterSelectionSpec(EnsembleSelectionSpec):
    budgets: tuple[LaterBudget, ...]


class LaterSelection(EnsembleSelection):
    spec: LaterSelectionSpec


def test_a_field_that_comes_with_a_default_starts_nothing_again() -> None:
    now, later = document(HPOSearch, SEARCH), document(LaterSearch, SEARCH)
    selection, later_selection = document(EnsembleSelection, SELECTION), document(LaterSelection, SELECTION)
    assert hash_of([later], later.spec) == hash_of([now], now.spec)
    assert hash_of([later_selection, later], later_selection.spec) == hash_of([selection, now], selection.spec)
    # What commands read has all of it, and what is not as by default counts.
    assert '"later"' in resolve([later]).text
    other = document(LaterSearch, SEARCH | {"later": {"later": 4}})
    assert hash_of([other], other.spec) != hash_of([now], now.spec)
    deep = document(LaterSearch, SEARCH | {"algorithm": {"settings": {"brackets": 2, "later": 4}}})
    assert hash_of([deep], deep.spec) != hash_of([now], now.spec)


def test_a_default_that_the_server_fills_in_is_the_same_as_none() -> None:
    plain = document(HPOSearch, SEARCH)
    filled = document(HPOSearch, plain.document()["spec"])
    assert hash_of([filled], filled.spec) == hash_of([plain], plain.spec)
    empty = document(HPOSearch, {**SEARCH, "dataset": {"procedural": {}}})
    assert empty.essence()["spec"]["dataset"] == {"procedural": {}}  # which of several is given counts


def test_a_search_that_is_there_outlives_a_release(monkeypatch: Any) -> None:
    one = Play(hposearch.KIND, body_of("HPOSearch", "digits", SEARCH), capabilities=frozenset())
    one.settle()
    children = set(one.children)
    monkeypatch.setattr(hposearch.HPOSearchKind, "model", LaterSearch)
    one.settle()
    assert isinstance(parsed(one.kind, one.body), LaterSearch)
    assert set(one.children) == children
    assert SPEC_HASH in one.workload()["metadata"]["annotations"]


class LaterOptimization(Optimization):
    later: int = 3


class LaterDeploymentSpec(EnsembleDeploymentSpec):
    optimization: LaterOptimization = Field(default_factory=LaterOptimization)


class LaterDeployment(EnsembleDeployment):
    spec: LaterDeploymentSpec


def test_an_ensemble_that_is_served_outlives_a_release(monkeypatch: Any) -> None:
    stage = Stage.set(optimization={"seed": 7})
    revision = stage.serve()
    monkeypatch.setattr(ensembledeployment.EnsembleDeploymentKind, "model", LaterDeployment)
    monkeypatch.setattr("ensemble_operator.deployment_aim.EnsembleDeployment", LaterDeployment)
    stage.later(60)
    assert stage.steps().conditions[0].status == "True"
    assert (list(stage.deployments()), stage.jobs()) == ([revision], [])
    assert stage.digest() == DIGESTS[0]
