"""What a SLURM cluster offers: its partitions, with the nodes and the time limit of each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from skinjob.submit.slurm import ask

ASKED = "%P|%a|%l|%D|%T|%c|%m|%G"
DOWN = ("down", "drain", "fail", "inval", "unknown", "perfctrs", "future")
"""Beginnings of the states of nodes that take no job."""


@dataclass(frozen=True)
class Nodes:
    """Nodes of a partition that are alike."""

    count: int
    is_up: bool
    """Whether they take jobs, be it when others have ended."""
    cpus: int
    memory_mb: int
    gpus: Mapping[str, int]
    """GPUs of one node by their type, which is empty where the site has named none."""


@dataclass(frozen=True)
class Partition:
    """A set of nodes, and what its jobs may ask for."""

    name: str
    is_up: bool
    is_default: bool
    max_time_min: int | None
    """The longest time limit of a job, minutes; None where there is no limit."""
    nodes: tuple[Nodes, ...]


def partitions() -> dict[str, Partition] | None:
    """Returns the cluster's partitions by name, or None where SLURM does not answer."""
    answer = ask("sinfo", "--noheader", "--all", "--exact", f"--format={ASKED}")
    if answer is None or answer.returncode:
        return None
    found: dict[str, Partition] = {}
    for line in answer.stdout.splitlines():
        words = [word.strip() for word in line.split("|")]
        if len(words) != 8:
            continue
        name = words[0].removesuffix("*")
        before = found[name].nodes if name in found else ()
        found[name] = Partition(
            name=name,
            is_up=words[1] == "up",
            is_default=words[0].endswith("*"),
            max_time_min=minutes(words[2]),
            nodes=before + _nodes(*words[3:]),
        )
    return found


def settings() -> dict[str, str]:
    """Returns slurm.conf as the controller has it, empty where SLURM does not answer."""
    answer = ask("scontrol", "show", "config")
    lines = answer.stdout.splitlines() if answer else []
    pairs = (line.partition("=") for line in lines if "=" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def minutes(limit: str) -> int | None:
    """Returns a time limit of SLURM's in minutes, rounded down; None of one without an end.

    >>> minutes("30:00"), minutes("1-12:00:00"), minutes("2:00:00"), minutes("infinite")
    (30, 2160, 120, None)
    """
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if not match:
        return None
    days, hours, mins = (int(word or 0) for word in match.groups()[:3])
    return (days * 24 + hours) * 60 + mins


def gpu_types(gres: str) -> dict[str, int]:
    """Returns a node's GPUs by type.

    >>> gpu_types("gpu:a100:4(S:0-1),gpu:v100:2,nvme:1"), gpu_types("gpu:4"), gpu_types("(null)")
    ({'a100': 4, 'v100': 2}, {'': 4}, {})
    """
    found: dict[str, int] = {}
    for kind, count in re.findall(r"(?:^|,)gpu(?::([^:,()]+))?:(\d+)", gres):
        found[kind] = found.get(kind, 0) + int(count)
    return found


def _nodes(count: str, state: str, cpus: str, memory: str, gres: str) -> tuple[Nodes, ...]:
    """Returns the nodes of one line of sinfo; a partition may have none."""
    if not count.isdigit() or count == "0":
        return ()
    return (
        Nodes(
            count=int(count),
            is_up=not state.lower().startswith(DOWN) and not state.endswith("*"),
            cpus=_number(cpus),
            memory_mb=_number(memory),
            gpus=gpu_types(gres),
        ),
    )


def _number(text: str) -> int:
    match = re.match(r"\d+", text)  # a + follows where nodes that are shown as one differ
    return int(match[0]) if match else 0
