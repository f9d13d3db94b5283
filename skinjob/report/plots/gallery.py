"""Which figures a report has, and their files beside the page."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from skinjob.files import csv_text, replacing
from skinjob.report.comparison import Comparison
from skinjob.report.figures import Figure
from skinjob.report.plots.canvas import as_file
from skinjob.report.plots.clinical import clinical_figures
from skinjob.report.plots.comparison import (
    forest_figure,
    paired_figure,
    rates_figure,
    seeds_figure,
)
from skinjob.report.plots.curves import (
    excess_figure,
    fit_figure,
    loss_figure,
    outcome_figure,
)
from skinjob.report.plots.lines import common_scales, lines_of
from skinjob.report.predictions import Predictions
from skinjob.report.tables import Series, by_lr

Result = tuple[Comparison, Mapping[str, Predictions]]
"""The comparison of a sweep, and the predictions of its runs."""

MOST_LINES = 8  # in a picture; of more, each batch size has only its best lr


def figures(results: Sequence[Result], all_series: Sequence[Series]) -> list[Figure]:
    """Returns all figures. Curves of several sweeps share a picture; the others have their own."""
    shown, levels = _few(results, all_series), _converged(results)
    scales = common_scales(all_series, levels)
    lines = lines_of(shown, _labels(all_series, shown))
    pictures: list[Figure | None] = [
        loss_figure(lines, scales, levels),
        outcome_figure(lines, scales, levels),
        fit_figure(lines, scales),
        excess_figure(lines, scales, levels),
    ]
    for comparison, predictions in results:
        own = [series for series in all_series if series.table is comparison.table]
        prefix = f"{comparison.table.sweep.name}-" if len(results) > 1 else ""
        family = comparison.lead or comparison.other
        pictures += [
            forest_figure(comparison, prefix),
            rates_figure(comparison, own, prefix),
            paired_figure(comparison, prefix),
            seeds_figure(comparison, prefix),
            *clinical_figures(family.series if family else own, predictions, prefix),
        ]
    return [figure for figure in pictures if figure]


def write_figures(folder: Path, all_figures: Sequence[Figure]) -> None:
    """Writes each figure as SVG, PNG and CSV."""
    for figure in all_figures:
        stem = folder / figure.name
        # A report can be made again, so its pictures need not survive a power cut.
        with replacing(stem.with_name(f"{figure.name}.svg"), is_durable=False) as partial:
            partial.write_text(as_file(figure.svg), encoding="utf-8")
        with replacing(stem.with_name(f"{figure.name}.png"), is_durable=False) as partial:
            partial.write_bytes(figure.png)
        with (
            replacing(stem.with_name(f"{figure.name}.csv"), is_durable=False) as partial,
            partial.open("w", newline="", encoding="utf-8") as lines,
        ):
            rows = [figure.columns, *figure.rows]
            csv.writer(lines).writerows([csv_text(cell) for cell in row] for row in rows)


def _few(results: Sequence[Result], all_series: Sequence[Series]) -> list[Series]:
    """Returns the series to draw together: of too many, each batch size at its best lr."""
    if len(all_series) <= MOST_LINES or len(by_lr(all_series)) == 1:
        return list(all_series)
    families = [
        family for comparison, _ in results if (family := comparison.lead or comparison.other)
    ]
    best = [series for family in families for series in family.series]
    return best or list(all_series[:MOST_LINES])


def _labels(all_series: Sequence[Series], shown: Sequence[Series]) -> list[str]:
    """Returns the batch size of each shown series, with sweep and lr if there are several."""
    has_sweeps = len({id(series.table) for series in all_series}) > 1
    has_lrs = len(by_lr(all_series)) > 1
    return [
        (f"{series.table.sweep.name} " if has_sweeps else "")
        + str(series.batch_size)
        + (f", lr {series.lr!r}" if has_lrs else "")
        for series in shown
    ]


def _converged(results: Sequence[Result]) -> dict[str, float]:
    """Returns the numbers of the converged head by column; of several sweeps, none."""
    heads = [comparison.table.converged for comparison, _ in results]
    head = heads[0] if len(heads) == 1 else None
    return dict(head.metrics) if head and head.exists else {}
