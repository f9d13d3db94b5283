"""A report from start to end: read the sweeps, then write tables, pictures and the page."""

from __future__ import annotations

import csv
import errno
import os
import shlex
import shutil
import stat
import statistics
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from skinjob.console import PIPE_WIDTH, shown, width
from skinjob.errors import RunError
from skinjob.files import csv_text, replacing
from skinjob.ownership import user_name
from skinjob.report.findings import (
    compare_by_lr,
    differences,
    missing,
    skipped,
    unread,
    weights_notice,
)
from skinjob.report.page import Picture, write_page
from skinjob.report.plots import Scale, common_scale, draw_batch, draw_comparison
from skinjob.report.tables import (
    TEXTS,
    Series,
    SweepTable,
    all_series,
    by_lr,
    read_sweep,
    summarize,
)
from skinjob.report.text import percent, printed
from skinjob.sweeps.layout import METRICS, Sweep

MOST_LINES = 8  # in a comparison; of more, the eye finds none again in the legend
MOST_TOLD = 5  # runs that an error names


@dataclass(frozen=True)
class Report:
    """A report that was written, and what to print of it."""

    folder: Path
    notice: str
    """A sentence to read before any number; empty for fetched weights."""
    summary: pd.DataFrame
    """One row per batch size and lr: summary.csv."""
    columns: list[str]
    rows: list[list[str]]
    """The summary for a terminal."""
    missing: list[str]
    """A sentence for each run that cannot be read, then for each whose epochs are not all there."""
    notes: list[str]
    """What the numbers say, and what they do not."""
    files: list[Path]


def build_report(sweeps: Sequence[Sweep], out: Path | None = None) -> Report:
    """Writes the report of one sweep, or of several as one, and returns what it says.

    It goes to *out*, by default to the sweep's own report/ or, of several, to report-A-B beside the
    first, which have to be the user's own and no link. Files of an earlier report are replaced one
    by one; a viewer never sees a half of one. A run that cannot be read counts as missing.

    Raises: RunError when no run that can be read has finished an epoch, or the folder is somebody
    else's or cannot be written; OSError when the disk is full.
    """
    tables = [read_sweep(sweep) for sweep in _distinct(sweeps)]
    series = all_series(tables)
    if not series:
        raise _nothing_yet(tables)
    lacks = [*_for_each(tables, unread), *_for_each(tables, missing)]
    folder = out or _default_folder(tables)
    try:
        if out:
            out.mkdir(parents=True, exist_ok=True)
        else:
            _make_own(folder, tables)
        return _written(folder, tables, series, lacks)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunError(_unwritable(folder, error), _elsewhere(tables)) from None


def _written(
    folder: Path, tables: Sequence[SweepTable], series: Sequence[Series], lacks: list[str]
) -> Report:
    """Writes every file of the report, and returns what it says."""
    summary = summarize(series)
    notice, notes = weights_notice(tables), _notes(tables, series)
    comparisons, batches = _draw(folder, tables, series)
    _write_metrics(folder / "metrics.csv", tables)
    _write_summary(folder / "summary.csv", summary)
    write_page(folder / "index.html", tables, notice, summary, lacks, notes, comparisons, batches)
    files = [folder / name for name in ("metrics.csv", "summary.csv", "index.html")]
    for picture in (*comparisons, *batches):
        files += [*picture.files, *picture.copies]
    columns, rows = printed(summary, width() or PIPE_WIDTH)
    return Report(folder, notice, summary, columns, rows, lacks, notes, files)


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
    return first.folder.parent / _joined_name(tables)


def _make_own(folder: Path, tables: Sequence[SweepTable]) -> None:
    """Makes the report's folder. Raises: RunError where it, or what it is in, is not the user's.

    In a stranger's sweep, report/ may be a link to a folder of the user's, with files of the same
    names.
    """
    _require_own(folder.parent, tables)
    with suppress(FileExistsError):
        folder.mkdir()
    _require_own(folder, tables)


def _require_own(folder: Path, tables: Sequence[SweepTable]) -> None:
    """Raises: RunError when a folder is a link, no folder, or another user's."""
    seen = folder.lstat()
    if stat.S_ISLNK(seen.st_mode):
        problem = f"is a link to {folder.readlink()}"
    elif not stat.S_ISDIR(seen.st_mode):
        problem = "is not a folder"
    elif seen.st_uid != os.geteuid():
        problem = f"belongs to {user_name(seen.st_uid)}"
    else:
        return
    raise RunError(f"{folder} {problem}", _elsewhere(tables))


def _unwritable(folder: Path, fault: OSError) -> str:
    """Returns which path could not be written, and why."""
    path = Path(os.fsdecode(fault.filename2 or fault.filename or folder))
    if path.parent == folder and not isinstance(fault, IsADirectoryError):
        path = folder  # it is the folder that takes no file
    reason = "it is not a folder" if isinstance(fault, FileExistsError) else fault.strerror
    return f"{path}: {reason}"


def _elsewhere(tables: Sequence[SweepTable]) -> str:
    """Returns the command that writes the report to the user's home folder."""
    sweeps = shlex.join(str(table.sweep.folder) for table in tables)
    return f"skinjob report {sweeps} --out ~/{shlex.quote(_joined_name(tables))}"


def _joined_name(tables: Sequence[SweepTable]) -> str:
    return "-".join(["report", *(table.sweep.name for table in tables)])


def _nothing_yet(tables: Sequence[SweepTable]) -> RunError:
    names = ", ".join(str(table.sweep.folder) for table in tables)
    faults = [fault for table in tables for fault in table.unread.values()]
    damaged, lacks = _for_each(tables, unread), _for_each(tables, missing)
    if len(damaged) > MOST_TOLD:
        damaged[MOST_TOLD:] = [f"and {len(damaged) - MOST_TOLD} more"]
    why = "; ".join([*damaged, *lacks]) or "no runs"
    if faults:
        return RunError(f"{names}: no run can be counted ({why})", faults[0].fix)
    runs = [run for table in tables for run in table.sweep.runs()]
    logs = [run.log_file for run in runs if run.log_file.exists()] or [run.log_file for run in runs]
    return RunError(
        f"{names}: no run has finished an epoch ({why})",
        f"tail {shlex.quote(str(logs[0]))}" if logs else "skinjob submit",
    )


def _notes(tables: Sequence[SweepTable], series: Sequence[Series]) -> list[str]:
    """Returns what the numbers say, sweep by sweep, after what speaks against comparing sweeps."""
    return [
        *differences(tables),
        *_for_each(tables, skipped),
        *_for_each(tables, lambda table: _compare(table, series)),
    ]


def _compare(table: SweepTable, series: Sequence[Series]) -> list[str]:
    own = [one for one in series if one.table is table]
    return compare_by_lr(own) if own else []


def _for_each(tables: Sequence[SweepTable], say: Callable[[SweepTable], list[str]]) -> list[str]:
    """Returns what is said of each sweep; with its name before it where there are several."""
    return [
        f"{table.sweep.name}: {line}" if len(tables) > 1 else line
        for table in tables
        for line in say(table)
    ]


def _draw(
    folder: Path, tables: Sequence[SweepTable], series: Sequence[Series]
) -> tuple[list[Picture], list[Picture]]:
    """Writes the comparisons and a picture per series, all to one scale, and returns both."""
    scale = common_scale(series)
    labels, stems = _names(tables, series)
    batches = []
    for label, stem, one in zip(labels, stems, series, strict=True):
        files = draw_batch(one, scale, folder / stem)
        description = f"Curves of loss and accuracy, train and test. {_ends(one)}"
        batches.append(Picture(f"Batch size {label}", description, files))
    return _compared(folder, series, labels, scale), batches


def _names(tables: Sequence[SweepTable], series: Sequence[Series]) -> tuple[list[str], list[str]]:
    """Returns each series' label and file name: of sweep, batch size and lr what tells it apart."""
    many_sweeps, many_lrs = len(tables) > 1, len(by_lr(series)) > 1
    labels, stems = [], []
    for one in series:
        sweep = one.table.sweep.name
        label, stem = f"{one.batch_size}", f"batch-{one.batch_size:04d}"
        if many_sweeps:
            label, stem = f"{shown(sweep)} {label}", f"{sweep}-{stem}"
        if many_lrs:
            label, stem = f"{label}, lr {one.lr!r}", f"{stem}-lr{one.lr!r}"
        labels.append(label)
        stems.append(stem)
    return labels, stems


def _compared(
    folder: Path, series: Sequence[Series], labels: Sequence[str], scale: Scale
) -> list[Picture]:
    """Writes the comparison; of more series than one picture holds, one for each lr.

    comparison.* is then a copy of the one for the best lr, which comes first.
    """
    parts = by_lr(series)
    if len(series) <= MOST_LINES or len(parts) in (1, len(series)):
        what = "All batch sizes" if len(parts) == 1 else "All batch sizes and learning rates"
        return [_comparison(folder / "comparison", what, series, labels, scale)]
    pictures = {}
    for lr, own in parts.items():
        stem, what = folder / f"comparison-lr{lr!r}", f"All batch sizes with lr {lr!r}"
        own_labels = [label for label, one in zip(labels, series, strict=True) if one.lr == lr]
        pictures[lr] = _comparison(stem, what, own, own_labels, scale)
    best = max(parts, key=lambda lr: _mean_accuracy(parts[lr]))
    first = pictures.pop(best)
    why = (
        f"{first.caption}. Of {len(parts)} lrs this one has the highest mean accuracy at the last "
        "epoch, found by looking at these very test images; comparison.png is the same picture"
    )
    copies = [_copied(file, folder / f"comparison{file.suffix}") for file in first.files]
    return [replace(first, caption=why, copies=copies), *pictures.values()]


def _comparison(
    stem: Path, what: str, series: Sequence[Series], labels: Sequence[str], scale: Scale
) -> Picture:
    files = draw_comparison(series, labels, scale, stem)
    ends = ", ".join(
        f"{label}: {_final_accuracy(one)} %" for label, one in zip(labels, series, strict=True)
    )
    return Picture(
        f"{what} on the test images, by epoch and by update",
        f"Curves of test loss and test accuracy. Final test accuracy by batch size: {ends}.",
        files,
    )


def _copied(file: Path, copy: Path) -> Path:
    with replacing(copy) as partial:
        shutil.copyfile(file, partial)
    return copy


def _mean_accuracy(series: Sequence[Series]) -> float:
    return statistics.fmean(statistics.fmean(one.final("test_accuracy")) for one in series)


def _ends(series: Series) -> str:
    train = percent(statistics.fmean(series.final("train_accuracy")))
    test = _final_accuracy(series)
    return f"At epoch {series.epochs} accuracy is {train} % (train), {test} % (test)."


def _final_accuracy(series: Series) -> str:
    return percent(_mean_accuracy([series]))


def _write_metrics(file: Path, tables: Sequence[SweepTable]) -> None:
    with replacing(file) as partial, partial.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(METRICS)
        for table in tables:
            for row in table.texts:
                cells = zip(METRICS, row, strict=True)
                writer.writerow([csv_text(t) if name in TEXTS else t for name, t in cells])


def _write_summary(file: Path, summary: pd.DataFrame) -> None:
    with replacing(file) as partial:
        summary = summary.assign(sweep=summary["sweep"].map(csv_text))
        summary.to_csv(partial, index=False, float_format="%.6g", lineterminator="\r\n")
