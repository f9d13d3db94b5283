"""Views: the features of one pass over the images, computed once and shared by all runs.

With a frozen backbone an image reaches the head as its 512 features alone, and augmentation is
drawn from (augmentation seed, epoch, image) alone. So the features of epoch *e* are the same for
every batch size and seed: one run computes them, the others read them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor, nn

from skinjob.errors import RunError
from skinjob.images import ImageFile, ImageSet
from skinjob.train import transforms
from skinjob.train.cache import ViewCache
from skinjob.train.device import Device

FORMAT = "1"  # to be raised when the same key would give other features
TEST = 0
"""The view of the test images; those of the training images count from 1, as epochs do."""
POLL_S = 0.2
AHEAD = 2  # batches decoded in advance of the backbone


class Watcher:
    """Who is told how the views come along; this one does nothing with it."""

    def computing(self, view: int, done: int, total: int, seconds: float) -> None:
        """Called after every batch with the images done and in all, and the time they took."""

    def computed(self, view: int, num_images: int, seconds: float) -> None:
        """Called when a view is computed."""

    def read(self, view: int, num_images: int) -> None:
        """Called when a view was found in the cache."""

    def waiting(self, view: int, owner: str) -> None:
        """Called again and again while another run is at the view."""


class Views:
    """The views of a sweep, as one of its runs sees them."""

    def __init__(
        self,
        *,
        backbone: nn.Module,
        device: Device,
        images: ImageSet,
        weights_sha256: str,
        augmentation_seed: int,
        epochs: int,
        cache: ViewCache,
        watcher: Watcher | None = None,
    ) -> None:
        self.backbone = backbone.to(device.type)
        self.device = device
        self.root = images.root
        self.augmentation_seed = augmentation_seed
        self.epochs = epochs
        self.cache = cache
        self.watcher = watcher or Watcher()
        self._files = {split: images.split(split) for split in ("train", "test")}
        self._common = {
            "format": FORMAT,
            "weights": weights_sha256,
            "device": device.type,
            "precision": device.precision,
        }
        self._fingerprints = {split: images.fingerprint(split) for split in ("train", "test")}

    def get(self, view: int) -> Tensor:
        """Returns a view's features, (num_images, 512) float32 on the CPU.

        Computes them where the cache has none; while another run is at them, computes a later view
        that nobody is at.

        Raises: ImagesError when an image has changed since it was scanned; RunError when the
        backbone gives a feature that is not a number.
        """
        while True:
            features = self.cache.read(self.key(view), len(self.files(view)))
            if features is not None:
                self.watcher.read(view, len(features))
                return features
            mine = self._claim_one(view)
            if mine is None:
                self.watcher.waiting(view, self.cache.claimed_by(self.key(view)))
                time.sleep(POLL_S)
                continue
            features = self._compute_claimed(mine)
            if mine == view:
                return features

    def files(self, view: int) -> tuple[ImageFile, ...]:
        return self._files["test" if view == TEST else "train"]

    def labels(self, view: int) -> Tensor:
        """Returns the labels in the order of the features, (num_images,) int64."""
        return torch.tensor([file.label for file in self.files(view)])

    def key(self, view: int) -> dict[str, str]:
        """Returns all that a view's features depend on."""
        if view == TEST:
            own = {"images": self._fingerprints["test"], "transform": transforms.TEST}
        else:
            own = {
                "images": self._fingerprints["train"],
                "transform": transforms.TRAIN,
                "augmentation_seed": str(self.augmentation_seed),
                "epoch": str(view),
            }
        return self._common | own

    def pixels(self, view: int, index: int) -> transforms.Pixels:
        """Returns what the backbone sees of one image in a view, (224, 224, 3) uint8."""
        image = self.files(view)[index].read(self.root)
        if view == TEST:
            return transforms.central_pixels(image)
        return transforms.augmented_pixels(image, self.augmentation_seed, view, index)

    def _claim_one(self, view: int) -> int | None:
        """Claims and returns the first view from *view* on that is neither there nor claimed."""
        for candidate in range(view, self.epochs + 1):
            key = self.key(candidate)
            if not self.cache.has(key) and self.cache.claim(key):
                if not self.cache.has(key):  # it may have come between the two
                    return candidate
                self.cache.release(key)
        return None

    def _compute_claimed(self, view: int) -> Tensor:
        try:
            features = self._compute(view)
            self.cache.write(self.key(view), features)
        finally:
            self.cache.release(self.key(view))
        return features

    def _compute(self, view: int) -> Tensor:
        start, num_images, done = time.perf_counter(), len(self.files(view)), 0
        parts = []
        for pixels in self._batches(view):
            parts.append(forward(self.backbone, self.device, pixels))
            done += len(pixels)
            self.cache.keep_claim(self.key(view))
            self.watcher.computing(view, done, num_images, time.perf_counter() - start)
        features = torch.cat(parts)  # (num_images, 512) float32
        self._require_finite(features, view)
        self.watcher.computed(view, num_images, time.perf_counter() - start)
        return features

    def _batches(self, view: int) -> Iterator[transforms.Pixels]:
        """Yields (B, 224, 224, 3) uint8, made in threads while the backbone works."""
        size, num_images = self.device.batch_size, len(self.files(view))
        ranges = deque(
            range(start, min(start + size, num_images)) for start in range(0, num_images, size)
        )
        coming: deque[list[Future[transforms.Pixels]]] = deque()
        with ThreadPoolExecutor(max_workers=self.device.num_threads) as pool:
            try:
                while ranges or coming:
                    while ranges and len(coming) <= AHEAD:
                        coming.append(
                            [pool.submit(self.pixels, view, index) for index in ranges.popleft()]
                        )
                    yield np.stack([future.result() for future in coming.popleft()])
            finally:
                pool.shutdown(cancel_futures=True)

    def _require_finite(self, features: Tensor, view: int) -> None:
        bad = (~features.isfinite()).any(dim=1).nonzero().flatten().tolist()
        if bad:
            raise RunError(
                f"view {view}: the backbone gives features that are no numbers, in "
                f"{self.device.precision}, of {len(bad)} images: "
                f"{self.files(view)[bad[0]].path}, ...",
                "submit again with --precision fp32; check the weights with sha256sum -c",
            )


@torch.inference_mode()
def forward(backbone: nn.Module, device: Device, pixels: transforms.Pixels) -> Tensor:
    """Returns the backbone's features, (B, 512) float32 on the CPU, of (B, 224, 224, 3) uint8."""
    images = torch.from_numpy(pixels).to(device.type, non_blocking=True)
    images = normalise(images.permute(0, 3, 1, 2))
    with torch.autocast(device.type, torch.bfloat16, enabled=device.precision == "bf16"):
        features: Tensor = backbone(images)
    return features.float().cpu()


def normalise(images: Tensor) -> Tensor:
    """Returns (B, 3, H, W) uint8 as float32 with ImageNet's mean and standard deviation taken out.

    Keeps the memory format: permuted from (B, H, W, 3) the images are channels_last already.
    """
    mean = torch.tensor(transforms.MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(transforms.STD, device=images.device).view(3, 1, 1)
    return (images.float() / 255 - mean) / std
