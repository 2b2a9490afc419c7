"""One trial: a network, its optimiser and its data, trained epoch by epoch and kept warm between rungs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ensemble_core.frozen import canonical
from ensemble_core.library.records import Metrics
from ensemble_core.metrics import metrics
from ensemble_trainer.adam import Adam
from ensemble_trainer.augmentation import Augmentation
from ensemble_trainer.batches import Batches
from ensemble_trainer.datasets import Dataset
from ensemble_trainer.export import Exported, export
from ensemble_trainer.resnet import Architecture, build
from ensemble_trainer.seeds import hashed

CHECKPOINT = "checkpoint.safetensors"
EVALUATION_BATCH = 256


class Diverged(Exception):  # noqa: N818 (it names what happened)
    """The loss or the predictions are no longer finite numbers."""


@dataclass(frozen=True)
class TrialSettings:
    """What a trial gets beside its hyperparameters.

    Args:
        seed: Of this trial: initial weights, order of samples, augmentation.
        threads: CPU cores it may use.
        stem: The specification's `trainer.stem`.
    """

    seed: int
    threads: int = 1
    stem: Literal["auto", "small", "large"] = "auto"


class TrialRun:
    """Training of one set of hyperparameters.

    Adam with a constant learning rate minimises cross-entropy. L2 regularisation is part of the loss, as in the
    paper's Keras, and not AdamW's decay of the weights; see `Adam`.

    Runs on a GPU wherever torch sees one. On the CPU the same seed, parameters and threads give the same weights,
    whether or not the trial was interrupted at an epoch.
    """

    def __init__(self, parameters: Mapping[str, Any], dataset: Dataset, settings: TrialSettings) -> None:
        torch.set_num_threads(settings.threads)
        self.parameters, self.dataset, self.settings = dict(parameters), dataset, settings
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.epoch = 0
        mean, std = dataset.normalisation
        self.architecture = Architecture.of(
            parameters,
            settings.stem,
            input_shape=dataset.input_shape,
            input_type=dataset.input_type,
            classes=len(dataset.class_names),
            mean=mean,
            std=std,
        )
        # Channels last trains 10-27 % faster on the CPU over all block types, images of 8×8 to 64×64.
        self.layout = torch.channels_last if self.device.type == "cpu" else torch.contiguous_format
        initial = build(self.architecture, seed=hashed(settings.seed, "weights"))
        self.network = initial.to(self.device).to(memory_format=self.layout)
        self.optimizer = Adam(self.network, parameters["learningRate"], parameters["l2"])
        self.batches = self._batches()

    def _batches(self) -> Batches:
        images = torch.from_numpy(np.asarray(self.dataset.train.images))
        labels = torch.from_numpy(self.dataset.train.labels)
        on_device = self.device if fits(images, self.device) else torch.device("cpu")
        return Batches(
            images.to(on_device),
            labels.to(on_device),
            self._prepare,
            Augmentation.of(self.parameters),
            overlap=self.device.type == "cuda" or self.settings.threads > 1,
        )

    def _prepare(self, raw: Tensor) -> Tensor:
        return self.network.prepare(raw.to(self.device)).contiguous(memory_format=self.layout)

    def advance(self, until_epoch: int) -> Metrics:
        """Train until so many epochs are done and measure on the validation samples.

        Raises:
            Diverged: the loss or a prediction is not finite.
        """
        while self.epoch < until_epoch:
            self._train_epoch()
        return self.evaluate()

    def _train_epoch(self) -> None:
        self.network.train()
        entropy = nn.CrossEntropyLoss()
        total = torch.zeros((), device=self.device)
        seed = hashed(self.settings.seed, "epoch", self.epoch)
        for images, labels in self.batches.epoch(self.parameters["batchSize"], seed):
            self.optimizer.clear()
            loss = entropy(self.network.logits(images), labels)
            loss.backward()
            self.optimizer.step()
            total += loss.detach()
        self.epoch += 1
        # Looked at once per epoch: a look per batch would make a GPU wait.
        if not torch.isfinite(total):
            raise Diverged(f"the training loss is {total.item()} in epoch {self.epoch}")

    @torch.inference_mode()
    def evaluate(self) -> Metrics:
        """Metrics on the validation samples, by torch."""
        self.network.eval()
        images = torch.from_numpy(np.asarray(self.dataset.validation.images))
        answers = [self.network(batch.to(self.device)).cpu() for batch in torch.split(images, EVALUATION_BATCH)]
        probabilities = torch.cat(answers).numpy()
        if not np.isfinite(probabilities).all():
            raise Diverged(f"predictions are not finite after epoch {self.epoch}")
        return metrics(probabilities, self.dataset.validation.labels)

    def export(self, folder: Path) -> Exported:
        """Write the model's files into `folder`; see `export.export`."""
        return export(self.network, self.architecture, self.dataset, folder, self.settings.threads)

    def save(self, folder: Path) -> None:
        """Write a checkpoint, one safetensors file that is complete when it is there.

        It holds weights, Adam's moments and the epoch. The random state needs no saving: an epoch's order and
        augmentation come from the seed and its number.
        """
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors |= {f"adam.{name}": tensor for name, tensor in self.optimizer.state().items()}
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        folder.mkdir(parents=True, exist_ok=True)
        scratch = folder / f"{CHECKPOINT}.{os.getpid()}"
        save_file(tensors, scratch, metadata={"epoch": str(self.epoch), "trial": self._identity()})
        os.replace(scratch, folder / CHECKPOINT)

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint of the same parameters, data set and seed; otherwise ValueError."""
        with safe_open(folder / CHECKPOINT, framework="pt") as file:
            about = file.metadata()
            if about["trial"] != self._identity():
                raise ValueError(f"{folder / CHECKPOINT} belongs to another trial: {about['trial']}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        self.network.load_state_dict(_below(tensors, "network."))
        self.optimizer.load(_below(tensors, "adam."))
        self.epoch = int(about["epoch"])

    def _identity(self) -> str:
        architecture = self.architecture.document()
        content = {"parameters": self.parameters, "seed": self.settings.seed, "architecture": architecture}
        return canonical(json.loads(json.dumps(content))).decode()


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def fits(images: Tensor, device: torch.device) -> bool:
    """Whether the training images take less than an eighth of the device, which trials may share."""
    if device.type != "cuda":
        return True
    total = torch.cuda.get_device_properties(device).total_memory
    return images.numel() * images.element_size() < total // 8
