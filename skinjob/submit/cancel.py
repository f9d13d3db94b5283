"""Runs that are called off: first in their folders, then in the queue that has their jobs."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from skinjob.errors import ClusterError, RunError
from skinjob.files import absolute
from skinjob.queues.base import queue_of
from skinjob.status.status import RunStatus, sweep_status
from skinjob.submit.folders import submitting
from skinjob.sweeps.layout import Run, Sweep
from skinjob.sweeps.records import Status, utc_now, write_record
from skinjob.words import list_first

SETTLE_S = 0.5  # a job that is just writing a heartbeat writes over what it has not seen


@dataclass(frozen=True)
class Cancellation:
    """What was called off."""

    cancelled: tuple[str, ...]
    """The runs, by name."""
    left: tuple[RunStatus, ...]
    """The statuses of those that were over already."""
    ended: tuple[str, ...]
    """Jobs that were told to end, as none of their runs is left."""
    going_on: tuple[str, ...]
    """Jobs that let go of the runs and go on with others."""


def cancel(sweep: Sweep, names: Sequence[str]) -> Cancellation:
    """Calls off those of the runs *names* that wait or are at work; without names, of all.

    Their folders say so first: a job that finds it there lets go of the run, or does not begin on
    it, even if it cannot be ended now. A run can be taken up later where it was.

    Raises: ClusterError when the queue does not answer, and RunError when a folder cannot be
    written or the sweep is another user's.
    """
    sweep.require_own("cancel", *names)
    with submitting(sweep.folder.parent):
        return _cancel(sweep, names)


def _cancel(sweep: Sweep, names: Sequence[str]) -> Cancellation:
    queue = queue_of(sweep)
    found = {run.run: run for run in sweep_status(sweep, queue, is_locked=True).runs}
    meant = [found[name] for name in names or found]
    cancelled = _mark(sweep, [run.run for run in meant if not run.status.is_final])
    others = [run for run in found.values() if run.run not in cancelled]
    at_work = {run.job for run in others if not run.status.is_final}
    let_go = {found[name].job for name in cancelled}
    # Of an earlier time, when the queue did not answer, jobs may be left to end.
    before = {run.job for run in meant if run.status == Status.CANCELLED}
    idle = sorted(job for job in (let_go | before) - at_work if job)
    try:
        ended = queue.cancel(sweep, idle)
    except ClusterError as error:
        again = shlex.join(["skinjob", "cancel", str(absolute(sweep.folder)), *names])
        raise ClusterError(
            f"{error.message}; the runs are cancelled, and their jobs let go of them",
            f"{again}   # once it answers",
            [f"cancelled: {list_first(sorted(cancelled))}"] if cancelled else [],
        ) from None
    return Cancellation(
        cancelled=tuple(cancelled),
        left=tuple(run for run in meant if run.run not in cancelled),
        ended=tuple(ended),
        going_on=tuple(sorted(job for job in let_go & at_work if job)),
    )


def _mark(sweep: Sweep, names: Sequence[str]) -> list[str]:
    """Writes to the runs' folders that they were cancelled; returns those that were not over."""
    for name in names:
        _mark_one(Run(sweep.folder / name))
    time.sleep(SETTLE_S if names else 0)
    return [name for name in names if _mark_one(Run(sweep.folder / name))]


def _mark_one(run: Run) -> bool:
    """Writes that a run was cancelled, and frees it from its process; False where it is over."""
    with run.changing_state():
        state = run.state()
        if state.status.is_final:
            return state.status == Status.CANCELLED
        cancelled = replace(
            state,
            status=Status.CANCELLED,
            failure=None,
            reason=None,
            fix=run.sweep.retry_command(run.name),
            finished_utc=utc_now(),
            holder=None,
        )
        try:
            write_record(run.state_file, cancelled)
        except OSError as error:
            raise RunError(
                f"{run.state_file}: {error.strerror}", f"ls -ld {shlex.quote(str(run.folder))}"
            ) from None
        return True
