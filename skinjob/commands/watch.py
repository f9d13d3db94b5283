"""Look at sweeps and runs: `skinjob status`, `skinjob list`, `skinjob logs`."""

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
from skinjob.sweeps.records import Status

if TYPE_CHECKING:
    from skinjob.status.status import RunStatus, SweepStatus


@click.command(cls=TaskCommand)
@sweep_argument
@runs_option
@click.option("--watch", is_flag=True, help="Look again every 2 s until no run waits or runs.")
@click.option("--json", "as_json", is_flag=True, help="Print an object for other programs.")
@click.pass_context
def status(ctx: click.Context, sweep: str | None, runs: Path, watch: bool, as_json: bool) -> None:
    """Show the status of a sweep's runs, and what ended them.

    The default is the newest sweep. Exit code 0: all runs are done. 3: some are waiting or running.
    1: none is, and some are not done.

    \b
    Example:
      skinjob status
      skinjob status --watch
    """

    from skinjob.status.poll import watch as watch_sweep
    from skinjob.status.status import sweep_status

    if watch and as_json:
        raise click.UsageError("--json prints once; it does not go with --watch")
    chosen = find_sweep(sweep, runs)
    last = _watch(watch_sweep(chosen)) if watch else sweep_status(chosen)
    _print_json(last) if as_json else _print_status(last, is_drawn=watch)
    ctx.exit(_exit_code(last))


def _exit_code(survey: SweepStatus) -> int:
    statuses = {run.status for run in survey.runs}
    is_over = all(status.is_final for status in statuses)
    return (0 if statuses <= {Status.DONE} else 1) if is_over else 3


def _print_status(survey: SweepStatus, *, is_drawn: bool) -> None:
    """Prints summary, table and failures; only the failures if the others are drawn already."""
    from skinjob.commands.standings import COLOURS, faults, summary, table

    if not is_drawn:
        lines = [*summary(survey, width()), "", *table(survey.runs, width())]
        print_lines(lines, COLOURS)
    print_lines(faults(survey.sweep, survey.runs, width()), COLOURS)


def _print_json(survey: SweepStatus) -> None:
    sweep = {"sweep": survey.sweep.name, "folder": str(absolute(survey.sweep.folder))}
    runs = [asdict(run) for run in survey.runs]
    say_as_is(json.dumps(sweep | {"slurm": survey.answer, "runs": runs}, indent=2))


def _watch(surveys: Iterable[SweepStatus]) -> SweepStatus:
    """Shows each survey of the runs, and returns the last one."""
    from skinjob.commands.standings import COLOURS, change, picture, slurm_words, summary

    if sys.stdout.isatty():
        with redrawn(COLOURS) as draw:
            for survey in surveys:
                size = shutil.get_terminal_size()
                draw(picture(survey, size.columns, size.lines))
        return survey
    before: dict[str, RunStatus] = {}
    slurm = None
    for survey in surveys:  # a pipe gets a line for each change
        lines = [] if before else summary(survey, None)
        if before and survey.answer != slurm and (words := slurm_words(survey)):
            lines.append(words)
        lines += [line for run in survey.runs if (line := change(before.get(run.run), run))]
        print_lines(lines, {})
        before, slurm = {run.run: run for run in survey.runs}, survey.answer
    return survey


@click.command("list", cls=TaskCommand)
@runs_option
def list_sweeps(runs: Path) -> None:
    """List the sweeps: recipe, status of the runs, accuracy.

    The newest is the last. The accuracy is that of the best run on the test images, after its last
    epoch.

    \b
    Example:
      skinjob list
    """
    from skinjob.commands.standings import COLOURS, overview_lines
    from skinjob.status.overview import overviews

    sweeps = overviews(runs)
    if not sweeps:
        say(f"no sweep in {runs}/ yet; make one: skinjob submit")
    print_lines(overview_lines(sweeps, width()), COLOURS)


@click.command(cls=TaskCommand)
@run_argument
@runs_option
@click.option("-f", "--follow", is_flag=True, help="Also print new lines, until the run has ended.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(min=1),
    default=40,
    show_default=True,
    help="Print that many lines.",
)
def logs(run: str, runs: Path, follow: bool, lines: int) -> None:
    """Print the end of a run's log, or follow it.

    The output of its job follows, and on stderr the status of the run. RUN is a folder, SWEEP/RUN,
    or a run of the newest sweep.

    \b
    Example:
      skinjob logs bs0032-lr0.01-seed0
      skinjob logs -f my-sweep/bs0032-lr0.01-seed0
    """
    from skinjob.status.logs import log_lines

    for line, is_log in log_lines(find_run(run, runs), lines, is_following=follow):
        say(line, is_error=not is_log, keeps="\t")
