"""The images of a data set as the network sees them in a view."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skinjob.data.images import ImageFile, ImageSet, Split
from skinjob.train import draws, transforms
from skinjob.train.decoded import DecodedImages
from skinjob.train.pixels import DevicePixels, Piece
from skinjob.weights.backbones import Preprocessing

AHEAD = 3  # batches that a CPU prepares while the network computes


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
        num_cpus: int = 1,
    ) -> None:
        """*folder* has the decoded images of all jobs. A GPU keeps those of the *kept* splits."""
        self.images = images
        self.augmentation_seed = augmentation_seed
        self.preprocessing = preprocessing
        self._kept = kept
        self._decoded = {
            split: DecodedImages(images, split, folder, preprocessing.crop, num_cpus=num_cpus)
            for split in Split
        }
        self._labels = {
            split: torch.tensor([file.label for file in self.files(split)]) for split in Split
        }
        self._boxes_of_view = lru_cache(maxsize=4)(self._known_boxes)
        self._pixels = lru_cache(DevicePixels)

    def files(self, split: Split) -> Sequence[ImageFile]:
        return self._decoded[split].files

    def labels(self, split: Split) -> Tensor:
        """Returns the labels in the order of the images, (num_images,) int64."""
        return self._labels[split]

    def prepare(self, split: Split, report: Callable[[], None] = lambda: None) -> None:
        """Has the images of a split decoded, as far as there is room for them.

        *report* is called often meanwhile.

        Raises: ImagesError if an image has changed since the submit.
        """
        self._decoded[split].prepare(report)

    def batch(self, view: View, indices: Iterable[int], device: str = "cpu") -> Tensor:
        """Returns images of a view as inputs of the network, (B, 3, S, S) float32.

        Raises: ImagesError if an image has changed since the submit.
        """
        places = np.fromiter(indices, np.int64)
        if device != "cpu":
            return next(self.batches(view, [torch.from_numpy(places)], device))
        pictures = [self._decoded[view.split].get(index) for index in places.tolist()]
        return transforms.each(pictures, self._boxes(view, places), self.preprocessing)

    def batches(self, view: View, parts: Sequence[Tensor], device: str) -> Iterator[Tensor]:
        """Yields the images of each part, (B, 3, S, S) float32 on a GPU; a part is (B,) int64.

        Raises: ImagesError if an image has changed since the submit.
        """
        decoded = self._decoded[view.split]

        def make(piece: Piece) -> Tensor:
            boxes, sizes = self._boxes(view, piece.indices), decoded.sizes[piece.indices]
            return transforms.at_once(piece.flat, piece.starts, sizes, boxes, self.preprocessing)

        numbers, may_stay = [part.numpy() for part in parts], view.split in self._kept
        yield from self._pixels(device).batches(decoded, numbers, make, may_stay=may_stay)

    def _boxes(self, view: View, indices: NDArray[np.int64]) -> draws.Boxes:
        """Returns the boxes of images that have been decoded, (B, 5)."""
        boxes = self._boxes_of_view(view)[indices]
        unknown = boxes[:, 2] == 0
        if unknown.any():
            boxes[unknown] = self._draw(view, indices[unknown])
        return boxes

    def _known_boxes(self, view: View) -> draws.Boxes:
        """Returns the boxes of all images whose size is known; others have width 0."""
        boxes = np.zeros((len(self.files(view.split)), 5), np.int32)
        known = np.flatnonzero(self._decoded[view.split].sizes[:, 0])
        boxes[known] = self._draw(view, known)
        return boxes

    def _draw(self, view: View, indices: NDArray[np.int64]) -> draws.Boxes:
        sizes = self._decoded[view.split].sizes[indices]
        if view.split == Split.TRAIN:
            return draws.random_boxes(self.augmentation_seed, view.epoch, indices, sizes)
        return draws.central_boxes(sizes)


@dataclass(frozen=True)
class ImageBatches:
    """The images of a view as inputs of a network, prepared while it computes."""

    source: ImageSource
    view: View
    device: str

    def batches(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yields the images of each part, (B, 3, S, S) float32; a part is (B,) int64 positions."""
        self.source.prepare(self.view.split)
        if self.device == "cpu":
            yield from self._by_threads(parts)
        else:
            yield from self.source.batches(self.view, parts, self.device)

    def _by_threads(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        pending: deque[Future[Tensor]] = deque()
        # Each thread uses a single core: the network uses the other cores, with its own threads.
        with ThreadPoolExecutor(AHEAD, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                for part in parts:
                    pending.append(pool.submit(self.source.batch, self.view, part.tolist()))
                    if len(pending) > AHEAD:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)
