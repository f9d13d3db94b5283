"""What ended a run, in words: a kind of failure, a sentence with the facts, and a fix.

A run says itself what ended it where it can. This is for one that was ended from outside.
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

BY_HAND_OR_KERNEL = "by hand or by the kernel for want of memory"
SIGNALS: dict[int, str] = {
    signal.SIGABRT: "a library gave up",
    signal.SIGBUS: "a file that it read was cut short, or /dev/shm is full",
    signal.SIGHUP: "its terminal was closed",
    signal.SIGILL: "this CPU lacks what a library was built for",
    signal.SIGINT: "Ctrl-C",
    signal.SIGKILL: BY_HAND_OR_KERNEL,
    signal.SIGSEGV: "a fault in a library",
    signal.SIGTERM: "kill, or a shutdown",
    signal.SIGXCPU: "its limit of CPU time: ulimit -t",
    signal.SIGXFSZ: "its limit on the size of a file: ulimit -f",
}
"""What most often sends a signal."""


@dataclass(frozen=True)
class Ending:
    """What ended a run."""

    status: Status
    """failed, cancelled or lost."""
    failure: Failure | None
    """Of a run that failed."""
    reason: str
    fix: str
    finished_utc: str


def ending(run: Run, state: RunState, job: str | None, end: JobEnd | None, queue: Queue) -> Ending:
    """Returns what ended a run whose job is no more; *end* is None where its queue forgot it.

    *queue* is the queue that had it.
    """
    kind, reason, fix = _what_ended(run, state, job, end, queue)
    finished_utc = (end and end.ended_utc) or state.heartbeat_utc or utc_now()
    if isinstance(kind, Status):
        return Ending(kind, None, reason, fix, finished_utc)
    return Ending(Status.FAILED, kind, reason, fix, finished_utc)


def write_ending(run: Run, state: RunState, what: Ending) -> RunState:
    """Writes what ended a run, if its state is still *state*, and returns its state.

    Writes nothing to another user's run.
    """
    now = run.state()
    if now != state:  # it has spoken meanwhile, and knows better
        return now
    ended = replace(now, **vars(what))
    if run.sweep.owner:
        return ended
    with contextlib.suppress(OSError):  # a full disk: shown and not written
        # Not flushed to disk: after a crash it is found out again, and a sweep has many runs.
        write_record(run.state_file, ended, is_durable=False)
    return ended


def last_words(run: Run, job: str | None, count: int) -> Sequence[tuple[Path, list[str]]]:
    """Returns the last lines of a run's log, and of its job's output what the log does not have.

    A crash before the first line of the log, a segfault and SLURM's own words are in the output
    alone.
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
        return Status.LOST, "no job has the run: what submitted it was broken off", again
    if end is None:
        if state.started_utc is None:
            reason = f"left the queue before it began, and {queue.title} does not say why"
        else:
            heard = f", last heard of at {state.heartbeat_utc}" if state.heartbeat_utc else ""
            reason = f"is gone{where}{heard}, and {queue.title} does not say why"
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
    """Returns the names of the runs that a run's job trains."""
    with contextlib.suppress(RunError):
        return runs_by_job(run.sweep.info().jobs).get(job or "", [run.name])
    return [run.name]


def _where(run: Run, state: RunState, end: JobEnd | None) -> str:
    """Returns on which node, after which epoch and when, as the end of a sentence."""
    node = end.node if end and end.node else state.host
    at = f", at {end.ended_utc}" if end and end.ended_utc else ""
    if state.started_utc is None:
        return f" before it began to train{at}"
    on = f" on {node}" if node else ""
    return f"{on} after epoch {state.epoch} of {run.config().epochs}{at}"


def _two_lines(output: Path) -> tuple[str, str] | None:
    """Returns error and fix where a job ended before it began, and gave them as we do."""
    match = re.search(r"^error: (.+)\nfix:   (.+)$", "\n".join(tail(output, 10)), re.MULTILINE)
    return (match[1], match[2]) if match else None


def reason_line(lines: Sequence[str], noise: str = "") -> str:
    """Returns the line of a job's output that most likely says why it ended.

    That is the error of the last traceback, whose message may go on below; else the last line that
    is no *noise*.

    >>> reason_line(["Traceback (most recent call last):", "  in f", "RuntimeError: a", "Use b"])
    'RuntimeError: a'
    """
    lines = [line for line in lines if not (noise and re.match(noise, line))]
    starts = [n for n, line in enumerate(lines) if line.startswith("Traceback (most recent call")]
    errors = lines[starts[-1] + 1 :] if starts else []
    error = next((line for line in errors if line.strip() and not line.startswith(" ")), None)
    return (error or (lines[-1] if lines else "")).strip()


def _full_disk(run: Run) -> tuple[str, str] | None:
    """Returns error and fix where the disk of a run is full: its job could not say so."""
    try:
        if not is_full(run.folder):
            return None
    except OSError:
        return None
    return f"the disk of {run.folder} is full", f"df -h {shlex.quote(str(run.folder))}"


def _signal(number: int) -> str:
    """Returns a signal's number, name and what most often sends it.

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
    """Returns that a job may have met this shell's limit of CPU time, which jobs inherit."""
    limits = set(resource.getrlimit(resource.RLIMIT_CPU)) - {resource.RLIM_INFINITY}
    return f", or at its limit of {min(limits)} s of CPU time (ulimit -t)" if limits else ""


def _is_known(line: str, log: Sequence[str]) -> bool:
    """Says whether a line of a job's output is of the log, or is submitit's chatter."""
    return line in log or bool(
        re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ |submitit (INFO|W)", line)
    )
