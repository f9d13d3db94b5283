"""What a sweep has on record: sweep.json, config.json and state.json, each with its format.

Readers give defaults for what an older file lacks, pass over keys that they do not know, and refuse
a newer format. FORMAT goes up with a change that an older skinjob must not read past.
"""

from __future__ import annotations

import json
import shlex
import stat
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from skinjob.config import ClusterConfig, TrainConfig
from skinjob.errors import ConfigError, RunError
from skinjob.files import write_json

Record = TypeVar("Record")

FORMAT = 2
"""Of what is written. Format 1 had other words in state.json, and none of its files but sweep.json
said so."""

UPGRADE = "pip install --upgrade skinjob"

METRICS = {
    "sweep": "name of the sweep",
    "run": "name of the run",
    "batch_size": "images per update",
    "seed": "what drew the head's first values and the order of the images",
    "epoch": "number of the epoch, from 1",
    "updates": "updates since the start",
    "lr": "learning rate of the epoch's last update",
    "train_loss": "mean cross-entropy of the training images, each before its update",
    "train_accuracy": "fraction of training images that were right, each before its update",
    "test_loss": "mean cross-entropy of the test images after the epoch",
    "test_accuracy": "fraction of test images that are right after the epoch",
    "test_auc": "area under the ROC curve of the positive class",
    "test_sensitivity": "fraction of the positive class that is called so",
    "test_specificity": "fraction of the other classes that is not",
    "seconds": "the epoch's time with the run's share of its view's",
    "images_per_s": "training images of the epoch by its seconds",
    "time_utc": "when the epoch ended",
}
"""The columns of metrics.csv, one row an epoch, and what they mean. Readers go by the name."""


class Word(str, Enum):
    """One of a few words; in text and in JSON it is the word itself."""

    def __str__(self) -> str:
        return str(self.value)


class Status(Word):
    """How a run stands."""

    RUNNING = "running"
    WAITING = "waiting"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"
    """Its job is no more, and nobody says why."""

    @property
    def is_final(self) -> bool:
        """Whether a run leaves it only by being submitted again."""
        return self not in (Status.WAITING, Status.RUNNING)


class Failure(Word):
    """What ended a run before its time."""

    EXCEPTION = "exception"
    OUT_OF_MEMORY = "out of memory"
    OUT_OF_GPU_MEMORY = "out of GPU memory"
    DISK_FULL = "disk full"
    TIME_LIMIT = "time limit"
    PREEMPTED = "preempted"
    NODE_FAILURE = "node failure"
    KILLED = "killed"
    NEVER_STARTED = "never started"


class Stopped(BaseException):  # as KeyboardInterrupt: nobody on the way may catch it
    """A job that has to end, and why; raised where a signal finds it."""

    def __init__(self, failure: Failure, message: str, fix: str) -> None:
        super().__init__(message)
        self.failure = failure
        self.message = message
        self.fix = fix


@dataclass(frozen=True)
class RunState:
    """What a run last said of itself (state.json). Times are UTC, ISO 8601."""

    status: Status = Status.WAITING
    job_id: str | None = None
    """SLURM's job id (12_0: task 0 of array 12), or the local job's process id."""
    holder: str | None = None
    """A word of the process that has the run in hand; no two processes have the same."""
    host: str | None = None
    pid: int | None = None
    attempts: int = 0
    """How often a job has begun on it."""
    resumed_epoch: int = 0
    """Epochs that were finished when the last attempt began."""
    epoch: int = 0
    """Epochs finished."""
    epoch_utc: str | None = None
    """When the last of them was."""
    test_accuracy: float | None = None
    """Of the last of them, a fraction."""
    device: str | None = None
    precision: str | None = None
    views_computed: int = 0
    """Views that this run put through the backbone itself."""
    views_read: int = 0
    """Views that it found in the cache."""
    images_per_s: float | None = None
    """Images per second, of those that this run put through the backbone or trained on itself."""
    queued_utc: str | None = None
    started_utc: str | None = None
    heartbeat_utc: str | None = None
    finished_utc: str | None = None
    failure: Failure | None = None
    """What ended it, or its last job, where one of the known kinds did."""
    reason: str | None = None
    """Why it failed, was cancelled or is lost, in a sentence; none where the user cancelled it."""
    fix: str | None = None

    def __post_init__(self) -> None:
        """Raises: ValueError for a time that is none."""
        for name in TIMES:
            text = getattr(self, name)
            if text is not None and not _is_time(text):
                raise ValueError(f"{name} is {text!r:.80}")


def _is_time(text: str) -> bool:
    """Says whether a text is such as `utc_now` gives."""
    try:  # a tenth of the time that strptime takes, which counts with a thousand runs
        return bool(datetime.fromisoformat(text[:-1])) and (len(text), text[-1]) == (20, "Z")
    except ValueError:
        return False


TIMES = tuple(name for name in RunState.__dataclass_fields__ if name.endswith("_utc"))


@dataclass(frozen=True, kw_only=True)
class WeightsRecord:
    """The backbone's weights, as a sweep has them on record."""

    path: str = ""
    sha256: str = ""
    architecture: str = ""
    source: str = ""
    source_sha256: str = ""
    kind: str = ""
    """fetched, demo or untrained; older files have only the next field."""
    untrained: bool = False


@dataclass(frozen=True, kw_only=True)
class ImagesRecord:
    """The images, as a sweep has them on record."""

    root: str = ""
    fingerprint: str = ""
    classes: tuple[str, ...] = ()
    positive: str = ""
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    """By split and class."""
    skipped: tuple[dict[str, str], ...] = ()
    """Path and fault of each image that was left out."""
    repeated: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Fills in the positive class, which older files do not name: it was the last."""
        if not self.positive and self.classes:
            object.__setattr__(self, "positive", self.classes[-1])


@dataclass(frozen=True, kw_only=True)
class SweepInfo:
    """What was submitted, and the jobs that have it (sweep.json)."""

    name: str = ""
    folder: str = ""
    """Where the sweep was when it was submitted."""
    created_utc: str = ""
    recipe: dict[str, Any]
    """What the runs have in common, fields of TrainConfig: `filled_recipe` adds those that are not
    there."""
    batch_sizes: tuple[int, ...] = ()
    lrs: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    runs: tuple[str, ...]
    weights: WeightsRecord = WeightsRecord()
    images: ImagesRecord = ImagesRecord()
    cluster: dict[str, Any] = field(default_factory=dict)
    """What the jobs asked for last, fields of ClusterConfig, in force or not under today's rules:
    `asked` and `cluster_config` fill in the others."""
    jobs: dict[str, str] = field(default_factory=dict)
    """Job ids by run name."""
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises: ValueError where a value cannot be."""
        for name in self.runs:
            # Somebody else may have written it: a run is a folder right in its sweep's, or none.
            if name in ("", ".", "..") or "/" in name:
                raise ValueError(f"{name!r} is no run of this sweep")
        for values, name, kind in (
            (self.recipe, "epochs", int),
            (self.cluster, "cluster", str),
            (self.cluster, "time_min", int),
            (self.cluster, "mem_gb", (int, float)),
        ):
            if name in values and not isinstance(values[name], kind):
                raise ValueError(f"{name} is {values[name]!r:.80}")

    @property
    def epochs(self) -> int:
        return int(self.recipe.get("epochs", TrainConfig.epochs))

    @property
    def weights_kind(self) -> str:
        """What the backbone's weights are: fetched, demo or untrained."""
        return self.weights.kind or ("untrained" if self.weights.untrained else "fetched")

    def asked(self, name: str) -> Any:
        """Returns what the jobs asked for last: the value of a field of ClusterConfig."""
        return self.cluster.get(name, getattr(ClusterConfig, name))

    def cluster_config(self, **changes: Any) -> ClusterConfig:
        """Returns what the jobs asked for last, with *changes*.

        Raises: ConfigError for a value that cannot be, msgspec.ValidationError for its type.
        """
        return msgspec.convert(self.cluster | changes, ClusterConfig)


def filled_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a recipe with the defaults of the fields that it lacks, as an older one may."""
    defaults = {item.name: item.default for item in fields(TrainConfig)}
    return {name: value for name, value in defaults.items() if value is not MISSING} | {**recipe}


def utc_now() -> str:
    """Returns the time, UTC, ISO 8601 to the second.

    >>> len(utc_now())
    20
    """
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def write_record(file: Path, record: Any, *, is_durable: bool = True) -> None:
    """Replaces *file* by a record of this module, or a TrainConfig, as JSON with its format."""
    values = record.record() if isinstance(record, TrainConfig) else asdict(record)
    write_json(file, {"format": FORMAT, **values}, is_durable=is_durable)


def read_record(kind: type[Record], file: Path, problem: str) -> Record:
    """Returns the record that *file* holds, whatever keys it has besides.

    *problem* begins what an error says.

    Raises: RunError when the file is not there or of a newer format, or when a value is missing, of
    another type, or cannot be.
    """
    values = _read_object(file, problem)
    found = values.get("format", 1)
    if isinstance(found, int) and found > FORMAT:
        raise RunError(
            f"{file} was made by a newer skinjob (format {found}; this one reads up to {FORMAT})",
            UPGRADE,
        )
    if kind is RunState and "status" not in values:
        values = _with_new_words(values)
    try:
        return msgspec.convert(values, kind)
    except (msgspec.ValidationError, ConfigError) as error:
        raise RunError(f"{problem}: {file}: {error}", f"cat {shlex.quote(str(file))}") from None


def _with_new_words(old: dict[str, Any]) -> dict[str, Any]:
    """Returns the values of a state.json of format 1 under their names of today."""
    names = {"state": "status", "fault": "failure", "error": "reason", "remedy": "fix"}
    values = {names.get(name, name): value for name, value in old.items()}
    endings = {"cancelled": Status.CANCELLED, "gone": Status.LOST}
    if values.get("status") == "queued":
        values["status"] = Status.WAITING
    if (ending := endings.get(str(values.get("failure")))) and values.get("status") == "failed":
        values |= {"status": ending, "failure": None}
    if values.get("reason") == "cancelled by you":  # the status says it now
        values["reason"] = None
    return values


def _read_object(file: Path, problem: str) -> dict[str, Any]:
    quoted = shlex.quote(str(file))
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # a pipe would be waited for without end
            raise RunError(f"{problem}: {file} is not a file", f"ls -ld {quoted}")
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{problem}: no {file.name} in it", "ls runs") from None
    except OSError as error:
        raise RunError(f"{problem}: {file}: {error.strerror}", f"ls -ld {quoted}") from None
    except (ValueError, RecursionError) as error:
        raise RunError(f"{problem}: {file}: {error}", f"cat {quoted}") from None
    if not isinstance(values, dict):
        raise RunError(f"{problem}: {file} holds no object", f"cat {quoted}")
    return values
