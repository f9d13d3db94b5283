"""Runs that are called off: first in their folders, then in the queue that has their jobs."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from skinjob.errors import ClusterError, RunError
from skinjob.files import absolute
from skinjob.queues.slurm.client import Answers, QueuedJob, cancel_jobs
from skinjob.status.status import Standing, is_ours, survey
from skinjob.submit.folders import submitting
from skinjob.sweeps.layout import Run, Sweep
from skinjob.sweeps.records import RunState, Status, utc_now, write_record
from skinjob.words import list_first

SETTLE_S = 0.5  # a job that is just writing a heartbeat writes over what it has not seen


@dataclass(frozen=True)
class Cancellation:
    """What was called off."""

    cancelled: tuple[str, ...]
    """The runs, by name."""
    left: tuple[Standing, ...]
    """How those stand that were over already."""
    ended: tuple[str, ...]
    """Jobs that were told to end, as none of their runs is left."""
    going_on: tuple[str, ...]
    """Jobs that let go of the runs and go on with others."""


def cancel(sweep: Sweep, names: Sequence[str]) -> Cancellation:
    """Calls off those of the runs *names* that wait or are at work; without names, of all.

    Their folders say so first: a job that finds it there lets go of the run, or does not begin on
    it, even if it cannot be ended now. A run can be taken up later where it was.

    Raises: ClusterError when SLURM does not answer, and RunError when a folder cannot be written or
    the sweep is another user's.
    """
    sweep.require_own("cancel", *names)
    with submitting(sweep.folder.parent):
        return _cancel(sweep, names)


def _cancel(sweep: Sweep, names: Sequence[str]) -> Cancellation:
    slurm = Answers()
    found = {one.run: one for one in survey(sweep, slurm, is_locked=True).runs}
    meant = [found[name] for name in names or found]
    todo = [one.run for one in meant if not one.status.is_final]
    states = {name: Run(sweep.folder / name).state() for name in todo}
    cancelled = _mark(sweep, todo)
    others = [one for one in found.values() if one.run not in cancelled]
    at_work = {one.job for one in others if not one.status.is_final}
    let_go = {found[name].job for name in cancelled}
    # Of an earlier time, when SLURM did not answer, jobs may be left to end.
    before = {one.job for one in meant if one.status == Status.CANCELLED}
    idle = sorted(job for job in (let_go | before) - at_work if job)
    if sweep.info().asked("cluster") == "local":
        ended = _end_processes({found[name].job: states[name] for name in cancelled}, idle)
    else:
        ended = _end_jobs(sweep, names, cancelled, idle, slurm)
    return Cancellation(
        cancelled=tuple(cancelled),
        left=tuple(one for one in meant if one.run not in cancelled),
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
        said = run.state()
        if said.status.is_final:
            return said.status == Status.CANCELLED
        told = replace(
            said,
            status=Status.CANCELLED,
            failure=None,
            reason=None,
            fix=run.sweep.retry_command(run.name),
            finished_utc=utc_now(),
            holder=None,
        )
        try:
            write_record(run.state_file, told)
        except OSError as error:
            raise RunError(
                f"{run.state_file}: {error.strerror}", f"ls -ld {shlex.quote(str(run.folder))}"
            ) from None
        return True


def _end_jobs(
    sweep: Sweep,
    names: Sequence[str],
    cancelled: Collection[str],
    jobs: Sequence[str],
    slurm: Answers,
) -> list[str]:
    """Ends SLURM's jobs, held and pending ones too; returns those that were in its queue.

    Raises: ClusterError when SLURM does not answer.
    """
    queue = slurm.queue(sweep.submission_folder) if jobs else {}
    there = [job for job in jobs if queue is None or _is_there(queue.get(job))]
    silent = f"it does not answer: {slurm.no_queue}".rstrip(": ")
    refusal = silent if queue is None else cancel_jobs(there) if there else ""
    if refusal:
        again = shlex.join(["skinjob", "cancel", str(absolute(sweep.folder)), *names])
        raise ClusterError(
            f"SLURM has not ended {_listed(there)} ({refusal}); the runs are cancelled, and "
            "their jobs let go of them",
            f"{again}   # once it answers",
            [f"cancelled: {_listed(sorted(cancelled), '')}"] if cancelled else [],
        )
    return there


def _is_there(job: QueuedJob | None) -> bool:
    return job is not None and job.state != "COMPLETING"


def _listed(words: Sequence[str], noun: str = "job ") -> str:
    """Returns some words, few enough to read.

    >>> _listed(["12_0", "12_1", "12_2", "12_3"])
    'job 12_0, 12_1, 12_2 and 1 more'
    """
    return noun + list_first(words)


def _end_processes(states: Mapping[str | None, RunState], jobs: Sequence[str]) -> list[str]:
    """Tells jobs of this machine to end that had a run in hand; returns those that were told.

    One that is only starting finds the folders as they are now, and leaves; so does one on another
    machine, after the epoch that it is at.
    """
    return [job for job in jobs if job in states and _end_process(states[job])]


def _end_process(said: RunState) -> bool:
    """Tells the process that has a run in hand to end, if it is there; returns whether it is."""
    if said.status != Status.RUNNING or not said.pid or said.host != socket.gethostname():
        return False
    with suppress(ProcessLookupError, PermissionError):
        if is_ours(said.pid):
            os.kill(said.pid, signal.SIGTERM)
            return True
    return False
