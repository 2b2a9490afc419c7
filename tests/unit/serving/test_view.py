from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_core.serving.backends.averaging.routing import LATENCY_STEPS, latency_step
from ensemble_core.serving.exposition import Between, Snapshot, parse
from ensemble_core.serving.states import State
from ensemble_core.serving.view import STEP, View, lines, percentile, summary_line, view_of

BEFORE = """
# HELP ensemble_requests_total Requests by how they ended
ensemble_received_requests_total{load="0",model="digits"} 10
ensemble_requests_total{load="0",model="digits",outcome="complete"} 10
ensemble_latency_requests_total{below_seconds="0.100000",load="0",model="digits"} 10
ensemble_samples_total{load="0",member="m-0",model="digits",worker="m-0--cpu0--b32"} 500
"""
AFTER = """
ensemble_received_requests_total{load="0",model="digits"} 35
ensemble_requests_total{load="0",model="digits",outcome="complete"} 29
ensemble_requests_total{load="0",model="digits",outcome="failed"} 1
ensemble_answered_samples_total{load="0",model="digits"} 1900
ensemble_latency_requests_total{below_seconds="0.100000",load="0",model="digits"} 20
ensemble_latency_requests_total{below_seconds="0.158489",load="0",model="digits"} 10
ensemble_latency_microseconds_total{load="0",model="digits"} 2e+06
ensemble_latency_requests_total{below_seconds="0.1",load="0",model="another"} 99
ensemble_wait_requests_total{load="0",model="digits"} 20
ensemble_wait_microseconds_total{load="0",model="digits"} 100000
ensemble_samples_total{load="0",member="m-0",model="digits",worker="m-0--cpu0--b32"} 1500
ensemble_samples_total{load="0",member="m-0",model="digits",worker="m-0--cpu1--b8"} 900
ensemble_samples_total{load="0",member="m-1",model="digits",worker="m-1--cpu1--b128"} 1900
ensemble_calls_total{load="0",member="m-0",model="digits",reason="answered",worker="m-0--cpu0--b32"} 97
ensemble_calls_total{load="0",member="m-0",model="digits",reason="late",worker="m-0--cpu0--b32"} 1
ensemble_calls_total{load="0",member="m-0",model="digits",reason="failed",worker="m-0--cpu1--b8"} 2
nv_inference_compute_infer_duration_us{model="m-0--cpu0--b32",version="1"} 5e+06
nv_inference_compute_infer_duration_us{model="m-0--cpu1--b8",version="1"} 7e+06
nv_inference_compute_infer_duration_us{model="m-1--cpu1--b128",version="1"} 8e+06
ensemble_queued_samples{load="0",member="m-0",model="digits"} 1200
ensemble_queued_samples{load="0",member="m-0",model="digits",worker="m-0--cpu0--b32"} 0
ensemble_queued_samples{load="0",member="m-0",model="digits",worker="m-0--cpu1--b8"} 16
ensemble_queued_samples{load="0",member="m-0",model="another",worker="m-0--cpu1--b8"} 7
ensemble_queued_samples{load="0",member="m-1",model="digits"} 300
ensemble_asked_samples{load="0",member="m-0",model="digits",worker="m-0--cpu0--b32"} 64
ensemble_asked_samples{load="0",member="m-0",model="digits",worker="m-0--cpu1--b8"} 8
ensemble_asked_samples{load="0",member="m-1",model="digits",worker="m-1--cpu1--b128"} 200
nv_cpu_utilization 0.5
nv_gpu_utilization{gpu_uuid="GPU-1"} 0.25
"""


@pytest.fixture
def plan(make_plan):
    return make_plan()


@pytest.fixture
def states(plan):
    return {plan.model_name(worker): State.READY for worker in plan.workers}


@pytest.fixture
def view(plan, states) -> View:
    return view_of(plan, states, Between(parse(BEFORE, 100.0), parse(AFTER, 110.0)))


def test_a_view_is_of_what_happened_between_two_looks(view):
    assert (view.model, view.seconds, view.in_flight) == ("digits", 10.0, 5)
    assert view.requests == {"complete": 19, "failed": 1}
    assert view.requests_per_second == 2.0
    assert view.samples_per_second == 190.0
    assert view.latency is not None
    assert view.latency.mean == 0.1
    assert view.latency.p50 == pytest.approx(0.1, abs=1e-6)
    assert view.latency.p99 == pytest.approx(0.158489 / STEP**0.02, abs=1e-6)
    assert view.wait_seconds == 0.005
    assert (view.cpu, view.gpus) == (0.5, (0.25,))


def test_a_view_tells_of_each_member_worker_and_device(view):
    assert [(member.samples_per_second, member.calls, member.failed) for member in view.members] == [
        (190.0, 100, 3),
        (190.0, 0, 0),
        (0.0, 0, 0),
    ]
    assert [(worker.model_id, worker.device, worker.samples_per_second, worker.busy) for worker in view.workers] == [
        ("m-0", "cpu0", 100.0, 0.5),
        ("m-0", "cpu1", 90.0, 0.7),
        ("m-1", "cpu1", 190.0, 0.8),
        ("m-2", "gpu0", 0.0, 0.0),
    ]
    assert [(device.device, device.busy) for device in view.devices] == [("gpu0", 0.0), ("cpu0", 0.5), ("cpu1", 1.0)]


def test_what_waits_for_a_member_may_come_to_any_of_its_workers(view):
    def queues(views):
        return [(each.queue.own, each.queue.shared, each.queue.asked) for each in views]

    assert queues(view.members) == [(1216, 0, 72), (300, 0, 200), (0, 0, 0)]
    assert queues(view.workers) == [(0, 1200, 64), (16, 1200, 8), (300, 0, 200), (0, 0, 0)]
    assert queues(view.devices) == [(0, 0, 0), (0, 1200, 64), (316, 1200, 208)]


def test_a_view_is_the_same_in_a_report(view):
    assert View.model_validate(view.document()) == view


def test_a_counter_that_began_anew_has_risen_by_what_it_has():
    between = Between(Snapshot(0, {"a": {(): 7.0}}), Snapshot(1, {"a": {(): 3.0, (("load", "1"),): 2.0}}))
    assert between.rise("a") == 5.0
    assert between.rise("a", load="1") == 2.0
    assert between.rise("b") == 0.0


def test_labels_may_hold_anything():
    found = parse('a{x="1,\\"}",y=""} 2\nb 3\n\nno sample at all\n', 1.0)
    assert found.values == {"a": {(("x", '1,\\"}'), ("y", "")): 2.0}, "b": {(): 3.0}}


@given(
    seconds=st.lists(st.floats(1e-4, 90), min_size=1, max_size=50),
    share=st.sampled_from([0.5, 0.9, 0.99, 1.0]),
)
def test_percentiles_are_right_to_a_step(seconds, share):
    counted = [latency_step(each) for each in seconds]
    counts = [(float(step), float(counted.count(step))) for step in LATENCY_STEPS]
    real = float(np.percentile(seconds, 100 * share, method="inverted_cdf"))
    assert real / STEP / 1.001 <= percentile(counts, share) <= real * STEP * 1.001


@given(st.floats(0, 1e4))
def test_a_latency_is_counted_at_the_first_step_that_it_is_below(seconds):
    limits = [float(step) for step in LATENCY_STEPS]
    assert all(low < high for low, high in pairwise(limits))
    found = float(latency_step(seconds))
    assert seconds < found * 1.00001
    assert found == limits[0] or seconds >= limits[limits.index(found) - 1] * 0.99999


def test_what_takes_longer_than_all_steps_takes_at_least_the_last():
    assert percentile([(10.0, 0.0), (100.0, 1.0), (math.inf, 9.0)], 0.5) == 100.0


def test_the_view_as_a_table(view):
    assert lines(view) == [
        "digits: 190 samples/s, 2.0 requests/s, 5 in flight, 1 failed",
        "  latency 100 ms (p50 100 ms, p90 145 ms, p99 157 ms), waited 5 ms for members",
        "",
        "  device  member  batch  state  samples/s  busy      queue  asked",
        "  gpu0                                       0%          0      0",
        "          m-2        64  ready          0    0%          0      0",
        "  cpu0                                      50%    0-1,200     64",
        "          m-0        32  ready        100   50%    0-1,200     64",
        "  cpu1                                     100%  316-1,516    208",
        "          m-0         8  ready         90   70%   16-1,216      8",
        "          m-1       128  ready        190   80%        300    200",
        "",
        "  member  samples/s  queue  asked  calls  failed",
        "  m-0           190  1,216     72    100    3.0%",
        "  m-1           190    300    200      0",
        "  m-2             0      0      0      0",
        "  CPU 50%, GPU 25%",
    ]


def test_the_view_in_a_line_names_who_is_not_ready(plan, states):
    states["m-1--cpu1--b128"], states["m-2--gpu0--b64"] = State.OUT_OF_MEMORY, State.LOADING
    nothing = Between(parse("", 0.0), parse("", 2.0))
    view = view_of(plan, states, nothing)
    assert summary_line(view) == (
        "digits: 0 samples/s, 0.0 requests/s, 0 in flight, no request ended, busiest gpu0 0%, "
        "m-1 on cpu1: out of memory, m-2 on gpu0: loading"
    )
    assert view.eventful
    assert not view_of(plan, dict.fromkeys(states, State.READY), nothing).eventful
