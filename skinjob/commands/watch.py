"""`skinjob status`, `skinjob list` and `skinjob logs` show sweeps and runs."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import click

from skinjob.commands import status_lines
from skinjob.commands.arguments import (
    find_run,
    find_sweep,
    run_argument,
    runs_option,
    sweep_argument,
)
from skinjob.commands.help import TaskCommand
from skinjob.console import print_lines, print_unescaped, replacing_lines, say, terminal_width
from skinjob.files import absolute
from skinjob.status.status import RunStatus, SweepStatus, sweep_status
from skinjob.sweeps.records import Status


@click.command(cls=TaskCommand)
@sweep_argument
@runs_option
@click.option("--watch", is_flag=True, help="Update every 2 s until no run is waiting or running.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for other programs.")
@click.pass_context
def status(ctx: click.Context, sweep: str | None, runs: Path, watch: bool, as_json: bool) -> None:
    """Show the status of each run, and why runs failed.

    The default is the newest sweep. Exit code 0: all runs are done. 3: some are waiting or running.
    1: all have ended, and some are not done.

    \b
    Example:
      skinjob status
      skinjob status --watch
    """
    from skinjob.status.poll import watch as watch_sweep

    if watch and as_json:
        raise click.UsageError("--json prints once; it cannot be used with --watch")
    chosen = find_sweep(sweep, runs)
    last = _watch(watch_sweep(chosen)) if watch else sweep_status(chosen)
    _print_json(last) if as_json else _print_status(last, is_drawn=watch)
    ctx.exit(_exit_code(last))


def _exit_code(snapshot: SweepStatus) -> int:
    statuses = {run.status for run in snapshot.runs}
    is_over = all(status.is_final for status in statuses)
    return (0 if statuses <= {Status.DONE} else 1) if is_over else 3


def _print_status(snapshot: SweepStatus, *, is_drawn: bool) -> None:
    """Prints summary, table and failures; only the failures if the rest is on the screen."""
    width = terminal_width()
    if not is_drawn:
        lines = [
            *status_lines.summary_lines(snapshot, width),
            "",
            *status_lines.run_table(snapshot.runs, width),
        ]
        print_lines(lines, status_lines.COLOURS)
    print_lines(
        status_lines.failure_lines(snapshot.sweep, snapshot.runs, width), status_lines.COLOURS
    )


def _print_json(snapshot: SweepStatus) -> None:
    sweep = {"sweep": snapshot.sweep.name, "folder": str(absolute(snapshot.sweep.folder))}
    runs = [asdict(run) for run in snapshot.runs]
    print_unescaped(json.dumps(sweep | {"slurm": snapshot.answer, "runs": runs}, indent=2))


def _watch(snapshots: Iterable[SweepStatus]) -> SweepStatus:
    """Shows each of these snapshots of a sweep, and returns the last."""
    if sys.stdout.isatty():
        with replacing_lines(status_lines.COLOURS) as draw:
            for snapshot in snapshots:
                size = shutil.get_terminal_size()
                draw(status_lines.screen_lines(snapshot, size.columns, size.lines))
        return snapshot
    before: dict[str, RunStatus] = {}
    answer = None
    for snapshot in snapshots:  # a pipe gets a line for each change
        lines = [] if before else status_lines.summary_lines(snapshot, None)
        if before and snapshot.answer != answer and (line := status_lines.queue_line(snapshot)):
            lines.append(line)
        changes = (status_lines.change_line(before.get(run.run), run) for run in snapshot.runs)
        lines += [change for change in changes if change]
        print_lines(lines, {})
        before, answer = {run.run: run for run in snapshot.runs}, snapshot.answer
    return snapshot


@click.command("list", cls=TaskCommand)
@runs_option
def list_sweeps(runs: Path) -> None:
    """List all sweeps with recipe, status and accuracy.

    The newest sweep is the last. The accuracy is the best run's, on the test images, after its last
    epoch.

    \b
    Example:
      skinjob list
    """
    from skinjob.status.overview import overviews

    sweeps = overviews(runs)
    if not sweeps:
        say(f"no sweep in {runs}/ yet; make one: skinjob submit")
    print_lines(status_lines.overview_lines(sweeps, terminal_width()), status_lines.COLOURS)


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
    help="Number of lines to print.",
)
def logs(run: str, runs: Path, follow: bool, lines: int) -> None:
    """Print the end of a run's log, or follow it.

    After the log it prints the output of the run's job, and on stderr the run's status. RUN is a
    folder, SWEEP/RUN, or a run of the newest sweep.

    \b
    Example:
      skinjob logs bs0032-lr0.01-seed0
      skinjob logs -f my-sweep/bs0032-lr0.01-seed0
    """
    from skinjob.status.logs import log_lines

    for line, is_log in log_lines(find_run(run, runs), lines, is_following=follow):
        say(line, is_error=not is_log, keeps="\t")
