"""Where the value of an option comes from. The earlier in this list wins:

a flag; its SKINJOB_SUBMIT_* variable; the job file; the project's site profile; the user's own
profile; and what is built in.
"""

from __future__ import annotations

import difflib
import json
import os
import shlex
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from skinjob.commands.help import TaskCommand
from skinjob.config import (
    SKIP_BAD_IMAGES,
    VARIABLES,
    ClusterConfig,
    FieldError,
    Option,
    TrainConfig,
    options_of,
)
from skinjob.console import shown
from skinjob.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_JOB = Path("jobs/default.toml")
DEFAULT_SITE = Path("jobs/site.toml")
SITES = Path("jobs/sites")  # profiles that --site takes by their names
FILES = "skinjob.files"  # click's context keeps the files that were read under this name
BROKEN = "skinjob.broken"  # and an error of one that could not be read
BUILT_IN = "built in"

CLUSTER_TABLE = {option.key: option for option in options_of(ClusterConfig).values()}
JOB_TABLES = {
    "train": {o.key: o for o in (*options_of(TrainConfig).values(), SKIP_BAD_IMAGES)},
    "cluster": CLUSTER_TABLE,
}
"""The tables of a job file and the options in each, by key."""
SITE_TABLES = {"cluster": CLUSTER_TABLE}

KINDS = {
    int: ((int,), "a whole number", "whole numbers"),
    float: ((int, float), "a number", "numbers"),
    bool: ((bool,), "true or false", ""),
    str: ((str,), "text in quotes", "texts in quotes"),
}
"""TOML's types for each kind of option, and the words for a value and for several."""


@dataclass(frozen=True)
class ValueFile:
    """A file with values of options."""

    kind: str
    path: Path
    values: Mapping[str, Any]
    """By the key of the option."""

    def __str__(self) -> str:
        return f"{self.kind} {self.path}"


class FileCommand(TaskCommand):
    """A command that takes the options of `submit`: files and variables set their defaults."""

    def __init__(self, name: str | None, **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self.context_settings["auto_envvar_prefix"] = VARIABLES

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Reads the files, then the options.

        A broken file is no error where help was asked for, which a person needs who mends it.
        """
        given = self._given(ctx, args)
        files: list[ValueFile] = []
        words = (self._word(ctx, given, name) for name in ("job", "site"))
        for kind, path, tables in value_files(*words):
            try:
                files.append(read_file(kind, path, tables))
            except ConfigError as error:
                if not ctx.resilient_parsing and not set(ctx.help_option_names).intersection(args):
                    raise
                ctx.meta[BROKEN] = error
        ctx.meta[FILES] = files
        ctx.default_map = {k: v for file in reversed(files) for k, v in file.values.items()}
        return super().parse_args(ctx, args)

    def _given(self, ctx: click.Context, args: Sequence[str]) -> Mapping[str, Any]:
        """Returns the words of the command line, by option. Click refuses wrong ones later."""
        was_resilient, ctx.resilient_parsing = ctx.resilient_parsing, True
        given, _, _ = self.make_parser(ctx).parse_args(list(args))
        ctx.resilient_parsing = was_resilient
        return given

    def _word(self, ctx: click.Context, given: Mapping[str, Any], name: str) -> str | None:
        """Returns the word for the option --job or --site, if there is any."""
        (option,) = (param for param in self.params if param.name == name)
        value, origin = option.consume_value(ctx, given)
        is_set = origin in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
        return str(value) if is_set else None

    def invoke(self, ctx: click.Context) -> Any:
        """Calls the command. Raises: ConfigError that names the file or variable of its value."""
        try:
            return super().invoke(ctx)
        except FieldError as error:
            raise with_source(ctx, error) from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        if error := ctx.meta.get(BROKEN):
            formatter.write_paragraph()
            formatter.write_text(f"Without the defaults of a broken file: {shown(error.message)}")


def value_files(job: str | None, site: str | None) -> Iterator[tuple[str, Path, Any]]:
    """Yields each file's kind, path and tables; the earlier wins.

    *job* and *site* are the words of the options; without them files are read where they exist.
    """
    own = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "skinjob/site.toml"
    for kind, path, is_given, tables in (
        ("job file", Path(job) if job else DEFAULT_JOB, job, JOB_TABLES),
        ("site profile", site_file(site) if site else DEFAULT_SITE, site, SITE_TABLES),
        ("own profile", own, False, SITE_TABLES),
    ):
        if is_given or os.access(path, os.F_OK):
            yield kind, path, tables


def site_file(word: str) -> Path:
    """Returns the profile that a path means, or the name of one in jobs/sites/.

    >>> str(site_file("gres")), str(site_file("my.toml")), str(site_file("../site"))
    ('jobs/sites/gres.toml', 'my.toml', '../site')
    """
    return Path(word) if "/" in word or word.endswith(".toml") else SITES / f"{word}.toml"


def read_file(kind: str, path: Path, tables: Mapping[str, Mapping[str, Option]]) -> ValueFile:
    """Returns a TOML file's values, flat. *kind* is what errors call the file.

    Raises: ConfigError when the file is missing, is not TOML, or has an unknown table or key, or
    a value that is not of its option's type.
    """
    where, values = f"{kind} {path}", {}
    for table, content in _read_toml(where, path).items():
        _require_known(where, table, tables, "table")
        if not isinstance(content, dict):
            raise ConfigError(
                f"{where}: {table} is a value, not a table", f"write [{table}] in {path}"
            )
        for key, value in content.items():
            _require_known(where, key, tables[table], f"key in [{table}]")
            values[key] = _checked(tables[table][key], value, where, path)
    return ValueFile(kind, path, values)


def _read_toml(where: str, path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as content:
            return tomllib.load(content)
    except FileNotFoundError:
        raise ConfigError(f"{where}: no such file", f"ls {shlex.quote(str(path.parent))}") from None
    except OSError as error:
        raise ConfigError(
            f"{where}: {error.strerror}", f"ls -ld {shlex.quote(str(path))}"
        ) from None
    # Not only TOMLDecodeError: impossible dates, numbers of 5,000 digits and deep nests.
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: {error}", _edit(path)) from None


def _require_known(where: str, name: str, valid: Collection[str], kind: str) -> None:
    if name not in valid:
        near = difflib.get_close_matches(name, valid, n=1)
        hint = f"use {near[0]!r}; " if near else ""
        raise ConfigError(
            f"{where}: unknown {kind}: {name!r}", f"{hint}valid ones are {', '.join(sorted(valid))}"
        )


def _checked(option: Option, value: Any, where: str, path: Path) -> Any:
    """Returns the value if it is of its option's type: click would take 2.9 for 2, and true for 1.

    Text in a list of numbers is read as on the command line.
    """
    types, words, several = KINDS[option.kind]
    if option.axis or option.is_many:
        words = f"a list of {several}, such as {json.dumps(option.sample)}"
        types = (*types, str)
    items = value if isinstance(value, list) and words.startswith("a list") else [value]
    if not all(type(item) in types for item in items):
        raise ConfigError(f"{where}: {option.key} is {value!r}, and must be {words}", _edit(path))
    if any("\0" in str(item) for item in items):
        raise ConfigError(f"{where}: {option.key} has a NUL in it", _edit(path))
    return items if option.is_many else value


def source(ctx: click.Context, name: str) -> str:
    """Returns where an option's value comes from: its flag, variable, file, or that it is built in.

    *name* is the option's key, as the commands take it.
    """
    if ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE:
        return max(_param(ctx, name).opts, key=len)
    place = _place(ctx, name)
    return str(place.path if isinstance(place, ValueFile) else place or BUILT_IN)


def _param(ctx: click.Context, name: str) -> click.Parameter:
    return next(param for param in ctx.command.params if param.name == name)


def _place(ctx: click.Context, name: str) -> ValueFile | str | None:
    """Returns the file or the variable that an option's value comes from, if it is one of them."""
    origin = ctx.get_parameter_source(name)
    if origin == ParameterSource.ENVIRONMENT:
        return str(_param(ctx, name).envvar or f"{ctx.auto_envvar_prefix}_{name}".upper())
    if origin != ParameterSource.DEFAULT_MAP:
        return None
    files: list[ValueFile] = ctx.meta[FILES]
    return next(file for file in files if name in file.values)


def place_of(error: click.UsageError) -> str:
    """Returns where the wrong value was written, with a colon, unless on the command line."""
    if not isinstance(error, click.BadParameter) or not error.ctx or not error.param:
        return ""
    place = _place(error.ctx, error.param.name or "")
    return f"{place}: " if place else ""


def with_source(ctx: click.Context, error: FieldError) -> ConfigError:
    """Returns the error with where its value was written, and how to change it there.

    An error about a value of the command line stays as it is.
    """
    place = _place(ctx, (options_of(TrainConfig) | options_of(ClusterConfig))[error.field].key)
    if place is None:
        return error
    fix = (
        _edit(place.path)
        if isinstance(place, ValueFile)
        else f"unset {place}   # or give it another value"
    )
    return ConfigError(f"{place}: {error.message}", fix)


def _edit(file: Path) -> str:
    """Returns a command that opens a file."""
    return f"${{EDITOR:-vi}} {shlex.quote(str(file))}"
