"""What became of a sweep: `skinjob status`."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from skinjob.commands.arguments import newest, runs_option, typed
from skinjob.commands.help import TaskCommand
from skinjob.console import print_table
from skinjob.runs import Run, Sweep

if TYPE_CHECKING:
    from skinjob.submit.state import Standing

MOST_TOLD = 5  # faults told one by one; a job that fails takes many runs along
LINES_TOLD = 5  # of a log


@click.command(cls=TaskCommand)
@click.argument("sweep", required=False, type=click.Path(path_type=Path))
@runs_option
@click.pass_context
def status(ctx: click.Context, sweep: Path | None, runs: Path) -> None:
    """Show how the runs of a sweep stand, by default the newest, and what ended those that failed.

    Exit code 0: all are done; 3: some wait or are at work; 1: some failed and no other is left.

    \b
    Example:
      skinjob status
      skinjob status runs/my-sweep
    """
    from skinjob.submit.state import standings

    chosen = Sweep(sweep) if sweep else newest(runs)
    found = standings(chosen)
    _print_standings(found)
    _print_faults(chosen, found)
    states = {one.state for one in found}
    ctx.exit(3 if states & {"queued", "running"} else 0 if states <= {"done"} else 1)


def _print_standings(found: Sequence[Standing]) -> None:
    """Prints a line for each run; the jobs are left out where the terminal is narrow."""
    is_narrow = sys.stdout.isatty() and shutil.get_terminal_size().columns < 80
    columns = ("run", "state", "epoch", *(() if is_narrow else ("job",)), "why")
    rows = [
        (
            one.run,
            one.state,
            f"{one.epoch}/{one.epochs}",
            *(() if is_narrow else (one.job or "none",)),
            one.why,
        )
        for one in found
    ]
    print_table(columns, rows, words=("state", "why"))


def _print_faults(sweep: Sweep, found: Sequence[Standing]) -> None:
    """Prints what is wrong with runs and what to do, once for all runs that one job took along."""
    from skinjob.submit.faults import last_words

    groups: dict[tuple[str | None, ...], list[Standing]] = {}
    for one in found:
        if one.error or one.state == "failed":
            groups.setdefault((one.state, one.fault, one.job or one.run), []).append(one)
    for one, *others in list(groups.values())[:MOST_TOLD]:
        more = f" and {len(others)} more of its job" if others else ""
        click.echo(f"\n{one.run}{more}: {one.fault or one.state}")
        click.echo(_indented(one.error or "it does not say why"))
        for file, lines in last_words(Run(sweep.folder / one.run), one.job, LINES_TOLD):
            click.echo(f"  {typed(file)}:")
            for line in lines:
                click.echo(f"  | {line}")
        if one.remedy:
            click.echo(f"  fix: {one.remedy}")
    rest = sum(map(len, list(groups.values())[MOST_TOLD:]))
    if rest:
        click.echo(f"\nand {rest} more; the reasons are in the state.json of each")


def _indented(sentence: str) -> str:
    """Returns a sentence two columns in; broken between words where a terminal needs it."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else len(sentence) + 2
    return textwrap.fill(
        sentence,
        width,
        initial_indent="  ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
