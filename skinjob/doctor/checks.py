"""What `skinjob doctor` asks SLURM: whether it answers, and takes what the jobs ask for."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from skinjob.config import ClusterConfig, TrainConfig
from skinjob.console import counted
from skinjob.doctor.finding import AGAIN, Finding, fail, failed, ok, skipped, warn
from skinjob.doctor.profile import Partition, Site, ask_site
from skinjob.queues.base import group_runs
from skinjob.queues.slurm.client import (
    TIMED_OUT,
    ask,
    ask_accounting,
    ask_queue,
    settings,
    words_of,
)
from skinjob.queues.slurm.environment import slurm_environment
from skinjob.queues.slurm.joblimits import WAIT, JobLimit, fewer, job_limits, number_words
from skinjob.queues.slurm.refusals import TooManyJobsError, refusal
from skinjob.queues.slurm.sbatch import sbatch_script
from skinjob.sweeps.layout import Sweep
from skinjob.words import list_first

NEEDED = ("sbatch", "squeue", "scontrol", "scancel", "sinfo")
TIMEOUT_S = 60  # sbatch asks again for a while when the controller is busy
STARTS = re.compile(r"to start at (\S+) using .* on nodes? (\S+)")


@dataclass(frozen=True)
class Asked:
    """What would be handed to SLURM, and what SLURM said of itself."""

    cluster: ClusterConfig
    sweep: Sweep
    configs: Mapping[str, TrainConfig]
    """By run name."""
    site: Site
    settings: Mapping[str, str]
    """slurm.conf, as the controller has it; empty where it does not say."""

    limits: Sequence[JobLimit]
    """The tightest first."""

    @property
    def num_jobs(self) -> int:
        return len(group_runs(self.configs))

    @property
    def partitions(self) -> list[Partition]:
        """Those that the jobs may go to, of the ones that are there."""
        if self.cluster.partition is None:
            return [one for one in self.site.partitions if one.is_default]
        names = self.cluster.partition.split(",")
        return [one for one in self.site.partitions if one.name in names]

    @property
    def usable(self) -> list[Partition]:
        """Those of them that are up, and have a node that is."""
        return [one for one in self.partitions if one.is_up and one.num_nodes]

    def has_gpu(self, one: Partition) -> bool:
        kind = self.cluster.gpu_type
        return kind in dict(one.gpus) if kind else bool(one.num_gpus)


def ask_slurm(cluster: ClusterConfig, sweep: Sweep, configs: Mapping[str, TrainConfig]) -> Asked:
    """Returns what the checks look at. Raises: ClusterError when SLURM does not answer."""
    return Asked(cluster, sweep, configs, ask_site(), settings(), job_limits(cluster))


def check_commands() -> Finding:
    """Finds SLURM's commands and their version."""
    missing = [name for name in NEEDED if not shutil.which(name)]
    if missing:
        return fail(
            f"not on PATH: {', '.join(missing)}",
            "module load slurm   # or log in to the cluster's login node",
        )
    answer = ask("sbatch", "--version")
    return ok(f"{(answer.stdout if answer else '').strip() or 'there'}: {', '.join(NEEDED)}")


def check_controller() -> Finding:
    """Finds whether SLURM's controller, slurmctld, answers."""
    answer = ask("scontrol", "ping")
    said = words_of(answer) if answer else ""
    if answer and not answer.returncode and " is UP" in answer.stdout:
        return ok("answers")
    return fail(
        f"SLURM's controller does not answer: {said or 'not a word'}",
        "scontrol ping   # wait until it says UP, or tell the cluster's admins",
    )


def check_queue() -> Finding:
    """Finds whether squeue answers what `skinjob status` asks."""
    queue = ask_queue()
    if isinstance(queue, str):
        return fail(
            f"squeue does not say which jobs are yours: {queue or 'not a word'}",
            f"squeue --user={os.geteuid()} --array   # status cannot do without",
        )
    return ok(f"squeue answers: {counted(len(queue), 'job')} of yours")


def check_accounting() -> Finding:
    """Finds whether sacct can say how jobs ended; `skinjob status` can do without."""
    instead = "status reads the run folders and scontrol instead"
    answer = ask_accounting(["1"])
    if answer is None:
        return warn(f"no sacct here: {instead}")
    if answer.returncode:
        words = words_of(answer) or "no answer"
        return warn(f"sacct does not work ({words}): {instead}")
    return ok("sacct answers")


def check_partition(asked: Asked) -> Finding:
    """Finds whether the partition is there and takes jobs."""
    names, up = asked.cluster.partition, _open_partitions(asked)
    choice = f"{AGAIN} --partition {up[0] if up else 'NAME'}   # up: {', '.join(up)}"
    if names is None and not asked.partitions:
        return fail("the cluster has no default partition: one has to be named", choice)
    there = [one.name for one in asked.site.partitions]
    unknown = [name for name in (names or "").split(",") if name and name not in there]
    if unknown:
        return fail(f"no partition {', '.join(unknown)} on this cluster", choice)
    words = "; ".join(map(_told, asked.partitions))
    if not asked.usable:
        return fail(f"{words}: jobs would wait until an admin opens it", choice)
    return ok(words)


def check_time(asked: Asked) -> Finding:
    """Finds whether the time limit is one that the partition allows."""
    wanted, limit = asked.cluster.time_min, max(one.time_min for one in asked.usable)
    if math.isinf(limit):
        return ok(f"{wanted} min; the partition has no limit")
    if wanted <= limit:
        return ok(f"{wanted} min, of {limit:g} that the partition allows")
    return fail(
        f"{wanted} min, and the partition allows {limit:g}: the jobs would wait for ever",
        f"{AGAIN} --time {limit:.0f}   # a run that needs longer goes on in another job",
    )


def check_gpu(asked: Asked) -> Finding:
    """Finds whether nodes of the partition have the GPU."""
    cluster = asked.cluster
    if not cluster.gpus:
        return skipped("no GPU is asked for")
    if cluster.gpu_flag == "none":
        return skipped("the partition gives the GPU (--gpu-flag none)")
    fitting = [one for one in asked.usable if asked.has_gpu(one)]
    if not fitting:
        wanted = f"GPU of type {cluster.gpu_type}" if cluster.gpu_type else "GPU"
        return fail(f"no node that is up has a {wanted}", _gpus_elsewhere(asked))
    gpus = [f"{count} {kind}".strip() for one in fitting for kind, count in one.gpus]
    return ok(f"GPUs: {', '.join(dict.fromkeys(gpus))}")


def check_node(asked: Asked) -> Finding:
    """Finds whether a node has the CPU cores and the memory."""
    cluster, wanted_mb = asked.cluster, asked.cluster.mem_gb * 1024
    most_cpus = max(one.cpus for one in asked.usable)
    most_gb = max(one.memory_mb for one in asked.usable) // 1024
    wanted = f"{counted(cluster.cpus, 'core')} and {cluster.mem_gb:g} GB"
    if any(one.cpus >= cluster.cpus and one.memory_mb >= wanted_mb for one in asked.usable):
        return ok(f"{wanted}, of a node's {most_cpus} and {most_gb}")
    options = [f"--cpus {most_cpus}"] if cluster.cpus > most_cpus else []
    options += [f"--mem {most_gb}"] if cluster.mem_gb > most_gb or not options else []
    return fail(
        f"{wanted}, and a node has {most_cpus} and {most_gb}", f"{AGAIN} {' '.join(options)}"
    )


def check_cores(asked: Asked) -> Finding:
    """Finds whether the cores are enough to feed a GPU, and no more than belong to one."""
    cpus, shares = asked.cluster.cpus, [p.cpus // p.most_gpus for p in asked.usable if p.most_gpus]
    if cpus == 1:
        return warn("1 decodes and crops all images and is slow: --cpus 4 is usual")
    if not asked.cluster.gpus or not shares:
        return ok(f"{cpus} decode and crop the images")
    if cpus > max(shares):
        return warn(
            f"{cpus}, and a node has {max(shares)} for each of its GPUs: jobs may wait for cores "
            f"while GPUs are free; --cpus {max(*shares, 1)} would not"
        )
    return ok(f"{cpus}, of the {max(shares)} that a node has for each GPU")


def check_number(asked: Asked) -> Finding:
    """Finds whether SLURM takes as many jobs, in one array and in its queue."""
    if not asked.limits:
        return skipped("SLURM does not say how many jobs it takes")
    if asked.num_jobs > asked.limits[0].left:
        words, most = number_words(asked.configs, asked.limits)
        name = asked.sweep.name
        return fail(words, fewer(asked.configs, most, AGAIN, name) if most else WAIT)
    return ok(f"{counted(asked.num_jobs, 'job')}; {asked.limits[0]}")


def check_account(asked: Asked) -> Finding:
    """Finds whether account and QOS are ones that the user has."""
    rights, cluster = asked.site.rights, asked.cluster
    if not rights.accounts:
        return skipped("sacctmgr is not here, or does not say which are yours")
    enforced = asked.settings.get("AccountingStorageEnforce", "none")
    lacking = []
    for option, value, mine, by in (
        ("account", cluster.account, rights.accounts, "associations"),
        ("qos", cluster.qos, rights.qos, "qos"),
    ):
        if value is not None and value not in mine:
            words = f"{option} {value} is none of yours ({', '.join(mine) or 'you have none'})"
            if by in enforced:
                return fail(words, f"{AGAIN} --{option} {mine[0] if mine else 'NAME'}")
            lacking.append(words)
    if lacking:
        return warn(f"{'; '.join(lacking)}; this cluster does not insist on it")
    return ok(f"{cluster.account or f'{rights.accounts[0]} (your default)'}")


def check_script(asked: Asked) -> Finding:
    """Finds what `sbatch --test-only` says of the very script that submit would hand to it."""
    script = sbatch_script(asked.sweep, asked.num_jobs, asked.cluster)
    answer = ask("sbatch", "--test-only", script=script, timeout_s=TIMEOUT_S)
    if answer is None or answer.returncode == TIMED_OUT:
        return fail(f"sbatch --test-only: no answer in {TIMEOUT_S} s", "scontrol ping")
    said = answer.stderr
    if answer.returncode:
        fault = refusal(said, asked.cluster)
        if isinstance(fault, TooManyJobsError):
            return fail(f"sbatch refused: {fault.message}", fault.fix, fault.details)
        return failed(fault)
    match = STARTS.search(said)
    # It tells a time for a job that would wait for ever, too.
    can_start = asked.usable and check_time(asked).verdict == "ok"
    start = f"; it would start {_when(match[1])} on {match[2]}" if match and can_start else ""
    return ok(f"sbatch --test-only takes it{start}")


def check_environment() -> Finding:
    """Finds what other jobs, or the login shell, have left in the environment."""
    hidden = sorted(os.environ.keys() - slurm_environment().keys())
    if not hidden:
        return ok("nothing of another job is set")
    inside = os.environ.get("SLURM_JOB_ID")
    here = f"this shell is in job {inside}; " if inside else ""
    return ok(f"{here}{list_first(hidden)} set, and hidden from sbatch")


CHECKS: dict[str, Callable[[Asked], Finding]] = {
    "partition": check_partition,
    "time limit": check_time,
    "GPU": check_gpu,
    "node size": check_node,
    "cores": check_cores,
    "jobs": check_number,
    "account": check_account,
    "script": check_script,
}
"""What is asked of a SLURM that answers, in the order of the checklist."""
OF_PARTITION = ("time limit", "GPU", "node size", "cores")
"""Those that need a partition which takes jobs."""


def _open_partitions(asked: Asked) -> list[str]:
    """Returns the partitions that take jobs, those with the GPU that is asked for first."""
    up = [one for one in asked.site.partitions if one.is_up and one.num_nodes]
    return [one.name for one in sorted(up, key=lambda one: not asked.has_gpu(one))]


def _gpus_elsewhere(asked: Asked) -> str:
    """Returns a command that asks for GPUs that the cluster has."""
    kinds = sorted({kind for one in asked.usable for kind, _ in one.gpus if kind})
    if kinds:
        return f"{AGAIN} --gpu-type {kinds[0]}   # there: {', '.join(kinds)}"
    for name in _open_partitions(asked):
        if any(one.name == name and asked.has_gpu(one) for one in asked.site.partitions):
            return f"{AGAIN} --partition {name}"
    return "sinfo --format='%P %G'   # GPUs as the cluster names them"


def _told(one: Partition) -> str:
    """Returns a partition's state in words."""
    state = f"up, {counted(one.num_nodes, 'node')}" if one.is_up else "down"
    return f"{one.name}{' (the default)' if one.is_default else ''} is {state}"


def _when(start: str) -> str:
    """Returns the time at which SLURM would start a job, as one would say it."""
    try:
        seconds = (datetime.fromisoformat(start) - datetime.now()).total_seconds()
    except ValueError:
        return f"at {start}"
    if seconds < 60:
        return "now"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"in {hours} h {minutes} min by SLURM's estimate, at {start.replace('T', ' ')},"
