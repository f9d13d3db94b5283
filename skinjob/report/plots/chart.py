"""Panels with axes, curves over seeds, and labels at the ends of lines that never overlap."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from skinjob.report.figures import Figure
from skinjob.report.plots.canvas import NUM_INKS, Canvas, text_width
from skinjob.report.statistics import Floats

WIDTH = 720.0
TICK_SIZE = 11.0
LABEL_SIZE = 12.0
LABEL_GAP = 14.5  # between the base lines of labels
MOST_SEEDS = 50  # drawn one by one; of more, quantiles
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SHORTEST = 0.01  # an axis; a difference of a millionth would need ticks with seven digits
FEWEST_LOG_TICKS = 3
MOST_VERTICES = 200  # of a line; a panel has 300 pixels
MOST_POINTS = 25  # of a line that have a value under the mouse

DASHES: tuple[tuple[float, ...], ...] = (
    (),
    (7, 2.5),
    (7, 2.5, 1.8, 2.5),
    (3, 1.8),
    (10, 2, 2, 2, 2, 2),
)
MARKERS = ("o", "s", "^", "D", "v")


@dataclass(frozen=True)
class Look:
    """How a line differs from others: in lightness, dash and marker; colour only repeats that."""

    ink: str
    dash: tuple[float, ...]
    marker: str


def looks(num: int) -> list[Look]:
    """Returns *num* looks. The last, for the largest batch size, is the strongest and solid."""
    return [
        Look(
            ink=str(round((NUM_INKS - 1) * n / (num - 1)) if num > 1 else NUM_INKS - 1),
            dash=DASHES[(num - 1 - n) % len(DASHES)],
            marker=MARKERS[(num - 1 - n) % len(MARKERS)],
        )
        for n in range(num)
    ]


@dataclass(frozen=True)
class Scale:
    """The values of an axis, from its low to its high end."""

    low: float
    high: float
    is_log: bool = False

    def share(self, value: float) -> float:
        """Returns where a value lies between the ends, 0 to 1."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int, *, is_whole: bool = False) -> list[float]:
        """Returns at most about so many round values."""
        return _log_ticks(self, most) if self.is_log else _round_ticks(self, most, is_whole)


def span(
    values: Iterable[float],
    *,
    margin: float = 0.06,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Scale:
    """Returns a scale that holds all finite values, with a margin, within bounds."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    extra = max(margin * (high - low), (SHORTEST - (high - low)) / 2)
    return Scale(max(bounds[0], low - extra), min(bounds[1], high + extra))


def tick_text(value: float, step: float) -> str:
    """Returns the text of a tick, with as many digits as its step needs.

    >>> tick_text(0.5, 0.25), tick_text(20, 10), tick_text(-0.0, 0.1), tick_text(1500, 500)
    ('0.50', '20', '0.0', '1,500')
    """
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if round(step * 10**digits, 6) % 1:
        digits += 1
    return f"{value + 0.0:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _round_ticks(scale: Scale, most: int, is_whole: bool) -> list[float]:
    rough = (scale.high - scale.low) / max(1, most)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * n for n in (1, 2, 5, 10) if power * n >= rough * (1 - 1e-9))
    step = max(1.0, round(step)) if is_whole else step
    first = math.ceil(scale.low / step - 1e-9)
    last = math.floor(scale.high / step + 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def _log_ticks(scale: Scale, most: int) -> list[float]:
    powers = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [float(n * 10.0**power) for power in powers for n in steps]
        ticks = [tick for tick in ticks if scale.low <= tick <= scale.high]
        if len(ticks) < FEWEST_LOG_TICKS:  # less than a decade
            return _round_ticks(scale, min(most, 5), False)
        if len(ticks) <= most:
            break
    return ticks[:: max(1, -(-len(ticks) // most))]


@dataclass(frozen=True)
class Label:
    """A text beside the end of a line."""

    place: float
    """Where the line ends, in pixels."""
    text: str
    look: Look | None = None


def dodge(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Returns places at least *gap* apart, as near to the wanted ones as can be, inside low..high.

    Labels that collide become a block around their mean. If there are too many for low..high, the
    gap remains and the last ones lie beyond *high*.

    >>> dodge([5, 6, 50], 10, 0, 100)
    [0.5, 10.5, 50.0]
    """
    order = sorted(range(len(places)), key=places.__getitem__)
    blocks: list[tuple[float, int]] = []  # the first place of a block, and how many it has
    for index in order:
        start, num = float(places[index]), 1
        while blocks and blocks[-1][0] + gap * blocks[-1][1] > start:
            before, count = blocks.pop()
            start = (before * count + (start - gap * count) * num) / (count + num)
            num += count
            start = min(max(start, low), high - gap * (num - 1))
        blocks.append((max(low, min(start, high - gap * (num - 1))), num))
    spots = [start + gap * n for start, num in blocks for n in range(num)]
    # A block that was pushed inside may touch the block before it.
    for n in range(len(spots) - 2, -1, -1):
        spots[n] = min(spots[n], spots[n + 1] - gap)
    for n in range(len(spots)):
        spots[n] = max(spots[n], low if n == 0 else spots[n - 1] + gap)
    moved = dict(zip(order, spots, strict=True))
    return [moved[index] for index in range(len(places))]


def finished(
    canvas: Canvas,
    name: str,
    section: str,
    title: str,
    caption: str,
    columns: list[str],
    rows: list[list[str]],
    numbers: str = "",
) -> Figure:
    """Returns a drawn canvas as a figure. *numbers* are for readers who cannot see it."""
    description = f"{caption} {numbers}".strip()
    svg, png = canvas.svg(name, title, description), canvas.png()
    return Figure(name, section, caption, description, svg, columns, rows, png)


class Panel:
    """A rectangle with axes on a canvas."""

    def __init__(
        self, canvas: Canvas, box: tuple[float, float, float, float], x: Scale, y: Scale
    ) -> None:
        """*box* is left, top, width and height, in pixels."""
        self.canvas, self.x_scale, self.y_scale = canvas, x, y
        self.left, self.top, self.width, self.height = box
        self.right, self.bottom = self.left + self.width, self.top + self.height

    def x(self, value: float) -> float:
        """Returns the place of a value on the horizontal axis."""
        return self.left + self.width * self.x_scale.share(value)

    def y(self, value: float) -> float:
        """Returns the place of a value on the vertical axis; NaN if it has none."""
        if not math.isfinite(value) or (self.y_scale.is_log and value <= 0):
            return math.nan
        return self.bottom - self.height * self.y_scale.share(value)

    def points(self, xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
        """Returns the places of points."""
        return [(self.x(x), self.y(y)) for x, y in zip(xs, ys, strict=True)]

    def axes(
        self,
        title: str,
        x_title: str,
        y_title: str = "",
        *,
        is_whole: bool = False,
        has_numbers: bool = True,
        x_texts: Sequence[tuple[float, str]] | None = None,
        title_rise: float = 12.0,
        has_grid: bool = True,
    ) -> None:
        """Draws the axes, with *title* above and *x_title* below."""
        ticks = self.y_scale.ticks(max(2, int(self.height / 40)))
        step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
        for tick in ticks if has_grid else ():
            y = self.y(tick)
            self.canvas.line([(self.left, y), (self.right, y)], "grid")
            if has_numbers:
                text = f"{tick:g}" if self.y_scale.is_log else tick_text(tick, step)
                self._small(self.left - 6, y + 4, text, "end")
        if x_texts is None:
            widest = text_width(f"{self.x_scale.high:,.0f}", TICK_SIZE) + 12
            if self.x_scale.high <= 1:
                widest = text_width("0.00", TICK_SIZE) + 12
            x_ticks = self.x_scale.ticks(max(2, int(self.width / widest)), is_whole=is_whole)
            step = x_ticks[1] - x_ticks[0] if len(x_ticks) > 1 and not self.x_scale.is_log else 1.0
            texts = [
                (tick, f"{tick:,g}" if self.x_scale.is_log else tick_text(tick, step))
                for tick in x_ticks
            ]
        else:
            texts = list(x_texts)
        self.canvas.line([(self.left, self.bottom), (self.right, self.bottom)], "soft")
        written = -math.inf  # up to here
        for value, text in texts:
            x, half = self.x(value), text_width(text, TICK_SIZE) / 2
            self.canvas.line([(x, self.bottom), (x, self.bottom + 4)], "soft")
            if x - half > written:
                self._small(x, self.bottom + 16, text, "middle")
                written = x + half + 3
        if x_title:
            self._small(self.left + self.width / 2, self.bottom + 33, x_title, "middle")
        x = self.left - (34 if has_numbers else 0)
        if y_title:
            self._small(x, self.top - title_rise - 18, y_title, "start")
        if title:
            self.canvas.text(x, self.top - title_rise, title, is_bold=True)

    def level(self, value: float, *, dash: tuple[float, ...] = (2, 3)) -> None:
        """Draws a thin line across the panel at a value."""
        y = self.y(value)
        self.canvas.line([(self.left, y), (self.right, y)], "soft", dash=dash)

    def shade(self, low: float, high: float, opacity: float = 0.12) -> None:
        """Shades the panel between two values of the vertical axis, as far as they are in it."""
        scale = self.y_scale
        top, bottom = self.y(min(high, scale.high)), self.y(max(low, scale.low))
        corners = [(self.left, top), (self.right, top), (self.right, bottom), (self.left, bottom)]
        self.canvas.area(corners, "soft", opacity)

    def band(
        self, xs: Sequence[float], low: Floats, high: Floats, ink: str, opacity: float
    ) -> None:
        """Draws the area between two curves, where both are known, within the panel."""
        scale = self.y_scale
        known = [
            (self.x(x), *(self.y(min(max(y, scale.low), scale.high)) for y in (below, above)))
            for x, below, above in zip(xs, low, high, strict=True)
            if math.isfinite(below) and math.isfinite(above)
        ]
        there = [(x, above) for x, _, above in known]
        back = [(x, below) for x, below, _ in reversed(known)]
        if len(known) > 1:
            self.canvas.area([*there, *back], ink, opacity)

    def seeds(
        self,
        xs: Sequence[float],
        values: Floats,
        look: Look,
        titles: Sequence[str],
        opacity: float = 0.3,
    ) -> None:
        """Draws a thin line for each run of *values* (runs, points); of many runs quantiles."""
        if len(values) > MOST_SEEDS:
            bands = np.quantile(values, QUANTILES, axis=0)
            for low, high in ((0, 4), (1, 3)):
                self.band(xs, bands[low], bands[high], look.ink, 0.13)
            return
        kept = some(len(xs), MOST_VERTICES)
        for own, title in zip(values[:, kept], titles, strict=True):
            places = self.points([xs[n] for n in kept], own.tolist())
            self.canvas.line(places, look.ink, width=0.8, opacity=opacity, title=title)
            if len(places) == 1 and math.isfinite(places[0][1]):
                self.canvas.dot(*places[0], look.ink, size=4, opacity=opacity, title=title)

    def mean(self, xs: Sequence[float], values: Sequence[float], look: Look, name: str) -> None:
        """Draws a thick line with its marker, and values under the mouse."""
        places = self.points(xs, values)
        line = [places[n] for n in some(len(places), MOST_VERTICES)]
        self.canvas.line(line, look.ink, width=2.2, dash=look.dash)
        for n in some(len(places), MOST_POINTS):
            x, y = places[n]
            if math.isfinite(y):
                self.canvas.hover(x, y, f"{name}, {xs[n]:,g}: {values[n]:.4g}")
        if places and math.isfinite(places[-1][1]):
            self.canvas.dot(*places[-1], look.ink, marker=look.marker, size=7)

    def labels_right(self, labels: Sequence[Label]) -> None:
        """Writes labels right of the panel, each near the end of its line."""
        known = [label for label in labels if math.isfinite(label.place)]
        wanted = [label.place for label in known]
        places = dodge(wanted, LABEL_GAP, self.top, self.bottom)
        for label, place in zip(known, places, strict=True):
            x, ink = self.right + 6, label.look.ink if label.look else "soft"
            self.canvas.line([(x, label.place), (x + 8, place)], ink)
            if label.look:
                self.canvas.dot(x + 14, place, ink, marker=label.look.marker, size=7)
            self.canvas.text(x + (21 if label.look else 12), place + 4, label.text, size=LABEL_SIZE)

    def labels_above(self, labels: Sequence[tuple[float, Label]]) -> None:
        """Writes labels above the panel, and a thin line from each (x, label) down to its place."""
        known = [(x, label) for x, label in labels if math.isfinite(label.place)]
        gap = max((text_width(label.text) for _, label in known), default=0) + 10
        places = dodge([x for x, _ in known], gap, self.left, self.right)
        for (x, label), place in zip(known, places, strict=True):
            ink = label.look.ink if label.look else "soft"
            ends = [(place, self.top - 4), (x, self.top + 6), (x, label.place)]
            self.canvas.line(ends, ink, width=0.8, dash=(1.5, 2))
            self.canvas.text(place, self.top - 8, label.text, anchor="middle", size=LABEL_SIZE)

    def _small(self, x: float, y: float, text: str, anchor: str) -> None:
        self.canvas.text(x, y, text, anchor=anchor, size=TICK_SIZE, ink="soft")


def some(num: int, most: int) -> list[int]:
    """Returns about so many of the places 0..num - 1, evenly spaced, with the first and the last.

    >>> some(10, 4), some(11, 4), some(3, 4)
    ([0, 3, 6, 9], [0, 1, 4, 7, 10], [0, 1, 2])
    """
    step = max(1, -(-num // most))
    return sorted({0, *range(num - 1, 0, -step)} if num else ())


def clipped(text: str, width: float) -> str:
    """Returns the beginning of a title that has at most this width.

    >>> clipped("batch size 32", 200), clipped("a name that is too long", 100)
    ('batch size 32', 'a name that…')
    """
    most = int(width / text_width("n", LABEL_SIZE))
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def label_room(texts: Sequence[str]) -> float:
    """Returns the width that labels right of a panel take."""
    return 30 + max((text_width(text, LABEL_SIZE) for text in texts), default=0.0)


def grid(
    num: int,
    columns: int,
    *,
    top: float,
    left: float,
    right: float,
    height: float,
    gap: float,
    row_gap: float,
) -> tuple[list[tuple[float, float, float, float]], float]:
    """Returns the boxes of *num* panels in rows, and the height of the picture."""
    columns = max(1, min(num, columns))
    width = (WIDTH - left - right - gap * (columns - 1)) / columns
    boxes = [
        (
            left + (n % columns) * (width + gap),
            top + (n // columns) * (height + row_gap),
            width,
            height,
        )
        for n in range(num)
    ]
    rows = -(-num // columns)
    return boxes, top + rows * height + (rows - 1) * row_gap + 44
