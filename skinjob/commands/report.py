"""Anywhere: `skinjob report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from skinjob.commands.arguments import find_sweep, newest, runs_option, sweeps_argument, typed
from skinjob.commands.help import TaskCommand
from skinjob.console import print_box, print_table, say
from skinjob.sweeps.layout import Sweep


@click.command(cls=TaskCommand)
@sweeps_argument
@runs_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    show_default="SWEEP/report",
    help="Folder for the report.",
)
def report(sweep: tuple[str, ...], runs: Path, out: Path | None) -> None:
    """Turn the CSVs of a sweep into tables, plots and a page.

    Without a SWEEP the newest is meant; of several, the runs are put together. Needs no torch.

    \b
    Example:
      skinjob report
      skinjob report runs/my-sweep
    """
    report_on([find_sweep(one, runs) for one in sweep] or [newest(runs)], out)


def report_on(chosen: Sequence[Sweep], out: Path | None) -> None:
    from skinjob.report.build import build_report

    built = build_report(chosen, out)
    if built.notice:
        print_box(built.notice)
    print_table(built.columns, built.rows)
    for title, lines in (("missing", built.missing), ("", built.notes)):
        if lines:
            say()
        for line in lines:
            say(f"{title}: {line}" if title else line)
    folder = typed(built.folder)
    say("", f"open: {folder / 'index.html'}", f"      {folder / 'comparison.png'}")
