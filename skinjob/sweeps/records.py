"""The records of a sweep: sweep.json, config.json and state.json, each with its format.

Readers fill in defaults for what an older file lacks, ignore keys that they do not know, and refuse
a newer format. A change that an older skinjob must not ignore needs a higher FORMAT.
"""

from __future__ import annotations

import json
import re
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
"""The format of new files. In format 1, state.json had other keys, and only sweep.json named its
format."""

UPGRADE = "skinjob --version   # on both machines: install the newer version on this machine"

METRICS = {
    "sweep": "name of the sweep",
    "run": "name of the run",
    "batch_size": "images per update",
    "seed": "what drew the head's first values and the order of the images",
    "epoch": "number of the epoch, from 1",
    "updates": "updates since the start; `--updates` may end the last epoch before its end",
    "lr": "learning rate of the epoch's last update",
    "train_loss": "mean cross-entropy of the training images, each before its update",
    "train_accuracy": "fraction of training images that were right, each before its update",
    "train_auc": "`test_auc` on the training images, each before its update",
    "train_sensitivity": "`test_sensitivity` on the training images, each before its update",
    "train_specificity": "`test_specificity` on the training images, each before its update",
    "val_loss": "mean cross-entropy of the validation images after the epoch",
    "val_accuracy": "fraction of validation images that are right after the epoch",
    "val_auc": "`test_auc` on the validation images",
    "val_sensitivity": "`test_sensitivity` on the validation images",
    "val_specificity": "`test_specificity` on the validation images",
    "test_loss": "mean cross-entropy of the test images after the epoch",
    "test_accuracy": "fraction of test images that are right after the epoch",
    "test_auc": "area under the ROC curve of the positive class",
    "test_sensitivity": "fraction of the positive class that is called so",
    "test_specificity": "fraction of the other classes that is not",
    "seconds": "the epoch's time with the run's share of its view's",
    "images_per_s": "training images of the epoch by its seconds",
    "time_utc": "when the epoch ended",
}
"""The columns of metrics.csv, which has a row per epoch. Programs read columns by name."""
VAL_METRICS = tuple(name for name in METRICS if name.startswith("val_"))
"""The columns that a file has only with a validation split."""

TESTS = {
    "update": "updates since the start",
    "epoch": "number of the epoch",
    "train_loss": "mean cross-entropy of the training images since the last test, each before its "
    "update",
    "test_loss": "mean cross-entropy of the test images",
    "test_acc": "fraction of test images that are right",
    "test_auc": "area under the ROC curve of the positive class",
}
"""The columns of tests.csv, which has a row per test of a run with `updates`."""


class Word(str, Enum):
    """An enum of words: text and JSON show the word itself."""

    def __str__(self) -> str:
        return str(self.value)


class Status(Word):
    """The status of a run."""

    RUNNING = "running"
    WAITING = "waiting"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"
    """Its job has gone, and no record says why."""

    @property
    def is_final(self) -> bool:
        """Whether only a new submit changes it."""
        return self not in (Status.WAITING, Status.RUNNING)


class Failure(Word):
    """What ended a run before its last epoch."""

    EXCEPTION = "exception"
    OUT_OF_MEMORY = "out of memory"
    OUT_OF_GPU_MEMORY = "out of GPU memory"
    DISK_FULL = "disk full"
    TIME_LIMIT = "time limit"
    PREEMPTED = "preempted"
    NODE_FAILURE = "node failure"
    KILLED = "killed"
    NEVER_STARTED = "never started"


class Stopped(BaseException):  # like KeyboardInterrupt: `except Exception` must not catch it
    """A signal ends the job. The signal's handler raises it, with the reason."""

    def __init__(self, failure: Failure, message: str, fix: str) -> None:
        super().__init__(message)
        self.failure = failure
        self.message = message
        self.fix = fix


@dataclass(frozen=True)
class RunState:
    """The state of a run, written by its job (state.json). Times are UTC, ISO 8601."""

    status: Status = Status.WAITING
    job_id: str | None = None
    """SLURM's job id (12_0: task 0 of array 12), or the local job's process id."""
    holder: str | None = None
    """A word that only the process with the run's lease has."""
    host: str | None = None
    pid: int | None = None
    attempts: int = 0
    """How often a job has started it."""
    resumed_epoch: int = 0
    """Finished epochs when the last attempt started."""
    epoch: int = 0
    """Finished epochs."""
    updates: int = 0
    """Updates in these epochs; 0 in the file of an older skinjob."""
    epoch_utc: str | None = None
    """When the last epoch ended."""
    test_accuracy: float | None = None
    """After the last epoch, a fraction."""
    device: str | None = None
    precision: str | None = None
    views_computed: int = 0
    """Views that this run computed itself."""
    views_read: int = 0
    """Views that this run read from the cache."""
    images_per_s: float | None = None
    """Images per second that this run trained on, or passed through the backbone."""
    queued_utc: str | None = None
    started_utc: str | None = None
    heartbeat_utc: str | None = None
    finished_utc: str | None = None
    failure: Failure | None = None
    """What ended the run or its last job, if it is a known kind."""
    reason: str | None = None
    """A sentence: why it failed, was cancelled or is lost. None if the user cancelled it."""
    fix: str | None = None

    def __post_init__(self) -> None:
        """Checks the times. Raises: ValueError."""
        for name in TIMES:
            text = getattr(self, name)
            if text is not None and not _is_time(text):
                raise ValueError(f"{name} is {text!r:.80}")


def _is_time(text: str) -> bool:
    """Says whether a text has the form of `utc_now`."""
    try:  # ten times as fast as strptime, which counts with a thousand runs
        return bool(datetime.fromisoformat(text[:-1])) and (len(text), text[-1]) == (20, "Z")
    except ValueError:
        return False


TIMES = tuple(name for name in RunState.__dataclass_fields__ if name.endswith("_utc"))


@dataclass(frozen=True, kw_only=True)
class WeightsRecord:
    """The backbone's weights in sweep.json."""

    path: str = ""
    sha256: str = ""
    architecture: str = ""
    source: str = ""
    source_sha256: str = ""
    kind: str = ""
    """fetched, demo or untrained. Older files have only the next field."""
    untrained: bool = False


@dataclass(frozen=True, kw_only=True)
class ImagesRecord:
    """The images in sweep.json."""

    root: str = ""
    fingerprint: str = ""
    classes: tuple[str, ...] = ()
    positive: str = ""
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    """By split and class."""
    skipped: tuple[dict[str, str], ...] = ()
    """Path and fault of each skipped image."""
    repeated: dict[str, int] = field(default_factory=dict)
    shortcut: dict[str, float] = field(default_factory=dict)
    """What file size, image size, border and mean colour alone reach, by column of metrics.csv.
    Empty if it was not measured."""

    def __post_init__(self) -> None:
        """Fills in the positive class, which older files lack: the last class."""
        if not self.positive and self.classes:
            object.__setattr__(self, "positive", self.classes[-1])


@dataclass(frozen=True, kw_only=True)
class SweepInfo:
    """What a user submitted, and its jobs (sweep.json)."""

    name: str = ""
    folder: str = ""
    """The sweep's folder at submit."""
    created_utc: str = ""
    recipe: dict[str, Any]
    """What all runs share: fields of TrainConfig. `filled_recipe` adds missing fields."""
    batch_sizes: tuple[int, ...] = ()
    lrs: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    runs: tuple[str, ...]
    weights: WeightsRecord = WeightsRecord()
    images: ImagesRecord = ImagesRecord()
    study: dict[str, str] = field(default_factory=dict)
    """What is stated about the study, by field of StudyConfig; not part of a sweep's identity."""
    cluster: dict[str, Any] = field(default_factory=dict)
    """What the last jobs asked for: fields of ClusterConfig, which today's rules may refuse.
    `asked` and `cluster_config` fill in missing fields."""
    jobs: dict[str, str] = field(default_factory=dict)
    """Job ids by run name."""
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks the values. Raises: ValueError."""
        for name in self.runs:
            # Another user may have written this file: a run must be a folder inside the sweep's.
            if name in ("", ".", "..") or "/" in name:
                raise ValueError(f"{name!r} is no run of this sweep")
        for values, name, kind in (
            (self.recipe, "epochs", int),
            (self.recipe, "updates", int),
            (self.cluster, "cluster", str),
            (self.cluster, "time_min", int),
            (self.cluster, "mem_gb", (int, float)),
        ):
            if name in values and not isinstance(values[name], kind):
                raise ValueError(f"{name} is {values[name]!r:.80}")

    @property
    def epochs(self) -> int | None:
        """The epochs of each run; None if they depend on the batch size, because of `updates`."""
        return None if self.updates else int(self.recipe.get("epochs", TrainConfig.epochs))

    @property
    def updates(self) -> int | None:
        """The updates of each run; None if they depend on the batch size."""
        return self.recipe.get("updates")

    @property
    def weights_kind(self) -> str:
        """The kind of the backbone's weights: fetched, demo or untrained."""
        return self.weights.kind or ("untrained" if self.weights.untrained else "fetched")

    def asked(self, name: str) -> Any:
        """Returns the value of a ClusterConfig field for the last jobs."""
        return self.cluster.get(name, getattr(ClusterConfig, name))

    def cluster_config(self, **changes: Any) -> ClusterConfig:
        """Returns what the last jobs asked for, with *changes*.

        Raises: ConfigError for a value out of range, msgspec.ValidationError for a wrong type.
        """
        return msgspec.convert(self.cluster | changes, ClusterConfig)


@dataclass(frozen=True, kw_only=True)
class Converged:
    """The converged head of a sweep (converged.json): no head has a smaller loss on its views."""

    exists: bool = True
    """False if a head tells the classes apart in every view: then the loss falls towards 0 for
    ever, and no head is the best."""
    metrics: dict[str, float]
    """By column of metrics.csv, `train_...` on the views below; only `train_loss`, 0, if no such
    head exists."""
    gradient: float = 0.0
    """The norm of the gradient, divided by that of a head of zeros."""
    iterations: int = 0
    views: int = 0
    """The views of training images that it is fitted to, from the first on."""
    epochs: int = 0
    """The views that the sweep trains on."""
    images: int = 0
    """The training images in each of these views."""
    seconds: float = 0.0
    computed_utc: str = ""


def filled_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a recipe with defaults for the fields that an older recipe lacks."""
    defaults = {item.name: item.default for item in fields(TrainConfig)}
    return {name: value for name, value in defaults.items() if value is not MISSING} | {**recipe}


def utc_now() -> str:
    """Returns the current time, UTC, ISO 8601 to the second.

    >>> len(utc_now())
    20
    """
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def write_record(file: Path, record: Any, *, is_durable: bool = True) -> None:
    """Replaces *file* by a record as JSON, with its format."""
    values = record.record() if isinstance(record, TrainConfig) else asdict(record)
    write_json(file, {"format": FORMAT, **values}, is_durable=is_durable)


def read_record(kind: type[Record], file: Path, problem: str) -> Record:
    """Returns the record in *file*; ignores unknown keys. *problem* starts the error's message.

    Raises: RunError if the file is missing or of a newer format, or if a value is missing or wrong.
    """
    values = _read_object(file, problem)
    version = values.get("format", 1)
    if isinstance(version, int) and version > FORMAT:
        raise RunError(
            f"{file} was made by a newer skinjob (format {version}; this one reads up to {FORMAT})",
            UPGRADE,
        )
    if kind is RunState and "status" not in values:
        values = _with_new_words(values)
    try:
        return msgspec.convert(values, kind)
    except (msgspec.ValidationError, ConfigError) as error:
        reason = plain_reason(error)
        raise RunError(f"{problem}: {file}: {reason}", f"cat {shlex.quote(str(file))}") from None


def plain_reason(error: Exception) -> str:
    """Returns what is wrong with a value of a record, without msgspec's marks.

    >>> plain_reason(ValueError("Expected `array`, got `int` - at `$.runs`"))
    'runs must be array, not int'
    >>> plain_reason(ValueError("Object missing required field `runs`"))
    'runs is missing'
    """
    text = re.sub(r"Object missing required field `(.+?)`.*", r"\1 is missing", str(error))
    return re.sub(r"Expected `(.+)`, got `(.+)` - at `\$\.?(.+)`", r"\3 must be \1, not \2", text)


def _with_new_words(old: dict[str, Any]) -> dict[str, Any]:
    """Returns the values of a state.json of format 1 under today's names."""
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
        if not stat.S_ISREG(file.stat().st_mode):  # reading a pipe could wait for ever
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
