"""Seeded, stratified division of labelled samples."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def stratified(labels: Indices, percents: tuple[float, ...], seed: int) -> tuple[Indices, ...]:
    """Draw disjoint parts of the given percentages and the rest, each with the classes' shares.

    Within a class the parts get the next samples of one permutation, cut at rounded cumulative shares; the rounding
    starts at an offset that differs per class, so that rare classes do not all miss the same part.

    Args:
        labels: Class of each sample, shape (N,).
        percents: Size of each part in percent of N; their sum is below 100.
        seed: The same seed and labels give the same parts.

    Returns:
        One sorted index array per percentage, then the rest. Together they are 0..N-1, each once.
    """
    rng = np.random.default_rng(seed)
    bounds = np.cumsum(percents) / 100
    parts: list[list[Indices]] = [[] for _ in range(len(percents) + 1)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        offset = rng.random()
        cuts = np.floor(bounds * len(members) + offset).astype(int)
        for part, chosen in zip(parts, np.split(members, cuts), strict=True):
            part.append(chosen)
    return tuple(np.sort(np.concatenate(part)) if part else np.empty(0, np.int64) for part in parts)
