"""What ended a run: the kind of failure, a sentence with the facts, and a fix.

A run writes this itself if it can. This module is for runs that were ended from outside.
"""

from __future__ import annotations

import contextlib
import re
import resource
import shlex
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from skinjob.errors import RunError
from skinjob.files import is_full, tail
from skinjob.queues.base import JobEnd, Queue, job_output, runs_by_job
from skinjob.sweeps.layout import Run
from skinjob.sweeps.records import Failure, RunState, Status, utc_now, write_record

BY_HAND_OR_KERNEL = "by hand, or by the kernel because memory ran out"
SIGNALS: dict[int, str] = {
    signal.SIGABRT: "a library aborted",
    signal.SIGBUS: "a file that it read was cut short, or /dev/shm is full",
    signal.SIGHUP: "its terminal was closed",
    signal.SIGILL: "a library needs an instruction that this CPU lacks",
    signal.SIGINT: "Ctrl-C",
    signal.SIGKILL: BY_HAND_OR_KERNEL,
    signal.SIGSEGV: "a fault in a library",
    signal.SIGTERM: "kill, or a shutdown",
    signal.SIGXCPU: "its limit of CPU time: ulimit -t",
    signal.SIGXFSZ: "its limit on the size of a file: ulimit -f",
}
"""The usual cause of each signal."""


@dataclass(frozen=True)
class Ending:
    """What ended a run."""

    status: Status
    """failed, cancelled or lost."""
    failure: Failure | None
    """Only for a failed run."""
    reason: str
    fix: str
    finished_utc: str


def ending(run: Run, state: RunState, job: str | None, end: JobEnd | None, queue: Queue) -> Ending:
    """Returns what ended a run whose job has gone; *end* is None if *queue* has forgotten it."""
    kind, reason, fix = _what_ended(run, state, job, end, queue)
    finished_utc = (end and end.ended_utc) or state.heartbeat_utc or utc_now()
    if isinstance(kind, Status):
        return Ending(kind, None, reason, fix, finished_utc)
    return Ending(Status.FAILED, kind, reason, fix, finished_utc)


def write_ending(run: Run, state: RunState, what: Ending) -> RunState:
    """Writes what ended a run, unless its state has changed; returns its state.

    It writes nothing to another user's run.
    """
    now = run.state()
    if now != state:  # the job has written its own state meanwhile
        return now
    ended = replace(now, **vars(what))
    if run.sweep.owner:
        return ended
    with contextlib.suppress(OSError):  # a full disk: status still shows it
        # Not flushed to disk: the next status can write it again, and a sweep has many runs.
        write_record(run.state_file, ended, is_durable=False)
    return ended


def last_words(run: Run, job: str | None, count: int) -> Sequence[tuple[Path, list[str]]]:
    """Returns the last lines of a run's log, and those lines of its job's output that it lacks.

    Only the output has crashes before the log starts, segfaults, and the queue's own messages.
    """
    log = tail(run.log_file, 10_000)
    parts = [(run.log_file, log[-count:])]
    if job:
        output = job_output(run.sweep, job)
        own = [line for line in tail(output, 10_000) if not _is_known(line, log)]
        parts.append((output, own[-count:]))
    return [(file, lines) for file, lines in parts if lines]


def _what_ended(
    run: Run, state: RunState, job: str | None, end: JobEnd | None, queue: Queue
) -> tuple[Failure | Status, str, str]:
    """Returns kind, sentence and fix."""
    where, again = _where(run, state, end), run.sweep.retry_command()
    kind = end.kind if end else None
    if end and kind and kind != Status.LOST:
        names = _runs_of(job, run) if kind == Status.CANCELLED else ()
        fix = run.sweep.retry_command(*names, twice=end.lacked)
        return kind, f"job {job} {end.words}{where}", fix
    if full := _full_disk(run):
        return Failure.DISK_FULL, *full
    if job is None:
        return Status.LOST, "the run has no job, because its submit was interrupted", again
    if end is None:
        if state.started_utc is None:
            reason = f"left the queue before it started, and {queue.title} does not say why"
        else:
            heard = f", last heartbeat {state.heartbeat_utc}" if state.heartbeat_utc else ""
            reason = f"has gone{where}{heard}, and {queue.title} does not say why"
        return Status.LOST, f"job {job} {reason}", again
    if end.is_clean or kind:
        words = end.words or "ended without an error and left the run unfinished"
        return Status.LOST, f"job {job} {words}{where}", again
    output = job_output(run.sweep, job)
    if refused := _two_lines(output):
        return Failure.NEVER_STARTED, f"job {job}{where}: {refused[0]}", refused[1]
    last = reason_line(tail(output, 200), queue.noise)
    last = f"; last line: {last}" if last else ""
    see = f"tail -n 40 {shlex.quote(str(output))}"
    if end.signal == signal.SIGKILL:
        words = f"was killed by signal {_signal(end.signal)}{_cpu_limit()}"
        return Failure.KILLED, f"job {job} {words}{where}", again
    if end.signal:
        return (
            Failure.KILLED,
            f"job {job} was killed by signal {_signal(end.signal)}{where}{last}",
            see,
        )
    failure = Failure.EXCEPTION if state.started_utc else Failure.NEVER_STARTED
    return failure, f"job {job} ended with exit code {end.exit_code}{where}{last}", see


def _runs_of(job: str | None, run: Run) -> list[str]:
    """Returns the names of all runs of a run's job."""
    with contextlib.suppress(RunError):
        return runs_by_job(run.sweep.info().jobs).get(job or "", [run.name])
    return [run.name]


def _where(run: Run, state: RunState, end: JobEnd | None) -> str:
    """Returns node, epoch and time, as the end of a sentence."""
    node = end.node if end and end.node else state.host
    at = f", at {end.ended_utc}" if end and end.ended_utc else ""
    if state.started_utc is None:
        return f" before training started{at}"
    on = f" on {node}" if node else ""
    return f"{on} after epoch {state.epoch} of {run.config().epochs}{at}"


def _two_lines(output: Path) -> tuple[str, str] | None:
    """Returns the error and the fix that a job printed before its runs started."""
    match = re.search(r"^error: (.+)\nfix:   (.+)$", "\n".join(tail(output, 10)), re.MULTILINE)
    return (match[1], match[2]) if match else None


def reason_line(lines: Sequence[str], noise: str = "") -> str:
    """Returns the line of a job's output that most likely says why it ended.

    This is the error of the last traceback, or else the last line that is not *noise*.

    >>> reason_line(["Traceback (most recent call last):", "  in f", "RuntimeError: a", "Use b"])
    'RuntimeError: a'
    """
    lines = [line for line in lines if not (noise and re.match(noise, line))]
    starts = [n for n, line in enumerate(lines) if line.startswith("Traceback (most recent call")]
    errors = lines[starts[-1] + 1 :] if starts else []
    error = next((line for line in errors if line.strip() and not line.startswith(" ")), None)
    return (error or (lines[-1] if lines else "")).strip()


def _full_disk(run: Run) -> tuple[str, str] | None:
    """Returns error and fix if the run's disk is full, which its job could not write down."""
    try:
        if not is_full(run.folder):
            return None
    except OSError:
        return None
    return f"the disk of {run.folder} is full", f"df -h {shlex.quote(str(run.folder))}"


def _signal(number: int) -> str:
    """Returns a signal's number, name and usual cause.

    >>> _signal(11)
    '11 (SIGSEGV: a fault in a library)'
    """
    try:
        name = signal.Signals(number).name
    except ValueError:
        return str(number)
    why = f": {SIGNALS[number]}" if number in SIGNALS else ""
    return f"{number} ({name}{why})"


def _cpu_limit() -> str:
    """Returns a remark if this shell limits CPU time, because jobs inherit the limit."""
    limits = set(resource.getrlimit(resource.RLIMIT_CPU)) - {resource.RLIM_INFINITY}
    return f", or at its limit of {min(limits)} s of CPU time (ulimit -t)" if limits else ""


def _is_known(line: str, log: Sequence[str]) -> bool:
    """Says whether a line of a job's output is in the log, or comes from submitit."""
    return line in log or bool(
        re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ |submitit (INFO|W)", line)
    )
