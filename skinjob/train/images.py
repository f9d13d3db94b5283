"""The images as the network sees them: decoded once, kept in a file, cropped for each view.

The file has a maximum size. Images that do not fit into it are decoded each time. It is not mapped
into memory, so the memory of a job does not grow with the number of images.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from skinjob.data.images import KEPT_MOST_BYTES, KEPT_SHARE, ImageFile, ImageSet, Split
from skinjob.train import transforms
from skinjob.weights.backbones import Preprocessing

AHEAD = 3  # batches that are prepared while the network computes


class View(NamedTuple):
    """A pass over the images of a split. In training it has the random crops of an epoch."""

    split: Split
    epoch: int = 0
    """From 1 in training; 0 for other splits, which are the same in every epoch."""

    @property
    def name(self) -> str:
        """The view's name for people.

        >>> View(Split.TEST).name, View(Split.TRAIN, 3).name
        ('test view', 'view 3')
        """
        return f"view {self.epoch}" if self.split == Split.TRAIN else f"{self.split} view"


class ImageSource:
    """The images of a data set, as the network sees them in a view."""

    def __init__(
        self,
        images: ImageSet,
        augmentation_seed: int,
        folder: Path,
        preprocessing: Preprocessing,
        kept: Collection[Split] = (Split.TRAIN,),
    ) -> None:
        """*folder* keeps the decoded images of the *kept* splits, for later epochs."""
        self.images = images
        self.augmentation_seed = augmentation_seed
        self.preprocessing = preprocessing
        max_bytes = max_kept_bytes(folder)
        self._caches = {
            split: ImageCache(
                images.root,
                images.split(split),
                folder,
                max_bytes if split in kept else 0,
                preprocessing.crop,
            )
            for split in Split
        }
        self._labels = {
            split: torch.tensor([file.label for file in self.files(split)]) for split in Split
        }

    def files(self, split: Split) -> Sequence[ImageFile]:
        return self._caches[split].files

    def labels(self, split: Split) -> Tensor:
        """Returns the labels in the order of the images, (num_images,) int64."""
        return self._labels[split]

    def crop(self, view: View, index: int) -> transforms.Crop:
        """Returns the part of an image that is seen in a view.

        Raises: ImagesError if the image has changed since the submit.
        """
        pixels = self._caches[view.split].get(index)  # (H, W, 3) uint8
        if view.split == Split.TRAIN:
            return transforms.random_crop(pixels, self.augmentation_seed, view.epoch, index)
        return transforms.central_crop(pixels)

    def batch(self, view: View, indices: Iterable[int], device: str) -> Tensor:
        """Returns images of a view as inputs of the network, (B, 3, S, S) float32.

        Raises: ImagesError if an image has changed since the submit.
        """
        crops = [self.crop(view, index) for index in indices]
        return transforms.batch(crops, device, self.preprocessing)


@dataclass(frozen=True)
class ImageBatches:
    """The images of a view as inputs of a network, prepared in other threads."""

    source: ImageSource
    view: View
    device: str

    def batches(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yields the images of each part, (B, 3, S, S) float32; a part is (B,) int64 positions."""

        def make(part: Tensor) -> Tensor:
            return self.source.batch(self.view, part.tolist(), self.device)

        pending: deque[Future[Tensor]] = deque()
        # Each thread uses a single core: the network uses the other cores, with its own threads.
        with ThreadPoolExecutor(AHEAD, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                for part in parts:
                    pending.append(pool.submit(make, part))
                    if len(pending) > AHEAD:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)


class ImageCache:
    """Images with their shorter side at *side* pixels; decoded once if they fit *max_bytes*."""

    def __init__(
        self, root: Path, files: Sequence[ImageFile], folder: Path, max_bytes: int, side: int
    ) -> None:
        self.root = root
        self.files = files
        self._side = side
        self._max_bytes = max_bytes
        self._used = 0
        self._lock = Lock()
        self._starts = np.full(len(files), -1, np.int64)
        self._shapes = np.zeros((len(files), 2), np.int32)
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        # The file has no name, so it disappears with the process.
        self._kept = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115

    def get(self, index: int) -> Tensor:
        """Returns an image, (H, W, 3) uint8. Raises: ImagesError if it has changed."""
        start = int(self._starts[index])
        if start < 0:
            decoded = transforms.resize(self.files[index].read(self.root), self._side)
            self._keep(index, decoded)
            return decoded
        pixels = np.empty((*self._shapes[index], 3), np.uint8)
        if os.preadv(self._kept.fileno(), [pixels.data], start) < pixels.nbytes:
            raise OSError(f"decoded images in {self._folder} cannot be read back")
        return torch.from_numpy(pixels)

    def _keep(self, index: int, pixels: Tensor) -> None:
        with self._lock:
            start, end = self._used, self._used + pixels.numel()
            if end > self._max_bytes:
                return
            self._used = end
        try:
            written = os.pwrite(self._kept.fileno(), pixels.numpy().data, start)
        except OSError:
            written = 0
        if written < pixels.numel():  # the disk or the quota is full
            self._max_bytes = 0
            return
        self._shapes[index] = pixels.shape[:2]
        self._starts[index] = start  # last: now another thread may read it


def max_kept_bytes(folder: Path) -> int:
    """Returns how many bytes the decoded images of a split may use in a folder."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return min(KEPT_MOST_BYTES, shutil.disk_usage(existing).free // KEPT_SHARE)
