"""A report from start to end: read the sweeps, then write tables, pictures and the page."""

from __future__ import annotations

import shlex
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from skinjob.errors import RunError
from skinjob.files import replacing
from skinjob.report.findings import compare, differences, missing
from skinjob.report.page import Picture, write_page
from skinjob.report.plots import UNTRAINED, common_scale, draw_batch, draw_comparison
from skinjob.report.tables import Series, SweepTable, all_series, read_sweep, summarize
from skinjob.report.text import percent, printed
from skinjob.runs import Sweep


@dataclass(frozen=True)
class Report:
    """A report that was written, and what to print of it."""

    folder: Path
    summary: pd.DataFrame
    """One row per batch size: summary.csv."""
    columns: list[str]
    rows: list[list[str]]
    """The summary for a terminal."""
    missing: list[str]
    """A sentence for each run whose epochs are not all there."""
    notes: list[str]
    """What the numbers say, and what they do not."""
    files: list[Path]


def build_report(sweeps: Sequence[Sweep], out: Path | None = None) -> Report:
    """Writes the report of one sweep, or of several as one, and returns what it says.

    It goes to *out*, by default to the sweep's own report/ or, of several, to report-A-B beside the
    first. Files of an earlier report are replaced one by one; a viewer never sees a half of one.

    Raises: RunError when no run has finished an epoch, or a file of a sweep is damaged.
    """
    tables = [read_sweep(sweep) for sweep in _distinct(sweeps)]
    series = all_series(tables)
    lacks = _for_each(tables, missing)
    if not series:
        raise _nothing_yet(tables, lacks)
    folder = out or _default_folder(tables)
    folder.mkdir(parents=True, exist_ok=True)
    summary = summarize(series)
    notes = _notes(tables, series)
    pictures = _draw(folder, tables, series)
    _write_csv(folder / "metrics.csv", pd.concat([table.texts for table in tables]))
    _write_csv(folder / "summary.csv", summary)
    write_page(folder / "index.html", tables, summary, lacks, notes, pictures)
    files = [folder / name for name in ("metrics.csv", "summary.csv", "index.html")]
    files += [file for picture in pictures for file in picture.files]
    columns, rows = printed(summary, shutil.get_terminal_size().columns)
    warnings = [f"{UNTRAINED}."] if any(table.untrained for table in tables) else []
    return Report(folder, summary, columns, rows, lacks, [*warnings, *notes], files)


def _distinct(sweeps: Sequence[Sweep]) -> list[Sweep]:
    """Returns the sweeps without repeats. Raises: RunError when two have one name."""
    by_folder = {sweep.folder.resolve(): Sweep(sweep.folder.resolve()) for sweep in sweeps}
    by_name: dict[str, Path] = {}
    for folder, sweep in by_folder.items():
        other = by_name.setdefault(sweep.name, folder)
        if other != folder:
            raise RunError(
                f"two sweeps are called {sweep.name}: {other} and {folder}",
                f"cp -r {shlex.quote(str(folder))} {shlex.quote(str(folder) + '-2')}",
            )
    return list(by_folder.values())


def _default_folder(tables: Sequence[SweepTable]) -> Path:
    first = tables[0].sweep
    if len(tables) == 1:
        return first.report_folder
    return first.folder.parent / "-".join(["report", *(table.sweep.name for table in tables)])


def _nothing_yet(tables: Sequence[SweepTable], lacks: Sequence[str]) -> RunError:
    runs = [run for table in tables for run in table.sweep.runs()]
    logs = [run.log_file for run in runs if run.log_file.exists()] or [run.log_file for run in runs]
    names = ", ".join(str(table.sweep.folder) for table in tables)
    return RunError(
        f"{names}: no run has finished an epoch ({'; '.join(lacks) or 'no runs'})",
        f"tail {shlex.quote(str(logs[0]))}" if logs else "skinjob submit",
    )


def _notes(tables: Sequence[SweepTable], series: Sequence[Series]) -> list[str]:
    """Returns what the numbers say, sweep by sweep, after what speaks against comparing sweeps."""
    return [*differences(tables), *_for_each(tables, lambda table: _compare(table, series))]


def _compare(table: SweepTable, series: Sequence[Series]) -> list[str]:
    own = [one for one in series if one.table is table]
    return compare(own) if own else []


def _for_each(tables: Sequence[SweepTable], say: Callable[[SweepTable], list[str]]) -> list[str]:
    """Returns what is said of each sweep; with its name before it where there are several."""
    return [
        f"{table.sweep.name}: {line}" if len(tables) > 1 else line
        for table in tables
        for line in say(table)
    ]


def _draw(folder: Path, tables: Sequence[SweepTable], series: Sequence[Series]) -> list[Picture]:
    """Writes the comparison and a picture per series, all to one scale."""
    scale = common_scale(series)
    many = len(tables) > 1
    labels = [f"{s.table.sweep.name} {s.batch_size}" if many else str(s.batch_size) for s in series]
    files = draw_comparison(series, labels, scale, folder / "comparison")
    ends = ", ".join(
        f"{label}: {_final_accuracy(one)} %" for label, one in zip(labels, series, strict=True)
    )
    pictures = [
        Picture(
            "All batch sizes on the test images, by epoch and by update",
            f"Curves of test loss and test accuracy. Final test accuracy by batch size: {ends}.",
            files,
        )
    ]
    for label, one in zip(labels, series, strict=True):
        prefix = f"{one.table.sweep.name}-" if many else ""
        files = draw_batch(one, scale, folder / f"{prefix}batch-{one.batch_size:04d}")
        description = f"Curves of loss and accuracy, train and test. {_ends(one)}"
        pictures.append(Picture(f"Batch size {label}", description, files))
    return pictures


def _ends(series: Series) -> str:
    train = percent(statistics.fmean(series.final("train_accuracy")))
    test = _final_accuracy(series)
    return f"At epoch {series.epochs} accuracy is {train} % (train), {test} % (test)."


def _final_accuracy(series: Series) -> str:
    return percent(statistics.fmean(series.final("test_accuracy")))


def _write_csv(file: Path, frame: pd.DataFrame) -> None:
    with replacing(file) as partial:
        frame.to_csv(partial, index=False, float_format="%.6g", lineterminator="\r\n")
