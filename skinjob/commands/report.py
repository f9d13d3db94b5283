"""`skinjob report`, on any machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from skinjob.commands.arguments import (
    find_results,
    newest,
    relative_to_cwd,
    runs_option,
    sweeps_argument,
)
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
    """Turn the CSV files of a sweep into tables, plots and a page.

    SWEEP is a folder, a name in runs/, or a pack. The default is the newest sweep. Several sweeps
    make one report. Needs no torch.

    \b
    Example:
      skinjob report
      skinjob report runs/my-sweep
      skinjob report my-sweep.tar
    """
    report_on([find_results(name, runs) for name in sweep] or [newest(runs)], out)


def report_on(sweeps: Sequence[Sweep], out: Path | None) -> None:
    """Writes the report of these sweeps; prints its answer, its table, its notes and its folder."""
    from skinjob.report.build import build_report
    from skinjob.report.summary import DROP, readable

    built = build_report(sweeps, out)
    if built.notice:
        print_box(built.notice)
    for name, answer in built.answers.items():
        heading = [f"{name}:"] if len(built.answers) > 1 else []
        say(*heading, *answer.lines, "")
    print_table(*readable(built.summary, is_complete=False), drop=DROP)
    for name, clinical in built.clinical.items():
        if clinical.short:
            sweep = f"{name}: " if len(built.clinical) > 1 else ""
            say("", f"{sweep}{clinical.short.title}")
            print_table(clinical.short.columns, clinical.short.rows)
    missing = [f"missing: {line}" for line in built.missing]
    for lines in (built.baselines, missing, built.notes):
        if lines:
            say("", *lines)
    folder = relative_to_cwd(built.folder)
    say("", f"open: {folder / 'index.html'}", f"      {folder / 'comparison.png'}")
