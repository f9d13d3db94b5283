"""Computes the features of a view's images with the frozen backbone.

Several threads work at the same time. Each takes a batch from the files to the features, so
decoding, augmentation, copies and the network overlap, and no core waits for another.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property

import torch
from torch import Tensor

from skinjob.train.device import Device
from skinjob.train.forward import Forward
from skinjob.train.images import ImageSource, View

log = logging.getLogger("skinjob")

TRIALS = 6  # batches of each size, before a size is chosen
REPORT_S = 0.5


class FeatureExtractor:
    """Computes the features of views on a device."""

    def __init__(self, build: Callable[[], Forward], device: Device, source: ImageSource) -> None:
        """*build* returns the backbone. It is called when the first view is computed."""
        self.device = device
        self.source = source
        self._build = build
        self._local = threading.local()
        # All views share the threads: cuDNN chooses its kernels again in every new thread.
        self._pool = ThreadPoolExecutor(device.num_streams)

    @cached_property
    def _forward(self) -> Forward:
        log.info(
            "views: %d batches at a time, a thread each; channels_last, batch norm folded",
            self.device.num_streams,
        )
        return self._build()

    @cached_property
    def _batch_size(self) -> BatchSize:
        return BatchSize(self._forward.batch_sizes)

    def compute(
        self, view: View, put: Callable[[int, Tensor], None], report: Callable[[int], None]
    ) -> None:
        """Computes a view's features; calls *put* with the position of the first and the features.

        *put* is called in any order, from several threads. *report* is called in this thread,
        every REPORT_S, with the number of images that are done.
        """
        num_images, num_streams = len(self.source.files(view.split)), self.device.num_streams
        sizes, lock = self._batch_size, threading.Lock()
        started = num_done = 0

        def take() -> range:
            """Returns the positions of the next batch; an empty range after the last."""
            nonlocal started
            size = sizes.next()
            with lock:
                first, started = started, min(started + size, num_images)
                return range(first, started)

        def stream() -> None:
            nonlocal num_done
            while part := take():
                start = time.perf_counter()
                put(part.start, self._features(view, part))
                sizes.record(len(part), time.perf_counter() - start)
                with lock:
                    num_done += len(part)

        streams = [self._pool.submit(stream) for _ in range(num_streams)]
        try:
            pending = set(streams)
            while pending:
                ended, pending = wait(pending, REPORT_S, FIRST_EXCEPTION)
                for future in ended:
                    future.result()
                report(num_done)
        finally:
            with lock:
                started = num_images  # no stream starts another batch
            wait(streams)

    def _features(self, view: View, part: range) -> Tensor:
        """Returns the features of some images of a view, (B, num_features) float32 on the CPU."""
        with self._own_cuda_stream(), torch.inference_mode():
            return self._forward(self.source.batch(view, part, self.device.type))

    def _own_cuda_stream(self) -> AbstractContextManager[object]:
        """Returns a context in which a thread uses a CUDA stream that no other thread uses."""
        torch.set_num_threads(1)  # for this thread; the other streams use the other cores
        if self.device.type == "cpu":
            return nullcontext()
        if not hasattr(self._local, "stream"):
            self._local.stream = torch.cuda.Stream()
            # The backbone was copied to the GPU on the default stream.
            self._local.stream.wait_stream(torch.cuda.default_stream())
        return torch.cuda.stream(self._local.stream)


class BatchSize:
    """Chooses the number of images in a forward pass, by the times of the first batches."""

    def __init__(self, candidates: tuple[int, ...]) -> None:
        self._seconds: dict[int, list[float]] = {size: [] for size in candidates}
        self._lock = threading.Lock()
        self.chosen = candidates[0] if len(candidates) == 1 else None

    def next(self) -> int:
        """Returns the chosen size; before the choice, the size that was tried the least."""
        with self._lock:
            return self.chosen or min(self._seconds, key=lambda size: len(self._seconds[size]))

    def record(self, size: int, seconds: float) -> None:
        """Notes how long a batch took, and chooses a size when each has been tried TRIALS times."""
        with self._lock:
            if self.chosen is None and size in self._seconds:
                self._seconds[size].append(seconds)
                if all(len(trials) >= TRIALS for trials in self._seconds.values()):
                    self.chosen = max(self._seconds, key=self._images_per_s)
                    log.info("batch: %s", self.describe())

    def describe(self) -> str:
        """Returns the choice and its reason, for the log."""
        rates = ", ".join(f"{size}: {self._images_per_s(size):.1f}" for size in self._seconds)
        return f"{self.chosen} images per forward pass (images/s of a stream by size: {rates})"

    def _images_per_s(self, size: int) -> float:
        """Returns the images/s of the fastest batch, as the first batches warm up."""
        return size / min(self._seconds[size])
