"""The report as a single HTML file with all its pictures, which can be mailed.

The text is in page.html, the style in page.css. The page loads nothing and runs nothing: its
content security policy forbids it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from skinjob.data.images import Split
from skinjob.files import write_text
from skinjob.report.answer import Answer
from skinjob.report.baselines import baselines
from skinjob.report.checklist import NOT_STATED, Case, checklist
from skinjob.report.clinical_table import Clinical
from skinjob.report.comparison import NAMES, Comparison
from skinjob.report.details import Table, comparison_table, stability_table, tests_made
from skinjob.report.embedded import Kept
from skinjob.report.figures import Figure
from skinjob.report.measures import COMPARED, percent
from skinjob.report.methods import citation, commands, facts, methods, training
from skinjob.report.mistakes import MOST_SHOWN, Mistake, Mistakes, thumbnails
from skinjob.report.predictions import Predictions
from skinjob.report.summary import readable
from skinjob.report.tables import SweepTable
from skinjob.report.templates import filled
from skinjob.words import counts_text

MOST_WARNINGS = 3  # before the numbers; the others are among the limits
SHORT = ("sweep", "batch\nsize", "lr", "AUC", "test\nloss", COMPARED.label, "sd", "runs")
"""The columns of the table that are always shown."""
SECTIONS = {
    "comparison": "The comparison",
    "table": "The table",
    "curves": "The curves",
    "stability": "Stability",
    "clinical": "Clinical numbers",
    "probabilities": "Probabilities",
    "mistakes": "The most confident mistakes",
    "images": "The images",
    "made": "How it was made",
    "limits": "Limits",
}
"""The sections after the answer: anchor and name."""
MOST_ROWS = 200  # of a figure's numbers on the page; its CSV file has all
COMPARED_IN_SHORT = ("after", "lr", "batch size", "updates", "verdict")


@dataclass(frozen=True)
class Result:
    """What the page says of a sweep."""

    comparison: Comparison
    answer: Answer
    clinical: Clinical
    predictions: Mapping[str, Predictions]
    mistakes: Mistakes | None
    num_copies: int | None
    """Test images with a copy in train; None if it is not known."""


def write_page(
    file: Path,
    tables: Sequence[SweepTable],
    *,
    results: Sequence[Result],
    summary: pd.DataFrame,
    warnings: Sequence[str],
    kept: Kept,
    data: str,
    has_files: bool,
    figures: Sequence[Figure],
) -> None:
    """Writes the page. *data* is the text of report.json, with every < escaped."""
    known = [baseline for each in tables for baseline in baselines(each)]
    table = readable(summary, is_complete=True, baselines=known)
    positive_classes: dict[str, list[str]] = {}
    for each in tables:
        positive_classes.setdefault(each.positive_class, []).append(each.sweep.name)
    shown = [
        _content(result) | mistakes
        for result, mistakes in zip(results, _mistakes(results, kept), strict=True)
    ]
    drawn: dict[str, list[Figure]] = {section: [] for section in SECTIONS}
    for figure in figures:
        drawn[figure.section].append(figure)
    page = filled(
        "page.html",
        title="Batch sizes compared: " + ", ".join(each.sweep.name for each in tables),
        positive_classes=positive_classes,
        results=shown,
        summary=table,
        summary_in_short=_narrow(table, SHORT.__contains__),
        warnings=warnings[:MOST_WARNINGS],
        limits=warnings[MOST_WARNINGS:],
        missing=kept.missing,
        has_images=kept.has_images,
        num_pictures=sum(
            mistake["jpeg"] is not None
            for own in shown
            for mistake in own["always"] + own["sometimes"]
        ),
        sections=_sections(shown, drawn),
        figures=drawn,
        most_rows=MOST_ROWS,
        data=Markup(data),
        has_files=has_files,
    )
    write_text(file, page)


def _sections(
    shown: Sequence[Mapping[str, Any]], drawn: Mapping[str, Sequence[Figure]]
) -> dict[str, str]:
    """Returns the name of each section that has a content, by its anchor."""
    empty = {
        section
        for section, name in (
            ("comparison", "comparison"),
            ("stability", "stability"),
            ("clinical", "clinical"),
            ("probabilities", ""),
            ("mistakes", "mistakes"),
        )
        if not drawn.get(section)
        and not any(result[name] and result[name] != ([], []) for result in shown if name)
    }
    return {anchor: name for anchor, name in SECTIONS.items() if anchor not in empty}


def _content(result: Result) -> dict[str, Any]:
    """Returns texts and tables about a sweep; a table is its columns and rows."""
    comparison = result.comparison
    table = comparison.table
    compared, stability = comparison_table(comparison), stability_table(comparison)
    clinical = result.clinical.parts
    case = Case(comparison, result.mistakes, training(table), bool(clinical), result.num_copies)
    return {
        "sweep": table.sweep.name,
        "answer": result.answer,
        "comparison": compared,
        "comparison_in_short": _in_short(compared, NAMES[comparison.primary]),
        "stability": stability,
        "stability_in_short": _stability_in_short(stability),
        "clinical": clinical,
        "tests": tests_made(comparison),
        "positive": table.positive_class,
        "intervals": _intervals(comparison),
        "margin": f"{comparison.margin:g} of {NAMES[comparison.primary]}",
        "mistakes": result.mistakes,
        "images": _images(table, result.num_copies),
        "facts": facts(table),
        "methods": methods(comparison),
        "commands": commands(table),
        "citation": citation(table),
        "checklist": (["what is asked for", "item", "this study"], checklist(case)),
    }


def _intervals(comparison: Comparison) -> str:
    """Returns what the intervals of the comparison are for."""
    rows = [contrast.seeds for family in comparison.families for contrast in family.contrasts]
    if not rows:
        return ""
    here = ", or for new seeds on these images (†)" if any(len(seeds) > 1 for seeds in rows) else ""
    return f"{comparison.scope}{here}"


def _narrow(table: Table, is_shown: Callable[[str], bool]) -> Table:
    """Returns some of a table's columns."""
    columns, rows = table
    places = [place for place, column in enumerate(columns) if is_shown(column)]
    return [columns[p] for p in places], [[row[p] for p in places] for row in rows]


def _in_short(compared: Table, primary: str) -> Table:
    """Returns the comparison with an interval in each row: for new images where it is known."""
    columns, rows = compared
    if not rows:
        return compared
    new, here = [place for place, column in enumerate(columns) if "95 %" in column][:2]
    first = columns[new].partition("\n")[0]
    name = f"{first} (95 %)\n† for these images only"
    columns = [*columns[:new], name, *columns[new + 1 :]]
    cells = [row[new] if row[new] != "-" or row[here] == "-" else f"{row[here]} †" for row in rows]
    rows = [[*row[:new], cell, *row[new + 1 :]] for row, cell in zip(rows, cells, strict=True)]
    return _narrow((columns, rows), {name, primary, *COMPARED_IN_SHORT}.__contains__)


def _stability_in_short(table: Table) -> Table:
    """Returns the stability without its details."""
    details = ("without", "by those", "jumps", "largest", "updates from")
    return _narrow(table, lambda column: not column.startswith(details))


def _images(table: SweepTable, num_copies: int | None) -> Table:
    """Returns what submit saw in the images."""
    images = table.info.images
    reached = images.shortcut
    training = "train or val" if Split.VAL in table.counts else "train"
    known = {
        **{split: counts_text(counts) for split, counts in table.counts.items()},
        "faulty and left out": str(len(images.skipped)),
        f"test images also in {training}, byte for byte": _count(images.repeated, "test_in_train"),
        "test images with a copy in train, near copies too": (
            NOT_STATED if num_copies is None else str(num_copies)
        ),
        "images in two classes, byte for byte": _count(images.repeated, "in_two_classes"),
        "accuracy from file size, image size, border and mean colour alone": (
            f"{percent(reached['test_accuracy'])} %" if "test_accuracy" in reached else NOT_STATED
        ),
    }
    return ["", "what submit saw"], [[name, value] for name, value in known.items()]


def _count(counts: Mapping[str, int], name: str) -> str:
    return str(counts[name]) if name in counts else NOT_STATED


def _mistakes(results: Sequence[Result], kept: Kept) -> list[dict[str, list[dict[str, Any]]]]:
    """Returns the shown mistakes of each sweep, with their pictures if those are at hand.

    They are numbered through the page, so pictures can be taken from an earlier page.
    """
    number = itertools.count()
    of_sweeps: list[dict[str, list[dict[str, Any]]]] = []
    for result in results:
        mistakes, table = result.mistakes, result.comparison.table
        if mistakes is None:
            of_sweeps.append({"always": [], "sometimes": []})
            continue
        jpegs = (
            thumbnails(table, [mistake.path for mistake in mistakes.shown])
            if kept.has_images
            else {}
        )
        of_sweeps.append(
            {
                kind: [
                    _mistake(
                        mistake,
                        n := next(number),
                        jpegs.get(mistake.path) or kept.pictures.get(n),
                        kept,
                    )
                    for mistake in listed[:MOST_SHOWN]
                ]
                for kind, listed in (("always", mistakes.always), ("sometimes", mistakes.sometimes))
            }
        )
    return of_sweeps


def _mistake(mistake: Mistake, number: int, jpeg: str | None, kept: Kept) -> dict[str, Any]:
    return {
        "number": number,
        "jpeg": jpeg if kept.has_images else None,
        "name": mistake.name if kept.has_images else "",
        "truth": mistake.truth,
        "called": mistake.called,
        "percent": percent(mistake.probability, 0),
        "num_wrong": mistake.num_wrong,
    }
