"""How a job goes: told to its runs' states and logs, and to a terminal if there is one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

from skinjob.console import say
from skinjob.sweeps.layout import Run, utc_now
from skinjob.train.holding import Hold, TakenError
from skinjob.train.loop import Epoch
from skinjob.train.pixels import view_name
from skinjob.train.views import Watcher

log = logging.getLogger("skinjob")

LOG_EVERY_S = 30


class Reporter(Watcher):
    """Hears of every view and epoch, of views from another thread than that of the epochs."""

    def __init__(
        self, hold: Hold, counting: Run, epochs: int, first: int, draw: Callable[[int], None]
    ) -> None:
        """*first* is the epoch that is begun with; *draw* is told the images done, of all.

        Views are computed once for all runs of a job: *counting* is the one that counts them.
        """
        self.hold = hold
        self.counting = counting
        self.epochs = epochs
        self.first = first
        self.draw = draw
        self.started = self.logged = time.monotonic()
        self.images_done = 0
        self.computed_views: set[int] = set()
        self.read_views: set[int] = set()

    def computing(self, view: int, done: int, total: int, seconds: float) -> None:
        self.draw(self.images_done + done)
        self.hold.note(self.counting, images_per_s=round(done / seconds, 1))
        if self.is_time_to_log():
            log.info(
                "%s: %d of %d images, %.1f images/s", view_name(view), done, total, done / seconds
            )

    def computed(self, view: int, num_images: int, seconds: float) -> None:
        self.computed_views.add(view)
        self.images_done += num_images
        self.hold.note(
            self.counting,
            views_computed=len(self.computed_views),
            images_per_s=round(num_images / seconds, 1),
        )
        log.info(
            "%s computed: %d images, %.1f images/s",
            view_name(view),
            num_images,
            num_images / seconds,
        )

    def read(self, view: int, num_images: int) -> None:
        if view not in self.computed_views:
            self.read_views.add(view)
            self.images_done += num_images
            self.draw(self.images_done)

    def waiting(self, view: int, owner: str) -> None:
        if self.is_time_to_log():
            log.info(
                "waiting for %s, which %s is computing", view_name(view), owner or "another job"
            )

    def training(self, number: int, done: int, total: int, seconds: float) -> None:
        """Called after every update of all layers with the epoch's images done and in all.

        Raises: TakenError when another process has the run by now.
        """
        if not self.hold.has(self.counting):
            raise TakenError(self.counting)
        self.draw((number - self.first) * total + done)
        self.hold.note(self.counting, images_per_s=round(done / seconds, 1))
        if self.is_time_to_log():
            log.info(
                "epoch %d/%d: %d of %d images, %.1f images/s",
                number,
                self.epochs,
                done,
                total,
                done / seconds,
            )

    def epoch(self, run: Run, epoch: Epoch) -> None:
        """Called when an epoch of a run is on disk."""
        row = epoch.row
        per_epoch_s = (time.monotonic() - self.started) / (epoch.number - self.first + 1)
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
            extra={"run": run.name},
        )
        views_read = len(self.read_views | (set() if run == self.counting else self.computed_views))
        # Not flushed to disk: a word that the next one overtakes in seconds.
        self.hold.say(
            run,
            is_durable=False,
            epoch=epoch.number,
            epoch_utc=utc_now(),
            test_accuracy=round(row["test_accuracy"], 6),
            views_read=views_read,
        )

    def is_time_to_log(self) -> bool:
        if time.monotonic() - self.logged < LOG_EVERY_S:
            return False
        self.logged = time.monotonic()
        return True


@contextmanager
def logging_to(runs: Sequence[Run]) -> Iterator[None]:
    """Sends the log to each run's file, after what earlier attempts left in it, and to stdout.

    A record with a `run` goes to that run's file alone; on stdout the run is named where there are
    several.
    """
    handlers: list[logging.Handler] = [_RunLogs(runs), _Printer(names_runs=len(runs) > 1)]
    for handler in handlers:
        handler.setFormatter(_utc_formatter())
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


class _RunLogs(logging.Handler):
    """Adds a record to the log of the run that it concerns, or of all; keeps no file open."""

    def __init__(self, runs: Sequence[Run]) -> None:
        super().__init__()
        self.files = {run.name: run.log_file for run in runs}

    def emit(self, record: logging.LogRecord) -> None:
        run = getattr(record, "run", None)
        try:
            for file in self._files(run):
                with file.open("a", encoding="utf-8") as lines:
                    lines.write(self.format(record) + "\n")
        except OSError:  # a log that cannot be written ends no training
            self.handleError(record)

    def _files(self, run: str | None) -> list[Path]:
        if run is None:
            return list(self.files.values())
        return [self.files[run]] if run in self.files else []


class _Printer(logging.Handler):
    """Prints to what stdout is at the time: a progress bar takes its place while it is drawn."""

    def __init__(self, *, names_runs: bool) -> None:
        super().__init__()
        self.names_runs = names_runs

    def emit(self, record: logging.LogRecord) -> None:
        run = getattr(record, "run", None) if self.names_runs else None
        time_and_words = self.format(record)
        with suppress(OSError):  # a reader that has gone, or a full disk, ends no training
            text = f"{time_and_words}  ({run})" if run else time_and_words
            say(*text.split("\n"), keeps="\t")  # a traceback has several lines


def _utc_formatter() -> logging.Formatter:
    formatter = logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    return formatter
