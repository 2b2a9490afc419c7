"""The stopping rule against a direct transcription of Ray Tune's scheduler."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_trainer.hyperband import Rule, async_hyperband, bracket_of, full_length, keeps, milestones

# Few distinct values, so that ties and interpolation between equals are common.
LOSSES = st.one_of(
    st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.5, 1.0, -1.0, float("nan")]), st.floats(-10, 10, allow_nan=False)
)


class RayBracket:
    """AsyncHyperBandScheduler's `_Bracket`, on rewards, as in Ray 2.60; NaN stops."""

    def __init__(self, min_t: int, max_t: int, factor: float, s: int) -> None:
        rungs = int(round(math.log(max_t / min_t) / math.log(factor), 9)) - s + 1
        self.factor = factor
        self.rungs: list[tuple[int, dict[int, float]]] = [
            (int(min_t * factor ** (k + s)), {}) for k in reversed(range(rungs))
        ]

    def on_result(self, trial: int, epoch: int, reward: float) -> bool:
        for milestone, recorded in self.rungs:
            if epoch < milestone or trial in recorded:
                continue
            cutoff = np.nanpercentile(list(recorded.values()), (1 - 1 / self.factor) * 100) if recorded else None
            goes_on = not math.isnan(reward) and (cutoff is None or bool(np.isnan(cutoff)) or reward >= cutoff)
            recorded[trial] = reward
            return goes_on
        return True


@given(
    losses=st.lists(st.lists(LOSSES, min_size=4, max_size=4), max_size=40),
    order=st.randoms(use_true_random=False),
    eta=st.integers(2, 4),
    brackets=st.integers(1, 3),
)
@pytest.mark.filterwarnings("ignore:All-NaN slice encountered")
def test_decisions_agree_with_ray_on_interleaved_traces(losses, order, eta, brackets) -> None:  # type: ignore[no-untyped-def]
    limit = eta**3
    rule = async_hyperband(1, limit, eta, brackets)
    theirs = [RayBracket(1, limit, eta, s) for s in range(brackets)]
    recorded: dict[tuple[int, int], list[float | None]] = {}
    live = dict.fromkeys(range(len(losses)), 0)
    while live:
        trial = order.choice(sorted(live))
        bracket = trial % brackets
        epoch = rule.next_epoch(bracket, live[trial])
        loss = losses[trial][round(math.log(epoch, eta))]
        earlier = recorded.setdefault((bracket, epoch), [])
        goes_on = rule.goes_on(earlier, loss, epoch)
        assert goes_on == (theirs[bracket].on_result(trial, epoch, -loss) and epoch < limit)
        earlier.append(None if math.isnan(loss) else loss)
        live[trial] = epoch
        if not goes_on:
            del live[trial]


@given(earlier=st.lists(LOSSES), value=LOSSES, eta=st.integers(2, 5))
def test_a_loss_below_all_earlier_ones_goes_on_and_one_above_all_stops(
    earlier: list[float], value: float, eta: int
) -> None:
    known = [loss for loss in earlier if not math.isnan(loss)]
    if math.isnan(value):
        assert not keeps(earlier, value, eta)
    elif not known or value <= min(known):
        assert keeps(earlier, value, eta)
    elif value > max(known):
        assert not keeps(earlier, value, eta)
    # None stands for NaN in the library's files.
    assert keeps(earlier, value, eta) == keeps([None if math.isnan(x) else x for x in earlier], value, eta)


@pytest.mark.parametrize(
    ("earlier", "value", "goes_on"),
    [
        ([], 5.0, True),  # the first arrival
        ([1.0], 1.0, True),  # a tie
        ([1.0], 1.0001, False),
        ([1.0, 2.0, 3.0, 4.0], 2.0, True),  # the best third ends at the interpolated 2.0
        ([1.0, 2.0, 3.0, 4.0], 2.1, False),
        ([float("nan")], 9.0, True),
        ([1.0], float("nan"), False),
        ([], None, False),
        ([None, None], 1.0, True),
    ],
)
def test_single_decisions(earlier: list[float | None], value: float | None, goes_on: bool) -> None:
    assert keeps(earlier, value, eta=3) == goes_on


@given(grace=st.integers(1, 9), eta=st.integers(2, 5), rungs=st.integers(1, 8), bracket=st.integers(0, 3))
def test_milestones_are_exact_powers(grace: int, eta: int, rungs: int, bracket: int) -> None:
    limit = grace * eta ** (rungs - 1)
    expected = tuple(grace * eta**k for k in range(bracket, rungs))
    assert milestones(grace, limit, eta, bracket) == expected
    assert milestones(grace, limit - 1, eta, bracket) == expected[:-1]


def test_no_rung_is_lost_to_rounded_logarithms() -> None:
    assert milestones(1, 243, 3) == (1, 3, 9, 27, 81, 243)  # log(243)/log(3) is 4.99…


@given(limit=st.integers(1, 300), grace=st.integers(1, 5), eta=st.integers(2, 4), bracket=st.integers(0, 2))
def test_a_trial_that_is_never_stopped_trains_to_the_limit_exactly(
    limit: int, grace: int, eta: int, bracket: int
) -> None:
    rule = Rule(tuple(milestones(grace, limit, eta, b) for b in range(3)), limit, eta)
    epochs = [0]
    while epochs[-1] < limit:
        epochs.append(rule.next_epoch(bracket, epochs[-1]))
        assert rule.goes_on([], 1.0, epochs[-1]) == (epochs[-1] < limit)
    assert epochs[1:] == sorted({*milestones(grace, limit, eta, bracket), limit})


def test_random_search_knows_no_rung_but_the_last() -> None:
    rule = full_length(27)
    assert rule.bracket(seed=0, trial=5) == 0
    assert rule.next_epoch(0, 0) == 27
    assert not rule.goes_on([], 0.0, 27)


def test_a_bracket_without_rung_is_refused() -> None:
    assert async_hyperband(1, 27, 3, 4).brackets[3] == (27,)
    with pytest.raises(ValueError, match="at most 4"):
        async_hyperband(1, 27, 3, 5)


def test_brackets_are_drawn_by_softmax_of_their_rungs() -> None:
    draws = Counter(bracket_of(0, trial, [3, 2, 1]) for trial in range(20_000))
    weights = np.exp([3.0, 2.0, 1.0])
    expected = weights / weights.sum()
    observed = np.array([draws[b] for b in range(3)]) / 20_000
    np.testing.assert_allclose(observed, expected, atol=0.015)
    assert [bracket_of(7, t, [3, 2, 1]) for t in range(50)] == [bracket_of(7, t, [3, 2, 1]) for t in range(50)]
