"""`skinjob report`, on any machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from skinjob.report.build import Report


@click.command(cls=TaskCommand)
@sweeps_argument
@runs_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for the report. The default is report/ in the sweep, PACK-report beside a pack, "
    "report-A-B beside the first of several sweeps, and report-A in this folder for --from.",
)
@click.option(
    "--no-images", is_flag=True, help="No pictures and no names of test images, for a page to send."
)
@click.option(
    "--from",
    "page",
    type=click.Path(path_type=Path),
    metavar="PAGE",
    help="Write the report of this page (or report.json) again; needs no sweep.",
)
def report(
    sweep: tuple[str, ...], runs: Path, out: Path | None, no_images: bool, page: Path | None
) -> None:
    """Turn the CSV files of a sweep into tables, plots and a page.

    SWEEP is a folder, a name in runs/, or a pack. The default is the newest sweep. Several sweeps
    make one report. Needs no torch.

    \b
    Example:
      skinjob report
      skinjob report my-sweep.tar --no-images
      skinjob report --from index.html --out again
    """
    from skinjob.report.build import build_report, rebuild_report

    if page and sweep:
        raise click.UsageError(f"--from {page} and a sweep: give one of the two")
    if page:
        print_report(rebuild_report(page, out, has_images=not no_images))
    else:
        sweeps = [find_results(name, runs) for name in sweep] or [newest(runs)]
        print_report(build_report(sweeps, out, has_images=not no_images))


def print_report(built: Report) -> None:
    """Prints the answer of a report, its table, its notes and its folder."""
    from skinjob.report.summary import DROP, readable

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
            short = clinical.short
            print_table(short.columns, short.rows, drop=short.columns[:1:-1])
    missing = [f"missing: {line}" for line in built.missing]
    for lines in (built.baselines, missing, built.notes):
        if lines:
            say("", *lines)
    folder = relative_to_cwd(built.folder)
    say("", f"open: {folder / 'index.html'}", f"      {folder / 'comparison.png'}")
