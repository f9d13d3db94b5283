"""Jobs that SLURM took and whose ids were not recorded: submit was killed, or got no answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from skinjob.runs import Sweep
from skinjob.slurm.answers import QueuedJob


def unrecorded_jobs(sweep: Sweep, queue: Mapping[str, QueuedJob]) -> dict[str, str]:
    """Returns run name -> job id of the jobs in SLURM's queue that sweep.json does not have yet.

    The sweep's pending.json names the runs of each job. The jobs are known by their script: until
    its id is recorded, a script has the hidden name under which sbatch was given it.
    """
    try:
        groups = json.loads(sweep.pending_file.read_text(encoding="utf-8"))["jobs"]
    except (OSError, ValueError, LookupError, TypeError):  # nothing is pending
        return {}
    scripts = {script.name for script in pending_scripts(sweep)}
    found: dict[str, str] = {}
    for job, queued in queue.items():
        task = int(job.partition("_")[2] or 0)
        if Path(queued.script).name in scripts and task < len(groups):
            found |= dict.fromkeys(groups[task], job)
    return found


def pending_scripts(sweep: Sweep) -> list[Path]:
    """Returns the scripts that sbatch was given and of which no job is recorded.

    submitit renames a script to its job's id, and leaves a link of the hidden name.
    """
    scripts = sweep.submission_folder.glob(".submission_file_*.sh")
    return [script for script in scripts if not script.is_symlink()]
