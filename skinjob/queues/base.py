"""The interface of all queues: what skinjob asks of the program that starts its jobs.

A queue is a module below skinjob/queues with a class `QUEUE`. `config.CLUSTERS` lists its name.
docs/queues.md explains each method.
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
from skinjob.sweeps.records import UPGRADE, Failure, Status, plain_reason, write_record

MOST_HEADS = 128  # per job, which trains its heads one after another on one core


@dataclass(frozen=True)
class QueuedJob:
    """A job that waits or runs."""

    id: str
    is_waiting: bool
    """Whether its run waits: the job has not started, or will start again."""
    note: str = ""
    """A few words: why the job waits, or what it does while it neither waits nor runs."""
    node: str = ""
    fix: str = ""
    """A command, if the job never starts by itself."""


@dataclass(frozen=True)
class JobEnd:
    """How a job ended."""

    kind: Failure | Status | None = None
    """What ended it, if the queue knows more than an exit code."""
    words: str = ""
    """What happened, as the end of a sentence: "reached its time limit of 2:00:00"."""
    lacked: str | None = None
    """The field of ClusterConfig that was too small: time_min or mem_gb."""
    exit_code: int = 0
    signal: int = 0
    """The signal that killed it, or 0."""
    node: str = ""
    ended_utc: str | None = None

    @property
    def is_clean(self) -> bool:
        return self.kind is None and not self.exit_code and not self.signal


class SilentError(ClusterError):
    """The queue did not list its jobs."""

    def __init__(self, words: str, *, is_refusal: bool) -> None:
        """*words* are the queue's own, or empty. *is_refusal*: it answered with an error."""
        super().__init__(words, "skinjob status")
        self.is_refusal = is_refusal


class NoAnswerError(ClusterError):
    """The queue did not confirm the jobs: they may be queued."""


class RefusedError(ClusterError):
    """The queue took no job."""


class Queue(ABC):
    """A queue. Each command makes a new object, which may remember answers."""

    name: str
    """The value of --cluster."""
    title: str
    """Its name in sentences."""
    is_this_machine = False
    """Whether jobs use the Python, the disks and the GPUs of this machine."""
    look_s: float = 15
    """Seconds between two questions: many people may share the queue's server."""
    noise = r"submitit (INFO|W|ERROR)"
    """A regular expression: how lines begin that the queue adds to a job's output."""

    @property
    @abstractmethod
    def problem(self) -> tuple[str, str]:
        """Why this machine cannot use the queue, and the fix; two empty texts if it can."""

    def own_options(self, cluster: ClusterConfig) -> list[str]:
        """Returns the options that only this queue understands, as a user types them."""
        return []

    def require_folder(self, folder: Path) -> None:  # noqa: B027  # most queues accept any
        """Checks that jobs can write their output to a folder. Raises: ConfigError."""

    def notes(self) -> list[str]:
        """Returns remarks for the user, which `submit` prints before it queues jobs."""
        return []

    @abstractmethod
    def jobs_at_once(self, cluster: ClusterConfig) -> int:
        """Returns how many jobs of a sweep may run at the same time."""

    def script(
        self, sweep: Sweep, configs: Mapping[str, TrainConfig], cluster: ClusterConfig
    ) -> str:
        """Returns the job script that `submit` would use; empty if the queue needs none."""
        return ""

    def require_free(self, sweep: Sweep) -> None:  # noqa: B027  # most queues always are
        """Waits until a sweep without unfinished runs can get new jobs. Raises: RunError."""

    def recover_submit(self, sweep: Sweep) -> list[str]:
        """Records the jobs of a submit that was killed; returns the names of their runs.

        Raises: NoAnswerError while the queue does not show whether such jobs exist.
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

        *is_new*: the caller removes the sweep if the queue takes no job.

        Raises: RefusedError or RunError if no job is queued, NoAnswerError if some may be.
        """

    @abstractmethod
    def jobs(self, sweep: Sweep) -> dict[str, QueuedJob]:
        """Returns the waiting and running jobs of a sweep by run name.

        Raises: SilentError if the queue does not answer.
        """

    @abstractmethod
    def job_ends(self, sweep: Sweep, jobs: Collection[str]) -> dict[str, JobEnd | None]:
        """Returns how jobs ended that left the queue; None if the queue has forgotten a job.

        The answer lacks a job if the queue does not know its end yet.
        """

    def ask_about(self, job: str) -> str:
        """Returns a command that shows what the queue knows about a job."""
        return "skinjob status"

    @abstractmethod
    def cancel(self, sweep: Sweep, jobs: Collection[str]) -> list[str]:
        """Ends waiting and running jobs among *jobs*, and returns them.

        Raises: ClusterError that names the jobs, if the queue does not end them.
        """

    def seconds_left(self) -> float | None:
        """Returns the seconds until the time limit of this job; None if the queue has no answer."""
        return None

    def is_restart(self) -> bool:
        """Says whether the queue has started this job again."""
        return False

    def num_cpus(self) -> int | None:
        """Returns how many CPU cores this job may use; None for all cores that it sees."""
        return None


def open_queue(name: str) -> Queue:
    """Returns a new object for a queue; *name* is an entry of `config.CLUSTERS`.

    Raises: RunError for any other name, from a damaged sweep.json or a newer skinjob.
    """
    if name not in CLUSTERS or name == "auto":
        raise RunError(f"this skinjob knows no cluster {name!r}", UPGRADE)
    queue: Queue = import_module(f"skinjob.queues.{name}").QUEUE()
    return queue


def queue_of(sweep: Sweep) -> Queue:
    """Returns the queue that has a sweep's jobs. Raises: RunError if the folder is no sweep."""
    return open_queue(sweep.info().asked("cluster"))


def choose_queue(cluster: ClusterConfig) -> Queue:
    """Returns the queue of --cluster; for auto, the first queue that this machine can use.

    Raises: ConfigError if this machine cannot use it, or if an option needs a queue that is absent.
    """
    is_auto = cluster.cluster == "auto"
    for name in CLUSTERS if is_auto else [cluster.cluster]:
        if name == "auto":
            continue
        queue = open_queue(name)
        problem, fix = queue.problem
        if not problem:
            return queue
        if not is_auto:
            raise ConfigError(f"cluster {name} was asked for and {problem}", fix)
        if asked := queue.own_options(cluster):
            raise ConfigError(f"{asked[0]} asks for {queue.title}, and {problem}", fix)
    raise ConfigError(problem, fix)


def group_runs(configs: Mapping[str, TrainConfig]) -> list[tuple[str, ...]]:
    """Returns the names of the runs that each job trains.

    Heads with the same batch size share a job: training all of them costs little more than one.
    Runs that train all layers share nothing, so each has its own job.
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
    """Returns the file with a job's stdout and stderr."""
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
    """Returns the cluster settings of a sweep's last jobs, with *changes*.

    Raises: RunError for a damaged sweep.json, ConfigError for a value out of range.
    """
    try:
        return sweep.info().cluster_config(**changes)
    except ValueError as error:
        show = f"cat {shlex.quote(str(sweep.sweep_file))}"
        raise RunError(f"{sweep.sweep_file}: cluster: {plain_reason(error)}", show) from None


def record_jobs(sweep: Sweep, jobs: Mapping[str, str]) -> None:
    """Adds job ids by run name to sweep.json."""
    info = sweep.info()
    write_record(sweep.sweep_file, replace(info, jobs={**info.jobs, **jobs}))
