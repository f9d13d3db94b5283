"""Computes the features of each view once, for all runs. A view is a pass over a split.

With a frozen backbone, the head sees only the features of an image. The augmentation of an image is
drawn only from (augmentation seed, epoch, image). So an epoch has the same features for every batch
size, lr and seed: a single job computes them, and the others read them.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event

from torch import Tensor

from skinjob.data.images import Split
from skinjob.errors import RunError
from skinjob.train import transforms
from skinjob.train.extract import FeatureExtractor
from skinjob.train.features import Features, FeaturesWriter, ViewCache
from skinjob.train.images import View
from skinjob.train.reporter import Reporter

FORMAT = "6"  # raise it when the same key would give other features or another file
POLL_S = 0.2


class Views:
    """The views of a sweep, as one of its jobs computes and reads them."""

    def __init__(
        self,
        extractor: FeatureExtractor,
        *,
        weights_sha256: str,
        epochs: int,
        cache: ViewCache,
        reporter: Reporter,
    ) -> None:
        self.extractor = extractor
        self.source = extractor.source
        self.weights_sha256 = weights_sha256
        self.epochs = epochs
        self.cache = cache
        self.reporter = reporter
        self._stopped = Event()
        images = self.source.images
        self._fingerprints = {split: images.fingerprint(split) for split in Split}

    def in_turn(self, views: Sequence[View]) -> Generator[Features, None, None]:
        """Yields the features of *views*; computes the next view while the caller uses a view.

        Removes the files that killed jobs left in the cache.

        Raises: as `get`.
        """
        self.cache.clear_up()
        with ThreadPoolExecutor(1) as ahead:
            pending = [ahead.submit(self.get, view) for view in views[:1]]
            try:
                for next_view in [*views[1:], None]:
                    features = pending.pop().result()
                    if next_view is not None:
                        pending.append(ahead.submit(self.get, next_view))
                    yield features
            finally:
                self._stopped.set()

    def get(self, view: View) -> Features:
        """Returns a view's features, (num_images, num_features) float32 on the CPU.

        Computes them if the cache has none. While another job computes them, computes a later view
        that no job has claimed.

        Raises: ImagesError if an image has changed since the submit; RunError if a feature is not a
        number, or after `in_turn` has ended.
        """
        while True:
            features = self.cached(view)
            if features is not None:
                self.reporter.read(view, len(features))
                return features
            claimed = self._claim_next(view)
            if claimed is not None:
                self._compute_claimed(claimed)
            else:
                self._require_going()
                self.reporter.waiting(view, self.cache.claimed_by(self.key(view)))
                time.sleep(POLL_S)

    def cached(self, view: View) -> Features | None:
        """Returns a view's features if the cache has them."""
        return self.cache.read(self.key(view), self._num_images(view))

    def key(self, view: View) -> dict[str, str]:
        """Returns everything that a view's features depend on."""
        side = self.source.preprocessing.crop  # the digest of the weights covers mean and deviation
        key = {
            "format": FORMAT,
            "weights": self.weights_sha256,
            "device": self.extractor.device.type,
            "precision": self.extractor.device.precision,
            "images": self._fingerprints[view.split],
            "transform": transforms.test_steps(side),
        }
        if view.split == Split.TRAIN:
            key |= {
                "transform": transforms.train_steps(side),
                "augmentation_seed": str(self.source.augmentation_seed),
                "epoch": str(view.epoch),
            }
        return key

    def _num_images(self, view: View) -> int:
        return len(self.source.files(view.split))

    def _claim_next(self, view: View) -> View | None:
        """Claims and returns the first view, from *view* on, that is not computed or claimed."""
        later = [View(Split.TRAIN, epoch) for epoch in range(view.epoch + 1, self.epochs + 1)]
        for candidate in [view, *later]:
            key = self.key(candidate)
            if not self.cache.has(key) and self.cache.claim(key):
                if not self.cache.has(key):  # it may have been written between the two checks
                    return candidate
                self.cache.release(key)
        return None

    def _compute_claimed(self, view: View) -> None:
        key = self.key(view)
        try:
            with self.cache.writing(key, self._num_images(view)) as writer:
                self._compute(view, writer)
        finally:
            self.cache.release(key)

    def _compute(self, view: View, writer: FeaturesWriter) -> None:
        start, num_images = time.perf_counter(), self._num_images(view)

        def put(first: int, features: Tensor) -> None:
            self._require_finite(features, view, first)
            writer.put(first, features)

        def report(num_done: int) -> None:
            self._require_going()
            self.cache.renew_claim(self.key(view))
            self.reporter.computing(view, num_done, num_images, time.perf_counter() - start)

        self.extractor.compute(view, put, report)
        self.reporter.computed(view, num_images, time.perf_counter() - start)

    def _require_going(self) -> None:
        if self._stopped.is_set():
            raise RunError("the job ended while it computed features", "skinjob retry")

    def _require_finite(self, features: Tensor, view: View, first: int) -> None:
        bad = (~features.isfinite()).any(dim=1).nonzero().flatten().tolist()
        if bad:
            raise RunError(
                f"{view.name}: in {self.extractor.device.precision}, features of "
                f"{self.source.files(view.split)[first + bad[0]].path} are not numbers",
                "submit again with --precision fp32; check the weights with sha256sum -c",
            )
