"""Learning curves: loss, accuracy, AUC, and how far the train loss is from its end."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from skinjob.report.figures import Figure
from skinjob.report.measures import COMPARED, number
from skinjob.report.plots.canvas import Canvas, text_width
from skinjob.report.plots.chart import (
    LABEL_GAP,
    LABEL_SIZE,
    MOST_SEEDS,
    WIDTH,
    Label,
    Look,
    Panel,
    Scale,
    clipped,
    finished,
    grid,
    label_room,
)
from skinjob.report.plots.lines import (
    LEFT,
    TEST_ACCURACY,
    TEST_AUC,
    TEST_LOSS,
    TITLES,
    Levels,
    Line,
    Quantity,
    Scales,
    epochs_of,
    known,
    tests,
)
from skinjob.report.statistics import Floats

LONGEST_KEY = 84
GAP, TOP, HEIGHT = 26.0, 52.0, 210.0


def loss_figure(lines: Sequence[Line], scales: Scales, levels: Levels) -> Figure:
    """Returns the test loss of all lines twice: by updates and by epochs."""
    has_loss = any("test_loss" in line.series.table.columns for line in lines)
    shown = TEST_LOSS if has_loss else TEST_ACCURACY
    level = levels.get(shown.column, math.nan)
    canvas = _both_axes(lines, scales, shown, scales.of(shown.column), level)
    caption = f"{shown.name.capitalize()} by updates and by epochs. {_meaning(lines)}"
    return _figure("comparison", caption, canvas, lines, [shown])


def excess_figure(lines: Sequence[Line], scales: Scales, levels: Levels) -> Figure | None:
    """Returns how far the train loss is above the converged head; None if that is not known."""
    columns = {name for line in lines for name in line.series.table.columns}
    if "train_loss" not in columns or "train_loss" not in levels:
        return None
    shown = Quantity("train_loss", "excess train loss", minus=levels["train_loss"])
    values = np.concatenate([shown.of(known(line.series, "train_loss")).ravel() for line in lines])
    positive = values[values > 0]
    if not len(positive):
        return None
    y = Scale(float(positive.min()) / 1.1, float(positive.max()) * 1.1, is_log=True)
    canvas = _both_axes(lines, scales, shown, y, math.nan)
    caption = (
        "Train loss minus that of the converged head, the best that training can reach, on a log "
        f"scale. {_meaning(lines)}"
    )
    return _figure("excess", caption, canvas, lines, [shown])


def _both_axes(
    lines: Sequence[Line], scales: Scales, shown: Quantity, y: Scale, level: float
) -> Canvas:
    """Draws a quantity twice, by updates and by epochs, side by side."""
    canvas, boxes = _pair_of_panels(lines, top=TOP + 16, gap=GAP)
    last = _common_axis(lines)  # where all lines end at the right edge
    for by, box in zip(sorted(TITLES, key=last.__eq__), boxes, strict=True):
        panel, is_left = Panel(canvas, box, scales.along(by), y), by != last
        title = f"{shown.name}, by {by}"
        panel.axes(title, TITLES[by], is_whole=True, has_numbers=is_left, title_rise=30)
        ends = _draw(panel, lines, shown, by, level)
        if is_left:
            room = sum(text_width(line.label) + 10 for line in lines)
            ends = [end for end in ends if end[1].look]
            panel.labels_above(ends if room <= panel.width else [])
        else:
            panel.labels_right([label for _, label in ends])
    _keys(canvas, lines)
    return canvas


def outcome_figure(lines: Sequence[Line], scales: Scales, levels: Levels) -> Figure | None:
    """Returns accuracy and AUC by epochs; None if there is no more than the first figure has."""
    columns = {name for line in lines for name in line.series.table.columns}
    shown = [each for each in (TEST_ACCURACY, TEST_AUC) if each.column in columns]
    if "test_loss" not in columns and len(shown) == 1:
        return None
    canvas, boxes = _pair_of_panels(lines, top=38, gap=GAP + LEFT, has_labels_left=True)
    by = _common_axis(lines)
    for each, box in zip(shown, boxes, strict=False):
        panel = Panel(canvas, box, scales.along(by), scales.of(each.column))
        panel.axes(f"{each.name}, by {by}", TITLES[by], is_whole=True)
        ends = _draw(panel, lines, each, by, levels.get(each.column, math.nan))
        majority = _majority(lines) if each is TEST_ACCURACY else math.nan
        if panel.y_scale.low < majority < panel.y_scale.high:
            panel.level(majority, dash=(1, 3))
            ends.append((0, Label(panel.y(majority), "majority")))
        panel.labels_right([label for _, label in ends])
    _keys(canvas, lines)
    caption = f"Accuracy and AUC on the test images by {by}. {_meaning(lines)}"
    return _figure("accuracy", caption, canvas, lines, shown)


def fit_figure(lines: Sequence[Line], scales: Scales) -> Figure | None:
    """Returns the loss on each split, a panel for each line; None without training losses."""
    columns = {name for line in lines for name in line.series.table.columns}
    splits = [s for s in ("train", "val", "test") if f"{s}_loss" in columns]
    if "train" not in splits or len(splits) < 2:
        return None
    room = label_room(["train"])
    boxes, height = grid(
        len(lines), 4, top=38, left=LEFT, right=room, height=160, gap=18, row_gap=72
    )
    canvas = Canvas(WIDTH, height)
    split_looks = dict(zip(("train", "val", "test"), _split_looks(), strict=True))
    for n, (line, box) in enumerate(zip(lines, boxes, strict=True)):
        panel = Panel(canvas, box, scales.epochs, scales.loss)
        label = line.key or line.label
        title = clipped(f"batch size {label}" if label.isdigit() else label, panel.width)
        panel.axes(title, "epochs", is_whole=True, has_numbers=n % 4 == 0)
        ends = []
        for split in splits:
            column, look = f"{split}_loss", split_looks[split]
            values, xs = known(line.series, column), epochs_of(line.series)
            if len(values) <= MOST_SEEDS:
                titles = [f"{split}, seed {seed}" for seed in line.series.seeds]
                panel.seeds(xs, values, look, titles, opacity=0.2)
            mean = _mean(values)
            panel.mean(xs, mean, look, f"{line.label}, {split}, epoch")
            ends.append(Label(panel.y(mean[-1]), split, look))
        if n % 4 == 3 or n == len(lines) - 1:
            panel.labels_right(ends)
    caption = "Loss on each split by epochs, a panel for each batch size: a test loss that rises "
    caption += "while the training loss falls means that images are learned by heart."
    return _figure(
        "splits", caption, canvas, lines, [Quantity(f"{s}_loss", f"{s} loss") for s in splits]
    )


def _common_axis(lines: Sequence[Line]) -> str:
    """Returns the axis on which lines end at the same place: epochs, or else updates."""
    counts = {line.series.table.counts_in for line in lines}
    return counts.pop() if len(counts) == 1 else "epochs"


def _pair_of_panels(
    lines: Sequence[Line], *, top: float, gap: float, has_labels_left: bool = False
) -> tuple[Canvas, list[tuple[float, float, float, float]]]:
    """Returns a canvas with room for two panels side by side, their labels, and keys below."""
    room = label_room([*(line.label for line in lines), "converged"])
    height = max(HEIGHT, LABEL_GAP * (len(lines) + 2))
    both = WIDTH - LEFT - gap - room * (2 if has_labels_left else 1)
    second = LEFT + both / 2 + gap + (room if has_labels_left else 0)
    keys = LABEL_GAP * sum(bool(line.key) for line in lines)
    canvas = Canvas(WIDTH, top + height + 42 + keys)
    return canvas, [(LEFT, top, both / 2, height), (second, top, both / 2, height)]


def _draw(
    panel: Panel, lines: Sequence[Line], shown: Quantity, by: str, level: float
) -> list[tuple[float, Label]]:
    """Draws thin seeds, then means above them, and returns where the lines end, with labels."""
    known_lines = [line for line in lines if shown.column in line.series.table.columns]
    for line in known_lines:
        titles = [f"{line.label}, seed {seed}" for seed in line.series.seeds]
        xs, values = tests(line.series, shown.column, by)
        panel.seeds(xs, shown.of(values), line.look, titles)
        _draw_behind(panel, line, shown, by)
    ends = []
    if math.isfinite(level):
        place = float(shown.of(np.array(level)))
        panel.level(place)
        ends.append((panel.right, Label(panel.y(place), "converged")))
    for line in known_lines:
        xs, values = tests(line.series, shown.column, by)
        mean = _mean(shown.of(values))
        panel.mean(xs, mean, line.look, f"{line.label}, {by}")
        ends.append((panel.x(xs[-1]), Label(panel.y(mean[-1]), line.label, line.look)))
    return ends


def _draw_behind(panel: Panel, line: Line, shown: Quantity, by: str) -> None:
    """Draws the runs that are not in the mean, because they have not reached its last epoch."""
    if line.series.num_behind > MOST_SEEDS:
        return
    for name, rows in line.series.behind.groupby("run"):
        xs = rows["epoch" if by == "epochs" else "updates"].astype(float).tolist()
        values = shown.of(rows[shown.column].to_numpy(np.float64))
        places = panel.points(xs, values.tolist())
        panel.canvas.line(places, line.look.ink, width=0.8, dash=(2, 2), title=f"{name}, behind")


def _mean(values: Floats) -> list[float]:
    """Returns the means over runs; the median if there are so many that quantiles are drawn."""
    middle = np.median(values, axis=0) if len(values) > MOST_SEEDS else values.mean(axis=0)
    return [float(value) for value in middle]


def _majority(lines: Sequence[Line]) -> float:
    """Returns the share of the largest class in percent; NaN if lines differ in it."""
    shares = {
        100 * max(counts.values()) / sum(counts.values())
        for line in lines
        if sum((counts := line.series.table.counts.get(COMPARED.split, {})).values())
    }
    return shares.pop() if len(shares) == 1 else math.nan


def _split_looks() -> list[Look]:
    return [Look("1", (7, 2.5), "s"), Look("4", (3, 1.8), "^"), Look("7", (), "o")]


def _keys(canvas: Canvas, lines: Sequence[Line]) -> None:
    """Writes the meaning of letters below the panels."""
    keys = [line for line in lines if line.key]
    for n, line in enumerate(keys):
        y = canvas.height - 6 - LABEL_GAP * (len(keys) - 1 - n)
        canvas.dot(LEFT + 4, y - 4, line.look.ink, marker=line.look.marker, size=7)
        long = len(line.key) > LONGEST_KEY
        text = f"{line.key[: LONGEST_KEY - 1]}…" if long else line.key
        canvas.text(LEFT + 14, y, text, size=LABEL_SIZE)


def _meaning(lines: Sequence[Line]) -> str:
    """Returns what thick and thin lines are."""
    nums = sorted({line.series.num_counted for line in lines})
    behind = (
        " Dashed thin: a run that is behind." if any(x.series.num_behind for x in lines) else ""
    )
    if nums[-1] == 1:
        return f"One seed per line.{behind}"
    count = str(nums[0]) if len(nums) == 1 else f"{nums[0]} to {nums[-1]}"
    if nums[-1] > MOST_SEEDS:
        return f"Thick: the median of {count} seeds; bands: 50 % and 90 % of them.{behind}"
    return f"Thick: the mean of {count} seeds; thin: each seed.{behind}"


def _figure(
    name: str,
    caption: str,
    canvas: Canvas,
    lines: Sequence[Line],
    shown: Sequence[Quantity],
) -> Figure:
    """Returns a figure of curves, with means and ranges of its quantities by epoch."""
    heads = [f"{each.name}{part}" for each in shown for part in ("", ", lowest", ", highest")]
    rows = []
    for line in lines:
        values = [_statistics(each.of(known(line.series, each.column))) for each in shown]
        for place, (epoch, updates) in enumerate(
            zip(epochs_of(line.series), line.series.updates, strict=True)
        ):
            cells = [number(float(own[place]), 6) for of_each in values for own in of_each]
            label = line.key or line.label
            rows.append([label, f"{epoch:g}", str(updates), str(line.series.num_counted), *cells])
    first = shown[0]
    last = [first.of(known(line.series, first.column)[:, -1]).mean() for line in lines]
    ends = ", ".join(
        f"{line.key or line.label}: {number(float(value), 3)}"
        for line, value in zip(lines, last, strict=True)
    )
    means = f"Means of {first.name} after the last epoch: {ends}."
    all_heads = ["batch size", "epoch", "updates", "runs", *heads]
    title = caption.split(".")[0]
    return finished(canvas, name, "curves", title, caption, all_heads, rows, means)


def _statistics(values: Floats) -> tuple[Floats, Floats, Floats]:
    return values.mean(axis=0), np.fmin.reduce(values), np.fmax.reduce(values)
