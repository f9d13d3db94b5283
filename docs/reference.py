"""Writes docs/commands.md, with all help texts, and jobs/default.toml, from the code.

`make docs` calls it. `make check` fails if a file differs from the code.
"""

from __future__ import annotations

import copy
import json
import os
import textwrap
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from click.testing import CliRunner

from skinjob.cli import TASKS, cli
from skinjob.commands.help import SectionOption
from skinjob.commands.sources import JOB_TABLES
from skinjob.config import Option

ROOT = Path(__file__).parents[1]
PAGE, JOB_FILE = ROOT / "docs/commands.md", ROOT / "jobs/default.toml"
WIDTH = 88
HEAD = """\
# Commands

What `skinjob COMMAND --help` prints. `make docs` writes this page from the code.

You can also set an option of `submit` by a variable, `SKINJOB_SUBMIT_` and the option's name in
capitals (`SKINJOB_SUBMIT_BATCH_SIZES=32,64`), or in a file: see [your-site.md](your-site.md).
`doctor` and `config` read the same variables and files.
"""
SHARED = """\
It also takes {which} of [submit](#skinjob-submit); its help lists them.
"""

TRAIN_HEAD = """\
# The recipe: a frozen ResNet18 with a new last layer, compared over four batch sizes.
# Options and SKINJOB_SUBMIT_* variables replace these values; `skinjob config` shows the source of
# each value. Paths are relative to the folder in which you call `skinjob submit`.
# `make docs` writes this file from the code. To change it, copy it and choose the copy with --job.

[train]
"""
CLUSTER_HEAD = """
# Values for all jobs on a cluster belong in jobs/site.toml (`skinjob init-site` writes it, and
# jobs/sites/ has examples), or for all your projects in ~/.config/skinjob/site.toml. Values in this
# file replace both: set only what this job needs.
[cluster]
"""
STUDY_HEAD = """
# What only you know about the study. The report's page quotes it, and says "not stated" for
# the rest. It is not part of the recipe: to change it, submit the sweep again.
[study]
"""


def reference() -> str:
    """Returns the text of the page, with the defaults that are built in."""
    parts = [HEAD, _block(_help(cli, "skinjob"))]
    for task, names in TASKS.items():
        parts.append(f"## {task}\n")
        for name in names:
            command, which = _without_shared(name)
            parts += [f"### skinjob {name}\n", _block(_help(command, f"skinjob {name}"))]
            parts += [SHARED.format(which=which)] if which else []
    return "\n".join(parts)


def _without_shared(name: str) -> tuple[click.Command, str]:
    """Returns a command without the options that `submit` lists, and words for these options."""
    context = click.Context(cli)
    command = cli.get_command(context, name)
    assert command
    keys = {key for options in JOB_TABLES.values() for key in options}
    shared = [p for p in command.params if isinstance(p, SectionOption) and p.name in keys]
    if name == "submit" or not shared:
        return command, ""
    own = copy.copy(command)
    own.params = [param for param in command.params if param not in shared]
    is_all = len(shared) == len(keys)
    return own, "every option" if is_all else "the options about the cluster"


def _help(command: click.Command, name: str) -> str:
    """Returns a help text, without the defaults of files and variables."""
    unset: dict[str, str | None] = {name: None for name in os.environ if "SKINJOB" in name}
    before = Path.cwd()
    with TemporaryDirectory() as empty:
        os.chdir(empty)
        result = CliRunner().invoke(
            command,
            ["--help"],
            prog_name=name,
            env={**unset, "XDG_CONFIG_HOME": empty},
            terminal_width=WIDTH,
            catch_exceptions=False,
            **cli.context_settings,
        )
        os.chdir(before)
    return result.output


def _block(text: str) -> str:
    return f"```text\n{text}```\n"


def job_file() -> str:
    """Returns the text of the job file: each key with its default, and its help as a comment."""
    train = [_entry(option) for option in JOB_TABLES["train"].values()]
    cluster = [_entry(option, is_set=False) for option in JOB_TABLES["cluster"].values()]
    study = [_entry(option, is_set=False) for option in JOB_TABLES["study"].values()]
    return "".join([TRAIN_HEAD, *train, CLUSTER_HEAD, *cluster, STUDY_HEAD, *study])


def _entry(option: Option, *, is_set: bool = True) -> str:
    """Returns a key's lines, with a `#` before the key if it has no value."""
    words = f"{option.help} Default: {option.help_default}." if option.help_default else option.help
    comment = textwrap.fill(words, 100, initial_indent="# ", subsequent_indent="# ")
    is_set = is_set and option.command_default not in (None, False)
    return f"{comment}\n{'' if is_set else '#'}{option.key} = {json.dumps(option.sample)}\n"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
    JOB_FILE.write_text(job_file(), encoding="utf-8")
