"""The random crops and flips: the same on every machine, and distributed as torchvision's."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from skinjob.train.draws import central_boxes, philox, random_boxes


@pytest.mark.parametrize(
    ("counter", "key", "wanted"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_the_generator_gives_the_published_numbers(
    counter: tuple[int, int, int, int], key: tuple[int, int], wanted: str
) -> None:
    """These are the known answers of Random123, by the authors of Philox (kat_vectors)."""
    assert " ".join(f"{int(word):08x}" for word in philox(counter, key)) == wanted


def test_boxes_are_the_same_in_every_release() -> None:
    """A sweep can be repeated in ten years: a few boxes are pinned, and the digest of many."""
    sizes = np.array([[224, 224], [224, 299], [299, 224], [224, 2000]], np.int32)
    assert random_boxes(0, 1, np.arange(4), sizes).tolist() == [
        [23, 2, 172, 135, 0],
        [98, 25, 200, 159, 0],
        [37, 101, 107, 105, 0],
        [850, 0, 299, 224, 0],
    ]
    many = random_boxes(0, 1, np.arange(100_000), np.full((100_000, 2), (224, 299), np.int32))
    assert hashlib.sha256(many.astype("<i4").tobytes()).hexdigest()[:16] == "763703771eefb42b"


@pytest.mark.parametrize("size", [(224, 224), (298, 224), (224, 2000)])
def test_crops_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    """Area, shape and place of 4,000 crops have the mean and spread of RandomResizedCrop's."""
    torch.manual_seed(0)  # torchvision draws from the global generator
    width, height = size
    sizes = np.full((4000, 2), (height, width), np.int32)
    ours = random_boxes(0, 0, np.arange(4000), sizes)[:, :4]
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


def test_half_of_the_crops_are_flipped_whatever_their_shape() -> None:
    """A flip is drawn from numbers of its own."""
    boxes = random_boxes(0, 1, np.arange(10_000), np.full((10_000, 2), 224, np.int32))
    is_flipped = boxes[:, 4] == 1
    assert abs(is_flipped.mean() - 0.5) < 0.02
    assert np.abs(boxes[is_flipped].mean(axis=0) - boxes[~is_flipped].mean(axis=0))[:4].max() < 4


def test_every_crop_is_inside_its_image() -> None:
    """However thin the image: then it is the largest central crop of an allowed shape."""
    draws = np.random.default_rng(0)
    sizes = draws.integers(1, 400, (5000, 2)).astype(np.int32)
    left, top, width, height, _ = random_boxes(3, 2, np.arange(5000), sizes).T
    assert np.minimum(width, height).min() > 0
    assert np.minimum(left, top).min() >= 0
    assert (left + width <= sizes[:, 1]).all()
    assert (top + height <= sizes[:, 0]).all()
    thin = np.array([[10, 4000]], np.int32)
    assert random_boxes(0, 0, np.arange(1), thin)[0, :4].tolist() == [1993, 0, 13, 10]


def test_an_images_crop_depends_on_seed_epoch_and_image_alone() -> None:
    """Who computes a view, and in which order and parts, does not change what is seen."""
    indices, sizes = np.arange(50), np.full((50, 2), 224, np.int32)
    whole = random_boxes(0, 3, indices, sizes)
    shuffled = np.random.default_rng(0).permutation(50)
    assert np.array_equal(random_boxes(0, 3, indices[shuffled], sizes), whole[shuffled])
    assert np.array_equal(random_boxes(0, 3, indices[7:8], sizes[:1]), whole[7:8])
    assert len(np.unique(whole, axis=0)) == 50
    for seed, epoch in ((1, 3), (0, 4), (2**32, 3)):
        assert not (random_boxes(seed, epoch, indices, sizes) == whole).all(axis=1).any()


def test_test_images_are_seen_in_the_middle() -> None:
    """The box is that of torchvision's CenterCrop, of an odd remainder too."""
    sizes = np.array([[224, 224], [224, 299], [300, 224], [227, 224]], np.int32)
    assert central_boxes(sizes)[:, :2].tolist() == [[0, 0], [38, 0], [0, 38], [0, 2]]
    assert (central_boxes(sizes)[:, 2:] == [224, 224, 0]).all()
