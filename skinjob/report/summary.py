"""The summary, a row for each batch size and learning rate: as numbers, and as text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from skinjob.report.baselines import ABOVE, Baseline
from skinjob.report.measures import (
    CHOSEN_ON_TEST,
    COMPARED,
    MEASURES,
    Measure,
    number,
    percent,
)
from skinjob.report.statistics import mean_and_sd, wilson_interval
from skinjob.report.tables import Series, known_measures
from skinjob.words import duration

Row = dict[str, Any]

DROP = ("train\nloss", "time", "updates", "test\nloss", "best %\n(epoch)", "epoch")
"""Columns that a narrow terminal leaves out, in this order. 90 characters are enough for all."""


def summarize(all_series: Sequence[Series]) -> pd.DataFrame:
    """Returns summary.csv: accuracies are fractions, seconds are sums over the runs of a row."""
    measures = known_measures(all_series)
    return pd.DataFrame([_summary_row(series, measures) for series in all_series])


def readable(
    summary: pd.DataFrame, *, is_complete: bool, baselines: Sequence[Baseline] = ()
) -> tuple[list[str], list[list[str]]]:
    """Returns columns and rows of the summary as text; complete for the page.

    The baselines are the last rows.
    """
    rows: list[Row] = summary.to_dict("records")
    cells: dict[str, Callable[[Row], str]] = {}
    if summary["sweep"].nunique() > 1:
        cells["sweep"] = lambda row: str(row["sweep"])
    cells["batch\nsize"] = lambda row: str(row["batch_size"])
    if summary["lr"].nunique() > 1:
        cells["lr"] = lambda row: repr(row["lr"])
    cells["epoch"] = lambda row: str(row["epochs"])
    cells[COMPARED.label] = _accuracy_and_interval
    cells["best %\n(epoch)"] = _best_and_epoch
    if (summary["runs"] > 1).any():
        cells["sd"] = lambda row: percent(row[f"{_FINAL}_sd"])
    for measure in MEASURES:
        is_shown = is_complete or measure.is_printed
        if is_shown and measure is not COMPARED and _final(measure) in summary:
            cells[measure.label] = partial(_final_text, measure)
    if is_complete and ABOVE in summary:
        cells["train loss\nabove the\nconverged head"] = lambda row: number(row[ABOVE], 3)
    if is_complete or summary["epochs"].nunique() > 1:
        cells["updates"] = lambda row: str(row["updates"])
    if is_complete:
        cells["runs"] = lambda row: str(row["runs"])
    cells["time"] = lambda row: duration(row["seconds"])
    own = [[cell(row) for cell in cells.values()] for row in rows]
    return list(cells), own + [
        [baseline.cells.get(name, "") for name in cells] for baseline in baselines
    ]


def _summary_row(series: Series, measures: Sequence[Measure]) -> Row:
    accuracy, accuracy_sd = mean_and_sd(series.final(COMPARED))
    low, high = wilson_interval(accuracy, series.table.num_compared)
    change, change_sd = mean_and_sd(series.changes())
    curve = series.curve(COMPARED)
    best = int(np.nan_to_num(series.curve(series.table.choosing).mean, nan=-1).argmax())
    row: Row = {
        "sweep": series.table.sweep.name,
        "batch_size": series.batch_size,
        "lr": series.lr,
        "runs": series.num_counted,
        "epochs": series.epochs,
        "updates": curve.updates[-1],
        _FINAL: accuracy,
        f"{_FINAL}_low": low,
        f"{_FINAL}_high": high,
        f"{_FINAL}_sd": accuracy_sd,
        _BEST: curve.mean[best],
        "best_epoch": curve.epochs[best],
        "best_epoch_chosen_with": series.table.choosing.split,
    }
    for measure in measures:
        if measure is not COMPARED:
            mean, sd = mean_and_sd(series.final(measure))
            row |= {_final(measure): mean, f"{_final(measure)}_sd": sd}
    if (converged := series.table.converged) and "final_train_loss" in row:
        row[ABOVE] = row["final_train_loss"] - converged.metrics.get("train_loss", math.nan)
    return row | {
        "accuracy_change": change,
        "accuracy_change_sd": change_sd,
        "seconds": float(series.rows["seconds"].sum()),
    }


def _final(measure: Measure) -> str:
    return f"final_{measure.column}"


def _final_text(measure: Measure, row: Row) -> str:
    return measure.text(row[_final(measure)])


def _best_and_epoch(row: Row) -> str:
    mark = CHOSEN_ON_TEST if row["best_epoch_chosen_with"] == COMPARED.split else ""
    return f"{percent(row[_BEST])}{mark} ({row['best_epoch']})"


def _accuracy_and_interval(row: Row) -> str:
    low, high = row[f"{_FINAL}_low"], row[f"{_FINAL}_high"]
    interval = "" if math.isnan(low) else f" ({percent(low)}-{percent(high)})"
    return percent(row[_FINAL]) + interval


_FINAL, _BEST = _final(COMPARED), f"best_{COMPARED.column}"
