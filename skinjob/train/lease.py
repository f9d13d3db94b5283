"""The lease of a run: a single process at a time trains it, and writes its progress to state.json.

The state of a run names the holder of the lease. A process that takes a run writes its token there.
A process that reads the token of another process has lost the run, and writes nothing more. If two
processes overlap for a moment, they damage nothing: each file of a run is replaced in a single step
and depends only on the run's configuration. The lease saves work, and decides whose state counts.
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
    """Another process has taken the lease of a run."""

    def __init__(self, run: Run) -> None:
        show = f"cat {shlex.quote(str(run.state_file))}"
        super().__init__(f"{run.folder} is now trained by another process", show)


class Lease:
    """The runs that this process trains, and its token."""

    def __init__(
        self,
        runs: Sequence[Run],
        refusal: Callable[[Run, RunState], str | None] = lambda run, state: None,
        **changes: Any,
    ) -> None:
        """Takes each run for which *refusal* returns None, and makes *changes* to its state.

        *refusal* gets the newest state. On a file system without locks two processes may take the
        same run. Then the first to write its state again reads the token of the other.
        """
        self.token = secrets.token_hex(8)
        self.skipped: dict[Run, str] = {}
        """The runs that were not taken, with the reason."""
        self._lock = threading.RLock()  # a signal handler may interrupt a change
        self._states: dict[Run, RunState] = {}
        for run in runs:
            with run.changing_state():
                state = run.state()
                if reason := refusal(run, state):
                    self.skipped[run] = reason
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
        """The runs that this process still holds."""
        return list(self._states)

    def has(self, run: Run) -> bool:
        return run in self._states

    def check(self, run: Run) -> bool:
        """Returns whether this process still holds a run, after reading its state."""
        with self._lock:
            if self.has(run) and (state := run.state()).holder != self.token:
                del self._states[run]
                log.info("taken by %s", _holder(state), extra={"run": run.name})
            return self.has(run)

    def remove_partials(self, run: Run) -> None:
        """Removes the partial files that killed processes left in a run's folder.

        This is not done when the run is taken: another process may be taking it too.
        """
        with self._lock:  # a heartbeat writes such a file too
            remove_partials(run.folder)

    def note(self, run: Run, **changes: Any) -> None:
        """Changes a run's state, which the next heartbeat writes."""
        with self._lock:
            if self.has(run):
                self._states[run] = replace(self._states[run], **changes)

    def say(self, run: Run, *, is_durable: bool = True, **changes: Any) -> bool:
        """Writes a run's state with *changes*; returns False if the run is no longer held.

        Raises: OSError if the state cannot be written.
        """
        with self._lock, run.changing_state():
            if not self.check(run):
                return False
            self.note(run, **changes)
            self._write(run, is_durable=is_durable)
            return True

    def end(self, run: Run, **changes: Any) -> bool:
        """Writes a run's last state and releases the run; returns whether it was still held."""
        with self._lock:
            try:
                return self.say(run, **changes, holder=None)
            finally:
                self._states.pop(run, None)

    @contextmanager
    def heartbeats(self) -> Iterator[None]:
        """Writes the state of every run every HEARTBEAT_S, in a thread, during the block."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(HEARTBEAT_S):
                for run in self.runs:
                    try:
                        self.say(run, is_durable=False)
                    except (OSError, RunError) as error:  # training continues
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
    """The runs that a job asks for, with their states at that moment.

    A queue starts a job again after preemption, a time limit or a node's failure. SLURM sometimes
    does so while the first attempt still works, on a node that SLURM cannot reach.
    """

    def __init__(self, runs: Sequence[Run], job_id: str | None, *, is_restart: bool) -> None:
        self.job_id = job_id
        self.is_restart = is_restart
        self.before = {run: run.state() for run in runs}

    def wait(self) -> None:
        """Waits until it is clear which of the runs another process trains.

        A new heartbeat shows that the other process lives. If there is none, the wait ends after
        SILENCE_S. It ends at once where the other process has ended, or where the queue has
        started this job again.
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
        """Returns why this job must not train a run in this state; None if it may."""
        before = self.before[run]
        is_unfinished = state.status.is_final and state.status != Status.DONE
        has_ended = is_unfinished and state != before
        if state.status == Status.DONE:
            return f"{run.folder} is done"
        if self.is_restart and (is_unfinished or self._has_newer_job(run)):
            return f"{run.folder} has failed, or belongs to another job now"
        if state.status == Status.CANCELLED and (self.job_id or has_ended):
            return f"{run.folder} was cancelled"  # after another submit it would be waiting
        if has_ended:
            return f"{run.folder} has failed in the meantime"
        has_beaten = (state.heartbeat_utc, state.holder) != (before.heartbeat_utc, before.holder)
        if self._may_be_training(state) and has_beaten:
            job = f"job {state.job_id}, " if state.job_id else ""
            return f"{run.folder} is trained by {job}process {state.pid} on {state.host}"
        return None

    def _may_be_training(self, state: RunState) -> bool:
        """Returns whether another process may be training a run, by a single look at its state."""
        is_own = self.is_restart and state.job_id == self.job_id
        return not is_own and may_be_training(state)

    def _has_newer_job(self, run: Run) -> bool:
        return run.sweep.info().jobs.get(run.name, self.job_id) != self.job_id


def take(runs: Sequence[Run], job_id: str | None = None, *, is_restart: bool = False) -> Lease:
    """Returns the lease of the runs that this job may train, and sets their status to running.

    *is_restart* says that the queue has started this job before. May wait for SILENCE_S, to see
    whether another process still trains a run.
    """
    request = Request(runs, job_id, is_restart=is_restart)
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
    """Writes heartbeats; if the block raises, sets the runs that it holds to failed or waiting.

    *why_queued* returns why a job ends that will be started again.
    """
    try:
        with lease.heartbeats(), _before_cpu_limit(lease.runs[0]):
            yield
    except SystemExit:  # the queue will start the job again, or a cancel ended it
        for run in lease.runs:
            with suppress(OSError, RunError):  # the job ends nevertheless
                lease.end(run, status=Status.WAITING, pid=None, failure=why_queued())
        raise
    except BaseException as error:
        for run in lease.runs:
            record_failure(lease, run, error)
        raise


@contextmanager
def _before_cpu_limit(run: Run) -> Iterator[None]:
    """Raises Stopped shortly before the limit of CPU time (ulimit -t) kills the process.

    Jobs inherit the limit of the user's shell. bash sets the soft and the hard limit to the same
    value. At the hard limit the kernel sends SIGKILL, and the process cannot write why it ended.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    limits = {soft, hard} - {resource.RLIM_INFINITY}
    if not limits or threading.current_thread() is not threading.main_thread():
        yield
        return
    limit = min(limits)

    def stop(number: int, frame: FrameType | None) -> None:
        # The kernel sends a signal each second; writing the end of the run takes longer.
        signal.signal(signal.SIGXCPU, signal.SIG_IGN)
        raise Stopped(
            Failure.KILLED,
            f"the job reached its limit of {limit} s of CPU time (ulimit -t), which comes from the "
            "shell that submitted it",
            f"ulimit -t unlimited; {run.sweep.retry_command()}",
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
    """Writes an error to a run's log and state."""
    failure, reason, fix = explain(run, error)
    if isinstance(error, SkinjobError | Stopped):
        log.error("error: %s", reason, extra={"run": run.name})
        log.error("fix:   %s", fix, extra={"run": run.name})
    else:
        log.error("%s", "".join(traceback.format_exception(error)), extra={"run": run.name})
    try:
        ending = {"failure": failure, "reason": reason, "fix": fix, "finished_utc": utc_now()}
        lease.end(run, status=Status.FAILED, **ending)
    except (OSError, RunError) as unwritten:  # `status` will see that the job has ended
        log.error("the state cannot be written: %s", unwritten, extra={"run": run.name})


def explain(run: Run, error: BaseException) -> tuple[Failure, str, str]:
    """Returns the kind of a failure, what happened, and a fix."""
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
    """Returns a phrase for the process that has a run now."""
    if state.holder is None:
        return f"another process: it is {state.status} now"
    job = f"job {state.job_id}, " if state.job_id else ""
    return f"{job}process {state.pid} on {state.host}"
