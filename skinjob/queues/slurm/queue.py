"""The queue of SLURM."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from skinjob.config import ClusterConfig, TrainConfig, slurm_requests
from skinjob.errors import ClusterError, ConfigError
from skinjob.files import absolute, tail
from skinjob.queues.base import (
    JobEnd,
    NoAnswerError,
    Queue,
    QueuedJob,
    RefusedError,
    SilentError,
    group_runs,
    job_output,
    record_jobs,
    recorded_cluster,
    runs_by_job,
)
from skinjob.queues.slurm.client import (
    SlurmClient,
    SlurmEnd,
    SlurmJob,
    cancel_jobs,
    parse_time,
    read,
)
from skinjob.queues.slurm.environment import ignored_variables
from skinjob.queues.slurm.joblimits import WAIT, fewer, job_limits, number_words
from skinjob.queues.slurm.reasons import HELD, describe_state, family, why_pending
from skinjob.queues.slurm.refusals import TooManyJobsError
from skinjob.queues.slurm.unrecorded import sbatch_may_run, unrecorded_jobs, write_pending
from skinjob.sweeps.layout import Sweep
from skinjob.sweeps.records import Failure, Status
from skinjob.words import list_first

LATE_S = (1, 2, 4)  # pauses: a busy SLURM shows a new job late
AGAIN = "squeue --user=$USER; skinjob submit   # safe to repeat: no job is queued twice"
UNHEARD = r"[Cc]ontact|[Cc]onnect|[Cc]ommunicat|timed out|Zero Bytes|no answer in|no squeue|^$"
"""Errors of SLURM's commands if its controller did not get the question."""
OUTPUT_BYTES = 1 << 20  # at the end of a job's output, in which SLURM's messages are looked for
IN_OUTPUT = (
    (r"oom[-_]kill event|[Ee]xceeded (job )?memory limit", "OUT_OF_MEMORY"),
    (r"CANCELLED AT \S+ DUE TO TIME LIMIT", "TIMEOUT"),
    (r"CANCELLED AT \S+ DUE TO PREEMPTION", "PREEMPTED"),
    (r"CANCELLED AT \S+ DUE TO NODE FAILURE", "NODE_FAIL"),
    (r"CANCELLED AT \S+ \*\*\*", "CANCELLED"),
)
"""SLURM's messages in a job's output, and the job states that they mean."""
ENDINGS: dict[str, tuple[Failure | Status, str, str | None]] = {
    "TIMEOUT": (Failure.TIME_LIMIT, "reached its time limit of {limit}", "time_min"),
    "OUT_OF_MEMORY": (
        Failure.OUT_OF_MEMORY,
        "needed more than its {mem_gb:g} GB of memory",
        "mem_gb",
    ),
    "CANCELLED": (Status.CANCELLED, "was cancelled{by}", None),
    "REVOKED": (Status.CANCELLED, "was revoked, because another cluster took it", None),
    "DEADLINE": (Failure.TIME_LIMIT, "reached its deadline", "time_min"),
    "PREEMPTED": (Failure.PREEMPTED, "had to make room for another job", None),
    "NODE_FAIL": (Failure.NODE_FAILURE, "lost its node", None),
    "BOOT_FAIL": (Failure.NODE_FAILURE, "got a node that did not boot", None),
}
"""The meaning of SLURM's final states, and the field of ClusterConfig that was too small.

FAILED and COMPLETED are missing: they say no more than the exit code.
"""


class SlurmQueue(Queue):
    name = "slurm"
    title = "SLURM"
    noise = (
        r"srun: (error: \S+: tasks? .*: |Terminating|Job step aborted|Force Terminated)"
        r"|srun: launch/slurm|slurmstepd\S*: error: \*\*\* |scancel: Terminating|" + Queue.noise
    )

    def __init__(self) -> None:
        self.client = SlurmClient()

    @property
    def problem(self) -> tuple[str, str]:
        if shutil.which("sbatch"):
            return "", ""
        fix = "module load slurm   # or log in to the login node; --cluster local trains here"
        return "there is no sbatch on PATH", fix

    def own_options(self, cluster: ClusterConfig) -> list[str]:
        return slurm_requests(cluster)

    def require_folder(self, folder: Path) -> None:
        path = str(absolute(folder))  # it goes into an #SBATCH --output line
        if not path.isprintable():
            reason = "a control character such as a line break would end the #SBATCH line"
        elif "%" in path or "\\" in path:
            reason = "SLURM replaces % and removes \\ in the path of a job's output"
        else:
            return
        raise ConfigError(f"sweep folder {path}: {reason}", "skinjob submit --runs /another/folder")

    def notes(self) -> list[str]:
        names = ", ".join(ignored_variables())
        return [f"skinjob ignores {names}: use its own options instead"] if names else []

    def jobs_at_once(self, cluster: ClusterConfig) -> int:
        return cluster.array_parallelism

    def script(
        self, sweep: Sweep, configs: Mapping[str, TrainConfig], cluster: ClusterConfig
    ) -> str:
        from skinjob.queues.slurm.script import sbatch_script  # submitit takes long to load

        return sbatch_script(sweep, len(group_runs(configs)), cluster)

    def submit(
        self,
        sweep: Sweep,
        configs: Mapping[str, TrainConfig],
        cluster: ClusterConfig,
        *,
        is_new: bool,
    ) -> dict[str, str]:
        from skinjob.queues.slurm.script import queue

        groups = group_runs(configs)
        with _ignoring_ctrl_c():
            write_pending(sweep, groups)
            try:
                jobs = queue(sweep, groups, cluster)
            except ClusterError as error:
                pauses_s = LATE_S if isinstance(error, NoAnswerError) else ()
                jobs = _queued_after_all(sweep, cluster, pauses_s)
                if not jobs and isinstance(error, TooManyJobsError):
                    raise _too_many(sweep, configs, cluster, error, is_new=is_new) from None
                if not jobs:
                    raise
            _record(sweep, jobs)
        return jobs

    def recover_submit(self, sweep: Sweep) -> list[str]:
        if not sweep.pending_file.exists():
            return []
        if isinstance(SlurmClient().queue(sweep.submission_folder), str):
            raise NoAnswerError(
                f"SLURM does not say whether it has the jobs of {sweep.folder} already", AGAIN
            )
        jobs = _queued_after_all(sweep, recorded_cluster(sweep), LATE_S)
        if not jobs and sbatch_may_run(sweep):
            raise NoAnswerError(f"an earlier submit of {sweep.folder} still waits for SLURM", AGAIN)
        _record(sweep, jobs)
        return list(jobs)

    def jobs(self, sweep: Sweep) -> dict[str, QueuedJob]:
        queue = self.client.queue(sweep.submission_folder, sweep.owner)
        if isinstance(queue, str):
            raise SilentError(queue, is_refusal=not re.search(UNHEARD, queue))
        jobs = sweep.info().jobs | unrecorded_jobs(sweep, queue)
        return {
            name: queued
            for job, names in runs_by_job(jobs).items()
            if job in queue
            for queued in [_queued_job(sweep, job, queue[job], names)]
            for name in names
        }

    def job_ends(self, sweep: Sweep, jobs: Collection[str]) -> dict[str, JobEnd | None]:
        answers = self.client.known_ends(jobs)
        ends: dict[str, JobEnd | None] = {}
        for job in jobs:
            output = job_output(sweep, job)
            may_have_started = sweep.owner or output.exists()  # another user's output is hidden
            if not answers.get(job) and not may_have_started and self.client.is_dropped(job):
                ends[job] = JobEnd(Status.CANCELLED, "was cancelled")
            elif job in answers:
                ends[job] = _job_end(sweep, answers[job], output)
        return ends

    def ask_about(self, job: str) -> str:
        return f"sacct -j {job}"

    def cancel(self, sweep: Sweep, jobs: Collection[str]) -> list[str]:
        queue = self.client.queue(sweep.submission_folder) if jobs else {}
        if isinstance(queue, str):
            queued, refusal = sorted(jobs), f"it does not answer: {queue}".rstrip(": ")
        else:
            queued = [
                job for job in sorted(jobs) if job in queue and queue[job].state != "COMPLETING"
            ]
            refusal = cancel_jobs(queued) if queued else ""
        if refusal:
            raise ClusterError(
                f"SLURM has not ended job {list_first(queued)} ({refusal})", "scontrol ping"
            )
        return queued

    def seconds_left(self) -> float | None:
        job = os.environ.get("SLURM_JOB_ID")
        if job is None:
            return None
        # The last task of an array has the array's own id, for which squeue lists all tasks.
        array, task = (os.environ.get(f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK"))
        job = f"{array}_{task}" if array and task else job
        return parse_time(read("squeue", "--noheader", "--jobs", job, "--format=%L").strip())

    def is_restart(self) -> bool:
        return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"

    def num_cpus(self) -> int | None:
        return int(os.environ.get("SLURM_CPUS_PER_TASK", "0")) or None


QUEUE = SlurmQueue


def _queued_job(sweep: Sweep, job: str, queued: SlurmJob, names: Sequence[str]) -> QueuedJob:
    """Returns a queued job of SLURM; *names* are its runs."""
    if queued.state == "RUNNING":
        return QueuedJob(job, is_waiting=False, node=queued.node)
    if queued.state not in ("PENDING", *HELD):
        return QueuedJob(job, is_waiting=False, note=describe_state(queued.state))
    reason = queued.state if queued.state in HELD else queued.reason
    kind = family(reason)
    if kind is None or kind.fix is None:
        return QueuedJob(job, is_waiting=True, note=why_pending(reason))
    again = sweep.retry_command(*names)  # retry needs the names of cancelled runs
    cancel = sweep.command("cancel", *names)
    fix = kind.fix.format(job=job, again=again, cancel=cancel)
    return QueuedJob(job, is_waiting=True, note=f"{kind.words} ({reason})", fix=fix)


def _job_end(sweep: Sweep, end: SlurmEnd | None, output: Path) -> JobEnd | None:
    """Returns how a job ended; if SLURM has forgotten it, the job's *output* may show it.

    If slurmd itself limits memory, SLURM says FAILED and only the output says why.
    """
    state = end.state if end else None
    if state in (None, "FAILED"):
        states = _states_in("\n".join(tail(output, 10_000, OUTPUT_BYTES)))
        state = next((word for word in states if end is None or word == "OUT_OF_MEMORY"), state)
    if state is None:
        return None
    end = end or SlurmEnd(state)
    kind, words, lacked = ENDINGS.get(state, (None, "", None))
    info = sweep.info()
    words = words.format(
        limit=end.time_limit or f"{info.asked('time_min')} minutes",
        mem_gb=info.asked("mem_gb"),
        by=f" by {end.by}" if end.by else "",
    )
    return JobEnd(kind, words, lacked, end.exit_code, end.signal, end.node, end.ended_utc)


def _states_in(output: str) -> list[str]:
    """Returns the states that SLURM wrote to a job's output, the last first.

    The message may stand far above the end: a job that must end logs many epochs after it.
    A requeued job keeps the messages of its earlier starts.

    >>> _states_in("x CANCELLED AT 1 DUE TO PREEMPTION ***" + "y" * 99 + "x CANCELLED AT 2 ***")
    ['CANCELLED', 'PREEMPTED']
    """
    states = [(m.start(), state) for text, state in IN_OUTPUT for m in re.finditer(text, output)]
    return [state for _, state in sorted(states, reverse=True)]


def _record(sweep: Sweep, jobs: Mapping[str, str]) -> None:
    """Records the jobs that SLURM took."""
    record_jobs(sweep, jobs)
    sweep.pending_file.unlink()


def _queued_after_all(
    sweep: Sweep, cluster: ClusterConfig, pauses_s: Sequence[float]
) -> dict[str, str]:
    """Returns jobs that SLURM took without saying so, and writes their pickles.

    It asks SLURM once, and again after each of the pauses.
    """
    from skinjob.queues.job import make_task, write_task

    for pause_s in (0, *pauses_s):
        time.sleep(pause_s)
        queue = SlurmClient().queue(sweep.submission_folder)
        if not isinstance(queue, str) and (jobs := unrecorded_jobs(sweep, queue)):
            for job, names in runs_by_job(jobs).items():
                write_task(sweep, job, make_task(sweep, names, cluster), cluster)
            return jobs
    return {}


def _too_many(
    sweep: Sweep,
    configs: Mapping[str, TrainConfig],
    cluster: ClusterConfig,
    error: TooManyJobsError,
    *,
    is_new: bool,
) -> RefusedError:
    """Returns the error for too many jobs."""
    words, most = number_words(configs, job_limits(cluster))
    if not most:
        fix = WAIT
    elif is_new:
        fix = fewer(configs, most, "skinjob submit", sweep.name)
    else:
        first = [name for job in group_runs(configs)[:most] for name in job]
        fix = f"{sweep.retry_command(*first)}   # later the others"
    return RefusedError(f"{words}: sbatch says {error.message}", fix, error.details)


@contextmanager
def _ignoring_ctrl_c() -> Iterator[None]:
    """Ignores Ctrl-C, in sbatch, too: sbatch ends by itself if SLURM does not answer."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
