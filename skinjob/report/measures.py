"""What the report plots and tabulates: a line of MEASURES for each metric of each split.

To show a new metric, or a validation split, add lines here. A column that no metrics.csv has is
left out of every table and picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SPLITS = ("train", "test")
"""In the order of the pictures' legend."""


@dataclass(frozen=True)
class Axis:
    """A vertical axis of a picture."""

    name: str
    unit: str
    bounds: tuple[float, float]
    """Values outside are impossible, in the axis' unit."""

    @property
    def factor(self) -> float:
        """What turns a value of metrics.csv into the axis' unit."""
        return 100.0 if self.unit == "%" else 1.0


LOSS = Axis("loss", "", (0.0, math.inf))
ACCURACY = Axis("accuracy", "%", (0.0, 100.0))
AXES = (LOSS, ACCURACY)


@dataclass(frozen=True)
class Measure:
    """A metric of a split."""

    split: str
    metric: str
    label: str
    """The heading of its column. A line break keeps the column as narrow as its numbers."""
    unit: str = ""
    axis: Axis | None = None
    """Where the pictures show it; None for tables only."""
    is_printed: bool = False
    """Whether the terminal shows it; the page shows all."""

    @property
    def column(self) -> str:
        """The name of its column in metrics.csv."""
        return f"{self.split}_{self.metric}"

    def text(self, value: float) -> str:
        """Returns a value of metrics.csv as people read it."""
        return percent(value) if self.unit == "%" else number(value, 3)


COMPARED = Measure("test", "accuracy", "test accuracy %\n(95 % interval)", "%", ACCURACY, True)
"""What batch sizes are compared by."""

MEASURES = (
    COMPARED,
    Measure("test", "auc", "AUC"),
    Measure("test", "sensitivity", "sensi-\ntivity %", "%"),
    Measure("test", "specificity", "speci-\nficity %", "%"),
    Measure("train", "accuracy", "train\naccuracy %", "%", ACCURACY),
    Measure("train", "loss", "train\nloss", "", LOSS, True),
    Measure("test", "loss", "test\nloss", "", LOSS, True),
)


def percent(fraction: float, digits: int = 1) -> str:
    """Returns a fraction in percent, without the sign.

    >>> percent(0.8788)
    '87.9'
    """
    return number(100 * fraction, digits)


def number(value: float, digits: int) -> str:
    """Returns a number with that many digits; NaN is a dash.

    >>> number(0.31249, 3), number(float("nan"), 3)
    ('0.312', '-')
    """
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
