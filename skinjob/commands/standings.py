"""The lines of `skinjob status` and `skinjob list`: a summary, tables, and what went wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from skinjob.commands.arguments import typed
from skinjob.console import shown, table_lines, wrapped
from skinjob.status.failures import last_words
from skinjob.status.overview import Overview
from skinjob.status.status import ANSWERS, NOT_ASKED, RunStatus, SweepStatus
from skinjob.sweeps.layout import Run, Sweep
from skinjob.sweeps.records import Status, utc_now
from skinjob.words import clock, pluralize

NOTHING = "-"
COLOURS = {
    "running": "cyan",
    "done": "green",
    "failed": "red",
    "lost": "red",
    "cancelled": "yellow",
    "waiting": "bold",
}
MOST_FAILURES = 5  # one failing job takes many runs with it
NUM_LOG_LINES = 5

CELLS: Mapping[str, Callable[[RunStatus], str]] = {
    "run": lambda run: run.run,
    "status": lambda run: run.status,
    "epoch": lambda run: f"{run.epoch}/{run.epochs}",
    "accuracy": lambda run: _percent(run.accuracy),
    "images/s": lambda run: NOTHING if run.images_per_s is None else f"{run.images_per_s:.0f}",
    "left": lambda run: NOTHING if run.left_s is None else clock(run.left_s),
    "node": lambda run: run.node or NOTHING,
    "job": lambda run: run.job or NOTHING,
    "requeues": lambda run: str(run.requeues or NOTHING),
    "reason": lambda run: run.note or NOTHING,
}
LEFT = ("run", "status", "node", "job", "reason")
DROP = ("reason", "job", "requeues", "images/s", "node", "left", "accuracy")
"""Columns that a narrow terminal does without, the first first."""
URGENT = ("running", "failed", "lost", "cancelled", "waiting", "done")


def counts(statuses: Iterable[Status]) -> str:
    """Returns how many there are of each status.

    >>> counts([Status.DONE, Status.WAITING, Status.DONE])
    '1 waiting, 2 done'
    """
    numbers = Counter(statuses)
    return ", ".join(f"{numbers[status]} {status}" for status in Status if numbers[status])


def summary(survey: SweepStatus, width: int | None) -> list[str]:
    """Returns the lines above a table: the sweep, its runs by status, and whether SLURM answers."""
    total = f"{pluralize(len(survey.runs), 'run')}: {counts(run.status for run in survey.runs)}"
    lines = [f"sweep {typed(survey.sweep.folder)}", total, slurm_words(survey)]
    return [part for line in lines if line for part in wrapped(line, width)]


def slurm_words(survey: SweepStatus) -> str:
    """Returns whether the queue answers, in a line; nothing if it was not asked."""
    if survey.answer == NOT_ASKED:
        return ""
    if survey.answer == ANSWERS:
        return f"{survey.queue} answers"
    why = f" ({shown(survey.words)})" if survey.words else ""
    return f"{survey.queue} {survey.answer}{why}: this is what the folders say"


def table(runs: Sequence[RunStatus], width: int | None) -> list[str]:
    """Returns a line for each run, and below why some wait if the table has no room for that.

    A terminal of *width* characters gets no empty columns, and fewer columns if it is narrow.
    """
    cells = {name: [cell(run) for run in runs] for name, cell in CELLS.items()}
    if width is not None:
        cells = {name: column for name, column in cells.items() if {*column} != {NOTHING}}
    rows = list(zip(*cells.values(), strict=True))
    lines = table_lines(list(cells), rows, width=width, left=LEFT, drop=DROP)
    return lines if lines[0].endswith("reason") else [*lines, *_reasons(runs, width)]


def picture(survey: SweepStatus, width: int, height: int) -> list[str]:
    """Returns summary and table for a terminal; if it is too low, the most urgent runs."""
    above, runs = [*summary(survey, width), ""], survey.runs
    lines, num_free = table(runs, width), height - 1 - len(above)
    if len(lines) <= num_free:
        return above + lines
    runs = sorted(runs, key=lambda run: URGENT.index(run.status))
    num_shown = max(0, len(runs) - (len(lines) - num_free + 1))
    others = runs[num_shown:]
    lines = table(runs, width)
    more = f"and {len(others)} more: {counts(run.status for run in others)}"
    return [*above, *lines[: 1 + num_shown], more, *lines[1 + len(runs) :]]


def change(before: RunStatus | None, run: RunStatus) -> str | None:
    """Returns what is new of a run, in a line; None if nothing is."""
    if before and (before.status, before.reason) == (run.status, run.reason):
        return None
    accuracy = "" if run.accuracy is None else f", {_percent(run.accuracy)} accuracy"
    why = run.reason or run.note
    line = f"{utc_now()} {run.run} {run.status}, epoch {run.epoch}/{run.epochs}{accuracy}"
    return f"{line}: {why}" if why else line


def _reasons(runs: Sequence[RunStatus], width: int | None) -> list[str]:
    """Returns each reason for a status, with the number of runs that have it."""
    numbers = Counter((run.status, run.note) for run in runs if run.note)
    lines = [f"{number} {status}: {note}" for (status, note), number in numbers.items()]
    parts = [part for line in lines for part in wrapped(line, width)]
    return ["", *parts] if parts else []


def faults(sweep: Sweep, runs: Sequence[RunStatus], width: int | None) -> list[str]:
    """Returns what is wrong with runs and how to fix it, once for all runs of a failed job.

    It leaves out runs that the user cancelled, which have no reason.
    """
    groups: dict[tuple[str | None, ...], list[RunStatus]] = {}
    for run in runs:
        if run.reason or run.status in (Status.FAILED, Status.LOST):
            groups.setdefault((run.status, run.failure, run.job or run.run), []).append(run)
    lines = []
    for group in list(groups.values())[:MOST_FAILURES]:
        lines += ["", *_failure(sweep, group, width)]
    num_more = sum(map(len, list(groups.values())[MOST_FAILURES:]))
    return [*lines, "", f"and {num_more} more: skinjob logs RUN"] if num_more else lines


def _failure(sweep: Sweep, group: Sequence[RunStatus], width: int | None) -> list[str]:
    run, num_more = group[0], len(group) - 1
    others = f" and {num_more} more of its job" if num_more else ""
    lines = [f"{run.run}{others}: {run.failure or run.status}"]
    lines += wrapped(run.reason or "it does not say why", width, indent="  ")
    for file, log in last_words(Run(sweep.folder / run.run), run.job, NUM_LOG_LINES):
        lines += [f"  {typed(file)}:", *(f"  | {line}" for line in log)]
    return [*lines, f"  fix: {run.fix}"] if run.fix else lines


def overview_lines(sweeps: Sequence[Overview], width: int | None) -> list[str]:
    """Returns a line for each sweep, and below what is wrong with the folders of some.

    A narrow terminal gets fewer columns, at last a line with each name and one with its runs.
    """
    if not sweeps:
        return []
    names = ("sweep", "made (UTC)", "recipe", "runs", "accuracy")
    rows = [_overview_row(sweep) for sweep in sweeps]
    drop = ("recipe", "made (UTC)", "accuracy")
    lines = table_lines(names, rows, width=width, left=names[:-1], drop=drop)
    if width is not None and max(map(len, lines)) > width:
        pairs = [(shown(name), wrapped(runs, width, indent="  ")) for name, _, _, runs, _ in rows]
        lines = [line for name, runs in pairs for line in (name, *runs)]
    errors = [line for sweep in sweeps if sweep.error for line in wrapped(sweep.error, width)]
    return [*lines, "", *errors] if errors else lines


def _overview_row(sweep: Overview) -> tuple[str, ...]:
    made = sweep.created_utc[:16].replace("T", " ")
    runs = "does not read" if sweep.error else counts(sweep.statuses)
    cells = (sweep.name, made, sweep.recipe, runs, _percent(sweep.accuracy))
    return tuple(cell or NOTHING for cell in cells)


def _percent(fraction: float | None) -> str:
    return NOTHING if fraction is None else f"{fraction:.1%}"
