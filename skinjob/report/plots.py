"""Learning curves as PNG and SVG, to be read in grey on paper. The one door to matplotlib.

A series is known by line style, marker and lightness at once; colour only repeats it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skinjob.files import replacing
from skinjob.report.settings import no_matplotlib_settings
from skinjob.report.tables import Curve, Series

with no_matplotlib_settings():
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

FORMATS = ("png", "svg")
WIDTH_IN = 7.0  # the text width of an A4 page with its margins
DOTS_PER_IN = 150
PANEL_PT = 210.0  # the width of one of two panels side by side
DIGIT_PT = 5.6  # a digit of a tick's label, with its share of the gap to the next label

LINES: tuple[str | tuple[int, tuple[float, ...]], ...] = (
    "solid",
    (0, (5, 1.6)),
    (0, (5, 1.4, 1.2, 1.4)),
    (0, (2.2, 1.1)),
    (0, (8, 1.5, 1.2, 1.5, 1.2, 1.5)),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LIGHTEST = 0.75  # of cividis, which darkens evenly in grey; above it, yellow is lost on white
MOST_MARKERS = 10
MOST_BEHIND = 10  # runs drawn beside a mean; more of them bury it

STYLE: dict[Any, Any] = {
    **{name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"},
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial"],
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "text.parse_math": False,  # a sweep may be called anything
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",  # words stay words: they can be searched, read aloud and edited
    "svg.hashsalt": "skinjob",  # ids are drawn at random without it, and no two files are alike
}


@dataclass(frozen=True)
class Look:
    """How a series is drawn."""

    color: str
    line: str | tuple[int, tuple[float, ...]]
    marker: str
    face: str
    """The marker's inside."""


@dataclass(frozen=True)
class Scale:
    """What all pictures of a report have in common, so that they can be laid side by side."""

    epochs: int
    updates: tuple[float, float]
    loss: tuple[float, float]
    accuracy: tuple[float, float]
    """In percent."""
    majority: float | None
    """Test accuracy, in percent, of always answering the most frequent class."""

    def limits(self, quantity: str) -> tuple[float, float]:
        return self.loss if quantity == "loss" else self.accuracy


def common_scale(series: Sequence[Series]) -> Scale:
    """Returns limits that hold every value of every series."""
    epochs = max(one.table.planned for one in series)
    updates = np.concatenate([one.rows["updates"] for one in series])
    return Scale(
        epochs=max(epochs, max(one.epochs for one in series)),
        updates=(float(updates.min()) / 1.25, float(updates.max()) * 1.25),
        loss=_limits(series, "loss", 1.0, (0.0, math.inf)),
        accuracy=_limits(series, "accuracy", 100.0, (0.0, 100.0)),
        majority=_majority(series),
    )


def looks(number: int) -> list[Look]:
    """Returns *number* looks, from light to dark; neighbours differ in line and marker too.

    The last is the darkest and solid: of batch sizes, the largest, which is asked about most.
    """
    ramp = matplotlib.colormaps["cividis"]
    colors = [
        matplotlib.colors.to_hex(ramp(LIGHTEST * place / max(1, number - 1)))
        for place in range(number)
    ]
    dark_to_light = [
        Look(
            color=color,
            line=LINES[place % len(LINES)],
            marker=MARKERS[place % len(MARKERS)],
            face=color if place % 2 == 0 else "white",
        )
        for place, color in enumerate(colors)
    ]
    return dark_to_light[::-1]


def draw_batch(series: Series, scale: Scale, stem: Path) -> list[Path]:
    """Writes loss and accuracy of one batch size, train and test, and returns the files."""
    files = _files(stem)
    with _picture(files, height_in=3.1) as area:
        panels = area.subplots(1, 2)
        train, test = looks(2)
        parts = {"train": train, "test": test}
        for axes, quantity in zip(panels, ("loss", "accuracy"), strict=True):
            for part, look in parts.items():
                curve = series.curve(f"{part}_{quantity}")
                _plot_behind(axes, series, f"{part}_{quantity}", look)
                _plot(axes, curve.epochs, curve, look, part, quantity)
            _dress(axes, scale, quantity, by="epoch")
        _legend(area, panels[0], title="; ".join(filter(None, (_meaning([series]), _thin(series)))))
    return files


def draw_comparison(
    series: Sequence[Series], labels: Sequence[str], scale: Scale, stem: Path
) -> list[Path]:
    """Writes test loss and accuracy of all series by epoch and by update; returns the files."""
    files = _files(stem)
    what = "batch size" if len({one.lr for one in series}) == 1 else "batch size and lr"
    with _picture(files, height_in=5.6) as area:
        panels = area.subplots(2, 2, sharey="row", sharex="col")
        for row, quantity in zip(panels, ("loss", "accuracy"), strict=True):
            for axes, by in zip(row, ("epoch", "update"), strict=True):
                for one, label, look in zip(series, labels, looks(len(series)), strict=True):
                    curve = one.curve(f"test_{quantity}")
                    places = curve.epochs if by == "epoch" else curve.updates
                    _plot(axes, places, curve, look, label, quantity)
                _dress(axes, scale, quantity, by=by, part="test ")
                axes.label_outer()
        _legend(area, panels[0][0], title="; ".join(filter(None, (what, _meaning(series)))))
    return files


def _files(stem: Path) -> list[Path]:
    return [stem.with_name(f"{stem.name}.{suffix}") for suffix in FORMATS]


@contextmanager
def _picture(files: Sequence[Path], *, height_in: float) -> Iterator[FigureBase]:
    """Yields an empty figure in the house style, and writes it to *files*.

    Nothing goes into them that changes from day to day.
    """
    with matplotlib.rc_context(STYLE):
        pads = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06)
        figure = Figure((WIDTH_IN, height_in), DOTS_PER_IN, layout=pads)
        yield figure
        pads.execute(figure)
        # Found once: it is slow, and both files shall be alike. Of None, and not of "none", savefig
        # knows that there is no layout left to find by drawing the figure once more.
        figure.set_layout_engine(None)
        metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
        for file, suffix in zip(files, FORMATS, strict=True):
            with replacing(file) as partial:
                figure.savefig(partial, format=suffix, metadata=metadata[suffix])


def _plot(
    axes: Axes, places: Sequence[int], curve: Curve, look: Look, label: str, quantity: str
) -> None:
    """Adds a curve: its mean with markers, and from its lowest run to its highest a band."""
    factor = 100.0 if quantity == "accuracy" else 1.0
    low, mean, high = ([factor * y for y in ys] for ys in (curve.low, curve.mean, curve.high))
    if low != high:
        axes.fill_between(places, low, high, color=look.color, alpha=0.15, linewidth=0)
    axes.plot(
        places,
        mean,
        label=f" {label}" if label.startswith("_") else label,  # matplotlib would show no such
        color=look.color,
        linestyle=look.line,
        marker=look.marker,
        markerfacecolor=look.face,
        markevery=_marked(len(mean)),
    )


def _marked(number: int) -> list[int]:
    """Returns which of *number* points get a marker: not too many, and always the last."""
    step = max(1, math.ceil(number / MOST_MARKERS))
    return list(range(number - 1, -1, -step))[::-1]


def _plot_behind(axes: Axes, series: Series, column: str, look: Look) -> None:
    """Adds a thin line for each run that the mean leaves out, unless there are too many."""
    factor = 100.0 if column.endswith("accuracy") else 1.0
    if series.num_behind > MOST_BEHIND:
        return
    for _, rows in series.behind.groupby("run"):
        values = [factor * value for value in rows[column]]
        axes.plot(list(rows["epoch"]), values, color=look.color, linestyle=look.line, linewidth=0.6)


def _thin(series: Series) -> str:
    """Returns what thin lines are, or how many there would be."""
    if series.num_behind > MOST_BEHIND:
        return f"{series.num_behind} runs that are behind: not drawn"
    return "thin: a run that is behind" if series.num_behind else ""


def _dress(axes: Axes, scale: Scale, quantity: str, *, by: str, part: str = "") -> None:
    """Sets limits, ticks and words of a panel."""
    axes.set_ylim(scale.limits(quantity))
    axes.set_ylabel(f"{part}{quantity}" + (" (%)" if quantity == "accuracy" else ""))
    if by == "epoch":
        margin = 0.03 * scale.epochs
        axes.set_xlim(1 - margin - 0.2, scale.epochs + margin + 0.2)
        ticks = MaxNLocator(integer=True, steps=[1, 2, 5, 10], nbins=8, min_n_ticks=1)
        axes.xaxis.set_major_locator(ticks)
        axes.set_xlabel("epoch")
    else:
        axes.set_xscale("log")
        axes.set_xlim(scale.updates)
        axes.xaxis.set_major_locator(LogLocator(subs=_steps(*scale.updates)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("updates (log scale)")
    if quantity == "accuracy" and scale.majority is not None:
        _mark_majority(axes, scale.majority)


def _steps(low: float, high: float) -> tuple[int, ...]:
    """Returns the numbers of each decade that get a label: as many as have room side by side."""
    decade_pt = PANEL_PT / math.log10(high / low)
    label_pt = DIGIT_PT * len(f"{high:.0f}")
    room = [steps for steps in ((1, 2, 5), (1, 3)) if math.log10(steps[1]) * decade_pt > label_pt]
    return room[0] if room else (1,)


def _mark_majority(axes: Axes, majority: float) -> None:
    """Adds the level of the majority class; where it is off the panel, says so at its edge."""
    low, high = axes.get_ylim()
    place = (majority - low) / (high - low)
    words = f"majority class {majority:.1f} %"
    if 0 <= place <= 1:
        axes.axhline(majority, color="0.35", linestyle=(0, (1, 2)), linewidth=1, zorder=1)
    else:
        words += " (below)" if place < 0 else " (above)"
    is_left = 0.5 < place <= 1  # curves rise: high up there is room on the left, low on the right
    axes.annotate(
        words,
        (0 if is_left else 1, min(max(place, 0), 1)),
        xycoords="axes fraction",
        xytext=(3 if is_left else -2, 3 if place < 0.9 else -10),
        textcoords="offset points",
        ha="left" if is_left else "right",
        size=8,
        color="0.25",
        zorder=1,  # under the curves: it must hide none
    )


def _legend(area: FigureBase, axes: Axes, *, title: str) -> None:
    """Puts one legend for all panels above them, so that it hides no curve."""
    handles, labels = axes.get_legend_handles_labels()
    area.legend(
        handles,
        labels,
        title=title or None,
        loc="outside upper center",
        ncols=min(len(labels), 4),
        handlelength=4,
        columnspacing=2,
    )


def _meaning(series: Sequence[Series]) -> str:
    """Returns what line and band stand for; nothing where a line is one run."""
    runs = sorted({one.num_counted for one in series})
    if runs[-1] == 1:
        return ""
    count = str(runs[0]) if len(runs) == 1 else f"{runs[0]} to {runs[-1]}"
    return f"mean of {count} seeds, band from lowest to highest"


def _limits(
    series: Sequence[Series], quantity: str, factor: float, bounds: tuple[float, float]
) -> tuple[float, float]:
    """Returns the least and greatest finite value of train and test, with a margin."""
    columns = (f"train_{quantity}", f"test_{quantity}")
    values = factor * np.concatenate([one.rows[column] for one in series for column in columns])
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    margin = 0.06 * (high - low) or 0.05 * factor
    return max(bounds[0], low - margin), min(bounds[1], high + margin)


def _majority(series: Sequence[Series]) -> float | None:
    """Returns the share in percent of the largest test class, if the series have one test set."""
    shares = {
        100 * max(counts.values()) / sum(counts.values())
        for one in series
        if sum((counts := one.table.counts.get("test", {})).values())
    }
    return shares.pop() if len(shares) == 1 else None
