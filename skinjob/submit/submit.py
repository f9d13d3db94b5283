"""From a plan to jobs in a queue, and the wait for them."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

from skinjob.config import ClusterConfig
from skinjob.console import own_command
from skinjob.errors import ClusterError, SkinjobError
from skinjob.queues import local
from skinjob.queues.slurm.client import Answers
from skinjob.queues.slurm.executor import adopt, queue
from skinjob.queues.slurm.fewer import WAIT, fewer, number_words
from skinjob.queues.slurm.joblimits import job_limits
from skinjob.queues.slurm.refusals import NoAnswerError, RefusedError, TooManyJobsError
from skinjob.queues.slurm.unrecorded import sbatch_may_be_at_work, unrecorded_jobs, write_pending
from skinjob.status.status import Standing, standings
from skinjob.submit.folders import (
    discard,
    record_jobs,
    recorded_cluster,
    submitting,
    write_plan,
)
from skinjob.submit.plan import Plan, jobs_of, placed
from skinjob.sweeps.layout import Run, Sweep
from skinjob.sweeps.records import RunState, Status, write_record

REPEATED = (Status.FAILED, Status.CANCELLED, Status.LOST)
LATE_S = (1, 2, 4)  # pauses in which a busy SLURM may come to show a job
REFUSED = {"local": SkinjobError, "slurm": RefusedError}
"""The errors after which there are no jobs."""
WAIT_S = {"local": 0.5, "slurm": 15}  # squeue answers for a whole site: it is asked seldom


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What a submit did: the runs it queued, and how the others stand."""

    sweep: Sweep
    queued: tuple[str, ...]
    jobs: dict[str, str]
    """Job ids by run name; of a local queue there are none yet."""
    before: dict[str, Standing]
    """How the runs stood that were there already, by name, those that were queued again too."""


def submit(plan: Plan) -> Submission:
    """Queues the plan's runs, but for those that are done, running or queued already.

    Of two submits at the same time the second waits, and finds what the first has queued.

    Raises: ClusterError when SLURM refuses; then nothing is left of a new sweep. NoAnswerError when
    SLURM does not say whether it took the jobs; then the sweep stays, for the next submit to see.
    """
    with submitting(plan.runs):
        return _submit(placed(plan))


def _submit(plan: Plan) -> Submission:
    sweep, is_new = plan.sweep, plan.is_new
    if not is_new:
        settle(sweep)
    found = [] if is_new else standings(sweep, is_locked=True)
    stands = {one.run: one for one in found if one.run in plan.configs}
    todo = tuple(
        name for name in plan.configs if name not in stands or stands[name].status in REPEATED
    )
    if not todo:
        return Submission(sweep=sweep, queued=(), jobs={}, before=stands)
    if plan.cluster.cluster == "local" and not is_new:
        local.require_free(sweep)
    before = {name: Run(sweep.folder / name).state() for name in todo}
    jobs_before = {} if is_new else sweep.info().jobs
    undo = partial(discard, plan) if is_new else partial(_restore, sweep, before, jobs_before)
    with _undoing(undo, BaseException):  # Ctrl-C too
        write_plan(plan, queued=todo)
    # After any other error there may be jobs: the next submit finds out.
    with _undoing(undo, REFUSED[plan.cluster.cluster]):
        jobs = _queue(plan, todo, is_new=is_new)
    return Submission(sweep=sweep, queued=todo, jobs=jobs, before=stands)


@contextmanager
def _undoing(undo: Callable[[], None], errors: type[BaseException]) -> Iterator[None]:
    """Calls *undo* when the block raises one of these errors."""
    try:
        yield
    except errors:
        undo()
        raise


def settle(sweep: Sweep) -> None:
    """Records the jobs of a submit that was broken off between sbatch and their recording.

    Raises: NoAnswerError when it cannot be known yet whether SLURM has taken them.
    """
    if not sweep.pending_file.exists():
        return
    again = "squeue --user=$USER; skinjob submit   # the same again, once it answers"
    if Answers().queue(sweep.submission_folder) is None:
        raise NoAnswerError(
            f"SLURM does not say whether it has the jobs of {sweep.folder} already", again
        )
    jobs = _queued_after_all(sweep, recorded_cluster(sweep), LATE_S)
    if not jobs and sbatch_may_be_at_work(sweep):
        raise NoAnswerError(f"an earlier sbatch for {sweep.folder} has not ended yet", again)
    for run in (Run(sweep.folder / name) for name in jobs):
        if run.state().status == Status.LOST:  # somebody looked while nobody knew of its job
            run.update_state(status=Status.WAITING, reason=None, fix=None)
    _record(sweep, jobs)


def _record(sweep: Sweep, jobs: Mapping[str, str]) -> None:
    """Writes down which jobs SLURM took of those that it was asked to take."""
    record_jobs(sweep, jobs)
    sweep.pending_file.unlink()


def wait(sweep: Sweep, names: tuple[str, ...], tell: Callable[[Standing], None]) -> bool:
    """Waits until these runs have ended, tells each as it does; returns whether all are done.

    One that never starts by itself is told too, once, and waited for: it may be released.
    """
    open_runs, never = set(names), set[str]()
    pause_s = WAIT_S[sweep.info().asked("cluster")]
    is_done = True
    while open_runs:
        for one in [one for one in standings(sweep) if one.run in open_runs]:
            if one.status.is_final:
                tell(one)
                open_runs.remove(one.run)
                is_done = is_done and one.status == Status.DONE
            elif one.status == Status.WAITING and one.reason and one.run not in never:
                tell(one)
                never.add(one.run)
        time.sleep(pause_s if open_runs else 0)
    return is_done


def _queue(plan: Plan, names: tuple[str, ...], *, is_new: bool) -> dict[str, str]:
    with _deaf_to_ctrl_c():
        if plan.cluster.cluster == "local":
            local.start_queue(plan.sweep, names, plan.cluster.trust)
            return {}
        groups = jobs_of({name: plan.configs[name] for name in names})
        write_pending(plan.sweep, groups)
        try:
            jobs = queue(plan.sweep, groups, plan.cluster)
        except ClusterError as error:
            pauses_s = LATE_S if isinstance(error, NoAnswerError) else ()
            jobs = _queued_after_all(plan.sweep, plan.cluster, pauses_s)
            if not jobs and isinstance(error, TooManyJobsError):
                raise _too_many(plan, names, error, is_new=is_new) from None
            if not jobs:
                raise
        _record(plan.sweep, jobs)
    return jobs


def _too_many(
    plan: Plan, names: tuple[str, ...], fault: TooManyJobsError, *, is_new: bool
) -> RefusedError:
    """Returns the error of jobs that SLURM refused for their number."""
    configs = {name: plan.configs[name] for name in names}
    words, most = number_words(configs, job_limits(plan.cluster))
    if not most:
        fix = WAIT
    elif is_new:
        fix = fewer(configs, most, own_command(), plan.sweep.name)
    else:
        first = [name for job in jobs_of(configs)[:most] for name in job]
        fix = f"{plan.sweep.retry_command(*first)}   # then the others"
    return RefusedError(f"{words}: sbatch says {fault.message}", fix, fault.details)


def _queued_after_all(
    sweep: Sweep, cluster: ClusterConfig, pauses_s: Sequence[float]
) -> dict[str, str]:
    """Returns the jobs that SLURM took although it did not say so, and gives them their work.

    SLURM is asked once, and again after each of the pauses.
    """
    for pause_s in (0, *pauses_s):
        time.sleep(pause_s)
        found = Answers().queue(sweep.submission_folder)
        if found and (jobs := unrecorded_jobs(sweep, found)):
            adopt(sweep, jobs, cluster)
            return jobs
    return {}


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Ignores Ctrl-C, in sbatch too, which gives up by itself when SLURM does not answer."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _restore(sweep: Sweep, states: Mapping[str, RunState], jobs: Mapping[str, str]) -> None:
    """Lets runs stand as they stood before they were to be queued again."""
    with suppress(OSError):  # the disk may be full: then they stand as queued, and are lost
        for name, state in states.items():
            run = Run(sweep.folder / name)
            if run.state() != state:
                write_record(run.state_file, state)
        if not jobs.items() <= sweep.info().jobs.items():
            record_jobs(sweep, jobs)
        sweep.pending_file.unlink(missing_ok=True)
