"""Drawn shapes, to pretrain a backbone on where the published weights cannot be had.

A class is an outline and a fill; place, size, turn and colours are random. Nothing in the pictures
is a lesion: what a network learns from them is transferred.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

OUTLINES = ("disc", "polygon", "star", "ragged")
FILLS = ("plain", "striped", "blotched")
KINDS = tuple(product(OUTLINES, FILLS))


def draw_shapes(number: int, size: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Returns pictures (number, size, size, 3) and their classes (number,): places in KINDS."""
    rng = np.random.default_rng(seed)
    labels = np.arange(number) % len(KINDS)
    return np.stack([_draw(rng, *KINDS[label], size) for label in labels]), labels


def _draw(rng: np.random.Generator, outline: str, fill: str, size: int) -> NDArray[np.uint8]:
    """Returns one picture, (size, size, 3)."""
    x, y = np.meshgrid(*2 * [np.linspace(-1, 1, size)])
    x, y = x - rng.uniform(-0.2, 0.2), y - rng.uniform(-0.2, 0.2)
    angle = np.arctan2(y, x) + rng.uniform(0, 2 * np.pi)
    radius = rng.uniform(0.4, 0.75) * _radius(rng, outline, angle)
    cover = np.clip((radius - np.hypot(x, y)) * size / 4 + 0.5, 0, 1)[..., None]
    ground, body, other = rng.uniform(40, 230, (3, 3))
    body, other = ground + (body - ground) * 1.2, body + (other - body) * 0.8
    share = _share(rng, fill, x, y)[..., None]  # of the other colour
    picture = ground + cover * (body + share * (other - body) - ground)
    picture *= 1 + 0.12 * _noise(rng, size, 4)[..., None]
    picture += 6 * rng.standard_normal((size, size, 1))
    drawn: NDArray[np.uint8] = np.clip(picture, 0, 255).astype(np.uint8)
    return drawn


def _radius(rng: np.random.Generator, outline: str, angle: NDArray[np.float64]) -> Any:
    """Returns the distance from the middle to the outline at each angle, about 1."""
    corners = int(rng.integers(3, 6))
    if outline == "polygon":
        return 0.75 / np.cos((angle % (2 * np.pi / corners)) - np.pi / corners)
    if outline == "star":
        return 0.85 + rng.uniform(0.15, 0.3) * np.cos((corners + 1) * angle)
    waves = np.arange(2, 16)
    strength = rng.normal(0, 0.22, len(waves)) / np.sqrt(waves) * (outline == "ragged")
    phases = rng.uniform(0, 2 * np.pi, len(waves))
    return 1 + np.cos(angle[..., None] * waves + phases) @ strength


def _share(
    rng: np.random.Generator, fill: str, x: NDArray[np.float64], y: NDArray[np.float64]
) -> Any:
    """Returns how much of the second colour each pixel has, (size, size), 0 to 1."""
    if fill == "striped":
        turn = rng.uniform(0, np.pi)
        return 0.5 + 0.5 * np.sign(
            np.sin((np.cos(turn) * x + np.sin(turn) * y) * rng.uniform(12, 24))
        )
    if fill == "blotched":
        return np.clip(2 * _noise(rng, len(x), int(rng.integers(6, 10))), 0, 1)
    return np.zeros_like(x)


def _noise(rng: np.random.Generator, size: int, cells: int) -> NDArray[np.float64]:
    """Returns smooth noise (size, size) with *cells* bumps a side."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.float64)
