"""What a queue can do: the seam between skinjob and whatever starts its jobs.

A queue is one module below skinjob/queues with a class `QUEUE`, and its name in `config.CLUSTERS`.
docs/queues.md says what each method promises.
"""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from skinjob.config import CLUSTERS, ClusterConfig, TrainConfig
from skinjob.errors import ClusterError, ConfigError, RunError
from skinjob.sweeps.layout import Sweep
from skinjob.sweeps.records import UPGRADE, Failure, Status, write_record

MOST_HEADS = 128  # in one job: they are trained one after another, on one core


@dataclass(frozen=True)
class QueuedJob:
    """A job that waits or runs."""

    id: str
    is_waiting: bool
    """Whether it has not begun, or has to begin again: its run waits, whatever the folder says."""
    note: str = ""
    """Why it waits, or what it does if it neither waits nor runs, in some words."""
    node: str = ""
    fix: str = ""
    """A command, for a job that never starts by itself."""


@dataclass(frozen=True)
class JobEnd:
    """How a job ended."""

    kind: Failure | Status | None = None
    """What ended it, where the queue knows more than an exit code."""
    words: str = ""
    """The same in words that follow the job's name: "reached its time limit of 2:00:00"."""
    lacked: str | None = None
    """The field of ClusterConfig that asks for more of what it lacked: time_min or mem_gb."""
    exit_code: int = 0
    signal: int = 0
    """The signal that killed it, or 0."""
    node: str = ""
    ended_utc: str | None = None

    @property
    def is_clean(self) -> bool:
        return self.kind is None and not self.exit_code and not self.signal


class SilentError(ClusterError):
    """A queue that did not say which jobs it has."""

    def __init__(self, words: str, *, is_refusal: bool) -> None:
        """*words* are its own, if any; *is_refusal* if it heard the question."""
        super().__init__(words, "skinjob status")
        self.is_refusal = is_refusal


class NoAnswerError(ClusterError):
    """A queue that did not say whether it took the jobs: they may be queued."""


class RefusedError(ClusterError):
    """A queue that took no job."""


class Queue(ABC):
    """A queue, as one command sees it; what it answered may be remembered for that long."""

    name: str
    """The word of --cluster."""
    title: str
    """What sentences call it."""
    is_this_machine = False
    """Whether jobs run here, with the Python, the disks and the GPUs of this machine."""
    look_s: float = 15
    """The pause between two questions, which may be asked of a server that many people use."""
    noise = r"submitit (INFO|W|ERROR)"
    """Lines that the queue adds to a job's output, as a regular expression of their beginning."""

    @property
    @abstractmethod
    def absence(self) -> tuple[str, str]:
        """Why the queue cannot be used here, and the fix; two empty texts where it can."""

    def asked_only_here(self, cluster: ClusterConfig) -> list[str]:
        """Returns the options that can only be meant for this queue, as one types them."""
        return []

    def require_folder(self, folder: Path) -> None:  # noqa: B027  # most queues take any
        """Returns when jobs can write their output to a folder. Raises: ConfigError."""

    def notes(self) -> list[str]:
        """Returns what a person should know of the queue before jobs are submitted."""
        return []

    @abstractmethod
    def jobs_at_once(self, cluster: ClusterConfig) -> int:
        """Returns how many jobs of a sweep may run at the same time."""

    def script(
        self, sweep: Sweep, configs: Mapping[str, TrainConfig], cluster: ClusterConfig
    ) -> str:
        """Returns the script that `submit` would hand over; nothing where there is none."""
        return ""

    def require_free(self, sweep: Sweep) -> None:  # noqa: B027  # most queues always are
        """Returns when a sweep whose runs have all ended can be given new jobs. Raises: RunError"""

    def settle(self, sweep: Sweep) -> list[str]:
        """Records the jobs of a submit that was broken off; returns the names of their runs.

        Raises: NoAnswerError while it cannot be known whether there are such jobs.
        """
        return []

    @abstractmethod
    def submit(
        self,
        sweep: Sweep,
        configs: Mapping[str, TrainConfig],
        cluster: ClusterConfig,
        *,
        is_new: bool,
    ) -> dict[str, str]:
        """Queues jobs for runs, records them in sweep.json and returns job ids by run name.

        *is_new* says that the sweep goes away when there are no jobs.

        Raises: RefusedError or RunError when there are no jobs, NoAnswerError when there may be.
        """

    @abstractmethod
    def jobs(self, sweep: Sweep) -> dict[str, QueuedJob]:
        """Returns the jobs of a sweep that wait or run, by the names of their runs.

        Raises: SilentError when the queue does not say.
        """

    @abstractmethod
    def ends(self, sweep: Sweep, jobs: Collection[str]) -> dict[str, JobEnd | None]:
        """Returns how jobs ended that are not in the queue; None of those that it has forgotten.

        A job that is left out is one that it may still say something of.
        """

    def ask_about(self, job: str) -> str:
        """Returns a command that shows what the queue knows of a job."""
        return "skinjob status"

    @abstractmethod
    def cancel(self, sweep: Sweep, jobs: Collection[str]) -> list[str]:
        """Ends those of the jobs that wait or run, and returns them.

        Raises: ClusterError, with the jobs as details, when the queue does not do it.
        """

    def seconds_left(self) -> float | None:
        """Returns the time that is left to the job that asks; None where the queue does not say."""
        return None

    def is_restart(self) -> bool:
        """Returns whether the queue has started the job that asks before."""
        return False

    def num_cpus(self) -> int | None:
        """Returns how many CPU cores the job that asks may use; None for all that it can use."""
        return None


def open_queue(name: str) -> Queue:
    """Returns the queue of this name, one of `config.CLUSTERS`, without remembered answers.

    Raises: RunError for another name, which a damaged or newer sweep.json may have.
    """
    if name not in CLUSTERS or name == "auto":
        raise RunError(f"cluster {name!r} is none that this skinjob knows", UPGRADE)
    queue: Queue = import_module(f"skinjob.queues.{name}").QUEUE()
    return queue


def queue_of(sweep: Sweep) -> Queue:
    """Returns the queue that has a sweep's jobs. Raises: RunError when the folder is no sweep."""
    return open_queue(sweep.info().asked("cluster"))


def choose_queue(cluster: ClusterConfig) -> Queue:
    """Returns the queue that is asked for; for auto the first that can be used here.

    Raises: ConfigError when it cannot be used here, or something is asked for that only a queue
    has which is not here.
    """
    is_auto = cluster.cluster == "auto"
    for name in CLUSTERS if is_auto else [cluster.cluster]:
        if name == "auto":
            continue
        queue = open_queue(name)
        problem, fix = queue.absence
        if not problem:
            return queue
        if not is_auto:
            raise ConfigError(f"cluster {name} was asked for and {problem}", fix)
        if asked := queue.asked_only_here(cluster):
            raise ConfigError(f"{asked[0]} asks for {queue.title}, and {problem}", fix)
    raise ConfigError(problem, fix)


def group_runs(configs: Mapping[str, TrainConfig]) -> list[tuple[str, ...]]:
    """Returns the names of the runs that each job trains.

    A job per batch size: the heads of all its learning rates and seeds cost little more than one.
    Where all layers are trained runs share nothing, and each has a job.
    """
    groups: dict[object, list[str]] = {}
    for name, config in configs.items():
        groups.setdefault(config.batch_size if config.train == "head" else name, []).append(name)
    return [
        tuple(names[first : first + MOST_HEADS])
        for names in groups.values()
        for first in range(0, len(names), MOST_HEADS)
    ]


def job_output(sweep: Sweep, job: str) -> Path:
    """Returns the file that a job's stdout and stderr go to."""
    return sweep.submission_folder / f"{job}_0_log.out"


def runs_by_job(jobs: Mapping[str, str]) -> dict[str, list[str]]:
    """Returns the names of the runs of each job, from job ids by run name.

    >>> runs_by_job({"a": "12_0", "b": "12_0", "c": "12_1"})
    {'12_0': ['a', 'b'], '12_1': ['c']}
    """
    names: dict[str, list[str]] = {}
    for name, job in jobs.items():
        names.setdefault(job, []).append(name)
    return names


def recorded_cluster(sweep: Sweep, **changes: Any) -> ClusterConfig:
    """Returns what the sweep's jobs asked for last, with *changes*.

    Raises: ConfigError for a value that cannot be, RunError when sweep.json does not read.
    """
    try:
        return sweep.info().cluster_config(**changes)
    except ValueError as error:
        show = f"cat {shlex.quote(str(sweep.sweep_file))}"
        raise RunError(f"{sweep.sweep_file}: cluster: {error}", show) from None


def record_jobs(sweep: Sweep, jobs: Mapping[str, str]) -> None:
    """Adds job ids by run name to sweep.json."""
    info = sweep.info()
    write_record(sweep.sweep_file, replace(info, jobs={**info.jobs, **jobs}))
