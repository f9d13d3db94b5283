"""Drawn shapes, on which the demo pretrains a backbone, without the published weights.

A class is an outline and a fill. Position, size, angle and colours are random. The pictures show no
lesions, so the network must transfer what it learns. `lesions` uses the same functions.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float32]

OUTLINES = ("round", "star", "ragged")
FILLS = ("plain", "striped", "blotched")
KINDS = tuple(product(OUTLINES, FILLS))


def draw_shape(rng: np.random.Generator, kind: int, size: int) -> NDArray[np.uint8]:
    """Returns a picture of the kind at position *kind* of KINDS, (size, size, 3)."""
    outline, fill = KINDS[kind]
    x, y = grid(size, rng.uniform(-0.2, 0.2, 2))
    angle = np.arctan2(y, x) + np.float32(rng.uniform(0, 2 * np.pi))
    if outline == "star":
        radius = 0.85 + rng.uniform(0.15, 0.3) * np.cos(rng.integers(3, 7) * angle)
    else:
        radius = wavy(rng, angle, (outline == "ragged") * 0.22 / np.sqrt(np.arange(2, 16)))
    cover = np.clip((rng.uniform(0.45, 0.8) * radius - np.hypot(x, y)) * size / 4 + 0.5, 0, 1)
    share = np.zeros_like(x)  # of the second colour
    if fill == "striped":
        turn = rng.uniform(0, np.pi)
        share = np.sin((np.cos(turn) * x + np.sin(turn) * y) * rng.uniform(12, 24)) > 0
    elif fill == "blotched":
        share = np.clip(2 * noise(rng, size, int(rng.integers(6, 10))), 0, 1)
    # In every channel, consecutive colours differ by at least a quarter of the scale.
    ground, body, other = np.cumsum(rng.uniform(64, 192, (3, 3, 1, 1)), axis=0) % 256
    picture = ground + cover * (body + share * (other - body) - ground)
    picture = picture * (1 + 0.12 * noise(rng, size, 4)) + 6 * rng.standard_normal((size, size))
    return to_pixels(picture)


def grid(size: int, middle: NDArray[np.float64]) -> tuple[Array, Array]:
    """Returns x and y of every pixel, (size, size) each, from -1 to 1 minus *middle*."""
    x, y = np.meshgrid(*2 * [np.linspace(-1, 1, size, dtype=np.float32)])
    return x - np.float32(middle[0]), y - np.float32(middle[1])


def noise(rng: np.random.Generator, size: int, cells: int) -> Array:
    """Returns smooth noise (size, size) of about unit variance, with *cells* bumps per side."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def wavy(rng: np.random.Generator, angle: Array, strengths: NDArray[np.float64]) -> Array:
    """Returns the radius of an outline at each angle, about 1, with 2 and more waves per turn."""
    radius = np.ones_like(angle)
    for waves, strength in enumerate(strengths, start=2):
        height, phase = rng.normal(0, strength), rng.uniform(0, 2 * np.pi)
        radius += np.float32(height) * np.cos(np.float32(waves) * angle + np.float32(phase))
    return radius


def to_pixels(picture: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Returns a picture (3, H, W) of 0 to 255 as (H, W, 3) uint8."""
    return np.ascontiguousarray(np.clip(picture, 0, 255).astype(np.uint8).transpose(1, 2, 0))
