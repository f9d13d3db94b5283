"""Watches runs. A thread asks their queue, and not often."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from threading import Thread

from skinjob.errors import SkinjobError
from skinjob.queues.base import Queue, queue_of
from skinjob.status.status import SweepStatus, sweep_status
from skinjob.sweeps.layout import Run, Sweep

LOOK_S = 2
PATIENCE_S = 30  # accounting knows some seconds later what ended a job


def watch(
    sweep: Sweep, runs: Sequence[Run] | None = None, *, every_s: float = LOOK_S
) -> Iterator[SweepStatus]:
    """Yields the status of a sweep, or of *runs*, until all runs have ended.

    It reads the folders every *every_s* seconds. A slow queue does not delay that.

    Raises: RunError as `sweep_status` does.
    """
    asking = _Asking(sweep, runs)
    settled_s = 0.0
    while True:
        sweep_now = sweep_status(sweep, asking.queue(), runs)
        yield sweep_now
        if not all(run.status.is_final for run in sweep_now.runs):
            settled_s = 0.0
        elif settled_s >= PATIENCE_S or not any(run.may_be_known_soon for run in sweep_now.runs):
            return
        time.sleep(every_s)
        settled_s += every_s


class _Asking:
    """Asks a queue again and again, in a thread, for the status of some runs."""

    def __init__(self, sweep: Sweep, runs: Sequence[Run] | None) -> None:
        self._sweep = sweep
        self._runs = runs
        self._newest = queue_of(sweep)
        self._thread: Thread | None = None
        self._started = 0.0

    def queue(self) -> Queue:
        """Returns the queue with its newest answers; waits only for the first answers."""
        is_first = self._thread is None
        pause_s = self._newest.look_s
        if self._thread is None or (
            not self._thread.is_alive() and time.monotonic() - self._started > pause_s
        ):
            self._started = time.monotonic()
            self._thread = Thread(target=self._ask, name="asks the queue", daemon=True)
            self._thread.start()
        if is_first:
            self._thread.join()
        return self._newest

    def _ask(self) -> None:
        with suppress(SkinjobError, OSError):  # `watch` meets the same error
            queue = queue_of(self._sweep)
            sweep_status(self._sweep, queue, self._runs)
            self._newest = queue
