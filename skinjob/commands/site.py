"""`skinjob config` shows each value and its source; `skinjob init-site` writes a site profile."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import click

from skinjob.commands.help import TaskCommand
from skinjob.commands.options import (
    FileCommand,
    configs,
    replaced,
    study,
    submit_options,
    with_defaults,
)
from skinjob.commands.sources import DEFAULT_SITE, JOB_TABLES, source
from skinjob.config import as_text
from skinjob.console import print_table, print_unescaped, say
from skinjob.errors import ConfigError
from skinjob.files import write_text


@click.command(cls=FileCommand)
@submit_options
@click.option("--json", "is_json", is_flag=True, help="Print JSON for other programs.")
@click.pass_context
def config(ctx: click.Context, /, is_json: bool, **values: Any) -> None:
    """Show each value that submit would use, and its source.

    It takes the options of submit. The first source with a value wins: the option, its
    SKINJOB_SUBMIT_ variable, the job file, the site profile, your own profile
    (~/.config/skinjob/site.toml), the built-in default.

    \b
    Example:
      skinjob config
      skinjob config --site gres --time 60
    """
    configs(values)  # these raise what submit would raise
    study(values)
    values, by = with_defaults(values), replaced(values)
    tables: dict[str, dict[str, dict[str, Any]]] = {
        table: {
            key: {
                "value": None if key in by else values[key],
                "source": source(ctx, by.get(key, key)),
            }
            for key in options
        }
        for table, options in JOB_TABLES.items()
    }
    if is_json:
        print_unescaped(json.dumps(tables, indent=2))
        return
    rows: list[tuple[str, str, str]] = []
    for table, entries in tables.items():
        rows += [("", "", "")] if rows else []
        rows += [(f"[{table}]", "", "")]
        rows += [(key, as_text(e["value"]), e["source"]) for key, e in entries.items()]
    print_table(("", "value", "source"), rows, left=("value", "source"), wrap="value")


@click.command("init-site", cls=TaskCommand)
@click.option(
    "--partition", show_default="a partition with GPUs that is up", help="Partition for the jobs."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=DEFAULT_SITE,
    show_default=True,
    help="Profile to write.",
)
@click.option("--force", is_flag=True, help="Replace an existing profile.")
def init_site(partition: str | None, out: Path, force: bool) -> None:
    """Ask SLURM what is available and write a site profile.

    It asks for partitions, GPU types, features, accounts and limits.

    \b
    Example:
      skinjob init-site
      skinjob init-site --partition short --out jobs/sites/short.toml
    """
    from skinjob.doctor.profile import choose, profile_text
    from skinjob.queues.slurm.site import ask_site

    if out.exists() and not force:
        raise ConfigError(f"{out} exists already", f"skinjob init-site --force{_out_option(out)}")
    choice = choose(ask_site(), partition)
    write_text(out, profile_text(choice))
    rows = [(name, as_text(value), why) for name, (value, why) in choice.entries.items()]
    print_table(("", "value", "why"), rows, left=("value", "why"), wrap="why")
    say("", f"wrote {out}; its comments list the alternatives")
    say(f"next:  skinjob doctor{'' if out == DEFAULT_SITE else f' --site {shlex.quote(str(out))}'}")


def _out_option(out: Path) -> str:
    return "" if out == DEFAULT_SITE else f" --out {shlex.quote(str(out))}"
