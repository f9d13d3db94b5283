"""A sweep's metrics.csv files as tables: every row, one series per batch size, one summary.

Accuracies are fractions 0..1, times seconds, throughout. Percent is for people: see `text`.
"""

from __future__ import annotations

import csv
import io
import re
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from skinjob.errors import RunError
from skinjob.runs import METRICS, Run, Sweep

TEXTS = ("sweep", "run", "time_utc")
INTEGERS = ("batch_size", "seed", "epoch", "updates")
QUALITIES = ("test_auc", "test_sensitivity", "test_specificity")
OPTIONAL = ("train_loss", "test_loss", *QUALITIES)
"""Columns that may be blank: a loss that diverged, the AUC of a test set of one class."""

Z_95 = statistics.NormalDist().inv_cdf(0.975)  # 1.96

COMPLETE_END = re.compile(r",\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\r?$")


@dataclass(frozen=True)
class SweepTable:
    """A sweep and every row that its runs have written."""

    sweep: Sweep
    info: dict[str, Any]
    """sweep.json."""
    texts: pd.DataFrame
    """The rows as they stand in the files: METRICS, all text."""
    rows: pd.DataFrame
    """The same rows as numbers; a blank is NaN."""

    @property
    def planned(self) -> int:
        """Epochs that each run was asked for."""
        return int(self.info["recipe"]["epochs"])

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Images per split and class; empty where sweep.json does not say."""
        return dict(self.info.get("images", {}).get("counts", {}))

    @property
    def test_images(self) -> int:
        """Images that the test accuracy is over; 0 where sweep.json does not say."""
        return sum(self.counts.get("test", {}).values())

    @property
    def untrained(self) -> bool:
        """Whether the backbone's weights are random: then the numbers say nothing about images."""
        return bool(self.info.get("weights", {}).get("untrained", False))


@dataclass(frozen=True)
class Curve:
    """One column of a series, epoch by epoch, over the runs that reached its last epoch."""

    epochs: list[int]
    updates: list[int]
    mean: list[float]
    low: list[float]
    """The lowest of the runs; with one run, the mean."""
    high: list[float]


@dataclass(frozen=True)
class Series:
    """The runs of one batch size, which differ in their seed alone.

    Numbers are over the runs that got furthest, so that no mean mixes epochs: a run that failed or
    is behind counts for nothing until it is there, and the report names it as missing.
    """

    table: SweepTable
    batch_size: int

    @property
    def rows(self) -> pd.DataFrame:
        """The rows of all its runs."""
        return self.table.rows[self.table.rows["batch_size"] == self.batch_size]

    @property
    def epochs(self) -> int:
        """The last epoch that any of its runs finished."""
        return int(self.rows["epoch"].max())

    @property
    def counted(self) -> pd.DataFrame:
        """The rows of the runs that reached the last epoch."""
        rows = self.rows
        return rows[_last_epochs(rows) == self.epochs]

    @property
    def num_counted(self) -> int:
        """The runs that reached the last epoch."""
        return int(self.counted["run"].nunique())

    @property
    def behind(self) -> pd.DataFrame:
        """The rows of the runs that did not."""
        rows = self.rows
        return rows[_last_epochs(rows) < self.epochs]

    def final(self, column: str) -> list[float]:
        """Returns a column at the last epoch, a value per run."""
        counted = self.counted
        return [float(value) for value in counted.loc[counted["epoch"] == self.epochs, column]]

    def accuracy_changes(self, first_epoch: int = 1) -> list[float]:
        """Returns each run's mean absolute change of test accuracy from an epoch to the next.

        Changes count from *first_epoch* on; where there is none it is NaN.
        """
        counted = self.counted
        by_run = counted[counted["epoch"] >= first_epoch].groupby("run")["test_accuracy"]
        return [float(accuracies.diff().abs().mean()) for _, accuracies in by_run]

    def curve(self, column: str) -> Curve:
        """Returns a column against epochs and updates."""
        epochs = self.counted.groupby("epoch")
        values = epochs[column]
        return Curve(
            epochs=[int(epoch) for epoch in epochs.groups],
            updates=[int(updates) for updates in epochs["updates"].max()],
            mean=values.agg(_mean).tolist(),
            low=values.min().tolist(),
            high=values.max().tolist(),
        )


def read_sweep(sweep: Sweep) -> SweepTable:
    """Returns every row that the sweep's runs have written so far.

    Raises: RunError when sweep.json lacks what a report needs, or a metrics.csv is damaged.
    """
    info = sweep.info()
    if "runs" not in info or "epochs" not in info.get("recipe", {}):
        raise RunError(
            f"{sweep.sweep_file}: no 'runs' or no 'recipe' with 'epochs' in it",
            f"cat {shlex.quote(str(sweep.sweep_file))}",
        )
    cells = [row for run in sweep.runs() for row in read_run(run)]
    texts = pd.DataFrame(cells, columns=list(METRICS), dtype=str)
    rows = pd.DataFrame({name: [_value(name, cell) for cell in texts[name]] for name in METRICS})
    return SweepTable(sweep, info, texts, rows)


def read_run(run: Run) -> list[list[str]]:
    """Returns the rows of a run's metrics.csv as text, in the order of METRICS.

    Raises: RunError, naming file and line, when a row is ill-formed or an epoch is not the next.
    """
    try:
        text = _whole_lines(run.metrics_file.read_bytes())
    except FileNotFoundError:
        return []
    reader = csv.reader(io.StringIO(text, newline=""))
    header = next(reader, list(METRICS))
    if header != list(METRICS):
        raise _damaged(run, 1, "the header is not " + ",".join(METRICS))
    rows: list[list[str]] = []
    for row in reader:
        fault = _fault(run, row, epoch=len(rows) + 1)
        if fault:
            raise _damaged(run, reader.line_num, fault)
        rows.append(row)
    return rows


def all_series(tables: Sequence[SweepTable]) -> list[Series]:
    """Returns the series that have rows: sweep by sweep, the smallest batch size first."""
    return [
        Series(table, int(batch_size))
        for table in tables
        for batch_size in sorted(table.rows["batch_size"].unique())
    ]


def summarize(series: Sequence[Series]) -> pd.DataFrame:
    """Returns one row per series; accuracies as fractions, seconds over all runs of the series."""
    return pd.DataFrame([_summary_row(one) for one in series])


def wilson_interval(accuracy: float, num_images: int) -> tuple[float, float]:
    """Returns the 95 % interval of a proportion that was measured on *num_images*.

    Wilson (1927), "Probable inference, the law of succession, and statistical inference"; unlike
    accuracy +- 1.96 standard errors it stays inside 0..1 and is right near the ends.

    >>> [round(bound, 4) for bound in wilson_interval(0.5, 100)]
    [0.4038, 0.5962]
    """
    if not num_images:
        return float("nan"), float("nan")
    spread = Z_95**2 / num_images
    centre = (accuracy + spread / 2) / (1 + spread)
    half = (accuracy * (1 - accuracy) * spread + spread**2 / 4) ** 0.5 / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Returns mean and sample standard deviation; the latter is NaN for fewer than two values."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return statistics.fmean(values), sd


def _last_epochs(rows: pd.DataFrame) -> pd.Series:
    """Returns for each row the last epoch of its run."""
    return rows.groupby("run")["epoch"].transform("max")


def _mean(values: pd.Series) -> float:
    """Returns the mean; NaN when one is missing, where pandas would pass over it in silence."""
    return float(values.mean(skipna=False))


def _summary_row(series: Series) -> dict[str, Any]:
    accuracy, accuracy_sd = mean_and_sd(series.final("test_accuracy"))
    low, high = wilson_interval(accuracy, series.table.test_images)
    test_loss, test_loss_sd = mean_and_sd(series.final("test_loss"))
    change, change_sd = mean_and_sd(series.accuracy_changes())
    test_curve = series.curve("test_accuracy")
    best = max(range(len(test_curve.mean)), key=test_curve.mean.__getitem__)
    return {
        "sweep": series.table.sweep.name,
        "batch_size": series.batch_size,
        "runs": series.num_counted,
        "epochs": series.epochs,
        "updates": test_curve.updates[-1],
        "final_test_accuracy": accuracy,
        "final_test_accuracy_low": low,
        "final_test_accuracy_high": high,
        "final_test_accuracy_sd": accuracy_sd,
        "best_test_accuracy": test_curve.mean[best],
        "best_epoch": test_curve.epochs[best],
        "final_train_accuracy": statistics.fmean(series.final("train_accuracy")),
        "final_train_loss": statistics.fmean(series.final("train_loss")),
        "final_test_loss": test_loss,
        "final_test_loss_sd": test_loss_sd,
        **{f"final_{name}": statistics.fmean(series.final(name)) for name in QUALITIES},
        "accuracy_change": change,
        "accuracy_change_sd": change_sd,
        "seconds": float(series.rows["seconds"].sum()),
    }


def _whole_lines(content: bytes) -> str:
    """Returns the text of a CSV without a last line that is still being written.

    A last line may lack its line break and be whole, as editors leave it; it ends in a time then.
    """
    text = content.decode("utf-8", errors="replace")
    return text if COMPLETE_END.search(text) else text[: text.rfind("\n") + 1]


def _fault(run: Run, row: list[str], *, epoch: int) -> str | None:
    """Returns what is wrong with a row of metrics.csv, or None."""
    if len(row) != len(METRICS):
        return f"{len(row)} values, not {len(METRICS)}"
    cells = dict(zip(METRICS, row, strict=True))
    for name, cell in cells.items():
        try:
            _value(name, cell)
        except ValueError:
            return f"{name} is {cell!r}"
    if cells["run"] != run.name:
        return f"a row of run {cells['run']!r}"
    if int(cells["epoch"]) != epoch:
        return f"epoch {cells['epoch']} where epoch {epoch} is due"
    return None


def _value(name: str, cell: str) -> str | int | float:
    """Returns a cell of metrics.csv as what its column holds. Raises: ValueError."""
    if name in TEXTS:
        return cell
    if name in INTEGERS:
        return int(cell)
    value = float("nan") if name in OPTIONAL and not cell else float(cell)
    if name.endswith("_accuracy") and not 0 <= value <= 1:
        raise ValueError(cell)
    return value


def _damaged(run: Run, line: int, fault: str) -> RunError:
    file = run.metrics_file
    return RunError(f"{file}, line {line}: {fault}", f"sed -n {line}p {shlex.quote(str(file))}")
