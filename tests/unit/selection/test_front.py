from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ensemble_core.selection.front import front

POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30)


@given(POINTS)
def test_the_front_is_what_nothing_dominates(rows: list[tuple[int, int, int]]) -> None:
    points = np.array(rows, float)
    found = front(points, 100)
    kept = {rows[i] for i in found}
    better = {r for r in rows if any(o != r and all(a <= b for a, b in zip(o, r, strict=True)) for o in rows)}
    assert kept == set(rows) - better
    assert len(found) == len(kept)


def test_a_long_front_is_thinned_evenly_and_keeps_its_ends() -> None:
    points = np.array([[i, 1000 - i] for i in range(1000)], float)
    found = front(points, 100)
    assert (len(found), found[0], found[-1]) == (100, 0, 999)
    assert set(np.diff(found)) <= {10, 11}
