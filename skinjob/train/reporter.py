"""The progress of a job: writes it to the states and logs of its runs, and to a terminal."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

from skinjob.config import TrainConfig
from skinjob.data.images import Split
from skinjob.sweeps.layout import Run
from skinjob.sweeps.records import utc_now
from skinjob.train.images import View
from skinjob.train.lease import Lease

log = logging.getLogger("skinjob")

LOG_EVERY_S = 30


class Reporter:
    """Receives the events of a job. Those of views come from another thread."""

    def __init__(
        self, lease: Lease, counting: Run, epochs: range, draw: Callable[[int], None]
    ) -> None:
        """*epochs* will be trained. *draw* is called with the number of images so far.

        The runs of a job share each view: the state of the run *counting* counts them.
        """
        self.lease = lease
        self.counting = counting
        self.epochs = epochs
        self.draw = draw
        self.started = self.logged = time.monotonic()
        self.images_done = 0
        self.computed_views: set[View] = set()
        self.read_views: set[View] = set()
        self.trained_images: dict[Run, int] = {}
        """The images so far in the epoch of each run that trains all layers."""

    def computing(self, view: View, num_done: int, num_images: int, seconds: float) -> None:
        """Called every half second with a view's images so far, all its images, and the time."""
        self.draw(self.images_done + num_done)
        self._report(view.name, num_done, num_images, seconds)

    def computed(self, view: View, num_images: int, seconds: float) -> None:
        """Called after a view is computed."""
        self.computed_views.add(view)
        self.images_done += num_images
        rate = num_images / seconds
        num_views = len(self.computed_views)
        self.lease.note(self.counting, views_computed=num_views, images_per_s=round(rate, 1))
        log.info("%s computed: %d images, %.1f images/s", view.name, num_images, rate)

    def read(self, view: View, num_images: int) -> None:
        """Called after a view is read from the cache."""
        if view not in self.computed_views:
            self.read_views.add(view)
            self.images_done += num_images
            self.draw(self.images_done)

    def waiting(self, view: View, owner: str) -> None:
        """Called repeatedly while another job computes the view."""
        if self._is_time_to_log():
            log.info("waiting for %s, which %s is computing", view.name, owner or "another job")

    def trained(
        self,
        run: Run,
        config: TrainConfig,
        epoch: int,
        num_done: int,
        num_images: int,
        seconds: float,
    ) -> None:
        """Called after every update of all layers, with the epoch's images so far and in total."""
        self.trained_images[run] = num_done
        if num_done == num_images:
            self.images_done += self.trained_images.pop(run)
        self.draw(self.images_done + sum(self.trained_images.values()))
        self._report(f"epoch {epoch}/{config.epochs}", num_done, num_images, seconds)

    def finished_epochs(
        self, run: Run, config: TrainConfig, rows: Sequence[Mapping[str, float]]
    ) -> None:
        """Called with the metrics of epochs, after they are on disk."""
        for row in rows:
            epoch = int(row["epoch"])
            per_epoch_s = (time.monotonic() - self.started) / (epoch - self.epochs[0] + 1)
            scores = (
                f"{split} loss {row[f'{split}_loss']:.4f} accuracy {row[f'{split}_accuracy']:.4f}"
                for split in Split
                if f"{split}_loss" in row
            )
            log.info(
                "%s: %s, %.1f s, %s left",
                _place(config, row),
                ", ".join(scores),
                row["seconds"],
                timedelta(seconds=round(per_epoch_s * (config.epochs - epoch))),
                extra={"run": run.name},
            )
        views_read = self.read_views | (set() if run == self.counting else self.computed_views)
        self.lease.say(
            run,
            is_durable=False,  # the next heartbeat replaces it in seconds
            epoch=epoch,
            updates=int(row["updates"]),
            epoch_utc=utc_now(),
            test_accuracy=round(row["test_accuracy"], 6),
            views_read=len(views_read),
        )

    def _report(self, what: str, num_done: int, num_images: int, seconds: float) -> None:
        rate = num_done / seconds
        self.lease.note(self.counting, images_per_s=round(rate, 1))
        if self._is_time_to_log():
            log.info("%s: %d of %d images, %.1f images/s", what, num_done, num_images, rate)

    def _is_time_to_log(self) -> bool:
        if time.monotonic() - self.logged < LOG_EVERY_S:
            return False
        self.logged = time.monotonic()
        return True


def _place(config: TrainConfig, row: Mapping[str, float]) -> str:
    """Returns how far a run is after an epoch."""
    words = f"epoch {row['epoch']}/{config.epochs}"
    return f"{words}, update {row['updates']}/{config.updates}" if config.updates else words
