"""How many jobs SLURM takes: in an array, and in its queue of an account, a QOS or a user."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from skinjob.config import ClusterConfig
from skinjob.ownership import user_name
from skinjob.queues.slurm.client import ask


@dataclass(frozen=True)
class JobLimit:
    """How many jobs there may be."""

    name: str
    """SLURM's word for it, and of whom it is."""
    most: int
    used: int = 0
    """Jobs that count against it already."""

    @property
    def left(self) -> int:
        return max(0, self.most - self.used)

    def __str__(self) -> str:
        whose = "an array may have" if "Array" in self.name else "you may have"
        used = f", {self.used} of them used" if self.used else ""
        where = "" if "Array" in self.name else " in the queue"
        return f"{whose} {self.most}{where} ({self.name}{used})"


def job_limits(cluster: ClusterConfig) -> list[JobLimit]:
    """Returns the limits that hold for the jobs, the tightest first, as far as SLURM tells them."""
    return sorted(_limits(cluster), key=lambda one: one.left)


def _limits(cluster: ClusterConfig) -> Iterator[JobLimit]:
    settings = _said("scontrol", "show", "config")
    found = dict(re.findall(r"(?m)^(\w+)\s*= (\S+)$", settings))
    for name in ("MaxArraySize", "MaxJobCount"):
        if found.get(name, "").isdigit():
            yield JobLimit(name, int(found[name]))
    if "limits" not in found.get("AccountingStorageEnforce", ""):
        return
    me = user_name(os.geteuid())
    text = _said("scontrol", "--oneliner", "show", "assoc_mgr", f"users={me}", "flags=assoc,qos")
    yield from _of_accounts(text, cluster.account)
    for qos in _qos(cluster, me):
        yield from _of_qos(text, qos)


def _of_accounts(text: str, account: str | None) -> Iterator[JobLimit]:
    """Yields the limits of the user's association, and of the accounts above it."""
    lines = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in text.splitlines()]
    rows = [row for row in lines if "Account" in row]
    own = [row for row in rows if row.get("UserName", "").endswith(f"({os.geteuid()})")]
    mine = [row for row in own if account in (None, row["Account"])]
    mine.sort(key=lambda row: row.get("DefAssoc") != "Yes")  # another partition's come later
    for row in mine[:1]:
        yield from _counted(row, "MaxSubmitJobs", f"account {row['Account']}")
        yield from _counted(row, "GrpSubmitJobs", f"account {row['Account']}")
        name = row["Account"]
        while above := [
            one for one in rows if (one.get("Account"), one.get("UserName")) == (name, "")
        ]:
            yield from _counted(above[0], "GrpSubmitJobs", f"account {name}")
            name = above[0].get("ParentAccount", "").partition("(")[0]


def _counted(row: dict[str, str], word: str, whose: str) -> Iterator[JobLimit]:
    if match := re.fullmatch(r"(\d+)\((\d+)\)", row.get(word, "")):
        yield JobLimit(f"{word} of {whose}", int(match[1]), int(match[2]))


def _qos(cluster: ClusterConfig, me: str) -> list[str]:
    """Returns the QOS of the jobs, and that of their partition; not one that has to be guessed."""
    partition = f"partition={cluster.partition}" if cluster.partition else "partition"
    shown = _said("scontrol", "--oneliner", "show", *partition.split("=")).splitlines()
    is_meant = [line for line in shown if cluster.partition or " Default=YES " in line]
    found = re.findall(r" QoS=(?!N/A)(\S+)", "\n".join(is_meant))
    if cluster.qos:
        return [cluster.qos, *found]
    words = ("show", "associations", f"user={me}", "format=account,defaultqos,qos")
    rows = [line.split("|") for line in _sacctmgr(*words)]
    names = {row[1] or row[2] for row in rows if cluster.account in (None, row[0])}
    return [*(name for name in names if len(names) == 1 and "," not in name), *found]


def _of_qos(text: str, qos: str) -> Iterator[JobLimit]:
    """Yields the limits of a QOS; scontrol has those of a user only while the user has jobs."""
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
    return _said("sacctmgr", "--noheader", "--parsable2", "--readonly", *parts).splitlines()


def _said(*command: str) -> str:
    """Returns what a command of SLURM's answers; nothing where it does not."""
    answer = ask(*command)
    return "" if answer is None or answer.returncode else answer.stdout
