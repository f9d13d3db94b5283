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
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property

import torch
from torch import Tensor

from skinjob.train.device import Device
from skinjob.train.forward import BatchSize, Forward
from skinjob.train.pixels import Pixels

log = logging.getLogger("skinjob")

TELL_S = 0.5


class Streams:
    """Computes the features of views on a device."""

    def __init__(self, choose: Callable[[], Forward], device: Device, pixels: Pixels) -> None:
        """*choose* gives the backbone; it is asked when the first view has to be computed."""
        self.device = device
        self.pixels = pixels
        self._choose = choose
        self._local = threading.local()
        # One for all views: cuDNN finds its kernels anew in every new thread.
        self._pool = ThreadPoolExecutor(device.num_streams)

    @cached_property
    def forward(self) -> Forward:
        log.info(
            "views: %d batches at a time, a thread each; channels_last, batch norm folded",
            self.device.num_streams,
        )
        return self._choose()

    def compute(
        self, view: int, put: Callable[[int, Tensor], None], tell: Callable[[int], None]
    ) -> None:
        """Computes a view's features, and gives them to *put* with the position of the first.

        *put* is called in any order and from several threads; *tell* in this one, now and then,
        with the number of images that are done.
        """
        work = _Work(len(self.pixels.files(view)), self.forward.batch_size)

        def stream() -> None:
            while (part := work.take()) is not None:
                start = time.perf_counter()
                put(part.start, self._features(view, part))
                work.done(part, time.perf_counter() - start)

        streams = [self._pool.submit(stream) for _ in range(self.device.num_streams)]
        try:
            at_work = set(streams)
            while at_work:
                ended, at_work = wait(at_work, TELL_S, FIRST_EXCEPTION)
                for one in ended:
                    one.result()
                tell(work.num_done)
        finally:
            work.stop()
            wait(streams)

    def _features(self, view: int, part: range) -> Tensor:
        """Returns the features of some images of a view, (B, 512) float32 on the CPU."""
        with self._on_own_stream(), torch.inference_mode():
            return self.forward(self.pixels.batch(view, part, self.device.type))

    def _on_own_stream(self) -> AbstractContextManager[object]:
        """Returns what keeps a thread's work on a GPU apart from that of the others."""
        torch.set_num_threads(1)  # of this thread: its neighbours have the other cores
        if self.device.type == "cpu":
            return nullcontext()
        if not hasattr(self._local, "stream"):
            self._local.stream = torch.cuda.Stream()
            # The backbone was copied to the GPU on the default stream.
            self._local.stream.wait_stream(torch.cuda.default_stream())
        return torch.cuda.stream(self._local.stream)


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
