"""The recipe's transforms, held against torchvision's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import CenterCrop, RandomResizedCrop, Resize, functional

from skinjob.train.transforms import (
    Crop,
    batch,
    central_crop,
    crop_box,
    random_crop,
    resize,
    scaled_at_once,
    uniforms,
)
from skinjob.weights.backbones import DEFAULT

PREPROCESSING = DEFAULT.preprocessing
SIZE = PREPROCESSING.crop


def picture(width: int, height: int) -> Image.Image:
    draws = np.random.default_rng(width * height)
    return Image.fromarray(draws.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(224, 224), (300, 400), (401, 301), (1, 1), (50, 225)])
def test_test_images_are_resized_and_centred_as_torchvision_does(size: tuple[int, int]) -> None:
    """The test set is seen as Resize(224), CenterCrop(224) shows it."""
    image = picture(*size)
    wanted = CenterCrop(SIZE)(Resize(SIZE)(image))
    assert np.array_equal(central_crop(resize(image, SIZE)).pixels, np.asarray(wanted))


def test_train_images_are_cropped_and_flipped_as_torchvision_does() -> None:
    """With the same crop and flip, the pixels are torchvision's, but for rounding in the last bit.

    Both ways of scaling are held to it: that of a CPU and, computed on the CPU here, that of a GPU.
    """
    image = picture(300, 400)
    crops = [random_crop(resize(image, SIZE), 0, 1, index) for index in range(20)]
    wanted = np.stack([as_torchvision_does(image, index) for index in range(20)]).astype(int)
    for scaled in (pixels(batch(crops, "cpu", PREPROCESSING)), scaled_at_once(crops, "cpu", SIZE)):
        off = np.abs(scaled.permute(0, 2, 3, 1).numpy().astype(int) - wanted)
        assert off.max() <= 1
        assert off.mean() < 0.05


def as_torchvision_does(image: Image.Image, index: int) -> NDArray[np.uint8]:
    """Returns the augmented image as torchvision makes it of a PIL image, (224, 224, 3)."""
    image = Resize(SIZE)(image)
    draws = uniforms(0, 1, index)
    left, top, width, height = crop_box(draws, *image.size)
    image = functional.resized_crop(image, top, left, height, width, [SIZE, SIZE])
    return np.asarray(functional.hflip(image) if draws[-1] < 0.5 else image)


def pixels(images: torch.Tensor) -> torch.Tensor:
    """Returns normalised images as they were before, in 0..255."""
    mean, std = (
        torch.tensor(values).view(3, 1, 1) for values in (PREPROCESSING.mean, PREPROCESSING.std)
    )
    return ((images * std + mean) * 255).round()


def test_crops_of_all_sizes_are_scaled_at_once_as_one_by_one() -> None:
    """The padding that a batch needs is seen in no image of it, however small the crop."""
    draws = np.random.default_rng(0)
    sizes = [(1, 1), (20, 30), (224, 224), (224, 299), (299, 224), (150, 7)]
    crops = [
        Crop(torch.from_numpy(draws.integers(0, 256, (*size, 3), dtype=np.uint8)), flip)
        for size in sizes
        for flip in (False, True)
    ]
    together = scaled_at_once(crops, "cpu", SIZE)
    apart = pixels(batch(crops, "cpu", PREPROCESSING))
    assert (together - apart).abs().max() <= 1
    assert together.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(224, 224), (298, 224), (224, 2000)])
def test_crops_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    """Area, shape and place of 4,000 crops have the mean and spread of RandomResizedCrop's."""
    torch.manual_seed(0)  # torchvision draws from the global generator
    width, height = size
    ours = np.array([crop_box(uniforms(0, 0, index), width, height) for index in range(4000)])
    image = Image.new("RGB", size)
    theirs = np.array(
        [
            RandomResizedCrop.get_params(image, scale=[0.08, 1.0], ratio=[3 / 4, 4 / 3])
            for _ in range(4000)
        ]
    )[:, [1, 0, 3, 2]]
    error = np.sqrt((ours.var(axis=0) + theirs.var(axis=0)) / 4000) + 1e-9
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < 5 * error).all()
    assert np.allclose(ours.std(axis=0), theirs.std(axis=0), rtol=0.1, atol=1e-9)


def test_an_images_crop_depends_on_seed_epoch_and_image_alone() -> None:
    """Who computes a view, and in which order, does not change what is seen."""
    first = uniforms(0, 3, 7)
    uniforms(0, 3, 8)
    assert np.array_equal(first, uniforms(0, 3, 7))
    for other in ((1, 3, 7), (0, 4, 7), (0, 3, 8)):
        assert not np.array_equal(first, uniforms(*other))


def test_draws_are_the_same_in_every_release() -> None:
    """A sweep can be repeated in ten years: the stream is pinned by its first numbers."""
    assert uniforms(0, 1, 0)[:3].round(12).tolist() == [
        0.316398884385,
        0.477677873314,
        0.234369243544,
    ]
