"""Learning curves as PNG and SVG. No other module uses matplotlib.

Line style, marker and lightness distinguish the series, so a print in grey can be read. Colour only
repeats that.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skinjob.data.images import Split
from skinjob.files import replacing
from skinjob.report.measures import AXES, COMPARED, MEASURES, Axis, Measure
from skinjob.report.tables import Curve, Series, known_measures


@contextmanager
def no_matplotlib_settings() -> Iterator[None]:
    """Hides the user's settings of matplotlib from its import in the block.

    The import reads MPLBACKEND, and a matplotlibrc in the current folder, at MATPLOTLIBRC or in the
    home folder. A damaged file would stop it.
    """
    names = ("MPLBACKEND", "MATPLOTLIBRC")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    # A handle leads back to a folder even if it was removed or cannot be listed.
    here = os.open(".", getattr(os, "O_PATH", os.O_RDONLY))
    try:
        os.chdir("/")
        os.environ["MATPLOTLIBRC"] = os.devnull
        yield
    finally:
        del os.environ["MATPLOTLIBRC"]
        os.environ.update(before)
        os.fchdir(here)
        os.close(here)


with no_matplotlib_settings():
    import matplotlib
    from matplotlib.axes import Axes as Panel
    from matplotlib.figure import Figure, FigureBase
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

FORMATS = ("png", "svg")
WIDTH_IN = 7.0  # the text width of an A4 page with its margins
DOTS_PER_IN = 150
PANEL_PT = 210.0  # the width of a panel, of two side by side
DIGIT_PT = 5.6  # the width of a digit of a tick label, with its share of the gap

LINES: tuple[str | tuple[int, tuple[float, ...]], ...] = (
    "solid",
    (0, (5, 1.6)),
    (0, (5, 1.4, 1.2, 1.4)),
    (0, (2.2, 1.1)),
    (0, (8, 1.5, 1.2, 1.5, 1.2, 1.5)),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LIGHTEST = 0.75  # of cividis, whose lightness is even; its lighter yellow is hard to see
MOST_MARKERS = 10
MOST_BEHIND = 10  # thin lines beside a mean; more would hide it

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
    "text.parse_math": False,  # a sweep's name may contain dollar signs
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",  # text can be searched, read aloud and edited
    "svg.hashsalt": "skinjob",  # otherwise ids are random, and equal pictures differ
}


@dataclass(frozen=True)
class Look:
    """The style of a line."""

    color: str
    line: str | tuple[int, tuple[float, ...]]
    marker: str
    face: str
    """The colour inside the marker."""


@dataclass(frozen=True)
class Scale:
    """The limits of the axes, which all pictures of a report share."""

    epochs: int
    updates: tuple[float, float]
    limits: Mapping[Axis, tuple[float, float]]
    """The lowest and highest value of each axis, in its unit."""
    majority: float | None
    """The accuracy, in percent, of a network that always predicts the most frequent class."""


def common_scale(all_series: Sequence[Series]) -> Scale:
    """Returns limits that contain every value of every series."""
    updates = np.concatenate([series.rows["updates"] for series in all_series])
    return Scale(
        epochs=max(max(series.table.num_epochs, series.epochs) for series in all_series),
        updates=(float(updates.min()) / 1.25, float(updates.max()) * 1.25),
        limits={axis: _limits(all_series, axis) for axis in AXES},
        majority=_majority(all_series),
    )


def looks(num: int) -> list[Look]:
    """Returns *num* looks, from light to dark; neighbours also differ in line and marker.

    The last is the darkest and solid. It is for the largest batch size, the most important.
    """
    ramp = matplotlib.colormaps["cividis"]
    colors = [matplotlib.colors.to_hex(ramp(LIGHTEST * n / max(1, num - 1))) for n in range(num)]
    dark_to_light = [
        Look(
            color=color,
            line=LINES[n % len(LINES)],
            marker=MARKERS[n % len(MARKERS)],
            face=color if n % 2 == 0 else "white",
        )
        for n, color in enumerate(colors)
    ]
    return dark_to_light[::-1]


def draw_batch(series: Series, scale: Scale, stem: Path) -> list[Path]:
    """Writes the curves of a batch size, a line for each split, and returns the files."""
    files = _files(stem)
    measures = [measure for measure in known_measures([series]) if measure.axis]
    splits = [split.value for split in Split if any(m.split == split for m in measures)]
    look_of = dict(zip(splits, looks(len(splits)), strict=True))
    measures.sort(key=lambda measure: splits.index(measure.split))
    with _picture(files, height_in=3.1) as area:
        panels = area.subplots(1, len(AXES))
        for panel, axis in zip(panels, AXES, strict=True):
            for measure in (measure for measure in measures if measure.axis is axis):
                look, curve = look_of[measure.split], series.curve(measure)
                _plot_behind(panel, series, measure, look)
                _plot(panel, curve.epochs, curve, look, measure.split, axis)
            _dress(panel, scale, axis, by="epoch")
        _legend(area, panels[-1], "; ".join(filter(None, (_meaning([series]), _thin(series)))))
    return files


def draw_comparison(
    all_series: Sequence[Series], labels: Sequence[str], scale: Scale, stem: Path
) -> list[Path]:
    """Writes the test curves of all series, by epoch and by update, and returns the files."""
    files = _files(stem)
    has_one_lr = len({series.lr for series in all_series}) == 1
    by_axis = {m.axis: m for m in known_measures(all_series) if m.split == COMPARED.split}
    lines = list(zip(all_series, labels, looks(len(all_series)), strict=True))
    with _picture(files, height_in=5.6) as area:
        panels = area.subplots(len(AXES), 2, sharey="row", sharex="col")
        for row, axis in zip(panels, AXES, strict=True):
            for panel, by in zip(row, ("epoch", "update"), strict=True):
                for series, label, look in lines if axis in by_axis else ():
                    curve = series.curve(by_axis[axis])
                    places = curve.epochs if by == "epoch" else curve.updates
                    _plot(panel, places, curve, look, label, axis)
                _dress(panel, scale, axis, by=by, split=f"{COMPARED.split} ")
                panel.label_outer()
        title = "batch size" if has_one_lr else "batch size and lr"
        _legend(area, panels[-1][0], "; ".join(filter(None, (title, _meaning(all_series)))))
    return files


def _files(stem: Path) -> list[Path]:
    return [stem.with_name(f"{stem.name}.{suffix}") for suffix in FORMATS]


@contextmanager
def _picture(files: Sequence[Path], *, height_in: float) -> Iterator[FigureBase]:
    """Yields an empty figure and writes it to *files*, without a date or a version."""
    with matplotlib.rc_context(STYLE):
        pads = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06)
        figure = Figure((WIDTH_IN, height_in), DOTS_PER_IN, layout=pads)
        yield figure
        pads.execute(figure)
        # The layout is computed once, because it is slow and both files must be equal. With None
        # (not "none") savefig does not draw the figure again to compute it.
        figure.set_layout_engine(None)
        metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
        for file, suffix in zip(files, FORMATS, strict=True):
            with replacing(file) as partial:
                figure.savefig(partial, format=suffix, metadata=metadata[suffix])


def _plot(
    panel: Panel, places: Sequence[int], curve: Curve, look: Look, label: str, axis: Axis
) -> None:
    """Adds a curve: its mean with markers, and a band from its lowest to its highest run."""
    low, mean, high = (
        [axis.factor * value for value in values] for values in (curve.low, curve.mean, curve.high)
    )
    if low != high:
        panel.fill_between(places, low, high, color=look.color, alpha=0.15, linewidth=0)
    panel.plot(
        places,
        mean,
        label=f" {label}"
        if label.startswith("_")
        else label,  # matplotlib hides labels that begin with _
        color=look.color,
        linestyle=look.line,
        marker=look.marker,
        markerfacecolor=look.face,
        markevery=_marked(len(mean)),
    )


def _marked(num_points: int) -> list[int]:
    """Returns the points with a marker: not too many, and always the last."""
    step = max(1, math.ceil(num_points / MOST_MARKERS))
    return list(range(num_points - 1, -1, -step))[::-1]


def _plot_behind(panel: Panel, series: Series, measure: Measure, look: Look) -> None:
    """Adds a thin line for each run that is not in the mean, unless there are too many."""
    if series.num_behind > MOST_BEHIND or not measure.axis:
        return
    for _, rows in series.behind.groupby("run"):
        values = [measure.axis.factor * value for value in rows[measure.column]]
        panel.plot(
            list(rows["epoch"]), values, color=look.color, linestyle=look.line, linewidth=0.6
        )


def _thin(series: Series) -> str:
    """Returns the meaning of thin lines, or how many are not drawn."""
    if series.num_behind > MOST_BEHIND:
        return f"{series.num_behind} runs that are behind: not drawn"
    return "thin: a run that is behind" if series.num_behind else ""


def _dress(panel: Panel, scale: Scale, axis: Axis, *, by: str, split: str = "") -> None:
    """Sets limits, ticks and labels of a panel."""
    panel.set_ylim(scale.limits[axis])
    panel.set_ylabel(f"{split}{axis.name}" + (f" ({axis.unit})" if axis.unit else ""))
    if by == "epoch":
        margin = 0.03 * scale.epochs
        panel.set_xlim(1 - margin - 0.2, scale.epochs + margin + 0.2)
        ticks = MaxNLocator(integer=True, steps=[1, 2, 5, 10], nbins=8, min_n_ticks=1)
        panel.xaxis.set_major_locator(ticks)
        panel.set_xlabel("epoch")
    else:
        panel.set_xscale("log")
        panel.set_xlim(scale.updates)
        panel.xaxis.set_major_locator(LogLocator(subs=_steps(*scale.updates)))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set_xlabel("updates (log scale)")
    if axis is COMPARED.axis and scale.majority is not None:
        _mark_majority(panel, scale.majority)


def _steps(low: float, high: float) -> tuple[int, ...]:
    """Returns the numbers of each decade that get a label: as many as there is space for."""
    decade_pt = PANEL_PT / math.log10(high / low)
    label_pt = DIGIT_PT * len(f"{high:.0f}")
    room = [steps for steps in ((1, 2, 5), (1, 3)) if math.log10(steps[1]) * decade_pt > label_pt]
    return room[0] if room else (1,)


def _mark_majority(panel: Panel, majority: float) -> None:
    """Adds a line for the majority class, or a note at the edge if it is outside the panel."""
    low, high = panel.get_ylim()
    place = (majority - low) / (high - low)
    words = f"majority class {majority:.1f} %"
    if 0 <= place <= 1:
        panel.axhline(majority, color="0.35", linestyle=(0, (1, 2)), linewidth=1, zorder=1)
    else:
        words += " (below)" if place < 0 else " (above)"
    is_left = 0.5 < place <= 1  # curves rise: the upper left and the lower right are free
    panel.annotate(
        words,
        (0 if is_left else 1, min(max(place, 0), 1)),
        xycoords="axes fraction",
        xytext=(3 if is_left else -2, 3 if place < 0.9 else -10),
        textcoords="offset points",
        ha="left" if is_left else "right",
        size=8,
        color="0.25",
        zorder=1,  # below the curves
    )


def _legend(area: FigureBase, panel: Panel, title: str) -> None:
    """Adds a legend for all panels above them, where it hides no curve."""
    handles, labels = panel.get_legend_handles_labels()
    area.legend(
        handles,
        labels,
        title=title or None,
        loc="outside upper center",
        ncols=min(len(labels), 4),
        handlelength=4,
        columnspacing=2,
    )


def _meaning(all_series: Sequence[Series]) -> str:
    """Returns the meaning of line and band; '' if every line is a single run."""
    nums = sorted({series.num_counted for series in all_series})
    if nums[-1] == 1:
        return ""
    count = str(nums[0]) if len(nums) == 1 else f"{nums[0]} to {nums[-1]}"
    return f"mean of {count} seeds, band from lowest to highest"


def _limits(all_series: Sequence[Series], axis: Axis) -> tuple[float, float]:
    """Returns the lowest and highest finite value of an axis, with a margin."""
    columns = [measure.column for measure in MEASURES if measure.axis is axis]
    rows = [series.rows[column] for series in all_series for column in columns]
    values = axis.factor * np.concatenate(rows)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    margin = 0.06 * (high - low) or 0.05 * axis.factor
    return max(axis.bounds[0], low - margin), min(axis.bounds[1], high + margin)


def _majority(all_series: Sequence[Series]) -> float | None:
    """Returns the share of the largest class in percent, if all series use the same test set."""
    shares = {
        100 * max(counts.values()) / sum(counts.values())
        for series in all_series
        if sum((counts := series.table.counts.get(COMPARED.split, {})).values())
    }
    return shares.pop() if len(shares) == 1 else None
