"""How a run goes: told to state.json, to the log, and to a terminal if there is one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from skinjob.runs import Run
from skinjob.train.loop import Epoch
from skinjob.train.views import TEST, Watcher

log = logging.getLogger("skinjob")

HEARTBEAT_S = 5
LOG_EVERY_S = 30


class Reporter(Watcher):
    """Hears of every batch, view and epoch."""

    def __init__(self, run: Run, epochs: int, draw: Callable[[int], None]) -> None:
        """*draw* is told how many images are done, of this run's views in all."""
        self.run = run
        self.epochs = epochs
        self.draw = draw
        self.started = self.logged = time.monotonic()
        self.beaten = 0.0
        self.images_done = 0
        self.computed_views: set[int] = set()
        self.read_views: set[int] = set()

    def computing(self, view: int, done: int, total: int, seconds: float) -> None:
        self.beat()
        self.draw(self.images_done + done)
        if self.is_time_to_log():
            log.info("%s: %d of %d images, %.1f images/s", name(view), done, total, done / seconds)

    def computed(self, view: int, num_images: int, seconds: float) -> None:
        self.computed_views.add(view)
        self.images_done += num_images
        log.info(
            "%s computed: %d images, %.1f images/s", name(view), num_images, num_images / seconds
        )
        self.beat(now=True)

    def read(self, view: int, num_images: int) -> None:
        if view not in self.computed_views:
            self.read_views.add(view)
            self.images_done += num_images
            self.draw(self.images_done)
        self.beat()

    def waiting(self, view: int, owner: str) -> None:
        self.beat()
        if self.is_time_to_log():
            log.info("waiting for %s, which %s is computing", name(view), owner or "another run")

    def epoch(self, epoch: Epoch) -> None:
        row = epoch.row
        per_epoch_s = (time.monotonic() - self.started) / epoch.number
        left = timedelta(seconds=round(per_epoch_s * (self.epochs - epoch.number)))
        log.info(
            "epoch %d/%d: train loss %.4f accuracy %.4f, test loss %.4f accuracy %.4f, %.1f s, "
            "%s left",
            epoch.number,
            self.epochs,
            row["train_loss"],
            row["train_accuracy"],
            row["test_loss"],
            row["test_accuracy"],
            row["seconds"],
            left,
        )
        self.beat(now=True, epoch=epoch.number)

    def is_time_to_log(self) -> bool:
        if time.monotonic() - self.logged < LOG_EVERY_S:
            return False
        self.logged = time.monotonic()
        return True

    def beat(self, *, now: bool = False, **changes: Any) -> None:
        """Writes a heartbeat, at most one in five seconds unless *now*."""
        if now or time.monotonic() - self.beaten > HEARTBEAT_S:
            self.beaten = time.monotonic()
            self.run.update_state(
                views_computed=len(self.computed_views),
                views_read=len(self.read_views),
                **changes,
            )


def name(view: int) -> str:
    """Returns a view's name in the log.

    >>> name(0), name(3)
    ('test view', 'view 3')
    """
    return "test view" if view == TEST else f"view {view}"
