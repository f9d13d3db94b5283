"""A job: its runs, the command that starts it, and what it does at its time limit."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import socket
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import NoReturn

import submitit
from submitit.core.utils import DelayedSubmission, JobPaths

from skinjob.config import ClusterConfig
from skinjob.files import absolute, replacing
from skinjob.queues.base import open_queue
from skinjob.sweeps.layout import Run, Sweep
from skinjob.sweeps.lease import parse_utc
from skinjob.sweeps.records import Failure, Status, Stopped, utc_now

log = logging.getLogger("skinjob")

START = "skinjob.submit.start"
JOB_ENVIRONMENT = {"PYTHONSAFEPATH": "1", "PYTHONUTF8": "1"}
"""Variables of a job's Python.

A random.py in the folder of submit does not replace Python's own. Paths and logs are UTF-8 in every
locale.
"""
UNLIMITED_TIMEOUTS = 1000  # for submitit; `Task` counts them itself
WARNED_S = 180  # SLURM warns a job 90 to 150 s before the end


class Task:
    """The work of a job. Its pickle holds the paths of its runs' folders, and some settings.

    Queues may hold pickles of an earlier skinjob: a new attribute needs a default in the class.
    """

    queue = "slurm"

    def __init__(
        self, folders: Sequence[Path], *, queue: str = "slurm", requeue: bool = True, requeues: int
    ) -> None:
        """*queue* is the name of the job's queue.

        *requeue*: whether the job may start again at all. *requeues*: how often it may do so after
        its time limit.
        """
        self.folders = [absolute(folder) for folder in folders]
        self.queue = queue
        self.requeue = requeue
        self.requeues = requeues
        self.ended_by: Failure | None = None

    def __call__(self) -> None:
        queue = open_queue(self.queue)
        if queue.is_this_machine:
            # submitit ignores SIGTERM on a cluster: SLURM requeues a preempted job at the end of
            # its grace time, but not if the job leaves earlier.
            signal.signal(signal.SIGTERM, _leave)
        try:
            from skinjob.train.job import run_job  # the login node has no torch
        except Exception as error:  # a broken installation can raise anything
            for run in [run for run in map(Run, self.folders) if not run.state().status.is_final]:
                run.update_state(
                    status=Status.FAILED,
                    failure=Failure.EXCEPTION,
                    reason=f"{sys.executable} cannot load torch: {type(error).__name__}: {error}",
                    fix=run.sweep.retry_command("--python", "/path/to/venv/bin/python"),
                    finished_utc=utc_now(),
                )
            raise
        try:
            run_job(
                self.folders,
                submitit.JobEnvironment().job_id,
                lambda: self.ended_by,
                is_restart=queue.is_restart(),
                num_cpus=queue.num_cpus(),
            )
        except Stopped:  # the runs' states hold the reason
            raise SystemExit(1) from None

    def checkpoint(self) -> DelayedSubmission:
        """Returns a task that continues the runs from their folders.

        submitit calls this in a signal's handler, when the queue preempts the job or before its
        time limit, and queues the new task in place of the job.

        Raises: Stopped if the job must not start again.
        """
        runs = _own_runs([Run(folder) for folder in self.folders])
        is_time_limit = bool(runs) and self._seconds_left(runs[0]) < WARNED_S
        self.ended_by = Failure.TIME_LIMIT if is_time_limit else Failure.PREEMPTED
        if not self.requeue:
            raise _no_requeue(runs, self.ended_by)
        if is_time_limit:
            _require_another_start(runs, self.requeues)
        log.warning("%s: leaves, to be queued again", self.ended_by)
        return DelayedSubmission(
            Task(self.folders, queue=self.queue, requeues=self.requeues - is_time_limit)
        )

    def _seconds_left(self, run: Run) -> float:
        """Returns the seconds until the job's time limit, from its queue or else the sweep."""
        left_s = open_queue(self.queue).seconds_left()
        if left_s is not None:
            return left_s
        started_utc = run.state().started_utc
        if started_utc is None:
            return 0.0
        age_s = (datetime.now(timezone.utc) - parse_utc(started_utc)).total_seconds()
        return float(run.sweep.info().asked("time_min") * 60 - age_s)


def _leave(signum: int, frame: FrameType | None) -> NoReturn:
    """Ends the job. Its runs continue after their last epoch when they are queued again."""
    log.warning("%s: leaves", signal.Signals(signum).name)
    raise SystemExit(128 + signum)


def _own_runs(runs: Sequence[Run]) -> list[Run]:
    """Returns the runs that this process trains."""
    own = (Status.RUNNING, socket.gethostname(), os.getpid())
    states = {run: run.state() for run in runs}
    return [run for run, now in states.items() if (now.status, now.host, now.pid) == own]


def _no_requeue(runs: Sequence[Run], ended_by: Failure) -> Stopped:
    """Returns the error of a job that its site or its user forbids to start again."""
    words = {
        Failure.TIME_LIMIT: "reached its time limit",
        Failure.PREEMPTED: "had to make room for another job",
    }
    epoch = min((run.state().epoch for run in runs), default=0)
    after = f" after epoch {epoch} of {runs[0].config().epochs}" if runs else ""
    return Stopped(
        ended_by,
        f"the job {words[ended_by]}{after}, and may not start again (--no-requeue)",
        runs[0].sweep.retry_command() if runs else "skinjob submit",
    )


def _require_another_start(runs: Sequence[Run], requeues: int) -> None:
    """Checks that a job may start again after its time limit.

    Raises: Stopped if it has done so too often, or if no run has advanced since its last start: it
    would not advance next time, either.
    """
    sweep, states = runs[0].sweep, [run.state() for run in runs]
    time_min = sweep.info().asked("time_min")
    longer = sweep.retry_command(twice="time_min")
    if not any(state.epoch > state.resumed_epoch or state.views_computed for state in states):
        rate = next((state.images_per_s for state in states if state.images_per_s), None)
        words = ""
        if rate:
            num_images = sum(sweep.info().images.counts["train"].values())
            minutes = num_images / rate / 60
            words = (
                f": at {rate:g} images/s, an epoch of {num_images} images takes {minutes:.0f} min"
            )
        raise Stopped(
            Failure.TIME_LIMIT,
            f"the time limit of {time_min} min ended the job before it finished an epoch{words}",
            longer,
        )
    if requeues < 1:
        epoch = min(state.epoch for state in states)
        raise Stopped(
            Failure.TIME_LIMIT,
            f"the job reached its time limit of {time_min} min too often, after epoch {epoch} of "
            f"{runs[0].config().epochs}",
            f"{longer}   # continues after that epoch",
        )


def make_task(sweep: Sweep, names: Sequence[str], cluster: ClusterConfig) -> Task:
    """Returns the work of a job for these runs."""
    folders = [sweep.folder / name for name in names]
    return Task(folders, queue=cluster.cluster, requeue=cluster.requeue, requeues=cluster.requeues)


def write_task(sweep: Sweep, job: str, task: Task, cluster: ClusterConfig) -> None:
    """Writes the pickle that a job reads when it starts, unless it exists."""
    pickle = JobPaths(absolute(sweep.submission_folder), job_id=job).submitted_pickle
    if not pickle.exists():
        delayed = DelayedSubmission(task)
        delayed.set_timeout(cluster.time_min, UNLIMITED_TIMEOUTS)
        with replacing(pickle) as partial:
            delayed.dump(partial)


def start_command(sweep: Sweep, cluster: ClusterConfig) -> str:
    """Returns the shell command that starts a job: `skinjob.submit.start` in its Python."""
    trust = "".join(f"--trust {shlex.quote(name)} " for name in cluster.trust)
    folder = shlex.quote(str(absolute(sweep.submission_folder)))
    return f"{job_python(cluster)} -u -m {START} {trust}{folder}"


def job_python(cluster: ClusterConfig) -> str:
    """Returns the shell words that start a job's Python, with JOB_ENVIRONMENT."""
    environment = " ".join(f"{name}={value}" for name, value in JOB_ENVIRONMENT.items())
    return f"env {environment} {python_words(cluster)}"


def python_words(cluster: ClusterConfig) -> str:
    """Returns the shell words of --python, or else the path of this Python."""
    return cluster.python or shlex.quote(sys.executable)
