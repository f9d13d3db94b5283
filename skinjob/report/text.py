"""The summary as people read it: percent, points, minutes, and a dash for what is not there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from skinjob.words import duration

Cell = Callable[[dict[str, Any]], str]

NOTHING = "-"


def printed(summary: pd.DataFrame, width: int) -> tuple[list[str], list[list[str]]]:
    """Returns columns and rows of the summary that fit a terminal of *width* characters.

    80 hold them all; in a narrower one the least telling columns give way, rather than that every
    number is folded into two lines.
    """
    cells = ACCURACY | _seeds(summary) | LEARNING | TIME
    columns, rows = _cells(summary, cells)
    for name in FIRST_TO_GO:
        if _width(columns, rows) <= width:
            break
        cells.pop(name)
        columns, rows = _cells(summary, cells)
    return columns, rows


def complete(summary: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Returns columns and rows of the summary with all that it has."""
    return _cells(summary, ACCURACY | _seeds(summary) | QUALITIES | LEARNING | UPDATES | TIME)


def percent(fraction: float, digits: int = 1) -> str:
    """Returns a fraction as percent, without the sign.

    >>> percent(0.8788)
    '87.9'
    """
    return number(100 * fraction, digits)


def number(value: float, digits: int) -> str:
    """Returns a number with so many digits, and a dash for NaN.

    >>> number(0.31249, 3), number(float("nan"), 3)
    ('0.312', '-')
    """
    return NOTHING if math.isnan(value) else f"{value:.{digits}f}"


def _accuracy(row: dict[str, Any]) -> str:
    accuracy = percent(row["final_test_accuracy"])
    low, high = row["final_test_accuracy_low"], row["final_test_accuracy_high"]
    return accuracy if math.isnan(low) else f"{accuracy} ({percent(low)}-{percent(high)})"


def _seeds(summary: pd.DataFrame) -> dict[str, Cell]:
    """Returns the columns that only several seeds fill."""
    return SEEDS if (summary["runs"] > 1).any() else {}


def _cells(summary: pd.DataFrame, cells: dict[str, Cell]) -> tuple[list[str], list[list[str]]]:
    rows: Sequence[dict[str, Any]] = summary.to_dict("records")
    names, lrs = {row["sweep"] for row in rows}, {row["lr"] for row in rows}
    labels = (SWEEP if len(names) > 1 else {}) | BATCH_SIZE | (LR if len(lrs) > 1 else {})
    cells = labels | cells
    return list(cells), [[cell(row) for cell in cells.values()] for row in rows]


def _width(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Returns how many characters the table takes, with two between columns."""
    heads = [max(map(len, name.split("\n"))) for name in columns]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return sum(map(max, heads, widths)) + 2 * len(columns)


# A line break in a heading keeps the column as narrow as its numbers.
SWEEP: dict[str, Cell] = {"sweep": lambda row: str(row["sweep"])}
BATCH_SIZE: dict[str, Cell] = {"batch\nsize": lambda row: str(row["batch_size"])}
LR: dict[str, Cell] = {"lr": lambda row: repr(row["lr"])}
ACCURACY: dict[str, Cell] = {
    "epoch": lambda row: str(row["epochs"]),
    "test accuracy %\n(95 % interval)": _accuracy,
    "best %\n(epoch)": lambda row: f"{percent(row['best_test_accuracy'])} ({row['best_epoch']})",
}
SEEDS: dict[str, Cell] = {
    "sd": lambda row: percent(row["final_test_accuracy_sd"]),
}
QUALITIES: dict[str, Cell] = {
    "AUC": lambda row: number(row["final_test_auc"], 3),
    "sensi-\ntivity %": lambda row: percent(row["final_test_sensitivity"]),
    "speci-\nficity %": lambda row: percent(row["final_test_specificity"]),
    "train\naccuracy %": lambda row: percent(row["final_train_accuracy"]),
}
LEARNING: dict[str, Cell] = {
    "train\nloss": lambda row: number(row["final_train_loss"], 3),
    "test\nloss": lambda row: number(row["final_test_loss"], 3),
    "change\n/epoch": lambda row: percent(row["accuracy_change"], 2),
}
UPDATES: dict[str, Cell] = {
    "updates": lambda row: str(row["updates"]),
    "runs": lambda row: str(row["runs"]),
}
FIRST_TO_GO = ("train\nloss", "time", "test\nloss", "best %\n(epoch)", "epoch")
TIME: dict[str, Cell] = {"time": lambda row: duration(row["seconds"])}
