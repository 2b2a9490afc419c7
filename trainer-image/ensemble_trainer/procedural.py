"""A seeded procedural image set: 64×64×3, 20 classes, each a shape filled with a texture among distractors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

SIZE = 64
SHAPES = ("disc", "square", "triangle", "ring", "cross")
TEXTURES = ("stripes", "checks", "rings", "spots")
CLASS_NAMES = tuple(f"{texture}-{shape}" for shape in SHAPES for texture in TEXTURES)
CHUNK = 64  # images drawn at a time, so that the fields stay in the cache

Floats = npt.NDArray[np.floating[Any]]  # float32 throughout


def draw(samples: int, seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Draw balanced classes in random order.

    Returns:
        Images [samples,64,64,3] and labels [samples]. The same seed and number give the same bytes.
    """
    labels = np.random.default_rng([seed, 0]).permutation(samples) % len(CLASS_NAMES)
    images = np.empty((samples, SIZE, SIZE, 3), np.uint8)
    for start in range(0, samples, CHUNK):
        chunk = slice(start, min(start + CHUNK, samples))
        images[chunk] = _draw_chunk(labels[chunk], np.random.default_rng([seed, 1, start]))
    return images, labels.astype(np.int64)


def _draw_chunk(labels: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    count = len(labels)
    shapes, textures = np.divmod(labels, len(TEXTURES))
    canvas = _background(count, rng)
    for shape in range(len(SHAPES)):  # one small distractor of each shape: none tells anything of the class
        u, v = _frame(count, rng, radius=(0.08, 0.16), spread=0.95, turn=np.pi)
        _paint(canvas, _mask(u, v, shape), _colours(count, rng))
    u, v = _frame(count, rng, radius=(0.55, 0.8), spread=0.25, turn=0.4)
    pattern, mask = np.empty_like(u), np.empty_like(u)
    frequency, phase = _uniform(rng, (count, 1, 1), 8, 13), _uniform(rng, (count, 1, 1), 0, 6.28)
    for texture in range(len(TEXTURES)):
        rows = textures == texture
        pattern[rows] = _pattern(u[rows], v[rows], texture, frequency[rows], phase[rows])
    for shape in range(len(SHAPES)):
        rows = shapes == shape
        mask[rows] = _mask(u[rows], v[rows], shape)
    # Colours may come close to each other or to the ground: texture or outline is then faint, as in real pictures.
    dark, light = 0.5 * _colours(count, rng), 0.4 + 0.6 * _colours(count, rng)
    _paint(canvas, mask, dark + pattern[:, None] * (light - dark))
    canvas += rng.standard_normal(canvas.shape, np.float32) * _uniform(rng, (count, 1, 1, 1), 0.02, 0.08)
    return (canvas.clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)


def _uniform(rng: np.random.Generator, shape: tuple[int, ...], low: float, high: float) -> Floats:
    return rng.random(shape, np.float32) * np.float32(high - low) + np.float32(low)


def _colours(count: int, rng: np.random.Generator) -> Floats:
    return rng.random((count, 3, 1, 1), np.float32)


def _grid() -> tuple[Floats, Floats]:
    axis: Floats = np.linspace(-1, 1, SIZE).astype(np.float32)
    return axis[None, None, :], axis[None, :, None]


def _background(count: int, rng: np.random.Generator) -> Floats:
    """A gradient between two colours with a wave on it, [count,3,64,64]."""
    x, y = _grid()
    angle, frequency = _uniform(rng, (count, 1, 1), 0, 2 * np.pi), _uniform(rng, (count, 1, 1), 1, 14)
    along = np.cos(angle) * x + np.sin(angle) * y
    share = 0.5 + 0.3 * along + 0.2 * np.sin(frequency * along)
    first, second = _colours(count, rng), _colours(count, rng)
    canvas: Floats = first + share[:, None] * (second - first)
    return canvas


def _frame(
    count: int, rng: np.random.Generator, radius: tuple[float, float], spread: float, turn: float
) -> tuple[Floats, Floats]:
    """Coordinates in a shape's own frame (moved, turned, scaled): the shape lies within the unit circle."""
    x, y = _grid()
    one = (count, 1, 1)
    angle, size = _uniform(rng, one, -turn, turn), _uniform(rng, one, *radius)
    x = (x - _uniform(rng, one, -spread, spread)) / size
    y = (y - _uniform(rng, one, -spread, spread)) / size
    stretch = _uniform(rng, one, 0.85, 1.18)
    cos, sin = np.cos(angle), np.sin(angle)
    u: Floats = (cos * x + sin * y) * stretch
    v: Floats = cos * y - sin * x
    return u, v


def _mask(u: Floats, v: Floats, shape: int) -> Floats:
    """Coverage in [0,1] by a shape, soft over about a pixel: a signed distance made steep, [n,64,64]."""
    if SHAPES[shape] == "disc":
        distance = np.sqrt(u * u + v * v) - 0.85
    elif SHAPES[shape] == "square":
        distance = np.maximum(np.abs(u), np.abs(v)) - 0.72
    elif SHAPES[shape] == "triangle":
        distance = np.maximum(0.866 * np.abs(u) + 0.5 * v, -v) - 0.5
    elif SHAPES[shape] == "ring":
        distance = np.abs(np.sqrt(u * u + v * v) - 0.68) - 0.2
    else:
        wide, tall = np.abs(u), np.abs(v)
        distance = np.maximum(np.minimum(wide, tall) - 0.28, np.maximum(wide, tall) - 0.88)
    coverage: Floats = (0.5 - distance * 16).clip(0, 1)
    return coverage


def _pattern(u: Floats, v: Floats, texture: int, frequency: Floats, phase: Floats) -> Floats:
    """A texture's brightness in [0,1], [n,64,64]."""
    p, q = frequency * u + phase, frequency * v + 2 * phase
    if TEXTURES[texture] == "stripes":
        wave = np.sin(p)
    elif TEXTURES[texture] == "checks":
        wave = np.sin(p) * np.sin(q) * 2
    elif TEXTURES[texture] == "rings":
        wave = np.sin(frequency * np.sqrt(u * u + v * v) + phase)
    else:
        wave = np.sin(p) + np.sin(q) - 0.8
    brightness: Floats = (0.5 + 1.5 * wave).clip(0, 1)
    return brightness


def _paint(canvas: Floats, mask: Floats, colour: Floats) -> None:
    """Lay a colour, [n,3,1,1] or [n,3,64,64], over the images in place as far as the mask covers them."""
    canvas += mask[:, None] * (colour - canvas)
