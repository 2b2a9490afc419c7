"""`render`, `server` and `agent` as three processes on one folder, as the containers of a pod run them."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from ensemble_core.api.documents import load_documents
from ensemble_core.api.ensembleselection import BEST_SINGLE
from ensemble_core.commands import allocate
from ensemble_core.errors import UserError
from ensemble_core.library.library import Library
from ensemble_core.library.store import open_store
from ensemble_core.serving import exposition, processes, rendered
from ensemble_core.serving.client import connect, predict
from ensemble_core.serving.errors import ServingError
from ensemble_core.serving.installation import CHOICE, CONTROL_HEADER, Ports
from ensemble_core.serving.process import choose

pytestmark = pytest.mark.timeout(600)

SECONDS = 120  # for anything to happen
MANY = 500_000  # samples that are answered for seconds
ENSEMBLE = [str(Path(sys.executable).with_name("ensemble"))]
GROUP, AGENT_USER = 65532, 65531
# What it imports, also late, may be where only root can read.
AGENT = f"""
import argparse, encodings.idna, google.protobuf.descriptor_pb2, os
from ensemble_core.commands import agent
parser = argparse.ArgumentParser()
agent.add_arguments(parser)
arguments = parser.parse_args()
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid({GROUP})
    os.setuid({AGENT_USER})
agent.run(arguments)
"""


def _beside(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"pod_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


allocated = _beside("test_allocate_triton")
spec = allocated.spec  # documents beside a library of two selected models


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@dataclass
class Pod:
    """A rendered folder, and the processes that serve from it. Where root starts them, the agent is another user."""

    folder: Path
    ports: Ports
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.ports.grpc}"

    @property
    def key(self) -> dict[str, str]:
        return {CONTROL_HEADER: rendered.control_key(self.folder)}

    @property
    def plan(self) -> Any:
        return rendered.read(self.folder).plan

    def start(self, verb: str, command: list[str], *arguments: str) -> None:
        # A container has what its image has, and no home; the process leads all that is in it.
        kept = {name: os.environ[name] for name in ("PATH",) if name in os.environ}
        with (self.folder.parent / f"{verb}.log").open("ab") as log:
            self.running[verb] = subprocess.Popen(
                [*command, "--repository", str(self.folder), *arguments],
                # In Python, so that the front model is a process that can be killed.
                env={**kept, "HOME": "/nonexistent", CHOICE: "python"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_server(self) -> None:
        ports = zip(("http", "grpc", "metrics"), map(str, self.ports.numbers()), strict=True)
        numbers = [part for name, number in ports for part in (f"--{name}-port", number)]
        self.start("server", [*ENSEMBLE, "server"], "--address", "127.0.0.1", *numbers)

    def start_agent(self) -> None:
        report = f"file:{self.folder.parent}/report.json"
        command = [sys.executable, "-c", AGENT]
        self.start("agent", command, "--http-port", str(self.ports.http), "--report", report)

    def kill(self, verb: str) -> None:
        """As the container's end: no process of it is left."""
        process = self.running.pop(verb)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def report(self) -> dict[str, Any]:
        file = self.folder.parent / "report.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def progress(self) -> dict[str, Any]:
        return self.report().get("progress", {})

    def count(self, what: str) -> int:
        return int(self.progress()["summary"][what])

    def ask(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: str = "") -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.ports.http, timeout=60)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def ready(self) -> bool:
        """What the kubelet asks."""
        try:
            return self.ask("GET", f"/v2/models/{self.plan.name}/ready")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def stub(self, model: str) -> int | None:
        return processes.stubs(json.loads(self.ask("GET", "/v2")[1])["name"], frozenset({model})).get(model)

    def states(self) -> dict[str, str]:
        return {m["name"]: m["state"] for m in json.loads(self.ask("POST", "/v2/repository/index", self.key)[1])}


@pytest.fixture(scope="module")
def allocation(spec: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Report of `ensemble allocate --selection DIGEST`."""
    report = tmp_path_factory.mktemp("allocate") / "report.json"
    options = ("--spec", str(spec), "--selection", digest_of(spec), "--report", f"file:{report}")
    assert allocated.verb(allocate, *options) == 0
    return json.loads(report.read_text())


def digest_of(spec: Path) -> str:
    (result,) = (spec.parent / "library" / "selections").glob("*.json")
    return result.stem


def render(spec: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    given = {"--selection": digest_of(spec), "--output": str(folder), "--spec": str(spec), "--name": "tiny"}
    given |= dict(zip(options[::2], options[1::2], strict=True))
    command = [*ENSEMBLE, "render", *(part for pair in given.items() for part in pair)]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that the agent reaches; what is made in it is of the pod's group, as `fsGroup` has it."""
    with tempfile.TemporaryDirectory(prefix="pod-") as name:
        if os.geteuid() == 0:
            os.chown(name, -1, GROUP)
            os.chmod(name, 0o2770)
        yield Path(name)


@pytest.fixture(scope="module")
def pod(spec: Path, allocation: dict[str, Any], place: Path) -> Iterator[Pod]:
    """A pod that is ready; tests leave it so."""
    folder = place / "repository"
    for _ in range(2):  # an init container may run twice
        done = render(spec, folder)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
    started = Pod(folder, choose(Ports()))
    try:
        started.start_agent()  # before there is a server
        started.start_server()
        wait_until(lambda: started.progress().get("note") == "" and started.ready(), "not loaded")
        yield started
    finally:
        for verb in list(started.running):
            started.kill(verb)


def expected(spec: Path, plan: Any) -> Any:
    """The members' weighted mean of the predictions that the library keeps."""
    documents = load_documents(spec)
    library = Library.open(open_store(documents.result_storage(documents.selection())))
    return sum(m.weight * library.predictions(library.model(m.model_id), "heldout") for m in plan.members)


@pytest.fixture
def answers(spec: Path, pod: Pod) -> Callable[[], bool]:
    """Whether the pod answers, and then it must answer right."""

    def ask() -> bool:
        try:
            given = predict(pod.url, pod.plan.name, allocated.images("heldout"))
        except ServingError:
            return False
        assert np.abs(given - expected(spec, pod.plan)).max() < 1e-5
        return True

    return ask


def test_a_pod_answers_with_the_weighted_mean_of_the_members(pod: Pod, answers: Callable[[], bool]) -> None:
    assert len(pod.plan.members) == 2
    assert answers()


def test_the_report_tells_what_is_loaded(pod: Pod, spec: Path, allocation: dict[str, Any]) -> None:
    report, plan = pod.report(), pod.plan
    assert (report["verb"], report["state"], report["specHash"]) == ("agent", "Running", allocation["specHash"])
    total = len(plan.workers) + 1
    assert report["progress"] == {
        "stage": "serving",
        "done": total,
        "total": total,
        "note": "",
        "summary": {
            "loaded": [{"modelId": member.model_id, "digest": member.sha256} for member in plan.members],
            "workers": [
                {
                    "modelId": plan.members[worker.member].model_id,
                    "device": worker.device,
                    "batchSize": worker.batch_size,
                    "state": "ready",
                }
                for worker in plan.workers
            ],
            "revivals": 0,
            "repaired": 0,
        },
    }
    folder = rendered.read(pod.folder)
    assert (folder.selection, folder.allocation) == (digest_of(spec), allocation["result"]["digest"])


def test_the_summary_of_allocate_tells_what_a_pod_needs(pod: Pod, allocation: dict[str, Any]) -> None:
    summary = allocation["result"]["summary"]
    prefix = json.loads(pod.ask("GET", "/v2")[1])["name"]
    used = sum(path.stat().st_size for path in Path("/dev/shm").glob(f"{prefix}*")) / 2**20
    assert 0 < used <= summary["sharedMemoryMiB"] < summary["memoryMiB"]


def test_a_steady_pod_is_not_written_about(pod: Pod) -> None:
    before = pod.report()["sequence"]
    time.sleep(5)
    assert pod.report()["sequence"] == before


CLOSED = [
    ("POST", "/v2/repository/index"),
    ("POST", "/v2/repository/models/tiny/load"),
    ("POST", "/v2/repository/models/tiny/unload"),
    ("GET", "/v2/systemsharedmemory/status"),
    ("POST", "/v2/systemsharedmemory/region/x/register"),
    ("GET", "/v2/cudasharedmemory/status"),
    ("GET", "/v2/trace/setting"),
    ("POST", "/v2/trace/setting"),
    ("GET", "/v2/logging"),
    ("POST", "/v2/logging"),
]


@pytest.mark.parametrize("headers", [{}, {CONTROL_HEADER: "0" * 64}], ids=["no key", "wrong key"])
@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_what_the_agent_does_is_closed_to_others_over_http(
    pod: Pod, method: str, path: str, headers: dict[str, str]
) -> None:
    status, told = pod.ask(method, path, headers)
    assert status == 403
    assert "restricted" in told


GRPC: list[Callable[[Any, dict[str, str]], object]] = [
    lambda client, headers: client.get_model_repository_index(headers=headers),
    lambda client, headers: client.load_model("tiny", headers=headers),
    lambda client, headers: client.unload_model("tiny", headers=headers),
    lambda client, headers: client.get_system_shared_memory_status(headers=headers),
    lambda client, headers: client.register_system_shared_memory("x", "/x", 1, headers=headers),
    lambda client, headers: client.get_trace_settings(headers=headers),
    lambda client, headers: client.update_log_settings({"log_info": False}, headers=headers),
]


@pytest.mark.parametrize("call", GRPC)
def test_what_the_agent_does_is_closed_to_others_over_grpc(
    pod: Pod, call: Callable[[Any, dict[str, str]], object]
) -> None:
    with grpc.InferenceServerClient(pod.url) as client:
        for headers in ({}, {f"triton-grpc-protocol-{CONTROL_HEADER}": "0" * 64}):
            with pytest.raises(InferenceServerException, match="restricted"):
                call(client, headers)


def test_with_the_key_it_is_open(pod: Pod) -> None:
    assert set(pod.states()) == pod.plan.models
    with grpc.InferenceServerClient(pod.url) as client:
        key = {f"triton-grpc-protocol-{CONTROL_HEADER}": rendered.control_key(pod.folder)}
        assert len(client.get_model_repository_index(headers=key).models) == len(pod.plan.models)


@pytest.mark.parametrize(
    "path", ["/v2", "/v2/health/ready", "/v2/models/tiny", "/v2/models/tiny/ready", "/v2/models/tiny/stats"]
)
def test_what_clients_and_monitors_need_is_open(pod: Pod, path: str) -> None:
    assert pod.ask("GET", path)[0] == 200
    elsewhere = Pod(pod.folder, Ports(http=pod.ports.metrics))
    assert "nv_inference_queue_duration_us" in elsewhere.ask("GET", "/metrics")[1]


@pytest.mark.parametrize("which", ["front", "worker"])
def test_a_model_whose_process_is_killed_is_revived(pod: Pod, answers: Callable[[], bool], which: str) -> None:
    model = pod.plan.name if which == "front" else pod.plan.model_name(pod.plan.workers[0])
    killed, revivals = pod.stub(model), pod.count("revivals")
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: pod.count("revivals") == revivals + 1 and pod.progress()["note"] == "", "not revived")
    assert pod.stub(model) not in (None, killed)
    assert answers()


def test_requests_to_a_front_model_that_is_killed_do_not_wait_for_ever(pod: Pod, answers: Callable[[], bool]) -> None:
    """Triton holds them for ever, though another front model answers new ones: it is ended, as the container's end."""
    killed, images = pod.stub(pod.plan.name), allocated.images("heldout")
    assert killed is not None
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(predict, pod.url, pod.plan.name, np.repeat(images, MANY // len(images), axis=0))
        time.sleep(1)
        assert not asked.done()
        os.kill(killed, signal.SIGKILL)
        with pytest.raises(ServingError):
            asked.result(SECONDS)
    restarted(pod)
    assert answers()


def test_a_model_whose_process_dies_while_it_loads_is_told_and_the_server_is_ended(
    pod: Pod, answers: Callable[[], bool]
) -> None:
    """Triton would wait for it for ever."""
    worker = pod.plan.model_name(pod.plan.workers[0])
    wait_until(lambda: killed_while_it_loaded(pod, worker), "always loaded before")
    wait_until(lambda: bool(re.search(rf"{worker}: its process .* before it could answer", note(pod))), "no note")
    restarted(pod)
    assert answers()


def killed_while_it_loaded(pod: Pod, model: str) -> bool:
    """Unload a model, and kill its next process; false if that had loaded already, and is revived."""
    wait_until(lambda: pod.stub(model) is not None and pod.ready(), "not there")
    before, end = pod.stub(model), time.monotonic() + SECONDS
    assert pod.ask("POST", f"/v2/repository/models/{model}/unload", pod.key)[0] == 200
    while (loading := pod.stub(model)) in (None, before):
        assert time.monotonic() < end, "not loaded again"
    assert loading is not None
    os.kill(loading, signal.SIGKILL)
    return pod.states()[model] != "READY"


def restarted(pod: Pod) -> None:
    """Wait for the server's end, and start it as the kubelet does."""
    assert pod.running.pop("server").wait(SECONDS) == -signal.SIGKILL
    pod.start_server()
    wait_until(lambda: note(pod) == "" and pod.ready(), "not loaded again")


def note(pod: Pod) -> str:
    return str(pod.progress()["note"])


def test_a_model_that_is_unloaded_by_hand_is_loaded_again(pod: Pod, answers: Callable[[], bool]) -> None:
    model, repaired = pod.plan.model_name(pod.plan.workers[-1]), pod.count("repaired")
    assert pod.ask("POST", f"/v2/repository/models/{model}/unload", pod.key)[0] == 200
    wait_until(lambda: pod.count("repaired") > repaired and pod.progress()["note"] == "", "not repaired")
    assert pod.states() == dict.fromkeys(pod.plan.models, "READY")
    assert answers()


def test_a_model_that_does_not_belong_is_unloaded(pod: Pod, answers: Callable[[], bool]) -> None:
    own, repaired = pod.plan.model_name(pod.plan.workers[0]), pod.count("repaired")
    config = json.loads(pod.ask("GET", f"/v2/models/{own}/config")[1])
    foreign = pod.folder / "models" / "foreign"
    (foreign / "1").mkdir(parents=True)
    (foreign / "1" / "model.onnx").write_bytes((pod.folder / "models" / own / "1" / "model.onnx").read_bytes())
    groups = [{"name": "one", "kind": "KIND_CPU", "count": 1}]
    body = {"parameters": {"config": json.dumps({**config, "name": "foreign", "instance_group": groups})}}
    assert pod.ask("POST", "/v2/repository/models/foreign/load", pod.key, json.dumps(body)) == (200, "")
    wait_until(lambda: pod.states().get("foreign") != "READY", "not unloaded")
    wait_until(lambda: pod.count("repaired") > repaired, "not told")
    assert answers()


def test_a_changed_configuration_is_corrected(pod: Pod, answers: Callable[[], bool]) -> None:
    """Of the front model, with other weights: it answers wrong until the agent has looked."""
    name, repaired = pod.plan.name, pod.count("repaired")
    file = pod.folder / "models" / name / "config.pbtxt"
    text = file.read_text()
    changed = text.replace('\\"weight\\":0.5', '\\"weight\\":0.9', 1)
    assert changed != text
    file.write_text(changed)
    pod.ask("POST", f"/v2/repository/models/{name}/unload", pod.key)
    pod.ask("POST", f"/v2/repository/models/{name}/load", pod.key)
    wait_until(lambda: pod.count("repaired") > repaired and pod.progress()["note"] == "", "not corrected")
    assert file.read_text() == text
    assert answers()


def test_a_server_that_is_killed_and_started_again_gets_its_models(pod: Pod, answers: Callable[[], bool]) -> None:
    pod.kill("server")
    wait_until(lambda: pod.progress()["note"] != "", "not told")
    assert (pod.progress()["done"], pod.ready()) == (0, False)
    repaired = pod.count("repaired")
    pod.start_server()
    wait_until(lambda: pod.progress()["note"] == "" and pod.ready(), "not loaded again")
    assert pod.count("repaired") == repaired  # nothing had drifted
    assert answers()


def test_an_agent_that_is_started_again_changes_nothing(pod: Pod, answers: Callable[[], bool]) -> None:
    before = {model: pod.stub(model) for model in pod.plan.models}
    agent = pod.running["agent"]
    since = time.monotonic()
    agent.terminate()
    assert agent.wait(10) == 0
    assert time.monotonic() - since < 1
    (pod.folder.parent / "report.json").unlink()
    pod.start_agent()
    wait_until(lambda: pod.progress().get("note") == "", "no report")
    assert (pod.count("revivals"), pod.count("repaired")) == (0, 0)
    assert {model: pod.stub(model) for model in pod.plan.models} == before
    assert answers()


def test_a_member_whose_file_is_damaged_makes_the_pod_unready_until_it_is_repaired(
    pod: Pod, answers: Callable[[], bool]
) -> None:
    model, file = pod.plan.model_name(pod.plan.workers[0]), Path(pod.plan.members[pod.plan.workers[0].member].onnx)
    content = file.read_bytes()
    library = file.with_suffix(".kept")
    file.rename(library)  # the library's file is another name of it
    file.write_bytes(content[:-1])
    killed = pod.stub(model)
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: "is not what its digest says" in pod.progress()["note"] and not pod.ready(), "ready")
    file.unlink()
    library.rename(file)
    wait_until(lambda: pod.progress()["note"] == "" and pod.ready(), "not repaired")
    assert answers()


def test_an_idle_agent_costs_next_to_nothing(pod: Pod) -> None:
    agent = pod.running["agent"].pid
    before = processes.process(agent).cpu_seconds
    time.sleep(10)
    assert (processes.process(agent).cpu_seconds - before) / 10 < 0.05


def test_a_server_ends_on_sigterm_and_leaves_no_process(pod: Pod) -> None:
    """Last, for it starts the server again."""
    server = pod.running["server"]
    stubs = [pod.stub(model) for model in pod.plan.models]
    server.terminate()
    assert server.wait(30) == 0
    assert not any(processes.alive(stub) for stub in stubs if stub)
    pod.start_server()
    wait_until(lambda: pod.progress()["note"] == "" and pod.ready(), "not loaded again")


def test_what_is_in_flight_is_answered_before_the_server_is_ended(pod: Pod) -> None:
    """As the kubelet ends a pod: the agent at once, the server after what it is to do before."""
    agent = pod.running.pop("agent")
    agent.terminate()
    assert agent.wait(10) == 0
    size, before, ended = pod.plan.max_batch_size, received(pod), []
    count = MANY // 5 // size
    given = grpc.InferInput("INPUT", [size, *pod.plan.signature.input_shape], "UINT8")
    given.set_data_from_numpy(np.resize(allocated.images("heldout"), given.shape()))
    with connect(pod.url) as client:
        for _ in range(count):
            client.async_infer(pod.plan.name, [given], lambda result, error: ended.append(error))
        wait_until(lambda: received(pod) == before + count, "not all there")
        assert len(ended) < count
        options = ("--repository", str(pod.folder), "--http-port", str(pod.ports.http), "--within", str(SECONDS))
        drained = subprocess.run([*ENSEMBLE, "drain", *options], capture_output=True, text=True, timeout=2 * SECONDS)
        wait_until(lambda: len(ended) == count, "not all answered, nor refused")
        server = pod.running.pop("server")
        server.terminate()
        assert server.wait(30) == 0
    assert (drained.returncode, drained.stderr) == (0, "")
    assert ended == [None] * count
    pod.start_agent()
    pod.start_server()
    wait_until(lambda: pod.progress()["note"] == "" and pod.ready(), "not loaded again")


def received(pod: Pod) -> float:
    """Requests that the front model has got."""
    now = exposition.read(f"127.0.0.1:{pod.ports.metrics}", 0.0)
    return sum(now.of("ensemble_received_requests_total", model=pod.plan.name).values())


# ------------------------------------------------------------------------------------------------- the selection named


def test_a_named_selection_is_used_whatever_the_library_holds_now(
    spec: Path, allocation: dict[str, Any], tmp_path: Path
) -> None:
    """With other settings of the selection nothing is selected yet; what is named stays what it was."""
    changed = spec.with_name("later.yaml")
    changed.write_text(allocated.without(allocated.DOCUMENTS, "weights: [0]", "weights: [0.5]"))
    told = render(changed, tmp_path / "repository")
    assert (told.returncode, told.stderr) == (0, "")
    assert rendered.read(tmp_path / "repository").allocation == allocation["result"]["digest"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--selection", "latest"), "--selection: 'latest' must be a digest: 64 hexadecimal digits"),
        (("--selection", "0" * 64), f"library has no selections/{'0' * 64}.json; run `ensemble select --name tiny`"),
        (("--name", "other"), "has no EnsembleDeployment named other; there is tiny"),
    ],
)
def test_what_cannot_be_rendered_is_told_in_one_line(
    spec: Path, allocation: dict[str, Any], tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    done = render(spec, tmp_path / "repository", *options)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("ensemble render: ")
    assert told in line
    assert not (tmp_path / "repository").exists()


def test_a_result_of_another_selection_is_refused(spec: Path, allocation: dict[str, Any]) -> None:
    file = spec.parent / "library" / "selections" / f"{digest_of(spec)}.json"
    other = spec.with_name("other.yaml")
    text = allocated.without(allocated.DOCUMENTS, "weights: [0]", "weights: [0.25]")
    other.write_text(text.replace("name: tiny", "name: other"))
    with pytest.raises(UserError, match="is a result of the selection tiny, not of other"):
        allocated.verb(allocate, "--spec", str(other), "--selection", file.stem)


def test_other_settings_were_not_allocated(spec: Path, allocation: dict[str, Any], tmp_path: Path) -> None:
    changed = spec.with_name("settings.yaml")
    changed.write_text(allocated.without(allocated.DOCUMENTS, "segmentSize: 32", "segmentSize: 40"))
    done = render(changed, tmp_path / "repository")
    assert done.returncode == 2
    assert "nothing was allocated for this ensemble, these settings and such devices" in done.stderr


def test_an_allocation_for_other_devices_is_refused_and_names_both(
    spec: Path, allocation: dict[str, Any], tmp_path: Path
) -> None:
    changed = spec.with_name("devices.yaml")
    changed.write_text(allocated.without(allocated.DOCUMENTS, "count: 2}", "count: 1, coresPerDevice: 2}"))
    there = {device["deviceType"] for device in allocation["result"]["summary"]["devices"]}
    done = render(changed, tmp_path / "repository")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"spec.devices: was allocated on 2 × {there.pop()}; on this machine the document names 1 × " in line


def test_a_folder_that_cannot_be_written_is_told(spec: Path, allocation: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = render(spec, tmp_path / "file")
    told = f"--output: {tmp_path}/file cannot be written: {tmp_path}/file is in its place"
    assert (done.returncode, done.stderr) == (2, f"ensemble render: {told}\n")


def test_the_best_single_model_can_be_rendered(spec: Path, tmp_path: Path) -> None:
    text = allocated.without(allocated.DOCUMENTS, "budgetName: all", f"budgetName: {BEST_SINGLE}")
    single = spec.with_name("single.yaml")
    single.write_text(text)
    assert allocated.verb(allocate, "--spec", str(single), "--selection", digest_of(spec)) == 0
    assert render(single, tmp_path / "repository").returncode == 0
    assert len(rendered.read(tmp_path / "repository").plan.members) == 1
