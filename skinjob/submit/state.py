"""What became of a run: its own word first, then the queue's, then what SLURM has on record.

A state that is not known means waiting, never failed.
"""

from __future__ import annotations

import fcntl
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

from skinjob.runs import FINAL, SILENCE_S, Run, RunState, Sweep
from skinjob.submit.faults import ending, orphan_ending, why_never, why_pending, write_ending
from skinjob.submit.slurm import JobEnd, QueuedJob, job_ends, jobs_in_queue

NO_ANSWER = "SLURM does not answer: its own last word"


@dataclass(frozen=True)
class Standing:
    """How a run stands."""

    run: str
    state: str
    """queued, running, done, failed; never started, of a job that waits for ever; lost, of one that
    has ended while SLURM does not say how."""
    epoch: int
    """Epochs finished."""
    epochs: int
    job: str | None
    why: str = ""
    """In some words: what ended it, or why it waits."""
    fault: str | None = None
    """One of FAULTS, where one is known."""
    error: str | None = None
    """A sentence on what is wrong."""
    remedy: str | None = None


def standings(sweep: Sweep) -> list[Standing]:
    """Returns how every run of a sweep stands; writes what ended those whose job is no more.

    Raises: RunError when the folder is not a sweep's.
    """
    info = sweep.info()
    jobs: dict[str, str] = info["jobs"]
    # The queue is asked before the folders are read: a run that ends in between has the last word.
    if info["cluster"]["cluster"] == "local":
        is_at_work = is_working(sweep)
        return [_local(run, jobs.get(run.name), is_at_work) for run in sweep.runs()]
    is_over = all(run.state().state in FINAL for run in sweep.runs())
    queue = {} if is_over else jobs_in_queue()
    states = {run: run.state() for run in sweep.runs()}
    if queue is None:
        return [
            _standing(run, said, jobs.get(run.name), why="" if said.state in FINAL else NO_ANSWER)
            for run, said in states.items()
        ]
    ended = {
        run
        for run, said in states.items()
        if said.state not in FINAL and jobs.get(run.name) not in queue and not _is_recent(said)
    }
    ends = job_ends({jobs[run.name] for run in ended if run.name in jobs})
    return [
        _concluded(run, said, jobs.get(run.name), ends)
        if run in ended
        else _open(run, said, jobs.get(run.name), queue)
        for run, said in states.items()
    ]


def is_working(sweep: Sweep) -> bool:
    """Says whether the process of this machine's queue has the sweep in hand."""
    try:
        with queue_lock(sweep).open("r+b") as file:  # to be written: else NFS gives no lock
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (
        OSError
    ):  # no such file, another user's, or no locks there: the runs speak for themselves
        return False
    return False


def queue_lock(sweep: Sweep) -> Path:
    """Returns the file on which a queue's process holds a lock for as long as it is there."""
    return sweep.submission_folder / "queue.lock"


def _open(run: Run, said: RunState, job: str | None, queue: Mapping[str, QueuedJob]) -> Standing:
    """Returns how a run stands that is over by its own word, or may still come to be."""
    if said.state in FINAL:
        return _standing(run, said, job)
    queued = queue.get(job or "")
    if queued is None:
        return _standing(run, said, job, why="its job has left the queue: ask again in a minute")
    if queued.state == "RUNNING":
        return _standing(run, said, job, why="starting" if said.state == "queued" else "")
    if queued.state != "PENDING":
        return _standing(run, said, job, why=queued.state.lower())
    if job and (never := why_never(run, job, queued.reason)):
        why, remedy = never
        error = f"job {job} does not start by itself: {why}"
        found = _standing(run, said, job, why=why)
        return replace(
            found, state="never started", fault="never started", error=error, remedy=remedy
        )
    # By its own word a run that lost its node is running, until it is started again.
    return replace(_standing(run, said, job, why=why_pending(queued.reason)), state="queued")


def _concluded(
    run: Run, said: RunState, job: str | None, ends: Mapping[str, JobEnd | None]
) -> Standing:
    """Returns how a run stands whose job is no more, and writes it where SLURM says how."""
    if job is not None and job not in ends:
        return replace(
            _standing(run, said, job, why="its job has ended, and SLURM does not say how"),
            state="lost",
            error=f"job {job} has ended, and neither sacct nor scontrol says how",
            remedy=f"sacct -j {job}",
        )
    return _standing(run, write_ending(run, said, ending(run, said, job, ends.get(job or ""))), job)


def _local(run: Run, job: str | None, is_at_work: bool) -> Standing:
    """Returns how a run of this machine's own queue stands; writes it if that queue is no more."""
    said = run.state()
    if said.state in FINAL:
        return _standing(run, said, job)
    # Jobs live on when their queue's process is killed, and the run then speaks for itself.
    if is_at_work or _lives(said):
        return _standing(run, said, job, why="waits for its turn" if said.state == "queued" else "")
    return _standing(run, write_ending(run, said, orphan_ending(run, said)), job)


def _standing(run: Run, said: RunState, job: str | None, why: str = "") -> Standing:
    return Standing(
        run=run.name,
        state=said.state,
        epoch=said.epoch,
        epochs=run.config().epochs,
        job=job,
        why=why or said.fault or "",
        fault=said.fault,
        error=said.error,
        remedy=said.remedy,
    )


def _lives(said: RunState) -> bool:
    """Says whether the process that has a run in hand may still be there."""
    command = Path(f"/proc/{said.pid}/cmdline")
    if said.pid is None or said.host != socket.gethostname() or not Path("/proc/self").exists():
        return _is_recent(said)
    try:
        # Numbers of processes are used again, after a restart of the machine all of them.
        return any(word in command.read_bytes() for word in (b"submitit", b"skinjob"))
    except OSError:
        return False


def _is_recent(state: RunState) -> bool:
    said = state.heartbeat_utc or state.queued_utc
    if said is None:
        return False
    silence = datetime.now(timezone.utc) - datetime.fromisoformat(said.replace("Z", "+00:00"))
    return silence < timedelta(seconds=SILENCE_S)
