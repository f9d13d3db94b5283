"""From a decoded image to the pixels that the backbone sees: the recipe's transforms.

The crop and flip of image *i* in epoch *e* are drawn from (augmentation seed, e, i) alone. Whoever
computes them, in whatever order, on whatever machine, sees the same pixels.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = 224
SCALE = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

TRAIN = f"Resize({SIZE}) RandomResizedCrop({SIZE}) RandomHorizontalFlip(0.5)"
TEST = f"Resize({SIZE}) CenterCrop({SIZE})"
"""What the two do, in torchvision's names; part of a view's key."""

Pixels = NDArray[np.uint8]


def augmented_pixels(image: Image.Image, augmentation_seed: int, epoch: int, index: int) -> Pixels:
    """Returns the augmented image, (224, 224, 3) uint8."""
    image = resize(image)
    draws = uniforms(augmentation_seed, epoch, index)
    left, top, width, height = crop_box(draws, *image.size)
    image = image.crop((left, top, left + width, top + height))
    image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    if draws[-1] < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


def central_pixels(image: Image.Image) -> Pixels:
    """Returns the middle of the image, (224, 224, 3) uint8."""
    image = resize(image)
    left, top = (round((side - SIZE) / 2) for side in image.size)
    return np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))


def resize(image: Image.Image) -> Image.Image:
    """Returns the image with its shorter side at 224 pixels, its shape kept."""
    width, height = image.size
    short = min(width, height)
    if short == SIZE:
        return image
    size = (SIZE * width // short, SIZE * height // short)
    return image.resize(size, Image.Resampling.BILINEAR)


def uniforms(augmentation_seed: int, epoch: int, index: int) -> NDArray[np.float64]:
    """Returns the numbers in [0, 1) that one image's crop and flip are made of.

    A SeedSequence's words are the same in every numpy release, which a Generator's draws are not.
    """
    words = np.random.SeedSequence((augmentation_seed, epoch, index)).generate_state(
        2 * ATTEMPTS + 3, np.uint64
    )
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def crop_box(draws: NDArray[np.float64], width: int, height: int) -> tuple[int, int, int, int]:
    """Returns (left, top, width, height) of a random crop, distributed as RandomResizedCrop's.

    Source: torchvision.transforms.RandomResizedCrop.get_params, with its ten attempts and its
    fall-back to the largest central crop of an allowed shape.
    """
    log_low, log_high = math.log(RATIO[0]), math.log(RATIO[1])
    for attempt in range(ATTEMPTS):
        area = width * height * (SCALE[0] + (SCALE[1] - SCALE[0]) * draws[2 * attempt])
        ratio = math.exp(log_low + (log_high - log_low) * draws[2 * attempt + 1])
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int((width - crop_width + 1) * draws[-3])
            top = int((height - crop_height + 1) * draws[-2])
            return left, top, crop_width, crop_height
    crop_width = min(width, round(height * RATIO[1]))
    crop_height = min(height, round(width / RATIO[0]))
    return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height
