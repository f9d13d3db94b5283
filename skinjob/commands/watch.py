"""What became of sweeps: `skinjob status`, `skinjob list`, `skinjob logs`."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from skinjob.commands.arguments import (
    find_run,
    find_sweep,
    run_argument,
    runs_option,
    sweep_argument,
)
from skinjob.commands.help import TaskCommand
from skinjob.console import print_lines, redrawn, say, say_as_is, width
from skinjob.files import absolute

if TYPE_CHECKING:
    from skinjob.status.status import Standing, Survey


@click.command(cls=TaskCommand)
@sweep_argument
@runs_option
@click.option("--watch", is_flag=True, help="Look again every 2 s until no run waits or runs.")
@click.option("--json", "as_json", is_flag=True, help="Print an object for other programs.")
@click.pass_context
def status(ctx: click.Context, sweep: str | None, runs: Path, watch: bool, as_json: bool) -> None:
    """Show how the runs of a sweep stand, and what ended them.

    Without a SWEEP the newest is meant. Exit code 0: all are done; 3: some wait or are at work;
    1: some failed and no other is left.

    \b
    Example:
      skinjob status
      skinjob status --watch
    """
    from skinjob.status.poll import surveys
    from skinjob.status.status import survey

    if watch and as_json:
        raise click.UsageError("--json is one look; with --watch there are many")
    chosen = find_sweep(sweep, runs)
    found = _watched(surveys(chosen)) if watch else survey(chosen)
    _print_json(found) if as_json else _print_status(found, is_drawn=watch)
    ctx.exit(_exit_code(found))


def _exit_code(found: Survey) -> int:
    from skinjob.status.status import OPEN

    states = {one.state for one in found.runs}
    return 3 if states & set(OPEN) else 0 if states <= {"done"} else 1


def _print_status(found: Survey, *, is_drawn: bool) -> None:
    """Prints summary, table and faults; of what *is_drawn* already the faults alone."""
    from skinjob.commands.standings import COLOURS, faults, summary, table

    if not is_drawn:
        lines = [*summary(found, width()), "", *table(found.runs, width())]
        print_lines(lines, COLOURS)
    print_lines(faults(found.sweep, found.runs, width()), COLOURS)


def _print_json(found: Survey) -> None:
    sweep = {"sweep": found.sweep.name, "folder": str(absolute(found.sweep.folder))}
    runs = [asdict(one) for one in found.runs]
    say_as_is(json.dumps(sweep | {"slurm": found.slurm, "runs": runs}, indent=2))


def _watched(looks: Iterable[Survey]) -> Survey:
    """Shows how runs stand while they go on, and returns how they stand at the end."""
    return _redrawn(looks) if sys.stdout.isatty() else _told(looks)


def _redrawn(looks: Iterable[Survey]) -> Survey:
    from skinjob.commands.standings import COLOURS, picture

    with redrawn(COLOURS) as draw:
        for found in looks:
            size = shutil.get_terminal_size()
            draw(picture(found, size.columns, size.lines))
    return found


def _told(looks: Iterable[Survey]) -> Survey:
    """Prints a line for each change, for a pipe."""
    from skinjob.commands.standings import change, slurm_words, summary

    before: dict[str, Standing] = {}
    slurm = None
    for found in looks:
        lines = [] if before else summary(found, None)
        if before and found.slurm != slurm and (words := slurm_words(found)):
            lines.append(words)
        lines += [line for one in found.runs if (line := change(before.get(one.run), one))]
        print_lines(lines, {})
        before, slurm = {one.run: one for one in found.runs}, found.slurm
    return found


@click.command("list", cls=TaskCommand)
@runs_option
def list_sweeps(runs: Path) -> None:
    """List the sweeps: of what, how they stand, how well they do.

    The newest is the last. The accuracy is the best that a run of the sweep had on the test
    images after its last epoch.

    \b
    Example:
      skinjob list
    """
    from skinjob.commands.standings import COLOURS, overview_lines
    from skinjob.status.overview import overviews

    found = overviews(runs)
    if not found:
        say(f"no sweep in {runs}/ yet; make one: skinjob submit")
    print_lines(overview_lines(found, width()), COLOURS)


@click.command(cls=TaskCommand)
@run_argument
@runs_option
@click.option(
    "-f", "--follow", is_flag=True, help="Go on with what is new, until the run has ended."
)
@click.option(
    "-n", "--lines", type=click.IntRange(min=1), default=40, show_default=True, help="Last lines."
)
def logs(run: str, runs: Path, follow: bool, lines: int) -> None:
    """Print the end of a run's log, or follow it.

    What else its job has said comes next, and on stderr how the run stands. RUN is a folder,
    SWEEP/RUN, or a run of the newest sweep.

    \b
    Example:
      skinjob logs bs0032-lr0.01-seed0
      skinjob logs -f my-sweep/bs0032-lr0.01-seed0
    """
    from skinjob.status.logs import log_lines

    for line, is_log in log_lines(find_run(run, runs), lines, is_following=follow):
        say(line, is_error=not is_log, keeps="\t")
