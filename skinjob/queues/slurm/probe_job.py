"""A single short job of the doctor: queue it, follow it, cancel it."""

from __future__ import annotations

import os

from skinjob.config import ClusterConfig
from skinjob.errors import ClusterError
from skinjob.queues.slurm.client import SlurmEnd, ask, ask_queue, job_ends
from skinjob.queues.slurm.reasons import family, why_pending
from skinjob.queues.slurm.refusals import refusal

SHOW_SCRIPT = "skinjob submit --dry-run   # with the same options: shows the script of the jobs"


class SilentJobError(ClusterError):
    """A job of a probe that never starts, or that ended without a result."""


def queue_script(script: str, cluster: ClusterConfig) -> str:
    """Queues a script and returns the job's id. Raises: ClusterError when sbatch refuses it."""
    answer = ask("sbatch", "--parsable", script=script, timeout_s=None)
    if answer is None:
        raise ClusterError("there is no sbatch on PATH", "module load slurm")
    if answer.returncode:
        raise refusal(answer.stderr, cluster)
    return answer.stdout.strip().split(";")[0]  # with several clusters, the cluster's name follows


def cancel_named(name: str) -> None:
    """Cancels your jobs of this name: sbatch may have queued a job without printing its id."""
    ask("scancel", f"--user={os.geteuid()}", f"--name={name}")


def job_progress(job: str) -> tuple[str, bool]:
    """Returns a job's state in words, and whether it is still in the queue, as far as is known.

    Raises: SilentJobError for a job that will not start by itself.
    """
    queue = ask_queue()
    if isinstance(queue, str):
        return f"SLURM does not answer at the moment{f' ({queue})' if queue else ''}", True
    if job not in queue:
        return "has left the queue", False
    if queue[job].state != "PENDING":
        return "running", True
    why, reason = why_pending(queue[job].reason), family(queue[job].reason)
    if reason and reason.fix:
        raise SilentJobError(f"job {job} does not start by itself: {why}", SHOW_SCRIPT)
    return f"waiting, {why}", True


def on_node(node: str, command: str) -> str:
    """Returns a command line that runs a command on a node, with a GPU."""
    return f"srun --gpus=1 --nodelist={node} {command}"


def job_end(job: str) -> SlurmEnd | None:
    """Returns how a job ended, if SLURM says so."""
    return job_ends({job}).get(job)
