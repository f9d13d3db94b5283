"""What became of a run: its own word first, then the queue's.

A state that is not known means waiting, never failed.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from skinjob.runs import FINAL, Run, RunState, Sweep
from skinjob.submit.executor import jobs_in_queue
from skinjob.submit.local import is_working

SILENCE = timedelta(seconds=60)
"""A run that is not in the queue and silent for so long is lost. Network file systems show what a
job wrote last up to a minute late."""


def standing(sweep: Sweep) -> dict[str, str]:
    """Returns queued, running, done, failed or lost for every run of a sweep."""
    info = sweep.info()
    # The queue is asked before the folders are read: a run that ends in between has the last word.
    alive = _alive(sweep, info["cluster"]["cluster"], info["jobs"])
    return {run.name: _standing(run.state(), alive.get(run.name, False)) for run in sweep.runs()}


def _alive(sweep: Sweep, cluster: str, jobs: dict[str, str]) -> dict[str, bool]:
    """Says by run name whether its job may still be there."""
    names = [run.name for run in sweep.runs()]
    if cluster == "local":
        return dict.fromkeys(names, is_working(sweep))
    queued = jobs_in_queue()
    if queued is None:
        return dict.fromkeys(names, True)
    return {
        name: jobs.get(name) in queued or _is_recent(Run(sweep.folder / name).state())
        for name in names
    }


def _standing(state: RunState, alive: bool) -> str:
    return state.state if state.state in FINAL or alive else "lost"


def _is_recent(state: RunState) -> bool:
    said = state.heartbeat_utc or state.queued_utc
    if said is None:
        return False
    return (
        datetime.now(timezone.utc) - datetime.fromisoformat(said.replace("Z", "+00:00")) < SILENCE
    )
