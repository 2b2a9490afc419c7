"""Shuffled, augmented, normalised training batches, prepared in chunks by a thread while the network trains.

The paper's trial is a preprocessor and a trainer side by side (Pochelu et al. 2022, section 2.2). A chunk of many
batches is prepared at once: on small images a batch's worth of work is less than the cost of starting it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from ensemble_trainer.augmentation import Augmentation

CHUNK_BYTES = 32 << 20  # of float32 images

Batch = tuple[Tensor, Tensor]
Prepare = Callable[[Tensor], Tensor]


class Batches:
    """One epoch after another of a training set; epoch e depends on the seed and e alone, so any can be repeated.

    Args:
        images: Raw samples [N,H,W,C] on the device, or on the host if they are too many for it.
        labels: Classes, int64 [N], on the same device as the images.
        prepare: From raw [n,H,W,C] to normalised float32 [n,C,H,W] on the training device.
        augmentation: Applied to normalised images.
        overlap: Whether a thread prepares ahead; without a core or GPU to spare it only costs.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        prepare: Prepare,
        augmentation: Augmentation,
        overlap: bool,
    ) -> None:
        self.images, self.labels = images, labels
        self.augmentation, self.prepare, self.overlap = augmentation, prepare, overlap
        self.span = self._span() if augmentation.channel_shift else torch.zeros(2, images.shape[3])

    def epoch(self, batch_size: int, seed: int) -> Iterator[Batch]:
        """All samples once, in random order; a single one left over joins the last batch."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.images), generator=generator)
        for images, labels in self._ahead(self._chunks(order, batch_size), generator):
            for rows in cuts(len(labels), batch_size):
                yield images[rows], labels[rows]

    def _chunks(self, order: Tensor, batch_size: int) -> list[Tensor]:
        """Whole batches, as many as fit in CHUNK_BYTES."""
        batches = max(1, CHUNK_BYTES // (4 * self.images[0].numel() * batch_size))
        return [order[rows] for rows in cuts(len(order), batches * batch_size)]

    def _ahead(self, chunks: list[Tensor], generator: torch.Generator) -> Iterator[Batch]:
        if not self.overlap:
            yield from (self._prepared(chunk, generator) for chunk in chunks)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="preprocessor") as thread:
            coming = thread.submit(self._prepared, chunks[0], generator)
            for chunk in chunks[1:]:
                ready, coming = coming.result(), thread.submit(self._prepared, chunk, generator)
                yield ready
            yield coming.result()

    @torch.no_grad()
    def _prepared(self, rows: Tensor, generator: torch.Generator) -> Batch:
        rows = rows.to(self.images.device)
        images = self.augmentation(self.prepare(self.images[rows]), self.span, generator)
        return images, self.labels[rows].to(images.device)

    @torch.no_grad()
    def _span(self) -> Tensor:
        """Lowest and highest normalised value of each channel, shape (2, C), on the device."""
        low = self.images.amin(dim=(0, 1, 2))
        high = self.images.amax(dim=(0, 1, 2))
        corners = self.prepare(torch.stack((low, high))[:, None, None, :])
        return corners[:, :, 0, 0]


def cuts(samples: int, batch_size: int) -> Iterator[slice]:
    """Slices of `batch_size`; the last may be shorter, or one longer so that no batch has a single sample."""
    count = max(1, math.ceil(samples / batch_size) - (1 if samples % batch_size == 1 else 0))
    for index in range(count):
        yield slice(index * batch_size, samples if index == count - 1 else (index + 1) * batch_size)
