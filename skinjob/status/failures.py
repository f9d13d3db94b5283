"""What ended a run: a kind of failure, a sentence with the facts, and a command that mends it.

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
from skinjob.files import is_full
from skinjob.queues.slurm.client import JobEnd
from skinjob.queues.slurm.reasons import family
from skinjob.sweeps.layout import Run, Sweep
from skinjob.sweeps.records import Failure, RunState, Status, utc_now, write_record

TAIL_BYTES = 20_000

QUEUE_BEGINS = "the queue begins"
"""A line of queue.log: what is above it is of an earlier queue."""

BY_HAND_OR_KERNEL = "by hand or by the kernel for want of memory"
SIGNALS = {
    signal.SIGABRT: "a library gave up",
    signal.SIGBUS: "a file that it read was cut short, or /dev/shm is full",
    signal.SIGHUP: "its terminal was closed",
    signal.SIGILL: "this CPU lacks what a library was built for",
    signal.SIGINT: "Ctrl-C",
    signal.SIGKILL: BY_HAND_OR_KERNEL,
    signal.SIGSEGV: "a fault in a library",
    signal.SIGTERM: "it was told to end",
    signal.SIGXCPU: "its limit of CPU time: ulimit -t",
    signal.SIGXFSZ: "its limit on the size of a file: ulimit -f",
}
"""What most often sends a signal."""

CLOSING = (
    r"srun: (error: \S+: tasks? .*: |Terminating|Job step aborted|Force Terminated|launch/slurm)"
    r"|slurmstepd\S*: error: \*\*\* |submitit (INFO|W|ERROR)|scancel: Terminating"
)
"""What SLURM and submitit write to the end of any job that fails."""

SAID = (
    (r"oom[-_]kill event|[Ee]xceeded (job )?memory limit", "OUT_OF_MEMORY"),
    (r"CANCELLED AT \S+ DUE TO TIME LIMIT", "TIMEOUT"),
    (r"CANCELLED AT \S+ DUE TO PREEMPTION", "PREEMPTED"),
    (r"CANCELLED AT \S+ DUE TO NODE FAILURE", "NODE_FAIL"),
    (r"CANCELLED AT \S+ \*\*\*", "CANCELLED"),
)
"""What SLURM writes into a job's output, and the state that it stands for."""


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


def ending(run: Run, state: RunState, job: str | None, end: JobEnd | None) -> Ending:
    """Returns what ended a run whose job is no more; *end* is SLURM's word, None where it has none.

    Where SLURM has forgotten the job, the job's own output may still say.
    """
    output = job_output(run.sweep, job) if job else None
    word = _word(end, output)
    if word in (None, "FAILED", "COMPLETED"):
        told = _untold(run, state, job, end, output)
    else:
        told = _told(run, state, f"job {job}", word, end)
    return _ended(*told, _ended_utc(end, state))


def _ended(kind: Failure | Status, reason: str, fix: str, finished_utc: str) -> Ending:
    if isinstance(kind, Status):
        return Ending(kind, None, reason, fix, finished_utc)
    return Ending(Status.FAILED, kind, reason, fix, finished_utc)


def local_ending(run: Run, state: RunState, job: str, *, has_result: bool) -> Ending:
    """Returns what ended a run whose process on this machine has ended and left it unfinished.

    *has_result* says that Python itself came to the end of the job, be it by an exception.
    """
    now, where = utc_now(), _where(run, state)
    if full := _full_disk(run):
        return _ended(Failure.DISK_FULL, *full, now)
    process = f"process {state.pid or job}"
    output = job_output(run.sweep, job)
    if not tail(output, 1):  # Python never started: the error is in queue.log
        output = _queue_log(run.sweep)
    see = f"tail -n 40 {shlex.quote(str(output))}"
    if refused := _two_lines(output):
        return _ended(Failure.NEVER_STARTED, f"{process}: {refused[0]}", refused[1], now)
    if state.started_utc is None or has_result:
        failure = Failure.EXCEPTION if state.started_utc else Failure.NEVER_STARTED
        limit = "" if has_result else _cpu_limit()
        reason = f"{process} ended with an error{limit}{where}{_last(output)}"
        return _ended(failure, reason, see, now)
    # One that had the time to say waiting was told to end by a signal that it could heed.
    is_told = state.status == Status.WAITING
    by = "told to end" if is_told else f"killed ({BY_HAND_OR_KERNEL}{_cpu_limit()})"
    return _ended(Failure.KILLED, f"{process} was {by}{where}", run.sweep.retry_command(), now)


def orphan_ending(run: Run, state: RunState) -> Ending:
    """Returns what ended a run on this machine whose process and whose queue are both no more."""
    if full := _full_disk(run):
        return _ended(Failure.DISK_FULL, *full, _ended_utc(None, state))
    kind: Failure | Status
    if state.started_utc is None:
        kind = Failure.NEVER_STARTED
        reason = f"this machine's queue ended before the run began{_last(_queue_log(run.sweep))}"
    else:
        kind, where = Status.LOST, _where(run, state, heard=state.heartbeat_utc)
        process = f"process {state.pid}" if state.pid else "its process"
        reason = f"{process} and its queue are gone{where}: killed, or the machine went down"
    return _ended(kind, reason, run.sweep.retry_command(), _ended_utc(None, state))


def write_ending(run: Run, said: RunState, found: Ending) -> RunState:
    """Writes what ended a run, if it still stands as it *said*, and returns how it stands.

    Writes nothing to another user's run.
    """
    now = run.state()
    if now != said:  # it has spoken meanwhile, and knows better
        return now
    told = replace(now, **vars(found))
    if run.sweep.owner:
        return told
    with contextlib.suppress(OSError):  # a full disk: told and not written
        # Not flushed to disk: who asks after a crash finds it out again, and a sweep has many runs.
        write_record(run.state_file, told, is_durable=False)
    return told


def why_never(run: Run, job: str, reason: str) -> tuple[str, str] | None:
    """Returns why a pending job never starts by itself and what to do; None if it may start."""
    found = family(reason)
    if found is None or found.fix is None:
        return None
    names = _runs_of(job, run)
    again = run.sweep.retry_command(*names)  # cancelled runs are taken up by name alone
    cancel = run.sweep.command("cancel", *names)
    return f"{found.words} ({reason})", found.fix.format(job=job, again=again, cancel=cancel)


def _runs_of(job: str, run: Run) -> list[str]:
    """Returns the names of the runs that a run's job trains."""
    with contextlib.suppress(RunError):
        found = [name for name, its in run.sweep.info().jobs.items() if its == job]
        return found or [run.name]
    return [run.name]


def job_output(sweep: Sweep, job: str) -> Path:
    """Returns the file that a job's stdout and stderr go to."""
    return sweep.submission_folder / f"{job}_0_log.out"


def tail(file: Path, count: int) -> list[str]:
    """Returns the last lines of a file; none where it cannot be read."""
    try:
        with file.open("rb") as content:
            content.seek(0, 2)
            content.seek(max(0, content.tell() - TAIL_BYTES))
            text = content.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-count:]


def last_words(run: Run, job: str | None, count: int) -> Sequence[tuple[Path, list[str]]]:
    """Returns the last lines of a run's log, and of its job's output what the log does not have.

    A crash before the first line of the log, a segfault and SLURM's own words are in the output
    alone.
    """
    log = tail(run.log_file, 10_000)
    found = [(run.log_file, log[-count:])]
    if job:
        output = job_output(run.sweep, job)
        own = [line for line in tail(output, 10_000) if not _is_known(line, log)]
        found.append((output, own[-count:]))
    return [(file, lines) for file, lines in found if lines]


def _word(end: JobEnd | None, output: Path | None) -> str | None:
    """Returns the state that a job ended in.

    Where memory is watched by slurmd itself, SLURM says FAILED and only the job's output why.
    """
    if end and end.state != "FAILED":
        return end.state
    text = "\n".join(tail(output, 40)) if output else ""
    for pattern, state in SAID:
        if (end is None or state == "OUT_OF_MEMORY") and re.search(pattern, text):
            return state
    return end.state if end else None


def _told(
    run: Run, state: RunState, job: str, word: str, end: JobEnd | None
) -> tuple[Failure | Status, str, str]:
    """Returns kind of end, reason and fix of a job of which SLURM says what ended it."""
    where = _where(run, state, end)
    if word == "TIMEOUT":
        limit = end.time_limit if end else f"{run.sweep.info().asked('time_min')} minutes"
        more = run.sweep.retry_command(twice="time_min")
        return Failure.TIME_LIMIT, f"{job} reached its time limit of {limit}{where}", more
    if word == "OUT_OF_MEMORY":
        had = f"the {run.sweep.info().asked('mem_gb'):g} GB of memory that it had"
        more = run.sweep.retry_command(twice="mem_gb")
        return Failure.OUT_OF_MEMORY, f"{job} took more than {had}{where}", more
    ends: dict[str, tuple[Failure | Status, str]] = {
        "CANCELLED": (
            Status.CANCELLED,
            f"was cancelled{f' by {end.by}' if end and end.by else ''}",
        ),
        "REVOKED": (Status.CANCELLED, "was revoked, as another cluster took it"),
        "DEADLINE": (Failure.TIME_LIMIT, "reached its deadline"),
        "PREEMPTED": (Failure.PREEMPTED, "had to make room for another job"),
        "NODE_FAIL": (Failure.NODE_FAILURE, "lost its node"),
        "BOOT_FAIL": (Failure.NODE_FAILURE, "got a node that did not boot"),
    }
    kind, what = ends[word]
    again = run.sweep.retry_command()
    if kind == Status.CANCELLED:
        again = run.sweep.retry_command(*_runs_of(job.removeprefix("job "), run))
    return kind, f"{job} {what}{where}", again


def _untold(
    run: Run, state: RunState, job: str | None, end: JobEnd | None, output: Path | None
) -> tuple[Failure | Status, str, str]:
    """Returns kind of end, reason and fix of a job of which SLURM says no more than its exit
    code."""
    where, said = _where(run, state, end), _last(output)
    if full := _full_disk(run):
        return Failure.DISK_FULL, *full
    if end is None or end.state == "COMPLETED":
        return Status.LOST, _gone(run, state, job, end), run.sweep.retry_command()
    if output and (refused := _two_lines(output)):
        return (
            Failure.NEVER_STARTED,
            f"job {job}{_where(run, state, end)}: {refused[0]}",
            refused[1],
        )
    see = f"tail -n 40 {shlex.quote(str(output))}"
    if end.signal:
        is_killed = end.signal == signal.SIGKILL
        why = f"{_signal(end.signal)}{_cpu_limit() if is_killed else ''}"
        reason = f"job {job} was killed by signal {why}{where}{'' if is_killed else said}"
        return Failure.KILLED, reason, run.sweep.retry_command() if is_killed else see
    failure = Failure.EXCEPTION if state.started_utc else Failure.NEVER_STARTED
    return failure, f"job {job} ended with exit code {end.exit_code}{where}{said}", see


def _gone(run: Run, state: RunState, job: str | None, end: JobEnd | None) -> str:
    """Returns a sentence on a run of which nobody knows what ended it."""
    if job is None:
        return "no job has the run: what submitted it was broken off"
    if end:
        return (
            f"job {job} ended without an error and left the run unfinished{_where(run, state, end)}"
        )
    if state.started_utc is None:
        return f"job {job} left the queue before it began, and SLURM does not say why"
    where = _where(run, state, heard=state.heartbeat_utc)
    return f"job {job} is gone{where}, and SLURM does not say why"


def _where(
    run: Run, state: RunState, end: JobEnd | None = None, *, heard: str | None = None
) -> str:
    """Returns on which node, after which epoch and when, as the end of a sentence."""
    node = end.node if end and end.node else state.host
    at = f", at {end.ended_utc}" if end and end.ended_utc else ""
    if state.started_utc is None:
        return f" before it began to train{at}"
    last = f", last heard of at {heard}" if heard else ""
    on = f" on {node}" if node else ""
    return f"{on} after epoch {state.epoch} of {run.config().epochs}{at}{last}"


def _queue_log(sweep: Sweep) -> Path:
    """Returns the file that the process of this machine's queue writes to."""
    return sweep.submission_folder / "queue.log"


def _two_lines(output: Path) -> tuple[str, str] | None:
    """Returns error and fix where a job ended before it began, and gave them as we do."""
    match = re.search(r"^error: (.+)\nfix:   (.+)$", "\n".join(tail(output, 10)), re.MULTILINE)
    return (match[1], match[2]) if match else None


def _last(output: Path | None) -> str:
    """Returns why a job ended by its own output, as the end of a sentence."""
    lines = tail(output, 200) if output else []
    begins = [n for n, line in enumerate(lines) if line.endswith(QUEUE_BEGINS)]
    last = reason_line(lines[begins[-1] + 1 :] if begins else lines)
    return f"; the last it said: {last}" if last else ""


def reason_line(lines: Sequence[str]) -> str:
    """Returns the line of a job's output that most likely says why it ended.

    That is the error of the last traceback, whose message may go on below; else the last line, but
    for what SLURM and submitit add to the end of any job.

    >>> reason_line(["Traceback (most recent call last):", "  in f", "RuntimeError: a", "Use b"])
    'RuntimeError: a'
    """
    lines = [line for line in lines if not re.match(CLOSING, line)]
    starts = [n for n, line in enumerate(lines) if line.startswith("Traceback (most recent call")]
    errors = lines[starts[-1] + 1 :] if starts else []
    found = next((line for line in errors if line.strip() and not line.startswith(" ")), None)
    return (found or (lines[-1] if lines else "")).strip()


def _full_disk(run: Run) -> tuple[str, str] | None:
    """Returns error and fix where the disk of a run is full: its job could not say so."""
    try:
        if not is_full(run.folder):
            return None
    except OSError:
        return None
    return f"the disk of {run.folder} is full", f"df -h {shlex.quote(str(run.folder))}"


def _ended_utc(end: JobEnd | None, state: RunState) -> str:
    """Returns when it ended, as SLURM or the run's last heartbeat says."""
    return (end and end.ended_utc) or state.heartbeat_utc or utc_now()


def _signal(number: int) -> str:
    """Returns a signal's number, name and what most often sends it.

    >>> _signal(11)
    '11 (SIGSEGV: a fault in a library)'
    """
    try:
        found = signal.Signals(number)
    except ValueError:
        return str(number)
    why = f": {SIGNALS[found]}" if found in SIGNALS else ""
    return f"{number} ({found.name}{why})"


def _cpu_limit() -> str:
    """Returns that a job may have met this shell's limit of CPU time, which jobs inherit."""
    limits = set(resource.getrlimit(resource.RLIMIT_CPU)) - {resource.RLIM_INFINITY}
    return f", or at its limit of {min(limits)} s of CPU time (ulimit -t)" if limits else ""


def _is_known(line: str, log: Sequence[str]) -> bool:
    """Says whether a line of a job's output is of the log, or is submitit's chatter."""
    return line in log or bool(
        re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ |submitit (INFO|W)", line)
    )
