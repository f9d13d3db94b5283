"""Where the pixels come from: images are decoded once, checked, and kept in a nameless file.

The file is as large as the decoded images, up to a limit; what does not fit is decoded anew each
time. It is read and never mapped, so that a job's memory does not grow with the images.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from skinjob.data.images import ImageFile, ImageSet
from skinjob.sweeps.layout import KEPT_MOST_BYTES, KEPT_SHARE
from skinjob.train import transforms
from skinjob.weights.backbones import PREPROCESSING, Preprocessing

TEST = 0
"""The view of the test images; those of the training images count from 1, as epochs do."""


class Pixels:
    """The images of a set, as they are seen in a view."""

    def __init__(
        self,
        images: ImageSet,
        augmentation_seed: int,
        folder: Path,
        *,
        keeps_test: bool,
        preprocessing: Preprocessing = PREPROCESSING,
    ) -> None:
        """Decoded images are kept in *folder*; those for testing where they are seen again."""
        self.augmentation_seed = augmentation_seed
        self.preprocessing = preprocessing
        side, room = preprocessing.crop, room_in(folder)
        rooms = {"train": room, "test": room if keeps_test else 0}
        self._stores = {
            split: Store(images.root, images.split(split), folder, room, side)
            for split, room in rooms.items()
        }

    def files(self, view: int) -> Sequence[ImageFile]:
        return self._store(view).files

    def labels(self, view: int) -> Tensor:
        """Returns the labels in the order of the images, (num_images,) int64."""
        return torch.tensor([file.label for file in self.files(view)])

    def crop(self, view: int, index: int) -> transforms.Crop:
        """Returns what is seen of one image in a view.

        Raises: ImagesError when the image has changed since it was scanned.
        """
        pixels = self._store(view).get(index)
        if view == TEST:
            return transforms.central_crop(pixels)
        return transforms.random_crop(pixels, self.augmentation_seed, view, index)

    def batch(self, view: int, indices: Iterable[int], device: str) -> Tensor:
        """Returns images of a view as the network takes them, (B, 3, S, S) float32.

        Raises: ImagesError when one has changed since it was scanned.
        """
        crops = [self.crop(view, index) for index in indices]
        return transforms.batch(crops, device, self.preprocessing)

    def _store(self, view: int) -> Store:
        return self._stores["test" if view == TEST else "train"]


class Store:
    """Images, their shorter side at *side*, decoded at most once as long as there is room."""

    def __init__(
        self,
        root: Path,
        files: Sequence[ImageFile],
        folder: Path,
        room: int,
        side: int = PREPROCESSING.crop,
    ) -> None:
        self.root = root
        self.files = files
        self._side = side
        self._room = room
        self._used = 0
        self._lock = Lock()
        self._starts = np.full(len(files), -1, np.int64)
        self._shapes = np.zeros((len(files), 2), np.int32)
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        # It has no name: whatever ends the process, nothing is left to clean up.
        self._kept = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # open as long as we are

    def get(self, index: int) -> Tensor:
        """Returns an image, (H, W, 3) uint8. Raises: ImagesError when its bytes have changed."""
        start = int(self._starts[index])
        if start < 0:
            pixels = transforms.resize(self.files[index].read(self.root), self._side)
            self._keep(index, pixels)
            return pixels
        found = np.empty((*self._shapes[index], 3), np.uint8)
        if os.preadv(self._kept.fileno(), [found.data], start) < found.nbytes:
            raise OSError(f"decoded images in {self._folder} cannot be read back")
        return torch.from_numpy(found)

    def _keep(self, index: int, pixels: Tensor) -> None:
        with self._lock:
            start, end = self._used, self._used + pixels.numel()
            if end > self._room:
                return
            self._used = end
        try:
            written = os.pwrite(self._kept.fileno(), pixels.numpy().data, start)
        except OSError:
            written = 0
        if written < pixels.numel():  # the disk is full, or the quota is: what is kept stays
            self._room = 0
            return
        self._shapes[index] = pixels.shape[:2]
        self._starts[index] = start  # last: from here on another thread may read it


def room_in(folder: Path) -> int:
    """Returns the bytes that a split may take in a folder, or where that is going to be."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return min(KEPT_MOST_BYTES, shutil.disk_usage(there).free // KEPT_SHARE)


def view_name(view: int) -> str:
    """Returns a view's name for people.

    >>> view_name(0), view_name(3)
    ('test view', 'view 3')
    """
    return "test view" if view == TEST else f"view {view}"
