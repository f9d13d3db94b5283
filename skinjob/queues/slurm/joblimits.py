"""SLURM's limits on the number of jobs: of an array, an account, a QOS and a user."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from skinjob.config import ClusterConfig, TrainConfig
from skinjob.ownership import user_name
from skinjob.queues.base import group_runs
from skinjob.queues.slurm.client import read, read_pairs, settings
from skinjob.words import pluralize

AXES = {"batch_size": "--batch-sizes", "seed": "--seeds", "lr": "--lr"}
WAIT = "squeue --user=$USER   # wait until some jobs have ended, then try again"


@dataclass(frozen=True)
class JobLimit:
    """A limit on the number of jobs."""

    name: str
    """SLURM's name for it, and what it applies to."""
    most: int
    used: int = 0
    """Jobs that already count."""

    @property
    def left(self) -> int:
        return max(0, self.most - self.used)

    def __str__(self) -> str:
        subject = "an array may have" if "Array" in self.name else "you may have"
        used = f", {self.used} of them used" if self.used else ""
        where = "" if "Array" in self.name else " in the queue"
        return f"{subject} {self.most}{where} ({self.name}{used})"


def job_limits(cluster: ClusterConfig) -> list[JobLimit]:
    """Returns the limits for these jobs, the tightest first, as far as SLURM shows them."""
    return sorted(_limits(cluster), key=lambda limit: limit.left)


def _limits(cluster: ClusterConfig) -> Iterator[JobLimit]:
    for name in ("MaxArraySize", "MaxJobCount"):
        if settings().get(name, "").isdigit():
            yield JobLimit(name, int(settings()[name]))
    if "limits" not in settings().get("AccountingStorageEnforce", ""):
        return
    me = user_name(os.geteuid())
    text = read("scontrol", "--oneliner", "show", "assoc_mgr", f"users={me}", "flags=assoc,qos")
    yield from _of_accounts(text, cluster.account)
    for qos in _qos(cluster, me):
        yield from _of_qos(text, qos)


def _of_accounts(text: str, account: str | None) -> Iterator[JobLimit]:
    """Yields the limits of the user's association and of its parent accounts."""
    lines = [read_pairs(line) for line in text.splitlines()]
    rows = [row for row in lines if "Account" in row]
    own = [row for row in rows if row.get("UserName", "").endswith(f"({os.geteuid()})")]
    mine = [row for row in own if account in (None, row["Account"])]
    mine.sort(
        key=lambda row: row.get("DefAssoc") != "Yes"
    )  # associations of single partitions come later
    for row in mine[:1]:
        yield from _counted(row, "MaxSubmitJobs", f"account {row['Account']}")
        yield from _counted(row, "GrpSubmitJobs", f"account {row['Account']}")
        name = row["Account"]
        while above := [
            row for row in rows if (row.get("Account"), row.get("UserName")) == (name, "")
        ]:
            yield from _counted(above[0], "GrpSubmitJobs", f"account {name}")
            name = above[0].get("ParentAccount", "").partition("(")[0]


def _counted(row: dict[str, str], word: str, whose: str) -> Iterator[JobLimit]:
    if match := re.fullmatch(r"(\d+)\((\d+)\)", row.get(word, "")):
        yield JobLimit(f"{word} of {whose}", int(match[1]), int(match[2]))


def _qos(cluster: ClusterConfig, me: str) -> list[str]:
    """Returns the QOS of the jobs and of their partition, as far as they are certain."""
    partition = f"partition={cluster.partition}" if cluster.partition else "partition"
    shown = read("scontrol", "--oneliner", "show", *partition.split("=")).splitlines()
    is_meant = [line for line in shown if cluster.partition or " Default=YES " in line]
    of_partition = re.findall(r" QoS=(?!N/A)(\S+)", "\n".join(is_meant))
    if cluster.qos:
        return [cluster.qos, *of_partition]
    words = ("show", "associations", f"user={me}", "format=account,defaultqos,qos")
    rows = [line.split("|") for line in _sacctmgr(*words)]
    names = {row[1] or row[2] for row in rows if cluster.account in (None, row[0])}
    return [*(name for name in names if len(names) == 1 and "," not in name), *of_partition]


def _of_qos(text: str, qos: str) -> Iterator[JobLimit]:
    """Yields the limits of a QOS; scontrol counts jobs only for users that have some."""
    used = next((line for line in text.splitlines() if line.startswith(f"QOS={qos}(")), "")
    columns = "maxsubmitjobsperuser,maxsubmitjobsperaccount,grpsubmitjobs"
    for row in _sacctmgr("show", "qos", f"where name={qos}", f"format={columns}"):
        for most, word, pattern in zip(
            row.split("|"),
            ("MaxSubmitJobsPerUser", "MaxSubmitJobsPerAccount", "GrpSubmitJobs"),
            (
                rf"[ =,]{os.geteuid()}={{[^}}]*MaxSubmitJobsPU=\w+\((\d+)\)",
                r"MaxSubmitJobsPA=\w+\((\d+)\)",
                r"GrpSubmitJobs=\w+\((\d+)\)",
            ),
            strict=False,
        ):
            if most.isdigit():
                count = re.search(pattern, used)
                yield JobLimit(f"{word} of QOS {qos}", int(most), int(count[1]) if count else 0)


def _sacctmgr(*words: str) -> list[str]:
    parts = [part for word in words for part in word.split(" ")]
    return read("sacctmgr", "--noheader", "--parsable2", "--readonly", *parts).splitlines()


def number_words(configs: Mapping[str, TrainConfig], limits: Sequence[JobLimit]) -> tuple[str, int]:
    """Returns why these runs have too many jobs, and how many jobs SLURM would take."""
    num_jobs = len(group_runs(configs))
    num = pluralize(num_jobs, "job")
    if not limits or limits[0].left >= num_jobs:  # SLURM does not show the limit
        return f"SLURM does not take {num} now", num_jobs // 2
    return f"{num}, and {limits[0]}", limits[0].left


def fewer(configs: Mapping[str, TrainConfig], most: int, command: str, name: str) -> str:
    """Returns *command* with options for the first runs, which make at most *most* jobs.

    The options give the sweep a *name*: later submits with the same name add to the same sweep.
    """
    options = f"{_options(configs, most)} --name {shlex.quote(name)}"
    return f"{command} {options}   # later the others, under the same name"


def _options(configs: Mapping[str, TrainConfig], most: int) -> str:
    """Returns options for the first runs, which make at most *most* jobs."""
    options: list[str] = []
    for field, option in AXES.items():
        values = list(dict.fromkeys(getattr(config, field) for config in configs.values()))
        for count in range(len(values), 0, -1):
            kept = {k: c for k, c in configs.items() if getattr(c, field) in values[:count]}
            if len(group_runs(kept)) <= most:
                return " ".join([*options, f"{option} {','.join(map(str, values[:count]))}"])
        options.append(f"{option} {values[0]}")
        configs = kept
    return " ".join(options)
