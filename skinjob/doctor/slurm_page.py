"""The page of SLURM in the doctor: whether it answers, and takes what the jobs ask for."""

from __future__ import annotations

import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

from skinjob.config import ClusterConfig, TrainConfig
from skinjob.doctor.finding import AGAIN, Finding, check, fail, failed, ok, skip, skipped, warn
from skinjob.doctor.slurm_site import Partition, Site, ask_site
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
from skinjob.queues.slurm.sbatch import sbatch_script
from skinjob.sweeps.layout import Sweep
from skinjob.words import duration, list_first, pluralize

SILENT = "SLURM does not answer"
NEEDED = ("sbatch", "squeue", "scontrol", "scancel", "sinfo")
TIMEOUT_S = 60  # sbatch asks again for a while when the controller is busy
STARTS = re.compile(r"to start at (\d+) using .* on nodes? (\S+)")


@dataclass(frozen=True)
class Jobs:
    """The jobs that submit would queue, and the cluster that they would go to."""

    cluster: ClusterConfig
    sweep: Sweep
    configs: Mapping[str, TrainConfig]
    """By run name."""
    site: Site
    limits: Sequence[JobLimit]
    """The tightest first."""

    @property
    def count(self) -> int:
        return len(group_runs(self.configs))

    @property
    def partitions(self) -> list[Partition]:
        """Those that the jobs may go to, as far as the cluster has them."""
        names = (self.cluster.partition or "").split(",")
        return [
            partition
            for partition in self.site.partitions
            if (partition.name in names if self.cluster.partition else partition.is_default)
        ]

    @property
    def usable(self) -> list[Partition]:
        return [partition for partition in self.partitions if partition.takes_jobs]

    @property
    def open_partitions(self) -> list[Partition]:
        """All partitions that take jobs, those with the GPU that is asked for first."""
        partitions = [partition for partition in self.site.partitions if partition.takes_jobs]
        return sorted(partitions, key=lambda partition: not self.finds_gpu(partition))

    def finds_gpu(self, partition: Partition) -> bool:
        kind = self.cluster.gpu_type
        return kind in dict(partition.gpus) if kind else partition.num_gpus > 0


def slurm_page(
    cluster: ClusterConfig, sweep: Sweep, configs: Mapping[str, TrainConfig]
) -> Iterator[Finding]:
    """Yields what SLURM says of itself, and of the jobs of these runs, given by name."""
    commands = check("commands", _check_commands)
    yield commands
    has_commands = commands.verdict != "fail"
    controller = check(
        "controller",
        _check_controller if has_commands else lambda: skipped("no commands to ask with"),
    )
    yield controller
    answers = controller.verdict == "ok"
    yield check("queue", _check_queue if answers else lambda: skipped(SILENT))
    yield check("accounting", _check_accounting)
    if answers:
        yield from _check_jobs(cluster, sweep, configs)
    else:
        yield from skip(CHECKS, SILENT)
    yield check("environment", _check_environment)


def _check_jobs(
    cluster: ClusterConfig, sweep: Sweep, configs: Mapping[str, TrainConfig]
) -> Iterator[Finding]:
    """Yields what SLURM says of what the jobs ask for."""
    try:
        jobs = Jobs(cluster, sweep, configs, ask_site(), job_limits(cluster))
    except ClusterError as error:
        yield replace(failed(error), name="sinfo")
        yield from skip(CHECKS, SILENT)
        return
    for name, look in CHECKS.items():
        if name in OF_PARTITION and not jobs.usable:
            yield from skip([name], "there is no such partition, or it takes no jobs")
        else:
            yield check(name, partial(look, jobs))


def _check_commands() -> Finding:
    """Says whether SLURM's commands are here, and their version."""
    missing = [name for name in NEEDED if not shutil.which(name)]
    if missing:
        return fail(
            f"not on PATH: {', '.join(missing)}",
            "module load slurm   # or log in to the cluster's login node",
        )
    return ok(f"{read('sbatch', '--version').strip() or 'there'}: {', '.join(NEEDED)}")


def _check_controller() -> Finding:
    """Says whether SLURM's controller, slurmctld, answers."""
    answer = ask("scontrol", "ping")
    if answer and not answer.returncode and " is UP" in answer.stdout:
        return ok("answers")
    words = words_of(answer) if answer else ""
    return fail(
        f"SLURM's controller does not answer: {words or 'not a word'}",
        "scontrol ping   # wait until it says UP, or tell the cluster's admins",
    )


def _check_queue() -> Finding:
    """Says whether squeue answers what `skinjob status` asks."""
    queue = ask_queue()
    if isinstance(queue, str):
        return fail(
            f"squeue does not say which jobs are yours: {queue or 'not a word'}",
            f"squeue --user={os.geteuid()} --array   # status cannot do without",
        )
    return ok(f"squeue answers: {pluralize(len(queue), 'job')} of yours")


def _check_accounting() -> Finding:
    """Says whether sacct can tell how jobs ended; `skinjob status` can do without."""
    instead = "status reads the run folders and scontrol instead"
    answer = ask_accounting(["1"])
    if answer is None:
        return warn(f"no sacct here: {instead}")
    if answer.returncode:
        return warn(f"sacct does not work ({words_of(answer) or 'no answer'}): {instead}")
    return ok("sacct answers")


def _check_environment() -> Finding:
    """Says what other jobs, or the login shell, have left in the environment."""
    hidden = sorted(os.environ.keys() - slurm_environment().keys())
    if not hidden:
        return ok("nothing of another job is set")
    inside = os.environ.get("SLURM_JOB_ID")
    here = f"this shell is in job {inside}; " if inside else ""
    return ok(f"{here}{list_first(hidden)} set, and hidden from sbatch")


def _check_partition(jobs: Jobs) -> Finding:
    """Says whether the partition is there and takes jobs."""
    asked = jobs.cluster.partition
    up = [partition.name for partition in jobs.open_partitions]
    fix = f"{AGAIN} --partition {up[0] if up else 'NAME'}   # up: {', '.join(up)}"
    if asked is None and not jobs.partitions:
        return fail("the cluster has no default partition: one has to be named", fix)
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
    """Says whether the partition allows the time limit."""
    time_min = jobs.cluster.time_min
    limit_min = max(partition.time_min for partition in jobs.usable)
    if math.isinf(limit_min):
        return ok(f"{time_min} min; the partition has no limit")
    if time_min <= limit_min:
        return ok(f"{time_min} min, of {limit_min:g} that the partition allows")
    return fail(
        f"{time_min} min, and the partition allows {limit_min:g}: the jobs would wait for ever",
        f"{AGAIN} --time {limit_min:.0f}   # a run that needs longer goes on in another job",
    )


def _check_gpu(jobs: Jobs) -> Finding:
    """Says whether nodes of the partition have the GPU."""
    cluster = jobs.cluster
    if not cluster.gpus:
        return skipped("no GPU is asked for")
    if cluster.gpu_flag == "none":
        return skipped("the partition gives the GPU (--gpu-flag none)")
    fitting = [partition for partition in jobs.usable if jobs.finds_gpu(partition)]
    if fitting:
        words = [word for partition in fitting for word in partition.gpu_words]
        return ok(f"GPUs: {', '.join(dict.fromkeys(words))}")
    wanted = f"GPU of type {cluster.gpu_type}" if cluster.gpu_type else "GPU"
    kinds = sorted({kind for partition in jobs.usable for kind, _ in partition.gpus if kind})
    elsewhere = [partition.name for partition in jobs.open_partitions if jobs.finds_gpu(partition)]
    if kinds:
        fix = f"{AGAIN} --gpu-type {kinds[0]}   # there: {', '.join(kinds)}"
    elif elsewhere:
        fix = f"{AGAIN} --partition {elsewhere[0]}"
    else:
        fix = "sinfo --format='%P %G'   # GPUs as the cluster names them"
    return fail(f"no node that is up has a {wanted}", fix)


def _check_node(jobs: Jobs) -> Finding:
    """Says whether a node has the CPU cores and the memory."""
    cpus, mem_gb = jobs.cluster.cpus, jobs.cluster.mem_gb
    most_cpus = max(partition.cpus for partition in jobs.usable)
    most_gb = max(partition.memory_mb for partition in jobs.usable) // 1024
    wanted = f"{pluralize(cpus, 'core')} and {mem_gb:g} GB"
    if any(p.cpus >= cpus and p.memory_mb >= mem_gb * 1024 for p in jobs.usable):
        return ok(f"{wanted}, of a node's {most_cpus} and {most_gb}")
    options = [f"--cpus {most_cpus}"] if cpus > most_cpus else []
    options += [f"--mem {most_gb}"] if mem_gb > most_gb or not options else []
    return fail(
        f"{wanted}, and a node has {most_cpus} and {most_gb}", f"{AGAIN} {' '.join(options)}"
    )


def _check_cores(jobs: Jobs) -> Finding:
    """Says whether the cores are enough to feed a GPU, and no more than belong to it."""
    cpus, shares = jobs.cluster.cpus, [p.cpus // p.most_gpus for p in jobs.usable if p.most_gpus]
    if cpus == 1:
        return warn("1 decodes and crops all images and is slow: --cpus 4 is usual")
    if not jobs.cluster.gpus or not shares:
        return ok(f"{cpus} decode and crop the images")
    if cpus > max(shares):
        return warn(
            f"{cpus}, and a node has {max(shares)} for each of its GPUs: jobs may wait for cores "
            f"while GPUs are free; --cpus {max(*shares, 1)} would not"
        )
    return ok(f"{cpus}, of the {max(shares)} that a node has for each GPU")


def _check_number(jobs: Jobs) -> Finding:
    """Says whether SLURM takes as many jobs, in one array and in its queue."""
    if not jobs.limits:
        return skipped("SLURM does not say how many jobs it takes")
    if jobs.count <= jobs.limits[0].left:
        return ok(f"{pluralize(jobs.count, 'job')}; {jobs.limits[0]}")
    text, most = number_words(jobs.configs, jobs.limits)
    return fail(text, fewer(jobs.configs, most, AGAIN, jobs.sweep.name) if most else WAIT)


def _check_account(jobs: Jobs) -> Finding:
    """Says whether account and QOS are among the user's."""
    rights, cluster = jobs.site.rights, jobs.cluster
    if not rights.accounts:
        return skipped("sacctmgr is not here, or does not say which are yours")
    enforced = settings().get("AccountingStorageEnforce", "none")
    lacking = []
    for option, value, mine, word in (
        ("account", cluster.account, rights.accounts, "associations"),
        ("qos", cluster.qos, rights.qos, "qos"),
    ):
        if value is not None and value not in mine:
            text = f"{option} {value} is none of yours ({', '.join(mine) or 'you have none'})"
            if word in enforced:
                return fail(text, f"{AGAIN} --{option} {mine[0] if mine else 'NAME'}")
            lacking.append(text)
    if lacking:
        return warn(f"{'; '.join(lacking)}; this cluster does not insist on it")
    return ok(cluster.account or f"{rights.accounts[0]} (your default)")


def _check_script(jobs: Jobs) -> Finding:
    """Gives `sbatch --test-only` the very script that submit would hand to sbatch.

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
    # It tells a time for a job that would wait for ever, too.
    can_start = jobs.usable and _check_time(jobs).verdict == "ok"
    start = f"; it would start {_when(int(match[1]))} on {match[2]}" if match and can_start else ""
    return ok(f"sbatch --test-only takes it{start}")


def _when(start_s: int) -> str:
    """Returns the time at which SLURM would start a job, as a sentence says it.

    *start_s* are seconds since 1970.
    """
    wait_s = start_s - time.time()
    if wait_s < 60:
        return "now"
    return f"in {duration(wait_s)} by SLURM's estimate, at {datetime.fromtimestamp(start_s)},"


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
"""What is asked of a SLURM that answers, in the order of the checklist."""
OF_PARTITION = ("time limit", "GPU", "node size", "cores")
"""Those that need a partition which takes jobs."""
