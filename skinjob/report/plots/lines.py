"""What curves are drawn of: series with their labels and looks, quantities, and shared axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from skinjob.report.measures import COMPARED
from skinjob.report.plots.chart import (
    Look,
    Scale,
    looks,
    span,
)
from skinjob.report.statistics import Floats
from skinjob.report.tables import Series
from skinjob.sweeps.records import METRICS, TESTS

LONGEST_LABEL = 16  # characters at the end of a line; longer ones get a letter and a key below
TITLES = {"updates": "updates (log scale)", "epochs": "epochs"}
LEFT = 42.0  # the room for numbers left of a panel

Levels = Mapping[str, float]
"""The value of the converged head by column, where it is known."""


@dataclass(frozen=True)
class Quantity:
    """What a picture shows of a column of metrics.csv."""

    column: str
    name: str
    factor: float = 1.0
    minus: float = 0.0

    def of(self, values: Floats) -> Floats:
        """Returns values of the column as the picture has them."""
        return self.factor * (values - self.minus)


TEST_LOSS = Quantity("test_loss", "test loss")
TEST_ACCURACY = Quantity(COMPARED.column, "test accuracy %", 100.0)
TEST_AUC = Quantity("test_auc", "test AUC")


@dataclass(frozen=True)
class Line:
    """A series in a picture."""

    series: Series
    label: str
    look: Look
    key: str = ""
    """The meaning of a label that is only a letter."""


def lines_of(all_series: Sequence[Series], labels: Sequence[str]) -> list[Line]:
    """Returns a line for each series. If labels are long, they become letters with a key."""
    parts = zip(all_series, labels, looks(len(all_series)), strict=True)
    lines = [Line(series, label, look) for series, label, look in parts]
    if max(map(len, labels)) <= LONGEST_LABEL:
        return lines
    return [
        replace(line, label=_letter(n), key=f"{_letter(n)}: {line.label}")
        for n, line in enumerate(lines)
    ]


def _letter(n: int) -> str:
    return chr(ord("A") + n % 26) + (str(n // 26) if n >= 26 else "")


@dataclass(frozen=True)
class Scales:
    """The axes that all pictures of a report share."""

    epochs: Scale
    updates: Scale
    loss: Scale
    accuracy: Scale
    auc: Scale

    def along(self, by: str) -> Scale:
        """Returns the horizontal axis: of epochs, or of updates."""
        return self.updates if by == "updates" else self.epochs

    def of(self, column: str) -> Scale:
        """Returns the vertical axis of a column of metrics.csv."""
        if column.endswith("_loss"):
            return self.loss
        return self.accuracy if column.endswith("_accuracy") else self.auc


def common_scales(all_series: Sequence[Series], levels: Levels) -> Scales:
    """Returns axes that hold every finite value of every series, and the converged head."""
    points = [tests(series, "test_loss", "updates")[0] for series in all_series]
    points += [[float(updates) for updates in series.updates] for series in all_series]
    updates = [end for own in points for end in (own[0], own[-1])]
    last = max(series.epochs for series in all_series)
    return Scales(
        epochs=epoch_scale(last),
        updates=Scale(max(min(updates), 1) / 1.25, max(*updates, 1) * 1.1, is_log=True),
        loss=_span(all_series, levels, "_loss", (0.0, math.inf)),
        accuracy=_span(all_series, levels, "_accuracy", (0.0, 100.0), 100.0),
        auc=_span(all_series, levels, "test_auc", (0.0, 1.0)),
    )


def epoch_scale(last: int) -> Scale:
    """Returns the axis of epochs 1 to *last*."""
    return Scale(1, last) if last > 1 else Scale(0, 2)


def _span(
    all_series: Sequence[Series],
    levels: Levels,
    ending: str,
    bounds: tuple[float, float],
    factor: float = 1.0,
) -> Scale:
    """Returns the axis of all columns with this ending."""
    columns = [column for column in METRICS if column.endswith(ending)]
    values = [s.rows[column].to_numpy(float) for s in all_series for column in columns]
    level = levels.get(f"test{ending}" if ending.startswith("_") else ending, math.nan)
    ends = np.concatenate([*values, [level]])
    return span((factor * ends).tolist(), bounds=bounds)


def known(series: Series, column: str) -> Floats:
    """Returns a column by run, (runs, epochs); NaN where a value is infinite."""
    return _finite(series.by_run(column))


def tests(series: Series, column: str, by: str) -> tuple[list[float], Floats]:
    """Returns the epochs or updates after which runs were tested, and a column there by run."""
    if by == "updates" and column in TESTS:
        return [float(point) for point in series.points], _finite(series.at_points(column))
    xs = epochs_of(series) if by == "epochs" else [float(updates) for updates in series.updates]
    return xs, known(series, column)


def _finite(values: Floats) -> Floats:
    return np.where(np.isfinite(values), values, math.nan)


def epochs_of(series: Series) -> list[float]:
    return [float(epoch) for epoch in range(1, series.epochs + 1)]
