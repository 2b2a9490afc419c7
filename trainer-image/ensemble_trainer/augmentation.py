"""Augmentation of a batch on the training device: an affine map of each image and a shift of each channel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Augmentation:
    """Largest changes; each image draws its own, uniformly between minus and plus these.

    Zoom is a factor in [1-zoom, 1+zoom]; translation a share of the side; shear the tangent of its angle; the channel
    shift a share of the training samples' range of values. Pixels from outside repeat the border.
    """

    zoom: float = 0.0
    translation: float = 0.0
    shear: float = 0.0
    channel_shift: float = 0.0
    rotation_degrees: float = 0.0

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> Augmentation:
        return cls(
            zoom=parameters["maxZoom"],
            translation=parameters["maxTranslation"],
            shear=parameters["maxShear"],
            channel_shift=parameters["maxChannelShift"],
            rotation_degrees=parameters["maxRotationDegrees"],
        )

    @property
    def moves(self) -> bool:
        return any((self.zoom, self.translation, self.shear, self.rotation_degrees))

    def __call__(self, images: Tensor, span: Tensor, generator: torch.Generator) -> Tensor:
        """Change float images [N,C,H,W].

        Args:
            images: The batch, on any device.
            span: Lowest and highest value of each channel, shape (2, C); shifted values are clipped to it.
            generator: On the CPU, so that the same numbers are drawn for every device.
        """
        if self.moves:
            images = _warp(images, self.affine(len(images), images.shape[2] / images.shape[3], generator))
        if self.channel_shift:
            low, high = span[:, None, :, None, None]
            factors = _draw(generator, self.channel_shift, len(images), images.shape[1]).to(images.device)
            images = images + factors[:, :, None, None] * (high - low)
            images = images.clamp(low, high)
        return images

    def affine(self, count: int, aspect: float, generator: torch.Generator) -> Tensor:
        """Maps from places in the result to places in the image, shape (count, 2, 3), both in [-1,1]; aspect is H/W."""
        angle = _draw(generator, math.radians(self.rotation_degrees), count)
        shear = _draw(generator, self.shear, count)
        scale = 1 / (1 + _draw(generator, self.zoom, count))
        shift = 2 * _draw(generator, self.translation, count, 2)
        cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
        # Rotation times shear; the aspect ratio keeps angles right on images that are not square.
        first = torch.stack((cos, (shear * cos - sin) * aspect, shift[:, 0]), dim=1)
        second = torch.stack((sin / aspect, shear * sin + cos, shift[:, 1]), dim=1)
        return torch.stack((first, second), dim=1)


def _draw(generator: torch.Generator, largest: float, *shape: int) -> Tensor:
    return (2 * torch.rand(*shape, generator=generator) - 1) * largest


def _warp(images: Tensor, maps: Tensor) -> Tensor:
    grid = functional.affine_grid(maps.to(images.device), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
