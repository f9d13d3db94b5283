"""Where jobs go: `skinjob config` shows what holds and why, `skinjob init-site` asks SLURM."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from skinjob.commands.help import TaskCommand
from skinjob.commands.options import (
    cluster_options,
    configs,
    file_options,
    recipe_options,
    with_layer_defaults,
)
from skinjob.commands.sources import DEFAULT_SITE, JOB_TABLES, FileCommand, source
from skinjob.config import as_text
from skinjob.console import say, say_as_is, shown, width, wrapped
from skinjob.errors import ConfigError
from skinjob.files import write_text

LEAST = 12  # columns for what is broken into lines, however narrow the terminal


@click.command(cls=FileCommand)
@file_options
@recipe_options
@cluster_options
@click.option("--json", "is_json", is_flag=True, help="Print it as JSON, for programs.")
@click.pass_context
def config(ctx: click.Context, /, is_json: bool, **values: Any) -> None:
    """Show what submit would take, and where each value is from.

    It takes submit's options, variables and files. The earlier wins: a flag, a SKINJOB_SUBMIT_
    variable, the job file, the site profile, your own profile (~/.config/skinjob/site.toml).

    \b
    Example:
      skinjob config
      skinjob config --site gres --time 60
    """
    configs(values)  # what submit would refuse is refused here
    values = with_layer_defaults(values)
    tables = {
        table: {key: {"value": values[key], "source": source(ctx, key)} for key in options}
        for table, options in JOB_TABLES.items()
    }
    if is_json:
        say_as_is(json.dumps(tables, indent=2))
        return
    rows: list[tuple[str, str, str]] = []
    for table, entries in tables.items():
        rows += [("", "", "")] if rows else []
        rows += [(f"[{table}]", "", "")]
        rows += [
            (key, shown(as_text(e["value"])), shown(e["source"])) for key, e in entries.items()
        ]
    _print_table(("", "value", "source"), rows, broken="value")


def _print_table(
    columns: tuple[str, str, str], rows: Sequence[tuple[str, str, str]], *, broken: str
) -> None:
    """Prints words in columns; on a terminal *broken* goes on below, between words.

    A word that is too long stays whole, so that paths can be copied: its line is longer.
    """
    number, lines = columns.index(broken), [columns, *rows]
    sizes = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if room := width():
        others = sum(sizes) - sizes[number] + 4  # two spaces between columns
        sizes[number] = min(sizes[number], max(room - others, LEAST))
    for line in lines:
        for part in _broken(line, number, sizes[number]):
            cells = (cell.ljust(size) for cell, size in zip(part, sizes, strict=True))
            say("  ".join(cells).rstrip())


def _broken(line: tuple[str, ...], number: int, size: int) -> Iterator[tuple[str, ...]]:
    """Yields a line of a table as lines whose column *number* is of this size."""
    for row, part in enumerate(wrapped(line[number], size, hanging="")):
        cells = line if row == 0 else ("",) * len(line)
        yield (*cells[:number], part, *cells[number + 1 :])


@click.command("init-site", cls=TaskCommand)
@click.option(
    "--partition", show_default="one with GPUs that is up", help="The partition to choose."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=DEFAULT_SITE,
    show_default=True,
    help="The profile to write.",
)
@click.option("--force", is_flag=True, help="Write over a profile that is there.")
def init_site(partition: str | None, out: Path, force: bool) -> None:
    """Ask SLURM what there is, and write a site profile of it.

    It asks for partitions, types of GPU, features, accounts and limits.

    \b
    Example:
      skinjob init-site
      skinjob init-site --partition short --out jobs/sites/short.toml
    """
    from skinjob.doctor.profile import ask_site, choose, profile_text

    if out.exists() and not force:
        raise ConfigError(f"{out} is there already", f"skinjob init-site --force{_out_words(out)}")
    choice = choose(ask_site(), partition)
    write_text(out, profile_text(choice))
    _print_table(
        ("", "value", "why"),
        [
            (name, shown(as_text(value)), choice.reasons[name])
            for name, value in choice.values.items()
        ],
        broken="why",
    )
    say("", f"wrote {out}; its comments say what else there is")
    say(f"next:  skinjob doctor{'' if out == DEFAULT_SITE else f' --site {shlex.quote(str(out))}'}")


def _out_words(out: Path) -> str:
    return "" if out == DEFAULT_SITE else f" --out {shlex.quote(str(out))}"
