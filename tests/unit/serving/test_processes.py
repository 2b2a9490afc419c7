from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from ensemble_core.serving import launch, processes
from ensemble_core.serving.installation import Ports
from ensemble_core.serving.process import choose, in_use

PARENT = """
import os, subprocess, sys
command = [sys.executable, "-c", sys.argv[2]]
subprocess.run([sys.executable, "-IS", sys.argv[1], str(os.getpid()), *command], start_new_session=True)
"""
LEADER = """
import os, subprocess, sys, time
member = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(os.getpid(), member.pid, flush=True)
time.sleep(600)
"""


def wait_until_dead(pid: int) -> None:
    deadline = time.monotonic() + 30
    while processes.alive(pid):
        assert time.monotonic() < deadline, f"{pid} lives"
        time.sleep(0.01)


@pytest.mark.parametrize("killed", ["parent", "leader"])
def test_a_launched_process_dies_with_its_parent_and_its_group_with_it(killed):
    command = [sys.executable, "-c", PARENT, launch.__file__, LEADER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        leader, member = map(int, parent.stdout.readline().split())
        assert processes.alive(leader)
        assert processes.alive(member)
        os.kill({"parent": parent.pid, "leader": leader}[killed], signal.SIGKILL)
        assert parent.stdout.read() == ""  # all who had the other end have ended, the guard too
    wait_until_dead(leader)
    wait_until_dead(member)


def test_nothing_is_launched_when_the_parent_is_gone():
    command = [sys.executable, "-IS", launch.__file__, "1", sys.executable, "-c", "print('launched')"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (1, "")


STUCK = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", ""])
print(child.pid, flush=True)
time.sleep(600)
"""
IMPATIENT = """
import sys
sys.path.insert(0, sys.argv[1])
import launch
launch.LOOK_SECONDS = launch.UNREAPED_SECONDS = 0.1
launch.main("-", sys.argv[2:])
"""


def test_a_server_that_does_not_reap_a_dead_process_is_ended():
    launched = [sys.executable, "-c", IMPATIENT, os.path.dirname(launch.__file__), sys.executable, "-c", STUCK]
    with subprocess.Popen(launched, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as server:
        assert server.wait(60) == -signal.SIGKILL
        assert launch.STUCK.encode() in server.stderr.read()


def test_a_server_that_reaps_lives_on():
    reaps = STUCK.replace("print(", "child.wait(); print(").replace("time.sleep(600)", "time.sleep(1)")
    launched = [sys.executable, "-c", IMPATIENT, os.path.dirname(launch.__file__), sys.executable, "-c", reaps]
    with subprocess.Popen(launched, stdout=subprocess.PIPE, start_new_session=True) as server:
        assert server.wait(60) == 0


@pytest.mark.parametrize(("code", "words"), [("7", "ended with exit code 7"), ("", "was killed by signal 9")])
def test_a_dead_process_tells_how_it_ended_until_it_is_reaped(code, words):
    program = f"raise SystemExit({code})" if code else "import os; os.kill(os.getpid(), 9)"
    with subprocess.Popen([sys.executable, "-c", program]) as child:
        wait_until_dead(child.pid)
        (dead,) = (each for each in processes.dead_children(os.getpid()) if each.pid == child.pid)
        assert processes.ending(dead.code) == words
    assert child.pid not in [each.pid for each in processes.dead_children(os.getpid())]


def test_a_zombie_is_dead():
    child = subprocess.Popen([sys.executable, "-c", ""])
    wait_until_dead(child.pid)
    assert processes.process(child.pid).state == "Z"
    child.wait()
    assert processes.process(child.pid) is None


def test_a_group_has_its_members():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    try:
        assert [member.pid for member in processes.group(child.pid)] == [child.pid]
        assert os.getpid() in [member.pid for member in processes.group(os.getpgrp())]
    finally:
        child.kill()
        child.wait()


NO_TEXT = """
import time
open("/proc/self/comm", "wb").write(b"\\xff")
print("named", flush=True)
time.sleep(600)
"""


def test_processes_whose_names_and_arguments_are_no_text_are_seen():
    command = [sys.executable, "-c", NO_TEXT, b"\xff"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as other:
        try:
            assert other.stdout.readline() == b"named\n"
            assert processes.stubs("nobody", frozenset({"m"})) == {}
            assert [member.pid for member in processes.group(other.pid)] == [other.pid]
        finally:
            other.kill()


def test_the_machine_was_busy_at_least_as_long_as_this_process():
    assert processes.busy_seconds() > processes.process(os.getpid()).cpu_seconds > 0


WORKS = """
import subprocess, sys
subprocess.run([sys.executable, "-c", "import time\\nwhile time.process_time() < 0.3: pass"])
print("worked", flush=True)
sys.stdin.read()
"""


def test_what_a_process_that_has_ended_worked_stays_with_the_group_that_reaped_it():
    with subprocess.Popen(
        [sys.executable, "-c", WORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as leader:
        leader.stdout.readline()
        (left,) = processes.group(leader.pid)
        leader.stdin.close()
    assert left.cpu_seconds >= 0.3


def test_free_ports_arechoose_for_zeros():
    chosen = choose(Ports(http=0, grpc=4242, metrics=0))
    assert chosen.grpc == 4242
    assert len({chosen.http, chosen.metrics, 0}) == 3


@pytest.mark.parametrize("listening", [True, False])
def test_a_port_is_in_use_while_somebody_listens(listening):
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        port = somebody.getsockname()[1]
        if not listening:
            somebody.close()
        assert in_use("127.0.0.1", port) is listening
