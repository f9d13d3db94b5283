"""A report from start to end: reads the sweeps, then writes tables, pictures and the page."""

from __future__ import annotations

import csv
import errno
import json
import os
import shlex
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from skinjob import __version__
from skinjob.data.images import Split
from skinjob.errors import RunError
from skinjob.files import csv_text, replacing, write_text
from skinjob.ownership import user_name
from skinjob.report import findings
from skinjob.report.answer import Answer, answer
from skinjob.report.baselines import baseline_lines
from skinjob.report.clinical_table import Clinical
from skinjob.report.clinical_table import clinical as clinical_numbers
from skinjob.report.comparison import compare_sweep, read_all_predictions
from skinjob.report.embedded import Kept, as_json, packed_files, restore, without_names
from skinjob.report.mistakes import find_mistakes
from skinjob.report.page import Result, write_page
from skinjob.report.plots.gallery import figures, write_figures
from skinjob.report.predictions import read_copies
from skinjob.report.rows import TEXTS
from skinjob.report.summary import summarize
from skinjob.report.tables import (
    Series,
    SweepTable,
    group_runs,
    read_sweep,
)
from skinjob.sweeps.layout import Sweep
from skinjob.sweeps.records import METRICS
from skinjob.words import list_first

MOST_NAMED = 5  # unreadable runs in an error


@dataclass(frozen=True)
class Report:
    """A written report, and the text about it for the terminal."""

    folder: Path
    notice: str
    """A warning before all numbers; empty for fetched weights."""
    answers: dict[str, Answer]
    """By sweep."""
    clinical: dict[str, Clinical]
    """By sweep."""
    summary: pd.DataFrame
    """summary.csv: a row for each batch size and learning rate."""
    baselines: list[str]
    """Sentences about what the numbers are read against."""
    missing: list[str]
    """A sentence for each run that cannot be read or lacks epochs."""
    notes: list[str]
    """Sentences about left-out images and differences between sweeps."""


def build_report(
    sweeps: Sequence[Sweep],
    out: Path | None = None,
    *,
    has_images: bool = True,
    kept: Kept | None = None,
) -> Report:
    """Writes a report on one or several sweeps to a folder, and returns the report.

    The folder is *out*, by default report/ in the sweep or, for several sweeps, report-A-B beside
    the first sweep. A default folder must belong to the user and must not be a link. Files of an
    earlier report are replaced, each in a single step. An unreadable run counts as missing.

    Without *has_images*, the report has no pictures and no names of test images. *kept* is what an
    earlier report knew that is not in the files of its sweeps.

    Raises: RunError if no readable run has finished an epoch, or if the folder belongs to another
    user or cannot be written; OSError if the disk is full.
    """
    tables = [read_sweep(sweep) for sweep in _distinct(sweeps)]
    series = group_runs(tables)
    if not series:
        raise _nothing_yet(tables)
    kept = kept or Kept(missing=findings.missing(tables), notes=findings.notes(tables))
    if not has_images:
        kept = replace(kept, has_images=False, missing=without_names(kept.missing))
    folder = out or _default_folder(tables)
    try:
        if out:
            out.mkdir(parents=True, exist_ok=True)
        else:
            _make_own(folder, tables)
        return _write(folder, tables, series, kept)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunError(_unwritable(folder, error), _elsewhere(tables)) from None


def rebuild_report(file: Path, out: Path | None = None, *, has_images: bool = True) -> Report:
    """Writes the report of a page or a report.json again, and returns it.

    The folder is *out*, by default report-A or report-A-B in the current folder.

    Raises: RunError if the file is no such file, or does not hold its sweeps.
    """
    with TemporaryDirectory(prefix="skinjob-") as folder:
        sweeps, kept = restore(file, Path(folder))
        out = out or Path("-".join(["report", *(sweep.name for sweep in sweeps)]))
        return build_report(sweeps, out, has_images=has_images, kept=kept)


def _write(
    folder: Path, tables: Sequence[SweepTable], all_series: Sequence[Series], kept: Kept
) -> Report:
    """Writes all files of the report, and returns it."""
    results = {table.sweep.name: _result(table, all_series) for table in tables}
    summary = summarize(all_series)
    report = Report(
        folder=folder,
        notice=findings.weights_notice(tables),
        answers={name: result.answer for name, result in results.items()},
        clinical={name: result.clinical for name, result in results.items()},
        summary=summary,
        baselines=findings.for_each(tables, lambda table: baseline_lines(table, summary)),
        missing=kept.missing,
        notes=kept.notes,
    )
    drawn = figures(
        [(result.comparison, result.predictions) for result in results.values()], all_series
    )
    write_figures(folder, drawn)
    _write_metrics(folder / "metrics.csv", tables)
    _write_summary(folder / "summary.csv", report.summary)
    files = packed_files(tables, kept)
    data = as_json(_for_programs(report), files, kept)
    write_text(folder / "report.json", data + "\n")
    num_copies = {name: result.num_copies or 0 for name, result in results.items()}
    write_page(
        folder / "index.html",
        tables,
        results=list(results.values()),
        summary=report.summary,
        warnings=findings.warnings(tables, all_series, num_copies, kept),
        kept=kept,
        data=data,
        has_files=files is not None,
        figures=drawn,
    )
    return report


def _result(table: SweepTable, all_series: Sequence[Series]) -> Result:
    """Returns what a sweep's predictions and curves say."""
    own = [series for series in all_series if series.table is table]
    predictions = read_all_predictions(own)
    comparison = compare_sweep(table, own, predictions)
    lead = comparison.lead
    shown = own
    if lead:
        shown = sorted([*lead.series, *lead.unpaired], key=lambda series: series.batch_size)
    val, copies = read_all_predictions(shown, Split.VAL), read_copies(table.sweep)
    names = [name for series in shown for name in series.run_of_seed.values()]
    of_runs = [predictions[name] for name in names if name in predictions]
    is_copy = copies.is_trained(of_runs[0].images) if copies and of_runs else None
    return Result(
        comparison,
        answer(comparison),
        clinical_numbers(shown, predictions, val, copies),
        predictions,
        find_mistakes(of_runs),
        None if is_copy is None else int(is_copy.sum()),
    )


def _for_programs(report: Report) -> dict[str, Any]:
    """Returns the results in report.json."""
    return {
        "made_by": f"skinjob {__version__}",
        "notice": report.notice,
        "answers": {name: asdict(each) for name, each in report.answers.items()},
        "summary": json.loads(report.summary.to_json(orient="records")),
        "missing": report.missing,
        "notes": report.notes,
    }


def _distinct(sweeps: Sequence[Sweep]) -> list[Sweep]:
    """Returns the sweeps without repeats. Raises: RunError if two have the same name."""
    by_name: dict[str, Sweep] = {}
    for sweep in (Sweep(sweep.folder.resolve()) for sweep in sweeps):
        other = by_name.setdefault(sweep.name, sweep)
        if other != sweep:
            raise RunError(
                f"two sweeps are called {sweep.name}: {other.folder} and {sweep.folder}",
                shlex.join(["cp", "-r", str(sweep.folder), f"{sweep.folder}-2"]),
            )
    return list(by_name.values())


def _default_folder(tables: Sequence[SweepTable]) -> Path:
    sweep = tables[0].sweep
    if len(tables) == 1:
        return sweep.report_folder
    return (sweep.pack_folder or sweep.folder).parent / _joined_name(tables)


def _make_own(folder: Path, tables: Sequence[SweepTable]) -> None:
    """Makes the folder of the report. Raises: RunError if it or its parent is not the user's.

    In the sweep of another user, report/ may be a link to a folder of this user, which may have
    files with the same names.
    """
    _require_own(folder.parent, tables)
    with suppress(FileExistsError):
        folder.mkdir()
    _require_own(folder, tables)


def _require_own(folder: Path, tables: Sequence[SweepTable]) -> None:
    """Raises: RunError if a path is a link, is not a folder, or is another user's."""
    info = folder.lstat()
    if stat.S_ISLNK(info.st_mode):
        problem = f"is a link to {folder.readlink()}"
    elif not stat.S_ISDIR(info.st_mode):
        problem = "is not a folder"
    elif info.st_uid != os.geteuid():
        problem = f"belongs to {user_name(info.st_uid)}"
    else:
        return
    raise RunError(f"{folder} {problem}", _elsewhere(tables))


def _unwritable(folder: Path, error: OSError) -> str:
    """Returns the path that cannot be written, and why."""
    path = Path(os.fsdecode(error.filename2 or error.filename or folder))
    if path.parent == folder and not isinstance(error, IsADirectoryError):
        path = folder  # no file can be created in it
    reason = "it is not a folder" if isinstance(error, FileExistsError) else error.strerror
    return f"{path}: {reason}"


def _elsewhere(tables: Sequence[SweepTable]) -> str:
    """Returns the command that writes the report to the user's home folder."""
    sweeps = shlex.join(str(table.sweep.folder) for table in tables)
    return f"skinjob report {sweeps} --out ~/{shlex.quote(_joined_name(tables))}"


def _joined_name(tables: Sequence[SweepTable]) -> str:
    return "-".join(["report", *(table.sweep.name for table in tables)])


def _nothing_yet(tables: Sequence[SweepTable]) -> RunError:
    """Returns the error for sweeps without a usable run."""
    names = ", ".join(str(table.sweep.folder) for table in tables)
    errors = [error for table in tables for error in table.unread.values()]
    lines = findings.missing(tables)
    unread = list_first(lines[: len(errors)], MOST_NAMED, separator="; ")
    why = "; ".join(filter(None, [unread, *lines[len(errors) :]])) or "no runs"
    if errors:
        return RunError(f"{names}: no run can be counted ({why})", errors[0].fix)
    logs = [run.log_file for table in tables for run in table.sweep.runs()]
    logs.sort(key=lambda log: not log.exists())
    fix = f"tail {shlex.quote(str(logs[0]))}" if logs else "skinjob submit"
    return RunError(f"{names}: no run has finished an epoch ({why})", fix)


def _write_metrics(file: Path, tables: Sequence[SweepTable]) -> None:
    """Writes the rows of all runs below a common header; missing values are empty."""
    columns = list(dict.fromkeys(name for table in tables for name in table.columns))
    is_number = [name in METRICS and name not in TEXTS for name in columns]
    with replacing(file) as partial, partial.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(map(csv_text, columns))
        for source in (source for table in tables for source in table.files):
            places = [source.header.index(n) if n in source.header else None for n in columns]
            for row in source.texts:
                cells = ["" if place is None else row[place] for place in places]
                writer.writerow(
                    cell if number else csv_text(cell)
                    for cell, number in zip(cells, is_number, strict=True)
                )


def _write_summary(file: Path, summary: pd.DataFrame) -> None:
    with replacing(file) as partial:
        summary = summary.assign(sweep=summary["sweep"].map(csv_text))
        summary.to_csv(partial, index=False, float_format="%.6g", lineterminator="\r\n")
