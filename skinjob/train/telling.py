"""What a job's runs say of themselves: at work, done, failed and why, or queued once more."""

from __future__ import annotations

import logging
import os
import socket
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from skinjob.errors import SkinjobError
from skinjob.runs import Run, utc_now

log = logging.getLogger("skinjob")


@contextmanager
def telling(runs: Sequence[Run], job_id: str | None) -> Iterator[None]:
    """Writes the runs' states: running, and, of those without a last word, failed or queued."""
    try:
        for run in runs:
            run.update_state(
                state="running",
                job_id=job_id,
                host=socket.gethostname(),
                pid=os.getpid(),
                epoch=0,
                views_computed=0,
                views_read=0,
                started_utc=utc_now(),
                finished_utc=None,
                error=None,
                remedy=None,
            )
        yield
    except SystemExit:  # submitit leaves so once it has requeued a preempted job
        for run in _at_work(runs):
            run.update_state(state="queued", pid=None)
        raise
    except BaseException as fault:
        for run in _at_work(runs):
            tell_failed(run, fault)
        raise


def tell_failed(run: Run, fault: BaseException) -> None:
    """Writes what went wrong to a run's log and state."""
    if isinstance(fault, SkinjobError):
        log.error("error: %s", fault.message, extra={"run": run.name})
        log.error("fix:   %s", fault.remedy, extra={"run": run.name})
        error, remedy = fault.message, fault.remedy
    else:
        log.error("%s", "".join(traceback.format_exception(fault)), extra={"run": run.name})
        reason = str(fault).strip().split("\n")[-1]
        error = f"{type(fault).__name__}: {reason}".rstrip(": ")
        remedy = f"tail -n 40 {run.log_file}"
    run.update_state(state="failed", error=error, remedy=remedy, finished_utc=utc_now())


def tell_done(run: Run) -> None:
    """Writes a run's last word when all is well."""
    run.update_state(state="done", finished_utc=utc_now())
    log.info("done: %s", run.folder, extra={"run": run.name})


def _at_work(runs: Sequence[Run]) -> list[Run]:
    """Returns the runs that this process has in hand: one that failed may be another's by now."""
    mine = ("running", socket.gethostname(), os.getpid())
    states = {run: run.state() for run in runs}
    return [run for run, said in states.items() if (said.state, said.host, said.pid) == mine]
