"""A site's profile, made of what SLURM says of its partitions, GPUs, accounts and limits."""

from __future__ import annotations

import getpass
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from skinjob.config import LEAST_TIME_MIN, ClusterConfig
from skinjob.console import counted
from skinjob.errors import ClusterError, ConfigError
from skinjob.queues.slurm.client import ask, parse_time, read_pairs, settings, words_of

DOWN = ("down", "drain", "fail", "unk", "maint", "inval")


@dataclass(frozen=True)
class Partition:
    """A partition and its nodes, in the words of sinfo and scontrol."""

    name: str
    is_default: bool
    is_up: bool
    time_min: float
    """The longest that a job may run, minutes; inf where there is no limit."""
    num_nodes: int = 0
    """Nodes that are not down."""
    cpus: int = 0
    """Of its largest node."""
    memory_mb: int = 0
    gpus: tuple[tuple[str, int], ...] = ()
    """Types and how many of each on all nodes that are not down; a type may be empty."""
    most_gpus: int = 0
    """Of the node that has most."""
    features: tuple[str, ...] = ()
    accounts: tuple[str, ...] = ()
    """Those that may use it; all where it is empty."""
    qos: tuple[str, ...] = ()

    @property
    def num_gpus(self) -> int:
        return sum(count for _, count in self.gpus)


@dataclass(frozen=True)
class Rights:
    """What the user may ask for, where accounting says it."""

    accounts: tuple[str, ...] = ()
    """The default comes first."""
    qos: tuple[str, ...] = ()


@dataclass(frozen=True)
class Site:
    """A cluster as a user sees it."""

    partitions: tuple[Partition, ...]
    rights: Rights
    has_gpu_flags: bool
    """Whether --gpus-per-node works; sites with an older way of sharing nodes know --gres alone."""


@dataclass(frozen=True)
class Choice:
    """A profile: values of ClusterConfig, and why each of them."""

    site: Site
    partition: Partition
    values: dict[str, Any]
    reasons: dict[str, str]


def ask_site() -> Site:
    """Returns what SLURM says of this cluster; accounting may be absent or forbidden.

    Raises: ClusterError when sinfo is missing or does not answer.
    """
    answer = ask("sinfo", "--noheader", "--format=%P|%a|%l|%c|%m|%G|%f|%D|%T")
    if answer is None:
        raise ClusterError(
            "there is no sinfo on PATH: this is no login node of a SLURM cluster",
            "skinjob submit --cluster local   # trains on this machine",
        )
    if answer.returncode:
        said = words_of(answer) or f"exit code {answer.returncode}"
        raise ClusterError(f"sinfo does not answer: {said}", "scontrol ping")
    partitions = read_sinfo(answer.stdout)
    shown = ask("scontrol", "--oneliner", "show", "partition")
    if shown is not None and not shown.returncode:
        partitions = tuple(_with_rules(one, shown.stdout) for one in partitions)
    return Site(
        partitions=partitions,
        rights=_ask_rights(),
        has_gpu_flags=settings().get("SelectType", "") in ("", "select/cons_tres"),
    )


def read_sinfo(text: str) -> tuple[Partition, ...]:
    """Returns the partitions of sinfo's lines, which are one for each kind of nodes in each."""
    found: dict[str, Partition] = {}
    # With SLURM_CLUSTERS set, sinfo writes which cluster it speaks of, too.
    for line in (line for line in text.splitlines() if line.count("|") == 8):
        name, avail, limit, cpus, memory, gres, features, nodes, state = line.split("|")
        one = found.setdefault(
            name.rstrip("*"),
            Partition(
                name=name.rstrip("*"),
                is_default=name.endswith("*"),
                is_up=avail == "up",
                time_min=_minutes(limit),
            ),
        )
        if not state.lower().startswith(DOWN):
            found[one.name] = _with_nodes(one, int(nodes), cpus, memory, gres, features)
    return tuple(found.values())


def choose(site: Site, partition: str | None = None) -> Choice:
    """Returns a profile for the partition that is named, or for the best that has GPUs and is up.

    Raises: ConfigError when there is no partition of that name, ClusterError when none is up.
    """
    one = _named(site, partition) if partition else _best(site)
    reasons = {"cluster": "jobs go to SLURM, and never to this machine for want of sbatch"}
    reasons["partition"] = _why(one, site, is_named=bool(partition))
    values: dict[str, Any] = {"cluster": "slurm", "partition": one.name}
    for name, mine, allowed in (
        ("account", site.rights.accounts, one.accounts),
        ("qos", site.rights.qos, one.qos),
    ):
        if allowed and not set(mine[:1]) <= set(allowed):
            values[name] = next((word for word in mine if word in allowed), allowed[0])
            reasons[name] = f"{one.name} takes {', '.join(allowed)}; yours: {_listed(mine)}"
    _choose_gpus(site, one, values, reasons)
    _choose_limits(one, values, reasons)
    ClusterConfig(**values)  # what submit would refuse is refused here
    return Choice(site=site, partition=one, values=values, reasons=reasons)


def profile_text(choice: Choice) -> str:
    """Returns the profile as TOML, with what else there is in comments."""
    lines = [
        "# What `skinjob init-site` found on this cluster. Change it as you like: `skinjob config`",
        "# shows which values hold and why, `skinjob doctor` whether they can work.",
        "",
        "[cluster]",
    ]
    for name, value in choice.values.items():
        lines += [f"# {choice.reasons[name]}", f"{name} = {json.dumps(value, ensure_ascii=False)}"]
    lines += ["", "# What else there is here", *(f"# {line}" for line in _alternatives(choice))]
    return "\n".join(lines) + "\n"


def _alternatives(choice: Choice) -> list[str]:
    """Returns what could have been chosen instead, a line each."""
    site, chosen = choice.site, choice.partition
    lines = [f"partition = {json.dumps(one.name)}: {_told(one)}" for one in site.partitions]
    if chosen.features:
        lines.append(f"constraint: {', '.join(chosen.features)}")
    for name, words in (("account", site.rights.accounts), ("qos", site.rights.qos)):
        if words:
            lines.append(f"{name}: {', '.join(words)}; without a word the first")
    return lines


def _choose_gpus(
    site: Site, one: Partition, values: dict[str, Any], reasons: dict[str, str]
) -> None:
    """Adds what asks for a GPU: of a type, so that the runs of a sweep are on GPUs alike."""
    if not one.num_gpus:
        values["gpus"] = 0
        reasons["gpus"] = f"no node of {one.name} that is up has a GPU: runs train on the CPU"
        return
    if not site.has_gpu_flags:
        values["gpu_flag"] = "gres"
        reasons["gpu_flag"] = "this SLURM shares nodes in a way that knows --gres alone"
    types = [(count, name) for name, count in one.gpus if name]
    if types:
        count, name = max(types)
        values["gpu_type"] = name
        others = ", ".join(f"{other} ({number})" for number, other in sorted(types)[::-1][1:])
        more = f"; others: {others}" if others else ""
        reasons["gpu_type"] = f"there are {count} of them{more}"


def _choose_limits(one: Partition, values: dict[str, Any], reasons: dict[str, str]) -> None:
    """Adds time, memory and cores, each as built in or as much as the partition has."""
    usual = ClusterConfig()
    values["time_min"] = int(min(usual.time_min, one.time_min))
    limit = "has no limit" if math.isinf(one.time_min) else f"ends a job at {one.time_min:g}"
    reasons["time_min"] = f"minutes; {one.name} {limit}"
    if one.memory_mb:
        # A tenth is left to the node; in halves, so that no rounding asks for more than there is.
        most_gb = math.floor(one.memory_mb * 0.9 / 1024 * 2) / 2
        values["mem_gb"] = max(0.5, min(usual.mem_gb, most_gb))
        reasons["mem_gb"] = f"GB; the largest node of {one.name} has {one.memory_mb / 1024:.0f}"
    if one.cpus:
        share = one.cpus // max(one.most_gpus, 1)
        values["cpus"] = max(1, min(usual.cpus, share))
        each = f", {share} for each of its {one.most_gpus} GPUs" if one.most_gpus > 1 else ""
        reasons["cpus"] = f"cores; the largest node of {one.name} has {one.cpus}{each}"


def _named(site: Site, name: str) -> Partition:
    for one in site.partitions:
        if one.name == name:
            return one
    raise ConfigError(
        f"partition is {name!r}, and must be one of {_listed([p.name for p in site.partitions])}",
        f"skinjob init-site --partition {_best(site).name}",
    )


def _best(site: Site) -> Partition:
    """Returns the partition for GPU jobs that one would take: the default, else the largest."""
    usable = [one for one in site.partitions if _is_usable(one, site.rights)]
    if not usable:
        raise ClusterError(
            f"no partition is up that would take a job of yours of {LEAST_TIME_MIN} minutes",
            "sinfo --summarize",
        )
    usual_min = ClusterConfig().time_min
    return max(
        usable,
        key=lambda one: (
            one.num_gpus > 0,
            one.time_min >= usual_min,
            one.is_default,
            one.num_gpus,
            one.num_nodes,
        ),
    )


def _is_usable(one: Partition, rights: Rights) -> bool:
    is_mine = not (one.accounts and rights.accounts) or set(one.accounts) & set(rights.accounts)
    return bool(one.is_up and one.num_nodes and one.time_min >= LEAST_TIME_MIN and is_mine)


def _why(one: Partition, site: Site, *, is_named: bool) -> str:
    if is_named:
        return f"asked for with --partition: {_told(one)}"
    usable = [other for other in site.partitions if _is_usable(other, site.rights)]
    alike = [other for other in usable if bool(other.num_gpus) == bool(one.num_gpus)]
    what = "has GPUs and is up" if one.num_gpus else "is up; none that is has GPUs"
    if len(alike) == 1:
        return f"the only one that {what}: {_told(one)}"
    best = (
        "the cluster's own choice, and it" if one.is_default else "of several the one that suits:"
    )
    return f"{best} {what}: {_told(one)}"


def _told(one: Partition) -> str:
    """Returns a partition in a line of words."""
    if not one.is_up:
        return "is down"
    gpus = [f"{count} {name}".strip() for name, count in one.gpus]
    limit = "no time limit" if math.isinf(one.time_min) else f"jobs of {one.time_min:g} min"
    nodes = f"{counted(one.num_nodes, 'node')} up"
    return f"{nodes}, {f'GPUs: {_listed(gpus)}' if gpus else 'no GPU'}, {limit}"


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words) or "none"


def _with_nodes(
    one: Partition, nodes: int, cpus: str, memory: str, gres: str, features: str
) -> Partition:
    """Returns the partition with more nodes; sinfo writes 8+ for nodes of 8 and more."""
    gpus = Counter(dict(one.gpus))
    on_node = read_gres(gres)
    for kind, count in on_node:
        gpus[kind] += nodes * count
    words = set() if features == "(null)" else set(features.split(","))
    return replace(
        one,
        num_nodes=one.num_nodes + nodes,
        cpus=max(one.cpus, int(cpus.rstrip("+"))),
        memory_mb=max(one.memory_mb, int(memory.rstrip("+"))),
        gpus=tuple(sorted(gpus.items())),
        most_gpus=max(one.most_gpus, sum(count for _, count in on_node)),
        features=tuple(sorted({*one.features, *words})),
    )


def read_gres(text: str) -> list[tuple[str, int]]:
    """Returns types of GPUs and how many a node has of each.

    >>> read_gres("gpu:a100:4(S:0-1),gpu:2,shard:8")
    [('a100', 4), ('', 2)]
    >>> read_gres("gpu"), read_gres("(null)")
    ([('', 1)], [])
    """
    found = []
    for part in re.sub(r"\([^)]*\)", "", text).split(","):
        name, *words = part.split(":")
        if name == "gpu":
            count = int(words.pop()) if words and words[-1].isdigit() else 1
            found.append((words[0] if words else "", count))
    return found


def _with_rules(one: Partition, text: str) -> Partition:
    """Returns the partition with what scontrol says of who may use it."""
    for line in text.splitlines():
        said = read_pairs(line)
        if said.get("PartitionName") == one.name:
            return replace(
                one,
                is_up=said.get("State", "UP") == "UP" and one.is_up,
                accounts=_allowed(said.get("AllowAccounts")),
                qos=_allowed(said.get("AllowQos")),
            )
    return one


def _allowed(words: str | None) -> tuple[str, ...]:
    return () if words in (None, "ALL", "") else tuple(str(words).split(","))


def _ask_rights() -> Rights:
    """Returns the user's accounts and QOS; none where accounting is off or does not say."""
    user = getpass.getuser()
    answer = ask(
        "sacctmgr",
        "--noheader",
        "--parsable2",
        "--readonly",
        "show",
        "associations",
        f"user={user}",
        "format=account,defaultqos,qos",
    )
    default = ask(
        "sacctmgr", "--noheader", "--parsable2", "--readonly", "show", "user", user,
        "format=defaultaccount",
    )  # fmt: skip
    if answer is None or answer.returncode:
        return Rights()
    rows = [line.split("|") for line in answer.stdout.splitlines() if line.count("|") == 2]
    first = default.stdout.split() if default is not None and not default.returncode else []
    return Rights(
        accounts=_once([*first, *(row[0] for row in rows)]),
        qos=_once([*(row[1] for row in rows), *(q for row in rows for q in row[2].split(","))]),
    )


def _once(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for word in words if word))


def _minutes(limit: str) -> float:
    """Returns a time limit of sinfo in minutes; its words for none are infinite and n/a."""
    seconds = parse_time(limit)
    return math.inf if seconds is None else seconds / 60
