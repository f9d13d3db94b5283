"""The pixels of a GPU, computed on the CPU here: what stays there, and what comes as needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from trees import make_tree

from skinjob.data.images import ImageSet, Split
from skinjob.data.scan import scan
from skinjob.errors import ImagesError
from skinjob.train import decoded, extract, pixels
from skinjob.train.decoded import DecodedImages
from skinjob.train.device import choose_device
from skinjob.train.extract import FeatureExtractor
from skinjob.train.forward import Forward
from skinjob.train.images import ImageSource, View
from skinjob.train.pixels import DevicePixels, Piece, is_resident
from skinjob.weights.backbones import DEFAULT

PREPROCESSING = DEFAULT.preprocessing
SIDE = PREPROCESSING.crop
VIEW = View(Split.TRAIN, 1)
PARTS = torch.randperm(40, generator=torch.Generator().manual_seed(0)).split(9)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    folder = tmp_path_factory.mktemp("data") / "skin_cancer"
    return scan(make_tree(folder, num_train=20, num_test=4))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the decoded images."""
    return tmp_path_factory.mktemp("decoded")


def source(images: ImageSet, kept: Path) -> ImageSource:
    found = ImageSource(images, 0, kept, PREPROCESSING)
    found.prepare(Split.TRAIN)
    return found


def batches(images: ImageSource) -> list[Tensor]:
    """Returns a view's images as a GPU makes them."""
    return list(images.batches(VIEW, PARTS, "cpu"))


def assert_close(found: list[Tensor], wanted: list[Tensor]) -> None:
    """Checks that images differ by rounding, in the last of 256 levels or two."""
    for batch, other in zip(found, wanted, strict=True):
        assert batch.shape == other.shape
        assert (batch - other).abs().max() < 2.1 / 255 / min(PREPROCESSING.std)


def moved_in(images: ImageSource) -> bool:
    return images._decoded[Split.TRAIN] in images._pixels("cpu")._resident


@pytest.mark.parametrize("slot_bytes", [1, 3 << 20, 1 << 30])
@pytest.mark.parametrize("free", [0, 1 << 40])
def test_a_gpu_sees_what_a_cpu_sees(
    images: ImageSet, kept: Path, monkeypatch: pytest.MonkeyPatch, slot_bytes: int, free: int
) -> None:
    """Whether the images stay in its memory, or come through buffers of whatever size."""
    monkeypatch.setattr(pixels, "SLOT_BYTES", slot_bytes)
    monkeypatch.setattr(pixels, "free_bytes", lambda _: free)
    here = source(images, kept)
    wanted = [here.batch(VIEW, part.tolist()) for part in PARTS]
    for _ in range(2):  # and in a later view
        assert_close(batches(here), wanted)
    assert moved_in(here) == (free > 0)


def test_images_stay_if_they_take_four_fifths_of_what_is_free(
    images: ImageSet, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest is for the network, whose first batch has been there before them."""
    assert is_resident(80, 100)
    assert not is_resident(81, 100)
    num_bytes = 3 * source(images, kept)._decoded[Split.TRAIN].sizes.prod(axis=1).sum()
    for free, stay in ((num_bytes / 0.8 + 1, True), (num_bytes / 0.8 - 1, False)):
        used: list[Piece] = []

        def free_after_a_batch(_: str, free: float = free, used: list[Piece] = used) -> float:
            assert len(used) == 1
            return free

        monkeypatch.setattr(pixels, "free_bytes", free_after_a_batch)
        here = source(images, kept)
        for batch in here.batches(VIEW, PARTS, "cpu"):
            used.append(batch)
        assert moved_in(here) == stay


def test_all_splits_together_take_four_fifths(
    images: ImageSet, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test images of `--train all` do not take what the training images have left."""
    here = ImageSource(images, 0, kept, PREPROCESSING, kept=tuple(Split))
    for split in Split:
        here.prepare(split)
    both = (Split.TRAIN, Split.TEST)
    train, test = (3 * here._decoded[split].sizes.prod(axis=1).sum() for split in both)
    for spare, stay in ((1, True), (-1, False)):
        monkeypatch.setattr(pixels, "free_bytes", lambda _: train / 0.8)
        here._pixels.cache_clear()
        batches(here)
        left = (train + test + spare) / 0.8 - train
        monkeypatch.setattr(pixels, "free_bytes", lambda _, left=left: left)
        list(here.batches(View(Split.TEST), torch.arange(8).split(3), "cpu"))
        assert (here._decoded[Split.TEST] in here._pixels("cpu")._resident) == stay


def test_a_ring_has_a_bounded_number_of_buffers(
    images: ImageSet, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many images a view has, what waits for the GPU takes three buffers of fixed size."""
    monkeypatch.setattr(pixels, "SLOT_BYTES", 1 << 20)
    made: list[int] = []
    slot = pixels._Slot.__init__

    def counted(self: pixels._Slot, device: str, num_bytes: int) -> None:
        made.append(num_bytes)
        slot(self, device, num_bytes)

    monkeypatch.setattr(pixels._Slot, "__init__", counted)
    found = DecodedImages(images, Split.TRAIN, kept, SIDE)
    found.prepare()
    parts = [np.arange(40)] * 5
    ones = DevicePixels("cpu").batches(
        found, parts, lambda piece: torch.ones(len(piece.indices)), may_stay=False
    )
    shapes = [len(part) for part in ones]
    assert shapes == [40] * 5
    assert max(made) <= 1 << 20
    assert len(made) == pixels.NUM_SLOTS


def test_a_buffer_is_not_filled_before_its_images_are_used(images: ImageSet, kept: Path) -> None:
    """A slow network reads no image that belongs to a later batch."""
    found = DecodedImages(images, Split.TRAIN, kept, SIDE)
    found.prepare()
    parts = [np.array([index]) for index in range(40)]
    for piece in pixels._ring(found, parts, "cpu"):
        torch.arange(200_000).sort()  # the next buffers are filled meanwhile
        assert np.array_equal(piece.flat.numpy(), found.get(int(piece.indices[0])).ravel())


def test_images_without_room_on_the_disk_stay_on_the_gpu_from_the_second_view_on(
    images: ImageSet, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their sizes are known after a view; then they are decoded for the last time."""
    monkeypatch.setattr(decoded, "KEPT_MOST_BYTES", 0)
    monkeypatch.setattr(pixels, "free_bytes", lambda _: 1 << 40)
    wanted = batches(source(images, kept))
    here = source(images, tmp_path)
    for stay in (False, True, True):
        assert_close(batches(here), wanted)
        assert moved_in(here) == stay


def test_an_image_that_has_changed_ends_the_view(images: ImageSet, tmp_path: Path) -> None:
    """The error of the thread that reads images is the job's."""
    gone = ImageSet(tmp_path, images.classes, images.files)
    here = ImageSource(gone, 0, tmp_path / "kept", PREPROCESSING)
    with pytest.raises(ImagesError, match=images.split("train")[int(PARTS[0][0])].path):
        batches(here)


def mean_colours(images: Tensor) -> Tensor:
    """Returns the features of a backbone that is cheap, (B, 3)."""
    return images.mean(dim=(2, 3))


def extracted(extractor: FeatureExtractor, sizes: list[int] | None = None) -> Tensor:
    """Returns a view's features by large batches, (40, 3); notes how many come at a time."""
    found = torch.full((40, 3), torch.nan)

    def put(first: int, part: Tensor) -> None:
        found[first : first + len(part)] = part
        if sizes is not None:
            sizes.append(len(part))

    extractor.by_large_batches(VIEW, put, lambda num_done: None)
    return found


def test_features_come_back_once_a_view(
    images: ImageSet, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or when they take much memory; nothing but them is copied from a GPU."""
    here = source(images, kept)
    forward = Forward(mean_colours, torch.float32, (9,))
    extractor = FeatureExtractor(lambda: forward, choose_device("cpu", "fp32"), here)
    wanted, sizes = mean_colours(here.batch(VIEW, range(40))), list[int]()
    assert torch.allclose(extracted(extractor, sizes), wanted, atol=1e-2)
    assert sizes == [40]
    monkeypatch.setattr(extract, "HELD_BYTES", 4 * 3 * 17)
    assert torch.allclose(extracted(extractor, sizes := []), wanted, atol=1e-2)
    assert sizes == [18, 18, 4]


def test_a_batch_that_does_not_fit_is_halved(
    images: ImageSet, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same features, on a GPU of whatever size; on the smallest an error says why."""
    monkeypatch.setattr(extract, "SMALLEST_BATCH", 2)
    calls: list[int] = []
    most = 5

    def on_a_small_gpu(images: Tensor) -> Tensor:
        calls.append(len(images))
        if len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return mean_colours(images)

    here = source(images, kept)
    forward = Forward(on_a_small_gpu, torch.float32, (16,))
    extractor = FeatureExtractor(lambda: forward, choose_device("cpu", "fp32"), here)
    wanted = mean_colours(here.batch(VIEW, range(40)))
    assert torch.allclose(extracted(extractor), wanted, atol=1e-2)
    assert calls == [16, 8] + [4] * 10
    extracted(extractor)
    assert calls[12:] == [4] * 10  # the next view begins with what fits
    most = 1
    with pytest.raises(torch.OutOfMemoryError):
        extracted(extractor)
