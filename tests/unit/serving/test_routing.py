from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_core.serving.backends.averaging.routing import OUT_OF_SERVICE, Combiner, Router, Rule, segments

sizes = st.integers(1, 40)


@given(samples=st.integers(1, 300), size=sizes)
def test_segments_are_whole_but_the_last(samples, size):
    ranges = list(segments(samples, size))
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(samples))
    assert all(stop - start == size for start, stop in ranges[:-1])
    assert 1 <= ranges[-1][1] - ranges[-1][0] <= size


@settings(deadline=None)
@given(
    requests=st.lists(st.integers(1, 100), max_size=5),
    segment_size=sizes,
    workers=st.lists(st.tuples(sizes, st.floats(0.1, 9)), min_size=1, max_size=3),
    routing=st.sampled_from(["pull", "weights"]),
    seed=st.integers(0, 99),
)
def test_workers_in_any_order_get_each_row_once(requests, segment_size, workers, routing, seed):
    random = np.random.default_rng(seed)
    router: Router[int] = Router(workers, segment_size, routing)
    for item, samples in enumerate(requests):
        router.put(item, samples)
    seen: dict[int, list[int]] = {item: [] for item, _ in enumerate(requests)}
    able = set(range(len(workers)))
    while able:
        worker = int(random.choice(sorted(able)))
        chunk = router.take(worker)
        if chunk is None:
            able.remove(worker)
            continue
        assert 1 <= chunk.stop - chunk.start <= workers[worker][0]
        assert chunk.start // segment_size == (chunk.stop - 1) // segment_size
        seen[chunk.item].extend(range(chunk.start, chunk.stop))
    assert {item: sorted(rows) for item, rows in seen.items()} == {
        item: list(range(samples)) for item, samples in enumerate(requests)
    }


def taken(router: Router[str], worker: int, now: float = 0.0) -> list[tuple[str, int, int]]:
    chunks = iter(lambda: router.take(worker, now), None)
    return [(chunk.item, chunk.start, chunk.stop) for chunk in chunks]


def rows(router: Router[str], worker: int, now: float = 0.0) -> int:
    return sum(stop - start for _, start, stop in taken(router, worker, now))


def test_older_requests_come_first():
    router: Router[str] = Router([(3, 1.0)], 4)
    router.put("old", 6)
    router.put("new", 2)
    assert taken(router, 0) == [("old", 0, 3), ("old", 3, 4), ("old", 4, 6), ("new", 0, 2)]


def test_by_weights_rows_go_in_proportion_to_the_shares_over_requests():
    router: Router[str] = Router([(8, 1.0), (8, 3.0)], 128, "weights")
    for _ in range(100):
        router.put("request", 8)
    assert [rows(router, worker) for worker in (0, 1)] == [200, 600]


def test_a_retry_goes_to_another_worker_in_its_batch_size():
    router: Router[str] = Router([(8, 9.0), (3, 1.0)], 128, "weights")
    router.put("request", 8)
    chunk = router.take(0)
    router.failed(0)
    router.retry(chunk, 0)
    assert taken(router, 0) == []
    assert taken(router, 1) == [("request", 0, 3), ("request", 3, 6), ("request", 6, 8)]


def test_an_only_worker_is_asked_again():
    router: Router[str] = Router([(8, 1.0)], 128)
    router.put("request", 8)
    router.retry(router.take(0), 0)
    assert router.take(0).retries == 1


@pytest.mark.parametrize("routing", ["pull", "weights"])
def test_who_fails_three_times_in_a_row_is_left_out_for_a_while(routing):
    router: Router[str] = Router([(1, 9.0), (1, 1.0)], 128, routing)
    router.put("request", 100)
    for _ in range(3):
        router.take(0)
        router.failed(0)
    assert (rows(router, 0), rows(router, 1)) == (0, 97)
    router.put("later", 100, OUT_OF_SERVICE)
    assert rows(router, 0, OUT_OF_SERVICE) >= 88
    assert rows(router, 1, OUT_OF_SERVICE) <= 12


def test_an_overdue_worker_gets_nothing_until_it_answers():
    router: Router[str] = Router([(1, 9.0), (1, 1.0)], 128, "weights")
    router.put("request", 40)
    router.overdue(0, +1)
    assert (rows(router, 0), rows(router, 1)) == (0, 40)
    router.overdue(0, -1)
    router.put("request", 40)
    assert rows(router, 0) > 0


@pytest.mark.parametrize("may_miss", [False, True])
def test_if_nobody_is_in_service_all_are_asked_unless_the_member_may_be_missed(may_miss):
    router: Router[str] = Router([(1, 1.0)], 128, may_miss=may_miss)
    router.put("request", 10)
    for _ in range(3):
        router.take(0)
        router.failed(0)
    hopeless = sum(chunk.stop - chunk.start for chunk in router.take_hopeless())
    assert (hopeless, rows(router, 0)) == ((7, 0) if may_miss else (0, 7))


@pytest.mark.parametrize("routing", ["pull", "weights"])
def test_a_dropped_request_is_forgotten(routing):
    router: Router[str] = Router([(1, 1.0), (1, 1.0)], 4, routing)
    router.put("gone", 300)
    router.put("kept", 3)
    router.drop("gone")
    assert sorted(taken(router, 0) + taken(router, 1)) == [("kept", 0, 1), ("kept", 1, 2), ("kept", 2, 3)]


@settings(deadline=None)
@given(samples=st.integers(1, 30), size=sizes, members=st.integers(1, 4), seed=st.integers(0, 99))
def test_the_average_is_the_weighted_mean_in_whatever_order_answers_come(samples, size, members, seed):
    random = np.random.default_rng(seed)
    answers = random.dirichlet(np.ones(5), (members, samples)).astype(np.float32)
    weights = random.dirichlet(np.ones(members))
    parts = [(member, start, stop) for member in range(members) for start, stop in segments(samples, size)]

    def averaged(order):
        combiner = Combiner(samples, (5,), weights)
        for m, start, stop in order:
            assert combiner.fewest() < members
            assert combiner.add(m, start, stop, answers[m, start:stop]) == []
        assert combiner.fewest() == members
        return combiner.result()

    result = averaged(parts)
    np.testing.assert_allclose(result, np.tensordot(weights, answers, 1), atol=1e-6)
    np.testing.assert_allclose(averaged([parts[i] for i in random.permutation(len(parts))]), result, atol=1e-7)
    assert result.dtype == np.float32


def test_a_row_without_a_member_is_the_average_of_the_others():
    combiner = Combiner(3, (2,), [0.5, 0.25, 0.25])
    combiner.add(0, 0, 3, np.full((3, 2), 4, np.float32))
    lost = combiner.add(1, 1, 3, np.array([[1, 1], [1, np.nan]], np.float32))
    assert lost == [2]
    np.testing.assert_allclose(combiner.result(), [[4, 4], [3, 3], [4, 4]])
    assert combiner.answered.tolist() == [[True, False, False], [True, True, False], [True, False, False]]


@given(
    members=st.integers(1, 5),
    samples=st.integers(1, 9),
    classes=st.integers(1, 6),
    rule=st.builds(Rule, votes=st.booleans(), logits=st.booleans()),
    seed=st.integers(0, 99),
)
def test_disagreement_is_the_divergence_of_those_who_answered(members, samples, classes, rule, seed):
    random = np.random.default_rng(seed)
    answers = random.dirichlet(np.ones(classes), (members, samples)).astype(np.float32)
    weights = random.dirichlet(np.ones(members))
    answered = random.random((samples, members)) < 0.7
    answered[np.arange(samples), random.integers(0, members, samples)] = True
    combiner = Combiner(samples, (classes,), weights, rule, disagreement=True)
    for row, member in np.argwhere(answered)[random.permutation(answered.sum())]:
        combiner.add(member, row, row + 1, answers[member, row : row + 1])
    found = combiner.disagreement()
    assert found.dtype == np.float32
    assert found.shape == (samples, 1)
    for row in range(samples):
        given, weight = rule.apply(answers[answered[row], row]), weights[answered[row]] / weights[answered[row]].sum()
        ratios = given / np.maximum(weight @ given, 1e-30)  # to their average, which is 0 where all of them are
        divergences = (given * np.log(np.where(given > 0, ratios, 1))).sum(axis=1)
        assert found[row, 0] == pytest.approx(weight @ divergences, abs=1e-6)
    assert (found >= 0).all()
    assert (found <= np.log(np.minimum(answered.sum(axis=1), classes))[:, None] + 1e-6).all()


@given(members=st.integers(1, 5), answer=st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=6))
def test_who_says_the_same_does_not_disagree(members, answer):
    combiner = Combiner(1, (len(answer),), np.full(members, 1 / members), Rule(logits=True), disagreement=True)
    for member in range(members):
        combiner.add(member, 0, 1, np.array([answer], np.float32))
    assert combiner.disagreement() == pytest.approx(0, abs=1e-12)


def test_disagreement_is_the_mean_of_a_maps_places_and_nothing_that_nobody_asked_for():
    for asked, expected in ((True, [[np.log(2) / 2]]), (False, None)):
        combiner = Combiner(1, (2, 2), [0.5, 0.5], disagreement=asked)
        combiner.add(0, 0, 1, np.array([[[1, 0], [1, 0]]], np.float32))
        combiner.add(1, 0, 1, np.array([[[0, 1], [1, 0]]], np.float32))
        found = combiner.disagreement()
        assert found == pytest.approx(np.array(expected), abs=1e-6) if asked else found is None


def test_votes_go_to_the_lowest_of_equal_classes_and_logits_become_probabilities():
    answer = np.array([[0, np.log(3)], [2, 2]], np.float32)
    np.testing.assert_array_equal(Rule(votes=True, logits=True).apply(answer), [[0, 1], [1, 0]])
    np.testing.assert_allclose(Rule(logits=True).apply(answer), [[0.25, 0.75], [0.5, 0.5]], atol=1e-7)


def test_an_answer_of_another_shape_or_type_is_refused():
    combiner = Combiner(4, (5,), [1.0])
    with pytest.raises(ValueError, match=r"shape \[2, 6\], not \[2, 5\]"):
        combiner.add(0, 0, 2, np.zeros((2, 6), np.float32))
    with pytest.raises(ValueError, match="not FP32"):
        combiner.add(0, 0, 2, np.zeros((2, 5)))
