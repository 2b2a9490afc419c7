from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_trainer.splits import stratified


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    percents=st.tuples(st.integers(1, 49), st.integers(1, 49)),
    seed=st.integers(0, 100),
)
@settings(max_examples=60)
def test_parts_are_disjoint_complete_and_stratified(counts, percents, seed):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    parts = stratified(labels, percents, seed)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    for part, percent in zip(parts, (*percents, 100 - sum(percents)), strict=True):
        for label, count in enumerate(counts):
            assert abs((labels[part] == label).sum() - count * percent / 100) <= 1


def test_the_seed_decides():
    labels = np.arange(200) % 4
    first, again, other = (stratified(labels, (20, 20), seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_rare_classes_do_not_all_miss_the_same_part():
    labels = np.arange(300)  # one sample per class
    sizes = [len(part) for part in stratified(labels, (20, 20), 0)]
    assert sizes == pytest.approx([60, 60, 180], abs=25)
