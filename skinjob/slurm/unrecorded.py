"""Jobs that SLURM took and whose ids were not recorded: submit was killed, or got no answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from skinjob.files import write_json
from skinjob.runs import Sweep
from skinjob.slurm.answers import QueuedJob

FORMAT = 1


def write_pending(sweep: Sweep, jobs: Sequence[Sequence[str]]) -> None:
    """Writes down which runs each job is to have, before sbatch is asked to take the jobs."""
    scripts = sorted(script.name for script in _scripts(sweep))
    pending = {"format": FORMAT, "jobs": jobs, "scripts_before": scripts}
    write_json(sweep.pending_file, pending)


def unrecorded_jobs(sweep: Sweep, queue: Mapping[str, QueuedJob]) -> dict[str, str]:
    """Returns run name -> job id of the jobs in SLURM's queue that sweep.json does not have yet.

    They are known by their script, which was not there before sbatch was asked to take them.
    """
    try:
        pending = json.loads(sweep.pending_file.read_text(encoding="utf-8"))
        groups, before = pending["jobs"], set(pending["scripts_before"])
    except (OSError, ValueError, LookupError, TypeError):  # nothing is pending
        return {}
    scripts = {script.name for script in _scripts(sweep)} - before
    found: dict[str, str] = {}
    for job, queued in queue.items():
        task = int(job.partition("_")[2] or 0)
        if Path(queued.script).name in scripts and task < len(groups):
            found |= dict.fromkeys(groups[task], job)
    return found


def _scripts(sweep: Sweep) -> list[Path]:
    """Returns the scripts that sbatch was given, by the hidden names that it knows them by."""
    return list(sweep.submission_folder.glob(".submission_file_*.sh"))
