"""What `skinjob doctor` asks SLURM: whether it answers, and takes what the jobs ask for."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from skinjob.config import ClusterConfig
from skinjob.runs import Sweep
from skinjob.submit.environment import slurm_environment
from skinjob.submit.executor import sbatch_script
from skinjob.submit.finding import Finding, fail, ok, skipped, warn
from skinjob.submit.offers import Nodes, Partition, partitions, settings
from skinjob.submit.refusals import refusal
from skinjob.submit.slurm import ask

NEEDED = ("sbatch", "squeue", "scontrol", "scancel", "sinfo")
TIMEOUT_S = 60  # sbatch asks again for a while when the controller is busy
STARTS = re.compile(r"to start at (\S+) using .* on nodes? (\S+)")


@dataclass(frozen=True)
class Asked:
    """What would be handed to SLURM, and what SLURM said of itself."""

    cluster: ClusterConfig
    sweep: Sweep
    num_jobs: int
    offers: Mapping[str, Partition]
    """The cluster's partitions by name."""
    settings: Mapping[str, str]
    """slurm.conf, as the controller has it."""

    @property
    def partitions(self) -> list[Partition]:
        """Those that the jobs may go to, of the ones that are there."""
        if self.cluster.partition is None:
            return [one for one in self.offers.values() if one.is_default]
        names = self.cluster.partition.split(",")
        return [self.offers[name] for name in names if name in self.offers]

    @property
    def nodes(self) -> list[Nodes]:
        """The nodes of these partitions, those with the GPU that is asked for if there are any."""
        found = [nodes for one in self.partitions for nodes in one.nodes]
        return [nodes for nodes in found if self.has_gpu(nodes)] or found

    def has_gpu(self, nodes: Nodes) -> bool:
        kind = self.cluster.gpu_type
        return kind in nodes.gpus if kind else bool(nodes.gpus)


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
    said = " ".join((answer.stdout + answer.stderr).split()) if answer else "no scontrol"
    if answer and not answer.returncode and " is UP" in said:
        return ok("answers")
    if answer and answer.returncode == 124:
        said = "no answer"
    return fail(
        f"SLURM's controller does not answer: {said}",
        "scontrol ping   # wait until it says UP, or tell the cluster's admins",
    )


def check_accounting() -> Finding:
    """Finds whether sacct can say how jobs ended; `skinjob status` can do without."""
    instead = "status reads the run folders and scontrol instead"
    answer = ask("sacct", "--noheader", "--allocations", "--jobs=1")
    if answer is None:
        return warn(f"no sacct here: {instead}")
    if answer.returncode:
        words = _first_line(answer.stderr) or "no answer"
        return warn(f"sacct does not work ({words}): {instead}")
    return ok("sacct answers")


def check_partition(asked: Asked) -> Finding:
    """Finds whether the partition is there and takes jobs."""
    names, up = asked.cluster.partition, _open_partitions(asked)
    choice = f"skinjob doctor --partition {up[0] if up else 'NAME'}   # up: {', '.join(up)}"
    if names is None and not asked.partitions:
        return fail("the cluster has no default partition: one has to be named", choice)
    unknown = [name for name in (names or "").split(",") if name and name not in asked.offers]
    if unknown:
        return fail(f"no partition {', '.join(unknown)} on this cluster", choice)
    words = "; ".join(_told(one) for one in asked.partitions)
    if not any(one.is_up for one in asked.partitions):
        return fail(f"{words}: jobs would wait until an admin opens it", choice)
    if not any(nodes.is_up for nodes in asked.nodes):
        return fail(f"{words}: no node of it takes jobs", choice)
    return ok(words)


def check_time(asked: Asked) -> Finding:
    """Finds whether the time limit is one that the partition allows."""
    wanted = asked.cluster.time_min
    limits = [one.max_time_min for one in asked.partitions if one.is_up]
    numbers = [limit for limit in limits if limit is not None]
    if not limits:
        return skipped("there is no such partition, or it is down")
    if len(numbers) < len(limits):
        return ok(f"{wanted} min; the partition has no limit")
    if wanted <= max(numbers):
        return ok(f"{wanted} min of at most {max(numbers)}")
    return fail(
        f"{wanted} min is over the partition's limit of {max(numbers)}: the jobs would wait for "
        "ever",
        f"skinjob doctor --time {max(numbers)}   # a run that needs longer goes on in another job",
    )


def check_gpu(asked: Asked) -> Finding:
    """Finds whether nodes of the partition have the GPU."""
    cluster = asked.cluster
    if not cluster.gpus:
        return skipped("no GPU is asked for")
    if cluster.gpu_flag == "none":
        return skipped("the partition gives the GPU (--gpu-flag none)")
    if not asked.nodes:
        return skipped("there is no such partition, or it has no node")
    fitting = [nodes for nodes in asked.nodes if asked.has_gpu(nodes)]
    if not fitting:
        wanted = f"GPU of type {cluster.gpu_type}" if cluster.gpu_type else "GPU"
        return fail(f"no node of the partition has a {wanted}", _gpus_elsewhere(asked))
    kinds = sorted(
        {f"{n} x {kind or 'GPU'}" for nodes in fitting for kind, n in nodes.gpus.items()}
    )
    words = f"{' or '.join(kinds)} in a node"
    if not any(nodes.is_up for nodes in fitting):
        return warn(f"{words}, and every such node is down")
    return ok(words)


def check_node(asked: Asked) -> Finding:
    """Finds whether a node has the CPU cores and the memory."""
    cluster = asked.cluster
    if not asked.nodes:
        return skipped("there is no such partition, or it has no node")
    most_cpus = max(nodes.cpus for nodes in asked.nodes)
    most_gb = max(nodes.memory_mb for nodes in asked.nodes) // 1024
    if any(
        nodes.cpus >= cluster.cpus and nodes.memory_mb >= cluster.mem_gb * 1024
        for nodes in asked.nodes
    ):
        wanted = f"{_count(cluster.cpus, 'core')} and {cluster.mem_gb:g} GB"
        return ok(f"{wanted} of a node's {most_cpus} and {most_gb}")
    options = [f"--cpus {most_cpus}"] if cluster.cpus > most_cpus else []
    options += [f"--mem {most_gb}"] if cluster.mem_gb > most_gb or not options else []
    return fail(
        f"{_count(cluster.cpus, 'core')} and {cluster.mem_gb:g} GB asked for, and no node has "
        f"both: at most {most_cpus} and {most_gb} GB",
        f"skinjob doctor {' '.join(options)}",
    )


def check_share(asked: Asked) -> Finding:
    """Finds whether the cores are enough to feed a GPU, and no more than belong to one."""
    cpus, nodes = asked.cluster.cpus, [one for one in asked.nodes if one.gpus]
    if cpus == 1:
        return warn("1 core decodes, crops and trains by itself, slowly: --cpus 4 is usual")
    if not asked.cluster.gpus or not nodes:
        return ok(f"{cpus} cores decode and crop the images")
    share = max(one.cpus // sum(one.gpus.values()) for one in nodes)
    if cpus > share:
        return warn(
            f"{cpus} cores, and a node has {share} for each of its GPUs: jobs may wait for cores "
            f"while GPUs are free; --cpus {max(share, 1)} would not"
        )
    return ok(f"{cpus} cores, of the {share} that a node has for each GPU")


def check_array(asked: Asked) -> Finding:
    """Finds whether SLURM takes as many jobs in one array."""
    most = asked.settings.get("MaxArraySize", "")
    if not most.isdigit():
        return skipped("SLURM does not say how large an array may be")
    if asked.num_jobs > int(most):
        return fail(
            f"{asked.num_jobs} jobs, and an array may have {most}",
            "skinjob doctor --seeds 0   # fewer runs, in several sweeps",
        )
    return ok(f"{_count(asked.num_jobs, 'job')} of at most {most} in an array")


def check_account(asked: Asked) -> Finding:
    """Finds whether account and QOS are ones that the user has."""
    user = pwd.getpwuid(os.getuid()).pw_name
    which = ("where", f"user={user}", "format=account,qos")
    answer = ask("sacctmgr", "--noheader", "--parsable2", "show", "associations", *which)
    if answer is None:
        return skipped("no sacctmgr here to ask")
    rows = [line.split("|") for line in answer.stdout.splitlines() if line.count("|") == 1]
    if answer.returncode or not rows:
        words = _first_line(answer.stderr) or f"it knows nothing of {user}"
        return skipped(f"sacctmgr does not say: {words}")
    accounts = sorted({row[0] for row in rows})
    qos = sorted({name for row in rows for name in row[1].split(",") if name})
    enforced = asked.settings.get("AccountingStorageEnforce", "none")
    lacking = []
    for option, value, known, by in (
        ("account", asked.cluster.account, accounts, "associations"),
        ("qos", asked.cluster.qos, qos, "qos"),
    ):
        if value is not None and value not in known:
            words = f"{option} {value} is none of yours ({', '.join(known) or 'you have none'})"
            if by in enforced or "all" in enforced:
                first = known[0] if known else "NAME"
                return fail(words, f"skinjob doctor --{option} {first}")
            lacking.append(words)
    if lacking:
        return warn(f"{'; '.join(lacking)}; this cluster does not insist")
    chosen = asked.cluster.account or "the default"
    return ok(
        f"account {chosen} of {', '.join(accounts)}; QOS {asked.cluster.qos or 'the default'}"
    )


def check_script(asked: Asked) -> Finding:
    """Finds what `sbatch --test-only` says of the very script that submit would hand to it."""
    script = sbatch_script(asked.sweep, asked.num_jobs, asked.cluster)
    try:
        answer = subprocess.run(
            ["sbatch", "--test-only"],
            input=script,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env=slurm_environment(),
        )
    except subprocess.TimeoutExpired:
        return fail(f"sbatch --test-only: no answer in {TIMEOUT_S} s", "scontrol ping")
    said = answer.stderr.replace("allocation failure: ", "")
    if answer.returncode:
        error = refusal(said, asked.cluster)
        return fail(error.message, error.remedy)
    match = STARTS.search(said)
    start = f"; it would start {_when(match[1])} on {match[2]}" if match else ""
    return ok(f"sbatch --test-only takes it{start}")


def check_environment() -> Finding:
    """Finds what other jobs, or the login shell, have left in the environment."""
    hidden = sorted(os.environ.keys() - slurm_environment().keys())
    if not hidden:
        return ok("nothing of another job is set")
    inside = os.environ.get("SLURM_JOB_ID")
    here = f"this shell is in job {inside}; " if inside else ""
    more = f" and {len(hidden) - 3} more" if len(hidden) > 3 else ""
    return ok(f"{here}{', '.join(hidden[:3])}{more} set, and hidden from sbatch")


CHECKS: dict[str, Callable[[Asked], Finding]] = {
    "partition": check_partition,
    "time limit": check_time,
    "GPU": check_gpu,
    "node size": check_node,
    "cores": check_share,
    "array": check_array,
    "account": check_account,
    "script": check_script,
}
"""What is asked of a SLURM that answers, in the order of the checklist."""


def what_slurm_offers(cluster: ClusterConfig, sweep: Sweep, num_jobs: int) -> Asked | None:
    """Returns what the checks look at; None where SLURM does not answer."""
    offers = partitions()
    if offers is None:
        return None
    return Asked(cluster, sweep, num_jobs, offers, settings())


def _open_partitions(asked: Asked) -> list[str]:
    """Returns the partitions that take jobs, those with the GPU that is asked for first."""
    up = [one for one in asked.offers.values() if one.is_up]
    return [one.name for one in sorted(up, key=lambda one: not any(map(asked.has_gpu, one.nodes)))]


def _gpus_elsewhere(asked: Asked) -> str:
    """Returns a command that asks for GPUs that the cluster has."""
    kinds = sorted({kind for nodes in asked.nodes for kind in nodes.gpus if kind})
    if kinds:
        return f"skinjob doctor --gpu-type {kinds[0]}   # there: {', '.join(kinds)}"
    for one in asked.offers.values():
        if one.is_up and any(map(asked.has_gpu, one.nodes)):
            return f"skinjob doctor --partition {one.name}"
    return "sinfo --format='%P %G'   # GPUs as the cluster names them"


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


def _told(one: Partition) -> str:
    """Returns a partition's state in words."""
    num_up = sum(nodes.count for nodes in one.nodes if nodes.is_up)
    state = f"up, {_count(num_up, 'node')}" if one.is_up else "down"
    return f"{one.name}{' (the default)' if one.is_default else ''} is {state}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _first_line(text: str) -> str:
    lines: Sequence[str] = text.strip().splitlines()
    return lines[0] if lines else ""
