from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_core.selection.smobf import Kernel, Pick, Settings, cross_entropies, prune, select

WEIGHTS = (0.1, 0.01, 0.001)
ALL = Settings(WEIGHTS, keep_top_percent=100)


def steps(pick: Pick) -> list[list[tuple[Any, ...]]]:
    return [[(s.row, s.score, s.cross_entropy, s.cost_ratio) for s in path.steps] for path in pick.paths]


@settings(max_examples=60)
@given(
    models=st.integers(1, 9),
    samples=st.integers(1, 23),
    classes=st.integers(2, 5),
    quantities=st.integers(1, 3),
    budgets=st.lists(st.floats(0.2, 8), min_size=1, max_size=3),
    weights=st.lists(st.sampled_from([0.0, 0.001, 0.1, 0.5, 1.0]), min_size=1, max_size=3),
    seed=st.integers(0, 10_000),
)
def test_paths_are_those_of_naive_averages(
    reference: Any,
    models: int,
    samples: int,
    classes: int,
    quantities: int,
    budgets: list[float],
    weights: list[float],
    seed: int,
) -> None:
    pool = reference.pool(models, samples, classes, seed, quantities)
    limits = np.array([[budget, np.inf, 1.5 * budget][:quantities] for budget in budgets])
    picks = select(pool.true_class, pool.costs, limits, Settings(tuple(weights), 100))
    for pick, limit in zip(picks, limits, strict=True):
        assert steps(pick) == reference.smobf(pool, limit, weights, range(models))


def test_a_larger_library_has_exactly_the_naive_paths(reference: Any) -> None:
    pool = reference.pool(60, 400, 10, seed=3)
    limits = np.array([[3.0], [12.0], [60.0]])
    picks = select(pool.true_class, pool.costs, limits, ALL)
    for pick, limit in zip(picks, limits, strict=True):
        assert steps(pick) == reference.smobf(pool, limit, WEIGHTS, range(60))
    assert max(len(pick.members) for pick in picks) > 5


@settings(max_examples=40)
@given(models=st.integers(1, 7), seed=st.integers(0, 10_000), budget=st.floats(0.5, 8))
def test_greedy_is_no_better_than_all_subsets_and_within_every_limit(
    reference: Any, models: int, seed: int, budget: float
) -> None:
    pool = reference.pool(models, 12, 3, seed, quantities=2)
    limits = np.array([[budget, 2 * budget]])
    (pick,) = select(pool.true_class, pool.costs, limits, Settings((0.0, 0.001), 100))
    if not pick.members:
        assert all((pool.costs[:, row] > limits[0]).any() for row in range(models))
        return
    assert (pool.cost(pick.members) <= limits[0]).all()
    best, _ = reference.best_subset(pool, limits[0], range(models))
    found = min(path.steps[-1].cross_entropy for path in pick.paths if path.steps)
    assert found >= best - 1e-12


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000))
def test_of_two_models_that_can_be_afforded_the_best_subset_is_found(reference: Any, seed: int) -> None:
    pool = reference.pool(2, 12, 3, seed)
    limits = np.array([[1e6]])
    (pick,) = select(pool.true_class, pool.costs, limits, Settings((0.0,), 100))
    best, _ = reference.best_subset(pool, limits[0], range(2))
    assert pick.paths[0].steps[-1].cross_entropy == pytest.approx(best, abs=1e-12)


def test_the_best_run_wins_and_equal_runs_go_to_the_cheaper_and_then_the_earlier_weight(reference: Any) -> None:
    pool = reference.pool(12, 60, 4, seed=5)
    (pick,) = select(pool.true_class, pool.costs, np.array([[6.0]]), Settings((0.9, 0.001, 0.5), 100))
    ends = [(path.steps[-1].cross_entropy, path.steps[-1].cost_ratio) for path in pick.paths]
    assert pick.weight == (0.9, 0.001, 0.5)[ends.index(min(ends))]
    (same,) = select(pool.true_class, pool.costs, np.array([[6.0]]), Settings((0.001, 0.0010000001), 100))
    assert same.weight == 0.001


def test_a_budget_does_not_see_the_other_budgets(reference: Any) -> None:
    pool = reference.pool(30, 100, 5, seed=8)
    limits = np.array([[1.0], [4.0], [9.0], [30.0]])
    together = select(pool.true_class, pool.costs, limits, ALL)
    alone = tuple(select(pool.true_class, pool.costs, limits[[i]], ALL)[0] for i in range(4))
    backwards = select(pool.true_class, pool.costs, limits[::-1], ALL)
    assert together == alone == backwards[::-1]


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_the_models_does_not_matter(reference: Any, seed: int) -> None:
    pool = reference.pool(20, 80, 4, seed)
    order = np.random.default_rng(seed).permutation(20)
    limits = np.array([[2.0], [8.0]])
    picks = select(pool.true_class, pool.costs, limits, Settings(WEIGHTS, 50, 5))
    permuted = select(pool.true_class[order], pool.costs[:, order], limits, Settings(WEIGHTS, 50, 5))
    assert [pick.members for pick in picks] == [tuple(int(order[row]) for row in pick.members) for pick in permuted]


def test_equal_models_go_by_cost_and_then_by_row() -> None:
    true_class = np.full((4, 6), 0.5, np.float32)
    (by_cost,) = select(true_class, np.array([[2.0, 1.0, 1.0, 3.0]]), np.array([[10.0]]), Settings((0.0,), 100))
    assert by_cost.members == (1,)  # and a second one does not lower the score
    (by_row,) = select(true_class, np.ones((1, 4)), np.array([[10.0]]), Settings((0.0,), 100))
    assert by_row.members == (0,)


def test_a_weight_of_one_takes_the_cheapest_model_alone(reference: Any) -> None:
    pool = reference.pool(10, 30, 3, seed=1)
    (pick,) = select(pool.true_class, pool.costs, np.array([[100.0]]), Settings((1.0,), 100))
    assert pick.members == (int(pool.costs[0].argmin()),)


def test_a_limit_that_equals_the_cost_is_kept() -> None:
    true_class = np.array([[0.9, 0.1], [0.1, 0.9]], np.float32)
    (pick,) = select(true_class, np.array([[0.5, 0.25]]), np.array([[0.75]]), Settings((0.0,), 100))
    assert set(pick.members) == {0, 1}


def test_nothing_affordable_gives_no_members(reference: Any) -> None:
    pool = reference.pool(5, 10, 3, seed=0)
    (pick,) = select(pool.true_class, pool.costs, np.array([[0.01]]), ALL)
    assert (pick.members, pick.weight) == ((), None)
    assert all(path.steps == () for path in pick.paths)


@pytest.mark.parametrize(
    ("percent", "at_least", "count"), [(20, 1, 2), (21, 1, 3), (20, 5, 5), (20, 50, 10), (100, 1, 10)]
)
def test_pruning_keeps_the_best_by_cross_entropy(reference: Any, percent: float, at_least: int, count: int) -> None:
    pool = reference.pool(10, 40, 3, seed=2)
    alone = cross_entropies(pool.true_class)
    kept = prune(alone, pool.costs, np.array([100.0]), Settings(WEIGHTS, percent, at_least))
    assert kept == tuple(sorted(np.argsort(alone)[:count].tolist()))


def test_if_no_kept_model_is_affordable_the_affordable_ones_are_pruned() -> None:
    alone, costs = np.array([0.1, 0.2, 0.3, 0.4, 0.5]), np.array([[9.0, 9.0, 1.0, 1.0, 1.0]])
    options = Settings(WEIGHTS, keep_top_percent=40, keep_at_least=1)
    assert prune(alone, costs, np.array([10.0]), options) == (0, 1)
    assert prune(alone, costs, np.array([5.0]), options) == (2, 3)  # 40 % of three, rounded up
    assert prune(alone, costs, np.array([0.5]), options) == (0, 1)  # nothing to be done


def test_screening_stays_within_its_tolerance_where_members_give_nothing(reference: Any) -> None:
    pool = reference.pool(40, 501, 6, seed=4)
    true_class = pool.true_class
    true_class[:20, ::3] = 0.0
    true_class[:, ::50] = 0.0  # no ensemble gives anything: the clip decides
    true_class[5:9, ::7] = 1e-20
    kernel = Kernel(true_class, cross_entropies(true_class))
    for members in ((0,), (0, 1), (5, 6, 7), tuple(range(25))):
        extensions = kernel.extensions(members)
        exact = np.array([kernel.exact(members, row) for row in range(40)])
        assert np.abs(extensions.screened - exact).max() <= extensions.tolerance < 2e-5


def test_each_member_set_is_screened_once_whatever_weight_and_budget(reference: Any) -> None:
    pool = reference.pool(25, 64, 4, seed=6)
    true_class = pool.true_class
    kernel = Kernel(true_class, cross_entropies(true_class))
    assert kernel.screenings == 0
    assert kernel.extensions(()).tolerance == 0
    first = kernel.extensions((2, 7))
    assert kernel.extensions((2, 7)) is first
    kernel.exact((2, 7), 3)
    assert kernel.screenings == 1


def test_screenings_are_as_many_as_distinct_ensembles_on_the_paths(
    reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = reference.pool(25, 64, 4, seed=6)
    kernels: list[Kernel] = []

    def remember(*arguments: Any) -> Kernel:
        kernels.append(Kernel(*arguments))
        return kernels[-1]

    monkeypatch.setattr("ensemble_core.selection.smobf.Kernel", remember)
    picks = select(pool.true_class, pool.costs, np.array([[4.0], [8.0], [16.0]]), ALL)
    paths = [[s.row for s in path.steps] for pick in picks for path in pick.paths]
    met = {tuple(sorted(path[:length])) for path in paths for length in range(1, len(path) + 1)}
    steps_taken = sum(len(path) for path in paths)
    assert len(kernels) == 1
    # The last ensemble of a path is not extended where nothing is affordable any more.
    assert kernels[0].screenings <= len(met) < steps_taken


def test_cross_entropy_is_clipped() -> None:
    values = cross_entropies(np.array([[0.0, 0.0], [1.0, 1.0]], np.float32))
    assert values.tolist() == pytest.approx([-math.log(1e-15), 0.0])
