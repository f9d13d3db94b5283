"""The end of a job's time: whether it is near, and whether the job may start once more."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone

from skinjob.sweeps.layout import Run
from skinjob.sweeps.records import Failure, Status, Stopped

WARNED_S = 180  # SLURM gives its warning 90 s before the end, or up to a minute earlier


def own_runs(runs: Sequence[Run]) -> list[Run]:
    """Returns the runs that this process has in hand; of others their states say nothing of it."""
    mine = (Status.RUNNING, socket.gethostname(), os.getpid())
    states = {run: run.state() for run in runs}
    return [run for run, said in states.items() if (said.status, said.host, said.pid) == mine]


def seconds_left(run: Run) -> float:
    """Returns the seconds until the time limit of this job, by SLURM, else by the sweep."""
    said = _squeue_left()
    if said is not None:
        return said
    started = run.state().started_utc
    if started is None:
        return 0.0
    began = datetime.fromisoformat(started.replace("Z", "+00:00"))
    passed_s = (datetime.now(timezone.utc) - began).total_seconds()
    return float(run.sweep.info().asked("time_min") * 60 - passed_s)


def no_requeue(runs: Sequence[Run], ended_by: Failure) -> Stopped:
    """Returns the end of a job that its site, or its user, does not let start again."""
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


def require_another_start(runs: Sequence[Run], requeues: int) -> None:
    """Returns when a job at its time limit may be queued again.

    Raises: Stopped when it was so too often, or when this time has brought no run any further:
    the next would not either.
    """
    time_min = runs[0].sweep.info().asked("time_min")
    states = [run.state() for run in runs]
    longer = runs[0].sweep.retry_command(twice="time_min")
    if not any(state.epoch > state.resumed_epoch or state.views_computed for state in states):
        rate = next((state.images_per_s for state in states if state.images_per_s), None)
        raise Stopped(
            Failure.TIME_LIMIT,
            f"the time limit of {time_min} min ended the job before one epoch was finished"
            f"{_epoch_words(runs[0], rate)}",
            longer,
        )
    if requeues < 1:
        epoch = min(state.epoch for state in states)
        epochs = runs[0].config().epochs
        raise Stopped(
            Failure.TIME_LIMIT,
            f"the time limit of {time_min} min was reached once too often, after epoch {epoch} of "
            f"{epochs}",
            f"{longer}   # goes on after that epoch",
        )


def _epoch_words(run: Run, images_per_s: float | None) -> str:
    if not images_per_s:
        return ""
    num_images = sum(run.sweep.info().images.counts["train"].values())
    minutes = num_images / images_per_s / 60
    return f": at {images_per_s:g} images/s one of {num_images} takes {minutes:.0f} min"


def _squeue_left() -> float | None:
    """Returns the seconds that SLURM leaves this job; None when it is no job, or nobody answers."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return None
    # One task of an array has the array's own number, by which squeue would list them all.
    array, task = (os.environ.get(f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK"))
    job = f"{array}_{task}" if array and task else job
    try:
        answer = subprocess.run(
            ["squeue", "--noheader", "--jobs", job, "--format=%L"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_time(answer.stdout.strip())


def parse_time(text: str) -> float | None:
    """Returns SLURM's [days-][[hours:]minutes:]seconds in seconds; None for anything else.

    >>> parse_time("1-02:03:04"), parse_time("4:59"), parse_time("UNLIMITED")
    (93784.0, 299.0, inf)
    """
    if text == "UNLIMITED":
        return float("inf")
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(?:(\d+):)?(\d+)", text)
    if match is None:
        return None
    days, first, second, last = (int(group or 0) for group in match.groups())
    hours, minutes = (first, second) if match[3] else (0, first)
    return float(((days * 24 + hours) * 60 + minutes) * 60 + last)
