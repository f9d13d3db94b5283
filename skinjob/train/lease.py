"""The lease of a run: one process at a time trains it, and says in state.json how it goes.

A run's state names the holder of its lease. A process that begins on a run writes its own token
there, and a process that finds another's token there has lost the run and writes no more. Every
file of a run is replaced in one step and depends on the run's configuration alone, so two processes
that overlap for a moment spoil nothing: the lease saves their work, and settles whose state counts.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import resource
import secrets
import shlex
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import FrameType
from typing import Any

import torch

from skinjob.errors import RunError, SkinjobError
from skinjob.files import is_full, remove_partials
from skinjob.sweeps.layout import Run
from skinjob.sweeps.lease import SILENCE_S, may_be_training
from skinjob.sweeps.records import Failure, RunState, Status, Stopped, utc_now, write_record

log = logging.getLogger("skinjob")

HEARTBEAT_S = 5
NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|bad_?alloc|Cannot allocate memory")
NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded|os error (28|122)\b")


class TakenError(RunError):
    """A run whose lease another process has taken."""

    def __init__(self, run: Run) -> None:
        show = f"cat {shlex.quote(str(run.state_file))}"
        super().__init__(f"{run.folder} is now trained by another process", show)


class Lease:
    """The runs that this process trains, and the token that says so."""

    def __init__(
        self,
        runs: Sequence[Run],
        refusal: Callable[[Run, RunState], str | None] = lambda run, state: None,
        **changes: Any,
    ) -> None:
        """Takes those of *runs* that *refusal* gives no reason against; *changes* their states.

        *refusal* gets the state of the moment in which the run is taken. Without file locks two
        processes may still take a run together: the first to write finds the other's token there.
        """
        self.token = secrets.token_hex(8)
        self.left_alone: dict[Run, str] = {}
        """The runs that were not taken, and why."""
        self._lock = threading.RLock()  # a signal's handler may interrupt a change
        self._states: dict[Run, RunState] = {}
        for run in runs:
            with run.changing_state():
                state = run.state()
                if reason := refusal(run, state):
                    self.left_alone[run] = reason
                    continue
                self._states[run] = replace(
                    state,
                    holder=self.token,
                    attempts=state.attempts + 1,
                    resumed_epoch=state.epoch,
                    **changes,
                )
                self._write(run)

    @property
    def runs(self) -> list[Run]:
        """The runs that are still held."""
        return list(self._states)

    def has(self, run: Run) -> bool:
        return run in self._states

    def check(self, run: Run) -> bool:
        """Returns whether the run is still held, by what its state says now."""
        with self._lock:
            if self.has(run) and (state := run.state()).holder != self.token:
                del self._states[run]
                log.info("left to %s", _holder(state), extra={"run": run.name})
            return self.has(run)

    def remove_partials(self, run: Run) -> None:
        """Removes the files that killed processes left half written in a run's folder.

        Not when the run is taken: another process may be taking it at the same moment.
        """
        with self._lock:  # a heartbeat is written through such a file too
            remove_partials(run.folder)

    def note(self, run: Run, **changes: Any) -> None:
        """Changes a run's state; the next heartbeat writes it."""
        with self._lock:
            if self.has(run):
                self._states[run] = replace(self._states[run], **changes)

    def say(self, run: Run, *, is_durable: bool = True, **changes: Any) -> bool:
        """Writes a run's state with *changes*; returns False, and writes nothing, once it is lost.

        Raises: OSError when the state cannot be written.
        """
        with self._lock, run.changing_state():
            if not self.check(run):
                return False
            self.note(run, **changes)
            self._write(run, is_durable=is_durable)
            return True

    def end(self, run: Run, **changes: Any) -> bool:
        """Writes a run's last state and releases it; returns whether it was still held."""
        with self._lock:
            try:
                return self.say(run, **changes, holder=None)
            finally:
                self._states.pop(run, None)

    @contextmanager
    def heartbeats(self) -> Iterator[None]:
        """Writes every run's state every few seconds, whatever this process does meanwhile."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(HEARTBEAT_S):
                for run in self.runs:
                    try:
                        self.say(run, is_durable=False)
                    except (OSError, RunError) as error:  # which ends no training
                        log.info("heartbeat: %s", error, extra={"run": run.name})

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _write(self, run: Run, *, is_durable: bool = True) -> None:
        self._states[run] = replace(self._states[run], heartbeat_utc=utc_now())
        write_record(run.state_file, self._states[run], is_durable=is_durable)


class Request:
    """What a job asks for: runs, and their states when it asked.

    SLURM starts a job again after preemption, a time limit or a node's failure, and now and then
    while the first attempt still works on a node that SLURM has lost sight of.
    """

    def __init__(self, runs: Sequence[Run], job_id: str | None = None) -> None:
        self.job_id = job_id
        # A shell on a node has the variable too; it counts only where there is a job.
        restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
        self.is_restart = job_id is not None and restarts != "0"
        self.before = {run: run.state() for run in runs}

    def wait(self) -> None:
        """Returns once it is known which of the runs another process is training.

        Its heartbeat shows whether it lives, not a clock that two machines might share. It takes a
        minute to see that there is none; less where its process is known to have ended, or where
        SLURM says so by starting this job again.
        """
        undecided = list(self.before)
        end = time.monotonic() + SILENCE_S
        while True:
            states = {run: run.state() for run in undecided}
            undecided = [
                run
                for run, state in states.items()
                if self._may_be_training(state) and self.refusal(run, state) is None
            ]
            if not undecided or time.monotonic() > end:
                return
            time.sleep(min(1.0, SILENCE_S / 10))

    def refusal(self, run: Run, state: RunState) -> str | None:
        """Returns why this job must not train a run that has this state; None if it may."""
        before = self.before[run]
        is_unfinished = state.status.is_final and state.status != Status.DONE
        has_ended = is_unfinished and state != before
        if state.status == Status.DONE:
            return f"{run.folder} is done"
        if self.is_restart and (is_unfinished or self._has_newer_job(run)):
            return f"{run.folder} has failed, or belongs to another job now"
        if state.status == Status.CANCELLED and (self.job_id or has_ended):
            return f"{run.folder} was cancelled"  # submitted again, it would say waiting
        if has_ended:
            return f"{run.folder} has failed meanwhile"
        has_beaten = (state.heartbeat_utc, state.holder) != (before.heartbeat_utc, before.holder)
        if self._may_be_training(state) and has_beaten:
            job = f"job {state.job_id}, " if state.job_id else ""
            return f"{run.folder} is at work in {job}process {state.pid} on {state.host}"
        return None

    def _may_be_training(self, state: RunState) -> bool:
        """Says whether another process may be training a run, as far as one look shows."""
        is_own = self.is_restart and state.job_id == self.job_id
        return not is_own and may_be_training(state)

    def _has_newer_job(self, run: Run) -> bool:
        return run.sweep.info().jobs.get(run.name, self.job_id) != self.job_id


def take(runs: Sequence[Run], job_id: str | None = None) -> Lease:
    """Returns the lease of those of the runs that this job may train; their states say running.

    Another process may train some: it takes a minute to see that it has gone.
    """
    request = Request(runs, job_id)
    request.wait()
    return Lease(
        runs,
        request.refusal,
        status=Status.RUNNING,
        job_id=job_id,
        host=socket.gethostname(),
        pid=os.getpid(),
        views_computed=0,
        views_read=0,
        images_per_s=None,
        started_utc=utc_now(),
        finished_utc=None,
        failure=None,
        reason=None,
        fix=None,
    )


@contextmanager
def track_run_state(
    lease: Lease, why_queued: Callable[[], Failure | None] = lambda: None
) -> Iterator[None]:
    """Keeps the runs' states fresh; says failed or waiting of those that the block did not end.

    *why_queued* returns what ended a job that leaves in order to be started again.
    """
    try:
        with lease.heartbeats(), _before_cpu_limit(lease.runs[0]):
            yield
    except SystemExit:  # asked to leave: by SLURM, to be started again, or by a cancel
        for run in lease.runs:
            with suppress(OSError, RunError):  # the job leaves all the same
                lease.end(run, status=Status.WAITING, pid=None, failure=why_queued())
        raise
    except BaseException as error:
        for run in lease.runs:
            record_failure(lease, run, error)
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
            Failure.KILLED,
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


def record_done(lease: Lease, run: Run) -> bool:
    """Writes that a run is done; returns whether it was still held."""
    is_held = lease.end(run, status=Status.DONE, finished_utc=utc_now())
    if is_held:
        log.info("done: %s", run.folder, extra={"run": run.name})
    return is_held


def record_failure(lease: Lease, run: Run, error: BaseException) -> None:
    """Writes what went wrong to a run's log and state."""
    failure, reason, fix = explain(run, error)
    if isinstance(error, SkinjobError | Stopped):
        log.error("error: %s", reason, extra={"run": run.name})
        log.error("fix:   %s", fix, extra={"run": run.name})
    else:
        log.error("%s", "".join(traceback.format_exception(error)), extra={"run": run.name})
    try:
        ending = {"failure": failure, "reason": reason, "fix": fix, "finished_utc": utc_now()}
        lease.end(run, status=Status.FAILED, **ending)
    except (OSError, RunError) as unwritten:  # `status` then finds a job that is gone
        log.error("the state cannot be written: %s", unwritten, extra={"run": run.name})


def explain(run: Run, error: BaseException) -> tuple[Failure, str, str]:
    """Returns the kind of a failure, what happened in a sentence, and a fix."""
    if isinstance(error, Stopped):
        return error.failure, error.message, error.fix
    if isinstance(error, KeyboardInterrupt):
        return Failure.KILLED, "interrupted with Ctrl-C", run.sweep.retry_command()
    text = f"{type(error).__name__}: {str(error).strip()}".rstrip(": ")
    line = text.split("\n")[0]
    if isinstance(error, torch.OutOfMemoryError):
        fix = "nvidia-smi; take smaller --batch-sizes or a larger GPU"
        return Failure.OUT_OF_GPU_MEMORY, line, fix
    if isinstance(error, MemoryError) or NO_MEMORY.search(text):
        return Failure.OUT_OF_MEMORY, line, run.sweep.retry_command(twice="mem_gb")
    is_disk_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if is_disk_full or NO_SPACE.search(text) or is_full(run.folder):
        folder = shlex.quote(str(run.folder))
        return Failure.DISK_FULL, line, f"df -h {folder}; quota -s; {run.sweep.retry_command()}"
    if isinstance(error, SkinjobError):
        return Failure.EXCEPTION, error.message, error.fix
    return Failure.EXCEPTION, line, f"tail -n 40 {shlex.quote(str(run.log_file))}"


def _holder(state: RunState) -> str:
    """Returns who has a run now, in words."""
    if state.holder is None:
        return f"another process: it is {state.status} now"
    job = f"job {state.job_id}, " if state.job_id else ""
    return f"{job}process {state.pid} on {state.host}"
