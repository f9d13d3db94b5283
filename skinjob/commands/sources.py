"""Where the value of an option comes from. The first source that has a value wins:

the command line; the option's SKINJOB_SUBMIT_* variable; the job file; the project's site profile;
the user's own profile; the built-in default.
"""

from __future__ import annotations

import difflib
import json
import os
import shlex
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from skinjob.config import (
    ARCH,
    SKIP_BAD_IMAGES,
    ClusterConfig,
    FieldError,
    Option,
    StudyConfig,
    TrainConfig,
    options_of,
)
from skinjob.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_JOB = Path("jobs/default.toml")
DEFAULT_SITE = Path("jobs/site.toml")
SITES = Path("jobs/sites")  # --site accepts the names of the profiles in it
FILES = "skinjob.files"  # key in the meta of click's context: the files that were read
BROKEN = "skinjob.broken"  # key in the same: the error of a file that could not be read
BUILT_IN = "built in"
STRENGTH = (
    ParameterSource.COMMANDLINE,
    ParameterSource.ENVIRONMENT,
    ParameterSource.DEFAULT_MAP,
    ParameterSource.DEFAULT,
)
"""The sources of an option's value; an earlier one wins."""

CLUSTER_TABLE = {option.key: option for option in options_of(ClusterConfig).values()}
JOB_TABLES = {
    "train": {o.key: o for o in (ARCH, *options_of(TrainConfig).values(), SKIP_BAD_IMAGES)},
    "cluster": CLUSTER_TABLE,
    "study": {option.key: option for option in options_of(StudyConfig).values()},
}
"""The tables of a job file, and the options in each table by key."""
SITE_TABLES = {"cluster": CLUSTER_TABLE}

KINDS = {
    int: ((int,), "a whole number", "whole numbers"),
    float: ((int, float), "a number", "numbers"),
    bool: ((bool,), "true or false", ""),
    str: ((str,), "text in quotes", "texts in quotes"),
}
"""By kind of option: the types of TOML, and the words for a value and for several values."""


@dataclass(frozen=True)
class ValueFile:
    """A file that sets options."""

    kind: str
    path: Path
    values: dict[str, Any]  # by the key of the option

    def __str__(self) -> str:
        return f"{self.kind} {self.path}"


def value_files(job: str | None, site: str | None) -> Iterator[tuple[str, Path, Any]]:
    """Yields the kind, path and tables of each file; a value in an earlier file wins.

    *job* and *site* are the values of the options. A default file is left out if it is missing.
    """
    config_home = os.environ.get("XDG_CONFIG_HOME", "")
    if not config_home.startswith("/"):  # its specification says to ignore a relative path
        config_home = "~/.config"
    own = Path(config_home).expanduser() / "skinjob/site.toml"
    for kind, path, is_given, tables in (
        ("job file", Path(job) if job else DEFAULT_JOB, job, JOB_TABLES),
        ("site profile", site_file(site) if site else DEFAULT_SITE, site, SITE_TABLES),
        ("own profile", own, False, SITE_TABLES),
    ):
        if is_given or os.access(path, os.F_OK):
            yield kind, path, tables


def site_file(profile: str) -> Path:
    """Returns the file of a profile, given as a path or as a name in jobs/sites/.

    >>> str(site_file("gres")), str(site_file("my.toml")), str(site_file("../site"))
    ('jobs/sites/gres.toml', 'my.toml', '../site')
    """
    return (
        Path(profile) if "/" in profile or profile.endswith(".toml") else SITES / f"{profile}.toml"
    )


def read_file(kind: str, path: Path, tables: Mapping[str, Mapping[str, Option]]) -> ValueFile:
    """Returns a TOML file's values, without its tables. Errors call the file *kind*.

    Raises: ConfigError when the file is missing, is not TOML, has an unknown table or key, or has
    a value of the wrong type.
    """
    file = ValueFile(kind, path, {})
    for table, content in _read_toml(file).items():
        _require_known(file, table, tables, "table")
        if not isinstance(content, dict):
            raise ConfigError(
                f"{file}: {table} is a value, not a table", f"write [{table}] in {path}"
            )
        for key, value in content.items():
            _require_known(file, key, tables[table], f"key in [{table}]")
            file.values[key] = _checked(tables[table][key], value, file)
    return file


def _read_toml(file: ValueFile) -> dict[str, Any]:
    try:
        with file.path.open("rb") as content:
            return tomllib.load(content)
    except FileNotFoundError:
        fix = f"ls {shlex.quote(str(file.path.parent))}"
        raise ConfigError(f"{file}: no such file", fix) from None
    except OSError as error:
        fix = f"ls -ld {shlex.quote(str(file.path))}"
        raise ConfigError(f"{file}: {error.strerror}", fix) from None
    # Also for impossible dates, numbers of 5,000 digits and deep nesting.
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: {error}", _edit(file.path)) from None


def _require_known(file: ValueFile, name: str, valid: Collection[str], kind: str) -> None:
    if name not in valid:
        similar = difflib.get_close_matches(name, valid, n=1)
        hint = f"use {similar[0]!r}; " if similar else ""
        raise ConfigError(
            f"{file}: unknown {kind}: {name!r}", f"{hint}valid: {', '.join(sorted(valid))}"
        )


def _checked(option: Option, value: Any, file: ValueFile) -> Any:
    """Returns the value, if its type is that of the option: click would read 2.9 as 2, true as 1.

    A text in a list of numbers is read as on the command line.
    """
    types, words, several = KINDS[option.kind]
    if option.axis or option.is_many:
        words = f"a list of {several}, such as {json.dumps(option.sample)}"
        types = (*types, str)
    items = value if isinstance(value, list) and words.startswith("a list") else [value]
    if not all(type(item) in types for item in items):
        message = f"{file}: {option.key} is {value!r}, and must be {words}"
        raise ConfigError(message, _edit(file.path))
    if any("\0" in str(item) for item in items):
        raise ConfigError(f"{file}: {option.key} has a NUL byte in it", _edit(file.path))
    return items if option.is_many else value


def source(ctx: click.Context, name: str) -> str:
    """Returns the source of an option's value: its flag, its variable, a file, or "built in"."""
    if ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE:
        return max(_param(ctx, name).opts, key=len)
    place = _place(ctx, name)
    return str(place.path if isinstance(place, ValueFile) else place or BUILT_IN)


def _param(ctx: click.Context, name: str) -> click.Parameter:
    return next(param for param in ctx.command.params if param.name == name)


def _place(ctx: click.Context, name: str) -> ValueFile | str | None:
    """Returns the file or the variable that set an option's value; None for any other source."""
    origin = ctx.get_parameter_source(name)
    if origin == ParameterSource.ENVIRONMENT:
        return str(_param(ctx, name).envvar or f"{ctx.auto_envvar_prefix}_{name}".upper())
    if origin != ParameterSource.DEFAULT_MAP:
        return None
    files: list[ValueFile] = ctx.meta[FILES]
    return next(file for file in files if name in file.values)


def drop_replaced(ctx: click.Context) -> None:
    """Clears each option that replaces another, if the other comes from a stronger source.

    Raises: click.UsageError if both come from the command line, or both from variables; ConfigError
    if both come from a file.
    """
    for option in (option for option in JOB_TABLES["train"].values() if option.replaces):
        other = options_of(TrainConfig)[option.replaces]
        mine, theirs = (ctx.get_parameter_source(each.key) for each in (option, other))
        if mine not in STRENGTH[:-1] or theirs not in STRENGTH[:-1]:
            continue
        if mine == theirs:
            values = {each: ctx.params[each.key] for each in (other, option)}
            place = _place(ctx, option.key)
            if isinstance(place, ValueFile):
                given = " and ".join(f"{each.key} = {value}" for each, value in values.items())
                raise ConfigError(f"{place}: {given}: keep only one of them", _edit(place.path))
            given = " and ".join(f"{each.flag} {value}" for each, value in values.items())
            raise click.UsageError(f"{given}: give only one of them", ctx)
        if STRENGTH.index(theirs) < STRENGTH.index(mine):
            ctx.params[option.key] = None


def place_of(error: click.UsageError) -> str:
    """Returns the file or variable with the wrong value and a colon; '' for the command line."""
    if not isinstance(error, click.BadParameter) or not error.ctx or not error.param:
        return ""
    place = _place(error.ctx, error.param.name or "")
    return f"{place}: " if place else ""


def with_source(ctx: click.Context, error: FieldError) -> ConfigError:
    """Returns the error with the place of its value in front, and how to change it there.

    An error about a value of the command line stays the same.
    """
    options = options_of(TrainConfig) | options_of(ClusterConfig) | options_of(StudyConfig)
    place = _place(ctx, options[error.field].key)
    if place is None:
        return error
    fix = (
        _edit(place.path)
        if isinstance(place, ValueFile)
        else f"unset {place}   # or set another value"
    )
    return ConfigError(f"{place}: {error.message}", fix)


def _edit(file: Path) -> str:
    """Returns a command that opens a file."""
    return f"${{EDITOR:-vi}} {shlex.quote(str(file))}"
