from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_core.serving.backends.averaging.routing import Average, Queue, segments

sizes = st.integers(1, 40)


@given(samples=st.integers(1, 300), size=sizes)
def test_segments_are_whole_but_the_last(samples, size):
    ranges = list(segments(samples, size))
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(samples))
    assert all(stop - start == size for start, stop in ranges[:-1])
    assert 1 <= ranges[-1][1] - ranges[-1][0] <= size


@given(
    requests=st.lists(st.integers(1, 100), max_size=5),
    segment_size=sizes,
    batch_sizes=st.lists(sizes, min_size=1, max_size=3),
    data=st.data(),
)
def test_workers_that_pull_in_any_order_get_each_row_once(requests, segment_size, batch_sizes, data):
    queue: Queue[int] = Queue(segment_size)
    waiting = list(enumerate(requests))
    seen: dict[int, list[int]] = {item: [] for item, _ in waiting}
    while waiting or queue:
        if waiting and (not queue or data.draw(st.booleans())):
            queue.put(*waiting.pop(0))
            continue
        batch_size = data.draw(st.sampled_from(batch_sizes))
        chunk = queue.take(batch_size)
        assert 1 <= chunk.stop - chunk.start <= batch_size
        assert chunk.start // segment_size == (chunk.stop - 1) // segment_size
        seen[chunk.item].extend(range(chunk.start, chunk.stop))
    assert seen == {item: list(range(samples)) for item, samples in enumerate(requests)}


def test_older_requests_come_first():
    queue: Queue[str] = Queue(4)
    queue.put("old", 6)
    queue.put("new", 2)
    assert queue.items() == ["old", "old", "new"]
    taken = []
    while queue:
        chunk = queue.take(3)
        taken.append((chunk.item, chunk.start, chunk.stop))
    assert taken == [("old", 0, 3), ("old", 3, 4), ("old", 4, 6), ("new", 0, 2)]


def test_an_empty_queue_has_nothing_to_take():
    queue: Queue[str] = Queue(4)
    with pytest.raises(IndexError):
        queue.take(1)


@given(samples=st.integers(1, 30), size=sizes, members=st.integers(1, 4), seed=st.integers(0, 99))
def test_the_average_is_the_weighted_mean_in_whatever_order_answers_come(samples, size, members, seed):
    random = np.random.default_rng(seed)
    answers = random.dirichlet(np.ones(5), (members, samples)).astype(np.float32)
    weights = random.dirichlet(np.ones(members))
    parts = [(member, start, stop) for member in range(members) for start, stop in segments(samples, size)]

    def averaged(order):
        average = Average(samples, (5,), members)
        complete = [average.add(start, stop, answers[m, start:stop], weights[m]) for m, start, stop in order]
        assert complete == [False] * (len(parts) - 1) + [True]
        return average.result()

    result = averaged(parts)
    np.testing.assert_allclose(result, np.tensordot(weights, answers, 1), atol=1e-6)
    np.testing.assert_allclose(averaged([parts[i] for i in random.permutation(len(parts))]), result, atol=1e-7)
    assert result.dtype == np.float32


def test_an_answer_of_another_shape_is_refused():
    average = Average(4, (5,), 1)
    with pytest.raises(ValueError, match=r"shape \(2, 6\), not \(2, 5\)"):
        average.add(0, 2, np.zeros((2, 6), np.float32), 1.0)
