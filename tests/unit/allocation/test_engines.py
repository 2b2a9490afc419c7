"""Which engine runs what, by what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_core.allocation.candidate import Candidate
from ensemble_core.allocation.engines import LEAST_GAIN, Figures, choose
from ensemble_core.allocation.matrix import Matrix
from ensemble_core.allocation.plan import plan_of
from ensemble_core.allocation.result import Subject
from ensemble_core.engines import Engine
from ensemble_core.library.records import Accuracy, BatchProfile, Profile, Score, Signature

SIZES = (8, 32, 128)


def profile(
    engine: Engine,
    seconds: Mapping[int, float],
    spread: float = 0.0,
    memory: float = 100.0,
    refused: str | None = None,
    foreign: float = 0.0,
) -> Profile:
    """Of passes that lie as far apart around these times, relative to them."""
    batches = tuple(
        BatchProfile(
            batch_size=size,
            passes=(taken * (1 - spread / 2), taken, taken * (1 + spread / 2)),
            seconds=taken,
            memory_mib=memory + size,
            foreign_cores=foreign,
        )
        for size, taken in seconds.items()
    )
    return Profile(
        model="m", model_sha256="0" * 64, device_type="cpu-x-1c", engine=engine, engine_version="1", cores=1,
        load_seconds=0.1, batches=batches, refused=refused,
    )  # fmt: skip


def every(seconds: float) -> dict[int, float]:
    return dict.fromkeys(SIZES, seconds)


def chosen(default: Profile, other: Profile) -> dict[int, str]:
    return dict(choose({"onnxruntime": default, "openvino": other}, SIZES).engines)


@pytest.mark.parametrize(
    ("seconds", "spread", "taken"),
    [
        (1.0, 0.0, False),
        (1.0 / (1 + LEAST_GAIN), 0.0, False),
        (0.999 / (1 + LEAST_GAIN), 0.0, True),
        (1.0 / 1.2, 0.2, False),
        (0.999 / 1.2, 0.2, True),
        (2.0, 0.0, False),
    ],
)
def test_another_engine_must_be_faster_by_more_than_the_noise_of_either(
    seconds: float, spread: float, taken: bool
) -> None:
    expected = every(0.0).keys() if taken else set()
    for noise in ((0.0, spread), (spread, 0.0), (spread, spread)):
        ours, others = profile("onnxruntime", every(1.0), noise[0]), profile("openvino", every(seconds), noise[1])
        assert chosen(ours, others).keys() == expected


def test_onnx_runtime_that_others_disturbed_is_not_slower_for_it() -> None:
    others = profile("openvino", every(0.6))
    assert chosen(profile("onnxruntime", every(1.0), foreign=0.3), others).keys() == every(0.0).keys()
    assert chosen(profile("onnxruntime", every(1.0), foreign=0.4), others) == {}
    assert chosen(profile("onnxruntime", every(1.0), foreign=1.2), others) == {}


def test_each_batch_size_has_its_own_engine_with_its_times_and_memory() -> None:
    ours = profile("onnxruntime", {8: 2.0, 32: 1.0, 128: 1.0}, memory=100)
    others = profile("openvino", {8: 1.0, 32: 1.01, 128: 2.0}, memory=300)
    found = choose({"onnxruntime": ours, "openvino": others}, (8, 16, 32, 64, 128))
    # At 16, between a third and two thirds of the way, OpenVINO is still the faster one.
    assert dict(found.engines) == {8: "openvino", 16: "openvino"}
    by = {size: Figures.of(others if size < 32 else ours) for size in (8, 16, 32, 64, 128)}
    for size, own in by.items():
        assert found.times.seconds([size]) == own.times.seconds([size])
        assert found.curve.at(size) == own.curve.at(size)
    assert found.curve.at(8) == 308
    assert found.curve.at(32) == 132


def test_where_one_engine_is_the_fastest_its_profile_counts_as_it_is() -> None:
    ours, others = profile("onnxruntime", {8: 1.0, 24: 1.0, 128: 1.0}), profile("openvino", every(0.5))
    assert choose({"onnxruntime": ours}, SIZES) == Figures.of(ours)
    both = choose({"onnxruntime": ours, "openvino": others}, SIZES)
    assert replace(both, curves={}) == replace(Figures.of(others, dict.fromkeys(SIZES, "openvino")), curves={})


def test_each_engine_has_its_own_memory_whichever_is_chosen_now() -> None:
    ours = profile("onnxruntime", {8: 2.0, 128: 1.0}, memory=100)
    others = profile("openvino", {8: 1.0, 128: 2.0}, memory=300)
    for second in (others, profile("openvino", every(0.5), memory=300), profile("openvino", every(9.0), memory=300)):
        found = choose({"onnxruntime": ours, "openvino": second}, SIZES)
        needs = [(found.memory("onnxruntime", size), found.memory("openvino", size)) for size in SIZES]
        assert needs == [(108, 308), (132, 332), (228, 428)]
    alone = choose({"onnxruntime": ours, "openvino": profile("openvino", {}, refused="no")}, SIZES)
    assert alone.memory("openvino", 8) == 108


def test_an_engine_that_was_refused_is_not_used_however_fast() -> None:
    ours = profile("onnxruntime", every(1.0))
    assert chosen(ours, profile("openvino", every(0.1), refused="answers otherwise")) == {}
    assert chosen(ours, profile("openvino", {}, refused="does not support Det")) == {}
    assert choose({"onnxruntime": ours, "openvino": profile("openvino", {}, refused="no")}, SIZES) == Figures.of(ours)


def test_what_half_precision_does_goes_along_unless_it_was_refused() -> None:
    score = Score(cross_entropy=0.5, error=0.25)
    accuracy = Accuracy(samples=8, float32=score, half=score, changed=0.0)
    ours, half = profile("onnxruntime", every(1.0)), profile("openvino-bf16", every(0.3))
    half = half.model_copy(update={"accuracy": accuracy})
    found = choose({"onnxruntime": ours, "openvino": profile("openvino", every(0.9)), "openvino-bf16": half}, SIZES)
    assert dict(found.engines) == dict.fromkeys(SIZES, "openvino-bf16")
    assert found.accuracies == {"openvino-bf16": accuracy}
    refused = half.model_copy(update={"refused": "worse"})
    found = choose({"onnxruntime": ours, "openvino-bf16": refused}, SIZES)
    assert (found.engines, found.accuracies) == ({}, {})


@pytest.mark.parametrize(
    ("half", "spread", "engine"),
    [(0.497, 0.06, "openvino"), (0.497, 0.0, "openvino"), (0.48, 0.06, "openvino"), (0.48, 0.0, "openvino-bf16")],
)
def test_half_precision_must_be_faster_than_the_fastest_engine_in_float32_by_more_than_the_noise(
    half: float, spread: float, engine: Engine
) -> None:
    profiles: dict[Engine, Profile] = {
        "onnxruntime": profile("onnxruntime", every(1.0), spread),
        "openvino": profile("openvino", every(0.5), spread),
        "openvino-bf16": profile("openvino-bf16", every(half), spread),
    }
    assert dict(choose(profiles, SIZES).engines) == dict.fromkeys(SIZES, engine)
    without = {each: own for each, own in profiles.items() if each != "openvino"}
    assert dict(choose(without, SIZES).engines) == dict.fromkeys(SIZES, "openvino-bf16")


TIMES = st.dictionaries(st.sampled_from((4, 8, 32, 100, 128)), st.floats(1e-3, 1e3), min_size=1)


@given(
    TIMES,
    st.dictionaries(st.sampled_from(("openvino", "tensorrt")), st.tuples(TIMES, st.floats(0, 1), st.booleans())),
    st.sets(st.integers(1, 300), min_size=1).map(sorted),
)
def test_what_is_chosen_is_never_slower_than_onnx_runtime_and_as_its_engine_was_measured(
    default: dict[int, float], others: dict[Engine, tuple[dict[int, float], float, bool]], sizes: list[int]
) -> None:
    profiles: dict[Engine, Profile] = {"onnxruntime": profile("onnxruntime", default)}
    for engine, (seconds, spread, refused) in others.items():
        profiles[engine] = profile(engine, seconds, spread, refused="no" if refused else None)
    found, ours = choose(profiles, sizes), Figures.of(profiles["onnxruntime"])
    assert found.engines.keys() <= set(sizes)
    for size in sizes:
        engine = found.engines.get(size, "onnxruntime")
        assert profiles[engine].refused is None
        own = Figures.of(profiles[engine])
        assert found.times.seconds([size])[0] == own.times.seconds([size])[0] <= ours.times.seconds([size])[0]
        assert found.curve.at(size) == pytest.approx(own.curve.at(size))


def with_openvino(subject: Subject, *members: int) -> Subject:
    """The subject with some members that OpenVINO runs in batches of 8."""
    return replace(
        subject,
        chosen=tuple(
            {"cpu-test-1c": {8: "openvino"} if index in members else {}} for index in range(len(subject.members))
        ),
    )


def test_workers_have_the_engine_of_their_member_and_batch_size(make_subject: Callable[..., Subject]) -> None:
    subject, matrix = with_openvino(make_subject(), 0), Matrix(((8, 8), (32, 0)))
    engines = subject.engines(matrix)
    assert engines == (("openvino", "onnxruntime"), ("onnxruntime", None))
    signature = Signature(input_type="uint8", input_shape=(8, 8, 1), classes=10)
    plan = plan_of(Candidate(matrix), subject.members, subject.devices, signature, subject.deployment, engines)
    assert [plan.model_name(worker) for worker in plan.workers] == [
        "m-0000--cpu0--b8--openvino",
        "m-0001--cpu0--b8",
        "m-0000--cpu1--b32",
    ]


def test_a_measurement_is_one_of_the_engines_that_ran_it(make_subject: Callable[..., Subject]) -> None:
    plain, candidate = make_subject(), Candidate(Matrix(((8, 8), (0, 0))))
    keys = [
        subject.benchmark_digest(candidate)
        for subject in (plain, with_openvino(plain), with_openvino(plain, 0), with_openvino(plain, 0, 1))
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    # At other batch sizes the same engines run as before.
    other = Candidate(Matrix(((32, 32), (0, 0))))
    assert with_openvino(plain, 0).benchmark_digest(other) == plain.benchmark_digest(other)
    newer = replace(plain, server=plain.server.model_copy(update={"engine": "onnxruntime 1.31.1, openvino 2026.4.1"}))
    assert newer.digest() != plain.digest()
    assert newer.benchmark_digest(candidate) != plain.benchmark_digest(candidate)
