"""The random crops and flips of a view, drawn at once from (augmentation seed, epoch, image).

Philox is a function of a counter and a key, without a state. So each image has numbers of its own,
whoever draws them and in which order. Only exact integers, and single operations that IEEE 754
rounds correctly, are used: every machine and every release of numpy gives the same boxes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

SCALE = (0.08, 1.0)
LOG_RATIO = 0.28768207245178085  # of 4/3; shapes go from 3/4 to 4/3
ATTEMPTS = 10

Boxes = NDArray[np.int32]
"""(N, 5): left, top, width, height, and 1 if the crop is flipped."""

_WORD = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85


def philox(counter: tuple[ArrayLike, ...], key: tuple[int, int]) -> tuple[NDArray[np.uint64], ...]:
    """Returns four random words below 2**32 for each *counter*, four words or arrays of words.

    Source: Philox4x32-10 of Salmon and others, Parallel random numbers: as easy as 1, 2, 3 (2011).
    """
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(word, np.uint64) for word in counter))
    for number in range(10):
        k0, k1 = (
            np.uint64((word + number * step) & 0xFFFFFFFF)
            for word, step in zip(key, _WEYL, strict=True)
        )
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = (second >> _SHIFT) ^ c1 ^ k0, second & _WORD
        c2, c3 = (first >> _SHIFT) ^ c3 ^ k1, first & _WORD
    return c0, c1, c2, c3


def uniforms(
    augmentation_seed: int, epoch: int, indices: ArrayLike, block: int
) -> NDArray[np.float64]:
    """Returns four numbers in [0, 1) for each image, (4, N); an image has many *blocks*."""
    key = augmentation_seed & 0xFFFFFFFF, augmentation_seed >> 32 & 0xFFFFFFFF
    return np.stack(philox((indices, epoch, block, 0), key)).astype(np.float64) * 2.0**-32


def random_boxes(
    augmentation_seed: int, epoch: int, indices: NDArray[np.int64], sizes: NDArray[np.int32]
) -> Boxes:
    """Returns crops and flips of training images, distributed as RandomResizedCrop's.

    *indices* (N,) are the images, *sizes* (N, 2) their heights and widths.

    Source: torchvision.transforms.RandomResizedCrop.get_params. After ten attempts it takes the
    largest central crop of an allowed shape.
    """
    heights, widths = sizes.astype(np.int64).T
    boxes = np.empty((len(indices), 5), np.int32)
    boxes[:, 2] = crop_widths = np.minimum(widths, np.rint(heights * (4 / 3)))
    boxes[:, 3] = crop_heights = np.minimum(heights, np.rint(widths * (4 / 3)))
    boxes[:, 0], boxes[:, 1] = (widths - crop_widths) // 2, (heights - crop_heights) // 2
    boxes[:, 4] = uniforms(augmentation_seed, epoch, indices, ATTEMPTS)[0] < 0.5
    pending = np.arange(len(indices))
    for attempt in range(ATTEMPTS):
        size, shape, across, down = uniforms(augmentation_seed, epoch, indices[pending], attempt)
        height, width = heights[pending], widths[pending]
        side = np.sqrt(height * width * (SCALE[0] + (SCALE[1] - SCALE[0]) * size))
        stretch = _exp((shape - 0.5) * LOG_RATIO)  # the root of width / height
        crop_width, crop_height = np.rint(side * stretch), np.rint(side / stretch)
        left, top = (width - crop_width + 1) * across, (height - crop_height + 1) * down
        fits = (crop_width > 0) & (crop_width <= width)
        fits &= (crop_height > 0) & (crop_height <= height)
        drawn = np.stack([left, top, crop_width, crop_height], axis=1)
        boxes[pending[fits], :4] = drawn[fits]  # cuts off the fractions of left and top
        pending = pending[~fits]
    return boxes


def central_boxes(sizes: NDArray[np.int32]) -> Boxes:
    """Returns the square in the middle of test images; *sizes* (N, 2) heights and widths."""
    side = sizes.min(axis=1)  # the side of the input of the network
    top, left = np.rint((sizes - side[:, None]) / 2).T
    return np.stack([left, top, side, side, np.zeros_like(side)], axis=1).astype(np.int32)


def _exp(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns e to the power of small numbers: numpy's own differs between processors."""
    total = np.ones_like(x)
    for number in range(12, 0, -1):  # 0.15**13 / 13! is below the precision
        total = 1 + x * total / number
    return total
