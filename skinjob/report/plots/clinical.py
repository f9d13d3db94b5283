"""Pictures for a clinical reader: ROC, precision and recall, calibration, and net benefit.

Each seed has its own thin curve. A band over seeds on such curves would suggest an interval that it
is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from skinjob.report.clinical import (
    Truth,
    calibration_curve,
    decision_curve,
    precision_recall_curve,
    roc_curve,
)
from skinjob.report.clinical_case import Case, case_of
from skinjob.report.figures import Figure
from skinjob.report.measures import number
from skinjob.report.plots.canvas import Canvas
from skinjob.report.plots.chart import (
    LABEL_SIZE,
    MOST_SEEDS,
    MOST_VERTICES,
    WIDTH,
    Label,
    Look,
    Panel,
    Scale,
    finished,
    grid,
    label_room,
    looks,
    some,
)
from skinjob.report.predictions import Predictions
from skinjob.report.statistics import Floats, auc_estimates
from skinjob.report.tables import Series

UNIT = Scale(0.0, 1.0)
SHOWN_OF_MANY = 11  # runs, from the lowest AUC to the highest
GRID = np.linspace(0, 1, 21)
THRESHOLDS = np.arange(1, 76) / 100
LOWEST_BENEFIT = -0.06


@dataclass(frozen=True)
class Drawn:
    """The runs of a batch size, with the look of their curves."""

    case: Case
    look: Look

    @property
    def label(self) -> str:
        return str(self.case.batch_size)

    @cached_property
    def aucs(self) -> Floats:
        return auc_estimates(self.case.scores, self.case.truth).values

    @cached_property
    def shown(self) -> list[int]:
        """The runs that are drawn: all, or of many those at quantiles of AUC."""
        order = np.argsort(self.aucs, kind="stable")
        if len(order) <= MOST_SEEDS:
            return list(range(len(order)))
        places = np.linspace(0, len(order) - 1, SHOWN_OF_MANY).round().astype(int)
        return sorted(order[places].tolist())


def clinical_figures(
    all_series: Sequence[Series], predictions: Mapping[str, Predictions], prefix: str = ""
) -> list[Figure]:
    """Returns all pictures; none without predictions."""
    pairs = zip(all_series, looks(len(all_series)), strict=True)
    all_cases = [(case_of(series, predictions, {}, None), look) for series, look in pairs]
    cases = [Drawn(case, look) for case, look in all_cases if case]
    if not cases:
        return []
    positive = all_series[0].table.positive_class
    return [
        _roc(cases, positive, prefix),
        _precision_recall(cases, positive, prefix),
        _net_benefit(cases, positive, prefix),
        _calibration(cases, positive, prefix),
    ]


def _roc(cases: Sequence[Drawn], positive: str, prefix: str) -> Figure:
    def curve(scores: Floats, truth: Truth) -> tuple[Floats, Floats]:
        points = roc_curve(scores, truth)
        return points.x, points.y

    caption = (
        f"ROC: the share of “{positive}” images that are called so (sensitivity), against the "
        "share of false alarms among the others (false positive rate). "
        f"{_which(cases)} Dotted: guessing."
    )
    notes = [f"AUC {drawn.aucs.mean():.3f}" for drawn in cases]
    return _curves(
        f"{prefix}roc",
        "clinical",
        caption,
        cases,
        notes,
        curve,
        ("false positive rate", "sensitivity"),
        guess=[(0, 0), (1, 1)],
    )


def _precision_recall(cases: Sequence[Drawn], positive: str, prefix: str) -> Figure:
    def curve(scores: Floats, truth: Truth) -> tuple[Floats, Floats]:
        points = precision_recall_curve(scores, truth)
        last = int(np.argmax(points.x >= 1)) + 1  # lower cutoffs only add false alarms
        return np.r_[0, points.x[:last]], np.r_[points.y[:1], points.y[:last]]

    share = float(cases[0].case.truth.mean())
    caption = (
        f"Precision, the share of calls of “{positive}” that are right, against sensitivity. "
        f"{_which(cases)} Dotted: guessing, at the {100 * share:.0f} % of the test images that are "
        f"“{positive}”. In a practice that share is smaller, and precision too."
    )
    return _curves(
        f"{prefix}precision-recall",
        "clinical",
        caption,
        cases,
        [""] * len(cases),
        curve,
        ("sensitivity", "precision"),
        guess=[(0, share), (1, share)],
    )


def _calibration(cases: Sequence[Drawn], positive: str, prefix: str) -> Figure:
    def curve(scores: Floats, truth: Truth) -> tuple[Floats, Floats]:
        points = calibration_curve(scores, truth)
        return points.predicted, points.observed

    caption = (
        f"Calibration: of the test images with about this probability of “{positive}”, the share "
        f"that is “{positive}”. {_which(cases)} Dotted: perfect. A steeper curve means "
        "probabilities that are too close to each other; each point is a tenth of the images."
    )
    return _curves(
        f"{prefix}calibration",
        "probabilities",
        caption,
        cases,
        [""] * len(cases),
        curve,
        ("predicted", "observed"),
        guess=[(0, 0), (1, 1)],
    )


def _curves(
    name: str,
    section: str,
    caption: str,
    cases: Sequence[Drawn],
    notes: Sequence[str],
    curve: Callable[[Floats, Truth], tuple[Floats, Floats]],
    axes: tuple[str, str],
    guess: Sequence[tuple[float, float]],
) -> Figure:
    """Returns a figure with a panel for each batch size and a thin curve for each seed."""
    columns = min(4, max(3, len(cases)))
    left, gap = 42.0, 24.0
    side = (WIDTH - left - 12 - gap * (columns - 1)) / columns
    used = min(len(cases), columns)
    right = WIDTH - left - used * side - (used - 1) * gap
    boxes, height = grid(
        len(cases), columns, top=54, left=left, right=right, height=side, gap=gap, row_gap=72
    )
    canvas, rows = Canvas(WIDTH, height), []
    for n, (drawn, note, box) in enumerate(zip(cases, notes, boxes, strict=True)):
        panel = Panel(canvas, box, UNIT, UNIT)
        is_first = n % columns == 0
        panel.axes(
            f"batch size {drawn.label}",
            axes[0],
            axes[1] if is_first else "",
            has_numbers=is_first,
            x_texts=[(0, "0"), (0.5, "0.5"), (1, "1")],
        )
        canvas.text(panel.right - 6, panel.bottom - 8, note, anchor="end", size=LABEL_SIZE)
        canvas.line([(panel.x(x), panel.y(y)) for x, y in guess], "soft", dash=(1.5, 3))
        on_grid = []
        for run, scores in enumerate(drawn.case.scores):
            if run in drawn.shown:
                xs, ys = curve(scores, drawn.case.truth)
                on_grid.append(np.interp(GRID, xs, ys, left=math.nan, right=math.nan))
                tip = f"{drawn.label}, seed {drawn.case.seeds[run]}: AUC {drawn.aucs[run]:.3f}"
                places = panel.points(*_thinned(xs, ys))
                canvas.line(places, drawn.look.ink, width=1.0, opacity=0.55, title=tip)
        rows += _rows(drawn.label, GRID, np.array(on_grid))
    aucs = ", ".join(f"{drawn.label}: {drawn.aucs.mean():.3f}" for drawn in cases)
    heads = ["batch size", axes[0], *_heads(axes[1])]
    title = f"{axes[1].capitalize()} by {axes[0]}"
    return finished(canvas, name, section, title, caption, heads, rows, f"Mean AUC: {aucs}.")


def _net_benefit(cases: Sequence[Drawn], positive: str, prefix: str) -> Figure:
    """Returns the decision curves: thin seeds, a mean line for each batch size."""
    name, share = f"{prefix}net-benefit", float(cases[0].case.truth.mean())
    canvas, room = Canvas(WIDTH, 38 + 240 + 44), label_room([drawn.label for drawn in cases])
    y = Scale(LOWEST_BENEFIT, share * 1.08)
    panel = Panel(canvas, (50, 38, WIDTH - 50 - room, 240), Scale(0, float(THRESHOLDS[-1])), y)
    panel.axes("net benefit", "probability from which one would act (threshold)")
    panel.level(0.0, dash=())
    benefits = [_benefits(drawn) for drawn in cases]
    of_all = benefits[0][1]
    inside = of_all >= LOWEST_BENEFIT
    canvas.line(
        panel.points(THRESHOLDS[inside].tolist(), of_all[inside].tolist()), "soft", dash=(5, 3)
    )
    end = panel.x(float(THRESHOLDS[inside][-1]))
    canvas.text(
        end - 16, panel.bottom - 6, "calling all positive", anchor="end", size=11, ink="soft"
    )
    xs, rows, ends = THRESHOLDS.tolist(), [], []
    for drawn, (own, _) in zip(cases, benefits, strict=True):
        kept = np.where(own >= LOWEST_BENEFIT, own, np.nan)
        titles = [f"{drawn.label}, seed {drawn.case.seeds[run]}" for run in drawn.shown]
        panel.seeds(xs, kept, drawn.look, titles, opacity=0.2)
        rows += _rows(drawn.label, THRESHOLDS, own)
    for drawn, (own, _) in zip(cases, benefits, strict=True):
        mean = own.mean(axis=0)
        mean = np.where(mean >= LOWEST_BENEFIT, mean, np.nan)
        panel.mean(xs, mean.tolist(), drawn.look, f"{drawn.label}, threshold")
        ends.append(Label(panel.y(float(mean[-1])), drawn.label, drawn.look))
    panel.labels_right(ends)
    caption = (
        f"Net benefit: “{positive}” images found per test image, less false alarms at the odds of "
        "the threshold. A model is of use where it is above both calling all positive (dashed) and "
        f"calling none (0). Thick: the mean; thin: seeds."
    )
    heads = ["batch size", "threshold", *_heads("net benefit")]
    return finished(canvas, name, "clinical", "Net benefit by threshold", caption, heads, rows)


def _benefits(drawn: Drawn) -> tuple[Floats, Floats]:
    """Returns the net benefit of the shown runs (runs, thresholds), and of calling all positive."""
    curves = [
        decision_curve(drawn.case.scores[run], drawn.case.truth, THRESHOLDS) for run in drawn.shown
    ]
    return np.array([own for own, _ in curves]), curves[0][1]


def _thinned(xs: Floats, ys: Floats) -> tuple[list[float], list[float]]:
    """Returns a curve without the points on a straight line, and of many only some."""
    if len(xs) > 2:
        dx, dy = np.diff(xs), np.diff(ys)
        turns = np.abs(dx[:-1] * dy[1:] - dx[1:] * dy[:-1]) > 1e-12
        kept = np.r_[0, np.flatnonzero(turns) + 1, len(xs) - 1]
        kept = kept[some(len(kept), MOST_VERTICES)]
        xs, ys = xs[kept], ys[kept]
    return xs.tolist(), ys.tolist()


def _rows(label: str, xs: Floats, values: Floats) -> list[list[str]]:
    """Returns mean, lowest and highest of curves (runs, points) where all are known."""
    known = np.isfinite(values).all(axis=0)
    return [
        [label, f"{x:.2f}", *(number(float(v), 4) for v in (own.mean(), own.min(), own.max()))]
        for x, own in zip(xs[known], values.T[known], strict=True)
    ]


def _heads(name: str) -> list[str]:
    return [f"mean {name}", "lowest", "highest"]


def _which(cases: Sequence[Drawn]) -> str:
    if any(len(drawn.case.scores) > MOST_SEEDS for drawn in cases):
        return f"{SHOWN_OF_MANY} of the seeds per batch size, from the lowest AUC to the highest."
    return "A curve for each seed."
