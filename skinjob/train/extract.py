"""Computes the features of a view's images with the frozen backbone.

On a CPU, several threads work at the same time. Each takes a batch from the decoded images to the
features, so no core waits for another. A GPU takes large batches, one after another: its pixels are
in its memory, and only the features come back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import cached_property

import torch
from torch import Tensor

from skinjob.train.device import Device
from skinjob.train.forward import Forward
from skinjob.train.images import ImageSource, View

log = logging.getLogger("skinjob")

TRIALS = 6  # batches of each size, before a size is chosen
REPORT_S = 0.5
SMALLEST_BATCH = 32  # of a GPU: if its memory does not suffice, an error
HELD_BYTES = 64 << 20  # of features on the GPU, before they are copied back


class FeatureExtractor:
    """Computes the features of views on a device."""

    def __init__(self, build: Callable[[], Forward], device: Device, source: ImageSource) -> None:
        """*build* returns the backbone. It is called when the first view is computed."""
        self.device = device
        self.source = source
        self._build = build
        self._pool = ThreadPoolExecutor(device.num_streams)

    @cached_property
    def _forward(self) -> Forward:
        if self.device.type == "cpu":
            log.info("views: %d batches at a time, a thread each", self.device.num_streams)
        return self._build()

    @cached_property
    def _gpu_batch_size(self) -> int:
        return max(self._forward.batch_sizes)

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
        reported = time.monotonic()

        def report_sometimes(num_done: int = 0) -> None:
            nonlocal reported
            if time.monotonic() - reported > REPORT_S:
                report(num_done)
                reported = time.monotonic()

        self.source.prepare(view.split, report_sometimes)
        if self.device.type == "cpu":
            self.by_streams(view, put, report)
        else:
            with torch.cuda.stream(self._own_stream):
                self.by_large_batches(view, put, report_sometimes)

    @cached_property
    def _own_stream(self) -> torch.cuda.Stream:
        self._forward  # noqa: B018 - copied to the GPU on the default stream
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.default_stream())
        return stream

    @torch.inference_mode()
    def by_large_batches(
        self, view: View, put: Callable[[int, Tensor], None], report: Callable[[int], None]
    ) -> None:
        """Computes a view on a GPU; halves the batch size where its memory does not suffice.

        Features come back at the end of the view, or when they take HELD_BYTES.
        """
        num_images, first = len(self.source.files(view.split)), 0
        while first < num_images:
            parts = torch.arange(first, num_images).split(self._gpu_batch_size)
            held: list[Tensor] = []
            try:
                for batch in self.source.batches(view, parts, self.device.type):
                    held.append(self._forward(batch))
                    num_done = first + sum(map(len, held))
                    if num_done == num_images or sum(part.nbytes for part in held) > HELD_BYTES:
                        put(first, torch.cat(held).cpu())
                        first, held = num_done, []
                    report(num_done)
                continue
            except torch.OutOfMemoryError:
                if self._gpu_batch_size <= SMALLEST_BATCH:
                    raise
            # Here, and not above: the exception holds on to the tensors of the batch.
            self._gpu_batch_size //= 2
            log.info("views: GPU memory is short, so %d images per batch", self._gpu_batch_size)
            torch.cuda.empty_cache()

    def by_streams(
        self, view: View, put: Callable[[int, Tensor], None], report: Callable[[int], None]
    ) -> None:
        """Computes a view on a CPU; each stream has a single core."""
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
            torch.set_num_threads(1)  # for this thread; the other streams use the other cores
            while part := take():
                start = time.perf_counter()
                with torch.inference_mode():
                    put(part.start, self._forward(self.source.batch(view, part)))
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
