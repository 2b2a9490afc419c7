"""`ensemble run` is interrupted again and again, everywhere, and the same command continues until it is done.

A journey is a series of runs of one document into one output folder. In each a process is killed, or the run is
interrupted as by Ctrl-C, at a point that files of the library or reports tell. What a run had written when it was
killed must be there, untouched, after all later ones.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ensemble_core import cli
from ensemble_core.api.documents import load_documents
from ensemble_core.library import Library, names, open_store
from ensemble_core.library.records import ModelRecord, Rung
from ensemble_core.library.store import Store
from ensemble_core.runner.relocate import relocate

REAPER = Path(__file__).with_name("until_all_ended.py")

REACHED_SECONDS = 240.0  # for a point to be reached
GONE_SECONDS = 60.0  # for all processes of an interrupted run to end
INTERRUPTED_SECONDS = 30.0  # for a run that was interrupted by Ctrl-C to end
POLL_SECONDS = 0.1
TRIALS = 6
INTERRUPTED = "interrupted; the same command continues"

DOCUMENT = """
apiVersion: ensemble-operator.io/v1alpha1
kind: HPOSearch
metadata: {{name: tiny}}
spec:
  library: {{storage: {storage}}}
  dataset: {{builtin: digits, split: {{validationPercent: 25, heldoutPercent: 25, seed: 0}}}}
  trainer: {{family: resnet, maxEpochs: 3}}
  algorithm: {{name: async-hyperband, settings: {{graceEpochs: 1, reductionFactor: 3, brackets: 1}}}}
  parallelTrialCount: 2
  maxTrialCount: 6
  seed: 20  # of which the first two models are large and the others small: the first to come are trained longest
  resourcesPerTrial: {{cpu: 1}}
  parameters:
    - {{name: learningRate, parameterType: double, feasibleSpace: {{min: 0.002, max: 0.003}}}}
    - {{name: batchSize, parameterType: int, feasibleSpace: {{min: 4, max: 4}}}}
    - {{name: l2, parameterType: double, feasibleSpace: {{min: 0.0, max: 0.0001}}}}
    - {{name: convolution, parameterType: categorical, feasibleSpace: {{list: [v1]}}}}
    - {{name: activation, parameterType: categorical, feasibleSpace: {{list: [relu]}}}}
    - {{name: stemFilters, parameterType: int, feasibleSpace: {{min: 4, max: 4}}}}
    - {{name: stageFilters, parameterType: discrete, feasibleSpace: {{list: ["2", "6"]}}}}
    - {{name: blocksStage1, parameterType: int, feasibleSpace: {{min: 1, max: 1}}}}
    - {{name: blocksStage2, parameterType: int, feasibleSpace: {{min: 1, max: 1}}}}
    - {{name: blocksStage3, parameterType: int, feasibleSpace: {{min: 1, max: 1}}}}
    - {{name: blocksStage4, parameterType: int, feasibleSpace: {{min: 1, max: 1}}}}
    - {{name: maxZoom, parameterType: double, feasibleSpace: {{min: 0.0, max: 0.1}}}}
    - {{name: maxTranslation, parameterType: double, feasibleSpace: {{min: 0.0, max: 0.1}}}}
    - {{name: maxShear, parameterType: double, feasibleSpace: {{min: 0.0, max: 0.1}}}}
    - {{name: maxChannelShift, parameterType: double, feasibleSpace: {{min: 0.0, max: 0.1}}}}
    - {{name: maxRotationDegrees, parameterType: int, feasibleSpace: {{min: 0, max: 10}}}}
---
apiVersion: ensemble-operator.io/v1alpha1
kind: EnsembleSelection
metadata: {{name: tiny}}
spec:
  sources: [{{hpoSearchName: tiny}}]
  cost: {{engine: onnxruntime, coresPerDevice: 1, batchSize: 32}}
  budgets:  # for small models alone, and for all
    - {{name: small, parametersMillions: 0.01}}
    - {{name: large, parametersMillions: 1.0}}
---
apiVersion: ensemble-operator.io/v1alpha1
kind: EnsembleDeployment
metadata: {{name: tiny}}
spec:
  selectionRef: {{name: tiny, budgetName: large}}
  devices: [{{name: cores, type: cpu, count: 2, coresPerDevice: 1}}]
  optimization: {{algorithm: bounded-greedy, maxBenchmarks: 3, maxNeighs: 2, maxIter: 1, secondsPerBenchmark: 0.2}}
  serving: {{segmentSize: 128, httpPort: {ports[0]}, grpcPort: {ports[1]}, metricsPort: {ports[2]}}}
"""


# --- processes ------------------------------------------------------------------------------------------------------


class Process(NamedTuple):
    pid: int
    arguments: tuple[str, ...]

    @property
    def program(self) -> str:
        return self.arguments[0].rpartition("/")[2] if self.arguments else ""

    def verb(self) -> str:
        """Of an `ensemble` command, else empty."""
        words = [*self.arguments, "", ""]
        return words[words.index("ensemble_core.cli") + 1] if "ensemble_core.cli" in words else ""


def everyone() -> dict[int, int]:
    """The parent of each process that has not ended."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if fields[0] not in "ZX":
                parents[int(folder.name)] = int(fields[1])
    return parents


def process(pid: int) -> Process:
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        text = ""
    return Process(pid, tuple(text.rstrip("\0").split("\0")))


def below(root: int) -> list[Process]:
    """All descendants of a process that have not ended."""
    parents = everyone()
    found, generation = [], {root}
    while generation := {pid for pid, parent in parents.items() if parent in generation}:
        found += sorted(generation)
    return [process(pid) for pid in found]


def running(text: str) -> list[Process]:
    """The processes of the whole machine with a text among their arguments."""
    return [each for each in map(process, everyone()) if any(text in word for word in each.arguments)]


Matches = Callable[[Process], bool]


def command(verb: str) -> Matches:
    return lambda each: each.verb() == verb


def program(name: str) -> Matches:
    return lambda each: each.program == name


def measurement(each: Process) -> bool:
    """A process that measures one model."""
    return "ensemble_core.profiling.child" in each.arguments


def trial(each: Process) -> bool:
    """A Ray worker with a trial in its hands."""
    return re.match(r"ray::Worker\.(advance|finish)", each.arguments[0]) is not None


def ray(each: Process) -> bool:
    return each.program in ("raylet", "gcs_server") or each.arguments[0].startswith("ray::")


def anything(_: Process) -> bool:
    return True


# --- a run ----------------------------------------------------------------------------------------------------------


class Ended(Exception):  # noqa: N818 - it names what happened
    """A run ended before something happened."""


@dataclass
class Run:
    """One start of the command, with everything that descends from it."""

    reaper: subprocess.Popen[bytes]
    log: Path
    output: Path
    store: Store
    began: float
    before: frozenset[str]  # paths of the library when it began
    may_end: bool = False  # because of what was killed
    killed: set[int] = field(default_factory=set)
    seen: dict[int, Process] = field(default_factory=dict)

    def find(self, matches: Matches) -> list[Process]:
        """Its processes that match, except those that were killed here."""
        everything = below(self.reaper.pid)
        # One that is ending has no arguments any more.
        self.seen.update({each.pid: each for each in everything if each.arguments[0]})
        return [each for each in everything if each.arguments[0] and matches(each) and each.pid not in self.killed]

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def report(self, name: str) -> dict[str, Any]:
        """A stage's report, empty unless it is of this run."""
        path = self.output / "reports" / f"{name}.json"
        try:
            fresh = path.stat().st_mtime > self.began
            content: dict[str, Any] = json.loads(path.read_text()) if fresh else {}
        except FileNotFoundError:
            return {}
        return content

    def new(self, prefix: str, pattern: str = "") -> list[str]:
        """Files of the library that were not there when this run began."""
        return [path for path in self.store.list(prefix) if path not in self.before and re.search(pattern, path)]

    def until(self, what: str, reached: Callable[[], Any], seconds: float = REACHED_SECONDS) -> Any:
        """What `reached` returns, once it is true; Ended if the run has ended before."""
        deadline = time.monotonic() + seconds
        while not (found := reached()):
            if self.reaper.poll() is not None:
                raise Ended(what)
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}\n{self.said()}"
            time.sleep(POLL_SECONDS)
        return found

    def kill(self, matches: Matches, number: int) -> None:
        """Signal the first process that matches, once there is one."""

        def hit() -> bool:
            with suppress(IndexError, ProcessLookupError):  # it may just have ended
                victim = self.find(matches)[0].pid
                os.kill(victim, number)
                self.killed.add(victim)
                return True
            return False

        self.until("a process to kill", hit)

    def end(self, seconds: float) -> int:
        """Wait until nothing of it is left; its exit code."""
        deadline = time.monotonic() + seconds
        while self.reaper.poll() is None:
            if time.monotonic() > deadline:
                left = "\n".join(f"{each.pid} {' '.join(each.arguments)}" for each in self.find(anything))
                pytest.fail(f"after {seconds:g} s there still are:\n{left}\nIt said:\n{self.said()}")
            self.find(anything)
            time.sleep(POLL_SECONDS)
        assert running(str(self.output)) == []
        return self.reaper.returncode

    def abandon(self) -> None:
        """End whatever is left, after a failed assertion."""
        for each in below(self.reaper.pid):
            with suppress(ProcessLookupError):
                os.kill(each.pid, signal.SIGKILL)
        self.reaper.wait(GONE_SECONDS)


# --- where to interrupt ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """Where a run is interrupted.

    Args:
        name: For messages.
        reached: Whether it is time.
        victim: Which process is killed: the first that matches.
        signal: How.
        codes: What the run may end with; none if it must survive and go on to the next point.
        says: Words of what the user is told at the end.
        either: It may survive, and may end with exit code 1.
    """

    name: str
    reached: Callable[[Run], Any]
    victim: Matches
    signal: int = signal.SIGKILL
    codes: tuple[int, ...] = ()
    says: str = ""
    either: bool = False


def stored(prefix: str, count: int, pattern: str = "") -> Callable[[Run], Any]:
    """Once this run has written so many files."""
    return lambda run: len(run.new(prefix, pattern)) >= count


def exists(matches: Matches) -> Callable[[Run], Any]:
    return lambda run: run.find(matches)


def answers(run: Run) -> Any:
    """Once the endpoint is up; it is being checked from then on."""
    return run.report("serve").get("progress", {}).get("grpc")


RUNG = stored("trials/", 1, r"/rung-\d+\.json$")
RUNNER, TRITON, STUB = command("run"), program("tritonserver"), program("triton_python_backend_stub")
DEAD = 128 + signal.SIGKILL  # the code of a runner that was killed itself


def lost(verb: str) -> str:
    return f"`ensemble {verb}` was killed by signal 9; the same command continues"


TRAINING = (
    Point("Ctrl-C in training", RUNG, RUNNER, signal.SIGINT, (130,), INTERRUPTED),
    Point("a Ray worker", exists(trial), trial),
    # Without it Ray's workers and its driver may finish what they have, or notice.
    Point("the raylet", exists(trial), program("raylet"), either=True),
    Point("the train command", RUNG, command("train"), codes=(1,), says=lost("train")),
    Point("Ray's control store", exists(trial), program("gcs_server"), either=True),
)
PROFILING = (
    Point("the runner in profiling", stored("profiles/", 1), RUNNER, codes=(DEAD,)),
    Point("a measuring process", exists(measurement), measurement, codes=(1,), says="could not be measured"),
)
SELECTION = (
    Point("the select command", exists(command("select")), command("select"), codes=(1,), says=lost("select")),
)
ALLOCATION = (
    Point("the server in a benchmark", stored("benchmarks/", 1), TRITON),
    Point("a model's process in a benchmark", stored("benchmarks/", 2), STUB),
    Point("Ctrl-C in allocation", stored("benchmarks/", 3), RUNNER, signal.SIGINT, (130,), INTERRUPTED),
    Point("the allocate command", stored("benchmarks/", 1), command("allocate"), codes=(1,), says=lost("allocate")),
)
SERVING = (
    Point("the server in the endpoint's check", answers, TRITON, codes=(0, 1)),  # which may be over
    Point("the serve command", answers, command("serve"), codes=(1,), says=lost("serve")),
)

SHORT = (
    Point("the runner in training", RUNG, RUNNER, codes=(DEAD,)),
    Point("the profile command", stored("profiles/", 1), command("profile"), codes=(1,), says=lost("profile")),
    Point("the runner in allocation", stored("benchmarks/", 1), RUNNER, codes=(DEAD,)),
)
LONG = (*TRAINING, *PROFILING, *SELECTION, *ALLOCATION, *SERVING)
EVERYWHERE = (
    SHORT[0],
    *TRAINING,
    SHORT[1],
    *PROFILING,
    *SELECTION,
    *ALLOCATION,
    SHORT[2],
    Point("the runner before the endpoint is up", exists(command("serve")), RUNNER, codes=(DEAD,)),
    Point("the runner in the endpoint's check", answers, RUNNER, codes=(DEAD,)),
    *SERVING,
)


# --- a journey ------------------------------------------------------------------------------------------------------


class Written(NamedTuple):
    """A file of the library as it was at some time."""

    modified: float
    content: bytes


@dataclass
class Journey:
    """Runs of one document into one folder, and what they had written when they were interrupted."""

    folder: Path
    storage: str  # of the search, as in a document
    written: dict[str, Written] = field(default_factory=dict)
    seen: list[Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.document = self.folder / "tiny.yaml"
        self.output = self.folder / "output"
        self.document.write_text(DOCUMENT.format(storage=self.storage, ports=free_ports()))
        documents = relocate(load_documents(self.document), self.folder, self.output)
        self.store = open_store(documents.search("tiny").spec.library.storage)

    @contextmanager
    def start(self, *options: str) -> Iterator[Run]:
        """The command; whatever is left of it in the end is killed."""
        log = self.folder / f"{time.monotonic_ns()}.log"
        before = frozenset(self.store.list(""))
        words = ["-P", "-m", "ensemble_core.cli", "run", str(self.document), "--output", str(self.output), *options]
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        with log.open("wb") as output:
            reaper = subprocess.Popen(
                [sys.executable, str(REAPER), sys.executable, *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**kept, "ENSEMBLE_CACHE": str(self.folder / "cache")},
            )
        run = Run(reaper, log, self.output, self.store, time.time(), before)
        try:
            yield run
        finally:
            run.abandon()
            self.seen += run.seen.values()

    def travel(self, points: Sequence[Point]) -> None:
        """Run until all points have been passed."""
        left = list(points)
        while left:
            with self.start() as run:
                while left and self.interrupt(run, left):
                    pass
            self.check_intact()

    def interrupt(self, run: Run, left: list[Point]) -> bool:
        """Interrupt a run at the next point and drop that; whether the run goes on."""
        point = left[0]
        try:
            run.until(point.name, lambda: point.reached(run))
            run.kill(point.victim, point.signal)
        except Ended:
            assert run.may_end, f"ended before: {point.name}\n{run.said()}"
            check_end(run, Point("what may end a run", point.reached, point.victim, codes=(1,)))
            return False
        self.remember()
        left.pop(0)
        if not point.codes:
            run.may_end = run.may_end or point.either
            return True
        check_end(run, point)
        return False

    def finish(self) -> Run:
        """Run to the end."""
        with self.start() as run:
            code = run.end(REACHED_SECONDS)
            assert code == 0, run.said()
            assert "Traceback" not in run.said()
        return run

    def now(self) -> dict[str, Written]:
        """All files but checkpoints, which go when they have served."""
        entries = self.store.entries("")
        assert not [path for path in entries if "/." in f"/{path}"]
        lasting = [path for path in entries if "/checkpoint/" not in path]
        contents = self.store.read_many(lasting)
        return {path: Written(entries[path].modified, contents[path]) for path in lasting}

    def remember(self) -> None:
        self.written |= self.now()

    def check_intact(self) -> None:
        """Whatever was written before an interruption is there and was never written again."""
        now = self.now()
        assert [path for path, written in self.written.items() if not still_there(path, written, now.get(path))] == []
        states = Library.open(self.store).trials("tiny")
        for path in self.written:
            event = names.event_of(path)
            if event and event[3].startswith("rung-"):
                rung = Rung.model_validate_json(now[path].content)
                assert rung in states[event[1]].rungs, path


def still_there(path: str, before: Written, after: Written | None) -> bool:
    """Whether a file is as it was; allocations measure members at more batch sizes, and add these to their profiles."""
    if after is None or not path.startswith("profiles/"):
        return after == before
    old, new = (json.loads(written.content) for written in (before, after))
    return old["modelSha256"] == new["modelSha256"] and all(batch in new["batches"] for batch in old["batches"])


def check_end(run: Run, point: Point) -> None:
    """The run ends in time, leaves no process, and tells the user what the point demands, without a traceback."""
    code = run.end(INTERRUPTED_SECONDS if point.signal == signal.SIGINT else GONE_SECONDS)
    said = run.said()
    assert code in point.codes, f"{point.name}: {code}\n{said}"
    assert "Traceback" not in said, f"{point.name}:\n{said}"
    assert said.count(INTERRUPTED) == (point.signal == signal.SIGINT), f"{point.name}:\n{said}"
    # What was killed before may have ended the run at the very moment, and then that was told.
    assert point.says in said or run.may_end, f"{point.name}:\n{said}"


def free_ports() -> list[int]:
    """Ports for the endpoints, none of them in use now."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        return [each.getsockname()[1] for each in sockets]


def check_complete(journey: Journey) -> None:
    """Each trial has ended once, with every epoch trained and every model published, profiled and benchmarked once."""
    library = Library.open(journey.store)
    states, records = library.trials("tiny"), library.models()
    paths = journey.store.list("")
    assert len(states) == len(records) == TRIALS
    assert library.failures("tiny") == {}
    assert [record.origin.trial for record in records] == list(range(TRIALS))
    for record, state in zip(records, states.values(), strict=True):
        rungs, export = state.rungs, state.export
        assert record.epochs == rungs[-1].epoch
        assert not rungs[-1].goes_on
        assert export is not None
        assert export.attempt == record.origin.attempt
    trained = Counter((event[:2], event[3]) for event in map(names.event_of, paths) if event)
    assert {key: count for key, count in trained.items() if count > 1 and "rung-" in key[1]} == {}
    check_folders(records, paths)
    served = {member["modelId"] for found in library.results("allocations").values() for member in found["members"]}
    engines = Counter(path.split("/")[2] for path in paths if path.startswith("profiles/"))
    assert engines == {"onnxruntime": TRIALS, "openvino": len(served)}  # which is measured of what may be served
    benchmarks = library.results("benchmarks")
    assert all(content["throughput"]["samplesPerSecond"] > 0 for content in benchmarks.values())
    assert len(library.results("allocations")) == 3  # of the best single model and both budgets
    assert len(library.results("selections")) == 1
    assert not [path for path in paths if "/checkpoint/" in path]
    assert library.verify() == []
    assert cli.main(["library", "verify", journey.store.url]) == 0


def check_folders(records: Sequence[ModelRecord], paths: Sequence[str]) -> None:
    """A model has the folder of the attempt that published it; others are of attempts killed before they could."""
    for record in records:
        folders = {path.split("/")[2] for path in paths if path.startswith(f"models/{record.id}/")} - {"record.json"}
        assert str(record.origin.attempt) in folders
        assert max(map(int, folders)) == record.origin.attempt


def check_nothing_left(seen: Iterable[Process]) -> None:
    """Neither shared memory nor temporary folders of processes that were killed."""
    pids = {each.pid for each in seen}
    owned = re.compile(r"ensemble-\d+-(\d+)-")
    places = [*Path("/dev/shm").iterdir(), *Path(tempfile.gettempdir()).iterdir()]
    assert [str(p) for p in places if (match := owned.match(p.name)) and int(match[1]) in pids] == []
    clusters = {
        folder for each in seen for folder in re.findall(r"/tmp/ensemble-ray-[^/\0 ]+", "\0".join(each.arguments))
    }
    assert clusters
    assert [folder for folder in clusters if Path(folder).exists()] == []


def check_idle(journey: Journey) -> None:
    """Run again with nothing changed: nothing is trained, measured or written, and no Ray is started.

    The endpoint is kept up until Ctrl-C.
    """
    before = journey.now()
    with journey.start("--serve") as run:
        run.until("the endpoint is kept", lambda: "until Ctrl-C" in run.said())
        run.kill(RUNNER, signal.SIGINT)
        assert run.end(INTERRUPTED_SECONDS) == 0, run.said()
    assert journey.now() == before
    started = list(run.seen.values())
    assert [each for each in started if ray(each) or measurement(each)] == []
    assert len([each for each in started if TRITON(each)]) == 1  # the endpoint
    profiled = run.report("profile")["result"]["summary"]
    assert (profiled["measured"], profiled["known"]) == (0, TRIALS)
    assert run.said().count("nothing has changed") == 4  # the selection and three allocations


# --- the tests ------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(900)
def test_a_run_can_be_interrupted_anywhere(tmp_path: Path) -> None:
    journey = Journey(tmp_path, "{path: library}")
    journey.travel(LONG)
    journey.finish()
    journey.check_intact()
    check_complete(journey)
    check_nothing_left(journey.seen)
    check_idle(journey)


@pytest.mark.timeout(900)
def test_a_run_on_s3_can_be_interrupted(tmp_path: Path, s3: Any) -> None:
    journey = Journey(tmp_path, f"{{s3: {{bucket: {s3.name}, prefix: a/library, endpoint: '{s3.endpoint}'}}}}")
    journey.travel(SHORT)
    journey.finish()
    journey.check_intact()
    check_complete(journey)
    check_idle(journey)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_a_run_on_s3_can_be_interrupted_anywhere(tmp_path: Path, s3: Any) -> None:
    journey = Journey(tmp_path, f"{{s3: {{bucket: {s3.name}, prefix: a/library, endpoint: '{s3.endpoint}'}}}}")
    journey.travel(EVERYWHERE)
    journey.finish()
    journey.check_intact()
    check_complete(journey)
