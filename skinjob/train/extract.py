"""The frozen backbone at work: images of a view in, their features out.

Several batches are under way at a time. A thread takes its batch all the way, from the files to the
features. So decoding, augmentation, copies and the network overlap, and no core waits for
another.
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

TRIALS = 6  # batches by which a batch size is judged
REPORT_S = 0.5


class FeatureExtractor:
    """Computes the features of views on a device."""

    def __init__(self, build: Callable[[], Forward], device: Device, source: ImageSource) -> None:
        """*build* returns the backbone; it is called when the first view has to be computed."""
        self.device = device
        self.source = source
        self._build = build
        self._local = threading.local()
        # One pool for all views: cuDNN chooses its kernels again in every new thread.
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
        """Computes a view's features, and calls *put* with them and the position of the first.

        *put* is called in any order and from several threads; *report* in this thread, now and
        then, with the number of images that are done.
        """
        num_images, num_streams = len(self.source.files(view.split)), self.device.num_streams
        sizes, lock = self._batch_size, threading.Lock()
        started = num_done = 0

        def take() -> range:
            """Returns the positions of the next batch; an empty range when there is no more."""
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
                for stream_ended in ended:
                    stream_ended.result()
                report(num_done)
        finally:
            with lock:
                started = num_images  # the streams find no more to do
            wait(streams)

    def _features(self, view: View, part: range) -> Tensor:
        """Returns the features of some images of a view, (B, num_features) float32 on the CPU."""
        with self._own_cuda_stream(), torch.inference_mode():
            return self._forward(self.source.batch(view, part, self.device.type))

    def _own_cuda_stream(self) -> AbstractContextManager[object]:
        """Returns a context that keeps a thread's work on a GPU apart from that of the others."""
        torch.set_num_threads(1)  # of this thread: the other streams have the other cores
        if self.device.type == "cpu":
            return nullcontext()
        if not hasattr(self._local, "stream"):
            self._local.stream = torch.cuda.Stream()
            # The backbone was copied to the GPU on the default stream.
            self._local.stream.wait_stream(torch.cuda.default_stream())
        return torch.cuda.stream(self._local.stream)


class BatchSize:
    """The number of images in a forward pass: tried on the work itself, not beside it."""

    def __init__(self, candidates: tuple[int, ...]) -> None:
        self._seconds: dict[int, list[float]] = {size: [] for size in candidates}
        self._lock = threading.Lock()
        self.chosen = candidates[0] if len(candidates) == 1 else None

    def next(self) -> int:
        """Returns the chosen size; until there is one, the size that was tried the least."""
        with self._lock:
            return self.chosen or min(self._seconds, key=lambda size: len(self._seconds[size]))

    def record(self, size: int, seconds: float) -> None:
        """Notes how long a batch took, and chooses once every size has had its trials."""
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
        """Returns the rate of a stream by its best batch: the first ones warm up."""
        return size / min(self._seconds[size])
