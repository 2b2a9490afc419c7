"""Right answers from the real server."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tests.support.native import stand_in
from tritonclient import grpc

from ensemble_core.commands import predict as predict_command
from ensemble_core.serving import client as client_module
from ensemble_core.serving import processes
from ensemble_core.serving.client import ask, connect, describe, predict, predict_with_disagreement, shared_request
from ensemble_core.serving.errors import LoadError, ServingError
from ensemble_core.serving.load import measure
from ensemble_core.serving.server import TritonServer
from ensemble_core.serving.sharedmemory import FOLDER, Region

CLOSE = 1e-6


def waits(server: TritonServer, model: str) -> tuple[int, int]:
    """Requests of a front model that every member has begun with, and the microseconds that they waited for that."""
    with urllib.request.urlopen(f"http://{server.address}:{server.ports.metrics}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    values = Counter[str]()
    for line in lines:
        if f'model="{model}"' in line:
            values[line.split("{")[0]] += round(float(line.split()[-1]))
    return values["ensemble_wait_requests_total"], values["ensemble_wait_microseconds_total"]


def copied(server: TritonServer, model: str) -> int:
    """Bytes of inputs that a front model has copied."""
    with urllib.request.urlopen(f"http://{server.address}:{server.ports.metrics}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    counts = [line for line in lines if line.startswith("ensemble_copied_bytes_total{") and f'model="{model}"' in line]
    return sum(int(float(line.split()[-1])) for line in counts)


def chunks(server: TritonServer, model: str) -> int:
    """Calls that a model has answered."""
    with connect(server.url) as client:
        return client.get_inference_statistics(model).model_stats[0].execution_count


def refer(server: TritonServer, model: str, reference: list[int], key: str) -> np.ndarray:
    """Ask a member about rows in shared memory, as the front model does."""
    with connect(server.url) as client:
        given = grpc.InferInput("SEG", [4], "INT64")
        given.set_data_from_numpy(np.array([*reference, 0], np.int64))
        return client.infer(model, [given], parameters={"shm_key": key}).as_numpy("PROBABILITIES")


def test_the_front_model_has_the_members_signature(server, plan):
    endpoint = describe(server.url, plan.name)
    assert (endpoint.signature, endpoint.max_batch_size) == (plan.signature, plan.max_batch_size)


@pytest.mark.parametrize("samples", [1, 2, 31, 127, 128, 129, 300, 1000, 2300])
def test_answers_are_the_weighted_mean(server, plan, ensemble, samples):
    given = ensemble.samples(samples, seed=samples)
    answers = predict(server.url, plan.name, given)
    np.testing.assert_allclose(answers, ensemble.expected(given), atol=CLOSE)
    assert answers.dtype == np.float32


def test_answers_do_not_depend_on_the_way_samples_travel(server, plan, ensemble):
    given = ensemble.samples(300)
    # Sums of float32 differ in their last bit with the order in which members answer.
    np.testing.assert_allclose(
        ask(server.url, plan.name, given), predict(server.url, plan.name, given), rtol=0, atol=CLOSE
    )


@pytest.mark.parametrize("samples", [3, 2300])
def test_members_disagree_by_their_divergence_from_the_mean(server, plan, ensemble, samples, monkeypatch):
    given = ensemble.samples(samples)
    for shared in (True, False):
        if not shared:  # as with a server elsewhere
            monkeypatch.setattr(client_module, "shared_request", unavailable)
        answers, disagreement = predict_with_disagreement(server.url, plan.name, given)
        np.testing.assert_allclose(answers, ensemble.expected(given), atol=CLOSE)
        np.testing.assert_allclose(disagreement[:, 0], ensemble.disagreement(given), atol=CLOSE)


def unavailable(*_: object) -> None:
    raise OSError


def test_no_samples_have_no_answers(server, plan, ensemble):
    assert predict(server.url, plan.name, ensemble.samples(0)).shape == (0, 10)


def test_both_workers_of_a_member_share_its_work(server, plan, ensemble):
    workers = ("m-0--cpu0--b32", "m-0--cpu1--b48")
    before = [chunks(server, worker) for worker in workers]
    given = ensemble.samples(1000)
    for _ in range(5):
        np.testing.assert_allclose(predict(server.url, plan.name, given), ensemble.expected(given), atol=CLOSE)
    assert all(chunks(server, worker) > count for worker, count in zip(workers, before, strict=True))


def test_the_wait_of_every_request_is_counted(server, plan, ensemble):
    requests, waited = waits(server, plan.name)
    with ThreadPoolExecutor(8) as pool:  # more than the workers take at a time: most have to wait
        list(pool.map(lambda seed: ask(server.url, plan.name, ensemble.samples(1000, seed=seed)), range(16)))
    now, waited_now = waits(server, plan.name)
    assert now == requests + 16
    assert waited_now > waited


def test_only_samples_that_are_in_no_shared_memory_are_copied(server, plan, ensemble):
    given = ensemble.samples(300)
    counts = [copied(server, plan.name)]
    for way in (predict, ask):  # in shared memory, and in the request's body
        way(server.url, plan.name, given)
        counts.append(copied(server, plan.name))
    assert np.diff(counts).tolist() == [0 if "in C++" in server.averaging else given.nbytes, given.nbytes]


def test_concurrent_clients_get_their_own_answers(server, plan, ensemble):
    def client(seed: int) -> int:
        random = np.random.default_rng(seed)
        wrong = 0
        with connect(server.url) as connection, shared_request(connection, plan.name, plan.signature, 400) as request:
            for _ in range(15):
                given = ensemble.samples(int(random.integers(1, 401)), seed=int(random.integers(1 << 30)))
                request.samples[: len(given)] = given
                request.answer[:] = -1
                wrong += not np.allclose(request.send(len(given)), ensemble.expected(given), atol=CLOSE)
        return wrong

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(client, range(8))) == [0] * 8


def test_a_members_error_tells_member_worker_rows_and_cause(server, plan, ensemble):
    given = ensemble.samples(300)
    given[150] = 255
    with pytest.raises(
        ServingError, match=r"member m-\d: worker m-\d--cpu\d--b\d+: rows \d+-\d+: .*out of data bounds"
    ):
        predict(server.url, plan.name, given)
    sane = ensemble.samples(300)
    np.testing.assert_allclose(predict(server.url, plan.name, sane), ensemble.expected(sane), atol=CLOSE)


def test_samples_of_another_type_or_shape_are_refused(server, plan, ensemble):
    with pytest.raises(ValueError, match="front takes uint8"):
        predict(server.url, plan.name, ensemble.samples(3).astype(np.float32))
    with pytest.raises(ServingError, match="shape"):
        ask(server.url, plan.name, ensemble.samples(3)[:, :4])
    with pytest.raises(ServingError, match="must be <= 1000"):
        ask(server.url, plan.name, ensemble.samples(1001))


def test_an_unknown_model_is_an_error(server, ensemble):
    with pytest.raises(ServingError, match="nobody"):
        predict(server.url, "nobody", ensemble.samples(1))


@pytest.mark.parametrize(
    ("reference", "key", "problem"),
    [
        ([0, 17, 64], "", "17 samples of 64 bytes; 1 to 16 of 64"),
        ([0, 0, 64], "", "0 samples"),
        ([0, 1, 65], "", "65 bytes"),
        ([-64, 1, 64], "", "no region"),
        ([64 * 12, 8, 64], "", "ValueError"),
        ([0, 1, 64], "missing", "FileNotFoundError"),
        ([0, 1, 64], "../../etc/passwd", "no region"),
    ],
)
def test_a_member_refuses_a_reference_that_leads_elsewhere(server, ensemble, reference, key, problem):
    with Region(16 * 64) as region, pytest.raises(ServingError, match=problem):
        refer(server, "m-2--cpu0--b16", reference, key or region.name)


def test_a_member_reads_a_region_whose_name_is_used_again(server, ensemble):
    given = ensemble.samples(16)
    answers = []
    for size in (1024, 2048, 1024):
        path = FOLDER / "ensemble-test-again"
        path.write_bytes(given.tobytes().ljust(size, b"\0"))
        answers.append(refer(server, "m-2--cpu0--b16", [0, 16, 64], path.name))
        path.unlink()
        given = given[::-1]
    np.testing.assert_array_equal(answers[0], answers[1][::-1])
    np.testing.assert_array_equal(answers[0], answers[2])


def test_answers_do_not_fill_the_memory(server, plan, ensemble):
    def anonymous(pid: int) -> int:
        fields = dict(line.split(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return int(fields["RssAnon"].split()[0]) // 1024

    stubs = [server.pid, *filter(None, map(server.stub, sorted(plan.models)))]
    samples = ensemble.samples(1000)
    for _ in range(30):
        predict(server.url, plan.name, samples)
    before = [anonymous(pid) for pid in stubs]
    for _ in range(200):  # of 40 kB: 8 MB, were they kept
        predict(server.url, plan.name, samples)
    assert all(anonymous(pid) - start <= 2 for pid, start in zip(stubs, before, strict=True))


def test_measuring_counts_what_is_answered(server, plan, ensemble):
    found = measure(server, plan, ensemble.samples(10), seconds=0.4, in_flight=2)
    assert found.throughput > 0
    assert found.samples == found.requests * 128
    assert found.requests >= 2
    assert 0 < found.p50 <= found.p90 <= found.p99


def test_measuring_a_plan_that_is_not_served_is_an_error(server, plan, ensemble):
    with pytest.raises(ServingError, match="other"):
        measure(server, plan.model_copy(update={"name": "other"}), ensemble.samples(10), seconds=0.2)


def test_the_command_writes_the_answers(server, plan, ensemble, tmp_path):
    given = ensemble.samples(130)
    np.save(tmp_path / "x.npy", given)
    arguments = type("Arguments", (), {})()
    arguments.url, arguments.model = server.url, plan.name
    arguments.input, arguments.output, arguments.disagreement = tmp_path / "x.npy", tmp_path / "answers", None
    assert predict_command.run(arguments) == 0
    np.testing.assert_allclose(np.load(tmp_path / "answers"), ensemble.expected(given), atol=CLOSE)


def test_the_command_fails_without_a_server(tmp_path, ensemble, capsys):
    np.save(tmp_path / "x.npy", ensemble.samples(1))
    arguments = type("Arguments", (), {})()
    arguments.url, arguments.model = "127.0.0.1:1", "front"
    arguments.input, arguments.output, arguments.disagreement = tmp_path / "x.npy", tmp_path / "y.npy", None
    assert predict_command.run(arguments) == 1
    assert "127.0.0.1:1" in capsys.readouterr().err
    assert not arguments.output.exists()


def test_a_new_plan_is_switched_to_while_clients_are_answered(server, plan, ensemble):
    given, stop, answered = ensemble.samples(100), threading.Event(), []

    def client() -> None:
        while not stop.is_set():
            answered.append(abs(ask(server.url, plan.name, given) - ensemble.expected(given)).max())

    other = ensemble.plan((0, 1, 8), (1, 0, 64), (1, 1, 128), (2, 1, 16))
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(client) for _ in range(3)]
        for applied in (other, plan, plan):
            server.apply(applied)
            count = len(answered)
            while len(answered) < count + 20 and not any(each.done() for each in running):
                stop.wait(0.01)
        stop.set()
        for each in running:
            each.result()
    assert max(answered) < CLOSE
    ready = {model for model, state in server._process.control.states().items() if state == "READY"}
    assert ready == {plan.name, *(plan.model_name(worker) for worker in plan.workers)}


def test_only_what_differs_is_loaded_when_members_come_to_devices_and_go(server, plan, ensemble):
    """A worker's file is linked to that of the member's other workers, and links come and go with them."""
    elsewhere = ensemble.plan((0, 0, 32), (1, 0, 64), (1, 1, 128), (2, 0, 16))
    kept = ("m-0--cpu0--b32", "m-1--cpu1--b128", "m-2--cpu0--b16")
    before = [server.stub(model) for model in kept]
    for applied in (elsewhere, plan, plan):
        server.apply(applied)
        assert [server.stub(model) for model in kept] == before


def test_what_is_cleared_holds_nothing_and_comes_back(server, plan, ensemble):
    stubs = [stub for model in plan.models if (stub := server.stub(model)) is not None]
    assert len(stubs) >= len(plan.workers)
    server.clear()
    assert not any(processes.alive(stub) for stub in stubs)
    with connect(server.url) as client:
        assert not client.is_model_ready(plan.name)
    server.apply(plan)
    given = ensemble.samples(200)
    np.testing.assert_allclose(predict(server.url, plan.name, given), ensemble.expected(given), atol=CLOSE)


def test_a_plan_that_does_not_load_leaves_the_one_before(server, plan, ensemble, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    member = ensemble.member(1).model_copy(update={"onnx": str(broken), "sha256": "0" * 64})
    with pytest.raises(LoadError, match="m-1--cpu1--b128"):
        server.apply(plan.model_copy(update={"members": (plan.members[0], member, plan.members[2])}))
    given = ensemble.samples(200)
    np.testing.assert_allclose(predict(server.url, plan.name, given), ensemble.expected(given), atol=CLOSE)


def test_a_native_member_gets_the_samples_and_not_a_reference(server, plan, ensemble, monkeypatch):
    stand_in(server, monkeypatch)
    gpu = plan.devices[0].model_copy(update={"name": "gpu0", "type": "gpu", "cores": ()})
    mixed = ensemble.plan((0, 0, 32), (1, 0, 64), (2, 0, 16), devices=(*plan.devices, gpu))
    workers = [worker.model_copy(update={"device": "gpu0"}) if worker.member else worker for worker in mixed.workers]
    server.apply(mixed.model_copy(update={"workers": tuple(workers)}))
    given = ensemble.samples(300)
    np.testing.assert_allclose(predict(server.url, plan.name, given), ensemble.expected(given), atol=CLOSE)
    assert chunks(server, "m-1--gpu0--b64") >= 6
    monkeypatch.undo()
    server.apply(plan)


def test_numbers_are_served_as_well_as_bytes(server, plan, ensemble, tmp_path):
    numbers = ensemble.of("float32", tmp_path)
    server.apply(numbers.plan((0, 0, 32), (1, 1, 100), (2, 0, 16), name="numbers", segment_size=50))
    given = numbers.samples(170)
    np.testing.assert_allclose(predict(server.url, "numbers", given), ensemble.expected(given), atol=CLOSE)
    server.apply(plan)


def test_the_log_has_no_errors_of_tensors(server):
    assert "PyCapsule" not in server.log_tail()
    assert json.dumps(server.revivals + server.restarts) == "[]"
