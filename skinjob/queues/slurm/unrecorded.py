"""Jobs without recorded ids, because a submit was killed or got no answer."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from skinjob.files import write_json
from skinjob.queues.slurm.client import SlurmJob
from skinjob.sweeps.layout import Sweep

FORMAT = 1
SBATCH_S = 300  # sbatch tries for minutes if SLURM is busy


def write_pending(sweep: Sweep, jobs: Sequence[Sequence[str]]) -> None:
    """Records the runs of each job, before sbatch queues the jobs."""
    scripts = sorted(script.name for script in _scripts(sweep))
    pending = {
        "format": FORMAT,
        "jobs": jobs,
        "scripts_before": scripts,
        "host": socket.gethostname(),
    }
    write_json(sweep.pending_file, pending)


def unrecorded_jobs(sweep: Sweep, queue: Mapping[str, SlurmJob]) -> dict[str, str]:
    """Returns job ids by run name of jobs that are in SLURM's queue but not in sweep.json.

    Their script is newer than the record of the pending submit.
    """
    try:
        pending = json.loads(sweep.pending_file.read_text(encoding="utf-8"))
        groups, before = pending["jobs"], set(pending["scripts_before"])
    except (OSError, ValueError, LookupError, TypeError):  # nothing is pending
        return {}
    scripts = {script.name for script in _scripts(sweep)} - before
    jobs: dict[str, str] = {}
    for job, queued in queue.items():
        task = int(job.partition("_")[2] or 0)
        if Path(queued.script).name in scripts and task < len(groups):
            jobs |= dict.fromkeys(groups[task], job)
    return jobs


def sbatch_may_run(sweep: Sweep) -> bool:
    """Says whether the sbatch of a submit that was killed may still run.

    On this host, /proc shows its script. On another host, it may run for SBATCH_S.
    """
    try:
        pending = json.loads(sweep.pending_file.read_text(encoding="utf-8"))
        age_s = time.time() - sweep.pending_file.stat().st_mtime
    except (OSError, ValueError):
        return False
    if pending.get("host") != socket.gethostname():
        return age_s < SBATCH_S
    script = os.fsencode(sweep.submission_folder.resolve() / ".submission_file_")
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = command.read_bytes().split(b"\0")
            if any(os.fsencode(os.path.realpath(word)).startswith(script) for word in words[1:]):
                return True
    return False


def _scripts(sweep: Sweep) -> list[Path]:
    """Returns the job scripts of all submits; submitit hides them."""
    return list(sweep.submission_folder.glob(".submission_file_*.sh"))
