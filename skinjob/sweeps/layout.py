"""Sweeps and runs: one folder each, and every path in them.

runs/<sweep>/            Sweep: sweep.json, images.csv, submission/, report/
runs/<sweep>/<run>/      Run: config.json, state.json, metrics.csv, ...
runs/.cache/views/       features that the runs of all sweeps share
"""

from __future__ import annotations

import csv
import json
import os
import shlex
import stat
from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

from skinjob.config import TrainConfig
from skinjob.errors import ConfigError, RunError
from skinjob.files import absolute, replacing, write_json
from skinjob.locks import locked
from skinjob.ownership import owner

Record = TypeVar("Record")

METRICS = (
    "sweep",
    "run",
    "batch_size",
    "seed",
    "epoch",
    "updates",
    "lr",
    "train_loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
    "test_auc",
    "test_sensitivity",
    "test_specificity",
    "seconds",
    "images_per_s",
    "time_utc",
)
"""The columns of metrics.csv, one row an epoch."""

FINAL = ("done", "failed")
"""States that a run leaves only by being submitted again."""

FAULTS = (
    "exception",
    "out of memory",
    "out of GPU memory",
    "disk full",
    "time limit",
    "preempted",
    "cancelled",
    "node failure",
    "killed",
    "never started",
    "gone",
)
"""What can end a run before its time; gone is a job that ended without a word from anybody."""


BY_YOU = "cancelled by you"
"""The error of a run that `skinjob cancel` called off."""

SWEEP_SHAPE: dict[str, Any] = {
    "created_utc": str,
    "identity": str,
    "folder": str,
    "runs": [str],
    "recipe": {"epochs": int},
    "weights": {"sha256": str, "kind": str, "untrained": bool},
    "images": {
        "fingerprint": str,
        "classes": [str],
        "positive": str,
        "counts": {str: {str: int}},
    },
    "cluster": {"cluster": str},
    "jobs": {str: str},
}
"""The types of what is read of sweep.json, where it is there.

[str] is a list of texts, {str: str} an object of texts; of another object these keys are looked at.
"""


DOUBLED = {"--time": "time_min", "--mem": "mem_gb"}
"""Options that a fix gives more of, and what sweep.json calls them."""

SILENCE_S = 75
"""A job that was silent for so long is gone: it speaks every five seconds, and some file systems
show what it wrote up to a minute late."""

LOCK_S = 10
"""The longest wait for another process to change a run's state, which takes milliseconds."""

KEPT_MOST_BYTES = 4 << 30
KEPT_SHARE = 8
"""Decoded images that a job keeps on disk while at work, of each split: so many bytes, 28,000
images of 224 x 224, and no more than this part of what is free."""


@dataclass(frozen=True)
class RunState:
    """What a run last said of itself (state.json). Times are UTC, ISO 8601."""

    state: str = "queued"
    """queued, running, done or failed."""
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
    fault: str | None = None
    """What ended it, one of FAULTS."""
    error: str | None = None
    """Why it failed, in a sentence."""
    fix: str | None = None


@dataclass(frozen=True)
class Run:
    """One training: a folder that says all about it."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def sweep(self) -> Sweep:
        return Sweep(self.folder.parent)

    @property
    def config_file(self) -> Path:
        return self.folder / "config.json"

    @property
    def state_file(self) -> Path:
        return self.folder / "state.json"

    @property
    def metrics_file(self) -> Path:
        return self.folder / "metrics.csv"

    @property
    def predictions_file(self) -> Path:
        return self.folder / "predictions.csv"

    def trained_file(self, part: str) -> Path:
        """Returns where the layers go that were trained; *part* is head or model."""
        return self.folder / f"{part}.safetensors"

    @property
    def checkpoint_files(self) -> tuple[Path, Path]:
        """Where the run goes on from: the last finished epoch, and the one before."""
        return self.folder / "checkpoint.pt", self.folder / "checkpoint-before.pt"

    @property
    def log_file(self) -> Path:
        return self.folder / "train.log"

    @property
    def lock_file(self) -> Path:
        """What a process locks while it changes the state; private, as a reader could lock it."""
        return self.sweep.submission_folder / f"{self.name}.lock"

    def config(self) -> TrainConfig:
        """Returns what the run was asked to do. Raises: RunError when the folder is not a run's."""
        return _read_record(TrainConfig, self.config_file, f"{self.folder} is not a run")

    def state(self) -> RunState:
        """Returns the run's own word; a run that has not spoken yet is queued.

        Raises: RunError when what it says cannot be read.
        """
        try:
            self.state_file.lstat()
        except FileNotFoundError:
            return RunState()
        except OSError:  # which one, the reading says
            pass
        try:
            return _read_record(
                RunState, self.state_file, f"{self.folder}: its state does not read"
            )
        except RunError as error:
            remove = f"rm {shlex.quote(str(self.state_file))}"
            raise RunError(error.message, f"{remove}   # the run goes on where it was") from None

    @contextmanager
    def changing_state(self) -> Iterator[None]:
        """Keeps other processes from changing the state during the block, where there are locks.

        A process that was stopped inside its own block holds up the others for LOCK_S at most.
        """
        with ExitStack() as stack:
            with suppress(OSError, RunError):  # without the lock the state can still be written
                stack.enter_context(locked(self.lock_file, wait_s=LOCK_S))
            yield

    def update_state(self, *, is_durable: bool = True, **changes: Any) -> RunState:
        """Writes the state with *changes* and a fresh heartbeat, and returns it."""
        state = replace(self.state(), **changes, heartbeat_utc=utc_now())
        write_json(self.state_file, asdict(state), is_durable=is_durable)
        return state

    def write_metrics(self, rows: Sequence[Sequence[str]], *, is_durable: bool = True) -> None:
        """Replaces metrics.csv by its header and *rows*, one an epoch, in the order of METRICS."""
        with (
            replacing(self.metrics_file, is_durable=is_durable) as partial,
            partial.open("w", newline="", encoding="utf-8") as lines,
        ):
            csv.writer(lines).writerows([METRICS, *rows])


@dataclass(frozen=True)
class Sweep:
    """Runs that differ in batch size, lr and seed alone: a folder with a folder for each."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def sweep_file(self) -> Path:
        return self.folder / "sweep.json"

    @property
    def images_file(self) -> Path:
        return self.folder / "images.csv"

    @property
    def submission_folder(self) -> Path:
        """Where submitit keeps scripts, pickles and the jobs' output; private to the user."""
        return self.folder / "submission"

    @property
    def pending_file(self) -> Path:
        """Which runs sbatch is being asked to take, until the ids of their jobs are recorded."""
        return self.submission_folder / "pending.json"

    @property
    def owner(self) -> str | None:
        """The user that the sweep belongs to; None for the user's own."""
        try:
            return owner(self.folder)
        except OSError:  # it is not there, or is not to be seen
            return None

    @property
    def report_folder(self) -> Path:
        return self.folder / "report"

    @property
    def cache_folder(self) -> Path:
        """What can be made again, shared by the sweeps beside this one.

        Where a colleague's is closed to the user, it is one of the user's own.
        """
        shared, own = cache_folders(self.folder.parent)
        for place in (shared, shared / "views"):
            if place.exists() and not os.access(place, os.R_OK | os.W_OK | os.X_OK):
                return own
        return shared

    @property
    def views_folder(self) -> Path:
        return self.cache_folder / "views"

    def info(self) -> dict[str, Any]:
        """Returns sweep.json.

        Raises: RunError when the folder is not a sweep's, when what is in the file has another
        type than it should, or when a run's name leads out of the folder.
        """
        info = _read_json(self.sweep_file, f"{self.folder} is not a sweep")
        show = f"cat {shlex.quote(str(self.sweep_file))}"
        for name, shape in SWEEP_SHAPE.items():
            if name in info and not _has_shape(info[name], shape):
                raise RunError(f"{self.sweep_file}: {name} is {info[name]!r:.80}", show)
        for name in info.get("runs", ()):
            # Somebody else may have written it: a run is a folder right in its sweep's, or none.
            if name in ("", ".", "..") or "/" in name:
                raise RunError(
                    f"{self.sweep_file}: {name!r} is no run of this sweep",
                    f"ls {shlex.quote(str(self.folder))}",
                )
        return info

    def retry_command(self, *options: str, twice: str | None = None) -> str:
        """Returns the command that queues again what failed or was lost, to be pasted anywhere.

        *twice* is an option, --time or --mem, that is to be given twice what the sweep has now.
        Whatever cannot be read, there is a command.
        """
        with suppress(RunError, LookupError, TypeError):
            if twice:
                asked = self.info()["cluster"][DOUBLED[twice]]
                options = (*options, twice, f"{2 * asked:.10g}")
        return self.command("retry", *options)

    def command(self, name: str, *words: str) -> str:
        """Returns a command of skinjob on this sweep, to be pasted anywhere."""
        folder = self.folder
        with suppress(OSError):  # the current folder may be gone
            folder = absolute(folder)
        return shlex.join(["skinjob", name, str(folder), *words])

    def require_own(self, command: str, *words: str) -> None:
        """Returns when the sweep is the user's own. Raises: RunError when it is another user's."""
        if self.owner:
            raise RunError(
                f"sweep {self.folder} belongs to {self.owner}",
                f"ask {self.owner} to run: {self.command(command, *words)}",
            )

    def runs(self) -> list[Run]:
        """Returns the sweep's runs, in the order of sweep.json. Raises: RunError as `info` does."""
        info = self.info()
        if "runs" not in info:
            raise RunError(
                f"{self.sweep_file}: no 'runs' in it", f"cat {shlex.quote(str(self.sweep_file))}"
            )
        return [Run(self.folder / name) for name in info["runs"]]


def run_name(batch_size: int, lr: float, seed: int) -> str:
    """Returns a run's folder name, which sorts by batch size.

    >>> run_name(32, 0.01, 0)
    'bs0032-lr0.01-seed0'
    """
    return f"bs{batch_size:04d}-lr{lr!r}-seed{seed}"


def cache_folders(runs: Path) -> tuple[Path, Path]:
    """Returns the cache that all users of a folder of runs share, and the user's own."""
    return runs / ".cache", runs / f".cache-{os.geteuid()}"


def submit_lock(runs: Path) -> Path:
    """Returns the file that a submit, cancel or clean of the user's locks while it is at work."""
    return runs / f".submit-{os.geteuid()}.lock"


def sweeps(runs: Path) -> list[Sweep]:
    """Returns the sweeps below *runs*, oldest first, before them those that do not read."""
    # A hidden one is still being made, or being removed.
    found = [Sweep(file.parent) for file in runs.glob("[!.]*/sweep.json")]
    return sorted(found, key=lambda sweep: (_created_utc(sweep), sweep.name))


def _created_utc(sweep: Sweep) -> str:
    with suppress(RunError):
        return str(sweep.info().get("created_utc", ""))
    return ""


def utc_now() -> str:
    """Returns the time, UTC, ISO 8601 to the second.

    >>> len(utc_now())
    20
    """
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _read_record(kind: type[Record], file: Path, fault: str) -> Record:
    """Returns the record that *file* holds as JSON, whatever newer keys it has besides.

    Raises: RunError when a value is missing, of another type, or cannot be.
    """
    values = _read_json(file, fault)
    show = f"cat {shlex.quote(str(file))}"
    types = _types(cast(Hashable, kind))
    found = {name: values[name] for name in types if name in values}
    for name, wanted in types.items():
        value = found.get(name)
        fits = isinstance(value, wanted)
        if name in found and (isinstance(value, bool) or not fits or not _is_time(name, value)):
            raise RunError(f"{fault}: {file}: {name} is {value!r:.80}", show)
    try:
        return kind(**found)
    except (TypeError, ConfigError) as problem:
        raise RunError(f"{fault}: {file}: {problem}", show) from None


@cache
def _types(kind: Any) -> dict[str, Any]:
    """Returns the types of a record's values by name; a whole number will do for any other."""
    hints = get_type_hints(kind)
    return {name: int | float if wanted is float else wanted for name, wanted in hints.items()}


def _is_time(name: str, value: object) -> bool:
    """Says whether a value may have this name: the times are such as `utc_now` gives."""
    if not name.endswith("_utc") or value is None:
        return True
    text = str(value)
    try:  # a tenth of the time that strptime takes, which counts with a thousand runs
        return bool(datetime.fromisoformat(text[:-1])) and (len(text), text[-1]) == (20, "Z")
    except ValueError:
        return False


def _has_shape(value: object, shape: Any) -> bool:
    if isinstance(shape, list):
        return isinstance(value, list) and all(_has_shape(item, shape[0]) for item in value)
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(
            _has_shape(item, shape[key])
            for name, item in value.items()
            if (key := str if str in shape else name) in shape
        )
    return type(value) is shape


def _read_json(file: Path, fault: str) -> dict[str, Any]:
    quoted = shlex.quote(str(file))
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # a pipe would be waited for without end
            raise RunError(f"{fault}: {file} is not a file", f"ls -ld {quoted}")
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{fault}: no {file.name} in it", "ls runs") from None
    except OSError as problem:
        raise RunError(f"{fault}: {file}: {problem.strerror}", f"ls -ld {quoted}") from None
    except (ValueError, RecursionError) as problem:
        raise RunError(f"{fault}: {file}: {problem}", f"cat {quoted}") from None
    if not isinstance(values, dict):
        raise RunError(f"{fault}: {file} holds no object", f"cat {quoted}")
    return values
