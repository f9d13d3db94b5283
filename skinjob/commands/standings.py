"""How runs stand, in lines: a summary, a table that fits, why runs wait, what ended them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from skinjob.commands.arguments import typed
from skinjob.console import counted, shown, table_lines, wrapped
from skinjob.status.failures import last_words
from skinjob.status.overview import Overview
from skinjob.status.status import ANSWERS, NOT_ASKED, STATES, Standing, Survey
from skinjob.sweeps.layout import BY_YOU, Run, Sweep, utc_now
from skinjob.words import clock

NOTHING = "-"
COLOURS = {
    "running": "cyan",
    "done": "green",
    "failed": "red",
    "lost": "red",
    "cancelled": "yellow",
    "waiting": "bold",
}
MOST_TOLD = 5  # faults told one by one; a job that fails takes many runs along
LINES_TOLD = 5  # of a log

CELLS: Mapping[str, Callable[[Standing], str]] = {
    "run": lambda one: one.run,
    "state": lambda one: one.state,
    "epoch": lambda one: f"{one.epoch}/{one.epochs}",
    "accuracy": lambda one: NOTHING if one.accuracy is None else f"{one.accuracy:.1%}",
    "images/s": lambda one: NOTHING if one.images_per_s is None else f"{one.images_per_s:.0f}",
    "left": lambda one: NOTHING if one.left_s is None else clock(one.left_s),
    "node": lambda one: one.node or NOTHING,
    "job": lambda one: one.job or NOTHING,
    "requeues": lambda one: str(one.requeues) if one.requeues else NOTHING,
    "reason": lambda one: one.reason or NOTHING,
}
WORDS = ("run", "state", "node", "job", "reason")
URGENT = ("running", "failed", "lost", "cancelled", "waiting", "done")
FIRST_TO_GO = ("reason", "job", "requeues", "images/s", "node", "left", "accuracy")


def counts(states: Iterable[str]) -> str:
    """Returns how many there are of each state.

    >>> counts(["done", "waiting", "done"])
    '1 waiting, 2 done'
    """
    found = Counter(states)
    return ", ".join(f"{found[state]} {state}" for state in STATES if found[state])


def summary(found: Survey, width: int | None) -> list[str]:
    """Returns the lines above a table: which sweep, its runs by state, and whether SLURM spoke."""
    told = f"{counted(len(found.runs), 'run')}: {counts(one.state for one in found.runs)}"
    lines = [f"sweep {typed(found.sweep.folder)}", told, slurm_words(found)]
    return [part for line in lines if line for part in wrapped(line, width)]


def slurm_words(found: Survey) -> str:
    """Returns whether SLURM answers, in a line; nothing where it was not asked."""
    if found.slurm == NOT_ASKED:
        return ""
    if found.slurm == ANSWERS:
        return "SLURM answers"
    why = f" ({shown(found.words)})" if found.words else ""
    return f"SLURM {found.slurm}{why}: this is what the folders say"


def table(runs: Sequence[Standing], width: int | None) -> list[str]:
    """Returns a line for each run, of no more than *width* characters, and why some wait.

    Of columns that do not fit the least important go first; why runs wait is below then, once for
    all that wait for the same. Without a width all columns are there, for other programs to read.
    """
    rows = {name: [shown(cell(one)) for one in runs] for name, cell in CELLS.items()}
    names = list(CELLS)
    if width is not None:
        names = [name for name in names if any(cell != NOTHING for cell in rows[name])]
        for name in FIRST_TO_GO:
            if _width(names, rows) <= width:
                break
            names = [other for other in names if other != name]
    lines = table_lines(names, list(zip(*(rows[name] for name in names), strict=True)), words=WORDS)
    return lines if "reason" in names else [*lines, *_reasons(runs, width)]


def picture(found: Survey, width: int, height: int) -> list[str]:
    """Returns summary and table for a terminal; of runs that do not fit those at work go first."""
    above, runs = [*summary(found, width), ""], found.runs
    lines, room = table(runs, width), height - 1 - len(above)
    if len(lines) <= room:
        return above + lines
    runs = sorted(runs, key=lambda one: URGENT.index(one.state))
    num_shown = max(0, len(runs) - (len(lines) - room + 1))
    rest = f"and {len(runs) - num_shown} more: {counts(one.state for one in runs[num_shown:])}"
    lines = table(runs, width)
    return [*above, *lines[: 1 + num_shown], rest, *lines[1 + len(runs) :]]


def change(before: Standing | None, one: Standing) -> str | None:
    """Returns what is new of a run, in a line; None when it stands as before."""
    if before and (before.state, before.error) == (one.state, one.error):
        return None
    accuracy = "" if one.accuracy is None else f", {CELLS['accuracy'](one)} accuracy"
    why = one.error or one.reason
    told = f"{utc_now()} {one.run} {one.state}, epoch {one.epoch}/{one.epochs}{accuracy}"
    return f"{told}: {why}" if why else told


def _width(names: Sequence[str], rows: Mapping[str, Sequence[str]]) -> int:
    """Returns the width of a table with these columns."""
    return sum(max(map(len, [name, *rows[name]])) + 2 for name in names) - 2


def _reasons(runs: Sequence[Standing], width: int | None) -> list[str]:
    """Returns why runs stand so, once for all that do for the same reason."""
    found = Counter((one.state, one.reason) for one in runs if one.reason not in ("", one.state))
    lines = [f"{count} {state}: {reason}" for (state, reason), count in found.items()]
    parts = [part for line in lines for part in wrapped(line, width)]
    return ["", *parts] if parts else []


def faults(sweep: Sweep, runs: Sequence[Standing], width: int | None) -> list[str]:
    """Returns what is wrong with runs and what to do, once for all runs that one job took along."""
    groups: dict[tuple[str | None, ...], list[Standing]] = {}
    for one in runs:
        if one.error == BY_YOU:
            continue  # who cancelled a run knows why, and the table has it
        if one.error or one.state in ("failed", "cancelled", "lost"):
            groups.setdefault((one.state, one.fault, one.job or one.run), []).append(one)
    lines = []
    for group in list(groups.values())[:MOST_TOLD]:
        lines += ["", *_fault(sweep, group, width)]
    rest = sum(map(len, list(groups.values())[MOST_TOLD:]))
    return [*lines, "", f"and {rest} more: skinjob logs RUN"] if rest else lines


def _fault(sweep: Sweep, group: Sequence[Standing], width: int | None) -> list[str]:
    one, more = group[0], len(group) - 1
    others = f" and {more} more of its job" if more else ""
    lines = [f"{one.run}{others}: {one.fault or one.state}"]
    lines += wrapped(one.error or "it does not say why", width, indent="  ")
    for file, said in last_words(Run(sweep.folder / one.run), one.job, LINES_TOLD):
        lines += [f"  {typed(file)}:", *(f"  | {line}" for line in said)]
    return [*lines, f"  fix: {one.fix}"] if one.fix else lines


def overview_lines(sweeps: Sequence[Overview], width: int | None) -> list[str]:
    """Returns a line for each sweep, and below what is wrong with the folders of some.

    Of columns that do not fit the recipe goes first, then when it was made; in a terminal too
    narrow for a name and its runs, these have a line each.
    """
    if not sweeps:
        return []
    rows = [tuple(map(shown, _overview_cells(one))) for one in sweeps]
    names = ["sweep", "made (UTC)", "recipe", "runs", "accuracy"]
    cells = {name: [row[number] for row in rows] for number, name in enumerate(names)}
    for name in ("recipe", "made (UTC)", "accuracy"):
        if width is None or _width(names, cells) <= width:
            break
        names.remove(name)
    lines = table_lines(
        names, list(zip(*(cells[name] for name in names), strict=True)), words=names[:-1]
    )
    if width is not None and _width(names, cells) > width:
        pairs = zip(cells["sweep"], cells["runs"], strict=True)
        lines = [
            line for name, told in pairs for line in (name, *wrapped(told, width, indent="  "))
        ]
    bad = [line for one in sweeps if one.error for line in wrapped(one.error, width)]
    return [*lines, "", *bad] if bad else lines


def _overview_cells(one: Overview) -> tuple[str, ...]:
    accuracy = NOTHING if one.accuracy is None else f"{one.accuracy:.1%}"
    made = one.created_utc[:16].replace("T", " ")
    told = "does not read" if one.error else counts(one.states)
    return one.name, made or NOTHING, one.recipe or NOTHING, told or NOTHING, accuracy
