"""Where jobs go: `skinjob config` shows what holds and why, `skinjob init-site` asks SLURM."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from skinjob.commands.help import TaskCommand
from skinjob.config import DEFAULTS, ClusterConfig, TrainConfig
from skinjob.console import say, say_as_is, shown, width, wrapped
from skinjob.errors import ConfigError
from skinjob.files import write_text
from skinjob.options import cluster_options, file_options, recipe_options
from skinjob.sources import CLUSTER_KEYS, DEFAULT_SITE, TRAIN_KEYS, source

LEAST = 12  # columns for what is broken into lines, however narrow the terminal


@click.command(cls=TaskCommand, context_settings={"auto_envvar_prefix": "SKINJOB_SUBMIT"})
@recipe_options
@cluster_options
@file_options
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
    values = _with_defaults(values)
    _require_valid(values)
    tables = {
        "train": _told(ctx, TRAIN_KEYS, values),
        "cluster": _told(ctx, CLUSTER_KEYS, values),
    }
    if is_json:
        say_as_is(json.dumps(tables, indent=2))
    else:
        _print(tables)


def _require_valid(values: dict[str, Any]) -> None:
    """Returns when runs can be made of the options' values. Raises: ConfigError."""
    ClusterConfig(**{name: values[name] for name in CLUSTER_KEYS})
    axes = {"batch_size": values["batch_sizes"], "lr": values["lr"], "seed": values["seeds"]}
    common = ("train", "data", "weights", "epochs", "schedule", "device", "precision", "positive")
    config = TrainConfig(
        **{name: values[name] for name in common},
        **{name: axis[0] for name, axis in axes.items()},
    )
    for name, axis in axes.items():
        for value in axis:
            replace(config, **{name: value})


def _with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the values with what is sensible for the layers that are trained."""
    usual = DEFAULTS[values["train"]]
    lr = values["lr"] or (usual["lr"],)
    return {**values, "lr": lr, "schedule": values["schedule"] or usual["schedule"]}


def _told(
    ctx: click.Context, names: tuple[str, ...], values: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    return {name: {"value": values[name], "source": source(ctx, name)} for name in names}


def _print(tables: dict[str, dict[str, dict[str, Any]]]) -> None:
    rows: list[tuple[str, str, str]] = []
    for table, content in tables.items():
        rows += [("", "", "")] if rows else []
        rows += [(f"[{table}]", "", "")]
        rows += [
            (name, _shown(said["value"]), shown(said["source"])) for name, said in content.items()
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
        rest = sum(sizes) - sizes[number] + 4  # two spaces between columns
        sizes[number] = min(sizes[number], max(room - rest, LEAST))
    for line in lines:
        for part in _broken(line, number, sizes[number]):
            cells = (cell.ljust(size) for cell, size in zip(part, sizes, strict=True))
            say("  ".join(cells).rstrip())


def _broken(line: tuple[str, ...], number: int, size: int) -> Iterator[tuple[str, ...]]:
    """Yields a line of a table as lines whose column *number* is of this size."""
    for row, part in enumerate(wrapped(line[number], size, hanging="")):
        yield tuple(part if one == number else "" if row else line[one] for one in range(3))


def _shown(value: Any) -> str:
    """Returns a value as a person would write it.

    >>> _shown((32, 64)), _shown(None), _shown(True), _shown(8.0)
    ('32, 64', 'not set', 'yes', '8')
    """
    if value is None or value == ():
        return "not set"
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else shown(str(value))


@click.command("init-site", cls=TaskCommand)
@click.option("--partition", help="The partition to choose. [default: one with GPUs that is up]")
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
        [(name, _shown(value), choice.reasons[name]) for name, value in choice.values.items()],
        broken="why",
    )
    say("", f"wrote {out}; its comments say what else there is")
    say(f"next:  skinjob doctor{'' if out == DEFAULT_SITE else f' --site {shlex.quote(str(out))}'}")


def _out_words(out: Path) -> str:
    return "" if out == DEFAULT_SITE else f" --out {shlex.quote(str(out))}"
