"""Runs become jobs: the one door to submitit."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import submitit
from submitit.core.utils import (
    DelayedSubmission,
    FailedJobError,
    FailedSubmissionError,
    JobPaths,
)
from submitit.slurm.slurm import _make_sbatch_string

from skinjob.config import ClusterConfig, sbatch_flags
from skinjob.files import absolute, replacing
from skinjob.queues.slurm.environment import as_outside_jobs
from skinjob.queues.slurm.limits import (
    WARNED_S,
    no_requeue,
    own_runs,
    require_another_start,
    seconds_left,
)
from skinjob.queues.slurm.refusals import refusal
from skinjob.submit.python import job_python
from skinjob.sweeps.layout import Run, Sweep
from skinjob.sweeps.records import Failure, Status, Stopped, utc_now

log = logging.getLogger("skinjob")

JOB_NAME = "skinjob"
START = "skinjob.submit.start"
OURS = 1000  # time-outs that submitit grants; how many there may be is decided in `Task`


class Task:
    """What a job executes. Its pickle holds the paths of its runs' folders, and a number or two."""

    def __init__(
        self,
        folders: Sequence[Path],
        *,
        gpu: str | None = None,
        requeue: bool = True,
        requeues: int,
    ) -> None:
        """*gpu* is what CUDA_VISIBLE_DEVICES is to be; SLURM has set it already.

        *requeue* is whether the job may be queued again at all, *requeues* how often it still may
        at its time limit.
        """
        self.folders = [absolute(folder) for folder in folders]
        self.gpu = gpu
        self.requeue = requeue
        self.requeues = requeues
        self.ended_by: Failure | None = None

    def __call__(self) -> None:
        if self.gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpu
        if os.environ.get("SUBMITIT_EXECUTOR") == "local":
            # On SLURM it is passed over, as submitit has it: a job that SLURM preempts with a
            # grace time is requeued at its end, and ended for good if it leaves before.
            signal.signal(signal.SIGTERM, _leave)
        try:
            from skinjob.train.job import run_job  # only here: the login node has no torch
        except Exception as error:  # whatever a broken installation raises
            for run in [run for run in map(Run, self.folders) if not run.state().status.is_final]:
                run.update_state(
                    status=Status.FAILED,
                    failure=Failure.EXCEPTION,
                    reason=f"{sys.executable} cannot load torch: {type(error).__name__}: {error}",
                    fix=run.sweep.retry_command("--python", "/path/to/venv/bin/python"),
                    finished_utc=utc_now(),
                )
            raise
        try:
            run_job(self.folders, submitit.JobEnvironment().job_id, lambda: self.ended_by)
        except Stopped:  # told by the runs' states
            raise SystemExit(1) from None

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Returns the same task, which goes on from the runs' folders.

        submitit calls it from a signal's handler, when SLURM preempts the job or is about to end
        it at its time limit, and queues what it returns in place of the job.

        Raises: Stopped when the job must not be queued again.
        """
        runs = own_runs([Run(folder) for folder in self.folders])
        is_time_limit = bool(runs) and seconds_left(runs[0]) < WARNED_S
        self.ended_by = Failure.TIME_LIMIT if is_time_limit else Failure.PREEMPTED
        if not self.requeue:
            raise no_requeue(runs, self.ended_by)
        if is_time_limit:
            require_another_start(runs, self.requeues)
        log.warning("%s: leaves, to be queued again", self.ended_by)
        return submitit.helpers.DelayedSubmission(
            Task(self.folders, gpu=self.gpu, requeues=self.requeues - is_time_limit)
        )


def _leave(signum: int, frame: FrameType | None) -> NoReturn:
    """Ends the job: its runs go on after their last finished epoch, whoever starts them next."""
    log.warning("told to end: %s", signal.Signals(signum).name)
    raise SystemExit(128 + signum)


class SlurmExecutor(submitit.SlurmExecutor):
    """submitit's executor, whose jobs begin with a command of ours."""

    start: str

    @property
    def _submitit_command_str(self) -> str:
        return self.start


class LocalExecutor(submitit.LocalExecutor):
    """submitit's executor for this machine, whose jobs begin with a command of ours."""

    start: str

    @property
    def _submitit_command_str(self) -> str:
        return self.start


def queue(sweep: Sweep, jobs: Sequence[Sequence[str]], cluster: ClusterConfig) -> dict[str, str]:
    """Queues jobs, each given as names of runs, as one SLURM array; returns job ids by run name.

    Raises: NoAnswerError when SLURM does not say whether it took them, and another ClusterError
    with sbatch's own words when it refuses.
    """
    executor = SlurmExecutor(absolute(sweep.submission_folder), max_num_timeout=OURS)
    executor.start = start_command(sweep, cluster)
    executor.update_parameters(**_parameters(cluster))
    # submitit prints what it also raises.
    with as_outside_jobs(), contextlib.redirect_stderr(io.StringIO()):
        try:
            queued = executor.submit_array([_task(sweep, names, cluster) for names in jobs])
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            raise refusal(str(error), cluster) from None
    return {name: job.job_id for names, job in zip(jobs, queued, strict=True) for name in names}


def adopt(sweep: Sweep, jobs: Mapping[str, str], cluster: ClusterConfig) -> None:
    """Gives queued jobs the pickles that they wait for when they start; *jobs* is run -> job id.

    submitit does the same after sbatch has answered; here the answer was lost.
    """
    by_job: dict[str, list[str]] = {}
    for name, job in jobs.items():
        by_job.setdefault(job, []).append(name)
    for job, names in by_job.items():
        pickle = JobPaths(absolute(sweep.submission_folder), job_id=job).submitted_pickle
        if not pickle.exists():
            delayed = DelayedSubmission(_task(sweep, names, cluster))
            delayed.set_timeout(cluster.time_min, OURS)
            with replacing(pickle) as partial:
                delayed.dump(partial)


def sbatch_script(sweep: Sweep, num_jobs: int, cluster: ClusterConfig) -> str:
    """Returns the script that `queue` would hand to sbatch, to the letter.

    submitit has no public way to it; a test holds this text to the script of a real submission.
    """
    folder = absolute(sweep.submission_folder)
    command = start_command(sweep, cluster)
    count = num_jobs if num_jobs > 1 else None  # submitit makes no array of one
    return _make_sbatch_string(
        command=command, folder=folder, map_count=count, **_parameters(cluster)
    )


def probe_script(script: Path, cluster: ClusterConfig, *, time_min: int) -> str:
    """Returns the sbatch script of one short job that has Python run *script*.

    Set-up lines, Python and what is asked of the cluster are those of a run's job; it logs to the
    script's folder. It is named after that folder, and so found again whatever sbatch said.
    """
    short = replace(cluster, time_min=time_min, requeue=False)
    return _make_sbatch_string(
        command=f"{job_python(cluster)} -u {shlex.quote(str(script))}",
        folder=script.parent,
        **_parameters(short) | {"job_name": script.parent.name},
    )


def start_local(
    sweep: Sweep, runs: Sequence[str], cluster: ClusterConfig, gpu: str | None
) -> submitit.Job[None]:
    """Starts a job on this machine, on the given GPU, and returns it at once."""
    executor = LocalExecutor(absolute(sweep.submission_folder), max_num_timeout=OURS)
    executor.start = start_command(sweep, cluster)
    executor.update_parameters(
        timeout_min=cluster.time_min,
        setup=list(cluster.setup),
        stderr_to_stdout=True,
    )
    return executor.submit(_task(sweep, runs, cluster, gpu))


def _task(
    sweep: Sweep, names: Sequence[str], cluster: ClusterConfig, gpu: str | None = None
) -> Task:
    return Task(
        [sweep.folder / name for name in names],
        gpu=gpu,
        requeue=cluster.requeue,
        requeues=cluster.requeues,
    )


def start_command(sweep: Sweep, cluster: ClusterConfig) -> str:
    """Returns the shell words by which a job starts: `skinjob.submit.start`, run by its Python."""
    trust = "".join(f"--trust {shlex.quote(name)} " for name in cluster.trust)
    folder = shlex.quote(str(absolute(sweep.submission_folder)))
    return f"{job_python(cluster)} -u -m {START} {trust}{folder}"


def _parameters(cluster: ClusterConfig) -> dict[str, Any]:
    """Returns what submitit makes the lines of the script of; of None it makes none."""
    return {
        "job_name": JOB_NAME,
        "time": cluster.time_min,
        "wckey": None,  # submitit's own default is refused where wckeys are enforced
        "setup": list(cluster.setup) or None,
        "array_parallelism": cluster.array_parallelism,
        "stderr_to_stdout": True,
        # SLURM 22.05 to 23.02: srun does not take over the batch script's own --cpus-per-task.
        "srun_args": [f"--cpus-per-task={cluster.cpus}"],
        "additional_parameters": _additional(cluster),
    }


def _memory(cluster: ClusterConfig) -> dict[str, Any]:
    """Returns the memory of a job in the terms of the flag that the site takes."""
    megabytes = cluster.mem_gb * 1024
    if cluster.mem_flag == "mem-per-cpu":
        return {"mem-per-cpu": f"{math.ceil(megabytes / cluster.cpus)}M"}
    if cluster.mem_flag == "mem-per-gpu" and cluster.gpus:
        return {"mem-per-gpu": f"{round(megabytes)}M"}
    return {"mem": f"{round(megabytes)}M"}  # without a GPU there is none to count by


def _additional(cluster: ClusterConfig) -> dict[str, Any]:
    """Returns the flags of sbatch that a cluster's fields mean."""
    flags = sbatch_flags(cluster) | _memory(cluster)
    # A site may have requeueing off by default, or on; a run goes on from its folder.
    flags["requeue" if cluster.requeue else "no-requeue"] = True
    if cluster.mail:
        flags["mail-type"] = cluster.mail_type
    if cluster.gpus and cluster.gpu_flag != "none":
        words = ["gpu"] if cluster.gpu_flag == "gres" else []
        words += [cluster.gpu_type] if cluster.gpu_type else []
        flags[cluster.gpu_flag] = ":".join([*words, str(cluster.gpus)])
    if (here := absolute(Path())) != Path.cwd():
        flags["chdir"] = str(here)  # sbatch would name the place that a link leads to here
    for flag in cluster.sbatch:
        name, is_set, value = flag.removeprefix("--").partition("=")
        flags[name] = value if is_set else True
    return flags
