"""`ensemble serve` and `ensemble predict`, as processes."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from ensemble_core.serving import processes
from ensemble_core.serving.installation import CHOICE, Ports
from ensemble_core.serving.process import choose

SECONDS = 90

DOCUMENT = """
apiVersion: ensemble-operator.io/v1alpha1
kind: EnsembleDeployment
metadata: {{name: front}}
spec:
  selectionRef: {{name: some, budgetName: large}}
  devices: [{{name: cores, type: cpu, count: 2}}]
  serving: {{httpPort: {}, grpcPort: {}, metricsPort: {}}}
"""

# The command with a plan of this test's in place of one from a library.
SERVE = """
import sys
from pathlib import Path
from ensemble_core.allocation.plan import Plan
from ensemble_core.cli import main
from ensemble_core.commands import serve
from ensemble_core.serving import live
live.WINDOW_SECONDS = 0.5
plan = Plan.model_validate_json(Path(sys.argv[1]).read_text())
serve.load_plan = lambda documents, deployment: plan
sys.exit(main(["serve", *sys.argv[2:]]))
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    file = tmp_path / "front.yaml"
    file.write_text(DOCUMENT.format(*choose(Ports()).numbers()))
    return file


@contextmanager
def serving(spec: Path, plan) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """The command's process and its report."""
    spec.with_name("plan.json").write_text(plan.model_dump_json(by_alias=True))
    report = spec.with_name("report.json")
    command = [sys.executable, "-c", SERVE, str(spec.with_name("plan.json")), "--spec", str(spec)]
    with subprocess.Popen(
        [*command, "--report", f"file:{report}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process, report
        finally:
            process.kill()


def progress(process: subprocess.Popen[str], report: Path) -> dict[str, Any]:
    """Wait for the address and a view with all workers in the report."""
    deadline = time.monotonic() + SECONDS
    while True:
        told = json.loads(report.read_text()).get("progress", {}) if report.exists() else {}
        workers = told.get("summary", {}).get("workers", ())
        if "grpc" in told and {worker["state"] for worker in workers} == {"ready"}:
            return told
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "not served"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "averaging", "fronts"), [(signal.SIGTERM, "native", 0), (signal.SIGINT, "python", 1)]
)
def test_serve_answers_until_it_is_told_to_stop(plan, ensemble, spec, tmp_path, monkeypatch, number, averaging, fronts):
    monkeypatch.setenv(CHOICE, averaging)
    with serving(spec, plan) as (process, report):
        told = progress(process, report)
        np.save(tmp_path / "x.npy", ensemble.samples(150))
        command = ["--url", told["grpc"], "--model", told["model"], "--output", str(tmp_path / "y.npy")]
        arguments = ["predict", *command, "--input", str(tmp_path / "x.npy")]
        arguments += ["--disagreement", str(tmp_path / "u.npy")]
        subprocess.run([sys.executable, "-m", "ensemble_core.cli", *arguments], check=True, timeout=SECONDS)
        np.testing.assert_allclose(np.load(tmp_path / "y.npy"), ensemble.expected(ensemble.samples(150)), atol=1e-6)
        np.testing.assert_allclose(np.load(tmp_path / "u.npy"), ensemble.disagreement(ensemble.samples(150)), atol=1e-6)
        children = [
            int(pid)
            for task in Path(f"/proc/{process.pid}/task").iterdir()
            for pid in (task / "children").read_text().split()
        ]
        pids = [each.pid for child in children for each in processes.group(child)]
        assert len(pids) == 1 + len(plan.workers) + fronts
        workers = [(worker["modelId"], worker["device"], worker["batchSize"]) for worker in told["summary"]["workers"]]
        assert workers == [(f"m-{worker.member}", worker.device, worker.batch_size) for worker in plan.workers]
        process.send_signal(number)
        output, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, errors) == (0, "")
    assert f"ensemble predict --url {told['grpc']} --model front" in output
    assert {"native": "averaged in C++", "python": "averaged in Python"}[averaging] in output
    latency = r"latency [\d.,]+ m?s \(p50 .*, p90 .*, p99 .*\)"
    assert re.search(
        rf"^front: \d+ samples/s, .* requests/s, \d in flight, {latency}, .*busiest cpu", output, re.MULTILINE
    )
    assert json.loads(report.read_text())["state"] == "Succeeded"
    assert not any(processes.alive(pid) for pid in pids)


def test_serve_names_the_worker_that_runs_out_of_memory(plan, ensemble, spec, tmp_path):
    (tmp_path / "large").mkdir()
    greedy = ensemble.of("uint8", tmp_path / "large")
    path = greedy.folder / "m-1.onnx"
    onnx.save(taking(onnx.load(path), 1 << 60), path)
    large = plan.model_copy(update={"members": tuple(greedy.member(index) for index in range(3))})
    with serving(spec, large) as (process, report):
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert "ensemble serve: out of memory: m-1 on cpu1 with batches of 128; m-1--cpu1--b128: load:" in errors
    assert "out of memory: m-1 on cpu1" in json.loads(report.read_text())["error"]["message"]


def taking(model: onnx.ModelProto, size: int) -> onnx.ModelProto:
    """The model, which needs so many bytes beside."""
    last = model.graph.node.pop()
    model.graph.initializer.append(numpy_helper.from_array(np.array([size // 4]), "size"))
    model.graph.node.extend(
        [
            helper.make_node("ConstantOfShape", ["size"], ["room"]),
            helper.make_node("ReduceMax", ["room"], ["most"], keepdims=0),
            helper.make_node("Add", [last.input[0], "most"], ["added"]),
            helper.make_node(last.op_type, ["added"], last.output, axis=-1),
        ]
    )
    return model


def test_serve_refuses_a_port_in_use(plan, spec):
    port = int(spec.read_text().split("grpcPort: ")[1].split(",")[0])
    with socket.create_server(("127.0.0.1", port)), serving(spec, plan) as (process, report):
        output, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, output) == (2, "")
    assert f"spec.serving.grpcPort: port {port} of 127.0.0.1 is in use" in errors
    assert json.loads(report.read_text())["state"] == "Failed"
