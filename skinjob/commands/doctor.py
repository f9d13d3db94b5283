"""Before the queue: `skinjob doctor`."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from skinjob.commands.arguments import runs_option
from skinjob.commands.help import TaskCommand
from skinjob.commands.submit import asked
from skinjob.console import shown, width, wrapped
from skinjob.options import cluster_options, file_options, recipe_options

if TYPE_CHECKING:
    from skinjob.site.finding import Finding

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red", "skipped": "bright_black"}
INDENT = 21  # columns before what was found


@click.command(cls=TaskCommand, context_settings={"auto_envvar_prefix": "SKINJOB_SUBMIT"})
@recipe_options
@cluster_options
@runs_option
@click.option("--name", help="The sweep's folder in it. [default: made of date and recipe]")
@file_options
@click.option("--probe", is_flag=True, help="Queue a job of some seconds that looks from a node.")
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
@click.pass_context
def doctor(ctx: click.Context, /, probe: bool, as_json: bool, **options: Any) -> None:
    """Check all that can be known before the queue.

    SLURM, limits, files, Python, and with --probe a compute node. It takes what submit takes.
    Exit code 1 when a check failed; after warnings jobs work all the same.

    \b
    Example:
      skinjob doctor
      skinjob doctor --partition gpu --time 60 --probe
    """
    from skinjob.site.doctor import Wish, examine

    findings = examine(Wish(**asked(**options)), is_probing=probe)
    found = list(findings) if as_json else list(_printed(findings))
    if as_json:
        click.echo(json.dumps({"checks": [asdict(one) for one in found]}, indent=2))
    else:
        _print_sum(found)
    ctx.exit(1 if any(one.verdict == "fail" for one in found) else 0)


def _printed(findings: Iterable[Finding]) -> Iterable[Finding]:
    """Yields the findings, each printed as it comes."""
    for one in findings:
        mark = f"{one.verdict:<9}"
        if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
            mark = click.style(mark, fg=COLOURS[one.verdict], bold=one.verdict == "fail")
        first, *rest = _lines(one.found)
        click.echo(f"{mark}{one.name:<12}{first}")
        for line in [*rest, *(f"| {shown(detail)}" for detail in one.details)]:
            click.echo(" " * INDENT + line)
        if one.remedy:
            click.echo(f"{'':<9}fix: {one.remedy}")
        yield one


def _lines(text: str) -> list[str]:
    """Returns a sentence in lines that fit the terminal; a pipe gets it in one."""
    columns = width()
    return wrapped(shown(text), columns and max(columns - INDENT, 30), hanging="")


def _print_sum(found: Iterable[Finding]) -> None:
    counts = Counter(one.verdict for one in found)
    click.echo(f"\n{', '.join(f'{number} {verdict}' for verdict, number in counts.items())}")
    if not counts["fail"]:
        click.echo("next: skinjob submit")
