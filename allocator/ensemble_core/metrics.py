"""Quality of a classifier from its probabilities: cross-entropy, error, macro F1 and top-5 error."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_core.library.records import Metrics

CLIP = 1e-15  # the smallest probability that cross-entropy sees: −log of it is 34.5 nats
_BLOCK = 1 << 14  # samples worked on at a time, so that memory stays bounded for memory-mapped inputs

Floating = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]


def metrics(probabilities: Floating, labels: Labels) -> Metrics:
    """All quality metrics of one model or ensemble.

    Args:
        probabilities: One row per sample, shape (N, C), N ≥ 1.
        labels: True classes, integers in [0, C), shape (N,).

    Returns:
        cross_entropy: Mean −log of the true class's probability in nats, clipped at 1e-15, summed in float64.
        error: Share of samples whose most probable class (ties: the lowest index) is not the true one.
        macro_f1: Unweighted mean of F1 over the classes that occur among the labels; a class that
            is never predicted counts as 0.
        top5_error: Share of samples whose true class is not among the 5 most probable (ties: the lower
            index first); 0 when C ≤ 5.

    O(N·C) time; memory-mapped inputs are read in blocks.
    """
    samples, classes = probabilities.shape
    if labels.shape != (samples,) or samples == 0:
        raise ValueError(f"probabilities {probabilities.shape} and labels {labels.shape} do not belong together")
    log_sum, top5_misses = 0.0, 0
    confusion = np.zeros(classes * classes, np.int64)
    for start in range(0, samples, _BLOCK):
        block, true = np.asarray(probabilities[start : start + _BLOCK]), labels[start : start + _BLOCK]
        true_class = block[np.arange(len(true)), true]
        log_sum += float(np.log(np.maximum(true_class.astype(np.float64), CLIP)).sum())
        top5_misses += int((_rank(block, true, true_class) >= 5).sum())
        confusion += np.bincount(true * classes + block.argmax(axis=1), minlength=classes * classes)
    matrix = confusion.reshape(classes, classes)
    return Metrics(
        cross_entropy=-log_sum / samples,
        error=1.0 - float(np.trace(matrix)) / samples,
        macro_f1=_macro_f1(matrix),
        top5_error=top5_misses / samples,
    )


def _rank(block: Floating, labels: Labels, true_class: Floating) -> NDArray[np.int64]:
    """How many classes come before the true one, shape (N,); of equals the lower index comes first."""
    before = np.arange(block.shape[1])[None, :] < labels[:, None]
    own = true_class[:, None]
    ranks: NDArray[np.int64] = ((block > own) | ((block == own) & before)).sum(axis=1)
    return ranks


def _macro_f1(confusion: NDArray[np.int64]) -> float:
    """Mean F1 over the classes with at least one sample; rows are true classes, columns predictions."""
    hits, actual, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    occurring = actual > 0
    return float((2.0 * hits[occurring] / (actual + predicted)[occurring]).mean())
