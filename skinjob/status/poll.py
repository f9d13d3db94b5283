"""Runs watched while they go on: SLURM is asked in the background, and seldom."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from threading import Thread

from skinjob.errors import SkinjobError
from skinjob.queues.slurm.client import Answers
from skinjob.status.status import Survey, survey
from skinjob.sweeps.layout import Run, Sweep

LOOK_S = 2
ASK_S = 15  # squeue answers for a whole site: it is asked seldom
PATIENCE_S = 30  # accounting is some seconds behind, and says only then what ended a job


def surveys(
    sweep: Sweep, runs: Sequence[Run] | None = None, *, every_s: float = LOOK_S
) -> Iterator[Survey]:
    """Yields how the runs of a sweep, or these of them, stand, until none waits or runs.

    The folders are looked at every *every_s* seconds. While SLURM takes long to answer, or does
    not, they go on to be.

    Raises: RunError as `survey` does.
    """
    asking = _Asking(sweep, runs)
    settled_s = 0.0
    while True:
        found = survey(sweep, asking.answers(), runs)
        yield found
        if not all(one.status.is_final for one in found.runs):
            settled_s = 0.0
        elif settled_s >= PATIENCE_S or not any(one.may_be_known_soon for one in found.runs):
            return
        time.sleep(every_s)
        settled_s += every_s


class _Asking:
    """Asks SLURM again and again, all that a survey of these runs needs, in a thread."""

    def __init__(self, sweep: Sweep, runs: Sequence[Run] | None) -> None:
        self._sweep = sweep
        self._runs = runs
        self._newest: Answers | None = None
        self._thread: Thread | None = None
        self._begun = 0.0

    def answers(self) -> Answers:
        """Returns SLURM's newest answers; waits for the first ones only."""
        if self._thread is None or (
            not self._thread.is_alive() and time.monotonic() - self._begun > ASK_S
        ):
            self._begun = time.monotonic()
            self._thread = Thread(target=self._ask, name="asks SLURM", daemon=True)
            self._thread.start()
        if self._newest is None:
            self._thread.join()
        return self._newest or Answers()

    def _ask(self) -> None:
        answers = Answers()
        with suppress(SkinjobError, OSError):  # whoever looks at the runs meets it too
            survey(self._sweep, answers, self._runs)
        self._newest = answers
