from __future__ import annotations

from ensemble_core.serving.states import ModelState, State, documents, worker_states

CPU0, CPU1, OTHER, GPU = "m-0--cpu0--b32", "m-0--cpu1--b8", "m-1--cpu1--b128", "m-2--gpu0--b64"


def test_every_worker_has_a_state(make_plan):
    told = {
        CPU0: ModelState("READY"),
        CPU1: ModelState("LOADING"),
        OTHER: ModelState("UNAVAILABLE", "Internal: MemoryError: 3 GiB"),
        GPU: ModelState("READY"),
    }
    assert worker_states(make_plan(), told, dead={GPU, CPU1}) == {
        CPU0: State.READY,
        CPU1: State.LOADING,
        OTHER: State.OUT_OF_MEMORY,
        GPU: State.DEAD,
    }


def test_who_is_not_loaded_for_another_reason_is_not_out_of_memory(make_plan):
    states = worker_states(make_plan(), {OTHER: ModelState("UNAVAILABLE", "unloaded"), GPU: ModelState("UNLOADING")})
    assert set(states.values()) == {State.NOT_LOADED}


def test_a_process_that_was_killed_while_it_loaded_was_out_of_memory(make_plan):
    failure = f"{CPU1}: its process was killed by signal 9 before it could answer"
    states = worker_states(make_plan(), {CPU0: ModelState("READY")}, failure=failure)
    assert states == {CPU0: State.READY, CPU1: State.OUT_OF_MEMORY, OTHER: State.NOT_LOADED, GPU: State.NOT_LOADED}


def test_of_several_nobody_is_known_to_be_out_of_memory(make_plan):
    failure = f"one of {CPU1}, {OTHER}: its process was killed by signal 9 before it could answer"
    assert set(worker_states(make_plan(), {}, failure=failure).values()) == {State.NOT_LOADED}


def test_reports_name_member_device_and_batch_size(make_plan):
    plan = make_plan()
    told = documents(plan, worker_states(plan, {GPU: ModelState("READY")}))
    assert told[-1] == {"modelId": "m-2", "device": "gpu0", "batchSize": 64, "state": "ready"}
    assert len(told) == 4
