"""The lines that `skinjob status` and `skinjob list` print: summary, tables and failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from skinjob.commands.arguments import relative_to_cwd
from skinjob.console import printable, table_lines, wrapped
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
MAX_FAILURES = 5  # a failing job takes many runs with it
NUM_LOG_LINES = 5

CELLS: Mapping[str, Callable[[RunStatus], str]] = {
    "run": lambda run: run.run,
    "status": lambda run: run.status,
    "epoch": lambda run: run.progress,
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
"""Columns that a narrow terminal leaves out, in this order."""
BY_URGENCY = ("running", "failed", "lost", "cancelled", "waiting", "done")


def counts(statuses: Iterable[Status]) -> str:
    """Returns the number of runs of each status, in words.

    >>> counts([Status.DONE, Status.WAITING, Status.DONE])
    '1 waiting, 2 done'
    """
    numbers = Counter(statuses)
    return ", ".join(f"{numbers[status]} {status}" for status in Status if numbers[status])


def summary_lines(snapshot: SweepStatus, width: int | None) -> list[str]:
    """Returns the lines above a table: the sweep, its runs by status, whether the queue answers."""
    total = f"{pluralize(len(snapshot.runs), 'run')}: {counts(run.status for run in snapshot.runs)}"
    lines = [f"sweep {relative_to_cwd(snapshot.sweep.folder)}", total, queue_line(snapshot)]
    return [part for line in lines if line for part in wrapped(line, width)]


def queue_line(snapshot: SweepStatus) -> str:
    """Returns a line that says whether the queue answers; '' if it was not asked."""
    if snapshot.answer == NOT_ASKED:
        return ""
    if snapshot.answer == ANSWERS:
        return f"{snapshot.queue} answers"
    why = f" ({printable(snapshot.words)})" if snapshot.words else ""
    return f"{snapshot.queue} {snapshot.answer}{why}: this is what the folders say"


def run_table(runs: Sequence[RunStatus], width: int | None) -> list[str]:
    """Returns a line for each run; if the table has no room for the reasons, they follow below.

    For a terminal of *width* characters it leaves out empty columns, and others if it is narrow.
    """
    cells = {name: [cell(run) for run in runs] for name, cell in CELLS.items()}
    if any(run.all_updates for run in runs):
        cells = {"update" if name == "epoch" else name: cells[name] for name in cells}
    if width is not None:
        cells = {name: column for name, column in cells.items() if {*column} != {NOTHING}}
    rows = list(zip(*cells.values(), strict=True))
    lines = table_lines(list(cells), rows, width=width, left=LEFT, drop=DROP)
    return lines if lines[0].endswith("reason") else [*lines, *_reason_lines(runs, width)]


def screen_lines(snapshot: SweepStatus, width: int, height: int) -> list[str]:
    """Returns summary and table for a terminal; if it has too few lines, the most urgent runs."""
    above, runs = [*summary_lines(snapshot, width), ""], snapshot.runs
    lines, num_free = run_table(runs, width), height - 1 - len(above)
    if len(lines) <= num_free:
        return above + lines
    runs = sorted(runs, key=lambda run: BY_URGENCY.index(run.status))
    num_shown = max(0, len(runs) - (len(lines) - num_free + 1))
    others = runs[num_shown:]
    lines = run_table(runs, width)
    more = f"and {len(others)} more: {counts(run.status for run in others)}"
    return [*above, *lines[: 1 + num_shown], more, *lines[1 + len(runs) :]]


def change_line(before: RunStatus | None, run: RunStatus) -> str | None:
    """Returns a line about a run whose status or reason has changed; None if nothing has."""
    if before and (before.status, before.reason) == (run.status, run.reason):
        return None
    accuracy = "" if run.accuracy is None else f", {_percent(run.accuracy)} accuracy"
    why = run.reason or run.note
    line = f"{utc_now()} {run.run} {run.status}, {run.progress_words}{accuracy}"
    return f"{line}: {why}" if why else line


def _reason_lines(runs: Sequence[RunStatus], width: int | None) -> list[str]:
    """Returns each reason for a status, with the number of runs that have it."""
    numbers = Counter((run.status, run.note) for run in runs if run.note)
    lines = [f"{number} {status}: {note}" for (status, note), number in numbers.items()]
    parts = [part for line in lines for part in wrapped(line, width)]
    return ["", *parts] if parts else []


def failure_lines(sweep: Sweep, runs: Sequence[RunStatus], width: int | None) -> list[str]:
    """Returns why runs failed and how to fix it, once for all runs of the same job.

    It leaves out runs that the user cancelled: they have no reason.
    """
    groups: dict[tuple[str | None, ...], list[RunStatus]] = {}
    for run in runs:
        if run.reason or run.status in (Status.FAILED, Status.LOST):
            groups.setdefault((run.status, run.failure, run.job or run.run), []).append(run)
    lines = []
    for group in list(groups.values())[:MAX_FAILURES]:
        lines += ["", *_failure(sweep, group, width)]
    num_more = sum(map(len, list(groups.values())[MAX_FAILURES:]))
    return [*lines, "", f"and {num_more} more: skinjob logs RUN"] if num_more else lines


def _failure(sweep: Sweep, group: Sequence[RunStatus], width: int | None) -> list[str]:
    run, num_more = group[0], len(group) - 1
    others = f" and {num_more} more of its job" if num_more else ""
    lines = [f"{run.run}{others}: {run.failure or run.status}"]
    lines += wrapped(run.reason or "it does not say why", width, indent="  ")
    for file, log in last_words(Run(sweep.folder / run.run), run.job, NUM_LOG_LINES):
        lines += [f"  {relative_to_cwd(file)}:", *(f"  | {line}" for line in log)]
    return [*lines, f"  fix: {run.fix}"] if run.fix else lines


def overview_lines(sweeps: Sequence[Overview], width: int | None) -> list[str]:
    """Returns a line for each sweep, and below the errors of folders that cannot be read.

    A narrow terminal gets fewer columns; a very narrow one gets two lines for each sweep.
    """
    if not sweeps:
        return []
    names = ("sweep", "made (UTC)", "recipe", "runs", "accuracy")
    rows = [_overview_row(sweep) for sweep in sweeps]
    drop = ("recipe", "made (UTC)", "accuracy")
    lines = table_lines(names, rows, width=width, left=names[:-1], drop=drop)
    if width is not None and max(map(len, lines)) > width:
        lines = []
        for name, _, _, runs, _ in rows:
            lines += [printable(name), *wrapped(runs, width, indent="  ")]
    errors = [line for sweep in sweeps if sweep.error for line in wrapped(sweep.error, width)]
    return [*lines, "", *errors] if errors else lines


def _overview_row(sweep: Overview) -> tuple[str, ...]:
    made = sweep.created_utc[:16].replace("T", " ")
    runs = "does not read" if sweep.error else counts(sweep.statuses)
    cells = (sweep.name, made, sweep.recipe, runs, _percent(sweep.accuracy))
    return tuple(cell or NOTHING for cell in cells)


def _percent(fraction: float | None) -> str:
    return NOTHING if fraction is None else f"{fraction:.1%}"
