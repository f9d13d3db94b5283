"""Cancels runs: first in their folders, then in the queue that has their jobs."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from skinjob.errors import ClusterError, RunError
from skinjob.queues.base import queue_of
from skinjob.status.status import RunStatus, sweep_status
from skinjob.submit.folders import submitting
from skinjob.sweeps.layout import Run, Sweep
from skinjob.sweeps.records import Status, utc_now, write_record
from skinjob.words import list_first

SETTLE_S = 0.5  # a heartbeat that is being written now would replace the new status


@dataclass(frozen=True)
class Cancellation:
    """The result of a cancel."""

    cancelled: tuple[str, ...]
    """The runs, by name."""
    left: tuple[RunStatus, ...]
    """The statuses of runs that had ended before."""
    ended: tuple[str, ...]
    """Jobs that the queue ends, because all of their runs are cancelled."""
    going_on: tuple[str, ...]
    """Jobs that continue with their other runs."""


def cancel(sweep: Sweep, names: Sequence[str]) -> Cancellation:
    """Cancels waiting and running runs: the runs *names*, or all without names.

    The folders say so first: a job that reads it there leaves the run, even if the queue cannot
    end the job now. A cancelled run can continue later after its last epoch.

    Raises: ClusterError if the queue does not answer, and RunError if a folder cannot be written
    or the sweep belongs to another user.
    """
    sweep.require_own("cancel", *names)
    with submitting(sweep.folder.parent):
        return _cancel(sweep, names)


def _cancel(sweep: Sweep, names: Sequence[str]) -> Cancellation:
    queue = queue_of(sweep)
    statuses = {run.run: run for run in sweep_status(sweep, queue, is_locked=True).runs}
    chosen = [statuses[name] for name in names or statuses]
    cancelled = _mark(sweep, [run.run for run in chosen if not run.status.is_final])
    others = [run for run in statuses.values() if run.run not in cancelled]
    needed = {run.job for run in others if not run.status.is_final}
    freed = {statuses[name].job for name in cancelled}
    # An earlier cancel may have got no answer from the queue: its jobs still run.
    before = {run.job for run in chosen if run.status == Status.CANCELLED}
    idle = sorted(job for job in (freed | before) - needed if job)
    try:
        ended = queue.cancel(sweep, idle)
    except ClusterError as error:
        raise ClusterError(
            f"{error.message}; the runs are marked as cancelled, and their jobs will skip them",
            f"{sweep.command('cancel', *names)}   # when the queue answers",
            [f"cancelled: {list_first(sorted(cancelled))}"] if cancelled else [],
        ) from None
    return Cancellation(
        cancelled=tuple(cancelled),
        left=tuple(run for run in chosen if run.run not in cancelled),
        ended=tuple(ended),
        going_on=tuple(sorted(job for job in freed & needed if job)),
    )


def _mark(sweep: Sweep, names: Sequence[str]) -> list[str]:
    """Marks runs as cancelled in their folders; returns those that are cancelled now."""
    for name in names:
        _mark_run(Run(sweep.folder / name))
    time.sleep(SETTLE_S if names else 0)
    return [name for name in names if _mark_run(Run(sweep.folder / name))]


def _mark_run(run: Run) -> bool:
    """Marks a run as cancelled, so that its process leaves it; returns False if it has ended."""
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
