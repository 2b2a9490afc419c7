"""What a trained network leaves: ONNX file, weights, architecture, and predictions computed from the ONNX file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from safetensors.torch import load_file, save_file

from ensemble_core.frozen import canonical
from ensemble_core.library.records import SPLITS, Metrics
from ensemble_core.metrics import metrics
from ensemble_trainer.datasets import Dataset
from ensemble_trainer.resnet import Architecture, Network, build, count_flops
from ensemble_trainer.sources import Part

INPUT, OUTPUT = "INPUT", "PROBABILITIES"
OPSET = 17
PREDICT_BATCH = 256


@dataclass(frozen=True)
class Exported:
    """A trained model's files, keyed as the library's record names them, and its device-independent facts."""

    files: Mapping[str, Path]
    parameters: int
    flops: int  # for one sample, two per multiply-add
    validation: Metrics


def export(network: Network, architecture: Architecture, dataset: Dataset, folder: Path, threads: int) -> Exported:
    """Write all files of a model into `folder`.

    The predictions, and the metrics of them, come from ONNX Runtime on the exported file: what is measured is what is
    served.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights, described, model = (folder / n for n in ("model.safetensors", "architecture.json", "model.onnx"))
    copy = build(architecture).eval()
    copy.load_state_dict({name: tensor.cpu() for name, tensor in network.state_dict().items()})
    save_file(copy.state_dict(), weights)
    described.write_bytes(canonical(architecture.document()))
    to_onnx(copy, architecture, model)
    files = {file.name: file for file in (weights, described, model)}
    session = open_session(model, threads)
    for split in SPLITS:
        part: Part = getattr(dataset, split)
        predictions = predict(session, part.images)
        files[f"predictions-{split}.npy"] = folder / f"predictions-{split}.npy"
        np.save(files[f"predictions-{split}.npy"], predictions)
        if split == "validation":
            validation = metrics(predictions, part.labels)
    parameters = sum(p.numel() for p in copy.parameters())
    return Exported(files, parameters, count_flops(copy, architecture), validation)


def load_network(folder: Path) -> Network:
    """The network of `model.safetensors` and `architecture.json`, on the CPU."""
    architecture = Architecture.model_validate_json((folder / "architecture.json").read_bytes())
    network = build(architecture).eval()
    network.load_state_dict(load_file(folder / "model.safetensors"))
    return network


def to_onnx(network: Network, architecture: Architecture, path: Path) -> None:
    """Export with any number of samples as the first axis; raw samples in, probabilities out."""
    sample = torch.zeros((2, *architecture.input_shape), dtype=getattr(torch, architecture.input_type))
    with warnings.catch_warnings():
        # The tracing exporter takes 0.05 s for these static graphs, its announced successor 1.3 s.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        torch.onnx.export(
            network,
            (sample,),
            str(path),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "samples"}, OUTPUT: {0: "samples"}},
            opset_version=OPSET,
            dynamo=False,
        )


def open_session(path: Path, threads: int) -> Any:
    """An ONNX Runtime session on the GPU where there is one, in float32 without TF32, else on `threads` cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    providers: list[Any] = ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"use_tf32": "0"}))
    return onnxruntime.InferenceSession(str(path), options, providers=providers)


def predict(session: Any, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Probabilities [N,C] of raw images [N,H,W,C], a batch at a time."""
    batches = range(0, len(images), PREDICT_BATCH)
    answers = [session.run([OUTPUT], {INPUT: images[i : i + PREDICT_BATCH]})[0] for i in batches]
    return np.concatenate(answers)
