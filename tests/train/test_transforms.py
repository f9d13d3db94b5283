"""The recipe's transforms, held against torchvision's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import CenterCrop, Resize, functional

from skinjob.train.decoded import Pixels, resize
from skinjob.train.draws import Boxes, central_boxes, random_boxes
from skinjob.train.transforms import at_once, each
from skinjob.weights.backbones import DEFAULT

PREPROCESSING = DEFAULT.preprocessing
SIZE = PREPROCESSING.crop


def picture(width: int, height: int) -> Image.Image:
    draws = np.random.default_rng(width * height)
    return Image.fromarray(draws.integers(0, 256, (height, width, 3), dtype=np.uint8))


def on_cpu(pictures: Sequence[Pixels], boxes: Boxes) -> torch.Tensor:
    """Returns the crops as a CPU makes them, (B, 3, S, S)."""
    return each(pictures, boxes, PREPROCESSING)


def on_gpu(pictures: Sequence[Pixels], boxes: Boxes) -> torch.Tensor:
    """Returns the crops as a GPU makes them, computed on the CPU; they are stored in any order."""
    order = np.random.default_rng(0).permutation(len(pictures))
    flat = torch.from_numpy(np.concatenate([pictures[i].ravel() for i in order]))
    lengths = np.array([pictures[i].size for i in order])
    starts = np.empty(len(pictures), np.int64)
    starts[order] = lengths.cumsum() - lengths
    return at_once(flat, starts, shapes(pictures), boxes, PREPROCESSING)


def shapes(pictures: Sequence[Pixels]) -> NDArray[np.int32]:
    return np.array([picture.shape[:2] for picture in pictures], np.int32)


def pixels(images: torch.Tensor) -> NDArray[np.float64]:
    """Returns normalised images as they were before, (B, S, S, 3) in 0..255."""
    mean, std = (
        torch.tensor(values).view(3, 1, 1) for values in (PREPROCESSING.mean, PREPROCESSING.std)
    )
    return ((images.double() * std + mean) * 255).round().permute(0, 2, 3, 1).numpy()


def as_torchvision_does(pictures: Sequence[Pixels], boxes: Boxes) -> NDArray[np.float64]:
    """Returns the augmented images as torchvision makes them of PIL images, (B, S, S, 3)."""
    found = []
    for image, (left, top, width, height, is_flipped) in zip(pictures, boxes.tolist(), strict=True):
        scaled = functional.resized_crop(
            Image.fromarray(image), top, left, height, width, [SIZE, SIZE]
        )
        found.append(np.asarray(functional.hflip(scaled) if is_flipped else scaled))
    return np.stack(found).astype(float)


Way = Callable[[Sequence[Pixels], Boxes], torch.Tensor]
both_ways = pytest.mark.parametrize("way", [on_cpu, on_gpu])


@both_ways
@pytest.mark.parametrize("size", [(224, 224), (300, 400), (401, 301), (1, 1), (50, 225)])
def test_test_images_are_resized_and_centred_as_torchvision_does(
    size: tuple[int, int], way: Way
) -> None:
    """The test set is seen as Resize(224), CenterCrop(224) shows it."""
    image = picture(*size)
    wanted = np.asarray(CenterCrop(SIZE)(Resize(SIZE)(image)))
    pictures = [resize(image, SIZE)] * 2
    found = pixels(way(pictures, central_boxes(shapes(pictures))))
    assert (found == wanted).all()


MIXED = [(300, 400), (400, 300), (224, 2000), (50, 225), (1000, 230), (16, 16), (224, 224)]


@both_ways
@pytest.mark.parametrize(
    "sizes",
    [[(224, 224)] * 20, [(400, 300)] * 20, [(1000, 230)] * 8, MIXED * 3],
    ids=["square", "4:3", "panorama", "mixed"],
)
def test_train_images_are_cropped_and_flipped_as_torchvision_does(
    sizes: list[tuple[int, int]], way: Way
) -> None:
    """With the same crop and flip, the pixels are torchvision's, but for rounding in the last bit.

    Both ways of scaling are held to it, for images of one size and of many, for crops that are
    enlarged and that shrink.
    """
    pictures = [resize(picture(*size), SIZE) for size in sizes]
    boxes = random_boxes(0, 1, np.arange(len(sizes)), shapes(pictures))
    images = way(pictures, boxes)
    assert images.is_contiguous(memory_format=torch.channels_last)
    off = np.abs(pixels(images) - as_torchvision_does(pictures, boxes))
    assert off.max() <= (1 if way is on_gpu else 2)  # torch's own filter rounds its weights
    assert (off > 1).mean() < 1e-5
    assert off.mean() < 0.3


@both_ways
def test_a_pixel_beside_a_crop_is_not_seen(way: Way) -> None:
    """What is beyond the border of a crop has no part in it, however the crop is scaled."""
    images, boxes = [], []
    for left, top, width, height in ((100, 50, 30, 20), (10, 0, 280, 224), (0, 0, 1, 1)):
        image = np.full((224, 299, 3), 255, np.uint8)
        image[top : top + height, left : left + width] = 7
        images.append(image)
        boxes.append([left, top, width, height, 1])
    found = pixels(way(images, np.array(boxes, np.int32)))
    assert (found == 7).all()


def test_a_small_crop_at_the_end_of_the_memory_is_taken_beside_a_large_one() -> None:
    """The padding that a batch of many sizes needs is not read from beyond the images."""
    images = [np.full((224, 298, 3), value, np.uint8) for value in (1, 2, 3)]
    images[0] = images[0][:, :250].copy()
    corner = [297, 223, 1, 1, 0]
    found = pixels(on_gpu(images, np.array([[0, 0, 250, 224, 0], corner, corner], np.int32)))
    assert [np.unique(image).tolist() for image in found] == [[1], [2], [3]]


def test_crops_that_shrink_are_in_the_test() -> None:
    """The comparison with torchvision has crops wider, and higher, than the input of the network.

    A GPU samples three source pixels for each of theirs, in that direction alone.
    """
    sizes = np.array([[224, 298], [298, 224]] * 10, np.int32)
    width, height = random_boxes(0, 1, np.arange(20), sizes)[:, 2:4].T
    assert (width > SIZE).any()
    assert (height > SIZE).any()
