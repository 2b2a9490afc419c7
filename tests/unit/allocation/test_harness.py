from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import onnxruntime
import pytest

from ensemble_core.allocation.candidate import Candidate, Measured
from ensemble_core.allocation.harness import Bench, NoServerError, images, load_settings, server_version
from ensemble_core.allocation.matrix import Matrix
from ensemble_core.allocation.pace import Pace
from ensemble_core.allocation.plan import Answering, Plan
from ensemble_core.allocation.result import Subject, Throughput
from ensemble_core.api.ensembledeployment import Serving
from ensemble_core.commands.allocate import remarks
from ensemble_core.library.records import Signature
from ensemble_core.serving import installation
from ensemble_core.serving.errors import LoadError, ServingError
from ensemble_core.serving.load import Measurement, Window

SIGNATURE = Signature(input_type="uint8", input_shape=(4, 4, 1), classes=3)
CANDIDATE = Candidate(Matrix(((8, 8), (0, 32))))
PACE = Pace(("cpu-test-1c",) * 2, ({"cpu-test-1c": 0.01}, {"cpu-test-1c": 0.02}))
WINDOW = Window(seconds=1, requests=10, throughput=640.0, foreign_cores=0.01, client_cores=0.1)
MEASURED = Measurement(
    throughput=640.0, spread=0.02, foreign_cores=0.01, client_cores=0.1, p50=0.1, p90=0.1, p99=0.1, requests=10,
    samples=1280, windows=(WINDOW,),
)  # fmt: skip


class Server:
    """Raises what it is told to on each call of `apply`, in order."""

    def __init__(self, *failures: Exception | None) -> None:
        self.failures = list(failures)
        self.applied: list[Plan] = []
        self.cleared: list[int] = []  # after how many calls of `apply`
        self.loads: list[tuple[Any, float, int, int, float]] = []

    def apply(self, plan: Plan) -> None:
        self.applied.append(plan)
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure

    def clear(self) -> None:
        self.cleared.append(len(self.applied))

    def measure(
        self, plan: Plan, images: Any, seconds: float, in_flight: int, samples: int, deadline: float
    ) -> Measurement:
        self.loads.append((images.shape, seconds, in_flight, samples, deadline))
        return MEASURED


def test_a_matrix_is_applied_and_measured_under_the_settings_of_the_spec(make_subject: Callable[..., Subject]) -> None:
    server = Server()
    throughput = Bench(make_subject(secondsPerBenchmark=1.5), SIGNATURE, PACE, server)(CANDIDATE)
    assert throughput == Throughput(
        samples_per_second=640.0, spread=0.02, foreign_cores=0.01, client_cores=0.1, latency_seconds=(0.1, 0.1, 0.1)
    )
    (plan,) = server.applied
    assert [(worker.device, worker.member, worker.batch_size) for worker in plan.workers] == [
        ("cpu0", 0, 8),
        ("cpu0", 1, 8),
        ("cpu1", 1, 32),
    ]
    assert server.loads == [((128, 4, 4, 1), 1.5, 3, 128, PACE.deadline(CANDIDATE.matrix, 3 * 128))]


def test_every_member_answers_what_is_measured(make_subject: Callable[..., Subject]) -> None:
    """A quorum or a short deadline would make matrices look fast that leave members out."""
    server, subject = Server(), make_subject()
    serving = Serving(combiner="vote", scores="logits", quorum=1, retries=3, deadline_seconds=0.01)
    spec = subject.deployment.spec.model_copy(update={"serving": serving})
    pace = replace(PACE, seconds=({"cpu-test-1c": 1.0}, {"cpu-test-1c": 2.0}))
    Bench(replace(subject, deployment=subject.deployment.model_copy(update={"spec": spec})), SIGNATURE, pace, server)(
        CANDIDATE
    )
    (plan,) = server.applied
    deadline = pace.deadline(CANDIDATE.matrix, 3 * 128)
    assert plan.answering == Answering(rule="vote", scores="logits", deadline_seconds=deadline)


def test_a_candidate_is_measured_as_it_is_routed(make_subject: Callable[..., Subject]) -> None:
    server, matrix = Server(), Matrix(((8, 8), (8, 32)))
    bench = Bench(make_subject(), SIGNATURE, PACE, server)
    for candidate in (Candidate(matrix, ((0.9, 0.4), (0.1, 0.6))), Candidate(matrix)):
        bench(candidate)
    weighted, pulled = server.applied
    assert (weighted.answering.routing, pulled.answering.routing) == ("weights", "pull")
    assert [worker.share for worker in weighted.workers] == [0.9, 0.4, 0.1, 0.6]


def test_time_is_left_for_the_largest_load(make_subject: Callable[..., Subject]) -> None:
    pace = replace(PACE, seconds=({"cpu-test-1c": 1.0}, {"cpu-test-1c": 2.0}))
    latency = {"milliseconds": 5, "samplesPerRequest": 64}
    server, subject = Server(), make_subject(objective="throughput-within-latency", latency=latency)
    Bench(subject, SIGNATURE, pace, server)(CANDIDATE)
    (plan,) = server.applied
    assert plan.answering.deadline_seconds == pace.deadline(CANDIDATE.matrix, 8 * 64)


def test_a_failure_that_does_not_come_again_is_chance(make_subject: Callable[..., Subject]) -> None:
    server = Server(ServingError("the server is gone"))
    assert Bench(make_subject(), SIGNATURE, PACE, server)(CANDIDATE).samples_per_second == 640.0
    assert len(server.applied) == 2


def test_a_matrix_that_does_not_fit_beside_the_one_before_is_tried_alone(make_subject: Callable[..., Subject]) -> None:
    server = Server(None, LoadError("m-0000--cpu0--b8: load: std::bad_alloc"))
    bench = Bench(make_subject(), SIGNATURE, PACE, server)
    assert [bench(CANDIDATE).samples_per_second for _ in range(2)] == [640.0, 640.0]
    assert (len(server.applied), server.cleared) == (3, [2])


def test_a_matrix_that_fails_twice_serves_nothing(make_subject: Callable[..., Subject]) -> None:
    server = Server(ServingError("the server is gone"), LoadError("m-0000--cpu0--b8: no memory\nlog"))
    throughput = Bench(make_subject(), SIGNATURE, PACE, server)(CANDIDATE)
    assert throughput == Throughput(samples_per_second=0, reason="m-0000--cpu0--b8: no memory\nlog", memory=False)
    assert (len(server.applied), server.loads) == (2, [])


@pytest.mark.parametrize(
    ("reason", "device", "memory"),
    [
        ("m-0001--cpu1--b32: load: Failed to allocate memory for requested buffer of size 75497472", 1, True),
        ("m-0000--cpu0--b8: load: CUDA failure 2: out of memory ; GPU=0", 0, True),
        ("m-0001--cpu1--b32: its process was killed by signal 9 before it could answer\nlog", 1, True),
        ("one of m-0000--cpu0--b8, m-0001--cpu0--b8: its process was killed by signal 9", 0, True),
        ("one of m-0000--cpu0--b8, m-0001--cpu1--b32: its process was killed by signal 9", None, True),
        ("the server was killed by signal 9", None, True),
        ("m-0001--cpu1--b32: load: no such operator", None, False),
        ("m-0001--cpu1--b320: load: std::bad_alloc", None, True),
    ],
)
def test_a_device_that_has_too_little_memory_is_told(
    make_subject: Callable[..., Subject], reason: str, device: int | None, memory: bool
) -> None:
    throughput = Bench(make_subject(), SIGNATURE, PACE, Server(*[LoadError(reason)] * 2))(CANDIDATE)
    assert throughput.measured() == Measured(0, reason=throughput.reason, memory=memory, device=device)
    assert throughput.reason.endswith(reason)
    who = {0: "m-0000 on cpu0 with batches of 8", 1: "m-0001 on cpu1 with batches of 32"}
    assert device is None or who[device] in throughput.reason.removesuffix(reason)


def test_no_server_says_nothing_about_a_matrix(make_subject: Callable[..., Subject]) -> None:
    with pytest.raises(NoServerError):
        Bench(make_subject(), SIGNATURE, PACE, Server(NoServerError("not installed")))(CANDIDATE)


def test_what_one_should_know_of_a_measurement_is_told() -> None:
    assert remarks(Throughput(samples_per_second=640.0, client_cores=0.5)) == []
    assert remarks(Throughput(samples_per_second=0, reason="it died")) == ["could not be served: it died"]
    (told,) = remarks(Throughput(samples_per_second=640.0, client_cores=0.97))
    assert told.startswith("the load generator used 0.97 of the one core that it can use")
    assert remarks(Throughput(samples_per_second=640.0, foreign_cores=0.05)) == []
    (told,) = remarks(Throughput(samples_per_second=640.0, foreign_cores=0.4))
    assert told == "other processes used 0.40 cores meanwhile: the figure may be too low"


def test_images_are_of_the_signature_and_always_the_same() -> None:
    assert images(SIGNATURE, 5).shape == (5, 4, 4, 1)
    assert images(SIGNATURE, 5).dtype == np.uint8
    floats = images(SIGNATURE.model_copy(update={"input_type": "float32"}), 5)
    assert floats.dtype == np.float32
    assert 0 <= floats.min() <= floats.max() < 1
    assert np.array_equal(images(SIGNATURE, 5), images(SIGNATURE, 5))


def test_latency_is_measured_under_the_load_that_the_spec_names(make_subject: Callable[..., Subject]) -> None:
    latency = {"requestsInFlight": 2, "samplesPerRequest": 4}
    server = Server()
    throughput = Bench(make_subject(objective="latency", latency=latency), SIGNATURE, PACE, server)(CANDIDATE)
    assert server.loads == [((128, 4, 4, 1), 2.0, 2, 4, PACE.deadline(CANDIDATE.matrix, 2 * 4))]
    assert throughput.latency_seconds == (0.1, 0.1, 0.1)
    assert throughput.measured().latency == (0.1, 0.1, 0.1)


def test_of_growing_loads_the_fastest_within_the_latency_counts(make_subject: Callable[..., Subject]) -> None:
    class Growing(Server):
        """Ten more samples/s and 10 ms more with each request in flight."""

        def measure(
            self, plan: Plan, images: Any, seconds: float, in_flight: int, samples: int, deadline: float
        ) -> Measurement:
            found = super().measure(plan, images, seconds, in_flight, samples, deadline)
            return found.model_copy(update={"throughput": 10.0 * in_flight, "p90": 0.01 * in_flight})

    for limit, fastest, loads in ((25, 20.0, [1, 2, 3]), (5, 10.0, [1, 2]), (1000, 80.0, [1, 2, 3, 4, 6, 8])):
        latency = {"percentile": "p90", "milliseconds": limit, "samplesPerRequest": 64}
        subject = make_subject(objective="throughput-within-latency", latency=latency)
        server = Growing()
        throughput = Bench(subject, SIGNATURE, PACE, server)(CANDIDATE)
        assert throughput.samples_per_second == fastest
        assert [in_flight for _, _, in_flight, _, _ in server.loads] == loads
        assert load_settings(subject.deployment)["latency"]["milliseconds"] == limit


def test_the_load_is_one_segment_or_the_largest_request(make_subject: Callable[..., Subject]) -> None:
    deployment = make_subject(secondsPerBenchmark=3).deployment
    assert load_settings(deployment) == {"secondsPerBenchmark": 3, "inFlight": 3, "samplesPerRequest": 128}


def test_more_devices_are_measured_with_more_requests_and_found_by_them(make_subject: Callable[..., Subject]) -> None:
    server, subject = Server(), make_subject()
    (group,) = subject.deployment.spec.devices
    spec = subject.deployment.spec.model_copy(update={"devices": (group.model_copy(update={"count": 8}),)})
    deployment = subject.deployment.model_copy(update={"spec": spec})
    Bench(replace(subject, deployment=deployment), SIGNATURE, PACE, server)(CANDIDATE)
    deadline = PACE.deadline(CANDIDATE.matrix, 9 * 128)
    assert [load[2:] for load in server.loads] == [(9, 128, deadline)]
    assert server.applied[0].answering.deadline_seconds == deadline
    assert load_settings(deployment)["inFlight"] == 9


def test_the_server_tells_its_version() -> None:
    found = server_version()
    assert found.name == "nvidia-pytriton"
    assert found.engine == f"onnxruntime {onnxruntime.__version__}"
    both = server_version(("onnxruntime", "openvino"))
    assert both.engine == f"{found.engine}, openvino {version('openvino')}"
    # What is not installed here does not run here: TensorRT.
    assert server_version(("onnxruntime", "tensorrt")) == found


def test_what_was_measured_with_another_averaging_backend_is_not_found(
    make_subject: Callable[..., Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = []
    for averaging in ("native", "python"):
        monkeypatch.setattr(installation, "averaging", lambda averaging=averaging: averaging)
        subject = replace(make_subject(), server=server_version())
        digests += [subject.benchmark_digest(CANDIDATE), subject.digest()]
    assert len(set(digests)) == 4


def test_without_the_averaging_that_is_wanted_there_is_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise ServingError("cmake is missing")

    monkeypatch.setattr(installation, "averaging", missing)
    with pytest.raises(NoServerError, match="cmake is missing"):
        server_version()
