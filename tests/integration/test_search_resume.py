"""`ensemble train` on real digits, killed at random moments and continued: on a folder and on S3."""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ensemble_core.api.documents import load_documents
from ensemble_core.library import names
from ensemble_core.library.library import Library
from ensemble_core.library.records import Rung
from ensemble_core.library.store import open_store
from ensemble_core.report import END_SECONDS
from ensemble_trainer.proposals import Proposer
from ensemble_trainer.search import stopping_rule
from ensemble_trainer.seeds import hashed
from ensemble_trainer.space import search_space

NAME = "digits"
TRIALS = 12
DEADLINE = 240.0  # seconds for any one wait
TINY = {
    "batchSize": (64, 128),
    "stemFilters": (2, 4),
    "stageFilters": (2, 4),
    **{f"blocksStage{stage}": (1, 1) for stage in range(1, 5)},
}

pytestmark = pytest.mark.timeout(900)


def write_spec(file: Path, storage: dict[str, Any], **changes: Any) -> Path:
    spec = {
        "library": {"storage": storage},
        "dataset": {"builtin": "digits"},
        "trainer": {"maxEpochs": 3},
        "parallelTrialCount": 2,
        "maxTrialCount": TRIALS,
        "parameters": [
            {"name": name, "parameterType": "int", "feasibleSpace": {"min": low, "max": high}}
            for name, (low, high) in TINY.items()
        ],
        **changes,
    }
    head = {"apiVersion": "ensemble-operator.io/v1alpha1", "kind": "HPOSearch", "metadata": {"name": NAME}}
    file.write_text(yaml.safe_dump({**head, "spec": spec}))
    return file


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("ENSEMBLE_CACHE", str(tmp_path / "cache"))
    if request.param == "folder":
        return {"path": str(tmp_path / "library")}
    return {"s3": {"bucket": request.getfixturevalue("s3").name, "prefix": "libraries/digits"}}


@contextlib.contextmanager
def training(spec: Path, log: Path, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """A running `ensemble train`; killed at the end if it still runs."""
    command = [sys.executable, "-m", "ensemble_core.cli", "train", "--spec", str(spec), *more]
    with log.open("ab") as output, subprocess.Popen(command, stderr=output, stdout=output) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(condition: Callable[[], bool], what: Callable[[], str]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


def opened(spec: Path) -> Library:
    return Library.open(open_store(load_documents(spec).search().spec.library.storage))


def recorded(spec: Path) -> int:
    """Rungs recorded so far by all attempts."""
    storage = load_documents(spec).search().spec.library.storage
    return sum("/rung-" in path for path in open_store(storage).list("trials/"))


def wait_for_rungs(spec: Path, count: int, process: subprocess.Popen[bytes], log: Path) -> None:
    wait_until(lambda: recorded(spec) >= count or process.poll() is not None, log.read_text)


def descendants(root: int) -> dict[int, str]:
    """Living processes below `root`, with the first word of their command line."""
    parents, titles = {}, {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = Path("/proc", entry, "stat").read_text()
            titles[int(entry)] = Path("/proc", entry, "cmdline").read_bytes().split(b"\0")[0].decode()
        except OSError:
            continue
        state, parent = stat.rpartition(")")[2].split()[:2]
        if state != "Z":
            parents[int(entry)] = int(parent)
    below = {root}
    while more := {process for process, parent in parents.items() if parent in below} - below:
        below |= more
    return {process: titles[process] for process in below - {root}}


def kill_one(root: int, title: str) -> None:
    """SIGKILL to the first process below `root` of that title; none if it has just ended."""
    for process, found in sorted(descendants(root).items()):
        if title in found:
            os.kill(process, signal.SIGKILL)
            return


def living(process: int) -> bool:
    try:
        return Path("/proc", str(process), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def listening(processes: Iterable[int]) -> dict[str, str]:
    """Addresses, as `/proc/net/tcp` and `tcp6` write them, on which these processes accept connections; by inode."""
    inodes = set()
    for process in processes:
        with contextlib.suppress(OSError):  # it has ended
            for link in Path("/proc", str(process), "fd").iterdir():
                with contextlib.suppress(OSError):
                    inodes.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return {line[9]: line[1].partition(":")[0] for line in lines if line[3] == "0A" and line[9] in inodes}


def check_library(spec_file: Path) -> None:
    """Everything that an interrupted search must share with an uninterrupted one."""
    document = load_documents(spec_file).search()
    library = opened(spec_file)
    assert library.verify() == []
    assert [record.id for record in library.models()] == [f"{NAME}-{trial:04d}" for trial in range(TRIALS)]
    claims = library.claims(NAME)
    proposer = Proposer(document.spec.algorithm.name, document.spec.seed, search_space(document.spec))
    assert [claims[trial].parameters for trial in range(TRIALS)] == [
        proposer.propose(trial).parameters for trial in range(TRIALS)
    ]
    states = library.trials(NAME)
    for record in library.models():  # once finished, a trial is claimed by nobody
        assert record.origin.trial is not None
        assert claims[record.origin.trial].attempt == record.origin.attempt
        export = states[record.origin.trial].export
        assert export is not None
        assert export.attempt == record.origin.attempt
    check_rungs(library, document.spec)
    assert not [path for path in library.store.list("trials/") if "/checkpoint/" in path]


def check_rungs(library: Library, spec: Any) -> None:
    """Rungs are there once each, and their decisions are the rule's in the order of their sequence numbers."""
    rule, claims = stopping_rule(spec), library.claims(NAME)
    events: list[tuple[int, int, Rung]] = []
    for trial, rungs in library.rungs(NAME).items():
        assert [rung.goes_on for rung in rungs] == [True] * (len(rungs) - 1) + [False]
        epochs = [rung.epoch for rung in rungs]
        assert epochs == [1, 3][: len(epochs)]
        assert library.model(names.trial_id(NAME, trial)).epochs == epochs[-1]
        events += [(rung.sequence, claims[trial].bracket, rung) for rung in rungs]
    assert len({sequence for sequence, _, _ in events}) == len(events)
    earlier: dict[tuple[int, int], list[float | None]] = {}
    for _, bracket, rung in sorted(events, key=lambda event: event[0]):
        values = earlier.setdefault((bracket, rung.epoch), [])
        assert rung.goes_on == rule.goes_on(values, rung.value, rung.epoch)
        values.append(rung.value)


def test_killed_anywhere_it_continues(storage: dict[str, Any], tmp_path: Path) -> None:
    spec, log = write_spec(tmp_path / "search.yaml", storage), tmp_path / "log"
    rng = random.Random(hashed(sorted(storage)))
    with training(spec, log) as process:
        wait_for_rungs(spec, rng.randint(1, 3), process, log)
        kill_one(process.pid, "ray::Worker")  # its trial continues on a fresh one
        wait_for_rungs(spec, 4, process, log)
        assert process.poll() is None, log.read_text()
        kill_one(process.pid, "raylet/raylet")
        # Where Ray hands out nothing any more the command ends; what was on its way may also suffice.
        assert process.wait(DEADLINE) in (0, 1), log.read_text()
    finished = {record.id: record for record in opened(spec).models()}
    more = recorded(spec) + rng.randint(1, 3)
    with training(spec, log) as process:
        wait_for_rungs(spec, more, process, log)
        family = descendants(process.pid)
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        process.wait(DEADLINE)
        wait_until(lambda: not any(map(living, family)), lambda: f"{family} outlive their driver")
    with training(spec, log) as process:
        assert process.wait(DEADLINE) == 0, log.read_text()
    check_library(spec)
    after = {record.id: record for record in opened(spec).models()}
    assert {key: after[key] for key in finished} == finished
    attempts = opened(spec).newest_attempt(NAME)
    with training(spec, log) as process:
        assert process.wait(DEADLINE) == 0
    assert opened(spec).newest_attempt(NAME) == attempts  # nothing to do, nothing begun


def test_an_old_driver_that_wakes_up_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENSEMBLE_CACHE", str(tmp_path / "cache"))
    spec = write_spec(tmp_path / "search.yaml", {"path": str(tmp_path / "library")})
    old_log, log = tmp_path / "old", tmp_path / "log"
    with training(spec, old_log) as old:
        wait_for_rungs(spec, 2, old, old_log)
        old.send_signal(signal.SIGSTOP)
        assert old.poll() is None, old_log.read_text()
        with training(spec, log) as new:
            assert new.wait(DEADLINE) == 0, log.read_text()
        check_library(spec)
        library = opened(spec)
        before = (library.digest(), library.trials(NAME))
        old.send_signal(signal.SIGCONT)
        assert old.wait(DEADLINE) == 3, old_log.read_text()
    assert "has taken over" in old_log.read_text()
    assert (library.digest(), library.trials(NAME)) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_ends_at_once_and_leaves_no_process(
    number: signal.Signals, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENSEMBLE_CACHE", str(tmp_path / "cache"))
    spec, log = write_spec(tmp_path / "search.yaml", {"path": str(tmp_path / "library")}), tmp_path / "log"
    with training(spec, log, "--report", f"file:{tmp_path}/report.json") as process:
        wait_for_rungs(spec, 1, process, log)
        family = descendants(process.pid)
        addresses = set(listening([process.pid, *family]).values())
        assert addresses  # nobody from outside may hand work to Ray
        assert addresses <= {"0100007F", "0000000000000000FFFF00000100007F"}
        process.send_signal(number)
        sent = time.monotonic()
        assert process.wait(DEADLINE) == code, log.read_text()
        assert time.monotonic() < sent + END_SECONDS + 1
        wait_until(lambda: not any(map(living, family)), lambda: f"{family} outlive their driver")
    check_not_judged(tmp_path / "report.json", note="interrupted")
    assert opened(spec).verify() == []


def test_terminated_while_ray_starts_it_ends_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENSEMBLE_CACHE", str(tmp_path / "cache"))
    spec, log = write_spec(tmp_path / "search.yaml", {"path": str(tmp_path / "library")}), tmp_path / "log"
    with training(spec, log, "--report", f"file:{tmp_path}/report.json") as process:
        wait_until(lambda: any("gcs_server" in title for title in descendants(process.pid).values()), log.read_text)
        family = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        assert process.wait(DEADLINE) == 143, log.read_text()
        assert time.monotonic() < sent + END_SECONDS + 1
        wait_until(lambda: not any(map(living, family)), lambda: f"{family} outlive their driver")
    check_not_judged(tmp_path / "report.json", note="interrupted")


def check_not_judged(report: Path, note: str = "") -> None:
    """What was cut off says nothing about the search: the operator starts it again."""
    told = json.loads(report.read_text())
    assert told["state"] == "Running"
    assert "error" not in told
    assert note in told["progress"]["note"]


# --- on a cluster ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def ray_node(log: Path, *arguments: str) -> Iterator[None]:
    """A node of a Ray cluster, with all its processes; the block begins when it runs and ends by its sudden death."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--object-store-memory=80000000"]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    with contextlib.ExitStack() as stack:
        for _ in range(5):  # Ray itself gives up after 30 s, which a busy machine may exceed
            output = stack.enter_context(log.open("wb"))
            process = subprocess.Popen([*command, *arguments], stdout=output, stderr=output, env=environment)
            stack.callback(kill_whole, process)
            wait_until(
                lambda p=process: "Ray runtime started" in log.read_text() or p.poll() is not None, log.read_text
            )
            if process.poll() is None:
                break
        assert process.poll() is None, log.read_text()
        yield


def kill_whole(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a process and all below it."""
    for one in (process.pid, *descendants(process.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    process.wait()


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Callable[[], contextlib.AbstractContextManager[str]]]:
    """Starts the head of a cluster on which no trial may run; gives its address."""
    folders: list[str] = []

    @contextlib.contextmanager
    def started() -> Iterator[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        folders.append(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short: sockets lie in it
        options = ("--head", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={folders[-1]}")
        with ray_node(tmp_path / f"head-{len(folders)}", *options, f"--port={port}", "--node-ip-address=127.0.0.1"):
            yield f"127.0.0.1:{port}"

    yield started
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.nightly
def test_on_a_cluster_nodes_come_and_go_until_its_head_dies(
    head: Callable[[], contextlib.AbstractContextManager[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENSEMBLE_CACHE", str(tmp_path / "cache"))
    # Its ports are open to the network; nobody else may hand it work.
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    spec, log = write_spec(tmp_path / "search.yaml", {"path": str(tmp_path / "library")}), tmp_path / "log"
    report = tmp_path / "report.json"

    def node(name: str, address: str) -> contextlib.AbstractContextManager[None]:
        return ray_node(tmp_path / name, f"--address={address}", "--num-cpus=1")

    with head() as address, training(spec, log, "--ray", address, "--report", f"file:{report}") as process:
        waits = "waits for 1 CPU per trial (spec.resourcesPerTrial); the cluster's largest node has 0 CPUs"
        wait_until(lambda: waits in log.read_text(), log.read_text)
        wait_until(lambda: waits in json.loads(report.read_text())["progress"]["note"], report.read_text)
        with node("first", address):
            wait_until(lambda: "1 of 2 trials (spec.parallelTrialCount) fit" in log.read_text(), log.read_text)
            with node("second", address):
                wait_for_rungs(spec, 3, process, log)
            wait_for_rungs(spec, recorded(spec) + 3, process, log)  # after the sudden death of the second
            assert process.poll() is None, log.read_text()
            check_not_judged(report)
            kill_cluster_of(address)
            assert process.wait(DEADLINE) not in (0, 2, 3), log.read_text()
    check_not_judged(report)
    finished = {record.id for record in opened(spec).models()}
    with (
        head() as address,
        node("third", address),
        training(spec, log, "--ray", address, "--report", f"file:{report}") as process,
    ):
        assert process.wait(DEADLINE) == 0, log.read_text()
    check_library(spec)
    told = json.loads(report.read_text())
    assert told["state"] == "Succeeded"
    assert told["result"]["summary"]["attempt"] == 2
    assert told["result"]["digest"] == told["result"]["summary"]["libraryDigest"] == opened(spec).digest()
    assert finished <= {record.id for record in opened(spec).models()}
    assert opened(spec).failures(NAME) == {}


def kill_cluster_of(address: str) -> None:
    """SIGKILL to the head's own processes."""
    for process, title in descendants(os.getpid()).items():
        with contextlib.suppress(OSError):
            line = Path("/proc", str(process), "cmdline").read_bytes().decode()
            if "gcs_server" in title or ("raylet/raylet" in title and "--head" in line):
                os.kill(process, signal.SIGKILL)


FAILING = """
import argparse, json, os, signal, sys
from ensemble_core.report import run_reported
from ensemble_trainer.commands.train import train
from ensemble_trainer.worker import resnet_run

def make_run(parameters, dataset, trial, spec):
    if trial == 0:
        raise MemoryError("no room for the weights")
    if trial == 1:
        raise ValueError("bad luck" * 2000)
    if trial == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    run = resnet_run(parameters, dataset, trial, spec)
    if trial == 3:
        for weights in run.network.parameters():
            weights.data.fill_(float("nan"))
    return run

arguments = argparse.Namespace(spec=sys.argv[1], report=f"file:{sys.argv[2]}", name=None, ray=None)
sys.exit(run_reported(arguments, "train", lambda report: train(arguments, report, make_run)))
"""


def run_failing(tmp_path: Path, **changes: Any) -> tuple[int, dict[str, Any], str]:
    """Six trials of which four fail; exit code, report and log."""
    (tmp_path / "failing.py").write_text(FAILING)
    storage = {"path": str(tmp_path / "library")}
    spec = write_spec(tmp_path / "search.yaml", storage, maxTrialCount=6, algorithm={"name": "random"}, **changes)
    command = [sys.executable, str(tmp_path / "failing.py"), str(spec), str(tmp_path / "report.json")]
    done = subprocess.run(command, capture_output=True, timeout=DEADLINE, check=False)
    return done.returncode, json.loads((tmp_path / "report.json").read_text()), done.stderr.decode()


def test_failing_trials_are_recorded_and_the_others_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENSEMBLE_CACHE", str(tmp_path / "cache"))
    code, report, log = run_failing(tmp_path, maxFailedTrialCount=1)
    assert (code, report["state"]) == (1, "Failed"), log
    assert "more than maxFailedTrialCount 1" in report["error"]["message"]
    library = opened(tmp_path / "search.yaml")
    assert len(library.failures(NAME)) == 2
    code, report, log = run_failing(tmp_path, maxFailedTrialCount=4)
    assert (code, report["state"]) == (0, "Succeeded"), log
    failures, claims = library.failures(NAME), library.claims(NAME)
    reasons = {trial: failure.reason for trial, failure in failures.items()}
    assert reasons == {0: "OutOfMemory", 1: "Raised", 2: "Lost", 3: "Diverged"}
    assert all(failure.parameters == claims[trial].parameters for trial, failure in failures.items())
    assert failures[0].message == "MemoryError: no room for the weights"
    assert failures[1].message.startswith("ValueError: bad luck")
    assert "make_run" in failures[1].message
    assert len(failures[1].message) <= 4096
    assert [record.id for record in library.models()] == ["digits-0004", "digits-0005"]
    summary = report["result"]["summary"]
    assert summary["trials"] == {"total": 6, "pending": 0, "running": 0, "succeeded": 2, "earlyStopped": 0, "failed": 4}
    assert summary["best"]["modelId"] in ("digits-0004", "digits-0005")
    assert report["progress"]["done"] == report["progress"]["total"] == 6
