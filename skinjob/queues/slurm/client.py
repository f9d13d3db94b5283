"""Calls SLURM's commands, and reads their answers: the queued jobs, and how other jobs ended.

If an answer lacks a job, SLURM does not know yet: the caller must not conclude anything.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cache
from pathlib import Path

from skinjob.ownership import NAMELESS, user_name
from skinjob.queues.slurm.environment import slurm_environment
from skinjob.words import list_first

TIMEOUT_S = 20
TIMED_OUT = 124
MOST_LINES = 4  # of a command's errors
ENDS = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}
"""Final states. SLURM's other states are of jobs that have not ended."""


@dataclass(frozen=True)
class SlurmJob:
    """A job in SLURM's queue."""

    state: str
    """SLURM's word: PENDING, RUNNING, COMPLETING or another."""
    node: str
    """Its node; empty while it waits."""
    reason: str
    """squeue's word for why a pending job has not started: Resources, JobHeldUser or another."""
    script: str
    """The file that sbatch got."""


@dataclass(frozen=True)
class SlurmEnd:
    """The end of a job in SLURM's terms."""

    state: str
    """One of ENDS."""
    by: str = ""
    """The user who cancelled it, if SLURM knows."""
    exit_code: int = 0
    signal: int = 0
    """The signal that killed it, or 0."""
    node: str = ""
    time_limit: str = ""
    ended_utc: str | None = None


class SlurmClient:
    """Asks SLURM each question once and remembers the answer."""

    def __init__(self) -> None:
        self._queues: dict[str | None, dict[str, SlurmJob] | str] = {}
        self._ends: dict[str, SlurmEnd | None] = {}
        self._asked: set[str] = set()
        self._arrays: dict[str, dict[str, SlurmEnd | None] | None] = {}

    def queue(self, submission: Path, user: str | None = None) -> dict[str, SlurmJob] | str:
        """Returns a user's queued jobs whose script is in a folder, or why SLURM does not answer.

        The folder matters because SLURM may give an old job id to a job of another sweep.
        """
        if user not in self._queues:
            self._queues[user] = ask_queue(user)
        queue, folder = self._queues[user], submission.resolve()
        if isinstance(queue, str):
            return queue
        folders = {job.script: Path(job.script).parent.resolve() for job in queue.values()}
        return {name: job for name, job in queue.items() if folders[job.script] == folder}

    def known_ends(self, jobs: Collection[str]) -> dict[str, SlurmEnd | None]:
        """Returns how these jobs and all jobs of earlier calls ended, as `job_ends` does."""
        new = set(jobs) - self._asked
        self._ends |= job_ends(new)
        self._asked |= new
        return self._ends

    def is_dropped(self, job: str) -> bool:
        """Says whether SLURM has a record of an array, but not of this task.

        This happens if a single task is cancelled before it starts.
        """
        array = _array(job)
        if array not in self._arrays:
            self._arrays[array] = _remembered(array)
        return job != array and job not in (self._arrays[array] or {job: None})


def ask_queue(user: str | None = None) -> dict[str, SlurmJob] | str:
    """Returns a user's jobs in SLURM's queue by id, or why SLURM does not answer.

    Without *user*: the jobs of the current user.
    """
    owner = user.removeprefix(NAMELESS) if user else os.geteuid()
    # Older versions do not know --me.
    answer = ask("squeue", f"--user={owner}", "--noheader", "--array", "--format=%i|%T|%N|%r|%o")
    if answer is None:
        return "no squeue on PATH"
    if answer.returncode:
        return words_of(answer)
    rows = [line.split("|", 4) for line in answer.stdout.splitlines() if line.count("|") >= 4]
    return {job: SlurmJob(*words) for job, *words in rows}


def words_of(answer: subprocess.CompletedProcess[str]) -> str:
    """Returns the error of a SLURM command in a line.

    >>> words_of(subprocess.CompletedProcess(["squeue"], 1, "", "Hello\\nsqueue: error: No\\n"))
    'Hello; No'
    """
    lines = [
        re.sub(r"^\w+: (error: |fatal: )?", "", line.strip())
        for line in (answer.stderr.strip() or answer.stdout.strip()).splitlines()
        if line.strip()
    ]
    if answer.returncode == TIMED_OUT and not lines:
        return f"no answer in {TIMEOUT_S} s"
    return list_first(lines, MOST_LINES, separator="; ", noun="line")


def job_ends(jobs: Collection[str]) -> dict[str, SlurmEnd | None]:
    """Returns how jobs ended that left the queue; None if SLURM has forgotten a job.

    It asks sacct first, and then slurmctld, which remembers jobs for some minutes. The answer lacks
    a job that neither of them knows.
    """
    if not jobs:
        return {}
    accounted = _accounted(jobs)
    known = accounted or {}
    ends: dict[str, SlurmEnd | None] = {job: known[job] for job in jobs if known.get(job)}
    others = [job for job in jobs if job not in ends]
    answers = {array: _remembered(array) for array in _arrays(others)}
    for job in others:
        remembered = answers[_array(job)]
        if remembered is None:
            continue  # no answer from slurmctld
        if remembered.get(job):
            ends[job] = remembered[job]
        elif accounted is not None and job not in {**known, **remembered}:
            ends[job] = None
    return ends


def cancel_jobs(jobs: Collection[str]) -> str:
    """Ends waiting and running jobs; returns why SLURM did not, or an empty text."""
    answer = ask("scancel", *sorted(jobs))
    if answer is None:
        return "no scancel on PATH"
    return (words_of(answer) or "it does not answer") if answer.returncode else ""


def _accounted(jobs: Collection[str]) -> dict[str, SlurmEnd | None] | None:
    """Returns how jobs ended by sacct's records; None for a job that still runs there.

    The answer is empty if the cluster has no accounting, and None if accounting does not answer.
    """
    answer = ask_accounting(jobs)
    if answer is None:
        return {}
    if answer.returncode:
        return {} if "accounting storage is disabled" in answer.stdout + answer.stderr else None
    ends: dict[str, SlurmEnd | None] = {}
    for row in (line.split("|") for line in answer.stdout.splitlines()):
        if len(row) != 6:
            continue
        name, _, step = row[0].partition(".")
        for job in _tasks(name):
            if not step:
                ends[job] = _end(*row[1:])
            elif end := ends.get(job):
                ends[job] = _with_step(end, step, *row[1:3])
    return ends


def ask_accounting(jobs: Collection[str]) -> subprocess.CompletedProcess[str] | None:
    """Returns sacct's answer about jobs; None if there is no sacct."""
    return ask(
        "sacct",
        "--noheader",
        "--parsable2",
        "--format=JobID,State,ExitCode,NodeList,Timelimit,End",
        # sacct does not find a task that never started: it is part of a row 12_[0-3].
        f"--jobs={','.join(_arrays(jobs))}",
    )


def _with_step(end: SlurmEnd, step: str, state: str, exit_code: str) -> SlurmEnd | None:
    """Returns the end of a job, changed by the row of one of its steps.

    The job's exit code is srun's, which sacct cuts to seven bits: 137 becomes 9. The job's derived
    exit code is missing if sacct wrote the end of the job before the end of the step.
    """
    if state == "RUNNING":
        return None  # more rows will come
    if state == "OUT_OF_MEMORY":
        return replace(end, state=state)
    code, number = _code(exit_code)
    is_more = step.isdigit() and (code or number)
    return replace(end, exit_code=code, signal=number) if is_more else end


def _remembered(array: str) -> dict[str, SlurmEnd | None] | None:
    """Returns how the jobs of an array ended, from slurmctld's memory; see `_accounted`."""
    answer = ask("scontrol", "--oneliner", "show", "job", array)
    if answer is None:
        return None
    if answer.returncode:
        is_unknown = "Invalid job id" in answer.stderr or "not found" in answer.stderr
        return {} if is_unknown else None
    ends: dict[str, SlurmEnd | None] = {}
    for line in answer.stdout.splitlines():
        pairs = read_pairs(line)
        if "JobState" not in pairs:
            continue
        name = pairs["JobId"]
        if "ArrayTaskId" in pairs:
            name = f"{pairs['ArrayJobId']}_[{pairs['ArrayTaskId']}]"
        end = _end(
            pairs["JobState"],
            pairs["ExitCode"],
            pairs.get("NodeList", ""),
            pairs.get("TimeLimit", ""),
            pairs.get("EndTime", ""),
        )
        ends |= dict.fromkeys(_tasks(name), end)
    return ends


def _end(state: str, exit_code: str, node: str, time_limit: str, ended: str) -> SlurmEnd | None:
    """Returns a job's end from SLURM's fields; None if the job has not ended."""
    word, _, by = state.partition(" by ")
    if word not in ENDS:
        return None
    code, number = _code(exit_code)
    return SlurmEnd(
        state=word,
        by=user_name(int(by)) if by.isdecimal() else by,
        exit_code=code,
        signal=number,
        node="" if node.startswith(("None", "(null")) else node,
        time_limit=time_limit,
        ended_utc=_utc(ended),
    )


def _code(text: str) -> tuple[int, int]:
    """Returns exit code and signal; a shell adds 128 to the signal of its command.

    >>> _code("1:0"), _code("0:9"), _code("137:0"), _code("")
    ((1, 0), (0, 9), (0, 9), (0, 0))
    """
    code, _, number = text.partition(":")
    if not code.isdigit() or not number.isdigit():
        return 0, 0
    is_signal = 128 < int(code) < 128 + signal.NSIG
    return (0, int(code) - 128) if is_signal else (int(code), int(number))


def _tasks(name: str) -> list[str]:
    """Returns the job ids in SLURM's short form.

    >>> _tasks("12"), _tasks("12_3"), _tasks("12_[0,2-3%2]")
    (['12'], ['12_3'], ['12_0', '12_2', '12_3'])
    """
    match = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", name)
    if not match:
        return [name]
    tasks: list[str] = []
    for part in match[2].split(","):
        first, _, last = part.partition("-")
        tasks += [f"{match[1]}_{task}" for task in range(int(first), int(last or first) + 1)]
    return tasks


def _array(job: str) -> str:
    """Returns the id of a job's array, or the job's own id."""
    return job.split("_")[0]


def _arrays(jobs: Collection[str]) -> list[str]:
    return sorted({_array(job) for job in jobs})


def _utc(seconds: str) -> str | None:
    if not seconds.isdigit():
        return None
    return datetime.fromtimestamp(int(seconds), timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def ask(
    *command: str, script: str | None = None, timeout_s: float | None = TIMEOUT_S
) -> subprocess.CompletedProcess[str] | None:
    """Returns the answer of a SLURM command; None if the command is not installed.

    *script* is a job script for its stdin. Without it, times are seconds since 1970. A command that
    takes too long has exit code 124.
    """
    times = {"SLURM_TIME_FORMAT": "%s"} if script is None else {}
    try:
        return subprocess.run(
            command,
            input=script,
            stdin=subprocess.DEVNULL if script is None else None,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",  # a job's path may not be UTF-8
            timeout=timeout_s,
            env=slurm_environment() | times,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, TIMED_OUT, "", "")
    except OSError:
        return None


def read(*command: str) -> str:
    """Returns the output of a SLURM command; empty if it fails."""
    answer = ask(*command)
    return "" if answer is None or answer.returncode else answer.stdout


@cache
def settings() -> dict[str, str]:
    """Returns slurm.conf from the controller, asked once; empty if it does not answer."""
    return dict(re.findall(r"(?m)^(\w+)\s*= (.*?)\s*$", read("scontrol", "show", "config")))


def read_pairs(line: str) -> dict[str, str]:
    """Returns the values in a line of scontrol by name.

    >>> read_pairs("JobId=12 Reason=None Requeue=1")
    {'JobId': '12', 'Reason': 'None', 'Requeue': '1'}
    """
    return dict(re.findall(r"(?:^|\s)(\w+)=(\S*)", line))


def parse_time(text: str) -> float | None:
    """Returns SLURM's [days-][[hours:]minutes:]seconds in seconds; None for anything else.

    >>> parse_time("1-02:03:04"), parse_time("4:59"), parse_time("UNLIMITED")
    (93784.0, 299.0, inf)
    """
    if text == "UNLIMITED":
        return float("inf")
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(?:(\d+):)?(\d+)", text)
    if match is None:
        return None
    days, first, second, last = (int(group or 0) for group in match.groups())
    hours, minutes = (first, second) if match[3] else (0, first)
    return float(((days * 24 + hours) * 60 + minutes) * 60 + last)
