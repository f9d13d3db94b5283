"""What became of a run: its own word first, then the queue's, then what SLURM has on record.

A state that is not known means waiting, never failed.
"""

from __future__ import annotations

import fcntl
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from skinjob.errors import RunError
from skinjob.queues.slurm.client import Answers, JobEnd, QueuedJob
from skinjob.queues.slurm.reasons import HELD, what_begun, why_pending
from skinjob.queues.slurm.unrecorded import unrecorded_jobs
from skinjob.status.failures import (
    ending,
    job_output,
    orphan_ending,
    why_never,
    write_ending,
)
from skinjob.sweeps.layout import Run, Sweep, submit_lock
from skinjob.sweeps.lease import SILENCE_S
from skinjob.sweeps.records import Failure, RunState, Status

ANSWERS, NO_ANSWER, REFUSES = "answers", "does not answer", "refuses the question"
NOT_ASKED = "not asked"
SILENCE = r"[Cc]ontact|[Cc]onnect|[Cc]ommunicat|timed out|Zero Bytes|no answer in|no squeue|^$"
"""Words of SLURM's commands where its controller has not heard the question."""


@dataclass(frozen=True)
class Standing:
    """How a run stands."""

    run: str
    status: Status
    """waiting, of a job that waits for ever too, which then has a reason; lost, of a run whose job
    is no more while nobody says what ended it."""
    epoch: int
    """Epochs finished."""
    epochs: int
    job: str | None
    note: str = ""
    """In some words, for a table: what ended it, or why it waits."""
    failure: Failure | None = None
    """What ended it, or its last job, where it is known."""
    reason: str | None = None
    """A sentence on what is wrong."""
    fix: str | None = None
    node: str | None = None
    accuracy: float | None = None
    """Of the last epoch, on the test images: a fraction."""
    images_per_s: float | None = None
    left_s: float | None = None
    """Seconds to its last epoch, at the pace of those behind it."""
    requeues: int = 0
    """How often a job has begun on it again."""
    may_be_known_soon: bool = False
    """Whether it is lost because SLURM does not say yet what ended its job."""


@dataclass(frozen=True)
class Survey:
    """How the runs of a sweep stand."""

    sweep: Sweep
    slurm: str
    """Whether it was asked and answered: ANSWERS, NO_ANSWER, REFUSES or NOT_ASKED."""
    runs: list[Standing]
    words: str = ""
    """SLURM's own on why it does not answer, or refuses the question."""


@dataclass(frozen=True)
class Case:
    """A run as its folder has it."""

    run: Run
    said: RunState
    job: str | None
    epochs: int
    is_submitted: bool = False
    """Whether it is known that no submit is at it any more: what has no job by now gets none."""

    @property
    def is_over(self) -> bool:
        return self.said.status.is_final

    def again(self) -> Case:
        """Returns the run as its folder has it now."""
        return self if self.is_over else replace(self, said=self.run.state())


def standings(sweep: Sweep, *, is_locked: bool = False) -> list[Standing]:
    """Returns how every run of a sweep stands; writes what ended those whose job is no more.

    Raises: RunError when the folder is not a sweep's.
    """
    return survey(sweep, is_locked=is_locked).runs


def survey(
    sweep: Sweep,
    slurm: Answers | None = None,
    runs: Sequence[Run] | None = None,
    *,
    is_locked: bool = False,
) -> Survey:
    """Returns how the runs of a sweep, or some of them, stand; writes what ended some.

    *slurm* may know some answers already; else SLURM is asked, where the folders leave it open.
    *is_locked* says that the caller holds the lock of submit, so that nobody else queues runs.

    Raises: RunError when the folder is not a sweep's.
    """
    info = sweep.info()
    told = [_case(run, info.jobs.get(run.name), info.epochs) for run in runs or sweep.runs()]
    cases = [one for one in told if isinstance(one, Case)]
    # Before the queue is looked at: what was submitted until now has its queue by then.
    if is_locked or _nobody_submits(sweep):
        jobs = sweep.info().jobs  # a submit may have ended since they were read
        cases = [replace(one, job=jobs.get(one.run.name), is_submitted=True) for one in cases]
    if info.asked("cluster") == "local":
        is_at_work = is_working(sweep)
        word, found = NOT_ASKED, [_local(one.again(), is_at_work) for one in cases]
    elif all(one.is_over for one in cases):
        word, found = NOT_ASKED, [_standing(one) for one in cases]
    else:
        slurm = slurm or Answers()
        word, found = _asked(sweep, cases, slurm)
    words = slurm.no_queue if slurm and word in (NO_ANSWER, REFUSES) else ""
    rest = iter(found)
    runs_found = [one if isinstance(one, Standing) else next(rest) for one in told]
    return Survey(sweep, word, runs_found, words)


def _case(run: Run, job: str | None, epochs: int) -> Case | Standing:
    """Returns a run as its folder has it, or how it stands where that does not read."""
    try:
        return Case(run, run.state(), job, epochs)
    except RunError as error:
        return Standing(
            run=run.name,
            status=Status.LOST,
            epoch=0,
            epochs=epochs,
            job=job,
            note="its state does not read",
            reason=error.message,
            fix=error.fix,
        )


def _asked(sweep: Sweep, cases: Sequence[Case], slurm: Answers) -> tuple[str, list[Standing]]:
    """Returns whether SLURM answers, and how runs stand of which their folders leave it open."""
    queue = slurm.queue(sweep.submission_folder, sweep.owner)
    # A run that ended while the queue was asked has the last word.
    cases = [one.again() for one in cases]
    if queue is None:
        word = NO_ANSWER if re.search(SILENCE, slurm.no_queue) else REFUSES
        return word, [_standing(one) for one in cases]
    unrecorded = unrecorded_jobs(sweep, queue)
    cases = [replace(one, job=unrecorded.get(one.run.name, one.job)) for one in cases]
    gone = [one for one in cases if not one.is_over and one.job not in queue]
    ends = dict(slurm.ends({one.job for one in gone if one.job}))
    for one in gone:
        if one.job and not ends.get(one.job) and not _has_begun(one) and slurm.is_dropped(one.job):
            ends[one.job] = JobEnd("CANCELLED")
    known = {
        one.run
        for one in gone
        if (one.job is None and one.is_submitted)
        or not _is_recent(one)
        or _is_told(ends.get(one.job or ""))
    }
    found = [_concluded(one, ends) if one.run in known else _open(one, queue) for one in cases]
    return ANSWERS, found


def _has_begun(one: Case) -> bool:
    """Says whether a run's job may have been at work."""
    output = job_output(one.run.sweep, one.job or "")
    return one.said.started_utc is not None or output.exists()


def _is_told(end: JobEnd | None) -> bool:
    """Says whether SLURM's word on a job is enough, while its run's last may be still to come.

    A run that came to its end says so itself, if up to a minute late on some file systems.
    """
    return end is not None and end.state != "COMPLETED"


def is_working(sweep: Sweep) -> bool:
    """Says whether the process of this machine's queue has the sweep in hand.

    Of another user's sweep this cannot be seen: it is taken to be so.
    """
    if sweep.owner:
        return True
    try:
        with queue_lock(sweep).open("r+b") as file:  # to be written: else NFS gives no lock
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or no locks there: the runs speak for themselves
        return False
    return False


def _nobody_submits(sweep: Sweep) -> bool:
    """Returns True if certainly no submit of the user is at work on the sweep.

    One that was killed may have left an sbatch that goes on.
    """
    if sweep.owner or sweep.pending_file.exists():
        return False
    try:
        with submit_lock(sweep.folder.parent).open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # a submit is at work, or there are no locks here
        return False
    return True


def queue_lock(sweep: Sweep) -> Path:
    """Returns the file on which a queue's process holds a lock for as long as it is there."""
    return sweep.submission_folder / "queue.lock"


def _open(one: Case, queue: Mapping[str, QueuedJob]) -> Standing:
    """Returns how a run stands that is over by its own word, or may still come to be."""
    found, queued = _standing(one), queue.get(one.job or "")
    if one.is_over:
        return found
    if queued is None:
        what = "its job has left the queue" if one.job else "it is being submitted"
        return replace(found, note=f"{what}: ask again in a minute")
    if queued.state == "RUNNING":
        note = "its job is starting" if found.status == Status.WAITING else ""
        return replace(found, note=note, node=queued.node or found.node)
    if queued.state not in ("PENDING", *HELD):
        return replace(found, note=what_begun(queued.state), left_s=None)
    why = queued.state if queued.state in HELD else queued.reason
    # By its own word a run that lost its node is running, until it is started again.
    found = replace(found, status=Status.WAITING, node=None, left_s=None)
    if one.job and (never := why_never(one.run, one.job, why)):
        note, fix = never
        reason = f"job {one.job} does not start by itself: {note}"
        return replace(found, note=note, reason=reason, fix=fix)
    return replace(found, note=why_pending(why))


def _concluded(one: Case, ends: Mapping[str, JobEnd | None]) -> Standing:
    """Returns how a run stands whose job is no more, and writes it where SLURM says how.

    SLURM need not show the jobs of another user: of those nothing is concluded from silence.
    """
    owner = one.run.sweep.owner
    if owner and not ends.get(one.job or ""):
        hidden = f"SLURM shows you no such job of {owner}"
        return replace(_standing(one), note=hidden, left_s=None)
    if one.job is not None and one.job not in ends:
        return replace(
            _standing(one),
            status=Status.LOST,
            may_be_known_soon=True,
            note="its job has ended, and SLURM does not say how",
            reason=f"job {one.job} has ended, and neither sacct nor scontrol says how",
            fix=f"sacct -j {one.job}",
            left_s=None,
        )
    end = ends.get(one.job or "")
    found = ending(one.run, one.said, one.job, end)
    if _is_recent(one) and end and end.node and end.state != "CANCELLED":
        # It was at work: what it may have said itself is better, and must not be written over.
        return _standing(replace(one, said=replace(one.said, **vars(found))))
    return _standing(replace(one, said=write_ending(one.run, one.said, found)))


def _local(one: Case, is_at_work: bool) -> Standing:
    """Returns how a run of this machine's own queue stands; writes it if that queue is no more."""
    found, owner = _standing(one), one.run.sweep.owner
    if owner and not one.is_over and not lives(one):
        return replace(
            found,
            note=f"no news from it; only {owner} can see whether it still runs",
            left_s=None,
        )
    # Jobs live on when their queue's process is killed, and the run then speaks for itself.
    if one.is_over or is_at_work or lives(one):
        return (
            replace(found, note="waits for its turn") if found.status == Status.WAITING else found
        )
    said = write_ending(one.run, one.said, orphan_ending(one.run, one.said))
    return _standing(replace(one, said=said))


def _standing(one: Case) -> Standing:
    """Returns how a run stands by its own word."""
    said = one.said
    return Standing(
        run=one.run.name,
        status=said.status,
        epoch=said.epoch,
        epochs=one.epochs,
        job=one.job,
        note=said.failure or "",
        failure=said.failure,
        reason=said.reason,
        # A fix is pasted into a shell: another user's is not shown.
        fix=None if one.run.sweep.owner else said.fix,
        node=None if said.status == Status.WAITING else said.host,
        accuracy=said.test_accuracy,
        images_per_s=said.images_per_s,
        left_s=_left_s(said, one.epochs),
        requeues=max(0, said.attempts - 1),
    )


def _left_s(said: RunState, epochs: int) -> float | None:
    """Returns the seconds to the last epoch, at the pace since the job began; None if unknown.

    All times are of the node's clock, which need not be ours.
    """
    done = said.epoch - said.resumed_epoch
    if said.status != Status.RUNNING or done < 1:
        return None
    if not (said.started_utc and said.epoch_utc and said.heartbeat_utc):
        return None
    began, last, heard = map(_time, (said.started_utc, said.epoch_utc, said.heartbeat_utc))
    left = (last - began) / done * (epochs - said.epoch) - (heard - last)
    return max(0.0, left.total_seconds())


def _time(utc: str) -> datetime:
    return datetime.fromisoformat(utc.replace("Z", "+00:00"))


def lives(one: Case) -> bool:
    """Says whether the process that has a run in hand may still be there."""
    if one.said.status == Status.WAITING:
        is_starting = one.job is not None and one.job.isdigit() and is_ours(int(one.job))
        return is_starting or (not one.is_submitted and _is_recent(one))
    pid = one.said.pid
    if pid is None or one.said.host != socket.gethostname() or not Path("/proc/self").exists():
        return _is_recent(one)
    return is_ours(pid)


def is_ours(pid: int) -> bool:
    """Says whether a process of this machine is one of skinjob.

    Numbers of processes are used again, after a restart of the machine all of them.
    """
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"skinjob" in command or b"submitit" in command


def _is_recent(one: Case) -> bool:
    """Says whether a run has spoken within the last minute or so.

    Both clocks have to say so: the node's, which may be ahead, and the one that stamps the file.
    """
    spoken = one.said.heartbeat_utc or one.said.queued_utc
    if spoken is None:
        return False
    now = datetime.now(timezone.utc)
    try:
        written = one.run.state_file.stat().st_mtime
    except OSError:
        return False
    silence_s = (now - _time(spoken)).total_seconds(), now.timestamp() - written
    return max(silence_s) < SILENCE_S and silence_s[1] > -SILENCE_S
