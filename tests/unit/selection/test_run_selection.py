from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemble_core.api.common import Storage
from ensemble_core.errors import UserError
from ensemble_core.library.library import Library
from ensemble_core.library.store import open_store
from ensemble_core.metrics import metrics
from ensemble_core.selection import run as module
from ensemble_core.selection.result import SelectionResult
from ensemble_core.selection.run import checked_result, find_result, run_selection

BUDGETS = [{"name": "small", "inferenceTimeSeconds": 1.0}, {"name": "large", "inferenceTimeSeconds": 20.0}]
MODELS = {f"m-{row:04d}": row for row in range(12)}


def silent(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


def ready(workspace: Any, reference: Any, name: str = "a", **options: Any) -> Any:
    """A library of 12 profiled models and the pool it comes from."""
    pool = reference.pool(12, 120, 4, seed=11)
    library = workspace.library(name, pool, MODELS, **options)
    workspace.profile(library, {model: 0.2 + 0.3 * row for model, row in MODELS.items()})
    return pool


def result_of(documents: Any) -> SelectionResult:
    result, computed = run_selection(documents, documents.selection(), silent)
    assert computed
    return result


def picks_of(result: SelectionResult) -> Any:
    return [(budget.name, [(m.library, m.model_id) for m in budget.members], budget.paths) for budget in result.budgets]


def test_the_result_tells_members_metrics_and_costs(workspace: Any, reference: Any) -> None:
    pool = ready(workspace, reference)
    result = result_of(workspace.documents(["a"], BUDGETS))
    small, large = result.budgets
    assert len(large.members) > len(small.members) >= 1
    for budget, limit in ((small, 1.0), (large, 20.0)):
        rows = [MODELS[member.model_id] for member in budget.members]
        assert budget.cost is not None
        assert budget.cost.inference_time_seconds == pytest.approx(sum(0.2 + 0.3 * row for row in rows))
        assert budget.cost.inference_time_seconds <= limit
        assert budget.cost.memory_mib == 100 * len(rows)
        mean = pool.probabilities[rows].astype(float).mean(axis=0)
        assert budget.validation == pytest.approx(metrics(mean[:60], pool.labels[:60]))
        assert budget.heldout is not None
        assert budget.heldout.cross_entropy == pytest.approx(metrics(mean[60:], pool.labels[60:]).cross_entropy)
        assert [member.weight for member in budget.members] == [1 / len(rows)] * len(rows)
        winner = next(path for path in budget.paths if path.w == budget.weight)
        assert [step.model_id for step in winner.steps] == [member.model_id for member in budget.members]
        assert winner.steps[-1].cost == budget.cost
    member = large.members[0]
    row = MODELS[member.model_id]
    assert member.heldout.error == metrics(pool.probabilities[row, 60:], pool.labels[60:]).error
    best = min(result.models, key=lambda model: model.cross_entropy or 0)
    assert result.best_single.model_id == best.model_id
    assert result.cost.device_type == "cpu-test-1c"


def test_the_front_is_sorted_and_holds_the_best_ensemble(workspace: Any, reference: Any) -> None:
    ready(workspace, reference)
    result = result_of(workspace.documents(["a"], BUDGETS))
    costs = [point.cost.inference_time_seconds for point in result.front]
    values = [point.cross_entropy for point in result.front]
    assert costs == sorted(set(costs))
    assert values == sorted(set(values), reverse=True)
    assert result.budgets[1].validation is not None
    assert values[-1] == pytest.approx(result.budgets[1].validation.cross_entropy)


def test_poisoned_heldout_predictions_leave_the_picks_as_they_are(workspace: Any, reference: Any) -> None:
    ready(workspace, reference)
    poison = reference.pool(12, 120, 4, seed=99)
    ready(workspace, reference, "poisoned", heldout=poison)
    clean = result_of(workspace.documents(["a"], BUDGETS))
    poisoned = result_of(workspace.documents(["poisoned"], BUDGETS))
    assert picks_of(clean) == picks_of(poisoned)
    assert clean.front == poisoned.front
    assert clean.budgets[0].heldout != poisoned.budgets[0].heldout


def test_heldout_data_is_read_after_the_picks_only(
    workspace: Any, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready(workspace, reference)
    events: list[str] = []
    predictions, pick = Library.predictions, module.pick

    def watched_predictions(self: Library, record: Any, split: Any) -> Any:
        events.append(split)
        return predictions(self, record, split)

    def watched_pick(*arguments: Any) -> Any:
        events.append("pick")
        return pick(*arguments)

    monkeypatch.setattr(Library, "predictions", watched_predictions)
    monkeypatch.setattr(module, "pick", watched_pick)
    result_of(workspace.documents(["a"], BUDGETS))
    assert events[:13] == ["validation"] * 12 + ["pick"]
    assert "heldout" in events[13:]


def test_a_second_run_computes_and_writes_nothing(workspace: Any, reference: Any) -> None:
    ready(workspace, reference)
    documents = workspace.documents(["a"], BUDGETS)
    first = result_of(documents)
    before = {path: path.stat().st_mtime_ns for path in workspace.folder.rglob("*")}
    again, computed = run_selection(documents, documents.selection(), lambda *_: pytest.fail("nothing is to be done"))
    assert (again, computed) == (first, False)
    assert {path: path.stat().st_mtime_ns for path in workspace.folder.rglob("*")} == before
    assert find_result(documents, documents.selection()) == first


def test_a_result_is_found_after_the_libraries_were_moved_or_copied(workspace: Any, reference: Any) -> None:
    ready(workspace, reference)
    first = result_of(workspace.documents(["a"], BUDGETS))
    shutil.copytree(workspace.folder / "a", workspace.folder / "copy")
    (workspace.folder / "a").rename(workspace.folder / "moved")
    for place in ("copy", "moved"):
        documents = workspace.documents([place], BUDGETS)
        found, computed = run_selection(documents, documents.selection(), lambda *_: pytest.fail("nothing is to do"))
        assert (found.digest, found.budgets, computed) == (first.digest, first.budgets, False)
        assert [source.storage.path for source in found.sources] == [str(workspace.folder / place)]
        assert find_result(documents, documents.selection()) == found


def test_a_result_of_other_places_is_not_found_for_other_content(workspace: Any, reference: Any) -> None:
    ready(workspace, reference)
    first = result_of(workspace.documents(["a"], BUDGETS))
    (workspace.folder / "a").rename(workspace.folder / "moved")
    other = workspace.documents(["moved"], BUDGETS, weights=[0.5])
    assert find_result(other, other.selection()) is None
    library = Library.open(open_store(Storage(path=str(workspace.folder / "moved"))))
    workspace.profile(library, {"m-0000": 0.1})
    assert result_of(workspace.documents(["moved"], BUDGETS)).digest != first.digest


def test_what_does_not_decide_leaves_the_digest_and_what_decides_changes_it(workspace: Any, reference: Any) -> None:
    pool = ready(workspace, reference)
    first = result_of(workspace.documents(["a"], BUDGETS))
    same = workspace.documents(["a"], BUDGETS, updatePolicy={"settleSeconds": 5}, podOverrides={"labels": {"a": "b"}})
    assert run_selection(same, same.selection(), silent) == (first, False)
    other = result_of(workspace.documents(["a"], BUDGETS, weights=[0.5]))
    library = workspace.library("a", pool, {"new": 3})
    workspace.profile(library, {"new": 0.1})
    grown = result_of(workspace.documents(["a"], BUDGETS))
    workspace.profile(library, {"new": 0.15})
    measured_anew = result_of(workspace.documents(["a"], BUDGETS))
    assert len({result.digest for result in (first, other, grown, measured_anew)}) == 4


def test_joined_libraries_select_as_one_in_any_order(workspace: Any, reference: Any) -> None:
    pool = ready(workspace, reference, "whole")
    names = list(MODELS)
    for name, part in (("left", names[::2]), ("right", names[1::2])):
        library = workspace.library(name, pool, {model: MODELS[model] for model in part})
        workspace.profile(library, {model: 0.2 + 0.3 * MODELS[model] for model in part})
    whole = result_of(workspace.documents(["whole"], BUDGETS))
    for order in (["left", "right"], ["right", "left"], ["right", "left", "whole"]):
        joined = result_of(workspace.documents(order, BUDGETS))
        assert [[m.model_id for m in b.members] for b in joined.budgets] == [
            [m.model_id for m in b.members] for b in whole.budgets
        ]
        assert len(joined.models) == 12
    assert {m.library for m in joined.models} == {0, 1}


def test_libraries_of_other_data_are_refused(workspace: Any, reference: Any) -> None:
    ready(workspace, reference)
    workspace.library("other", reference.pool(1, 80, 4, seed=1), {"m": 0})
    documents = workspace.documents(["a", "other"], BUDGETS)
    with pytest.raises(UserError, match="fingerprint"):
        run_selection(documents, documents.selection(), silent)


def test_the_result_goes_to_a_library_of_its_own(workspace: Any, reference: Any) -> None:
    ready(workspace, reference)
    documents = workspace.documents(["a"], BUDGETS, library={"path": "results"})
    result = result_of(documents)
    assert [path.stem for path in (workspace.folder / "results/selections").iterdir()] == [result.digest]
    assert not (workspace.folder / "a/selections").exists()
    assert run_selection(documents, documents.selection(), silent) == (result, False)


def test_the_stored_file_is_what_was_returned(workspace: Any, reference: Any) -> None:
    ready(workspace, reference)
    result = result_of(workspace.documents(["a"], BUDGETS))
    (file,) = (workspace.folder / "a/selections").iterdir()
    assert SelectionResult.model_validate(json.loads(file.read_text())) == result


def test_a_budget_below_the_cheapest_model_has_a_reason_and_the_others_run(workspace: Any, reference: Any) -> None:
    ready(workspace, reference)
    tiny = {"name": "tiny", "inferenceTimeSeconds": 0.01}
    both = {"name": "both", "inferenceTimeSeconds": 0.3, "memoryMiB": 50}
    result = result_of(workspace.documents(["a"], [tiny, both, *BUDGETS]))
    assert result.budgets[0].reason == "the cheapest model m-0000 costs 0.2 s, the budget is 0.01 s"
    assert result.budgets[1].reason == "the cheapest model m-0000 costs 100 MiB, the budget is 50 MiB"
    assert result.budgets[0].members == ()
    assert all(budget.members and budget.reason is None for budget in result.budgets[2:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "2 of 14 servable models have no profile .* m-0100.* run `ensemble profile --spec .* --name pick`"),
        ({"batches": ()}, None),
    ],
)
def test_models_without_a_profile_are_refused(
    workspace: Any, reference: Any, changes: dict[str, Any], message: str | None
) -> None:
    pool = ready(workspace, reference)
    library = workspace.library("a", pool, {"m-0100": 0, "m-0101": 1})
    if message is None:
        workspace.profile(library, {"m-0100": 1.0, "m-0101": 1.0}, model_sha256="0" * 64)
        message = "2 of 14 servable models have no profile"
    documents = workspace.documents(["a"], BUDGETS)
    with pytest.raises(UserError, match=message):
        run_selection(documents, documents.selection(), silent)
    assert not (workspace.folder / "a/selections").exists()


def test_a_profile_of_another_batch_size_or_core_count_does_not_count(workspace: Any, reference: Any) -> None:
    ready(workspace, reference)
    for cost in ({"batchSize": 64}, {"coresPerDevice": 2}):
        documents = workspace.documents(["a"], BUDGETS, cost=cost)
        with pytest.raises(UserError, match="12 of 12 servable models have no profile"):
            run_selection(documents, documents.selection(), silent)


def test_several_device_types_must_be_told_apart(workspace: Any, reference: Any) -> None:
    ready(workspace, reference)
    library = workspace.library("a", reference.pool(12, 120, 4, seed=11), {})
    workspace.profile(library, dict.fromkeys(MODELS, 0.5), device_type="gpu-test-1mib")
    documents = workspace.documents(["a"], BUDGETS)
    with pytest.raises(UserError, match=r"spec\.cost\.deviceType: must be given: .* cpu-test-1c, gpu-test-1mib"):
        run_selection(documents, documents.selection(), silent)
    chosen = result_of(workspace.documents(["a"], BUDGETS, cost={"deviceType": "gpu-test-1mib"}))
    assert chosen.best_single.cost.inference_time_seconds == 0.5
    by_size = result_of(workspace.documents(["a"], [{"name": "b", "parametersMillions": 3}]))
    assert by_size.cost.device_type is None


def test_measurements_that_allocation_adds_leave_the_selection_as_it_is(workspace: Any, reference: Any) -> None:
    pool = ready(workspace, reference)
    documents = workspace.documents(["a"], BUDGETS)
    first = result_of(documents)
    library = workspace.library("a", pool, {})
    profile = library.profile("cpu-test-1c", "onnxruntime", "m-0004")
    assert profile is not None
    more = profile.batches[0].model_copy(update={"batch_size": 128})
    library.write_profile(profile.model_copy(update={"batches": (*profile.batches, more)}))
    workspace.profile(library, {"m-0004": 0.1}, device_type="gpu-test-1mib")
    assert run_selection(documents, documents.selection(), silent) == (first, False)


def test_profiles_of_different_engine_versions_are_not_mixed(workspace: Any, reference: Any) -> None:
    ready(workspace, reference)
    library = workspace.library("a", reference.pool(12, 120, 4, seed=11), {})
    workspace.profile(library, {"m-0003": 0.5}, engine_version="2.0")
    documents = workspace.documents(["a"], BUDGETS)
    with pytest.raises(UserError, match="different versions of onnxruntime"):
        run_selection(documents, documents.selection(), silent)


def test_a_limit_on_energy_is_refused_where_the_document_is_read(workspace: Any) -> None:
    """No device's energy is measured: the limit could not hold, and to leave it out in silence would be worse."""
    with pytest.raises(UserError, match=r"spec\.budgets\[0\]\.energyJoules: unknown field"):
        workspace.documents(["a"], [{"name": "green", "energyJoules": 5, "parametersMillions": 1}])


def test_models_that_cannot_be_served_take_part_where_their_cost_is_known(workspace: Any, reference: Any) -> None:
    pool = ready(workspace, reference)
    best = int(metrics_order(pool)[0])
    workspace.library("a", pool, {"x-predictions": best}, servable=False)
    timed = result_of(workspace.documents(["a"], BUDGETS))
    (left_out,) = [model for model in timed.models if model.reason]
    assert left_out.model_id == "x-predictions"
    assert "not servable" in (left_out.reason or "")
    counted = result_of(workspace.documents(["a"], [{"name": "one", "parametersMillions": 1}], weights=[0]))
    assert len(counted.budgets[0].members) == 1
    assert {model.model_id: model.servable for model in counted.models}["x-predictions"] is False


def test_a_budget_of_parameters_needs_no_profile(workspace: Any, reference: Any) -> None:
    pool = reference.pool(4, 40, 3, seed=0)
    workspace.library("bare", pool, {f"m{row}": row for row in range(4)})
    workspace.library("bare", pool, {"unknown": 0}, parameters=None)
    result = result_of(workspace.documents(["bare"], [{"name": "two", "parametersMillions": 2}]))
    assert result.cost.device_type is None
    assert result.budgets[0].cost is not None
    assert result.budgets[0].cost.inference_time_seconds is None
    assert [model.reason for model in result.models if model.model_id == "unknown"] == [
        "unknown does not tell its number of parameters, which a budget limits"
    ]


def test_a_budget_of_parameters_does_not_change_with_the_profiles_of_some_models(
    workspace: Any, reference: Any
) -> None:
    pool = reference.pool(4, 40, 3, seed=0)
    library = workspace.library("bare", pool, {f"m{row}": row for row in range(4)})
    documents = workspace.documents(["bare"], [{"name": "two", "parametersMillions": 2}])
    first = result_of(documents)
    workspace.profile(library, {"m0": 0.1, "m1": 0.2})
    assert run_selection(documents, documents.selection(), silent) == (first, False)


def test_a_stored_result_that_was_tampered_with_is_refused(workspace: Any, reference: Any) -> None:
    ready(workspace, reference)
    documents = workspace.documents(["a"], BUDGETS)
    file = workspace.folder / "a" / "selections" / f"{result_of(documents).digest}.json"
    file.write_text(file.read_text().replace('"bestSingle"', '"best"'))
    with pytest.raises(UserError, match=rf"{file}: bestSingle: Field required"):
        run_selection(documents, documents.selection(), silent)


def test_a_stored_result_under_another_name_or_of_other_data_is_refused(workspace: Any, reference: Any) -> None:
    ready(workspace, reference)
    found = result_of(workspace.documents(["a"], BUDGETS))
    assert checked_result(found.digest, found.document(), "file", found.fingerprint) == found
    for key, fingerprint in (("0" * 64, found.fingerprint), (found.digest, "0" * 64)):
        with pytest.raises(UserError, match="is not the result that its name says"):
            checked_result(key, found.document(), "file", fingerprint)


@pytest.mark.parametrize(
    ("weight", "problem"),
    [
        (5, "budgets.1.members.0.weight: 5: must be less than or equal to 1"),
        (0, "budgets.1.members.0.weight: 0: must be greater than 0"),
        (-1, "budgets.1.members.0.weight: -1: must be greater than 0"),
        (float("nan"), "budgets.1.members.0.weight: NaN: must be a finite number"),
        (0.9, "budgets.1: the members' weights add up to {total:g}, not to 1: {model} 0.9, "),
    ],
)
def test_weights_that_are_none_of_an_ensemble_are_refused(
    workspace: Any, reference: Any, weight: float, problem: str
) -> None:
    ready(workspace, reference)
    documents = workspace.documents(["a"], BUDGETS)
    result = result_of(documents)
    others = result.budgets[1].members[1:]
    told = problem.format(
        total=weight + sum(member.weight for member in others), model=result.members("large")[0].model_id
    )
    content = result.document()
    content["budgets"][1]["members"][0]["weight"] = weight
    file = workspace.folder / "a" / "selections" / f"{result.digest}.json"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError) as refused:
        find_result(documents, documents.selection())
    assert str(refused.value).startswith(f"{file}: {told}")


def test_an_empty_library_is_refused(workspace: Any, reference: Any) -> None:
    workspace.library("empty", reference.pool(1, 40, 3, seed=0), {})
    documents = workspace.documents(["empty"], BUDGETS)
    with pytest.raises(UserError, match=r"spec\.sources: hold no models"):
        run_selection(documents, documents.selection(), silent)


def test_truncated_predictions_are_refused_and_nothing_is_written(workspace: Any, reference: Any) -> None:
    ready(workspace, reference)
    (file, *_) = sorted(Path(workspace.folder / "a/models").rglob("predictions-validation.npy"))
    file.write_bytes(file.read_bytes()[:-10])
    documents = workspace.documents(["a"], BUDGETS)
    with pytest.raises(UserError, match=r"predictions-validation\.npy"):
        run_selection(documents, documents.selection(), silent)
    assert not (workspace.folder / "a/selections").exists()


def metrics_order(pool: Any) -> Any:
    return np.argsort([metrics(p[:60], pool.labels[:60]).cross_entropy for p in pool.probabilities])
