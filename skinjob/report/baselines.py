"""Baselines of the runs: the head that they approach, and classifiers that see no lesion.

The numbers are read from converged.json and sweep.json; no image is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from skinjob.errors import RunError
from skinjob.report.measures import MEASURES, number, percent
from skinjob.report.tables import SweepTable

CONVERGED, SHORTCUT, PREVALENCE = "converged head", "without lesion", "without image"

ABOVE = "train_loss_above_converged"
"""The column of summary.csv: the mean train loss of the last epoch minus the converged head's."""


@dataclass(frozen=True)
class Baseline:
    """A classifier that no run of the sweep trained."""

    sweep: str
    name: str
    metrics: Mapping[str, float]
    """By column of metrics.csv."""

    @property
    def cells(self) -> dict[str, str]:
        """The texts of its row in the page's table, by the labels of the columns."""
        known = {m.label: m.text(self.metrics[m.column]) for m in MEASURES if m.column in self}
        return {"sweep": self.sweep, "batch\nsize": self.name, **known}

    @property
    def words(self) -> str:
        """Its metrics for the terminal."""
        accuracy = percent(self.metrics.get("test_accuracy", math.nan))
        names = {"test_auc": "AUC", "test_loss": "test loss", "train_loss": "train loss"}
        others = [
            f"{name} {number(self.metrics[column], 3)}"
            for column, name in names.items()
            if column in self
        ]
        return ", ".join([f"accuracy {accuracy} %", *others])

    def __contains__(self, column: str) -> bool:
        return column in self.metrics


def baselines(table: SweepTable) -> list[Baseline]:
    """Returns the baselines of a sweep, the best first. Older sweeps know fewer."""
    known = {
        CONVERGED: table.converged.metrics if table.converged else {},
        SHORTCUT: table.info.images.shortcut,
        PREVALENCE: _prevalence(table.counts),
    }
    name = table.sweep.name
    return [Baseline(name, which, metrics) for which, metrics in known.items() if metrics]


def baseline_lines(table: SweepTable, summary: pd.DataFrame) -> list[str]:
    """Returns the baselines of a sweep as sentences for the terminal.

    *summary* is summary.csv, with the excess of each batch size over the converged head.
    """
    known = {baseline.name: baseline for baseline in baselines(table)}
    lines = []
    if table.converged and table.converged.exists:
        lines.append(f"Converged head: {known[CONVERGED].words}. {_excess(table, summary)}")
    elif table.converged:
        lines.append(
            "There is no converged head: a head tells all training images apart, so with more "
            "updates the train loss of every run falls towards 0."
        )
    if SHORTCUT in known:
        lines.append(
            "File size, image size, border and mean colour alone, without the lesion: "
            f"{known[SHORTCUT].words}."
        )
    if PREVALENCE in known:
        lines.append(f"The largest class, without the image: {known[PREVALENCE].words}.")
    return lines


def unreadable(table: SweepTable) -> list[str]:
    """Returns a sentence if converged.json is damaged, or of a newer version."""
    try:
        table.sweep.converged()
    except RunError as error:
        return [f"The converged head is not shown: {error.message}."]
    return []


def _excess(table: SweepTable, summary: pd.DataFrame) -> str:
    """Returns how far the batch sizes with complete runs are above the converged head."""
    last = table.info.updates or table.info.epochs or 0
    rows = summary[(summary["sweep"] == table.sweep.name) & (summary[table.counts_in] >= last)]
    above = rows[ABOVE].dropna() if ABOVE in rows else pd.Series(dtype=float)
    if above.empty:
        return ""
    ends = [
        f"{above[place]:.3f} ({rows['batch_size'][place]})"
        for place in dict.fromkeys((above.idxmin(), above.idxmax()))
    ]
    return f"The runs ended {' to '.join(ends)} above its train loss."


def _prevalence(counts: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    """Returns the metrics of a classifier that always answers the prevalence of train."""
    train, test = counts.get("train", {}), counts.get("test", {})
    num = sum(test.values())
    if not num or not all(train.get(name) for name in test):
        return {}
    shares = {name: train[name] / sum(train.values()) for name in test}
    loss = -sum(count * math.log(shares[name]) for name, count in test.items()) / num
    most = max(shares, key=lambda name: shares[name])
    return {"test_accuracy": test[most] / num, "test_auc": 0.5, "test_loss": loss}
