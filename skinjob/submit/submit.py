"""From a plan to jobs in a queue, and the wait for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

from skinjob.queues.base import RefusedError, queue_of, record_jobs
from skinjob.status.status import RunStatus, run_statuses
from skinjob.submit.folders import discard, submitting, write_plan
from skinjob.submit.plan import Plan, placed
from skinjob.sweeps.layout import Run, Sweep
from skinjob.sweeps.records import RunState, Status, write_record


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What a submit did: the runs it queued, and the statuses of the others."""

    sweep: Sweep
    queued: tuple[str, ...]
    jobs: dict[str, str]
    """Job ids by run name."""
    before: dict[str, RunStatus]
    """The statuses that runs had before, by name, of those that were queued again too."""


def submit(plan: Plan) -> Submission:
    """Queues the plan's runs, but for those that are done, running or queued already.

    Of two submits at the same time the second waits, and finds what the first has queued.

    Raises: RefusedError when the queue takes no job; then nothing is left of a new sweep.
    NoAnswerError when it does not say; then the sweep stays, for the next submit to see.
    """
    with submitting(plan.runs):
        return _submit(placed(plan))


def _submit(plan: Plan) -> Submission:
    sweep, is_new, queue = plan.sweep, plan.is_new, plan.queue
    if not is_new:
        _settle(sweep)
    found = [] if is_new else run_statuses(sweep, is_locked=True)
    before = {run.run: run for run in found if run.run in plan.configs}
    open_or_done = {Status.WAITING, Status.RUNNING, Status.DONE}
    todo = {
        name: config
        for name, config in plan.configs.items()
        if name not in before or before[name].status not in open_or_done
    }
    if not todo:
        return Submission(sweep=sweep, queued=(), jobs={}, before=before)
    if is_new:
        undo = partial(discard, plan)
    else:
        queue.require_free(sweep)
        states = {name: Run(sweep.folder / name).state() for name in todo}
        undo = partial(_restore, sweep, states, sweep.info().jobs)
    with _undoing(undo, BaseException):  # Ctrl-C too
        write_plan(plan, queued=tuple(todo))
    # After any other error there may be jobs: the next submit finds out.
    with _undoing(undo, RefusedError):
        jobs = queue.submit(sweep, todo, plan.cluster, is_new=is_new)
    return Submission(sweep=sweep, queued=tuple(todo), jobs=jobs, before=before)


def _settle(sweep: Sweep) -> None:
    """Finds the jobs of a submit that was broken off before they were recorded."""
    for name in queue_of(sweep).settle(sweep):
        run = Run(sweep.folder / name)
        if run.state().status == Status.LOST:  # somebody looked while nobody knew of its job
            run.update_state(status=Status.WAITING, reason=None, fix=None)


@contextmanager
def _undoing(undo: Callable[[], None], errors: type[BaseException]) -> Iterator[None]:
    """Calls *undo* when the block raises one of these errors."""
    try:
        yield
    except errors:
        undo()
        raise


def wait(sweep: Sweep, names: tuple[str, ...], tell: Callable[[RunStatus], None]) -> bool:
    """Waits until these runs have ended, tells each as it does; returns whether all are done.

    One that never starts by itself is told too, once, and waited for: it may be released.
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
    return is_done


def _restore(sweep: Sweep, states: Mapping[str, RunState], jobs: Mapping[str, str]) -> None:
    """Gives runs the states back that they had before they were to be queued again."""
    with suppress(OSError):  # the disk may be full: then they say waiting, and are lost
        for name, state in states.items():
            run = Run(sweep.folder / name)
            if run.state() != state:
                write_record(run.state_file, state)
        if not jobs.items() <= sweep.info().jobs.items():
            record_jobs(sweep, jobs)
        sweep.pending_file.unlink(missing_ok=True)
