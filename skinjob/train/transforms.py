"""The transforms, from decoded images and their boxes to the inputs of the network.

On a CPU, an image at a time: the threads work on different images. On a GPU, a batch at a time.
Both ways give Pillow's pixels but for rounding.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from skinjob.train.decoded import Pixels
from skinjob.train.draws import Boxes
from skinjob.weights.backbones import Preprocessing


def train_steps(size: int) -> str:
    """Returns the steps of a training image, named as in torchvision; part of a view's key."""
    return f"Resize({size}) RandomResizedCrop({size}) RandomHorizontalFlip(0.5)"


def test_steps(size: int) -> str:
    """Returns the steps of a test image, named as in torchvision; part of a view's key."""
    return f"Resize({size}) CenterCrop({size})"


def each(pictures: Iterable[Pixels], boxes: Boxes, preprocessing: Preprocessing) -> Tensor:
    """Returns crops as inputs of the network, (B, 3, S, S) float32 channels_last, on the CPU.

    Each step works on contiguous rows, for which torch has vector instructions.
    """
    side = preprocessing.crop
    images = torch.empty(len(boxes), side, side, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    for image, picture, box in zip(images.split(1), pictures, boxes.tolist(), strict=True):
        left, top, width, height, is_flipped = box
        pixels = torch.from_numpy(picture[top : top + height, left : left + width])  # (h, w, 3)
        pixels = (pixels.flip(1) if is_flipped else pixels.contiguous()).permute(2, 0, 1)[None]
        _scale(pixels, [side, side], align_corners=False, out=image)
    return normalise(images, preprocessing)


# functional.interpolate(antialias=True), to an output that exists: half of the time.
_scale = torch.ops.aten._upsample_bilinear2d_aa.out


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Returns images (B, 3, S, S) of 0..255 as float32, minus the mean, over the deviation.

    The result is channels_last.
    """
    num_images, _, height, width = images.shape
    mean, std = _constants(images.device, preprocessing, width)
    result = torch.empty(num_images, height, 3 * width, device=images.device)
    rows = images.permute(0, 2, 3, 1)
    if rows.is_contiguous():  # long rows: on a CPU four times as fast as three values at a time
        torch.sub(rows.view(result.shape), mean, out=result).div_(std)
        return result.view(rows.shape).permute(0, 3, 1, 2)
    by_pixel = result.view(rows.shape)
    torch.sub(rows, mean[:3], out=by_pixel).div_(std[:3])
    return by_pixel.permute(0, 3, 1, 2)


@lru_cache
def _constants(
    device: torch.device, preprocessing: Preprocessing, width: int
) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation of a row's values of 0..255, (3 * width,) each."""
    pair = (preprocessing.mean, preprocessing.std)
    mean, std = (255 * torch.tensor(values).repeat(width) for values in pair)
    return mean.to(device), std.to(device)


def at_once(
    flat: Tensor,
    starts: NDArray[np.int64],
    sizes: NDArray[np.int32],
    boxes: Boxes,
    preprocessing: Preprocessing,
) -> Tensor:
    """Returns crops as inputs of the network, (B, 3, S, S) float32 channels_last, on the device.

    *flat* (bytes,) uint8 has the images on the device, *starts* (B,) and *sizes* (B, 2) say where
    and how large, *boxes* (B, 5) which part. A few launches for any number of images.
    """
    side = preprocessing.crop
    pictures, boxes = _pictures(flat, starts, sizes, boxes, side)
    left, top, width, height, is_flipped = boxes.T
    if not is_flipped.any() and (boxes == boxes[0]).all() and width[0] == height[0] == side:
        crops = pictures[:, :, top[0] : top[0] + side, left[0] : left[0] + side]
        return normalise(crops, preprocessing)
    table = _sent(boxes, flat.device)
    shrinks = (width > side) | (height > side)
    if not shrinks.any():
        return normalise(_sampled(pictures.float(), table, side, 1, 1), preprocessing)
    images = torch.empty(len(boxes), 3, side, side, device=flat.device)
    for group in (~shrinks, shrinks):
        if group.any():
            rows = _sent(group.nonzero()[0], flat.device)
            across, down = (
                2 if (lengths[group] > side).any() else 1 for lengths in (width, height)
            )
            images[rows] = _sampled(pictures[rows].float(), table[rows], side, across, down)
    return normalise(images, preprocessing)


def _pictures(
    flat: Tensor, starts: NDArray[np.int64], sizes: NDArray[np.int32], boxes: Boxes, side: int
) -> tuple[Tensor, Boxes]:
    """Returns a batch (B, 3, H, W) uint8, channels_last, that has the crops, and the boxes in it.

    Images of equal size are taken whole where they are no larger than the largest crops; from
    other images the crops are taken, and continued to the same size with their last pixels.
    """
    height, width = sizes[0].tolist()
    num_bytes = 3 * height * width
    is_even = (sizes == sizes[0]).all() and (starts % num_bytes == 0).all()
    if is_even and num_bytes <= 4 * side**2:  # a crop has 4 / 3 S * S pixels at most
        images = flat[: len(flat) // num_bytes * num_bytes].view(-1, height, width, 3)
        rows = _sent(starts // num_bytes, flat.device)
        return images.index_select(0, rows).permute(0, 3, 1, 2), boxes
    left, top, widths, heights, _ = boxes.T.astype(np.int64)
    first = starts // 3 + top * sizes[:, 1] + left  # the pixel with which a crop begins
    table = np.stack([first, sizes[:, 1], widths - 1, heights - 1])[:, :, None]
    first, stride, last_x, last_y = _sent(table, flat.device)  # (B, 1) each
    x = torch.arange(int(widths.max()), device=flat.device).minimum(last_x)  # (B, W)
    y = torch.arange(int(heights.max()), device=flat.device).minimum(last_y)  # (B, H)
    places = (first + y * stride)[:, :, None] + x[:, None, :]  # (B, H, W)
    moved = boxes.copy()
    moved[:, :2] = 0
    return flat[: len(flat) // 3 * 3].view(-1, 3)[places].permute(0, 3, 1, 2), moved


def _sent(array: NDArray[Any], device: torch.device) -> Tensor:
    """Returns an array on the device; pinned, so that this thread does not wait for the GPU."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _sampled(images: Tensor, boxes: Tensor, side: int, across: int, down: int) -> Tensor:
    """Returns the crops of images (B, 3, H, W) float32, scaled to (B, 3, S, S) float32.

    *boxes* (B, 5). *across* and *down* are 2 if a crop is wider or higher than S, else 1: an output
    pixel then has three source pixels in this direction, of which the GPU samples two at once.
    """
    left, top, width, height, is_flipped = boxes.float().T[:, :, None]  # (B, 1) each
    x, weights_x = _taps(left, width, is_flipped, side, across)  # (B, across, S) each
    y, weights_y = _taps(top, height, torch.zeros_like(is_flipped), side, down)
    (num_images, _, rows, columns), shape = images.shape, (down * side, across * side)
    grid = torch.stack(
        [
            ((2 * x + 1) / columns - 1).view(num_images, 1, -1).expand(-1, shape[0], -1),
            ((2 * y + 1) / rows - 1).view(num_images, -1, 1).expand(-1, -1, shape[1]),
        ],
        dim=3,
    )  # (B, down * S, across * S, 2)
    samples = functional.grid_sample(
        images, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    if across == down == 1:
        return samples
    samples = samples.view(num_images, 3, down, side, across, side)
    weights = weights_y[:, None, :, :, None, None] * weights_x[:, None, None, None]
    return (samples * weights).sum(dim=(2, 4))


def _taps(
    start: Tensor, size: Tensor, is_flipped: Tensor, side: int, count: int
) -> tuple[Tensor, Tensor]:
    """Returns where to sample a side of images, in pixels, and with which weights.

    *start*, *size* and *is_flipped* (B, 1) are of the boxes; the results (B, count, S). The filter
    is a triangle, as wide as a pixel of the result or of the source, the wider of both. It covers
    three source pixels at most: a sample between the first two, and one at the third.

    Source: Pillow's Resample.c, precompute_coeffs.
    """
    place = torch.arange(side, device=start.device) + 0.5
    place = torch.where(is_flipped > 0, side - place, place)  # (B, S)
    scale = size / side
    support = scale.clamp(min=1)
    centre = place * scale
    first = (centre - support + 0.5).floor().clamp(min=0)
    weights = [
        (1 - (first + k + 0.5 - centre).abs() / support).clamp(min=0) * (first + k < size)
        for k in range(3)
    ]
    pair, third = weights[0] + weights[1], weights[2]
    places = torch.stack([first + weights[1] / pair, first + 2], dim=1) + start[:, None]
    return places[:, :count], (torch.stack([pair, third], dim=1) / (pair + third)[:, None])[
        :, :count
    ]
