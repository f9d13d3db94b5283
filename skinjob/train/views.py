"""Views: the features of one pass over the images, computed once and shared by all runs.

With a frozen backbone an image reaches the head as its 512 features alone, and augmentation is
drawn from (augmentation seed, epoch, image) alone. So the features of epoch *e* are the same for
every batch size, lr and seed: one run computes them, the others read them.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event

from torch import Tensor

from skinjob.data.images import ImageSet
from skinjob.errors import RunError
from skinjob.train import transforms
from skinjob.train.cache import ViewCache
from skinjob.train.features import Features, FeaturesWriter
from skinjob.train.pixels import TEST, view_name
from skinjob.train.streams import Streams

FORMAT = "4"  # to be raised when the same key would give other features
POLL_S = 0.2


class Watcher:
    """Who is told how the views come along; this one does nothing with it."""

    def computing(self, view: int, done: int, total: int, seconds: float) -> None:
        """Called now and then with the images done and in all, and the time they took."""

    def computed(self, view: int, num_images: int, seconds: float) -> None:
        """Called when a view is computed."""

    def read(self, view: int, num_images: int) -> None:
        """Called when a view was found in the cache."""

    def waiting(self, view: int, owner: str) -> None:
        """Called again and again while another job is at the view."""


class Views:
    """The views of a sweep, as one of its jobs sees them."""

    def __init__(
        self,
        streams: Streams,
        *,
        images: ImageSet,
        weights_sha256: str,
        epochs: int,
        cache: ViewCache,
        watcher: Watcher | None = None,
    ) -> None:
        self.streams = streams
        self.epochs = epochs
        self.cache = cache
        self.watcher = watcher or Watcher()
        self._stopped = Event()
        self._common = {
            "format": FORMAT,
            "weights": weights_sha256,
            "device": streams.device.type,
            "precision": streams.device.precision,
        }
        self._fingerprints = {split: images.fingerprint(split) for split in ("train", "test")}

    def in_turn(self, views: Sequence[int]) -> Generator[Features, None, None]:
        """Yields the features of these views; while one is in use the next is computed.

        Clears the cache of what killed jobs left in it.

        Raises: as `get`.
        """
        self.cache.clear_up()
        with ThreadPoolExecutor(1) as ahead:
            coming = [ahead.submit(self.get, view) for view in views[:1]]
            try:
                for following in [*views[1:], None]:
                    features = coming.pop().result()
                    if following is not None:
                        coming.append(ahead.submit(self.get, following))
                    yield features
            finally:
                self._stopped.set()

    def get(self, view: int) -> Features:
        """Returns a view's features, (num_images, 512) float32 on the CPU.

        Computes them where the cache has none; while another job is at them, computes a later view
        that nobody is at.

        Raises: ImagesError when an image has changed since it was scanned; RunError when the
        backbone gives a feature that is not a number, or when the views were stopped.
        """
        while True:
            features = self.cache.read(self.key(view), self._num_images(view))
            if features is not None:
                self.watcher.read(view, len(features))
                return features
            mine = self._claim_one(view)
            if mine is None:
                self._require_going()
                self.watcher.waiting(view, self.cache.claimed_by(self.key(view)))
                time.sleep(POLL_S)
            else:
                self._compute_claimed(mine)

    def key(self, view: int) -> dict[str, str]:
        """Returns all that a view's features depend on."""
        side = self.streams.pixels.preprocessing.crop  # mean and deviation: in the weights' digest
        if view == TEST:
            own = {"images": self._fingerprints["test"], "transform": transforms.test_steps(side)}
        else:
            own = {
                "images": self._fingerprints["train"],
                "transform": transforms.train_steps(side),
                "augmentation_seed": str(self.streams.pixels.augmentation_seed),
                "epoch": str(view),
            }
        return self._common | own

    def _num_images(self, view: int) -> int:
        return len(self.streams.pixels.files(view))

    def _claim_one(self, view: int) -> int | None:
        """Claims and returns the first view from *view* on that is neither there nor claimed."""
        for candidate in range(view, self.epochs + 1):
            key = self.key(candidate)
            if not self.cache.has(key) and self.cache.claim(key):
                if not self.cache.has(key):  # it may have come between the two
                    return candidate
                self.cache.release(key)
        return None

    def _compute_claimed(self, view: int) -> None:
        key = self.key(view)
        try:
            with self.cache.writing(key, self._num_images(view)) as writer:
                self._compute(view, writer)
        finally:
            self.cache.release(key)

    def _compute(self, view: int, writer: FeaturesWriter) -> None:
        start = time.perf_counter()

        def put(first: int, features: Tensor) -> None:
            self._require_finite(features, view, first)
            writer.put(first, features)

        def tell(done: int) -> None:
            self._require_going()
            self.cache.keep_claim(self.key(view))
            seconds = time.perf_counter() - start
            self.watcher.computing(view, done, self._num_images(view), seconds)

        self.streams.compute(view, put, tell)
        self.watcher.computed(view, self._num_images(view), time.perf_counter() - start)

    def _require_going(self) -> None:
        if self._stopped.is_set():
            raise RunError("stopped, while views were computed", "skinjob submit")

    def _require_finite(self, features: Tensor, view: int, first: int) -> None:
        bad = (~features.isfinite()).any(dim=1).nonzero().flatten().tolist()
        if bad:
            raise RunError(
                f"{view_name(view)}: the backbone gives features that are no numbers, in "
                f"{self.streams.device.precision}, of "
                f"{self.streams.pixels.files(view)[first + bad[0]].path}",
                "submit again with --precision fp32; check the weights with sha256sum -c",
            )
