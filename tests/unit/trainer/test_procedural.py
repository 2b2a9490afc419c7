from __future__ import annotations

import numpy as np
import pytest

from ensemble_core.api.hposearch import Dataset as DatasetSpec
from ensemble_trainer import procedural
from ensemble_trainer.datasets import load_dataset
from ensemble_trainer.training import TrialRun, TrialSettings


def test_the_seed_decides_and_classes_are_balanced():
    (images, labels), (again, _), (other, _) = (procedural.draw(200, seed) for seed in (1, 1, 2))
    assert images.shape == (200, 64, 64, 3)
    assert images.dtype == np.uint8
    assert np.array_equal(images, again)
    assert not np.array_equal(images, other)
    assert np.bincount(labels).tolist() == [10] * 20
    assert len(procedural.CLASS_NAMES) == 20


def test_images_are_varied():
    images, _ = procedural.draw(100, 0)
    assert images.std(axis=0).min() > 20  # every pixel differs between images
    assert images.std(axis=(1, 2)).min() > 1  # and no image is blank
    assert len(np.unique(images.reshape(100, -1), axis=0)) == 100


def test_a_small_network_beats_chance_by_far_but_is_not_perfect(parameters):
    dataset = load_dataset(DatasetSpec.model_validate({"procedural": {"samples": 1500}}), None)
    run = TrialRun(parameters(stageFilters=8, stemFilters=8, learningRate=0.005), dataset, TrialSettings(seed=1))
    error = run.advance(4).error
    assert 0.05 < error == pytest.approx(0.5, abs=0.3)  # chance: 0.95
