"""The non-dominated among ensembles: nothing else is as good in every quantity and better in one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def front(points: NDArray[np.float64], at_most: int) -> list[int]:
    """Indices of the non-dominated points.

    Args:
        points: Costs and, in the last column, cross-entropy; lower is better in all; shape (P, D).
        at_most: If more are non-dominated, this many of them are taken evenly, both ends included; ≥ 2.

    Returns:
        Indices in ascending order of the first column; of equal points the first one only. O(P·F·D), F on the front.
    """
    order = np.lexsort(tuple(points.T[::-1]))  # lexicographic: whatever dominates a point comes before it
    found: list[int] = []
    kept = np.empty((0, points.shape[1]))
    for index in order.tolist():
        if not (kept <= points[index]).all(axis=1).any():
            found.append(index)
            kept = np.vstack([kept, points[index]])
    if len(found) <= at_most:
        return found
    return [found[i] for i in np.linspace(0, len(found) - 1, at_most).round().astype(int).tolist()]
