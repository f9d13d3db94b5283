"""The folders of sweeps and runs, and every path in them.

runs/<sweep>/            Sweep: sweep.json, images.csv, converged.json, submission/, report/
runs/<sweep>/<run>/      Run: config.json, state.json, metrics.csv, ...
runs/.cache/views/       features that the runs of all sweeps share
runs/.cache/decoded/     decoded images that they share
"""

from __future__ import annotations

import csv
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from skinjob.config import ClusterConfig, TrainConfig, options_of
from skinjob.errors import RunError
from skinjob.files import absolute, replacing
from skinjob.locks import locked
from skinjob.ownership import owner
from skinjob.sweeps.records import (
    METRICS,
    TESTS,
    UPGRADE,
    VAL_METRICS,
    Converged,
    RunState,
    SweepInfo,
    read_record,
    utc_now,
    write_record,
)

PACK_MARK = "bagit.txt"
"""The file that tells the folder of a pack."""
LOCK_S = 10
"""How long to wait for another process that changes a run's state, which takes milliseconds."""


@dataclass(frozen=True)
class Run:
    """A training, and its folder."""

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
    def tests_file(self) -> Path:
        """The tests of a run with `updates`."""
        return self.folder / "tests.csv"

    @property
    def predictions_file(self) -> Path:
        return self.folder / "predictions.csv"

    @property
    def val_predictions_file(self) -> Path:
        """As `predictions_file`, of the validation images."""
        return self.folder / "predictions-val.csv"

    def trained_file(self, part: str) -> Path:
        """Returns the file of the trained layers; *part* is head or model."""
        return self.folder / f"{part}.safetensors"

    @property
    def checkpoint_files(self) -> tuple[Path, Path]:
        """The last finished epoch, and the epoch before it."""
        return self.folder / "checkpoint.pt", self.folder / "checkpoint-before.pt"

    @property
    def log_file(self) -> Path:
        return self.folder / "train.log"

    @property
    def lock_file(self) -> Path:
        """The lock for changes of the state; private, because any reader could lock it."""
        return self.sweep.submission_folder / f"{self.name}.lock"

    def config(self) -> TrainConfig:
        """Returns the run's recipe. Raises: RunError if the folder is not a run."""
        return read_record(TrainConfig, self.config_file, f"{self.folder} is not a run")

    def state(self) -> RunState:
        """Returns state.json; a run without the file is waiting. Raises: RunError."""
        if not os.path.lexists(self.state_file):
            return RunState()
        try:
            return read_record(
                RunState, self.state_file, f"{self.folder}: its state cannot be read"
            )
        except RunError as error:
            if error.fix == UPGRADE:
                raise
            remove = f"rm {shlex.quote(str(self.state_file))}"
            raise RunError(
                error.message, f"{remove}   # the run continues after its last epoch"
            ) from None

    @contextmanager
    def changing_state(self) -> Iterator[None]:
        """Locks the state during the block, if the file system has locks.

        If another process was stopped inside its block, this one waits for LOCK_S at most.
        """
        with ExitStack() as stack:
            with suppress(OSError, RunError):  # the state can be written without the lock
                stack.enter_context(locked(self.lock_file, wait_s=LOCK_S))
            yield

    def update_state(self, *, is_durable: bool = True, **changes: Any) -> RunState:
        """Writes the state with *changes* and a fresh heartbeat, and returns it."""
        state = replace(self.state(), **changes, heartbeat_utc=utc_now())
        write_record(self.state_file, state, is_durable=is_durable)
        return state

    def write_metrics(self, rows: Sequence[Sequence[str]], *, is_durable: bool = True) -> None:
        """Replaces metrics.csv: its header, and a row per epoch in the order of METRICS.

        Columns of a validation split that are empty are left out.
        """
        kept = [
            column
            for column, name in enumerate(METRICS)
            if name not in VAL_METRICS or any(row[column] for row in rows)
        ]
        table = ([row[column] for column in kept] for row in [list(METRICS), *rows])
        _write_csv(self.metrics_file, table, is_durable=is_durable)

    def write_tests(self, rows: Iterable[Sequence[str]], *, is_durable: bool = True) -> None:
        """Replaces tests.csv: its header, and a row per test in the order of TESTS."""
        _write_csv(self.tests_file, [list(TESTS), *rows], is_durable=is_durable)


def _write_csv(file: Path, table: Iterable[Sequence[str]], *, is_durable: bool) -> None:
    with (
        replacing(file, is_durable=is_durable) as partial,
        partial.open("w", newline="", encoding="utf-8") as lines,
    ):
        csv.writer(lines).writerows(table)


@dataclass(frozen=True)
class Sweep:
    """Runs that differ only in batch size, lr and seed: a folder with a folder for each."""

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
    def converged_file(self) -> Path:
        return self.folder / "converged.json"

    @property
    def submission_folder(self) -> Path:
        """Scripts, pickles and output of the jobs; private to the user."""
        return self.folder / "submission"

    @property
    def pending_file(self) -> Path:
        """The runs that a submit is queueing, until it has recorded the ids of their jobs."""
        return self.submission_folder / "pending.json"

    @property
    def owner(self) -> str | None:
        """The user who owns the sweep, if it is another user; else None."""
        try:
            return owner(self.folder)
        except OSError:  # it is missing, or hidden from the user
            return None

    @property
    def pack_folder(self) -> Path | None:
        """The folder of the pack that the sweep is in, PACK/data/runs/SWEEP; None outside."""
        parents = absolute(self.folder).parents
        is_packed = len(parents) > 3 and (parents[2] / PACK_MARK).is_file()
        return parents[2] if is_packed else None

    @property
    def report_folder(self) -> Path:
        """The folder of its report; beside a pack, whose lists cover all that is in it."""
        pack = self.pack_folder
        return pack.with_name(f"{pack.name}-report") if pack else self.folder / "report"

    @property
    def cache_folder(self) -> Path:
        """Views and decoded images, shared by all sweeps in the same folder.

        It is the user's own cache if the shared cache is closed to the user.
        """
        shared, own = cache_folders(self.folder.parent)
        for place in (shared, shared / "views", shared / "decoded"):
            if place.exists() and not os.access(place, os.R_OK | os.W_OK | os.X_OK):
                return own
        return shared

    @property
    def views_folder(self) -> Path:
        return self.cache_folder / "views"

    @property
    def decoded_folder(self) -> Path:
        return self.cache_folder / "decoded"

    def info(self) -> SweepInfo:
        """Returns sweep.json.

        Raises: RunError if the folder is not a sweep, if a value is wrong, or if a run's name
        leads out of the folder.
        """
        return read_record(SweepInfo, self.sweep_file, f"{self.folder} is not a sweep")

    def converged(self) -> Converged | None:
        """Returns converged.json; None if it is missing. Raises: RunError if a value is wrong."""
        if not os.path.lexists(self.converged_file):
            return None
        return read_record(Converged, self.converged_file, "the converged head cannot be read")

    def retry_command(self, *options: str, twice: str | None = None) -> str:
        """Returns the command that queues failed and lost runs again; works in any folder.

        *twice* names a field of ClusterConfig whose value the command doubles.
        """
        with suppress(RunError):  # a damaged sweep.json: the command without *twice*
            if twice:
                flag = options_of(ClusterConfig)[twice].flag
                options = (*options, flag, f"{2 * self.info().asked(twice):.10g}")
        return self.command("retry", *options)

    def command(self, name: str, *words: str) -> str:
        """Returns a skinjob command for this sweep; works in any folder."""
        folder = self.folder
        with suppress(OSError):  # the current folder may have been removed
            folder = absolute(folder)
        return shlex.join(["skinjob", name, str(folder), *words])

    def require_own(self, command: str, *words: str) -> None:
        """Checks that the user owns the sweep. Raises: RunError."""
        if self.owner:
            raise RunError(
                f"sweep {self.folder} belongs to {self.owner}",
                f"ask {self.owner} to run: {self.command(command, *words)}",
            )

    def runs(self) -> list[Run]:
        """Returns the sweep's runs, in the order of sweep.json. Raises: RunError as `info` does."""
        return [Run(self.folder / name) for name in self.info().runs]


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
    """Returns the file that the user's submit, cancel and clean lock while they work."""
    return runs / f".submit-{os.geteuid()}.lock"


def sweeps(runs: Path) -> list[Sweep]:
    """Returns the sweeps below *runs*: first damaged sweeps, then the others, oldest first."""
    # A hidden folder is a sweep that a command is making or removing.
    folders = [Sweep(file.parent) for file in runs.glob("[!.]*/sweep.json")]
    return sorted(folders, key=lambda sweep: (_created_utc(sweep), sweep.name))


def _created_utc(sweep: Sweep) -> str:
    with suppress(RunError):
        return sweep.info().created_utc
    return ""
