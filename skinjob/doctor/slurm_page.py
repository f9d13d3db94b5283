"""The doctor's page about SLURM: does it answer, and does it take what the jobs ask for?"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

from skinjob.config import ClusterConfig, TrainConfig
from skinjob.doctor.finding import AGAIN, Finding, check, fail, failed, ok, skip, skipped, warn
from skinjob.errors import ClusterError
from skinjob.queues.base import group_runs
from skinjob.queues.slurm.client import (
    TIMED_OUT,
    ask,
    ask_accounting,
    ask_queue,
    read,
    settings,
    words_of,
)
from skinjob.queues.slurm.environment import slurm_environment
from skinjob.queues.slurm.joblimits import WAIT, JobLimit, fewer, job_limits, number_words
from skinjob.queues.slurm.refusals import TooManyJobsError, refusal
from skinjob.queues.slurm.script import sbatch_script
from skinjob.queues.slurm.site import Partition, Site, ask_site
from skinjob.sweeps.layout import Sweep
from skinjob.words import duration, list_first, pluralize

NO_ANSWER = "SLURM does not answer"
NEEDED = ("sbatch", "squeue", "scontrol", "scancel", "sinfo")
TIMEOUT_S = 60  # sbatch tries again for a while when the controller is busy
STARTS = re.compile(r"to start at ([\d:T-]+) using .* on nodes? (\S+)")


@dataclass(frozen=True)
class Jobs:
    """The jobs that submit would queue, and their cluster."""

    cluster: ClusterConfig
    sweep: Sweep
    configs: Mapping[str, TrainConfig]  # by the name of the run
    site: Site
    limits: Sequence[JobLimit]  # the tightest first

    @property
    def count(self) -> int:
        return len(group_runs(self.configs))

    @property
    def partitions(self) -> list[Partition]:
        """The partitions that the jobs ask for, or else the default partition."""
        names = (self.cluster.partition or "").split(",")
        has_names = self.cluster.partition is not None
        return [p for p in self.site.partitions if (p.name in names if has_names else p.is_default)]

    @property
    def usable(self) -> list[Partition]:
        return [partition for partition in self.partitions if partition.takes_jobs]

    @property
    def open_partitions(self) -> list[Partition]:
        """All partitions that take jobs; those with the requested GPU come first."""
        partitions = [partition for partition in self.site.partitions if partition.takes_jobs]
        return sorted(partitions, key=lambda partition: not self.has_gpu(partition))

    def has_gpu(self, partition: Partition) -> bool:
        kind = self.cluster.gpu_type
        return kind in dict(partition.gpus) if kind else partition.num_gpus > 0


def slurm_page(
    cluster: ClusterConfig, sweep: Sweep, configs: Mapping[str, TrainConfig]
) -> Iterator[Finding]:
    """Yields the findings about SLURM, and about the jobs of these runs, given by name."""
    commands = check("commands", _check_commands)
    yield commands
    has_commands = commands.verdict != "fail"
    controller = check(
        "controller",
        _check_controller if has_commands else lambda: skipped("commands are missing"),
    )
    yield controller
    answers = controller.verdict == "ok"
    yield check("queue", _check_queue if answers else lambda: skipped(NO_ANSWER))
    yield check("accounting", _check_accounting)
    if answers:
        yield from _check_jobs(cluster, sweep, configs)
    else:
        yield from skip(CHECKS, NO_ANSWER)
    yield check("environment", _check_environment)


def _check_jobs(
    cluster: ClusterConfig, sweep: Sweep, configs: Mapping[str, TrainConfig]
) -> Iterator[Finding]:
    """Yields the findings about what the jobs ask for."""
    try:
        jobs = Jobs(cluster, sweep, configs, ask_site(), job_limits(cluster))
    except ClusterError as error:
        yield replace(failed(error), name="sinfo")
        yield from skip(CHECKS, NO_ANSWER)
        return
    for name, look in CHECKS.items():
        if name in OF_PARTITION and not jobs.usable:
            yield from skip([name], "no such partition takes jobs")
        else:
            yield check(name, partial(look, jobs))


def _check_commands() -> Finding:
    """Checks that SLURM's commands are on PATH."""
    missing = [name for name in NEEDED if not shutil.which(name)]
    if missing:
        return fail(
            f"not on PATH: {', '.join(missing)}",
            "module load slurm   # or log in to the cluster's login node",
        )
    return ok(f"{read('sbatch', '--version').strip() or 'on PATH'}: {', '.join(NEEDED)}")


def _check_controller() -> Finding:
    """Checks that SLURM's controller, slurmctld, answers."""
    answer = ask("scontrol", "ping")
    if answer and not answer.returncode and " is UP" in answer.stdout:
        return ok("answers")
    words = words_of(answer) if answer else ""
    return fail(
        f"SLURM's controller does not answer: {words or 'no message'}",
        "scontrol ping   # wait until it prints UP, or tell the cluster's admins",
    )


def _check_queue() -> Finding:
    """Checks that squeue lists the user's jobs, as `skinjob status` needs it."""
    queue = ask_queue()
    if isinstance(queue, str):
        return fail(
            f"squeue does not list your jobs: {queue or 'no message'}",
            f"squeue --user={os.geteuid()} --array   # skinjob status needs it",
        )
    return ok(f"squeue answers: {pluralize(len(queue), 'job')} of yours")


def _check_accounting() -> Finding:
    """Checks that sacct says how jobs ended; `skinjob status` works without it."""
    instead = "status uses the run folders and scontrol instead"
    answer = ask_accounting(["1"])
    if answer is None:
        return warn(f"no sacct on PATH: {instead}")
    if answer.returncode:
        return warn(f"sacct does not work ({words_of(answer) or 'no answer'}): {instead}")
    return ok("sacct answers")


def _check_environment() -> Finding:
    """Lists variables of other jobs, or of the login shell, that new jobs must not see."""
    hidden = sorted(os.environ.keys() - slurm_environment().keys())
    if not hidden:
        return ok("no variable of another job is set")
    job = os.environ.get("SLURM_JOB_ID")
    inside = f"this shell is in job {job}; " if job else ""
    return ok(f"{inside}hidden from sbatch: {list_first(hidden)}")


def _check_partition(jobs: Jobs) -> Finding:
    """Checks that the partition exists and takes jobs."""
    asked = jobs.cluster.partition
    up = [partition.name for partition in jobs.open_partitions]
    fix = f"{AGAIN} --partition {up[0] if up else 'NAME'}   # up: {', '.join(up)}"
    if asked is None and not jobs.partitions:
        return fail("the cluster has no default partition: name a partition", fix)
    known = [partition.name for partition in jobs.site.partitions]
    unknown = [name for name in (asked or "").split(",") if name and name not in known]
    if unknown:
        return fail(f"no partition {', '.join(unknown)} on this cluster", fix)
    text = "; ".join(
        f"{partition.name}{' (the default)' if partition.is_default else ''} is "
        + (f"up, {pluralize(partition.num_nodes, 'node')}" if partition.is_up else "down")
        for partition in jobs.partitions
    )
    if not jobs.usable:
        return fail(f"{text}: jobs would wait until an admin opens it", fix)
    return ok(text)


def _check_time(jobs: Jobs) -> Finding:
    """Checks that the partition allows the time limit."""
    time_min = jobs.cluster.time_min
    limit_min = max(partition.time_min for partition in jobs.usable)
    if math.isinf(limit_min):
        return ok(f"{time_min} min; the partition has no limit")
    if time_min <= limit_min:
        return ok(f"{time_min} min; the partition allows {limit_min:g}")
    return fail(
        f"{time_min} min, but the partition allows {limit_min:g}: the jobs would wait forever",
        f"{AGAIN} --time {limit_min:.0f}   # a longer run continues in another job",
    )


def _check_gpu(jobs: Jobs) -> Finding:
    """Checks that nodes of the partition have the GPU."""
    cluster = jobs.cluster
    if not cluster.gpus:
        return skipped("no GPU is asked for")
    if cluster.gpu_flag == "none":
        return skipped("the partition gives the GPU (--gpu-flag none)")
    fitting = [partition for partition in jobs.usable if jobs.has_gpu(partition)]
    if fitting:
        words = [word for partition in fitting for word in partition.gpu_words]
        return ok(f"GPUs: {', '.join(dict.fromkeys(words))}")
    wanted = f"GPU of type {cluster.gpu_type}" if cluster.gpu_type else "GPU"
    kinds = sorted({kind for partition in jobs.usable for kind, _ in partition.gpus if kind})
    elsewhere = [partition.name for partition in jobs.open_partitions if jobs.has_gpu(partition)]
    if kinds:
        fix = f"{AGAIN} --gpu-type {kinds[0]}   # available: {', '.join(kinds)}"
    elif elsewhere:
        fix = f"{AGAIN} --partition {elsewhere[0]}"
    else:
        fix = "sinfo --format='%P %G'   # lists partitions and GPU types"
    return fail(f"no node that is up has a {wanted}", fix)


def _check_node(jobs: Jobs) -> Finding:
    """Checks that a node has the CPU cores and the memory."""
    cpus, mem_gb = jobs.cluster.cpus, jobs.cluster.mem_gb
    most_cpus = max(partition.cpus for partition in jobs.usable)
    most_gb = max(partition.memory_mb for partition in jobs.usable) // 1024
    text = (
        f"{pluralize(cpus, 'core')} and {mem_gb:g} GB; nodes have up to {most_cpus} and {most_gb}"
    )
    if any(p.cpus >= cpus and p.memory_mb >= mem_gb * 1024 for p in jobs.usable):
        return ok(text)
    options = [f"--cpus {most_cpus}"] if cpus > most_cpus else []
    options += [f"--mem {most_gb}"] if mem_gb > most_gb or not options else []
    return fail(text, f"{AGAIN} {' '.join(options)}")


def _check_cores(jobs: Jobs) -> Finding:
    """Checks that the cores can feed a GPU, and are not more than a GPU's share of the node."""
    cpus, shares = jobs.cluster.cpus, [p.cpus // p.most_gpus for p in jobs.usable if p.most_gpus]
    if cpus == 1:
        return warn("1 core is slow at preparing images; --cpus 4 is usual")
    if not jobs.cluster.gpus or not shares:
        return ok(f"{cpus} cores prepare the images")
    text = f"{cpus} cores; a node has {max(shares)} per GPU"
    if cpus <= max(shares):
        return ok(text)
    better = f"--cpus {max(*shares, 1)} avoids that"
    return warn(f"{text}: jobs may wait for cores while GPUs are free; {better}")


def _check_number(jobs: Jobs) -> Finding:
    """Checks that SLURM takes that many jobs, in an array and in its queue."""
    if not jobs.limits:
        return skipped("SLURM does not say how many jobs it takes")
    if jobs.count <= jobs.limits[0].left:
        return ok(f"{pluralize(jobs.count, 'job')}; {jobs.limits[0]}")
    text, most = number_words(jobs.configs, jobs.limits)
    return fail(text, fewer(jobs.configs, most, AGAIN, jobs.sweep.name) if most else WAIT)


def _check_account(jobs: Jobs) -> Finding:
    """Checks that the user may use the account and the QOS."""
    rights, cluster = jobs.site.rights, jobs.cluster
    if not rights.accounts:
        return skipped("sacctmgr is missing, or does not list your accounts")
    enforced = settings().get("AccountingStorageEnforce", "none")
    missing = []
    for option, value, mine, word in (
        ("account", cluster.account, rights.accounts, "associations"),
        ("qos", cluster.qos, rights.qos, "qos"),
    ):
        if value is not None and value not in mine:
            text = f"{option} {value} is none of yours ({', '.join(mine) or 'you have none'})"
            if word in enforced:
                return fail(text, f"{AGAIN} --{option} {mine[0] if mine else 'NAME'}")
            missing.append(text)
    if missing:
        return warn(f"{'; '.join(missing)}; this cluster does not enforce it")
    return ok(cluster.account or f"{rights.accounts[0]} (your default)")


def _check_script(jobs: Jobs) -> Finding:
    """Checks with `sbatch --test-only` the script that submit would queue.

    Raises: ClusterError when sbatch refuses it.
    """
    script = sbatch_script(jobs.sweep, jobs.count, jobs.cluster)
    answer = ask("sbatch", "--test-only", script=script, timeout_s=TIMEOUT_S)
    if answer is None or answer.returncode == TIMED_OUT:
        return fail(f"sbatch --test-only: no answer in {TIMEOUT_S} s", "scontrol ping")
    if answer.returncode:
        error = refusal(answer.stderr, jobs.cluster)
        if isinstance(error, TooManyJobsError):
            return fail(f"sbatch refused: {error.message}", error.fix, error.details)
        raise error
    match = STARTS.search(answer.stderr)
    # sbatch also prints a time for a job that would wait forever.
    can_start = jobs.usable and _check_time(jobs).verdict == "ok"
    text = "sbatch --test-only accepts it"
    if match and can_start:
        text += f"; it would start {_when(datetime.fromisoformat(match[1]))} on {match[2]}"
    return ok(text)


def _when(start: datetime) -> str:
    """Returns in words when SLURM would start a job; *start* is in local time."""
    wait_s = (start - datetime.now()).total_seconds()
    return "now" if wait_s < 60 else f"in {duration(wait_s)} by SLURM's estimate, at {start},"


CHECKS: dict[str, Callable[[Jobs], Finding]] = {
    "partition": _check_partition,
    "time limit": _check_time,
    "GPU": _check_gpu,
    "node size": _check_node,
    "cores": _check_cores,
    "jobs": _check_number,
    "account": _check_account,
    "script": _check_script,
}
"""The checks of a SLURM that answers, in the order of the checklist."""
OF_PARTITION = ("time limit", "GPU", "node size", "cores")
"""Checks that need a partition that takes jobs."""
