"""From a plan to jobs in a queue, and the wait for them."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

from skinjob.errors import SkinjobError
from skinjob.files import write_json
from skinjob.runs import Run, RunState, Sweep
from skinjob.submit import local
from skinjob.submit.executor import queue
from skinjob.submit.folders import discard, record_jobs, submitting, write_plan
from skinjob.submit.plan import Plan, jobs_of, placed
from skinjob.watch.state import Standing, standings

REPEATED = ("failed", "cancelled", "lost")
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

    Raises: ClusterError when SLURM refuses; then nothing is left of a new sweep.
    """
    with submitting(plan.runs):
        return _submit(placed(plan))


def _submit(plan: Plan) -> Submission:
    sweep, is_new = plan.sweep, plan.is_new
    found = [] if is_new else standings(sweep)
    stands = {one.run: one for one in found if one.run in plan.configs}
    todo = tuple(
        name for name in plan.configs if name not in stands or stands[name].state in REPEATED
    )
    if not todo:
        return Submission(sweep=sweep, queued=(), jobs={}, before=stands)
    if plan.cluster.cluster == "local" and not is_new:
        local.require_free(sweep)
    before = {name: Run(sweep.folder / name).state() for name in todo}
    try:
        write_plan(plan, queued=todo)
        jobs = _queue(plan, todo)
    except SkinjobError:
        if is_new:
            discard(plan)
        else:
            _restore(sweep, before)
        raise
    return Submission(sweep=sweep, queued=todo, jobs=jobs, before=stands)


def wait(sweep: Sweep, names: tuple[str, ...], tell: Callable[[Standing], None]) -> bool:
    """Waits until these runs have ended, tells each as it does; returns whether all are done.

    One that never starts by itself is told too, once, and waited for: it may be released.
    """
    open_runs, never = set(names), set[str]()
    pause_s = WAIT_S[sweep.info()["cluster"]["cluster"]]
    is_done = True
    while open_runs:
        for one in [one for one in standings(sweep) if one.run in open_runs]:
            if one.state in ("done", *REPEATED):
                tell(one)
                open_runs.remove(one.run)
                is_done = is_done and one.state == "done"
            elif one.state == "waiting" and one.error and one.run not in never:
                tell(one)
                never.add(one.run)
        time.sleep(pause_s if open_runs else 0)
    return is_done


def _queue(plan: Plan, names: tuple[str, ...]) -> dict[str, str]:
    if plan.cluster.cluster == "local":
        local.start_queue(plan.sweep, names)
        return {}
    with _deaf_to_ctrl_c():
        groups = jobs_of({name: plan.configs[name] for name in names})
        jobs = queue(plan.sweep, groups, plan.cluster)
        record_jobs(plan.sweep, jobs)
    return jobs


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Ignores Ctrl-C, in sbatch too: a job that is queued and not recorded would be queued twice.

    sbatch gives up by itself when SLURM does not answer.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _restore(sweep: Sweep, states: dict[str, RunState]) -> None:
    for name, state in states.items():
        with suppress(OSError):  # the disk may be full: then they stand as queued, and are lost
            write_json(Run(sweep.folder / name).state_file, asdict(state))
