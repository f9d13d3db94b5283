"""The one door to SLURM's commands, and what they say of jobs: queued jobs, and how others ended.

Where an answer leaves a job out, SLURM did not say: nothing may be concluded from it.
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
MOST_LINES = 4  # of what a command says
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
"""States that a job does not leave. SLURM has others, of jobs that are not over."""


@dataclass(frozen=True)
class SlurmJob:
    """A job that is in SLURM's queue."""

    state: str
    """SLURM's word: PENDING, RUNNING, COMPLETING or another."""
    node: str
    """Where it runs; empty while it waits."""
    reason: str
    """Why a pending job has not started: Resources, JobHeldUser or another of squeue's words."""
    script: str
    """The file that was given to sbatch."""


@dataclass(frozen=True)
class SlurmEnd:
    """How a job ended, in SLURM's words."""

    state: str
    """One of ENDS."""
    by: str = ""
    """Who cancelled it, where SLURM says so."""
    exit_code: int = 0
    signal: int = 0
    """The signal that killed it, or 0."""
    node: str = ""
    time_limit: str = ""
    ended_utc: str | None = None


class SlurmClient:
    """Asks SLURM each question once, and remembers the answer."""

    def __init__(self) -> None:
        self._queues: dict[str | None, dict[str, SlurmJob] | str] = {}
        self._ends: dict[str, SlurmEnd | None] = {}
        self._asked: set[str] = set()
        self._arrays: dict[str, dict[str, SlurmEnd | None] | None] = {}

    def queue(self, submission: Path, user: str | None = None) -> dict[str, SlurmJob] | str:
        """Returns a user's queued jobs that were submitted from a folder, or why none is known.

        Where SLURM began to count anew, another sweep's job may have the id of a job of ours.
        """
        if user not in self._queues:
            self._queues[user] = ask_queue(user)
        queue, folder = self._queues[user], submission.resolve()
        if isinstance(queue, str):
            return queue
        folders = {job.script: Path(job.script).parent.resolve() for job in queue.values()}
        return {name: job for name, job in queue.items() if folders[job.script] == folder}

    def ends(self, jobs: Collection[str]) -> dict[str, SlurmEnd | None]:
        """Returns what `job_ends` does, of these jobs and of those asked for before."""
        new = set(jobs) - self._asked
        self._ends |= job_ends(new)
        self._asked |= new
        return self._ends

    def is_dropped(self, job: str) -> bool:
        """Says whether SLURM has a record of an array, but not of this task, nor has it queued.

        So it is with a task that was cancelled alone before it began.
        """
        array = _array(job)
        if array not in self._arrays:
            self._arrays[array] = _remembered(array)
        return job != array and job not in (self._arrays[array] or {job: None})


def ask_queue(user: str | None = None) -> dict[str, SlurmJob] | str:
    """Returns a user's jobs in SLURM's queue by their ids, or in words why it does not answer.

    Without a *user* they are yours.
    """
    whose = user.removeprefix(NAMELESS) if user else os.geteuid()
    # Older versions do not know --me.
    answer = ask("squeue", f"--user={whose}", "--noheader", "--array", "--format=%i|%T|%N|%r|%o")
    if answer is None:
        return "no squeue on PATH"
    if answer.returncode:
        return words_of(answer)
    rows = [line.split("|", 4) for line in answer.stdout.splitlines() if line.count("|") >= 4]
    return {job: SlurmJob(*words) for job, *words in rows}


def words_of(answer: subprocess.CompletedProcess[str]) -> str:
    """Returns what a command of SLURM's had to say against a question, in a line.

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
    """Returns how jobs that left the queue ended; None where SLURM has forgotten it.

    sacct is asked first, and of what it does not know slurmctld, which remembers jobs for some
    minutes. Where neither says anything of a job, it is not in the answer.
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
            continue  # slurmctld does not answer
        if remembered.get(job):
            ends[job] = remembered[job]
        elif accounted is not None and job not in {**known, **remembered}:
            ends[job] = None
    return ends


def cancel_jobs(jobs: Collection[str]) -> str:
    """Ends jobs, at work or in the queue; returns why SLURM does not, or nothing."""
    answer = ask("scancel", *sorted(jobs))
    if answer is None:
        return "no scancel on PATH"
    return (words_of(answer) or "it does not answer") if answer.returncode else ""


def _accounted(jobs: Collection[str]) -> dict[str, SlurmEnd | None] | None:
    """Returns what accounting has of the jobs, None of a job that it takes to be running.

    It is empty where the cluster keeps no accounting, and None where that does not answer.
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
    """Returns what sacct answers of jobs; None where there is no sacct."""
    return ask(
        "sacct",
        "--noheader",
        "--parsable2",
        "--format=JobID,State,ExitCode,NodeList,Timelimit,End",
        # Asked for a task of an array that never began, sacct does not find it: its row is that
        # of the whole array, 12_[0-3].
        f"--jobs={','.join(_arrays(jobs))}",
    )


def _with_step(end: SlurmEnd, step: str, state: str, exit_code: str) -> SlurmEnd | None:
    """Returns the end of a job with what a later row of accounting says of one of its steps.

    The job's own exit code is that of srun, which sacct cuts to seven bits: 137 becomes 9. Its
    derived exit code, the step's, is missing when the job's end was written before the step's.
    """
    if state == "RUNNING":
        return None  # not yet all is known
    if state == "OUT_OF_MEMORY":
        return replace(end, state=state)
    code, number = _code(exit_code)
    is_more = step.isdigit() and (code or number)
    return replace(end, exit_code=code, signal=number) if is_more else end


def _remembered(array: str) -> dict[str, SlurmEnd | None] | None:
    """Returns what slurmctld remembers of a job or array, as `_accounted` does."""
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
    """Returns a job's end from SLURM's words; None of a job that is not over."""
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
    """Returns exit code and signal; a shell tells the signal of what it ran as 128 and more.

    >>> _code("1:0"), _code("0:9"), _code("137:0"), _code("")
    ((1, 0), (0, 9), (0, 9), (0, 0))
    """
    code, _, number = text.partition(":")
    if not code.isdigit() or not number.isdigit():
        return 0, 0
    is_signal = 128 < int(code) < 128 + signal.NSIG
    return (0, int(code) - 128) if is_signal else (int(code), int(number))


def _tasks(name: str) -> list[str]:
    """Returns the ids of jobs that SLURM writes in one word.

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
    """Returns the id of the array that a job is a task of, or its own."""
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
    """Returns what a command of SLURM's answers, times in seconds since 1970.

    *script* is a job's script for its stdin; times are then written as SLURM does. None where
    there is no such command. A command that takes too long is given the exit code 124.
    """
    times = {"SLURM_TIME_FORMAT": "%s"} if script is None else {}
    try:
        return subprocess.run(
            command,
            input=script,
            stdin=subprocess.DEVNULL if script is None else None,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",  # a job's path may be no UTF-8
            timeout=timeout_s,
            env=slurm_environment() | times,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, TIMED_OUT, "", "")
    except OSError:
        return None


def read(*command: str) -> str:
    """Returns what a command of SLURM's prints; nothing where it does not work."""
    answer = ask(*command)
    return "" if answer is None or answer.returncode else answer.stdout


@cache
def settings() -> dict[str, str]:
    """Returns slurm.conf as the controller has it, asked once; empty where it does not say."""
    return dict(re.findall(r"(?m)^(\w+)\s*= (.*?)\s*$", read("scontrol", "show", "config")))


def read_pairs(line: str) -> dict[str, str]:
    """Returns the words of a line of scontrol's by name.

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
