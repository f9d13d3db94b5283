"""Gathers the rows of a sweep's runs, and groups the runs by batch size and learning rate.

Accuracies are fractions 0..1, and times are in seconds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from skinjob.errors import RunError
from skinjob.report.measures import CHOOSING, COMPARED, MEASURES, Measure
from skinjob.report.rows import MetricsFile, Tests, is_file, read_run, read_tests
from skinjob.sweeps.layout import Run, Sweep
from skinjob.sweeps.records import METRICS, Converged, RunState, SweepInfo

NAMED = re.compile(r"bs(\d+)-lr(\d+(?:\.\d+)?(?:e[-+]?\d+)?)-seed(\d+)", re.ASCII)


@dataclass(frozen=True)
class SweepTable:
    """A sweep and all rows of its runs."""

    sweep: Sweep
    info: SweepInfo
    """sweep.json."""
    files: list[MetricsFile]
    rows: pd.DataFrame
    """The rows of all files. `lr` is that of the epoch, `run_lr` that of the configuration."""
    unread: dict[str, RunError]
    """The error of each run with an unreadable file. Its numbers do not count."""
    points: dict[str, tuple[int, float, int]]
    """Batch size, lr and seed of each run that has begun, or has a config.json."""
    states: dict[str, RunState]
    tests: dict[str, Tests]
    """The columns of tests.csv of each run that has the file."""
    converged: Converged | None
    """None if it was not computed, or cannot be read."""

    @property
    def num_epochs(self) -> int:
        """The number of epochs of each complete run; 0 if it depends on the batch size."""
        return self.info.epochs or 0

    @property
    def counts_in(self) -> str:
        """What all its complete runs have the same number of: epochs or updates."""
        return "updates" if self.info.updates else "epochs"

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Images by split and class; empty if sweep.json does not have them."""
        return self.info.images.counts

    @property
    def num_compared(self) -> int:
        """Images of a compared accuracy; 0 if sweep.json does not have it."""
        return sum(self.counts.get(COMPARED.split, {}).values())

    @property
    def columns(self) -> list[str]:
        """The columns of its files: first those of METRICS, then unknown columns."""
        names = dict.fromkeys(name for file in self.files for name in file.header)
        return [*filter(names.__contains__, METRICS), *(n for n in names if n not in METRICS)]

    @property
    def choosing(self) -> Measure:
        """The measure by which its best epochs are chosen: of val, or of test if it has no val."""
        return CHOOSING if CHOOSING.column in self.columns else COMPARED

    @property
    def weights_kind(self) -> str:
        """The kind of the backbone's weights: fetched, demo or untrained."""
        return self.info.weights_kind

    @property
    def positive_class(self) -> str:
        """The positive class of sensitivity, specificity and AUC."""
        return self.info.images.positive or "?"


@dataclass(frozen=True)
class Curve:
    """A measure of a series by epoch, over the runs that reached the last epoch."""

    epochs: list[int]
    updates: list[int]
    mean: list[float]


@dataclass(frozen=True)
class Series:
    """The runs of a batch size and a learning rate, which differ only in their seed.

    All numbers are over the runs that reached the last epoch, because a mean must not mix epochs.
    Until a run reaches it, the run does not count, and the report names it as missing.
    """

    table: SweepTable
    batch_size: int
    lr: float
    rows: pd.DataFrame
    """The rows of all its runs."""

    @cached_property
    def epochs(self) -> int:
        """The last epoch that a run finished."""
        return int(self.rows["epoch"].max())

    @cached_property
    def counted(self) -> pd.DataFrame:
        """The rows of the runs that reached the last epoch."""
        return self.rows[self._last_epochs == self.epochs]

    @property
    def num_counted(self) -> int:
        """The number of runs that reached the last epoch."""
        return len(self.counted) // self.epochs

    @cached_property
    def behind(self) -> pd.DataFrame:
        """The rows of the runs that did not reach the last epoch."""
        return self.rows[self._last_epochs < self.epochs]

    @property
    def num_behind(self) -> int:
        """The number of runs that did not reach the last epoch."""
        return int((self.behind["epoch"] == 1).sum())

    @cached_property
    def run_of_seed(self) -> dict[int, str]:
        """The name of each counted run, by seed."""
        return dict(zip(self.seeds, self.counted["run"][:: self.epochs], strict=True))

    @cached_property
    def seeds(self) -> list[int]:
        """The seeds of the counted runs, in the order of `by_run`."""
        return [int(seed) for seed in self.counted["run_seed"][:: self.epochs]]

    @cached_property
    def updates(self) -> list[int]:
        """The updates at the end of each epoch."""
        return [int(updates) for updates in self.by_run("updates").max(axis=0)]

    @property
    def whole_epochs(self) -> int:
        """The epochs that were not cut, as `updates` may cut the last one."""
        if not self.table.info.updates:
            return self.epochs
        num_images = sum(self.table.counts.get("train", {}).values())
        per_epoch = -(-num_images // self.batch_size) or self.updates[0]
        return self.epochs - (self.updates[-1] < self.epochs * per_epoch)

    @cached_property
    def _tests(self) -> Sequence[Tests]:
        """The tests of each counted run; empty if a run has none, or others than the first run."""
        tests = [self.table.tests.get(name, {}) for name in self.run_of_seed.values()]
        points = [each.get("update") for each in tests]
        return tests if points[0] and all(each == points[0] for each in points) else []

    @property
    def points(self) -> list[int]:
        """The updates after which it was tested: those of tests.csv, or the ends of its epochs."""
        return [int(update) for update in self._tests[0]["update"]] if self._tests else self.updates

    def at_points(self, column: str) -> NDArray[np.float64]:
        """Returns a test metric of the counted runs: (num_counted, points)."""
        if not self._tests:
            return self.by_run(column)
        return np.array([each[column] for each in self._tests], np.float64)

    def final(self, measure: Measure) -> list[float]:
        """Returns the values of the runs at the last epoch."""
        return [float(value) for value in self.by_run(measure.column)[:, -1]]

    def changes(self) -> list[float]:
        """Returns each run's mean absolute change of test accuracy between consecutive epochs.

        NaN if there is only one epoch.
        """
        changes = np.abs(np.diff(self.by_run(COMPARED.column)))
        if not changes.size:
            return [float("nan")] * self.num_counted
        return [float(change) for change in changes.mean(axis=1)]

    def curve(self, measure: Measure) -> Curve:
        """Returns a measure by epoch and by update.

        If the value of a run is missing, the mean is NaN: a mean of the others could be too good.
        """
        values = self.by_run(measure.column)
        return Curve(
            epochs=list(range(1, self.epochs + 1)),
            updates=self.updates,
            mean=values.mean(axis=0).tolist(),
        )

    @cached_property
    def _last_epochs(self) -> pd.Series:
        """The last epoch of its run, for each row."""
        return self.rows.groupby("run")["epoch"].transform("max")

    def by_run(self, column: str) -> NDArray[np.float64]:
        """Returns a column of the counted runs: (num_counted, epochs), as `read_run` checked."""
        values: NDArray[np.float64] = self.counted[column].to_numpy(np.float64)
        return values.reshape(-1, self.epochs)


def read_sweep(sweep: Sweep) -> SweepTable:
    """Returns all rows that the runs of a sweep have written.

    A run with an unreadable file is in `unread` and has no rows.

    Raises: RunError if sweep.json cannot be read.
    """
    info = sweep.info()
    files: list[MetricsFile] = []
    unread, points, states, tests = {}, {}, {}, {}
    for run in sweep.runs():
        try:
            file, tests[run.name] = read_run(run), read_tests(run)
            states[run.name] = run.state()
            if file.values or is_file(run.config_file):
                points[run.name] = _grid_point(run)
        except RunError as error:
            unread[run.name] = error
        else:
            files.append(file)
    rows = pd.DataFrame([row for file in files for row in file.values], columns=list(METRICS))
    # These three come from the folder of the run: a schedule changes the lr in the rows.
    of_rows = [points[name] for name in rows["run"]]
    for place, column in enumerate(("batch_size", "run_lr", "run_seed")):
        rows[column] = [point[place] for point in of_rows]
    converged = None
    with suppress(RunError):  # `baselines.unreadable` tells
        converged = sweep.converged()
    return SweepTable(sweep, info, files, rows, unread, points, states, tests, converged)


def group_runs(tables: Sequence[SweepTable]) -> list[Series]:
    """Returns the series that have rows, sorted by sweep, lr and batch size."""
    return [
        Series(table, int(batch_size), float(lr), rows)
        for table in tables
        for (lr, batch_size), rows in table.rows.groupby(["run_lr", "batch_size"])
    ]


def by_lr(all_series: Sequence[Series]) -> dict[float, list[Series]]:
    """Returns the series of each learning rate, the smallest rate first."""
    lrs = sorted({series.lr for series in all_series})
    return {lr: [series for series in all_series if series.lr == lr] for lr in lrs}


def known_measures(all_series: Sequence[Series]) -> list[Measure]:
    """Returns the measures that a metrics.csv of any sweep has."""
    columns = {name for series in all_series for name in series.table.columns}
    return [measure for measure in MEASURES if measure.column in columns]


def _grid_point(run: Run) -> tuple[int, float, int]:
    """Returns the batch size, learning rate and seed of a run.

    They come from config.json or, in a copied folder without that file, from its name.
    """
    named = NAMED.fullmatch(run.name)
    if named and not is_file(run.config_file):
        return int(named[1]), float(named[2]), int(named[3])
    config = run.config()
    return config.batch_size, float(config.lr), config.seed
