"""Where the value of an option comes from. The earlier in this list wins:

a flag; its SKINJOB_SUBMIT_* variable; the job file; the project's site profile; the user's own
profile; and what is built in.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from skinjob.config import ClusterConfig, FieldError, TrainConfig, read_job_file
from skinjob.errors import ConfigError

DEFAULT_JOB = Path("jobs/default.toml")
DEFAULT_SITE = Path("jobs/site.toml")
SITES = Path("jobs/sites")  # profiles that are told by their names
FILES = "skinjob.files"  # click's context keeps those that were read under this name
BUILT_IN = "built in"
TRAIN_KEYS = (
    "train",
    "data",
    "skip_bad_images",
    "weights",
    "batch_sizes",
    "epochs",
    "lr",
    "schedule",
    "seeds",
    "positive",
    "device",
    "precision",
)
OPTION_OF = {"batch_size": "batch_sizes", "seed": "seeds"}
"""Fields of a run whose option says them of all runs, under another name."""
CLUSTER_KEYS = tuple(field.name for field in fields(ClusterConfig))
JOB_FILE_KEYS = {"train": set(TRAIN_KEYS), "cluster": set(CLUSTER_KEYS)}
SITE_KEYS = {"cluster": JOB_FILE_KEYS["cluster"]}

KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "text in quotes"),
    "str | None": ((str,), "text in quotes"),
}
"""What a job file may say of a field of each type, in TOML's types and in words."""
LISTS = {
    "batch_sizes": ((int, str), "a list of whole numbers, such as [32, 64]"),
    "lr": ((int, float, str), "a list of numbers, such as [0.01, 0.1]"),
    "seeds": ((int, str), 'a list of whole numbers or "0-4"'),
    "setup": ((str,), 'a list of shell lines, such as ["module load cuda"]'),
    "trust": ((str,), 'a list of user names, such as ["ada"]'),
    "sbatch": ((str,), 'a list of flags, such as ["--hint=nomultithread"]'),
}
"""The same of the keys that take one value or a list; text in it is read as on the command line."""
SINGLE = {
    f.name: KINDS[str(f.type)]
    for c in (TrainConfig, ClusterConfig)
    for f in fields(c)
    if f.name not in LISTS
} | {"skip_bad_images": KINDS["bool"]}


@dataclass(frozen=True)
class ValueFile:
    """A file that says what options are to be."""

    kind: str
    path: Path
    values: Mapping[str, Any]
    """By the name of the option."""

    def __str__(self) -> str:
        return f"{self.kind} {self.path}"


def read_job(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """Makes the job file's values the defaults of the other options."""
    file = value or (DEFAULT_JOB if os.access(DEFAULT_JOB, os.F_OK) else None)
    _keep(ctx, "job file", file, JOB_FILE_KEYS)
    return file


def read_site(ctx: click.Context, param: click.Parameter, value: str | None) -> Path | None:
    """Makes the values of the site's profile and the user's own the defaults, after the job's."""
    site = site_file(value) if value else DEFAULT_SITE
    _keep(ctx, "site profile", site if value or os.access(site, os.F_OK) else None, SITE_KEYS)
    own = own_file()
    _keep(ctx, "own profile", own if os.access(own, os.F_OK) else None, SITE_KEYS)
    return site


def site_file(word: str) -> Path:
    """Returns the profile that is meant by a path, or by the name of one in jobs/sites/.

    >>> str(site_file("gres")), str(site_file("my.toml")), str(site_file("../site"))
    ('jobs/sites/gres.toml', 'my.toml', '../site')
    """
    return Path(word) if "/" in word or word.endswith(".toml") else SITES / f"{word}.toml"


def own_file() -> Path:
    """Returns where the user's own profile lies, whether there is one or not."""
    folder = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    # By the convention a relative path there is not heeded.
    base = folder if folder.is_absolute() else Path(os.environ.get("HOME", "/")) / ".config"
    return base / "skinjob/site.toml"


KINDS_OF_FILES = ("job file", "site profile", "own profile")
"""The earlier wins."""


def _keep(ctx: click.Context, kind: str, file: Path | None, keys: dict[str, set[str]]) -> None:
    """Reads a file, and makes click's defaults anew of all files read so far.

    click calls for them in the order of the command line.
    """
    files: dict[str, ValueFile] = ctx.meta.setdefault(FILES, {})
    if file is not None:
        values = read_job_file(file, keys, kind)
        for name, value in values.items():
            _require_kind(kind, file, name, value)
            if name in ("setup", "sbatch") and isinstance(value, str):
                values[name] = [value]
        files[kind] = ValueFile(kind, file, values)
    ctx.default_map = {
        name: value
        for kind in reversed(KINDS_OF_FILES)
        if kind in files
        for name, value in files[kind].values.items()
    }


def _require_kind(kind: str, file: Path, name: str, value: Any) -> None:
    """Returns when a value is of its option's type: click would take 2.9 for 2, and true for 1."""
    types, words = LISTS[name] if name in LISTS else SINGLE[name]
    items = value if name in LISTS and isinstance(value, list) else [value]
    if not all(type(item) in types for item in items):
        raise ConfigError(f"{kind} {file}: {name} is {value!r}, and must be {words}", _edit(file))


def source(ctx: click.Context, name: str) -> str:
    """Returns where an option's value comes from: its flag, variable, file, or that it is built in.

    *name* is the option's name as the commands take it.
    """
    option = next(param for param in ctx.command.params if param.name == name)
    found = ctx.get_parameter_source(name)
    if found == ParameterSource.COMMANDLINE:
        return max(option.opts, key=len)
    if found == ParameterSource.ENVIRONMENT:
        return str(option.envvar or f"{ctx.auto_envvar_prefix}_{name}".upper())
    if found == ParameterSource.DEFAULT_MAP:
        return str(_file_of(ctx, name).path)
    return BUILT_IN


def _file_of(ctx: click.Context, name: str) -> ValueFile:
    """Returns the file whose value of an option holds."""
    files: dict[str, ValueFile] = ctx.meta[FILES]
    kinds = (kind for kind in KINDS_OF_FILES if kind in files)
    return next(files[kind] for kind in kinds if name in files[kind].values)


def told_in(fault: click.UsageError) -> str:
    """Returns where the value at fault was written, with a colon, unless on the command line."""
    if not isinstance(fault, click.BadParameter) or not fault.ctx or not fault.param:
        return ""
    context, name = fault.ctx, fault.param.name or ""
    found = context.get_parameter_source(name)
    if found == ParameterSource.DEFAULT_MAP:
        return f"{_file_of(context, name)}: "
    return f"{source(context, name)}: " if found == ParameterSource.ENVIRONMENT else ""


def with_source(ctx: click.Context, fault: FieldError) -> ConfigError:
    """Returns a fault with where its value was written, and how to change it there.

    What was said on the command line is told as it is.
    """
    name = OPTION_OF.get(fault.field, fault.field)
    found = ctx.get_parameter_source(name)
    if found == ParameterSource.DEFAULT_MAP:
        file = _file_of(ctx, name)
        return ConfigError(f"{file}: {fault.message}", _edit(file.path))
    if found == ParameterSource.ENVIRONMENT:
        variable = source(ctx, name)
        fix = f"unset {variable}   # or give it another value"
        return ConfigError(f"{variable}: {fault.message}", fix)
    return fault


def _edit(file: Path) -> str:
    """Returns a command that opens a file."""
    return f"${{EDITOR:-vi}} {shlex.quote(str(file))}"
