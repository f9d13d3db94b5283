"""`skinjob doctor`: checks before the queue."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from skinjob.commands.arguments import runs_option
from skinjob.commands.options import FileCommand, name_option, plan_arguments, submit_options
from skinjob.console import print_unescaped, say, terminal_width, with_typed_options, wrapped

if TYPE_CHECKING:
    from skinjob.doctor.finding import Finding

COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red", "skipped": "bright_black"}
INDENT = 21  # columns before the result of a check


@click.command(cls=FileCommand)
@submit_options
@runs_option
@name_option
@click.option(
    "--probe", is_flag=True, help="Also queue a job of a few seconds that checks a compute node."
)
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
@click.pass_context
def doctor(ctx: click.Context, /, probe: bool, as_json: bool, **options: Any) -> None:
    """Check SLURM, limits, files and Python before you submit.

    The doctor takes the options of submit and checks what they would queue. Exit code 1: a check
    failed. After warnings, jobs can still run.

    \b
    Example:
      skinjob doctor
      skinjob doctor --partition gpu --time 60 --probe
    """
    from skinjob.doctor.checklist import Request, examine

    findings: Iterable[Finding] = examine(Request(**plan_arguments(options)), is_probing=probe)
    if as_json:
        findings = list(findings)
        checks = {"checks": [finding.to_json() for finding in findings]}
        print_unescaped(json.dumps(checks, indent=2))
    else:
        findings = list(_printed(findings))
        _print_totals(findings)
    ctx.exit(1 if any(finding.verdict == "fail" for finding in findings) else 0)


def _printed(findings: Iterable[Finding]) -> Iterable[Finding]:
    """Prints each finding as soon as it is known, and yields it."""
    for finding in findings:
        first, *others = _lines(finding.text)
        say(f"{finding.verdict:<9}{finding.name:<12}{first}", colour=COLOURS[finding.verdict])
        for line in [*others, *(f"| {detail}" for detail in finding.details)]:
            say(" " * INDENT + line)
        if finding.fix:
            say(f"{'':<9}fix: {with_typed_options(finding.fix)}")
        yield finding


def _lines(text: str) -> list[str]:
    """Returns a sentence in lines that fit the terminal; in a pipe it stays whole."""
    columns = terminal_width()
    return wrapped(text, columns and max(columns - INDENT, 30), hanging="")


def _print_totals(findings: Iterable[Finding]) -> None:
    counts = Counter(finding.verdict for finding in findings)
    say("", ", ".join(f"{number} {verdict}" for verdict, number in counts.items()))
    if not counts["fail"]:
        say("next: skinjob submit")
