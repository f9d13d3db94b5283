"""The transforms, from a decoded image to the inputs of the network.

The crop and flip of image *i* in epoch *e* are drawn only from (augmentation seed, e, i). So every
process, in any order and on any machine, sees the same part of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from skinjob.weights.backbones import Preprocessing

SCALE = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10


@dataclass(frozen=True)
class Crop:
    """The visible part of an image, before it is scaled to S x S, the input of the network."""

    pixels: Tensor  # (height, width, 3) uint8, neither side above 4/3 S
    is_flipped: bool


def train_steps(size: int) -> str:
    """Returns the steps of a training image, named as in torchvision; part of a view's key."""
    return f"Resize({size}) RandomResizedCrop({size}) RandomHorizontalFlip(0.5)"


def test_steps(size: int) -> str:
    """Returns the steps of a test image, named as in torchvision; part of a view's key."""
    return f"Resize({size}) CenterCrop({size})"


def resize(image: Image.Image, side: int) -> Tensor:
    """Returns the image with its shorter side scaled to *side* pixels, (H, W, 3) uint8."""
    width, height = image.size
    short = min(width, height)
    if short != side:
        size = (side * width // short, side * height // short)
        image = image.resize(size, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image))


def random_crop(pixels: Tensor, augmentation_seed: int, epoch: int, index: int) -> Crop:
    """Returns a random crop of the training image at *index*; *pixels* (H, W, 3) uint8."""
    draws = uniforms(augmentation_seed, epoch, index)
    left, top, width, height = crop_box(draws, pixels.shape[1], pixels.shape[0])
    return Crop(pixels[top : top + height, left : left + width], bool(draws[-1] < 0.5))


def central_crop(pixels: Tensor) -> Crop:
    """Returns the square in the middle of a test image; *pixels* (H, W, 3) uint8."""
    height, width = pixels.shape[:2]
    side = min(height, width)  # `resize` scaled it to the size of the input
    top, left = round((height - side) / 2), round((width - side) / 2)
    return Crop(pixels[top : top + side, left : left + side], is_flipped=False)


def batch(crops: Sequence[Crop], device: str, preprocessing: Preprocessing) -> Tensor:
    """Returns the crops as inputs of the network, (B, 3, S, S) float32, channels_last.

    S is the crop of *preprocessing*. They are normalised with its mean and standard deviation.
    """
    scale = _scaled_each if device == "cpu" else scaled_at_once
    return normalise(scale(crops, device, preprocessing.crop), preprocessing)


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Returns images (B, 3, H, W) of 0..255 as float32, minus the mean, over the deviation.

    Keeps the memory format.
    """
    mean, std = _constants(images.device, preprocessing)
    # Not torch.sub(images, mean): of uint8 it would take 0.7 ms an image on a CPU, this 0.1 ms.
    rows = images.permute(0, 2, 3, 1).flatten(2)  # (B, H, W * 3), a view of channels_last
    width = images.shape[3]
    rows = rows.float().sub_(mean.flatten().repeat(width)).div_(std.flatten().repeat(width))
    return rows.unflatten(2, (width, 3)).permute(0, 3, 1, 2)


@lru_cache
def _constants(device: torch.device, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation for values of 0..255, (3, 1, 1) each."""
    pair = (preprocessing.mean, preprocessing.std)
    mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in pair)
    return mean.to(device), std.to(device)


def _scaled_each(crops: Sequence[Crop], device: str, side: int) -> Tensor:
    """Returns (B, 3, S, S) uint8 channels_last, each crop scaled separately to *side* pixels.

    For channels_last on both sides torch uses vector instructions: 0.1 ms per crop, 1 ms in Pillow.
    `functional.interpolate` would choose planes for its result, which takes 0.5 ms.
    """
    images = torch.empty(len(crops), side, side, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    for image, crop in zip(images.split(1), crops, strict=True):
        pixels = crop.pixels.contiguous().permute(2, 0, 1)[None]  # (1, 3, h, w) channels_last
        torch.ops.aten._upsample_bilinear2d_aa.out(pixels, (side, side), False, out=image)
        if crop.is_flipped:
            image.copy_(image.flip(3))
    return images


def scaled_at_once(crops: Sequence[Crop], device: str, side: int) -> Tensor:
    """Returns (B, 3, S, S) float32 of whole numbers, channels_last, scaled on the device.

    Scaling is linear in rows and in columns: two matrices per image, two products per batch. As
    in Pillow, rows come first and each product is rounded: a pixel differs from Pillow's by 1 at
    most.
    """
    sizes = torch.tensor([crop.pixels.shape[:2] for crop in crops])  # (B, 2)
    height, width = sizes.amax(dim=0).tolist()
    padded = torch.zeros(
        (len(crops), height, width, 3),
        dtype=torch.uint8,
        pin_memory=device == "cuda",  # copied while the GPU computes another batch
    )
    for place, crop in zip(padded, crops, strict=True):
        place[: crop.pixels.shape[0], : crop.pixels.shape[1]] = crop.pixels
    flips = torch.tensor([crop.is_flipped for crop in crops])
    across = scaling_matrices(sizes[:, 1], width, side)
    across = torch.where(flips[:, None, None], across.flip(1), across)  # (B, S, width)
    down = scaling_matrices(sizes[:, 0], height, side)  # (B, S, height)
    across, down = (m.to(device, non_blocking=True)[:, None] for m in (across, down))
    images = padded.to(device, non_blocking=True).permute(0, 3, 1, 2).float()
    images = (images @ across.mT).add_(0.5).floor_()  # (B, 3, height, S)
    images = (down @ images).add_(0.5).floor_()  # (B, 3, S, S)
    return images.contiguous(memory_format=torch.channels_last)


def scaling_matrices(sizes: Tensor, length: int, side: int) -> Tensor:
    """Returns (B, side, length) float32: row *i* has the weight of each source pixel in pixel *i*.

    *sizes* (B,) are the lengths of the sources; beyond a size, weights are 0. The filter is a
    triangle (bilinear). It is as wide as a pixel of the result or of the source, the wider of both.

    Source: Pillow's Resample.c, precompute_coeffs.
    """
    scale = sizes[:, None, None].double() / side
    support = scale.clamp(min=1)
    centre = (torch.arange(side)[None, :, None] + 0.5) * scale  # (B, side, 1)
    place = torch.arange(length)[None, None, :] + 0.5  # (1, 1, length)
    weights = (1 - (place - centre).abs() / support).clamp(min=0)
    weights = weights * (place < sizes[:, None, None])
    return (weights / weights.sum(dim=2, keepdim=True)).float()


def uniforms(augmentation_seed: int, epoch: int, index: int) -> NDArray[np.float64]:
    """Returns the numbers in [0, 1) from which an image's crop and flip are computed.

    A SeedSequence gives the same words in every numpy release. A Generator may not.
    """
    words = np.random.SeedSequence((augmentation_seed, epoch, index)).generate_state(
        2 * ATTEMPTS + 3, np.uint64
    )
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def crop_box(draws: NDArray[np.float64], width: int, height: int) -> tuple[int, int, int, int]:
    """Returns (left, top, width, height) of a random crop, distributed as RandomResizedCrop's.

    Source: torchvision.transforms.RandomResizedCrop.get_params. After ten attempts it takes the
    largest central crop of an allowed shape.
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
