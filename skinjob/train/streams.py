"""A pass of images through the backbone: several batches at a time, each in a thread of its own.

A thread takes its batch all the way, from the file to the features. So decoding, augmentation,
copies and the network overlap without any of them being told to, and no core waits for another.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import torch
from torch import Tensor, nn

from skinjob.train import transforms
from skinjob.train.device import Device
from skinjob.train.pixels import Pixels

log = logging.getLogger("skinjob")

TRIALS = 6  # batches by which a batch size is judged
TELL_S = 0.5


class Streams:
    """Computes the features of views on a device."""

    def __init__(self, backbone: nn.Module, device: Device, pixels: Pixels) -> None:
        self.device = device
        self.pixels = pixels
        self.batch_size = BatchSize(device.batches)
        self._backbone = backbone.to(device.type, device.dtype)
        self._local = threading.local()

    def compute(
        self, view: int, put: Callable[[int, Tensor], None], tell: Callable[[int], None]
    ) -> None:
        """Computes a view's features, and gives them to *put* with the position of the first.

        *put* is called in any order and from several threads; *tell* in this one, now and then,
        with the number of images that are done.
        """
        work = _Work(len(self.pixels.files(view)), self.batch_size)

        def stream() -> None:
            while (part := work.take()) is not None:
                start = time.perf_counter()
                put(part.start, self._features(view, part))
                work.done(part, time.perf_counter() - start)

        with ThreadPoolExecutor(self.device.num_streams) as pool:
            try:
                open_streams = {pool.submit(stream) for _ in range(self.device.num_streams)}
                while open_streams:
                    ended, open_streams = wait(open_streams, TELL_S, FIRST_EXCEPTION)
                    for one in ended:
                        one.result()
                    tell(work.num_done)
            finally:
                work.stop()

    def _features(self, view: int, part: range) -> Tensor:
        """Returns the features of some images of a view, (B, 512) float32 on the CPU."""
        crops = [self.pixels.crop(view, index) for index in part]
        with self._on_own_stream(), torch.inference_mode():
            images = transforms.batch(crops, self.device.type)
            features: Tensor = self._backbone(images.to(self.device.dtype))
            return features.float().cpu()

    def _on_own_stream(self) -> torch.cuda.StreamContext:
        if not hasattr(self._local, "stream"):
            torch.set_num_threads(1)  # of this thread alone: its neighbours have the other cores
            self._local.stream = torch.cuda.Stream() if self.device.type == "cuda" else None
        return torch.cuda.stream(self._local.stream)  # does nothing where there is none


class BatchSize:
    """How many images go through the backbone at once: tried on the work itself, not beside it."""

    def __init__(self, candidates: tuple[int, ...]) -> None:
        self._seconds: dict[int, list[float]] = {size: [] for size in candidates}
        self._lock = threading.Lock()
        self.chosen: int | None = None

    def next(self) -> int:
        """Returns the chosen size, or, until there is one, that which was tried the least."""
        with self._lock:
            return self.chosen or min(self._seconds, key=lambda size: len(self._seconds[size]))

    def record(self, size: int, seconds: float) -> None:
        """Notes how long a batch took, and chooses once every size has had its trials."""
        with self._lock:
            if self.chosen is None and size in self._seconds:
                self._seconds[size].append(seconds)
                if all(len(tried) >= TRIALS for tried in self._seconds.values()):
                    self.chosen = max(self._seconds, key=self.images_per_s)
                    log.info("batch: %s", self.words())

    def images_per_s(self, size: int) -> float:
        """Returns the rate of a stream by its best batch: the first ones warm up."""
        return size / min(self._seconds[size])

    def words(self) -> str:
        """Returns the choice and its reason, for the log."""
        rates = ", ".join(f"{size}: {self.images_per_s(size):.1f}" for size in self._seconds)
        return f"{self.chosen} images per forward pass (images/s of a stream by size: {rates})"


class _Work:
    """The images of a view, handed out in batches."""

    def __init__(self, num_images: int, batch_size: BatchSize) -> None:
        self.num_done = 0
        self._num_images = num_images
        self._next = 0
        self._batch_size = batch_size
        self._lock = threading.Lock()

    def take(self) -> range | None:
        """Returns the positions of the next batch, or None when there is no more."""
        size = self._batch_size.next()
        with self._lock:
            first, self._next = self._next, min(self._next + size, self._num_images)
            return range(first, self._next) if first < self._next else None

    def done(self, part: range, seconds: float) -> None:
        self._batch_size.record(len(part), seconds)
        with self._lock:
            self.num_done += len(part)

    def stop(self) -> None:
        with self._lock:
            self._next = self._num_images
