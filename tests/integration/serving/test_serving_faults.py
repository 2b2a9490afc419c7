"""What dies is repaired, what hangs is given up, and nothing is left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from tests.support.broken import no_process_starts
from tritonclient.utils import InferenceServerException

from ensemble_core.allocation.plan import Answering, Worker
from ensemble_core.serving import installation, processes
from ensemble_core.serving import server as module
from ensemble_core.serving.client import ask, connect, predict
from ensemble_core.serving.control import Control
from ensemble_core.serving.errors import LoadError, ServingError, StuckError
from ensemble_core.serving.installation import CHOICE, CONTROL_HEADER, Ports
from ensemble_core.serving.load import measure
from ensemble_core.serving.server import TritonServer
from ensemble_core.serving.sharedmemory import FOLDER, Region

SECONDS = 90  # for anything to happen

OWNER = """
import sys, time
from ensemble_core.allocation.plan import Plan
from ensemble_core.serving.server import TritonServer
with TritonServer() as server:
    print(server.pid, flush=True)
    server.apply(Plan.model_validate_json(sys.argv[1]))
    print("loaded", flush=True)
    time.sleep(600)
"""


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def answered_again(server: TritonServer, plan, ensemble) -> None:
    """Wait until the server answers, and see that it answers right."""
    given = ensemble.samples(200)

    def answers() -> bool:
        try:
            return np.allclose(predict(server.url, plan.name, given), ensemble.expected(given), atol=1e-6)
        except ServingError:
            return False

    wait_until(answers, f"no right answers\n{server.log_tail()}")


def computed(server: TritonServer) -> float:
    """CPU seconds of a member, which computes only for requests."""
    return processes.process(server.stub("m-2--cpu0--b16")).cpu_seconds


def kill_stub_of(server: TritonServer, model: str, later: float) -> bool:
    """Kill the process of a model some seconds after it is seen; false if it has none yet."""
    arguments = (path.parent for path in Path("/proc").glob("[0-9]*/cmdline") if named(path, f"{model}_0_0"))
    for process in arguments:
        time.sleep(later)
        os.kill(int(process.name), signal.SIGKILL)
        return True
    return False


def named(cmdline: Path, instance: str) -> bool:
    try:
        arguments = cmdline.read_bytes().decode().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return arguments[0].endswith(installation.STUB) and instance in arguments


def shared_memory_of(pid: int) -> list[str]:
    return [path.name for path in FOLDER.iterdir() if f"-{pid}-" in path.name]


def test_a_member_that_is_killed_is_loaded_again(server, plan, ensemble):
    model = "m-1--cpu1--b128"
    killed, revivals, restarts = server.stub(model), len(server.revivals), len(server.restarts)
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: server.revivals[revivals:] == [model] and server.stub(model) != killed, "not revived")
    answered_again(server, plan, ensemble)
    assert processes.alive(server.stub(model))
    assert server.incidents[-1] == f"{model}: its process was killed by signal 9"
    assert len(server.restarts) == restarts


def test_a_member_that_is_killed_in_a_call_ends_the_server_which_is_told_with_the_reason(ensemble):
    """Triton waits for its answer for ever, unless it ends by itself."""
    plan = ensemble.plan(
        (0, 0, 8), (0, 1, 8), (1, 1, 8), (2, 0, 8), answering=Answering(quorum=2, deadline_seconds=600)
    )
    slow, model = ensemble.samples(100), "m-0--cpu0--b8"
    slow[:] = 190
    with TritonServer() as server, ThreadPoolExecutor(1) as pool:
        server.apply(plan)
        before = processes.process(server.stub(model)).cpu_seconds
        asked = pool.submit(ask, server.url, plan.name, slow)
        wait_until(lambda: processes.process(server.stub(model)).cpu_seconds > before + 0.1, "no work")
        os.kill(server.stub(model), signal.SIGKILL)
        with pytest.raises(ServingError):
            asked.result(SECONDS)
        answered_again(server, plan, ensemble)
        died, ended = server.incidents
    assert died == f"{model}: its process was killed by signal 9"
    assert ended in (
        f"{model}: Triton waits for its dead process, which had a call: the server is ended, and started again",
        "the server was killed by signal 6: a model's process had died or stood still in a call; it is started again",
    )


@pytest.mark.parametrize("server", ["native"], indirect=True)  # the front model is no process, which would be missed
def test_a_model_that_is_unloaded_is_loaded_again_and_that_is_told(server, plan, ensemble):
    incidents, restarts = len(server.incidents), len(server.restarts)
    server._process.control.unload(plan.name)
    answered_again(server, plan, ensemble)
    assert server.incidents[incidents:] == [f"{plan.name}: it is not loaded any more, and is loaded again"]
    assert len(server.restarts) == restarts


@pytest.mark.parametrize("header", [{}, {CONTROL_HEADER: "guessed"}])
def test_who_has_not_the_key_unloads_nothing_and_may_ask(server, plan, ensemble, header):
    stranger = Control(server.address, server.ports.http, SECONDS, header)
    with pytest.raises(LoadError, match="front: unload: This API is restricted"):
        stranger.unload(plan.name)
    with pytest.raises(ServingError, match="This API is restricted"):
        stranger.index()
    assert stranger.ready()
    assert stranger.config(plan.name)["name"] == plan.name
    with connect(server.url) as client:
        with pytest.raises(InferenceServerException, match="restricted"):
            client.unload_model(plan.name, {f"triton-grpc-protocol-{name}": key for name, key in header.items()})
        assert client.get_inference_statistics(plan.name).model_stats[0].name == plan.name
        with Region(64) as region:  # how clients on this machine send samples
            client.register_system_shared_memory(region.name, f"/{region.name}", region.size)
            client.unregister_system_shared_memory(region.name)
    answered_again(server, plan, ensemble)


@pytest.mark.parametrize("server", ["python"], indirect=True)  # where the front model is a process
def test_requests_to_a_front_model_that_is_killed_fail_at_once(server, plan, ensemble):
    """Nobody else can answer them: Triton would hold them for ever, and whoever sent them would wait as long."""
    slow, restarts, before = ensemble.samples(1000), len(server.restarts), computed(server)
    slow[:] = 150
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, server.url, plan.name, slow)
        wait_until(lambda: computed(server) > before + 0.1, "no work")
        killed = server.stub(plan.name)
        os.kill(killed, signal.SIGKILL)
        with pytest.raises(ServingError):
            asked.result(SECONDS)
    wait_until(lambda: server.stub(plan.name) != killed, "not started again")
    answered_again(server, plan, ensemble)
    assert len(server.restarts) == restarts + 1


@pytest.mark.parametrize("server", ["python"], indirect=True)  # where the front model is a process
def test_a_benchmark_whose_front_model_is_killed_ends_at_once_and_says_so(server, plan, ensemble):
    slow, before = ensemble.samples(128), computed(server)
    slow[:] = 130
    with ThreadPoolExecutor(1) as pool:
        measured = pool.submit(measure, server, plan, slow, 600.0)
        wait_until(lambda: computed(server) > before + 0.1, "no work")
        killed = server.stub(plan.name)
        os.kill(killed, signal.SIGKILL)
        with pytest.raises(ServingError, match=r"^front: its process was killed by signal 9; "):
            measured.result(SECONDS)
    wait_until(lambda: server.stub(plan.name) != killed, "not started again")
    answered_again(server, plan, ensemble)


def test_a_benchmark_waits_no_longer_than_its_deadline(plan, ensemble, monkeypatch):
    """For a front model that hangs: its process lives, and gives no sign. Triton may notice, and then ends it."""
    monkeypatch.setenv(CHOICE, "python")
    with TritonServer() as server, ThreadPoolExecutor(1) as pool:
        server.apply(plan)
        stopped = server.stub(plan.name)
        os.kill(stopped, signal.SIGSTOP)
        try:
            measured = pool.submit(measure, server, plan, ensemble.samples(128), 0.2, deadline=1.0)
            with pytest.raises(ServingError, match=r"Deadline Exceeded|is not healthy"):
                measured.result(SECONDS)
        finally:
            with suppress(ProcessLookupError):
                os.kill(stopped, signal.SIGCONT)
        answered_again(server, plan, ensemble)


def test_a_request_to_a_killed_member_fails_and_does_not_hang(server, plan, ensemble):
    given = ensemble.samples(1000)
    os.kill(server.stub("m-2--cpu0--b16"), signal.SIGKILL)
    answers = told = None
    try:
        answers = predict(server.url, plan.name, given)
    except ServingError as error:
        told = str(error)
    if told is None:  # it was loaded again before it was needed
        np.testing.assert_allclose(answers, ensemble.expected(given), atol=1e-6)
    else:
        assert "member m-2: worker m-2--cpu0--b16" in told
    answered_again(server, plan, ensemble)


def test_a_server_that_is_killed_is_started_again(server, plan, ensemble):
    killed, ports, restarts = server.pid, server.ports, len(server.restarts)
    stubs = [process.pid for process in server.processes() if process.pid != killed]
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: len(server.restarts) == restarts + 1 and server.pid not in (killed, None), "not restarted")
    answered_again(server, plan, ensemble)
    assert server.ports == ports
    wait_until(lambda: not any(processes.alive(pid) for pid in stubs), "stubs of the killed server live")


def test_members_are_loaded_again_when_the_library_s_files_are_gone(ensemble, tmp_path):
    """The server has them under names of its own."""
    own = ensemble.of("uint8", tmp_path)
    plan = own.plan((0, 0, 8), (1, 1, 8), (2, 0, 8))
    with TritonServer() as server:
        server.apply(plan)
        for member in plan.members:
            Path(member.onnx).unlink()
        os.kill(server.stub("m-1--cpu1--b8"), signal.SIGKILL)
        wait_until(lambda: server.revivals == ["m-1--cpu1--b8"], "not revived")
        answered_again(server, plan, own)
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: len(server.restarts) == 1, "not restarted")
        answered_again(server, plan, own)
        server.check()


def test_why_a_server_that_is_started_again_cannot_load_is_told(ensemble, tmp_path):
    own = ensemble.of("uint8", tmp_path)
    plan = own.plan((0, 0, 8), (1, 1, 8), (2, 0, 8))
    broken = Path(plan.members[1].onnx)  # the same file as the server's
    content = broken.read_bytes()
    with TritonServer() as server:
        server.apply(plan)
        broken.write_bytes(content[:100])
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: len(server.incidents) > 1, "not told")
        broken.write_bytes(content)
        answered_again(server, plan, own)
        told = server.incidents
    assert told[0] == "the server was killed by signal 9; it is started again"
    why = r"m-1--cpu1--b8: load: .*: the server is ended, and started again"
    assert all(re.fullmatch(why, each) for each in told[1:])


def test_a_server_that_is_killed_while_it_loads_keeps_nobody_waiting(plan, ensemble):
    """A model's process that was just started waits for a dead server for ever, and holds the loader's connection."""
    with TritonServer() as server, ThreadPoolExecutor(1) as pool:
        applied = pool.submit(server.apply, plan)
        wait_until(lambda: len(server.processes()) > 1, "no model's process")
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(ServingError):
            applied.result(SECONDS)
        wait_until(server.live, "not restarted")
        server.apply(plan)
        answered_again(server, plan, ensemble)


@pytest.mark.parametrize("later", [0.0, 0.1, 0.2, 0.4])
def test_a_member_that_is_killed_while_it_loads_is_told_or_loaded_again(plan, ensemble, later):
    """At any moment: Triton never learns of it, or refuses the load, or the first request, or it is just loaded.

    Where it is not loaded again at once, the server is ended sooner or later and started again.
    """
    other = ensemble.plan((0, 0, 8), (1, 1, 8), (2, 0, 8))
    with TritonServer() as server, ThreadPoolExecutor(1) as pool:
        server.apply(plan)
        applied = pool.submit(server.apply, other)
        wait_until(lambda: kill_stub_of(server, "m-1--cpu1--b8", later), "no process")
        told = applied.exception(SECONDS)
        if isinstance(told, StuckError):
            assert re.match(
                r".*\bm-1--cpu1--b8\b.*: its process was killed by signal 9 before it could answer", str(told)
            )
            wait_until(lambda: len(server.restarts) > 0, "not started again")
        elif told is not None:
            assert isinstance(told, ServingError)
            assert re.search(r"\bm-1--cpu1--b8\b.* is not healthy", str(told))
        answered_again(server, plan, ensemble)
        served, not_served = ("m-1--cpu1--b8", "m-1--cpu1--b128")[:: 1 if told is None else -1]
        wait_until(lambda: processes.alive(server.stub(served) or 0), "not loaded again")
        assert server.stub(not_served) is None


def test_a_member_whose_process_cannot_start_is_told_with_its_own_words(plan, monkeypatch):
    no_process_starts(monkeypatch)
    with TritonServer() as server, ThreadPoolExecutor(1) as pool:
        workers = (Worker(member=0, device="cpu0", batch_size=8),)
        single = plan.model_copy(update={"members": plan.members[:1], "workers": workers})
        applied = pool.submit(server.apply, single)
        with pytest.raises(StuckError) as told:
            applied.result(SECONDS)
    first, *words = str(told.value).splitlines()
    assert first == "m-0--cpu0--b8: its process ended with exit code 127 before it could answer"
    assert words == ["stub: error while loading shared libraries: libpython3.so"]


def test_a_member_that_does_not_answer_in_time_fails_its_requests(server, plan, ensemble):
    server.apply(plan.model_copy(update={"answering": Answering(deadline_seconds=0.2)}))
    slow = ensemble.samples(1000)
    slow[700] = 190
    with pytest.raises(ServingError, match=r"member m-\d: no answer within 0.2 s"):
        predict(server.url, plan.name, slow)
    server.apply(plan)
    answered_again(server, plan, ensemble)


def test_a_member_that_is_stopped_fails_its_requests(server, plan, ensemble):
    server.apply(plan.model_copy(update={"answering": Answering(deadline_seconds=0.2)}))
    stopped = server.stub("m-1--cpu1--b128")
    os.kill(stopped, signal.SIGSTOP)
    try:
        with pytest.raises(ServingError, match="member m-1"):
            predict(server.url, plan.name, ensemble.samples(1000))
    finally:
        os.kill(stopped, signal.SIGCONT)
    server.apply(plan)
    answered_again(server, plan, ensemble)


def test_nothing_is_left_when_the_server_is_stopped(plan, monkeypatch):
    monkeypatch.setenv(CHOICE, "python")  # the front model is a process, too
    with TritonServer() as server:
        server.apply(plan)
        pids = [process.pid for process in server.processes()]
        prefix = next(name for name in shared_memory_of(os.getpid())).rsplit("-", 5)[0]
        assert len(pids) == 1 + len(plan.workers) + 1
    assert not any(processes.alive(pid) for pid in pids)
    assert [name for name in shared_memory_of(os.getpid()) if name.startswith(prefix)] == []


@pytest.mark.parametrize("averaging", ["native", "python"])
def test_what_is_in_flight_is_answered_when_the_server_is_stopped(plan, ensemble, averaging, monkeypatch):
    monkeypatch.setenv(CHOICE, averaging)
    monkeypatch.setattr(module, "DRAIN_SECONDS", SECONDS)
    slow = ensemble.samples(200)
    slow[:, 0] = 101
    with ThreadPoolExecutor(2) as pool:
        with TritonServer() as server:
            server.apply(plan)
            before = computed(server)
            asked = [pool.submit(ask, server.url, plan.name, slow) for _ in range(2)]
            wait_until(lambda: computed(server) > before + 0.1, "no work")
            assert not any(each.done() for each in asked)
        for each in asked:
            np.testing.assert_allclose(each.result(SECONDS), ensemble.expected(slow), atol=1e-6)
    assert server.incidents == []


@pytest.mark.parametrize("when", ["loading", "loaded"])
def test_nothing_is_left_when_the_owner_is_killed(plan, when, monkeypatch):
    monkeypatch.setenv(CHOICE, "python")

    def group() -> list[int]:
        return [member.pid for member in processes.group(leader) if processes.alive(member.pid)]

    command = [sys.executable, "-c", OWNER, plan.model_dump_json(by_alias=True)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        leader = int(owner.stdout.readline())
        if when == "loading":
            wait_until(lambda: len(group()) > 1, "no model's process")
        else:
            assert owner.stdout.readline() == "loaded\n"
            assert len(group()) == 1 + len(plan.workers) + 1
        owner.kill()
    wait_until(lambda: group() == [], "processes outlive their owner")
    with TritonServer():  # the next server sweeps what the kill left
        assert shared_memory_of(owner.pid) == []
        assert list(Path(tempfile.gettempdir()).glob(f"ensemble-*-{owner.pid}-*")) == []


def test_a_port_in_use_is_told(server):
    with pytest.raises(ServingError, match="does not start"), TritonServer(Ports(http=server.ports.http)):
        pass
