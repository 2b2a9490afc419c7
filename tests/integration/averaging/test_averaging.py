"""What an averaging backend promises, the one in C++ and the one in Python, on the real server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tests.support.averaging import SECONDS, WIDTH, Server, Worker, rows, started
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from ensemble_core.serving.backends.averaging.routing import LATENCY_STEPS
from ensemble_core.serving.client import CHANNEL, connect
from ensemble_core.serving.errors import LoadError, ServingError
from ensemble_core.serving.sharedmemory import Region

pytestmark = pytest.mark.timeout(600)

CLOSE = 1e-6
HELD, RELEASE = 99, 98  # first numbers of samples that a fake member takes as commands


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


# A member that takes references, and says of the second call's answer that it is the first call's.
LAGGING = """
import numpy as np
import triton_python_backend_utils as pb
from tensors import tensor

class TritonPythonModel:
    def initialize(self, args):
        self.numbers = []

    def execute(self, requests):
        references = [np.from_dlpack(pb.get_input_tensor_by_name(request, "SEG")) for request in requests]
        return [self.answer(reference.tolist()) for reference in references]

    def answer(self, reference):
        self.numbers.append(reference[3])
        number = self.numbers[0] if len(self.numbers) == 2 else reference[3]
        answer = np.full((reference[1], 2), len(self.numbers), np.float32)
        return pb.InferenceResponse([tensor("PROBABILITIES", answer), tensor("CALL", np.array([number]))])
"""


def saying(name: str, *numbers: float, **behaviour: str) -> Worker:
    """A worker that answers these numbers."""
    return Worker(name, behaviour={"answer": ",".join(map(str, numbers)), **behaviour}, classes=len(numbers))


def test_an_average_has_no_weights(server: Server):
    members = {"a": [saying("a0", 0.2, 0.8)], "b": [saying("b0", 0.6, 0.4)]}
    with server.front("average", members, weights=[9, 1], rule="average") as front:
        answer = server.ask(front, rows(300))
    np.testing.assert_allclose(answer.probabilities, np.tile([0.4, 0.6], (300, 1)), atol=CLOSE)
    assert answer.answered.shape == (300, 2)
    assert answer.answered.all()


def test_a_weighted_average_has(server: Server):
    members = {"a": [saying("a0", 0.2, 0.8)], "b": [saying("b0", 0.6, 0.4)]}
    with server.front("weighted", members, weights=[3, 1]) as front:
        answer = server.ask(front, rows(300))
    np.testing.assert_allclose(answer.probabilities, np.tile([0.3, 0.7], (300, 1)), atol=CLOSE)


def test_votes_are_counted_with_weights_and_the_lowest_of_equal_classes_is_voted_for(server: Server):
    members = {"a": [saying("a0", 0.1, 0.5, 0.5)], "b": [saying("b0", 0.6, 0.4, 0)], "c": [saying("c0", 3, 1, 2)]}
    with server.front("vote", members, classes=3, weights=[2, 1, 1], rule="vote", scores="logits") as front:
        answer = server.ask(front, rows(200))
    np.testing.assert_allclose(answer.probabilities, np.tile([0.5, 0.5, 0], (200, 1)), atol=CLOSE)


def test_logits_become_probabilities_before_they_are_averaged(server: Server):
    members = {"a": [saying("a0", 100 + np.log(3), 100)], "b": [saying("b0", -7, -7)]}
    with server.front("logits", members, scores="logits") as front:
        answer = server.ask(front, rows(20))
    np.testing.assert_allclose(answer.probabilities, np.tile([0.625, 0.375], (20, 1)), atol=1e-5)


def divergence(weights: npt.ArrayLike, distributions: npt.ArrayLike) -> float:
    """The weighted mean of the Kullback-Leibler divergences from distributions [M, C] to their average, in nats."""
    weight, p = np.array(weights) / np.sum(weights), np.array(distributions)
    return float(weight @ (p * np.log(np.where(p > 0, p, 1) / (weight @ p))).sum(axis=1, where=p > 0))


@pytest.mark.parametrize("rule", ["weighted", "average", "vote"])
def test_members_disagree_by_their_divergence_from_the_average(server: Server, rule: str):
    told = [[0.2, 0.8, 0.0], [0.6, 0.4, 0.0], [0.1, 0.2, 0.7]]
    members = {f"m{index}": [saying(f"m{index}0", *numbers)] for index, numbers in enumerate(told)}
    with server.front("disagreement", members, classes=3, weights=[2, 1, 1], rule=rule) as front:
        answer = server.ask(front, rows(300))
    votes = [[0, 1, 0], [1, 0, 0], [0, 0, 1]]
    expected = divergence([1, 1, 1] if rule == "average" else [2, 1, 1], votes if rule == "vote" else told)
    assert answer.disagreement.dtype == np.float32
    np.testing.assert_allclose(answer.disagreement, np.full((300, 1), expected), atol=CLOSE)


def test_logits_disagree_as_probabilities_and_who_says_the_same_does_not(server: Server):
    logits = [[100 + np.log(3), 100], [-7, -7]]
    for second, expected in ((logits[1], divergence([1, 1], [[0.75, 0.25], [0.5, 0.5]])), (logits[0], 0.0)):
        members = {"a": [saying("a0", *logits[0])], "b": [saying("b0", *second)]}
        with server.front("unsure", members, scores="logits") as front:
            answer = server.ask(front, rows(20))
        np.testing.assert_allclose(answer.disagreement, np.full((20, 1), expected), atol=1e-5)
        assert (answer.disagreement >= 0).all()


def test_only_those_disagree_who_answered(server: Server):
    told = {"a": [0.2, 0.8], "b": [0.6, 0.4], "c": [0.9, 0.1]}
    special = {"b": "nan", "c": "fail"}
    members = {
        name: [saying(f"{name}0", *numbers, **({"special": special[name]} if name in special else {}))]
        for name, numbers in told.items()
    }
    with server.front("missing", members, weights=[1, 2, 1], quorum=1) as front:
        samples = rows(24)
        samples[20, 0] = HELD  # b misses this row, c all from 16 on
        answer = server.ask(front, samples)
    everyone, two = divergence([1, 2, 1], [*told.values()]), divergence([1, 2], [told["a"], told["b"]])
    expected = [everyone if row < 16 else 0 if row == 20 else two for row in range(24)]
    assert answer.answered.sum(axis=1).tolist() == [3 if row < 16 else 1 if row == 20 else 2 for row in range(24)]
    np.testing.assert_allclose(answer.disagreement[:, 0], expected, atol=CLOSE)


def test_an_answer_to_another_call_is_not_taken(server: Server):
    with server.front("lagging", {"a": [Worker("a0", code=LAGGING)]}, retries=1, segment_size=64) as front:
        answers = [server.ask(front, rows(3)).probabilities for _ in range(3)]
        invalid = server.metrics("ensemble_calls_total", model=front, reason="invalid")
    assert [answer[:, 0].tolist() for answer in answers] == [[1] * 3, [3] * 3, [4] * 3]
    assert invalid == 1


def test_who_has_nobody_else_is_told_that_an_answer_was_another_call_s(server: Server):
    with server.front("lagging", {"a": [Worker("a0", code=LAGGING)]}) as front:
        server.ask(front, rows(3))
        with pytest.raises(ServingError, match=r"member a: worker a0: rows 0-2: .*that of another call"):
            server.ask(front, rows(3))


def test_every_member_that_failed_is_named_however_much_there_is_to_tell_of_another(server: Server):
    failing = Worker("a0", 1, behaviour={"fail_first": "-1"})
    late = Worker("b0", 1, behaviour={"special": "fail", "delay_us": "3000"})
    samples = rows(200)
    samples[199, 0] = HELD  # b fails with the last one alone, long after a with the others
    with (
        server.front("named", {"a": [failing], "b": [late]}, quorum=1, segment_size=1) as front,
        pytest.raises(ServingError) as told,
    ):
        server.ask(front, samples)
    assert "member a: " in str(told.value)
    assert "member b: worker b0: rows 199-199: fake failure" in str(told.value)
    assert len(str(told.value)) < 2000


def test_who_does_not_ask_for_an_output_does_not_get_it(server: Server):
    with server.front("plain", {"a": [Worker("a0")]}) as front, connect(server.url) as client:
        asked = grpc.InferInput("INPUT", [2, WIDTH], "FP32")
        asked.set_data_from_numpy(rows(2))
        answer = client.infer(front, [asked], outputs=[grpc.InferRequestedOutput("PROBABILITIES")])
        assert [output.name for output in answer.get_response().outputs] == ["PROBABILITIES"]


@pytest.mark.parametrize("routing", ["pull", "weights"])
def test_every_row_gets_its_own_answer_whoever_gives_it(server: Server, routing: str):
    members = {
        "a": [Worker(f"a{i}", batch, share, {"gain": "1"}) for i, (batch, share) in enumerate([(7, 1), (32, 3)])],
        "b": [Worker("b0", 13, 1.0, {"gain": "3"})],
    }
    with server.front("rows", members, segment_size=50, routing=routing) as front:
        requests = [rows(int(count), seed=int(count)) for count in np.random.default_rng(0).integers(1, 400, 40)]
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda samples: server.ask(front, samples), requests))
    for samples, answer in zip(requests, answers, strict=True):
        np.testing.assert_array_equal(answer.probabilities, np.repeat(2 * samples[:, :1], 2, axis=1))


def test_by_weights_rows_are_dealt_out_in_proportion_to_the_shares(server: Server):
    members = {"a": [Worker("slow", 8, 1.0, {"gain": "1"}), Worker("quick", 8, 3.0, {"gain": "1"})]}
    with server.front("shares", members, routing="weights") as front:
        for seed in range(10):
            server.ask(front, rows(80, seed=seed))
        counts = [server.metrics("ensemble_samples_total", model=front, worker=name) for name in ("slow", "quick")]
    assert counts == [200, 600]


def test_by_pull_a_slow_worker_gets_less(server: Server):
    members = {"a": [Worker("lame", 8, 9.0, {"delay_us": "50000"}), Worker("swift", 8)]}
    with server.front("pulled", members) as front:
        server.ask(front, rows(800))
        lame, swift = (server.metrics("ensemble_samples_total", model=front, worker=name) for name in ("lame", "swift"))
    assert lame + swift == 800
    assert 0 < lame < swift


def test_many_requests_are_in_flight_on_one_instance(server: Server):
    """No worker, with two calls each, answers before there are eight calls: all requests are then on their way."""
    members = {"a": [Worker(f"gate{i}", behaviour={"gate": "8"}) for i in range(4)]}
    with server.front("gates", members, deadline_seconds=SECONDS) as front:
        answers = server.ask_all(front, [rows(1, seed=seed) for seed in range(8)])
        counts = [server.metrics("ensemble_samples_total", model=front, worker=f"gate{i}") for i in range(4)]
        assert server.metrics("ensemble_requests_total", model=front, outcome="complete") == 8
        assert server.metrics("ensemble_wait_requests_total", model=front) == 8
    assert counts == [2, 2, 2, 2]
    assert all(answer.answered.all() for answer in answers)


def test_requests_are_counted_as_they_come_and_by_how_long_they_took(server: Server):
    members = {"a": [held()], "b": [Worker("b0", behaviour={"delay_us": "20000"})]}
    with ThreadPoolExecutor(1) as pool, server.front("counted", members, deadline_seconds=SECONDS) as front:

        def counted(name: str, **labels: str) -> int:
            return server.metrics(f"ensemble_{name}_total", model=front, **labels)

        server.ask(front, rows(30))
        assert counted("answered_samples") == 30
        assert counted("latency_requests") == 1
        assert counted("latency_microseconds") >= 80_000  # of four calls in turn
        quick = [step for step in LATENCY_STEPS if float(step) < 0.08]
        assert sum(counted("latency_requests", below_seconds=step) for step in LATENCY_STEPS) == 1
        assert sum(counted("latency_requests", below_seconds=step) for step in quick) == 0
        running = pool.submit(server.ask, front, rows(5, HELD))
        wait_until(lambda: counted("wait_requests") == 2, "not begun")
        assert (counted("received_requests"), counted("latency_requests")) == (2, 1)
        server.ask("held", rows(1, RELEASE))
        running.result(SECONDS)
        assert (counted("latency_requests"), counted("answered_samples")) == (2, 35)


@pytest.mark.parametrize("routing", ["pull", "weights"])
def test_what_waits_for_a_member_and_its_workers_is_told(server: Server, routing: str):
    """Two workers hold on to their calls, of which each has two at most."""
    members = {
        "a": [Worker(f"held{i}", 8, 1.0 + 2 * i, {"special": "hang"}) for i in range(2)],
        "b": [Worker("b0")],
    }
    with (
        ThreadPoolExecutor(1) as pool,
        server.front("queue", members, routing=routing, deadline_seconds=SECONDS) as front,
    ):

        def told(name: str) -> tuple[int, ...]:
            """Of member a, its workers, and member b."""
            places = {"member": "a"}, {"worker": "held0"}, {"worker": "held1"}, {"member": "b"}
            return tuple(server.metrics(f"ensemble_{name}_samples", model=front, **place) for place in places)

        def nothing() -> bool:
            return told("queued") == told("asked") == (0, 0, 0, 0)

        assert nothing()
        running = pool.submit(server.ask, front, rows(96, HELD))
        queued = {"pull": (64, 0, 0, 0), "weights": (64, 8, 56, 0)}[routing]
        wait_until(lambda: (told("queued"), told("asked")) == (queued, (32, 16, 16, 0)), "what waits is not told")

        def let_go() -> bool:
            for worker in members["a"]:
                server.ask(worker.name, rows(1, RELEASE))
            return running.done()

        wait_until(let_go, "not answered")
        assert running.result().answered.all()
        wait_until(nothing, "what does not wait any more is told")


def test_an_error_says_which_member_worker_and_rows(server: Server):
    members = {"a": [Worker("a0", 16)], "b": [Worker("b0", 16, behaviour={"special": "fail"})]}
    with server.front("error", members) as front:
        samples = rows(100)
        samples[70, 0] = HELD
        with pytest.raises(ServingError, match=r"averaging: member b: worker b0: rows 64-79: .*fake failure"):
            server.ask(front, samples)
        assert server.ask(front, rows(100)).answered.all()
        assert server.metrics("ensemble_calls_total", model=front, worker="b0", reason="failed") == 1
        assert server.metrics("ensemble_requests_total", model=front, outcome="failed") == 1


def test_with_a_quorum_the_others_answer_for_rows_that_a_member_misses(server: Server):
    members = {
        "a": [saying("a0", 0.2, 0.8)],
        "b": [saying("b0", 0.6, 0.4)],
        "c": [saying("c0", 0.9, 0.1, special="fail")],
    }
    with server.front("quorum", members, weights=[1, 2, 1], quorum=2) as front:
        samples = rows(40)
        samples[20, 0] = HELD
        answer = server.ask(front, samples)
        assert server.metrics("ensemble_requests_total", model=front, outcome="partial") == 1
    missed = slice(16, 24)
    expected = np.tile(np.array([0.25 * 0.2 + 0.5 * 0.6 + 0.25 * 0.9, 0.0]), (40, 1))
    expected[missed, 0] = (0.2 + 2 * 0.6) / 3
    expected[:, 1] = 1 - expected[:, 0]
    np.testing.assert_allclose(answer.probabilities, expected, atol=CLOSE)
    assert answer.answered[:, :2].all()
    assert [bool(row) for row in answer.answered[:, 2]] == [not 16 <= index < 24 for index in range(40)]
    assert answer.parameter in ("a,b", None)
    assert answer.parameter is not None or server.kind == "python"


def test_too_few_for_the_quorum_is_an_error(server: Server):
    broken = {name: [Worker(f"{name}0", behaviour={"fail_first": "-1"})] for name in ("a", "b")}
    with (
        server.front("few", {**broken, "c": [Worker("c0")]}, quorum=2) as front,
        pytest.raises(ServingError, match=r"fewer than 2 of 3 members answered; .*member [ab]: worker [ab]0: rows 0-7"),
    ):
        server.ask(front, rows(8))


def test_a_retry_asks_another_worker(server: Server):
    members = {"a": [Worker("bad", 8, 9.0, {"fail_first": "1", "gain": "1"}), Worker("good", 3, 1.0, {"gain": "1"})]}
    with server.front("retry", members, retries=1) as front:
        samples = rows(8)
        for _ in range(20):  # until it is the bad one's turn
            answer = server.ask(front, samples)
            np.testing.assert_array_equal(answer.probabilities, np.repeat(samples[:, :1], 2, axis=1))
        assert server.metrics("ensemble_calls_total", model=front, worker="bad", reason="failed") == 1
        assert server.metrics("ensemble_requests_total", model=front, outcome="complete") == 20


def test_a_worker_that_always_fails_is_left_out(server: Server):
    members = {"a": [Worker("bad", 1, 9.0, {"fail_first": "-1"}), Worker("good", 1)]}
    with server.front("leftout", members, retries=2) as front:
        assert server.ask(front, rows(200)).answered.all()
        failed = server.metrics("ensemble_calls_total", model=front, worker="bad", reason="failed")
    assert 3 <= failed <= 4  # the fourth was on its way when the third failed


def test_a_worker_that_is_not_loaded_is_an_error_or_made_up_for(server: Server):
    gone = Worker("gone", behaviour={"missing": ""})
    with (
        server.front("unloaded", {"a": [gone]}) as front,
        pytest.raises(ServingError, match=r"worker gone: rows 0-2: .*gone"),
    ):
        server.ask(front, rows(3))
    with server.front("replaced", {"a": [gone, Worker("here")]}, retries=1) as front:
        assert server.ask(front, rows(300)).answered.all()


@pytest.mark.parametrize("quorum", [2, 1])
def test_rows_that_are_not_numbers_count_as_failed(server: Server, quorum: int):
    members = {"a": [saying("a0", 0.2, 0.8)], "b": [saying("b0", 0.6, 0.4, special="nan")]}
    samples = rows(10)
    samples[4, 0] = HELD
    with server.front("nan", members, quorum=quorum) as front:
        if quorum == 2:
            with pytest.raises(ServingError, match="member b: worker b0: rows 4-4: the answer is not finite"):
                server.ask(front, samples)
        else:
            answer = server.ask(front, samples)
            expected = [0.2 if row == 4 else 0.4 for row in range(10)]
            np.testing.assert_allclose(answer.probabilities[:, 0], expected, atol=CLOSE)
            assert np.flatnonzero(~answer.answered[:, 1]).tolist() == [4]
        assert server.metrics("ensemble_calls_total", model=front, worker="b0", reason="not_finite") == 1


def test_an_answer_of_another_shape_is_told(server: Server):
    members = {"a": [saying("a0", 0.2, 0.8)], "b": [saying("b0", 0.1, 0.2, 0.7)]}
    with server.front("shape", members) as front:
        with pytest.raises(ServingError, match=r"worker b0: rows 0-4: the answer has shape \[5, 3\], not \[5, 2\]"):
            server.ask(front, rows(5))
        assert server.metrics("ensemble_calls_total", model=front, worker="b0", reason="invalid") == 1


def hanging(**parameters: object) -> dict[str, object]:
    return {"deadline_seconds": 0.4, **parameters}


def held(special: str = "hold") -> Worker:
    return saying("held", 0.6, 0.4, special=special)


def test_a_member_that_never_answers_fails_its_request_at_the_deadline(server: Server):
    members = {"a": [saying("a0", 0.2, 0.8)], "b": [held()]}
    with server.front("hung", members, **hanging()) as front:
        with pytest.raises(ServingError, match=r"averaging: member b: no answer within 0\.4 s"):
            server.ask(front, rows(5, HELD))
        assert server.metrics("ensemble_requests_total", model=front, outcome="deadline") == 1
        server.ask("held", rows(1, RELEASE))
        wait_until(lambda: server.metrics("ensemble_calls_total", model=front, reason="late") == 1, "not let go")
        assert server.ask(front, rows(5)).answered.all()


def test_with_a_quorum_the_others_answer_at_the_deadline_and_then_at_once(server: Server):
    members = {"a": [saying("a0", 0.2, 0.8)], "b": [held("hang")]}
    with server.front("half", members, **hanging(quorum=1)) as front:
        answer = server.ask(front, rows(5, HELD))
        np.testing.assert_allclose(answer.probabilities, np.tile([0.2, 0.8], (5, 1)), atol=CLOSE)
        assert not answer.answered[:, 1].any()

        def misses_it() -> bool:
            return not server.ask(front, rows(5)).answered[:, 1].any()

        wait_until(misses_it, "the worker that hangs is still asked")
        calls = server.executions("held")
        assert all(misses_it() for _ in range(20))
        assert server.executions("held") == calls
        server.ask("held", rows(1, RELEASE))
        wait_until(lambda: server.ask(front, rows(5)).answered.all(), "the worker is not asked again")


def test_a_late_answer_changes_nothing(server: Server):
    """The samples and the answer lie in shared memory, where a late answer would be seen."""
    members = {"a": [saying("a0", 0.2, 0.8)], "b": [held()]}
    with (
        server.front("late", members, **hanging(quorum=1)) as front,
        connect(server.url) as client,
        Region(4096) as region,
    ):
        client.register_system_shared_memory(region.name, f"/{region.name}", region.size)
        given = region.array(np.float32, (3, WIDTH))
        answer = region.array(np.float32, (3, 2), 1024)
        given[:] = rows(3, HELD)
        asked = grpc.InferInput("INPUT", [3, WIDTH], "FP32")
        asked.set_shared_memory(region.name, given.nbytes)
        wanted = grpc.InferRequestedOutput("PROBABILITIES")
        wanted.set_shared_memory(region.name, answer.nbytes, 1024)
        client.infer(front, [asked], outputs=[wanted])
        np.testing.assert_allclose(answer, np.tile([0.2, 0.8], (3, 1)), atol=CLOSE)
        answer[:] = -1
        server.ask("held", rows(1, RELEASE))
        wait_until(lambda: server.metrics("ensemble_calls_total", model=front, reason="late") == 1, "not let go")
        assert (answer == -1).all()
        client.unregister_system_shared_memory(region.name)


def test_a_cancelled_request_ends(server: Server):
    members = {"a": [saying("a0", 0.2, 0.8)], "b": [held()]}
    with server.front("cancelled", members, deadline_seconds=SECONDS) as front:
        told: list[object] = []
        with grpc.InferenceServerClient(server.url, channel_args=CHANNEL) as client:
            given = grpc.InferInput("INPUT", [5, WIDTH], "FP32")
            given.set_data_from_numpy(rows(5, HELD))
            running = client.async_infer(front, [given], callback=lambda result, error: told.append(error))
            wait_until(lambda: server.metrics("ensemble_wait_requests_total", model=front) == 1, "not begun")
            running.cancel()
            wait_until(
                lambda: server.metrics("ensemble_requests_total", model=front, outcome="cancelled") == 1, "not ended"
            )
        assert isinstance(told[0], InferenceServerException)
        if server.kind == "python":  # which cannot cancel what it has asked
            server.ask("held", rows(1, RELEASE))
        wait_until(lambda: server.metrics("ensemble_calls_total", model=front, reason="late") == 1, "not let go")
        assert server.ask(front, rows(5)).answered.all()


def test_a_front_model_is_unloaded_when_its_requests_have_ended(server: Server):
    members = {"a": [held()]}
    with ThreadPoolExecutor(2) as pool, server.front("leaving", members, deadline_seconds=SECONDS) as front:
        running = pool.submit(server.ask, front, rows(5, HELD))
        wait_until(lambda: server.metrics("ensemble_wait_requests_total", model=front) == 1, "not begun")
        unloading = pool.submit(server.process.control.unload, front)
        wait_until(lambda: server.process.control.states()[front] == "UNLOADING", "not unloading")
        assert not running.done()
        server.ask("held", rows(1, RELEASE))
        assert running.result(SECONDS).answered.all()
        unloading.result(SECONDS)


def test_a_front_model_is_loaded_again_under_load(server: Server):
    stop, wrong, answered = threading.Event(), [], []

    def client(front: str, seed: int) -> None:
        samples = rows(60, seed=seed)
        while not stop.is_set():
            try:
                good = (server.ask(front, samples).probabilities == samples[:, :1]).all()
            except ServingError as error:
                good = front in str(error)  # is not loaded just now
            else:
                answered.append(seed)
            if not good:
                wrong.append(seed)

    members = {"a": [Worker("a0", 7, 1.0, {"gain": "1"}), Worker("a1", 16, 1.0, {"gain": "1"})]}
    with ThreadPoolExecutor(3) as pool, server.front("again", members) as front:
        running = [pool.submit(client, front, seed) for seed in range(3)]
        for _ in range(5):
            count = len(answered)
            wait_until(lambda: len(answered) > count + 5, "no answers")  # noqa: B023
            server.process.control.unload(front)
            server.process.control.load(front)
        stop.set()
        for each in running:
            each.result(SECONDS)
    assert wrong == []
    assert server.process.ended() is None


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"quorum": 3}, "quorum"),
        ({"rule": "median"}, "rule: 'median' is none of average, weighted, vote"),
        ({"scores": "points"}, "scores: 'points' is none of probabilities, logits"),
        ({"routing": "luck"}, "routing: 'luck' is none of pull, weights"),
        ({"weights": [1, 0]}, "member b: weight: 0"),
    ],
)
def test_a_configuration_that_cannot_be_right_does_not_load(server: Server, parameters: dict, problem: str):
    members = {"a": [Worker("a0")], "b": [Worker("b0")]}
    with pytest.raises(LoadError, match=problem), server.front("wrong", members, **parameters):
        pass
    for name in ("a0", "b0"):
        server.process.control.unload(name)


def test_no_samples_are_refused(server: Server):
    with server.front("nothing", {"a": [Worker("a0")]}) as front, pytest.raises(ServingError):
        server.ask(front, rows(0))


def test_the_input_is_not_copied(server: Server):
    """Each member tells where it reads each sample: in the client's shared memory, as the server has it mapped."""
    if server.kind == "python":
        pytest.skip("every member gets a copy")
    members = {name: [Worker(f"{name}{i}", 7 + i, 1.0, {"tell": "address"}) for i in range(2)] for name in "ab"}
    with server.front("pointers", members) as front, connect(server.url) as client, Region(1 << 20) as region:
        client.register_system_shared_memory(region.name, f"/{region.name}", region.size)
        given = region.array(np.float32, (1000, WIDTH))
        answer = region.array(np.float32, (1000, 2), 1 << 19)
        asked = grpc.InferInput("INPUT", [1000, WIDTH], "FP32")
        asked.set_shared_memory(region.name, given.nbytes)
        wanted = grpc.InferRequestedOutput("PROBABILITIES")
        wanted.set_shared_memory(region.name, answer.nbytes, 1 << 19)
        client.infer(front, [asked], outputs=[wanted])
        maps = [line.split() for line in Path(f"/proc/{server.process.pid}/maps").read_text().splitlines()]
        (start,) = [int(line[0].split("-")[0], 16) for line in maps if line[-1].endswith(region.name)]
        addresses = answer[:, 0].astype(np.int64) * (1 << 24) + answer[:, 1].astype(np.int64)
        assert addresses.tolist() == [start + index * given[:1].nbytes for index in range(1000)]
        assert server.metrics("ensemble_copied_bytes_total", model=front) == 0
        client.unregister_system_shared_memory(region.name)


def test_what_is_copied_is_counted(server: Server):
    members = {name: [Worker(f"{name}0")] for name in "abc"}
    samples = rows(100)
    with server.front("copies", members) as front:
        server.ask(front, samples)
        copied = server.metrics("ensemble_copied_bytes_total", model=front)
    assert copied == {"native": 0, "python": 4 * samples.nbytes}[server.kind]


def test_a_server_ends_though_a_member_never_answers(fake, tmp_path, server: Server):
    (tmp_path / "own").mkdir()
    with started(server.kind, fake, tmp_path / "own") as own:
        own._write_worker(held())
        own._write_front("stuck", {"a": [held()]}, 2, {"deadline_seconds": 0.2})
        for model in ("held", "stuck"):
            own.process.control.load(model)
        with pytest.raises(ServingError, match="no answer within"):
            own.ask("stuck", rows(3, HELD))
        pid = own.process.pid
        own.process.end()
        assert own.process.pid is None
        assert pid is not None
