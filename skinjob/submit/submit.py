"""From a plan to jobs in a queue, and the wait for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from skinjob.errors import SkinjobError
from skinjob.files import write_json
from skinjob.runs import Run, RunState, Sweep
from skinjob.submit import local
from skinjob.submit.executor import queue
from skinjob.submit.plan import Plan, discard, jobs_of, record_jobs, write_plan
from skinjob.submit.state import standing

REPEATED = ("failed", "lost")
WAIT_S = {"local": 0.5, "slurm": 15}  # squeue answers for a whole site: it is asked seldom


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What a submit did: the runs it queued, and how the others stand."""

    sweep: Sweep
    queued: tuple[str, ...]
    jobs: dict[str, str]
    """Job ids by run name; of a local queue there are none yet."""
    others: dict[str, str]


def submit(plan: Plan) -> Submission:
    """Queues the plan's runs, but for those that are done, running or queued already.

    Raises: ClusterError when SLURM refuses; then nothing is left of a new sweep.
    """
    sweep, is_new = plan.sweep, plan.is_new
    stands = {} if is_new else standing(sweep)
    todo = tuple(name for name in plan.configs if stands.get(name, "lost") in REPEATED)
    others = {name: stands[name] for name in plan.configs if name not in todo}
    if not todo:
        return Submission(sweep=sweep, queued=(), jobs={}, others=others)
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
    return Submission(sweep=sweep, queued=todo, jobs=jobs, others=others)


def wait(sweep: Sweep, names: tuple[str, ...], tell: Callable[[str, str], None]) -> bool:
    """Waits until these runs have ended, tells each as it does; returns whether all are done."""
    open_runs = list(names)
    pause_s = WAIT_S[sweep.info()["cluster"]["cluster"]]
    stands: dict[str, str] = {}
    while open_runs:
        stands |= standing(sweep)
        for name in [name for name in open_runs if stands[name] in ("done", *REPEATED)]:
            tell(name, stands[name])
            open_runs.remove(name)
        time.sleep(pause_s if open_runs else 0)
    return all(stands[name] == "done" for name in names)


def _queue(plan: Plan, names: tuple[str, ...]) -> dict[str, str]:
    if plan.cluster.cluster == "local":
        local.start_queue(plan.sweep, names)
        return {}
    jobs = queue(plan.sweep, jobs_of({name: plan.configs[name] for name in names}), plan.cluster)
    record_jobs(plan.sweep, jobs)
    return jobs


def _restore(sweep: Sweep, states: dict[str, RunState]) -> None:
    for name, state in states.items():
        write_json(Run(sweep.folder / name).state_file, asdict(state))
