"""The report as a single HTML file with all its pictures, which can be mailed.

The text is in page.html, the style in page.css.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from skinjob.console import printable
from skinjob.files import write_text
from skinjob.report.answer import Answer, ranges
from skinjob.report.baselines import baselines
from skinjob.report.clinical_table import Clinical
from skinjob.report.comparison import NAMES, Comparison
from skinjob.report.details import comparison_table, stability_table, tests_made
from skinjob.report.figures import Figure
from skinjob.report.findings import known_state
from skinjob.report.summary import readable
from skinjob.report.tables import SweepTable

DIGEST_DIGITS = 12  # enough to distinguish files; sweep.json has all 64


def write_page(
    file: Path,
    tables: Sequence[SweepTable],
    *,
    notice: str,
    answers: Mapping[str, Answer],
    results: Sequence[tuple[Comparison, Clinical]],
    summary: pd.DataFrame,
    missing: Sequence[str],
    notes: Sequence[str],
    figures: Sequence[Figure],
) -> None:
    """Writes the page: the answer, numbers, pictures, explanations, and the facts of each sweep."""
    known = [one for table in tables for one in baselines(table)]
    columns, rows = readable(summary, is_complete=True, baselines=known)
    positive_classes: dict[str, list[str]] = {}
    for table in tables:
        positive_classes.setdefault(table.positive_class, []).append(table.sweep.name)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    page = environment.get_template("page.html").render(
        title="Batch sizes compared: " + ", ".join(table.sweep.name for table in tables),
        positive_classes=positive_classes,
        facts_by_sweep=[_facts(table) for table in tables],
        notice=notice,
        answers=answers,
        results=[_result(*result) for result in results],
        columns=columns,
        rows=rows,
        missing=missing,
        notes=notes,
        figures=figures,
    )
    write_text(file, page)


def _result(comparison: Comparison, clinical: Clinical) -> dict[str, Any]:
    """Returns the tables of a sweep below the answer, each as columns and rows."""
    return {
        "sweep": comparison.table.sweep.name,
        "comparison": comparison_table(comparison),
        "stability": stability_table(comparison),
        "clinical": clinical.parts,
        "tests": tests_made(comparison),
        "positive": comparison.table.positive_class,
        "margin": f"{comparison.margin:g} of {NAMES[comparison.primary]}",
    }


def _printable(value: Any) -> Any:
    """Returns a value of the page, with unprintable characters escaped.

    The result of a macro of the template is HTML already.
    """
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return printable(value, keeps="\n") if is_text else value


def _facts(table: SweepTable) -> dict[str, Any]:
    """Returns the facts of a sweep by name. The page does not show empty values."""
    info = table.info
    weights, images = info.weights, info.images
    return {
        "sweep": table.sweep.name,
        "submitted": info.created_utc,
        "recipe": _pairs(info.recipe, leave_out=("data", "weights")),
        "lr": ", ".join(str(lr) for lr in info.lrs),
        "seeds": ranges(info.seeds),
        "backbone": weights.architecture,
        "weights": weights.source or weights.path,
        "weights SHA-256": _short(weights.sha256),
        "images": images.root,
        "images' fingerprint": _short(images.fingerprint),
        **{
            f"images, {split}": ", ".join(f"{count} {name}" for name, count in counts.items())
            for split, counts in table.counts.items()
        },
        "images skipped": len(images.skipped),
        "device": ", ".join(_devices(table)),
        "versions": _pairs(info.versions),
    }


def _devices(table: SweepTable) -> list[str]:
    """Returns each device and precision that a run of the sweep used."""
    states = [known_state(run) for run in table.sweep.runs()]
    return sorted({f"{s.device} ({s.precision})" for s in states if s and s.device})


def _pairs(values: Mapping[str, Any], leave_out: Sequence[str] = ()) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {value}"
        for name, value in values.items()
        if name not in leave_out
    )


def _short(digest: str | None) -> str:
    return f"{digest[:DIGEST_DIGITS]}…" if digest else ""
