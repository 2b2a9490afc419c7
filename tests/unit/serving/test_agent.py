from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ensemble_core.errors import UserError
from ensemble_core.serving import processes, rendered, repository, sharedmemory, waiting
from ensemble_core.serving.agent import LONGEST_PAUSE, LOOK_SECONDS, Agent, Repairs, Seen, find_repairs, loaded_members
from ensemble_core.serving.errors import LoadError, ServingError
from ensemble_core.serving.rendered import Rendered
from ensemble_core.serving.states import ModelState

PYTHON = {"digits", "m-0--cpu0--b32", "m-0--cpu1--b8", "m-1--cpu1--b128"}
GPU = "m-2--gpu0--b64"
SERVER = f"ensemble-1-{os.getpid()}-0a-"


@pytest.fixture
def wanted(make_plan):
    return repository.configs(make_plan())


def seen(wanted, **parts) -> Seen:
    whole = {
        "identity": SERVER,
        "states": dict.fromkeys(wanted, "READY"),
        "configs": dict(wanted),
        "alive": frozenset(PYTHON),
    }
    return Seen(**{**whole, **parts})


def test_nothing_is_done_where_all_is_as_planned(wanted):
    assert find_repairs(wanted, seen(wanted)) == Repairs()


def test_what_is_not_ready_is_loaded(wanted):
    states = {**dict.fromkeys(wanted, "READY"), "digits": "UNAVAILABLE", GPU: "UNLOADING"}
    del states["m-1--cpu1--b128"]
    found = find_repairs(wanted, seen(wanted, states=states))
    assert found == Repairs(missing=("digits", "m-1--cpu1--b128", GPU))
    assert (found.load, found.unload) == (found.missing, ())


def test_what_does_not_belong_is_unloaded_if_it_is_loaded(wanted):
    states = {**dict.fromkeys(wanted, "READY"), "miner": "READY", "old": "UNAVAILABLE"}
    found = find_repairs(wanted, seen(wanted, states=states))
    assert found == Repairs(foreign=("miner",))
    assert (found.load, found.unload) == ((), ("miner",))


def test_another_configuration_is_corrected(wanted):
    changed = type(wanted[GPU])()
    changed.CopyFrom(wanted[GPU])
    changed.parameters["sha256"].string_value = "f" * 64
    found = find_repairs(wanted, seen(wanted, configs={**wanted, GPU: changed}))
    assert found == Repairs(changed=(GPU,))
    assert found.load == found.unload == (GPU,)


def test_a_python_model_without_a_process_is_revived(wanted):
    found = find_repairs(wanted, seen(wanted, alive=frozenset(PYTHON - {"digits"})))
    assert found == Repairs(dead=("digits",))
    assert found.load == found.unload == ("digits",)


def test_a_front_model_that_is_no_process_is_not_taken_for_dead(wanted):
    without = seen(wanted, alive=frozenset(PYTHON - {"digits"}), python=frozenset({"member"}))
    assert find_repairs(wanted, without) == Repairs()


def test_nothing_is_concluded_from_processes_that_cannot_be_seen(wanted):
    assert find_repairs(wanted, seen(wanted, alive=None)) == Repairs()


def test_a_member_is_loaded_when_all_its_workers_are(make_plan, wanted):
    plan, configs = make_plan(), dict(wanted)
    del configs["m-0--cpu1--b8"]
    assert loaded_members(plan, seen(wanted, configs=configs)) == [
        {"modelId": "m-1", "digest": "1" * 64},
        {"modelId": "m-2", "digest": "2" * 64},
    ]
    assert [member["modelId"] for member in loaded_members(plan, seen(wanted))] == ["m-0", "m-1", "m-2"]


class FakeTriton:
    """Control of a server that has only what is loaded into it; files are of no interest to it."""

    def __init__(self, wanted) -> None:
        self.wanted, self.loaded = wanted, dict[str, object]()
        self.up, self.broken, self.calls = True, set[str](), list[str]()
        self.problem = "no file"

    def identity(self) -> str | None:
        return SERVER if self.up else None

    def index(self) -> dict[str, ModelState]:
        return dict.fromkeys(self.loaded, ModelState("READY"))

    def config(self, model: str):
        from google.protobuf import json_format

        return json_format.MessageToDict(self.loaded[model], preserving_proto_field_name=True)

    def load_all(self, models, front: str, check) -> None:
        self.calls.append("load " + " ".join(models))
        if broken := self.broken.intersection(models):
            raise LoadError(f"{min(broken)}: load: {self.problem}")
        self.loaded.update({model: self.wanted[model] for model in models})

    def unload(self, model: str) -> None:
        self.calls.append(f"unload {model}")
        self.loaded.pop(model, None)


@pytest.fixture
def triton(wanted) -> FakeTriton:
    return FakeTriton(wanted)


@pytest.fixture
def told() -> list[dict]:
    return []


@pytest.fixture
def agent(make_plan, triton, told, tmp_path: Path, monkeypatch) -> Agent:
    """On a folder with a plan; whether its files are what they should be is not asked here."""
    content = Rendered(spec_hash="a" * 64, selection="b" * 64, allocation="c" * 64, plan=make_plan())
    (tmp_path / "plan.json").write_text(content.model_dump_json(by_alias=True))
    for backend in ("averaging", "member"):
        (tmp_path / "backends" / backend).mkdir(parents=True)
        (tmp_path / "backends" / backend / "model.py").touch()
    monkeypatch.setattr(rendered, "check_weights", lambda plan, models: None)
    monkeypatch.setattr(repository, "write", lambda plan, folder: None)
    monkeypatch.setattr(processes, "stubs", lambda prefix, models: dict.fromkeys(triton.loaded, 1))
    monkeypatch.setattr(sharedmemory, "is_near", lambda prefix: True)
    return Agent(tmp_path, triton, lambda **values: told.append(values))


def test_it_loads_once_and_then_only_looks(agent, triton, told):
    assert agent.look() == agent.look() == LOOK_SECONDS
    assert triton.calls == ["load digits m-0--cpu0--b32 m-0--cpu1--b8 m-1--cpu1--b128 m-2--gpu0--b64"]
    assert [(each["done"], each["note"]) for each in told] == [(0, "loading"), (5, ""), (5, "")]
    assert told[1] == told[2]
    assert told[1]["summary"]["repaired"] == told[1]["summary"]["revivals"] == 0
    assert states(told[1]) == ["ready"] * 4


def states(told: dict) -> list[str]:
    return [worker["state"] for worker in told["summary"]["workers"]]


def test_a_worker_that_runs_out_of_memory_is_named(agent, triton, told):
    triton.broken, triton.problem = {"m-1--cpu1--b128"}, "MemoryError: 3 GiB"
    agent.look()
    worker = {"modelId": "m-1", "device": "cpu1", "batchSize": 128, "state": "out of memory"}
    assert worker in told[-1]["summary"]["workers"]
    assert told[-1]["note"] == (
        "out of memory: m-1 on cpu1 with batches of 128; m-1--cpu1--b128: load: MemoryError: 3 GiB"
    )
    triton.broken = set()
    agent.look()
    assert states(told[-1]) == ["ready"] * 4


def test_a_worker_whose_process_died_is_dead(wanted, make_plan):
    assert seen(wanted, alive=frozenset(PYTHON - {"m-1--cpu1--b128"})).dead(wanted) == {"m-1--cpu1--b128"}
    assert seen(wanted, alive=None).dead(wanted) == frozenset()


def test_it_waits_for_the_server_without_losing_patience(agent, triton, told):
    triton.up = False
    assert [agent.look() for _ in range(4)] == [LOOK_SECONDS] * 4
    assert told[-1] == {
        "done": 0,
        "total": 5,
        "note": "waiting for the server",
        "summary": {"loaded": [], "workers": told[0]["summary"]["workers"], "revivals": 0, "repaired": 0},
    }
    assert states(told[0]) == ["not loaded"] * 4
    triton.up = True
    agent.look()
    assert told[-1]["done"] == 5


def test_repairs_are_counted_once_everything_was_there(agent, triton, told):
    agent.look()
    triton.loaded["miner"] = object()
    del triton.loaded[GPU]
    agent.look()
    assert set(triton.loaded) == set(triton.wanted)
    assert told[-1]["summary"]["repaired"] == 2


def test_an_ensemble_that_lacks_a_member_is_not_ready(agent, triton, told):
    agent.look()
    del triton.loaded["m-1--cpu1--b128"]
    triton.broken = {"m-1--cpu1--b128"}
    pauses = [agent.look() for _ in range(8)]
    assert "digits" not in triton.loaded
    assert told[-1]["note"] == "m-1--cpu1--b128: load: no file"
    assert [member["modelId"] for member in told[-1]["summary"]["loaded"]] == ["m-0", "m-2"]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (2 * LOOK_SECONDS, LONGEST_PAUSE)
    triton.broken = set()
    assert agent.look() == LOOK_SECONDS
    assert set(triton.loaded) == set(triton.wanted)


def test_why_something_is_not_loaded_is_in_the_log_once_for_each_change(agent, triton, capsys):
    def logged() -> list[str]:
        return [line for line in capsys.readouterr().out.splitlines() if not line.startswith("load ")]

    triton.broken = {"m-1--cpu1--b128"}
    agent.look()
    agent.look()
    assert logged() == ["m-1--cpu1--b128: load: no file"]
    triton.up = False
    agent.look()
    agent.look()
    assert logged() == ["waiting for the server, after: m-1--cpu1--b128: load: no file"]
    triton.up, triton.broken = True, set()
    agent.look()
    assert logged() == []
    triton.up = False
    agent.look()
    assert logged() == ["waiting for the server"]


def test_a_server_that_goes_away_midway_is_waited_for(agent, triton, told, monkeypatch):
    def gone(models, front, check):
        raise ServingError("the server is gone")

    with monkeypatch.context() as away:
        away.setattr(triton, "load_all", gone)
        assert agent.look() == LOOK_SECONDS
    assert told[-1]["note"] == "the server is gone"
    agent.look()
    assert told[-1]["done"] == 5


def test_a_process_that_dies_while_its_model_loads_is_told(agent, triton, told, monkeypatch):
    """Seen from beside the server: nobody but the agent knows which model it was."""
    monkeypatch.setattr(waiting, "UNNOTICED_SECONDS", 0)

    def die(models, front, check):
        with subprocess.Popen([sys.executable, "-c", "raise SystemExit(127)"]) as child:
            processes_end(child.pid)
            check(["m-1--cpu1--b128"])

    triton.load_all = die
    monkeypatch.setattr(processes, "stubs", lambda prefix, models: {})
    agent.look()
    assert told[-1]["note"] == "m-1--cpu1--b128: its process ended with exit code 127 before it could answer"


def test_a_dead_model_is_unloaded_though_it_cannot_be_loaded(agent, triton, told, monkeypatch):
    """A dead process that nobody reaps is a sign of a server that is stuck."""
    agent.look()
    monkeypatch.setattr(processes, "stubs", lambda prefix, models: dict.fromkeys(PYTHON - {"m-1--cpu1--b128"}, 1))

    def refuse(plan, models):
        raise UserError("m-1.onnx", "is not what its digest says")

    monkeypatch.setattr(rendered, "check_weights", refuse)
    agent.look()
    assert triton.calls[1:] == ["unload m-1--cpu1--b128", "unload digits"]
    assert "digest" in told[-1]["note"]


def processes_end(pid: int) -> None:
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # it stays to be reaped


def test_why_a_server_went_away_is_told_until_everything_is_there_again(agent, triton, told):
    triton.broken = {"m-1--cpu1--b128"}
    agent.look()
    triton.up = False
    agent.look()
    assert told[-1]["note"] == "waiting for the server, after: m-1--cpu1--b128: load: no file"
    triton.up, triton.broken = True, set()
    agent.look()
    assert [each["note"] for each in told[-2:]] == ["loading, after: m-1--cpu1--b128: load: no file", ""]
