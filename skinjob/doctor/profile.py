"""A site profile, chosen from what SLURM says of the cluster: `skinjob init-site`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from skinjob.config import LEAST_TIME_MIN, ClusterConfig
from skinjob.doctor.slurm_site import Partition, Rights, Site
from skinjob.errors import ClusterError, ConfigError
from skinjob.words import pluralize

USUAL = ClusterConfig()


@dataclass(frozen=True)
class Choice:
    """A profile: values of ClusterConfig, and the reason of each."""

    site: Site
    partition: Partition
    entries: dict[str, tuple[Any, str]]
    """Value and reason, by the name of the field."""

    @property
    def values(self) -> dict[str, Any]:
        return {name: value for name, (value, _) in self.entries.items()}


def choose(site: Site, name: str | None = None) -> Choice:
    """Returns a profile for the partition of this name, or for the best that has GPUs and is up.

    Raises: ConfigError when there is no partition of that name, ClusterError when none is up.
    """
    usable = [partition for partition in site.partitions if _is_usable(partition, site.rights)]
    if name:
        partition = _named(site, usable, name)
        reason = f"asked for with --partition: {_describe(partition)}"
    else:
        partition = _best(usable)
        reason = _why(partition, usable)
    entries = {
        "cluster": ("slurm", "jobs go to SLURM, and never to this machine for want of sbatch"),
        "partition": (partition.name, reason),
        **_rights(partition, site.rights),
        **_gpus(partition, site),
        **_limits(partition),
    }
    choice = Choice(site, partition, entries)
    ClusterConfig(**choice.values)  # what submit would refuse is refused here
    return choice


def profile_text(choice: Choice) -> str:
    """Returns the profile as TOML, with what else there is in comments."""
    lines = [
        "# What `skinjob init-site` found on this cluster. Change it as you like: `skinjob config`",
        "# shows which values hold and why, `skinjob doctor` whether they can work.",
        "",
        "[cluster]",
    ]
    for name, (value, reason) in choice.entries.items():
        lines += [f"# {reason}", f"{name} = {json.dumps(value, ensure_ascii=False)}"]
    site, features = choice.site, choice.partition.features
    lines += ["", "# What else there is here"]
    lines += [f"# partition = {json.dumps(p.name)}: {_describe(p)}" for p in site.partitions]
    lines += [f"# constraint: {', '.join(features)}"] if features else []
    for name, words in (("account", site.rights.accounts), ("qos", site.rights.qos)):
        lines += [f"# {name}: {', '.join(words)}; without a word the first"] if words else []
    return "\n".join(lines) + "\n"


def _is_usable(partition: Partition, rights: Rights) -> bool:
    """Says whether a partition takes jobs of this user."""
    theirs, mine = set(partition.accounts), set(rights.accounts)
    is_mine = not (theirs and mine) or bool(theirs & mine)
    return partition.takes_jobs and partition.time_min >= LEAST_TIME_MIN and is_mine


def _named(site: Site, usable: Sequence[Partition], name: str) -> Partition:
    for partition in site.partitions:
        if partition.name == name:
            return partition
    names = [partition.name for partition in site.partitions]
    raise ConfigError(
        f"partition is {name!r}, and must be one of {_listed(names)}",
        f"skinjob init-site --partition {_best(usable).name}",
    )


def _best(usable: Sequence[Partition]) -> Partition:
    """Returns the best partition for GPU jobs: the default if it has GPUs, else the largest."""
    if not usable:
        raise ClusterError(
            f"no partition is up that would take a job of yours of {LEAST_TIME_MIN} minutes",
            "sinfo --summarize",
        )
    return max(
        usable,
        key=lambda partition: (
            partition.num_gpus > 0,
            partition.time_min >= USUAL.time_min,
            partition.is_default,
            partition.num_gpus,
            partition.num_nodes,
        ),
    )


def _why(best: Partition, usable: Sequence[Partition]) -> str:
    """Returns why a partition was chosen of the usable ones."""
    alike = [partition for partition in usable if bool(partition.num_gpus) == bool(best.num_gpus)]
    what = "has GPUs and is up" if best.num_gpus else "is up; none that is has GPUs"
    if len(alike) == 1:
        beginning = "the only one that"
    elif best.is_default:
        beginning = "the cluster's own choice, and it"
    else:
        beginning = "of several the one that suits:"
    return f"{beginning} {what}: {_describe(best)}"


def _rights(partition: Partition, rights: Rights) -> dict[str, tuple[Any, str]]:
    """Returns account and QOS where the partition does not take the user's default."""
    entries = {}
    for name, mine, allowed in (
        ("account", rights.accounts, partition.accounts),
        ("qos", rights.qos, partition.qos),
    ):
        if allowed and not set(mine[:1]) <= set(allowed):
            value = next((word for word in mine if word in allowed), allowed[0])
            reason = f"{partition.name} takes {', '.join(allowed)}; yours: {_listed(mine)}"
            entries[name] = (value, reason)
    return entries


def _gpus(partition: Partition, site: Site) -> dict[str, tuple[Any, str]]:
    """Returns what asks for a GPU: of one type, so that all runs of a sweep are on GPUs alike."""
    if not partition.num_gpus:
        reason = f"no node of {partition.name} that is up has a GPU: runs train on the CPU"
        return {"gpus": (0, reason)}
    entries: dict[str, tuple[Any, str]] = {}
    if not site.has_gpu_flags:
        reason = "this SLURM shares nodes in a way that knows --gres alone"
        entries["gpu_flag"] = ("gres", reason)
    kinds = sorted(((count, kind) for kind, count in partition.gpus if kind), reverse=True)
    if kinds:
        others = ", ".join(f"{kind} ({count})" for count, kind in kinds[1:])
        more = f"; others: {others}" if others else ""
        entries["gpu_type"] = (kinds[0][1], f"there are {kinds[0][0]} of them{more}")
    return entries


def _limits(partition: Partition) -> dict[str, tuple[Any, str]]:
    """Returns time, memory and cores, each as built in or as much as the partition has."""
    name, limit_min = partition.name, partition.time_min
    limit = "has no limit" if math.isinf(limit_min) else f"ends a job at {limit_min:g}"
    entries: dict[str, tuple[Any, str]] = {
        "time_min": (int(min(USUAL.time_min, limit_min)), f"minutes; {name} {limit}")
    }
    if partition.memory_mb:
        # A tenth is left to the node; in halves, so that no rounding asks for more than there is.
        most_gb = math.floor(partition.memory_mb * 0.9 / 1024 * 2) / 2
        reason = f"GB; the largest node of {name} has {partition.memory_mb / 1024:.0f}"
        entries["mem_gb"] = (max(0.5, min(USUAL.mem_gb, most_gb)), reason)
    if partition.cpus:
        share = partition.cpus // max(partition.most_gpus, 1)
        has_more = partition.most_gpus > 1
        each = f", {share} for each of its {partition.most_gpus} GPUs" if has_more else ""
        reason = f"cores; the largest node of {name} has {partition.cpus}{each}"
        entries["cpus"] = (max(1, min(USUAL.cpus, share)), reason)
    return entries


def _describe(partition: Partition) -> str:
    """Returns a partition in a line of words."""
    if not partition.is_up:
        return "is down"
    gpus = f"GPUs: {', '.join(partition.gpu_words)}" if partition.gpus else "no GPU"
    is_endless = math.isinf(partition.time_min)
    limit = "no time limit" if is_endless else f"jobs of {partition.time_min:g} min"
    return f"{pluralize(partition.num_nodes, 'node')} up, {gpus}, {limit}"


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words) or "none"
