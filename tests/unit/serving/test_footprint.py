from __future__ import annotations

from ensemble_core.serving import footprint
from ensemble_core.serving.footprint import BASE_MIB, GPU_HOST_MIB, MIB, REGION_MIB, memory_mib, shared_memory_mib

GIVEN, ANSWER = 8 * 8, 4 * 10  # bytes of a sample


def test_shared_memory_is_what_requests_and_answers_take(make_plan):
    plan = make_plan(max_batch_size=2**20)
    requests = footprint.REQUESTS * (GIVEN + ANSWER)  # MiB
    answers = 2 * footprint.DEPTH * (32 + 8 + 128) * ANSWER + footprint.DEPTH * 64 * (ANSWER + GIVEN)
    assert shared_memory_mib(plan) == 4 * REGION_MIB + requests + 1
    assert answers < MIB  # which the 1 above is for


def test_it_grows_with_the_largest_request_and_with_batch_sizes(make_plan):
    plan = make_plan(max_batch_size=1)
    larger = plan.workers[0].model_copy(update={"batch_size": 2**20})
    more = shared_memory_mib(make_plan(max_batch_size=1, workers=(larger, *plan.workers[1:]))) - shared_memory_mib(plan)
    assert more == 2 * footprint.DEPTH * ANSWER
    assert shared_memory_mib(make_plan(max_batch_size=2**20)) > shared_memory_mib(plan)


def test_memory_is_shared_memory_and_what_the_processes_take(make_plan):
    plan = make_plan(max_batch_size=2**20)
    asked = []

    def need(worker):
        asked.append((worker.member, worker.device))
        return 100.0

    own = memory_mib(plan, need) - shared_memory_mib(plan)
    requests = footprint.REQUESTS * (2 * (GIVEN + ANSWER) + 5 * ANSWER)
    assert own == 2 * BASE_MIB + requests + 300 + GPU_HOST_MIB
    assert asked == [(0, "cpu0"), (0, "cpu1"), (1, "cpu1")]
