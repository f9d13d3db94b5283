"""The environment for SLURM's commands, without the variables of another job."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

KEPT = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SBATCH_CLUSTERS", "SLURM_JWT"}
"""They name the cluster and the user, and say nothing about jobs."""
PREFIXES = ("SLURM_", "SBATCH_", "SRUN_", "SCANCEL_", "SQUEUE_", "SACCT_", "SINFO_")
GPUS = {"CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES"}


def slurm_environment() -> dict[str, str]:
    """Returns the environment for a SLURM command, without the variables of another job.

    SBATCH_PARTITION would override the job script, SLURM_MEM_PER_CPU would break srun in a job that
    asks for memory in another way, and SQUEUE_STATES would hide jobs. The variables of GPUs belong
    to the job that submits: SLURM gives a new job its own.
    """
    is_in_job = "SLURM_JOB_ID" in os.environ
    return {
        name: value
        for name, value in os.environ.items()
        if name in KEPT or not (name.startswith(PREFIXES) or (is_in_job and name in GPUS))
    }


@contextlib.contextmanager
def as_outside_jobs() -> Iterator[None]:
    """Sets `slurm_environment` for this process and its children during the block."""
    before = dict(os.environ)
    hidden = before.keys() - slurm_environment().keys()
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update({name: before[name] for name in hidden})


def ignored_variables() -> dict[str, str]:
    """Returns the variables that set options of sbatch, which skinjob ignores."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith("SBATCH_") and name not in KEPT
    }
