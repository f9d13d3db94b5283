"""Pictures of the comparison: differences to the smallest batch size, seeds, learning rates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from skinjob.report.comparison import COLUMNS, NAMES, Comparison, Contrast, Family
from skinjob.report.figures import Figure
from skinjob.report.measures import number, signed
from skinjob.report.plots.canvas import Canvas, text_width
from skinjob.report.plots.chart import (
    LABEL_SIZE,
    MOST_SEEDS,
    QUANTILES,
    WIDTH,
    Label,
    Look,
    Panel,
    Scale,
    clipped,
    finished,
    grid,
    label_room,
    looks,
    span,
)
from skinjob.report.plots.lines import (
    LEFT,
    TITLES,
    epoch_scale,
    known,
    tests,
)
from skinjob.report.statistics import Floats, Interval, t_quantile
from skinjob.report.tables import Series

MOST_FAMILIES = 4
ROW = 26.0  # pixels from a row of the forest plot to the next
DOT = 6.0
ENDS = ("low", "high")
PACKED = 7.0  # pixels between the centres of dots that would overlap


def forest_figure(comparison: Comparison, prefix: str = "") -> Figure | None:
    """Returns each batch size minus the smallest, with intervals; None without a comparison."""
    families = [family for family in comparison.families if family.is_primary]
    if not families:
        return None
    if len(families) > MOST_FAMILIES:  # of several learning rates; the table has all
        families = [family for family in (comparison.lead, comparison.other) if family]
    outcome, margin = NAMES[comparison.primary], comparison.margin
    contrasts = [contrast for family in families for contrast in family.contrasts]
    ends = [end for c in contrasts for end in (*c.same_images, *_new(c), c.mean)]
    x = span([*ends, margin, -margin], margin=0.08)
    texts = [_numbers(contrast) for contrast in contrasts]
    left = 24 + max(text_width(_name(c, comparison), LABEL_SIZE) for c in contrasts)
    right = label_room(texts) - 10
    top, height = 40.0, ROW * (len(contrasts) + 1.2 * len(families)) + 8
    canvas = Canvas(WIDTH, top + height + 56)
    panel = Panel(canvas, (left, top, WIDTH - left - right, height), x, Scale(0, 1))
    first = contrasts[0].reference.batch_size
    panel.axes("", f"difference of {outcome} to batch size {first}", has_grid=False)
    right_of_zero, left_of_zero = (
        ("better →", "← worse") if comparison.primary == "auc" else ("worse →", "← better")
    )
    canvas.text(panel.x(0) + 8, top - 8, right_of_zero, size=11, ink="soft")
    canvas.text(panel.x(0) - 8, top - 8, left_of_zero, size=11, ink="soft", anchor="end")
    y, rows = top, []
    for family in families:
        after = f"after {comparison.point(family)}"
        canvas.text(8, y + 20, after, is_bold=True, size=LABEL_SIZE)
        y += 1.2 * ROW
        below = y + ROW * len(family.contrasts)
        _shade(panel, margin, y, below)
        for n, contrast in enumerate(family.contrasts):
            _draw_contrast(panel, contrast, comparison, y + (n + 0.5) * ROW)
            rows.append(_row(contrast, family, comparison))
        y = below
    caption = (
        f"Each batch size minus the smallest, in {outcome}. Thick: 95 % for these images; thin: "
        f"for {comparison.scope}; grey: the margin of {margin:g}, within which a difference does "
        "not matter."
    )
    differences = "; ".join(f"after {row[0]}, {row[1]}: {row[3]}" for row in rows)
    limits = [f"{end}, {of}" for of in ("these images", comparison.scope) for end in ENDS]
    columns = ["after", "batch size", "minus", "difference", *limits, "seeds", "verdict"]
    title = f"Differences of {outcome} to batch size {first}"
    name = f"{prefix}forest"
    return finished(canvas, name, "comparison", title, caption, columns, rows, f"{differences}.")


def _shade(panel: Panel, margin: float, top: float, bottom: float) -> None:
    """Shades the margin and draws zero, between two heights."""
    sides = (panel.x(-margin), panel.x(margin))
    corners = [(sides[0], top), (sides[1], top), (sides[1], bottom), (sides[0], bottom)]
    panel.canvas.area(corners, "soft", 0.13)
    panel.canvas.line([(panel.x(0), top), (panel.x(0), bottom)], "soft")


def _draw_contrast(panel: Panel, contrast: Contrast, comparison: Comparison, y: float) -> None:
    """Draws a row: its name, both intervals, the mean and the numbers."""
    canvas, ink = panel.canvas, "7"
    name = _name(contrast, comparison)
    canvas.text(panel.left - 10, y + 4, name, anchor="end", size=LABEL_SIZE)
    for interval, width in ((_new(contrast), 1.6), (contrast.same_images, 5.0)):
        if not math.isnan(interval.low):
            ends = [(panel.x(end), y) for end in interval]
            canvas.line(ends, ink, width=width, opacity=1 if width < 2 else 0.45)
    if not math.isnan(_new(contrast).low):
        for end in _new(contrast):
            canvas.line([(panel.x(end), y - 4), (panel.x(end), y + 4)], ink, width=1.6)
    tip = f"{name}: {_numbers(contrast)}"
    canvas.dot(panel.x(contrast.mean), y, ink, marker="D", size=9, title=tip)
    canvas.text(panel.right + 12, y + 4, _numbers(contrast), size=LABEL_SIZE)


def _new(contrast: Contrast) -> Interval:
    """Returns the interval for new images and seeds; NaN if it is not known."""
    return contrast.new_images.interval() if contrast.new_images else Interval(math.nan, math.nan)


def _name(contrast: Contrast, comparison: Comparison) -> str:
    lr = f", lr {contrast.series.lr!r}" if len(comparison.table.info.lrs) > 1 else ""
    return f"{contrast.series.batch_size}{lr}"


def _numbers(contrast: Contrast) -> str:
    low, high = contrast.interval
    limits = "" if math.isnan(low) else f" ({signed(low)} to {signed(high)})"
    return f"{signed(contrast.mean)}{limits}".replace("-", "\N{MINUS SIGN}")


def _row(contrast: Contrast, family: Family, comparison: Comparison) -> list[str]:
    ends = (contrast.mean, *contrast.same_images, *_new(contrast))
    return [
        comparison.point(family),
        _name(contrast, comparison),
        str(contrast.reference.batch_size),
        *(number(end, 6) for end in ends),
        str(len(contrast.seeds)),
        contrast.verdict.value if contrast.verdict else "-",
    ]


def paired_figure(comparison: Comparison, prefix: str = "") -> Figure | None:
    """Returns the difference to the smallest batch size along the curves; None if there is none."""
    family = comparison.lead or comparison.other
    if family is None:
        return None
    column, name = COLUMNS[family.outcome], NAMES[family.outcome]
    pairs = [
        (contrast, *_differences(contrast, column, family.axis)) for contrast in family.contrasts
    ]
    margin = comparison.margin
    ends = np.concatenate([_spread(values).ravel() for _, _, values in pairs])
    y = span([*ends.tolist(), margin, -margin])
    boxes, height = grid(
        len(pairs), 3, top=38, left=LEFT + 12, right=12, height=170, gap=18, row_gap=72
    )
    canvas = Canvas(WIDTH, height)
    x = _places(family.axis, [place for _, places, _ in pairs for place in places])
    rows = []
    for n, ((contrast, xs, values), box) in enumerate(zip(pairs, boxes, strict=True)):
        panel = Panel(canvas, box, x, y)
        panel.shade(-margin, margin)
        size, first = contrast.series.batch_size, contrast.reference.batch_size
        title = f"{size} minus {first}"
        panel.axes(title, TITLES[family.axis], is_whole=True, has_numbers=n % 3 == 0)
        panel.level(0.0, dash=())
        look = Look("7", (), "o")
        panel.seeds(xs, values, look, [f"seed {seed}" for seed in contrast.seeds], 0.35)
        low, mean, high = _interval(values)
        if len(values) <= MOST_SEEDS:
            panel.band(xs, low, high, "3", 0.2)
        panel.mean(xs, mean.tolist(), look, f"{title}, {family.axis}")
        rows += [
            [title, f"{x:g}", *(number(float(v), 6) for v in (m, lo, hi)), str(len(values))]
            for x, m, lo, hi in zip(xs, mean, low, high, strict=True)
        ]
    better = "above" if family.outcome == "auc" else "below"
    caption = (
        f"{name} minus that of the smallest batch size, seed by seed, by {family.axis}. Thin: a "
        f"seed; thick: the mean; band: its 95 % interval on these images; grey: the margin of "
        f"{margin:g}. A larger batch is better {better} zero."
    )
    end = "; ".join(f"{c.series.batch_size}: {float(v[:, -1].mean()):+.3f}" for c, _, v in pairs)
    columns = ["pair", family.axis, "mean", "low", "high", "seeds"]
    title, means = f"Paired difference of {name}", f"Last means: {end}."
    return finished(canvas, f"{prefix}paired", "curves", title, caption, columns, rows, means)


def _differences(contrast: Contrast, column: str, axis: str) -> tuple[list[float], Floats]:
    """Returns the places that both of a pair have, and its differences there: (seeds, places)."""

    def of(series: Series) -> tuple[list[float], Floats]:
        rows = [series.seeds.index(seed) for seed in contrast.seeds]
        places, values = tests(series, column, axis)
        return places, values[rows]

    (mine, own), (theirs, other) = of(contrast.series), of(contrast.reference)
    both = [place for place in mine if place in set(theirs)]
    columns = [[places.index(place) for place in both] for places in (mine, theirs)]
    return both, own[:, columns[0]] - other[:, columns[1]]


def _places(axis: str, places: Sequence[float]) -> Scale:
    """Returns the horizontal axis of differences."""
    last = max(places)
    if axis == "epochs":
        return epoch_scale(int(last))
    return Scale(min(places) / 1.1, last * 1.1, is_log=True)


def _spread(values: Floats) -> Floats:
    """Returns what of some curves is drawn: themselves, or quantiles of many."""
    if len(values) <= MOST_SEEDS:
        return values
    ends: Floats = np.quantile(values, (0.05, 0.95), axis=0)
    return ends


def _interval(values: Floats) -> tuple[Floats, Floats, Floats]:
    """Returns mean and 95 % limits over seeds (paired t) of each column; NaN for one seed."""
    num, mean = len(values), values.mean(axis=0)
    if num < 2:
        return mean * math.nan, mean, mean * math.nan
    half = t_quantile(0.975, num - 1) * values.std(axis=0, ddof=1) / num**0.5
    return mean - half, mean, mean + half


def seeds_figure(comparison: Comparison, prefix: str = "") -> Figure | None:
    """Returns a dot for each seed, by batch size, at equal epochs and at equal updates."""
    families = [f for axis in ("epochs", "updates") if (f := comparison.family(axis))]
    if not families:
        return None
    name, outcome = f"{prefix}seeds", NAMES[comparison.primary]
    every = [_values(series, family) for family in families for series in family.series]
    y = span(np.concatenate(every).tolist())
    gap, left = 26.0, 50.0
    width = (WIDTH - left - 12 - gap) / 2
    canvas = Canvas(left + 12 - gap + (width + gap) * len(families), 38 + 230 + 44)
    rows, names = [], []
    for n, family in enumerate(families):
        places = Scale(0, len(family.series))
        panel = Panel(canvas, (left + n * (width + gap), 38, width, 230), places, y)
        texts = [(i + 0.5, str(series.batch_size)) for i, series in enumerate(family.series)]
        title = f"{outcome} after {comparison.point(family)}"
        title = clipped(title, width)
        panel.axes(title, "batch size", has_numbers=n == 0, x_texts=texts)
        marks = zip(family.series, looks(len(family.series)), family.stability, strict=True)
        for i, (series, look, stability) in enumerate(marks):
            values = _values(series, family)
            _strip(panel, i, series, values, look, stability.outlier)
            rows += [
                [comparison.point(family), str(series.batch_size), str(seed), number(value, 6)]
                for seed, value in zip(series.seeds, values.tolist(), strict=True)
            ]
            if stability.outlier is not None:
                names.append(f"seed {stability.outlier} of {series.batch_size}")
    many = max(len(values) for values in every) > MOST_SEEDS
    dots = "Boxes: 50 %, lines: 90 % of the seeds" if many else "Each dot is a seed"
    outliers = (
        " Named: a seed without which the sd is less than half "
        f"({', '.join(dict.fromkeys(names))})."
        if names
        else ""
    )
    caption = f"How much seeds differ in {outcome}. {dots}; the bar is the mean.{outliers}"
    columns = ["after", "batch size", "seed", outcome]
    return finished(canvas, name, "stability", f"{outcome} of each seed", caption, columns, rows)


def _values(series: Series, family: Family) -> Floats:
    """Returns the outcome of each seed of a series at the point of a family."""
    column = COLUMNS[family.outcome]
    if family.axis == "epochs":
        return known(series, column)[:, family.at - 1]
    points, values = tests(series, column, "updates")
    return values[:, points.index(family.at)]


def _strip(
    panel: Panel, place: int, series: Series, values: Floats, look: Look, outlier: int | None
) -> None:
    """Draws the dots of a batch size side by side where they would overlap, and their mean."""
    canvas, centre = panel.canvas, panel.x(place + 0.5)
    finite = values[np.isfinite(values)]
    if not len(finite):
        return
    y = panel.y(float(finite.mean()))
    half = min(26.0, panel.width / panel.x_scale.high / 2 - 4)
    if len(values) > MOST_SEEDS:
        low, lower, _, upper, high = (panel.y(float(q)) for q in np.quantile(finite, QUANTILES))
        canvas.line([(centre, low), (centre, high)], look.ink, width=1.6)
        box = [
            (centre - half / 2, lower),
            (centre + half / 2, lower),
            (centre + half / 2, upper),
            (centre - half / 2, upper),
        ]
        canvas.area(box, look.ink, 0.5)
    else:
        known = [
            (s, float(v)) for s, v in zip(series.seeds, values, strict=True) if math.isfinite(v)
        ]
        spots = beeswarm([panel.y(value) for _, value in known], PACKED, half)
        for (seed, value), (dx, dy) in zip(known, spots, strict=True):
            tip = f"{series.batch_size}, seed {seed}: {value:.4g}"
            canvas.dot(
                centre + dx, dy, look.ink, marker=look.marker, size=DOT, title=tip, opacity=0.75
            )
            name = f"seed {seed}"
            if seed == outlier and text_width(name, 11) < panel.width / panel.x_scale.high:
                below = dy + 16 if dy + 18 < panel.bottom else dy - 8
                canvas.text(centre + dx, below, name, size=11, anchor="middle")
    title = f"{series.batch_size}, mean: {float(finite.mean()):.4g}"
    canvas.line([(centre - half, y), (centre + half, y)], "text", width=2, title=title)


def beeswarm(places: Sequence[float], gap: float, half: float) -> list[tuple[float, float]]:
    """Returns (shift to the side, place) of each dot, so that dots are *gap* apart if they can.

    >>> beeswarm([10, 10, 30], 7.0, 20)
    [(0.0, 10), (7.0, 10), (0.0, 30)]
    """
    done: list[tuple[float, float]] = []
    shifts = [0.0] + [sign * n * gap for n in range(1, int(half / gap) + 1) for sign in (1, -1)]
    for place in places:
        free = (
            shift
            for shift in shifts
            if all(math.hypot(shift - x, place - y) >= gap - 1e-9 for x, y in done)
        )
        done.append((next(free, 0.0), place))
    return done


def rates_figure(
    comparison: Comparison, all_series: Sequence[Series], prefix: str = ""
) -> Figure | None:
    """Returns the outcome after the last epoch by learning rate; None if there is only one rate."""
    lrs = sorted({series.lr for series in all_series})
    if len(lrs) < 2:
        return None
    outcome, column = NAMES[comparison.primary], COLUMNS[comparison.primary]
    sizes = sorted({series.batch_size for series in all_series})
    canvas = Canvas(WIDTH, 38 + 220 + 44)
    finals = {(s.batch_size, s.lr): known(s, column)[:, -1] for s in all_series}
    y = span(np.concatenate(list(finals.values())).tolist())
    room = label_room([str(size) for size in sizes])
    x = Scale(lrs[0] / 1.3, lrs[-1] * 1.3, is_log=True)
    panel = Panel(canvas, (50, 38, min(460, WIDTH - 50 - room), 220), x, y)
    texts = [(lr, f"{lr:g}") for lr in lrs]
    panel.axes(f"{outcome} by learning rate", "learning rate (log scale)", x_texts=texts)
    ends, rows = [], []
    for size, look in zip(sizes, looks(len(sizes)), strict=True):
        own = [lr for lr in lrs if (size, lr) in finals]
        means = [float(np.mean(finals[size, lr])) for lr in own]
        for lr, mean in zip(own, means, strict=True):
            for value in finals[size, lr] if len(finals[size, lr]) <= MOST_SEEDS else ():
                if math.isfinite(value):
                    canvas.dot(panel.x(lr), panel.y(float(value)), look.ink, size=4, opacity=0.35)
            rows.append([str(size), f"{lr!r}", number(mean, 6), str(len(finals[size, lr]))])
        panel.mean(own, means, look, f"{size}, lr")
        ends.append(Label(panel.y(means[-1]), str(size), look))
    panel.labels_right(ends)
    caption = (
        f"{outcome} on the test images after the last epoch, by learning rate. Lines: means; dots: "
        "seeds. If a line is best at its first or last rate, a better rate may lie beyond."
    )
    title, columns = f"{outcome} by learning rate", ["batch size", "lr", f"mean {outcome}", "seeds"]
    return finished(canvas, f"{prefix}rates", "comparison", title, caption, columns, rows)
