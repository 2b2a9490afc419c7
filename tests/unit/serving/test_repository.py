from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2 as pb

from ensemble_core.allocation.plan import Member, Worker
from ensemble_core.serving import repository
from ensemble_core.serving.workers import Workers, workers_of


def parsed(texts):
    return {path: text_format.Parse(text, pb.ModelConfig()) for path, text in texts.items()}


def test_there_is_one_model_per_worker_and_one_front_model(make_plan):
    configs = parsed(repository.render(make_plan()))
    names = {"digits", "m-0--cpu0--b32", "m-0--cpu1--b8", "m-1--cpu1--b128", "m-2--gpu0--b64"}
    assert set(configs) == {f"{name}/config.pbtxt" for name in names}
    assert all(path == f"{config.name}/config.pbtxt" for path, config in configs.items())


@pytest.mark.parametrize(("kind", "triton"), [("uint8", pb.TYPE_UINT8), ("float32", pb.TYPE_FP32)])
def test_the_front_model_has_the_members_signature(make_plan, kind, triton):
    plan = make_plan(signature={"input_type": kind, "input_shape": (32, 16, 3), "classes": 7})
    front = parsed(repository.render(plan))["digits/config.pbtxt"]
    assert (front.backend, front.max_batch_size) == ("averaging", 4096)
    assert [(given.name, given.data_type, list(given.dims)) for given in front.input] == [
        ("INPUT", triton, [32, 16, 3])
    ]
    assert [(given.name, given.data_type, list(given.dims)) for given in front.output] == [
        ("PROBABILITIES", pb.TYPE_FP32, [7]),
        ("ANSWERED", pb.TYPE_BOOL, [3]),
        ("DISAGREEMENT", pb.TYPE_FP32, [1]),
    ]
    assert [(group.kind, group.count) for group in front.instance_group] == [(pb.ModelInstanceGroup.KIND_CPU, 1)]
    assert front.parameters["segment_size"].string_value == "128"


def test_the_front_model_is_told_how_answers_become_one(make_plan):
    def told(**answering):
        front = parsed(repository.render(make_plan(answering=answering)))["digits/config.pbtxt"]
        names = ("rule", "scores", "routing", "quorum", "retries", "deadline_seconds")
        return [front.parameters[name].string_value for name in names]

    assert told() == ["weighted", "probabilities", "pull", "3", "0", "60.0"]
    given = {"rule": "vote", "scores": "logits", "routing": "weights", "quorum": 2, "retries": 1}
    assert told(**given, deadline_seconds=0.5) == ["vote", "logits", "weights", "2", "1", "0.5"]
    with pytest.raises(ValueError, match="a quorum of 4 is more than all 3 members"):
        make_plan(answering={"quorum": 4})


def test_the_front_model_names_members_weights_and_workers(make_plan):
    plan = make_plan()
    front = parsed(repository.render(plan))["digits/config.pbtxt"]
    workers = Workers.model_validate_json(front.parameters["workers"].string_value)
    assert workers == workers_of(plan)
    assert [(member.model, member.weight) for member in workers.members] == [("m-0", 0.5), ("m-1", 0.25), ("m-2", 0.25)]
    assert [
        (worker.model, worker.batch, worker.share, worker.input)
        for member in workers.members
        for worker in member.workers
    ] == [
        ("m-0--cpu0--b32", 32, 1.0, "SEG"),
        ("m-0--cpu1--b8", 8, 2.0, "SEG"),
        ("m-1--cpu1--b128", 128, 1.0, "SEG"),
        ("m-2--gpu0--b64", 64, 1.0, "INPUT"),
    ]


def test_a_member_on_cores_takes_references(make_plan):
    config = parsed(repository.render(make_plan()))["m-0--cpu1--b8/config.pbtxt"]
    assert (config.backend, config.max_batch_size) == ("member", 0)
    assert [(given.name, given.data_type, list(given.dims)) for given in config.input] == [("SEG", pb.TYPE_INT64, [4])]
    outputs = [(given.name, list(given.dims)) for given in config.output]
    assert outputs == [("PROBABILITIES", [-1, 10]), ("CALL", [1])]
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "batch": "8",
        "cores": "2,3",
        "engine": "onnxruntime",
        "sha256": "0" * 64,
        "threads": "2",
    }


def test_a_member_that_keeps_to_no_cores_has_as_many_threads(make_plan):
    plan = make_plan()
    free = make_plan(devices=tuple(device.model_copy(update={"pinned": False}) for device in plan.devices))
    parameters = parsed(repository.render(free))["m-0--cpu1--b8/config.pbtxt"].parameters
    assert {key: value.string_value for key, value in parameters.items()} == {
        "batch": "8",
        "engine": "onnxruntime",
        "sha256": "0" * 64,
        "threads": "2",
    }


def test_a_member_on_a_gpu_runs_there_with_its_batch_size(make_plan):
    config = parsed(repository.render(make_plan()))["m-2--gpu0--b64/config.pbtxt"]
    assert (config.backend, config.max_batch_size) == ("onnxruntime", 64)
    assert [(given.name, list(given.dims)) for given in config.input] == [("INPUT", [8, 8, 1])]
    assert [(group.kind, list(group.gpus), group.count) for group in config.instance_group] == [
        (pb.ModelInstanceGroup.KIND_GPU, [0], 1)
    ]


def run_by(make_plan, **engines):
    """The plan with other engines, by device."""
    workers = make_plan().workers
    changed = [worker.model_copy(update={"engine": engines.get(worker.device, worker.engine)}) for worker in workers]
    return make_plan(workers=tuple(changed))


def test_an_engine_is_part_of_a_members_name_and_configuration(make_plan):
    plan = run_by(make_plan, cpu1="openvino")
    configs = parsed(repository.render(plan))
    assert configs["m-0--cpu0--b32/config.pbtxt"].parameters["engine"].string_value == "onnxruntime"
    assert configs["m-0--cpu1--b8--openvino/config.pbtxt"].parameters["engine"].string_value == "openvino"
    assert "m-0--cpu1--b8--openvino/1/model.onnx" in repository.weights(plan)
    workers = Workers.model_validate_json(configs["digits/config.pbtxt"].parameters["workers"].string_value)
    named = {worker.model for member in workers.members for worker in member.workers}
    assert named == plan.models - {"digits"} == {name.split("/")[0] for name in configs} - {"digits"}


def test_tensorrt_is_an_accelerator_whose_engine_is_built_at_load(make_plan):
    config = parsed(repository.render(run_by(make_plan, gpu0="tensorrt")))["m-2--gpu0--b64--tensorrt/config.pbtxt"]
    assert (config.backend, config.max_batch_size) == ("onnxruntime", 64)
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert [(each.name, dict(each.parameters)) for each in accelerators] == [
        (
            "tensorrt",
            {
                "precision_mode": "FP32",
                "trt_profile_min_shapes": "INPUT:1x8x8x1",
                "trt_profile_opt_shapes": "INPUT:64x8x8x1",
                "trt_profile_max_shapes": "INPUT:64x8x8x1",
            },
        )
    ]
    (warmup,) = config.model_warmup
    assert (warmup.batch_size, list(warmup.inputs)) == (64, ["INPUT"])
    given = warmup.inputs["INPUT"]
    assert (given.data_type, list(given.dims), given.zero_data) == (pb.TYPE_UINT8, [8, 8, 1], True)
    plain = parsed(repository.render(make_plan()))["m-2--gpu0--b64/config.pbtxt"]
    assert not plain.HasField("optimization")
    assert not plain.model_warmup


def test_half_precision_is_asked_of_the_engine_that_has_it(make_plan):
    texts = repository.render(run_by(make_plan, gpu0="tensorrt-fp16", cpu0="openvino-bf16"))
    config = parsed(texts)["m-2--gpu0--b64--tensorrt-fp16/config.pbtxt"]
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (accelerator.name, accelerator.parameters["precision_mode"]) == ("tensorrt", "FP16")
    member = parsed(texts)["m-0--cpu0--b32--openvino-bf16/config.pbtxt"]
    assert (member.backend, member.parameters["engine"].string_value) == ("member", "openvino-bf16")


HALF_ON_ANOTHER = [("gpu0", "openvino-bf16", "GPU"), ("cpu0", "tensorrt-fp16", "CPU")]


@pytest.mark.parametrize(
    ("device", "engine", "kind"), [("gpu0", "openvino", "GPU"), ("cpu0", "tensorrt", "CPU"), *HALF_ON_ANOTHER]
)
def test_an_engine_for_another_type_of_device_is_refused(make_plan, device, engine, kind):
    with pytest.raises(ValueError, match=f"{engine} does not run on {device}, which is a {kind}"):
        run_by(make_plan, **{device: engine})


def test_rendering_is_deterministic_and_writes_nothing(make_plan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert repository.render(make_plan()) == repository.render(make_plan())
    assert list(tmp_path.iterdir()) == []


def test_other_weights_of_a_member_are_another_text(make_plan):
    plan = make_plan()
    other = plan.members[0].model_copy(update={"sha256": "f" * 64})
    changed = repository.render(make_plan(members=(other, *plan.members[1:])))
    assert {path for path, text in repository.render(plan).items() if changed[path] != text} == {
        "m-0--cpu0--b32/config.pbtxt",
        "m-0--cpu1--b8/config.pbtxt",
    }


def test_a_front_model_named_like_a_worker_is_refused(make_plan):
    with pytest.raises(ValueError, match="same name"):
        repository.render(make_plan(name="m-0--cpu0--b32"))


def test_writing_links_the_files_and_leaves_what_is_the_same(make_plan, tmp_path: Path):
    source, folder = tmp_path / "m.onnx", tmp_path / "models"
    source.write_bytes(b"weights")
    member = Member(model_id="m-0", weight=1, onnx=str(source), sha256="0" * 64)
    plan = make_plan(members=(member,), workers=(Worker(member=0, device="cpu0", batch_size=8),))
    repository.write(plan, folder)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == ["digits/config.pbtxt", "m-0--cpu0--b8/1/model.onnx", "m-0--cpu0--b8/config.pbtxt"]
    assert (folder / "digits" / "1").is_dir()
    assert os.path.samefile(folder / "m-0--cpu0--b8/1/model.onnx", source)

    for path in (folder / "digits/config.pbtxt", folder / "m-0--cpu0--b8/config.pbtxt"):
        os.utime(path, (1, 1))
    repository.write(plan.model_copy(update={"segment_size": 64}), folder)
    assert (folder / "m-0--cpu0--b8/config.pbtxt").stat().st_mtime == 1
    assert (folder / "digits/config.pbtxt").stat().st_mtime > 1


def as_triton_tells(config):
    """The JSON of a loaded model: numbers as numbers, and Triton's own defaults filled in."""
    told = json_format.MessageToDict(
        config, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    for group in told["instance_group"]:
        group["name"] = f"{config.name}_0"
    filled_in = {"runtime": "model.py", "version_policy": {"latest": {"num_versions": 1}}, "new_in_some_version": 3}
    optimization = {**told.get("optimization", {}), "eager_batching": False}
    return json.loads(json.dumps({**told, **filled_in, "optimization": optimization}))


def test_what_triton_tells_of_a_loaded_model_is_what_was_written(make_plan):
    plan = run_by(make_plan, gpu0="tensorrt", cpu0="openvino")
    for config in (*repository.configs(make_plan()).values(), *repository.configs(plan).values()):
        assert repository.loaded_config(as_triton_tells(config)) == config


def test_another_precision_of_tensorrt_is_noticed(make_plan):
    config = repository.configs(run_by(make_plan, gpu0="tensorrt"))["m-2--gpu0--b64--tensorrt"]
    told = as_triton_tells(config)
    accelerators = told["optimization"]["execution_accelerators"]["gpu_execution_accelerator"]
    accelerators[0]["parameters"]["precision_mode"] = "FP16"
    assert repository.loaded_config(told) != config


@pytest.mark.parametrize(
    "change",
    [
        {"max_batch_size": 3},
        {"backend": "onnxruntime"},
        {"dynamic_batching": {}},
        {"parameters": {}},
        {"instance_group": [{"kind": "KIND_CPU", "count": 2}]},
    ],
)
def test_another_configuration_is_noticed(make_plan, change):
    config = repository.configs(make_plan())["m-0--cpu0--b32"]
    assert repository.loaded_config({**as_triton_tells(config), **change}) != config
