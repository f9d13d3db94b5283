"""What the environment says of jobs and of SLURM, and what of it a command of SLURM may see."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

KEPT = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SBATCH_CLUSTERS", "SLURM_JWT"}
"""They say which cluster is meant and who asks, and nothing of a job."""
PREFIXES = ("SLURM_", "SBATCH_", "SRUN_", "SCANCEL_", "SQUEUE_", "SACCT_", "SINFO_")
GPUS = {"CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES"}


def slurm_environment() -> dict[str, str]:
    """Returns the environment for a command of SLURM, without what another job left in it.

    SBATCH_PARTITION wins over the script's own lines, SLURM_MEM_PER_CPU breaks the srun of a job
    that asks for memory in another way, SQUEUE_STATES hides jobs. GPUs are those of the job that
    submits; a job gets its own from SLURM.
    """
    is_in_job = "SLURM_JOB_ID" in os.environ
    return {
        name: value
        for name, value in os.environ.items()
        if name in KEPT or not (name.startswith(PREFIXES) or (is_in_job and name in GPUS))
    }


@contextlib.contextmanager
def as_outside_jobs() -> Iterator[None]:
    """Has this process and its children see `slurm_environment` alone, for as long as it holds."""
    before = dict(os.environ)
    hidden = before.keys() - slurm_environment().keys()
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update({name: before[name] for name in hidden})


def unheeded() -> dict[str, str]:
    """Returns the variables that would be options of sbatch, and are not heeded."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith("SBATCH_") and name not in KEPT
    }
