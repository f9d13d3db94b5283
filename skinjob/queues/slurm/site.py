"""What SLURM says about a cluster: partitions, their GPUs, and what the user may ask for."""

from __future__ import annotations

import getpass
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from skinjob.errors import ClusterError
from skinjob.queues.slurm.client import ask, parse_time, read, read_pairs, settings, words_of

LIST_PARTITIONS = "sinfo --summarize"
DOWN = ("down", "drain", "fail", "unk", "maint", "inval")


@dataclass(frozen=True)
class Partition:
    """A partition and its nodes, from sinfo and scontrol."""

    name: str
    is_default: bool
    is_up: bool
    time_min: float  # the longest time limit of a job; inf if there is no limit
    num_nodes: int = 0  # nodes that are not down; all that follows is about them
    cpus: int = 0  # of the largest node
    memory_mb: int = 0  # of the largest node
    gpus: tuple[tuple[str, int], ...] = ()  # GPUs by type; a type may be ''
    most_gpus: int = 0  # of the node with most GPUs
    features: tuple[str, ...] = ()
    accounts: tuple[str, ...] = ()  # accounts that may use it; empty: all
    qos: tuple[str, ...] = ()  # the same for QOS

    @property
    def num_gpus(self) -> int:
        return sum(count for _, count in self.gpus)

    @property
    def takes_jobs(self) -> bool:
        return self.is_up and self.num_nodes > 0

    @property
    def gpu_words(self) -> list[str]:
        """Each type of GPU with its number, such as `4 a100`."""
        return [f"{count} {kind}".strip() for kind, count in self.gpus]


@dataclass(frozen=True)
class Rights:
    """What the user may ask for, if accounting says so. The default comes first."""

    accounts: tuple[str, ...] = ()
    qos: tuple[str, ...] = ()


@dataclass(frozen=True)
class Site:
    """A cluster as a user sees it."""

    partitions: tuple[Partition, ...]
    rights: Rights
    has_gpu_flags: bool
    """Whether --gpus-per-node works; sites with an older resource selection know only --gres."""


def ask_site() -> Site:
    """Returns what SLURM says about this cluster; accounting may be missing or forbidden.

    Raises: ClusterError when sinfo is missing or does not answer.
    """
    answer = ask("sinfo", "--noheader", "--format=%P|%a|%l|%c|%m|%G|%f|%D|%T")
    if answer is None:
        raise ClusterError(
            "there is no sinfo on PATH: this is not a login node of a SLURM cluster",
            "skinjob submit --cluster local   # trains on this machine",
        )
    if answer.returncode:
        words = words_of(answer) or f"exit code {answer.returncode}"
        raise ClusterError(f"sinfo does not answer: {words}", "scontrol ping")
    lines = read("scontrol", "--oneliner", "show", "partition").splitlines()
    rules = {row.get("PartitionName"): row for row in map(read_pairs, lines)}
    return Site(
        partitions=tuple(
            _with_rules(partition, rules.get(partition.name, {}))
            for partition in read_sinfo(answer.stdout)
        ),
        rights=_ask_rights(),
        has_gpu_flags=settings().get("SelectType", "") in ("", "select/cons_tres"),
    )


def read_sinfo(text: str) -> tuple[Partition, ...]:
    """Returns the partitions from sinfo's lines: a line for each kind of node in each partition."""
    partitions: dict[str, Partition] = {}
    # With SLURM_CLUSTERS set, sinfo also prints a line with the cluster's name.
    for line in (line for line in text.splitlines() if line.count("|") == 8):
        word, avail, limit, cpus, memory, gres, features, nodes, state = line.split("|")
        name = word.rstrip("*")
        # For no limit sinfo also prints infinite or n/a.
        seconds = parse_time(limit)
        time_min = math.inf if seconds is None else seconds / 60
        new = Partition(name, is_default=word != name, is_up=avail == "up", time_min=time_min)
        partition = partitions.setdefault(name, new)
        if not state.lower().startswith(DOWN):
            partitions[name] = _with_nodes(partition, int(nodes), cpus, memory, gres, features)
    return tuple(partitions.values())


def _with_nodes(
    partition: Partition, nodes: int, cpus: str, memory: str, gres: str, features: str
) -> Partition:
    """Returns the partition with more nodes; sinfo writes 8+ for nodes with 8 or more."""
    gpus = Counter(dict(partition.gpus))
    on_node = read_gres(gres)
    for kind, count in on_node:
        gpus[kind] += nodes * count
    words = set() if features == "(null)" else set(features.split(","))
    return replace(
        partition,
        num_nodes=partition.num_nodes + nodes,
        cpus=max(partition.cpus, int(cpus.rstrip("+"))),
        memory_mb=max(partition.memory_mb, int(memory.rstrip("+"))),
        gpus=tuple(sorted(gpus.items())),
        most_gpus=max(partition.most_gpus, sum(count for _, count in on_node)),
        features=tuple(sorted({*partition.features, *words})),
    )


def read_gres(text: str) -> list[tuple[str, int]]:
    """Returns the types of GPUs of a node and the number of each.

    >>> read_gres("gpu:a100:4(S:0-1),gpu:2,shard:8")
    [('a100', 4), ('', 2)]
    >>> read_gres("gpu"), read_gres("(null)")
    ([('', 1)], [])
    """
    gpus = []
    for part in re.sub(r"\([^)]*\)", "", text).split(","):
        name, *words = part.split(":")
        if name == "gpu":
            count = int(words.pop()) if words and words[-1].isdigit() else 1
            gpus.append((words[0] if words else "", count))
    return gpus


def _with_rules(partition: Partition, row: dict[str, str]) -> Partition:
    """Returns the partition with the accounts and QOS that scontrol allows."""
    accounts, qos = (
        () if row.get(key, "ALL") in ("ALL", "") else tuple(row[key].split(","))
        for key in ("AllowAccounts", "AllowQos")
    )
    is_up = partition.is_up and row.get("State", "UP") == "UP"
    return replace(partition, is_up=is_up, accounts=accounts, qos=qos)


def _ask_rights() -> Rights:
    """Returns the user's accounts and QOS; empty if accounting does not list them."""
    user = getpass.getuser()
    show = ("sacctmgr", "--noheader", "--parsable2", "--readonly", "show")
    text = read(*show, "associations", f"user={user}", "format=account,defaultqos,qos")
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 2]
    default = read(*show, "user", user, "format=defaultaccount").split() if rows else []
    return Rights(
        accounts=_unique([*default, *(row[0] for row in rows)]),
        qos=_unique([*(row[1] for row in rows), *(q for row in rows for q in row[2].split(","))]),
    )


def _unique(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for word in words if word))
