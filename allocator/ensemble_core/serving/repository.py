"""A plan as a Triton model repository: one model per worker, and one front model that averages them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2 as pb

from ensemble_core.allocation.plan import Plan, Worker
from ensemble_core.engines import HALF, tensorrt_shapes
from ensemble_core.library.records import Signature
from ensemble_core.serving.workers import workers_of

VERSION = "1"
# Defaults of Triton's own, which vary with its version.
FILLED_IN = {"platform", "runtime", "default_model_filename", "version_policy", "optimization"}
TYPES = {"uint8": pb.TYPE_UINT8, "float32": pb.TYPE_FP32}


def render(plan: Plan) -> dict[str, str]:
    """The texts of the repository by their path in it; deterministic, nothing is read or written.

    Every configuration is written by protobuf's text format from Triton's own message, so it is one that Triton parses.
    A model on CPU cores is for the backend `member` beside this package, one on a GPU for Triton's `onnxruntime`, also
    with TensorRT; those on a GPU have not run on one yet. Raises ValueError if two models would have the same name.
    """
    return {f"{name}/config.pbtxt": text_format.MessageToString(config) for name, config in configs(plan).items()}


def configs(plan: Plan) -> dict[str, Any]:
    """The configuration of each model; ValueError as of `render`."""
    found = [_front(plan), *(_worker(plan, worker) for worker in plan.workers)]
    by_name = {config.name: config for config in found}
    if len(by_name) < len(found):
        raise ValueError(f"{plan.name}: two models of the repository have the same name")
    return by_name


def loaded_config(content: Any) -> Any:
    """The configuration of a loaded model, from Triton's JSON, without what Triton has filled in: equal to that of
    `configs` if the model was loaded with it."""
    config = json_format.ParseDict(content, pb.ModelConfig(), ignore_unknown_fields=True)
    accelerators = pb.ModelOptimizationPolicy.ExecutionAccelerators()
    accelerators.CopyFrom(config.optimization.execution_accelerators)
    for field, _ in config.ListFields():
        if field.name in FILLED_IN:
            config.ClearField(field.name)
    if accelerators.ByteSize():  # all of the optimization that is said here
        config.optimization.execution_accelerators.CopyFrom(accelerators)
    for group in config.instance_group:
        group.ClearField("name")
    return config


def weights(plan: Plan) -> dict[str, str]:
    """Where the repository's ONNX files come from: path in the repository → absolute path of the file."""
    return {
        f"{plan.model_name(worker)}/{VERSION}/model.onnx": plan.members[worker.member].onnx for worker in plan.workers
    }


def write(plan: Plan, folder: Path) -> None:
    """Write what differs from the folder's content; ONNX files are linked. A model that stays the same is not touched,
    so that Triton does not load it again."""
    for path, text in render(plan).items():
        target = folder / path
        (target.parent / VERSION).mkdir(parents=True, exist_ok=True)
        if not target.is_file() or target.read_text() != text:
            target.write_text(text)
    for path, source in weights(plan).items():
        _link(Path(source), folder / path)


def forget(model: str, folder: Path) -> None:
    """Remove a model from the folder."""
    shutil.rmtree(folder / model, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    if target.is_file() and (not source.exists() or os.path.samefile(source, target)):  # it may be gone since
        return
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:  # another file system, or one without hard links
        target.symlink_to(source)


def _front(plan: Plan) -> Any:
    signature = plan.signature
    config = pb.ModelConfig(name=plan.name, backend="averaging", max_batch_size=plan.max_batch_size)
    config.input.add(name="INPUT", data_type=TYPES[signature.input_type], dims=signature.input_shape)
    config.output.add(name="PROBABILITIES", data_type=pb.TYPE_FP32, dims=[signature.classes])
    # Which members are in the average of a sample.
    config.output.add(name="ANSWERED", data_type=pb.TYPE_BOOL, dims=[len(plan.members)])
    # How much they disagree about it.
    config.output.add(name="DISAGREEMENT", data_type=pb.TYPE_FP32, dims=[1])
    # One instance holds any number of requests at a time, and its workers' queues are shared by all of them.
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)
    return _with_parameters(
        config,
        workers=workers_of(plan).model_dump_json(by_alias=True),
        segment_size=str(plan.segment_size),
        rule=plan.answering.rule,
        scores=plan.answering.scores,
        routing=plan.answering.routing,
        quorum=str(plan.answering.quorum or len(plan.members)),
        retries=str(plan.answering.retries),
        deadline_seconds=str(plan.answering.deadline_seconds),
    )


def _worker(plan: Plan, worker: Worker) -> Any:
    device = plan.device(worker.device)
    config = pb.ModelConfig(name=plan.model_name(worker))
    parameters = {"sha256": plan.members[worker.member].sha256, "engine": worker.engine}
    if device.type == "gpu":
        config.backend, config.max_batch_size = "onnxruntime", worker.batch_size
        config.input.add(name="INPUT", data_type=TYPES[plan.signature.input_type], dims=plan.signature.input_shape)
        config.output.add(name="PROBABILITIES", data_type=pb.TYPE_FP32, dims=[plan.signature.classes])
        config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_GPU, count=1, gpus=[device.ordinal])
        if worker.engine.startswith("tensorrt"):
            _add_tensorrt(config, plan.signature, worker.batch_size, HALF.get(worker.engine, "FP32"))
        return _with_parameters(config, **parameters)
    # A reference is not a batch of samples: 0 keeps Triton from reading its 4 numbers as one.
    config.backend, config.max_batch_size = "member", 0
    config.input.add(name="SEG", data_type=pb.TYPE_INT64, dims=[4])
    config.output.add(name="PROBABILITIES", data_type=pb.TYPE_FP32, dims=[-1, plan.signature.classes])
    config.output.add(name="CALL", data_type=pb.TYPE_INT64, dims=[1])
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)
    if device.pinned:
        parameters["cores"] = ",".join(str(core) for core in device.cores)
    return _with_parameters(config, **parameters, threads=str(len(device.cores)), batch=str(worker.batch_size))


def _add_tensorrt(config: Any, signature: Signature, batch_size: int, precision: str) -> None:
    """Let ONNX Runtime give TensorRT what it can run; its engine is built, and its memory taken, at load."""
    accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="tensorrt")
    accelerator.parameters["precision_mode"] = precision
    for name, shapes in tensorrt_shapes("INPUT", signature.input_shape, batch_size).items():
        accelerator.parameters[name] = shapes
    warmup = config.model_warmup.add(name="zeros", batch_size=batch_size, count=1)
    given = warmup.inputs["INPUT"]
    given.data_type, given.zero_data = TYPES[signature.input_type], True
    given.dims.extend(signature.input_shape)


def _with_parameters(config: Any, **parameters: str) -> Any:
    for name in sorted(parameters):
        config.parameters[name].string_value = parameters[name]
    return config
