"""Queues a plan's jobs, and waits for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

from skinjob.queues.base import RefusedError, queue_of, record_jobs
from skinjob.status.status import RunStatus, run_statuses
from skinjob.submit.folders import discard, record_study, submitting, write_plan
from skinjob.submit.plan import Plan, placed
from skinjob.sweeps.layout import Run, Sweep
from skinjob.sweeps.records import RunState, Status, write_record
from skinjob.train.claims import is_claimed

CLAIM_LOOK_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Submission:
    """The result of a submit: the queued runs, and the statuses of the others."""

    sweep: Sweep
    queued: tuple[str, ...]
    jobs: dict[str, str]
    """Job ids by run name."""
    before: dict[str, RunStatus]
    """The statuses of all runs before the submit, by name."""


def submit(plan: Plan) -> Submission:
    """Queues the plan's runs, except for waiting, running and done runs.

    A second submit waits until the first has ended, and then sees its jobs.

    Raises: RefusedError if the queue takes no job; a new sweep is then removed. NoAnswerError if
    the queue does not answer; the sweep then stays for the next submit.
    """
    with submitting(plan.runs):
        return _submit(placed(plan))


def _submit(plan: Plan) -> Submission:
    sweep, is_new, queue = plan.sweep, plan.is_new, plan.queue
    if not is_new:
        _recover(sweep)
    statuses = [] if is_new else run_statuses(sweep, is_locked=True)
    before = {run.run: run for run in statuses if run.run in plan.configs}
    open_or_done = {Status.WAITING, Status.RUNNING, Status.DONE}
    todo = {
        name: config
        for name, config in plan.configs.items()
        if name not in before or before[name].status not in open_or_done
    }
    if not todo:
        record_study(plan)
        return Submission(sweep=sweep, queued=(), jobs={}, before=before)
    if is_new:
        undo = partial(discard, plan)
    else:
        queue.require_free(sweep)
        states = {name: Run(sweep.folder / name).state() for name in todo}
        undo = partial(_restore, sweep, states, sweep.info().jobs)
    with _undoing(undo, BaseException):  # Ctrl-C too
        write_plan(plan, queued=tuple(todo))
    # After any other error there may be jobs: the next submit looks for them.
    with _undoing(undo, RefusedError):
        jobs = queue.submit(sweep, todo, plan.cluster, is_new=is_new)
    return Submission(sweep=sweep, queued=tuple(todo), jobs=jobs, before=before)


def _recover(sweep: Sweep) -> None:
    """Records the jobs of a submit that was killed before it could do so."""
    for name in queue_of(sweep).recover_submit(sweep):
        run = Run(sweep.folder / name)
        if run.state().status == Status.LOST:  # a status looked before the job was recorded
            run.update_state(status=Status.WAITING, reason=None, fix=None)


@contextmanager
def _undoing(undo: Callable[[], None], errors: type[BaseException]) -> Iterator[None]:
    """Calls *undo* if the block raises one of *errors*."""
    try:
        yield
    except errors:
        undo()
        raise


def wait(sweep: Sweep, names: tuple[str, ...], tell: Callable[[RunStatus], None]) -> bool:
    """Waits until these runs have ended, calls *tell* for each, and returns whether all are done.

    It also calls *tell* once for a run that never starts by itself, and waits for it, too. After
    the last run, a job may still compute the converged head.
    """
    open_runs, blocked = set(names), set[str]()
    pause_s = queue_of(sweep).look_s
    is_done = True
    while open_runs:
        for run in [run for run in run_statuses(sweep) if run.run in open_runs]:
            if run.status.is_final:
                tell(run)
                open_runs.remove(run.run)
                is_done = is_done and run.status == Status.DONE
            elif run.status == Status.WAITING and run.reason and run.run not in blocked:
                tell(run)
                blocked.add(run.run)
        time.sleep(pause_s if open_runs else 0)
    while is_claimed(sweep.converged_file):
        time.sleep(CLAIM_LOOK_S)
    return is_done


def _restore(sweep: Sweep, states: Mapping[str, RunState], jobs: Mapping[str, str]) -> None:
    """Restores the states and jobs that runs had before this submit."""
    with suppress(OSError):  # the disk may be full: then status shows the runs as lost
        for name, state in states.items():
            run = Run(sweep.folder / name)
            if run.state() != state:
                write_record(run.state_file, state)
        if not jobs.items() <= sweep.info().jobs.items():
            record_jobs(sweep, jobs)
        sweep.pending_file.unlink(missing_ok=True)
