from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import f1_score, log_loss

from ensemble_core import metrics as module
from ensemble_core.metrics import metrics


@pytest.mark.parametrize("classes", [2, 3, 7, 20])
def test_metrics_are_those_of_scikit_learn(classes: int) -> None:
    random = np.random.default_rng(classes)
    probabilities = random.dirichlet(np.ones(classes), 500).astype(np.float32)
    labels = random.integers(0, classes, 500)
    found, predicted = metrics(probabilities, labels), probabilities.argmax(axis=1)
    normal = probabilities.astype(float) / probabilities.sum(axis=1, keepdims=True, dtype=float)
    assert found.cross_entropy == pytest.approx(log_loss(labels, normal), rel=1e-6)
    assert found.error == pytest.approx((predicted != labels).mean())
    assert found.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    assert found.top5_error == pytest.approx(1 - (best == labels[:, None]).any(axis=1).mean())


def test_blocks_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    probabilities, labels = random.dirichlet(np.ones(8), 100), random.integers(0, 8, 100)
    whole = metrics(probabilities, labels)
    monkeypatch.setattr(module, "_BLOCK", 7)
    parts = metrics(probabilities, labels)
    assert parts.cross_entropy == pytest.approx(whole.cross_entropy, abs=1e-12)
    assert (parts.error, parts.macro_f1, parts.top5_error) == (whole.error, whole.macro_f1, whole.top5_error)


def test_zero_probability_is_clipped() -> None:
    assert metrics(np.array([[1.0, 0.0]]), np.array([1])).cross_entropy == pytest.approx(-math.log(1e-15))


def test_ties_go_to_the_lowest_class() -> None:
    equal = np.full((2, 8), 1 / 8)
    found = metrics(equal, np.array([0, 5]))
    assert (found.error, found.top5_error) == (0.5, 0.5)


def test_classes_without_samples_do_not_count_in_f1() -> None:
    found = metrics(np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]]), np.array([0, 1]))
    assert found.macro_f1 == 1


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="do not belong together"):
        metrics(np.ones((2, 3)), np.array([0]))
