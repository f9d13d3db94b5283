"""Chooses a site profile from what SLURM says about the cluster: `skinjob init-site`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from skinjob.config import MIN_TIME_MIN, ClusterConfig
from skinjob.errors import ClusterError, ConfigError
from skinjob.queues.slurm.site import LIST_PARTITIONS, Partition, Rights, Site
from skinjob.words import pluralize

DEFAULT = ClusterConfig()


@dataclass(frozen=True)
class Choice:
    """A profile: values of ClusterConfig, and the reason for each."""

    site: Site
    partition: Partition
    entries: dict[str, tuple[Any, str]]  # value and reason, by the name of the field

    @property
    def values(self) -> dict[str, Any]:
        return {name: value for name, (value, _) in self.entries.items()}


def choose(site: Site, name: str | None = None) -> Choice:
    """Returns a profile for the partition of this name, or for the best that is up.

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
        "cluster": ("slurm", "without SLURM, submit fails instead of training on this machine"),
        "partition": (partition.name, reason),
        **_rights(partition, site.rights),
        **_gpus(partition, site),
        **_limits(partition),
    }
    choice = Choice(site, partition, entries)
    ClusterConfig(**choice.values)  # raises what submit would raise
    return choice


def profile_text(choice: Choice) -> str:
    """Returns the profile as TOML, with the alternatives in comments."""
    lines = [
        "# Written by `skinjob init-site` for this cluster. You may change it: `skinjob config`",
        "# shows which values are used and why, `skinjob doctor` whether they can work.",
        "",
        "[cluster]",
    ]
    for name, (value, reason) in choice.entries.items():
        lines += [f"# {reason}", f"{name} = {json.dumps(value, ensure_ascii=False)}"]
    site, features = choice.site, choice.partition.features
    lines += ["", "# The alternatives"]
    lines += [f"# partition = {json.dumps(p.name)}: {_describe(p)}" for p in site.partitions]
    lines += [f"# constraint: {', '.join(features)}"] if features else []
    for name, words in (("account", site.rights.accounts), ("qos", site.rights.qos)):
        lines += [f"# {name}: {', '.join(words)}; the first is the default"] if words else []
    return "\n".join(lines) + "\n"


def _is_usable(partition: Partition, rights: Rights) -> bool:
    """Returns whether a partition takes jobs of this user."""
    allowed, mine = set(partition.accounts), set(rights.accounts)
    is_allowed = not (allowed and mine) or bool(allowed & mine)
    return partition.takes_jobs and partition.time_min >= MIN_TIME_MIN and is_allowed


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
            f"no partition that is up takes your jobs of {MIN_TIME_MIN} minutes", LIST_PARTITIONS
        )
    return max(
        usable,
        key=lambda partition: (
            partition.num_gpus > 0,
            partition.time_min >= DEFAULT.time_min,
            partition.is_default,
            partition.num_gpus,
            partition.num_nodes,
        ),
    )


def _why(best: Partition, usable: Sequence[Partition]) -> str:
    """Returns why this partition was chosen from the usable partitions."""
    alike = [partition for partition in usable if bool(partition.num_gpus) == bool(best.num_gpus)]
    what = "has GPUs and is up" if best.num_gpus else "is up; no partition has GPUs"
    if len(alike) == 1:
        beginning = "the only partition that"
    elif best.is_default:
        beginning = "the default of the cluster, and it"
    else:
        beginning = "the best partition that"
    return f"{beginning} {what}: {_describe(best)}"


def _rights(partition: Partition, rights: Rights) -> dict[str, tuple[Any, str]]:
    """Returns account and QOS, if the partition does not take the user's defaults."""
    entries = {}
    for name, mine, allowed in (
        ("account", rights.accounts, partition.accounts),
        ("qos", rights.qos, partition.qos),
    ):
        if allowed and not set(mine[:1]) <= set(allowed):
            value = next((word for word in mine if word in allowed), allowed[0])
            reason = f"{partition.name} takes {', '.join(allowed)}; you have {_listed(mine)}"
            entries[name] = (value, reason)
    return entries


def _gpus(partition: Partition, site: Site) -> dict[str, tuple[Any, str]]:
    """Returns what asks for a GPU of a single type, to give all runs of a sweep the same GPU."""
    if not partition.num_gpus:
        reason = f"no node of {partition.name} that is up has a GPU: runs train on the CPU"
        return {"gpus": (0, reason)}
    entries: dict[str, tuple[Any, str]] = {}
    if not site.has_gpu_flags:
        reason = "this SLURM selects resources in a way that knows only --gres"
        entries["gpu_flag"] = ("gres", reason)
    kinds = sorted(((count, kind) for kind, count in partition.gpus if kind), reverse=True)
    if kinds:
        others = ", ".join(f"{kind} ({count})" for count, kind in kinds[1:])
        more = f"; others: {others}" if others else ""
        entries["gpu_type"] = (kinds[0][1], f"{kinds[0][0]} in this partition{more}")
    return entries


def _limits(partition: Partition) -> dict[str, tuple[Any, str]]:
    """Returns time, memory and cores: the built-in defaults, or what the partition has if less."""
    name, limit_min = partition.name, partition.time_min
    limit = "has no limit" if math.isinf(limit_min) else f"ends a job at {limit_min:g}"
    entries: dict[str, tuple[Any, str]] = {
        "time_min": (int(min(DEFAULT.time_min, limit_min)), f"minutes; {name} {limit}")
    }
    if partition.memory_mb:
        # A tenth stays free for the node. Rounded down to half a GB.
        most_gb = math.floor(partition.memory_mb * 0.9 / 1024 * 2) / 2
        reason = f"GB; the largest node of {name} has {partition.memory_mb / 1024:.0f}"
        entries["mem_gb"] = (max(0.5, min(DEFAULT.mem_gb, most_gb)), reason)
    if partition.cpus:
        share = partition.cpus // max(partition.most_gpus, 1)
        has_more = partition.most_gpus > 1
        each = f", {share} for each of its {partition.most_gpus} GPUs" if has_more else ""
        reason = f"cores; the largest node of {name} has {partition.cpus}{each}"
        entries["cpus"] = (max(1, min(DEFAULT.cpus, share)), reason)
    return entries


def _describe(partition: Partition) -> str:
    """Returns a partition in words."""
    if not partition.is_up:
        return "is down"
    gpus = f"GPUs: {', '.join(partition.gpu_words)}" if partition.gpus else "no GPU"
    is_endless = math.isinf(partition.time_min)
    limit = "no time limit" if is_endless else f"jobs of {partition.time_min:g} min"
    return f"{pluralize(partition.num_nodes, 'node')} up, {gpus}, {limit}"


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words) or "none"
