"""The status of each run: from its folder, then from the queue, then from the queue's records.

A run that nobody knows about is waiting, never failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from skinjob import locks
from skinjob.errors import RunError
from skinjob.queues.base import JobEnd, Queue, QueuedJob, SilentError, open_queue
from skinjob.status.failures import ending, write_ending
from skinjob.sweeps.layout import Run, Sweep, submit_lock
from skinjob.sweeps.lease import is_recent, parse_utc
from skinjob.sweeps.records import Failure, RunState, Status, SweepInfo

ANSWERS, NO_ANSWER, REFUSES = "answers", "does not answer", "refuses the question"
NOT_ASKED = "not asked"


@dataclass(frozen=True)
class RunStatus:
    """The status of a run."""

    run: str
    status: Status
    """waiting: also if the job never starts by itself, which *reason* then explains."""
    epoch: int
    """Epochs finished."""
    epochs: int
    """Epochs of a complete run; 0 if that is in a config.json which cannot be read."""
    job: str | None
    updates: int = 0
    """Updates in the finished epochs."""
    all_updates: int | None = None
    """Updates of a complete run, with `updates`."""
    note: str = ""
    """A few words for a table: what ended it, or why it waits."""
    failure: Failure | None = None
    """What ended the run or its last job, if it is known."""
    reason: str | None = None
    """A sentence: what is wrong."""
    fix: str | None = None
    node: str | None = None
    accuracy: float | None = None
    """On the test images after the last epoch, a fraction."""
    images_per_s: float | None = None
    left_s: float | None = None
    """Seconds to its last epoch, at its present speed."""
    requeues: int = 0
    """How often a job has started it again."""
    may_be_known_soon: bool = False
    """Whether the run is lost only until the queue knows what ended its job."""

    @property
    def progress(self) -> str:
        """Finished epochs of all epochs; of a run with `updates`, finished updates of all."""
        if self.all_updates:
            return f"{self.updates}/{self.all_updates}"
        return f"{self.epoch}/{self.epochs}"

    @property
    def progress_words(self) -> str:
        return f"{'update' if self.all_updates else 'epoch'} {self.progress}"


@dataclass(frozen=True)
class SweepStatus:
    """The statuses of a sweep's runs."""

    sweep: Sweep
    answer: str
    """Whether the queue was asked and answered: ANSWERS, NO_ANSWER, REFUSES or NOT_ASKED."""
    runs: list[RunStatus]
    queue: str = ""
    """The queue's name in sentences."""
    words: str = ""
    """The queue's own error, if it did not answer or refused the question."""


@dataclass(frozen=True)
class _Folder:
    """What a run's folder and sweep.json record."""

    run: Run
    state: RunState
    job: str | None
    epochs: int
    all_updates: int | None
    owner: str | None
    is_submitted: bool = False
    """Whether its submit has ended: a run without a job will not get one."""

    def again(self) -> _Folder:
        """Returns it with the newest state of the folder."""
        return self if self.state.status.is_final else replace(self, state=self.run.state())


def run_statuses(sweep: Sweep, *, is_locked: bool = False) -> list[RunStatus]:
    """Returns the status of every run; writes to the folder what ended a run whose job has gone.

    Raises: RunError if the folder is not a sweep.
    """
    return sweep_status(sweep, is_locked=is_locked).runs


def sweep_status(
    sweep: Sweep,
    queue: Queue | None = None,
    runs: Sequence[Run] | None = None,
    *,
    is_locked: bool = False,
) -> SweepStatus:
    """Returns the status of a sweep's runs, or of *runs*; writes what ended them, as above.

    *queue* may remember answers; it is asked only about runs that have not ended. *is_locked*: the
    caller holds the lock of submit, so no other command queues runs.

    Raises: RunError if the folder is not a sweep.
    """
    info, owner = sweep.info(), sweep.owner
    runs = sweep.runs() if runs is None else runs
    queue = queue or open_queue(info.asked("cluster"))
    unread: dict[Run, RunStatus] = {}
    folders: list[_Folder] = []
    for run in runs:
        try:
            folders.append(
                _Folder(
                    run=run,
                    state=run.state(),
                    job=info.jobs.get(run.name),
                    epochs=_epochs(run, info),
                    all_updates=info.updates,
                    owner=owner,
                )
            )
        except RunError as error:
            unread[run] = _unread(run, info, error)
    # Before the queue is asked: a submit that has ended has its jobs in the queue.
    if is_locked or _nobody_submits(sweep):
        jobs = sweep.info().jobs  # a submit may have recorded jobs meanwhile
        folders = [replace(f, job=jobs.get(f.run.name), is_submitted=True) for f in folders]
    answer, words = NOT_ASKED, ""
    if all(folder.state.status.is_final for folder in folders):
        statuses = [_by_folder(folder) for folder in folders]
    else:
        try:
            queued = queue.jobs(sweep)
            answer = NOT_ASKED if queue.is_this_machine else ANSWERS
            statuses = _by_queue(queue, sweep, [folder.again() for folder in folders], queued)
        except SilentError as error:
            answer, words = REFUSES if error.is_refusal else NO_ANSWER, error.message
            statuses = [_by_folder(folder.again()) for folder in folders]
    by_run = unread | {f.run: status for f, status in zip(folders, statuses, strict=True)}
    return SweepStatus(sweep, answer, [by_run[run] for run in runs], queue.title, words)


def _epochs(run: Run, info: SweepInfo) -> int:
    """Returns the epochs of a complete run; 0 if they are unknown."""
    if info.epochs is None:
        with suppress(RunError):
            return run.config().epochs
    return info.epochs or 0


def _unread(run: Run, info: SweepInfo, error: RunError) -> RunStatus:
    return RunStatus(
        run=run.name,
        status=Status.LOST,
        epoch=0,
        epochs=_epochs(run, info),
        job=info.jobs.get(run.name),
        all_updates=info.updates,
        note="its state cannot be read",
        reason=error.message,
        fix=error.fix,
    )


def _nobody_submits(sweep: Sweep) -> bool:
    """Returns True if the user's submits have surely ended.

    A submit that was killed may have left a queue's command that still runs.
    """
    if sweep.owner or sweep.pending_file.exists():
        return False
    return locks.is_locked(submit_lock(sweep.folder.parent)) is False


def _by_queue(
    queue: Queue, sweep: Sweep, folders: Sequence[_Folder], queued: Mapping[str, QueuedJob]
) -> list[RunStatus]:
    """Returns the statuses of runs; the queue decides about runs that have not ended."""
    gone = {
        folder.job
        for folder in folders
        if not folder.state.status.is_final and folder.run.name not in queued and folder.job
    }
    ends = queue.job_ends(sweep, gone) if gone else {}
    statuses = []
    for folder in folders:
        if folder.state.status.is_final:
            statuses.append(_by_folder(folder))
        elif folder.run.name in queued:
            statuses.append(_of_queued(folder, queued[folder.run.name]))
        elif _is_over(folder, ends.get(folder.job or "")):
            statuses.append(_concluded(queue, folder, ends))
        else:
            what = "its job has left the queue" if folder.job else "it is being submitted"
            note = "" if folder.owner else f"{what}: ask again in a minute"
            statuses.append(replace(_by_folder(folder), note=note))
    return statuses


def _is_over(folder: _Folder, end: JobEnd | None) -> bool:
    """Says whether a run without a queued job will write nothing more to its folder.

    A run that is done writes so, but some file systems show it up to a minute late.
    """
    is_waiting = folder.state.status == Status.WAITING
    has_no_job = is_waiting and folder.job is None and folder.is_submitted
    has_failed = end is not None and not end.is_clean
    return has_no_job or has_failed or not is_recent(folder.run, folder.state)


def _of_queued(folder: _Folder, job: QueuedJob) -> RunStatus:
    """Returns the status of a run with a waiting or running job."""
    status = replace(_by_folder(folder), job=job.id or folder.job)
    if job.is_waiting:
        # The state of a run that lost its node says running until the job starts again.
        status = replace(status, status=Status.WAITING, note=job.note, node=None, left_s=None)
        if not job.fix:
            return status
        reason = f"job {job.id} does not start by itself: {job.note}"
        return replace(status, reason=reason, fix=job.fix)
    if job.note:
        return replace(status, note=job.note, left_s=None)
    note = "its job is starting" if status.status == Status.WAITING else ""
    return replace(status, note=note, node=job.node or status.node)


def _concluded(queue: Queue, folder: _Folder, ends: Mapping[str, JobEnd | None]) -> RunStatus:
    """Returns the status of a run whose job has gone; writes it if the queue knows what ended it.

    A queue may hide the jobs of other users, so a missing job of another user proves nothing.
    """
    job, status = folder.job, _by_folder(folder)
    end = ends.get(job or "")
    if folder.owner and not end:
        who = f"only {folder.owner} can see whether it still runs"
        hidden = f"{queue.title} shows you no job of it: {who}"
        return replace(status, note=hidden, left_s=None)
    if job is not None and job not in ends:
        return replace(
            status,
            status=Status.LOST,
            may_be_known_soon=True,
            note=f"its job has ended, and {queue.title} does not say how",
            reason=f"job {job} has ended, and {queue.title} does not say how",
            fix=queue.ask_about(job),
            left_s=None,
        )
    what = ending(folder.run, folder.state, job, end, queue)
    if end and end.node and end.kind != Status.CANCELLED and is_recent(folder.run, folder.state):
        # The job may still write a better reason, which must not be replaced.
        return _by_folder(replace(folder, state=replace(folder.state, **vars(what))))
    return _by_folder(replace(folder, state=write_ending(folder.run, folder.state, what)))


def _by_folder(folder: _Folder) -> RunStatus:
    """Returns the status of a run from its folder."""
    state = folder.state
    return RunStatus(
        run=folder.run.name,
        status=state.status,
        epoch=state.epoch,
        epochs=folder.epochs,
        job=folder.job,
        updates=state.updates,
        all_updates=folder.all_updates,
        note=state.failure or "",
        failure=state.failure,
        reason=state.reason,
        # Users paste a fix into a shell, so no other user's fix is shown.
        fix=None if folder.owner else state.fix,
        node=None if state.status == Status.WAITING else state.host,
        accuracy=state.test_accuracy,
        images_per_s=state.images_per_s,
        left_s=_left_s(state, folder.epochs),
        requeues=max(0, state.attempts - 1),
    )


def _left_s(state: RunState, epochs: int) -> float | None:
    """Returns the seconds to the last epoch at the job's mean speed; None if unknown.

    All times are from the node's clock, which may differ from this machine's.
    """
    num_done = state.epoch - state.resumed_epoch
    if state.status != Status.RUNNING or num_done < 1 or not epochs:
        return None
    if not (state.started_utc and state.epoch_utc and state.heartbeat_utc):
        return None
    started, last, heard = map(parse_utc, (state.started_utc, state.epoch_utc, state.heartbeat_utc))
    left = (last - started) / num_done * (epochs - state.epoch) - (heard - last)
    return max(0.0, left.total_seconds())
