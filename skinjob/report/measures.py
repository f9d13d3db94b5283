"""The metrics in the report: a line of MEASURES for each metric of each split.

To show another metric or another split, add lines. A column that no metrics.csv has does not appear
in tables.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """A metric of a split."""

    split: str
    metric: str
    label: str
    """The heading of its column. A line break keeps the column narrow."""
    unit: str = ""
    is_printed: bool = False
    """Whether the terminal shows it. The page shows all."""

    @property
    def column(self) -> str:
        """The name of its column in metrics.csv."""
        return f"{self.split}_{self.metric}"

    def text(self, value: float) -> str:
        """Returns a value of metrics.csv as text for people."""
        return percent(value) if self.unit == "%" else number(value, 3)


COMPARED = Measure("test", "accuracy", "test accuracy %\n(95 % interval)", "%", is_printed=True)
"""The measure by which batch sizes are compared."""

CHOOSING = Measure("val", "accuracy", "val\naccuracy %", "%")
"""The measure by which a best epoch is chosen, where there is a validation split."""

CHOSEN_ON_TEST = "*"
"""The mark of a number that was chosen by looking at the test images, so it is too good."""

MEASURES = (
    COMPARED,
    Measure("test", "auc", "AUC", is_printed=True),
    Measure("test", "sensitivity", "sensi-\ntivity %", "%"),
    Measure("test", "specificity", "speci-\nficity %", "%"),
    CHOOSING,
    Measure("train", "accuracy", "train\naccuracy %", "%"),
    Measure("train", "loss", "train\nloss", is_printed=True),
    Measure("test", "loss", "test\nloss", is_printed=True),
)


def scope_of(nums_seeds: Iterable[int]) -> str:
    """Returns what intervals over so many seeds are for. One seed says nothing about other seeds.

    >>> scope_of([10, 8]), scope_of([10, 1])
    ('new images and seeds', 'new images')
    """
    return "new images" if min(nums_seeds, default=2) == 1 else "new images and seeds"


def percent(fraction: float, digits: int = 1) -> str:
    """Returns a fraction in percent, without the percent sign.

    >>> percent(0.8788)
    '87.9'
    """
    return number(100 * fraction, digits)


def number(value: float, digits: int) -> str:
    """Returns a number with so many digits after the point; a dash for NaN.

    >>> number(0.31249, 3), number(float("nan"), 3)
    ('0.312', '-')
    """
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def signed(value: float) -> str:
    """Returns a difference with its sign; none for zero.

    >>> signed(0.0123), signed(-0.0001)
    ('+0.012', '0.000')
    """
    text = f"{value:+.3f}"
    return text[1:] if float(text) == 0 else text
