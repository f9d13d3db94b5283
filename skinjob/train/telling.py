"""What a job's runs say of themselves: at work, done, failed and why, or queued once more."""

from __future__ import annotations

import errno
import logging
import os
import re
import resource
import shlex
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

import torch

from skinjob.errors import RunError, SkinjobError, Stopped
from skinjob.files import is_full
from skinjob.sweeps.layout import Run, utc_now
from skinjob.train.holding import Hold, Request, beating

log = logging.getLogger("skinjob")

NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|bad_?alloc|Cannot allocate memory")
NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded|os error (28|122)\b")


def take(runs: Sequence[Run], job_id: str | None = None) -> Hold:
    """Returns the hold on those of the runs that are this job's to train; they say running.

    Another process may have some: it takes a minute to see that it has gone.
    """
    request = Request(runs, job_id)
    request.wait()
    return Hold(
        runs,
        request.refusal,
        state="running",
        job_id=job_id,
        host=socket.gethostname(),
        pid=os.getpid(),
        views_computed=0,
        views_read=0,
        images_per_s=None,
        started_utc=utc_now(),
        finished_utc=None,
        fault=None,
        error=None,
        fix=None,
    )


@contextmanager
def telling(hold: Hold, why_queued: Callable[[], str | None] = lambda: None) -> Iterator[None]:
    """Keeps the runs in hand; says failed or queued of those without a last word.

    *why_queued* is asked what ended a job that leaves in order to be started again.
    """
    try:
        with beating(hold), _before_cpu_limit(hold.runs[0]):
            yield
    except SystemExit:  # told to leave: by SLURM, to be started again, or by whoever cancelled it
        for run in hold.runs:
            with suppress(OSError, RunError):  # told or not, the job is asked to leave
                hold.end(run, state="queued", pid=None, fault=why_queued())
        raise
    except BaseException as error:
        for run in hold.runs:
            tell_failed(hold, run, error)
        raise


@contextmanager
def _before_cpu_limit(run: Run) -> Iterator[None]:
    """Raises Stopped shortly before the limit of CPU time (ulimit -t) kills the process.

    Jobs inherit the limit of the shell that submitted. bash sets the soft and the hard limit to one
    value; at the hard limit the kernel sends SIGKILL, and no process can say why it ended.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    limits = {soft, hard} - {resource.RLIM_INFINITY}
    if not limits or threading.current_thread() is not threading.main_thread():
        yield
        return
    limit = min(limits)

    def stop(number: int, frame: FrameType | None) -> None:
        # The kernel sends one each second; the end of the run takes longer to write.
        signal.signal(signal.SIGXCPU, signal.SIG_IGN)
        raise Stopped(
            "killed",
            f"the job reached its limit of {limit} s of CPU time (ulimit -t), which it has from "
            "the shell that submitted",
            f"ulimit -t unlimited; {run.sweep.retry_command()}   # on SLURM, where the shell may "
            "not: --sbatch=--propagate=NONE",
        )

    before = signal.signal(signal.SIGXCPU, stop)
    resource.setrlimit(resource.RLIMIT_CPU, (max(1, limit - max(5, limit // 10)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
        signal.signal(signal.SIGXCPU, before)


def tell_failed(hold: Hold, run: Run, fault: BaseException) -> None:
    """Writes what went wrong to a run's log and state."""
    kind, error, fix = explain(run, fault)
    if isinstance(fault, SkinjobError | Stopped):
        log.error("error: %s", error, extra={"run": run.name})
        log.error("fix:   %s", fix, extra={"run": run.name})
    else:
        log.error("%s", "".join(traceback.format_exception(fault)), extra={"run": run.name})
    try:
        hold.end(run, state="failed", fault=kind, error=error, fix=fix, finished_utc=utc_now())
    except (OSError, RunError) as full:
        # Whoever asks next finds a job that is gone, and a full disk.
        log.error("the state cannot be written: %s", full, extra={"run": run.name})


def explain(run: Run, fault: BaseException) -> tuple[str, str, str]:
    """Returns the kind of a fault, one of FAULTS, what happened in a sentence, and a fix."""
    if isinstance(fault, Stopped):
        return fault.fault, fault.message, fault.fix
    if isinstance(fault, KeyboardInterrupt):
        return "killed", "interrupted with Ctrl-C", run.sweep.retry_command()
    text = f"{type(fault).__name__}: {str(fault).strip()}".rstrip(": ")
    line = text.split("\n")[0]
    if isinstance(fault, torch.OutOfMemoryError):
        return "out of GPU memory", line, "nvidia-smi; take smaller --batch-sizes or a larger GPU"
    if isinstance(fault, MemoryError) or NO_MEMORY.search(text):
        return "out of memory", line, run.sweep.retry_command(twice="--mem")
    if _is_full(run, fault, text):
        folder = shlex.quote(str(run.folder))
        return "disk full", line, f"df -h {folder}; quota -s; {run.sweep.retry_command()}"
    if isinstance(fault, SkinjobError):
        return "exception", fault.message, fault.fix
    return "exception", line, f"tail -n 40 {shlex.quote(str(run.log_file))}"


def tell_done(hold: Hold, run: Run) -> bool:
    """Writes a run's last word when all is well; returns whether it was still in hand."""
    if not hold.end(run, state="done", finished_utc=utc_now()):
        return False
    log.info("done: %s", run.folder, extra={"run": run.name})
    return True


def _is_full(run: Run, fault: BaseException, text: str) -> bool:
    if isinstance(fault, OSError) and fault.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return bool(NO_SPACE.search(text)) or is_full(run.folder)
