"""Makes the job script and gives it to sbatch, with submitit."""

from __future__ import annotations

import contextlib
import io
import math
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import _make_sbatch_string

from skinjob.config import ClusterConfig, sbatch_flags
from skinjob.files import absolute
from skinjob.queues.job import UNLIMITED_TIMEOUTS, job_python, make_task, start_command
from skinjob.queues.slurm.environment import as_outside_jobs
from skinjob.queues.slurm.refusals import refusal
from skinjob.sweeps.layout import Sweep

JOB_NAME = "skinjob"


class _Executor(submitit.SlurmExecutor):
    """submitit's executor with another start command."""

    start: str

    @property
    def _submitit_command_str(self) -> str:
        return self.start


def queue(sweep: Sweep, jobs: Sequence[Sequence[str]], cluster: ClusterConfig) -> dict[str, str]:
    """Queues jobs, each a list of run names, as a SLURM array; returns job ids by run name.

    Raises: NoAnswerError if SLURM does not confirm the jobs, RefusedError with sbatch's own words.
    """
    executor = _Executor(absolute(sweep.submission_folder), max_num_timeout=UNLIMITED_TIMEOUTS)
    executor.start = start_command(sweep, cluster)
    executor.update_parameters(**_parameters(cluster))
    # submitit also prints its errors.
    with as_outside_jobs(), contextlib.redirect_stderr(io.StringIO()):
        try:
            queued = executor.submit_array([make_task(sweep, names, cluster) for names in jobs])
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            raise refusal(str(error), cluster) from None
    return {name: job.job_id for names, job in zip(jobs, queued, strict=True) for name in names}


def sbatch_script(sweep: Sweep, num_jobs: int, cluster: ClusterConfig) -> str:
    """Returns the exact script that `queue` gives to sbatch.

    submitit has no public function for it; a test compares the text with a real submission.
    """
    folder = absolute(sweep.submission_folder)
    command = start_command(sweep, cluster)
    count = num_jobs if num_jobs > 1 else None  # submitit makes no array of a single job
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


def _parameters(cluster: ClusterConfig) -> dict[str, Any]:
    """Returns the parameters of submitit's script; it ignores None."""
    return {
        "job_name": JOB_NAME,
        "time": cluster.time_min,
        "wckey": None,  # a cluster that enforces wckeys refuses submitit's default
        "setup": list(cluster.setup) or None,
        "array_parallelism": cluster.array_parallelism,
        "stderr_to_stdout": True,
        # SLURM 22.05 to 23.02: srun does not inherit --cpus-per-task from the job script.
        "srun_args": [f"--cpus-per-task={cluster.cpus}"],
        "additional_parameters": _additional(cluster),
    }


def _memory(cluster: ClusterConfig) -> dict[str, Any]:
    """Returns the memory of a job for the site's memory flag."""
    megabytes = cluster.mem_gb * 1024
    if cluster.mem_flag == "mem-per-cpu":
        return {"mem-per-cpu": f"{math.ceil(megabytes / cluster.cpus)}M"}
    if cluster.mem_flag == "mem-per-gpu" and cluster.gpus:
        return {"mem-per-gpu": f"{round(megabytes)}M"}
    return {"mem": f"{round(megabytes)}M"}  # also for mem-per-gpu without a GPU


def _additional(cluster: ClusterConfig) -> dict[str, Any]:
    """Returns sbatch's flags for a cluster's fields."""
    flags = sbatch_flags(cluster) | _memory(cluster)
    # The site's default may be on or off. A run continues from its folder.
    flags["requeue" if cluster.requeue else "no-requeue"] = True
    if cluster.mail:
        flags["mail-type"] = cluster.mail_type
    if cluster.gpus and cluster.gpu_flag != "none":
        words = ["gpu"] if cluster.gpu_flag == "gres" else []
        words += [cluster.gpu_type] if cluster.gpu_type else []
        flags[cluster.gpu_flag] = ":".join([*words, str(cluster.gpus)])
    if (folder := absolute(Path())) != Path.cwd():
        flags["chdir"] = str(folder)  # sbatch would resolve links
    for flag in cluster.sbatch:
        name, is_set, value = flag.removeprefix("--").partition("=")
        flags[name] = value if is_set else True
    return flags
