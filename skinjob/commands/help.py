"""How help looks: commands and options grouped by their task, and where each default comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click
from click.core import ParameterSource

from skinjob.console import say_as_is, shown
from skinjob.errors import SkinjobError
from skinjob.sources import source

COMMANDS = {
    "On the laptop": ("fetch-weights",),
    "On the login node, before the queue": ("init-site", "doctor", "config"),
    "On the login node": ("submit", "status", "logs", "cancel", "retry", "list", "clean"),
    "Anywhere": ("report", "demo", "train"),
    "Shell": ("completion",),
}
"""The sections of `skinjob --help`, in the order in which a person meets them."""

OPTIONS = {
    "What to train": (
        "--train",
        "--batch-sizes",
        "--epochs",
        "--lr",
        "--schedule",
        "--seeds",
        "--positive",
        "--device",
        "--precision",
    ),
    "Where it lies": (
        "--data",
        "--skip-bad-images",
        "--weights",
        "--runs",
        "--name",
        "--allow-node-local",
        "--trust",
    ),
    "What a job asks for": (
        "--gpus",
        "--gpu-type",
        "--cpus",
        "--mem",
        "--time",
        "--requeues",
        "--requeue",
        "--array-parallelism",
    ),
    "Your site": (
        "--site",
        "--cluster",
        "--partition",
        "--account",
        "--qos",
        "--constraint",
        "--reservation",
        "--nodelist",
        "--exclude",
        "--gpu-flag",
        "--mem-flag",
        "--wckey",
        "--sbatch",
        "--mail",
        "--mail-type",
        "--setup",
        "--python",
    ),
}
"""The sections of a long list of options; what is in none of them is about this call alone."""

REST = "This call"
FEW = 8
"""A list of no more options needs no sections."""


class TaskCommand(click.Command):
    """A command whose help groups a long list of options, and tells each default's source."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[__name__] = list(args)
        try:
            return super().parse_args(ctx, args)
        except SkinjobError:  # click before 8.2 reads the files first, and then --help
            if not set(ctx.help_option_names).intersection(ctx.meta[__name__]):
                raise
            say_as_is(ctx.get_help())
            raise click.exceptions.Exit() from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options, in sections where they are many."""
        fault = self._read_files(ctx)
        options = [one for one in self.get_params(ctx) if isinstance(one, click.Option)]
        records = {option: _record(ctx, option) for option in options}
        for title, group in _sections(options).items():
            with formatter.section(title):
                formatter.write_dl([records[option] for option in group])
        if any("; from " in text for _, text in records.values()):
            formatter.write_paragraph()
            formatter.write_text("A default that names no file and no variable is built in.")
        if fault is not None:
            formatter.write_paragraph()
            formatter.write_text(f"Without the defaults of a file at fault: {shown(fault.message)}")

    def _read_files(self, ctx: click.Context) -> SkinjobError | None:
        """Makes the values of job and site files the defaults, which `--help` comes before.

        Returns what is wrong with a file: help is there for whoever has to mend one.
        """
        words = ctx.meta.get(__name__, [])
        ctx.resilient_parsing, was = True, ctx.resilient_parsing
        given, _, _ = self.make_parser(ctx).parse_args(list(words))
        ctx.resilient_parsing = was
        try:
            for option in self.params:
                if option.is_eager and option.callback is not None:
                    option.handle_parse_result(ctx, given, [])
        except SkinjobError as error:
            return error
        return None


def _sections(options: Sequence[click.Option]) -> dict[str, list[click.Option]]:
    """Returns the options by section, in the order of OPTIONS."""
    if len(options) <= FEW:
        return {"Options": list(options)}
    by_flag = {flag: option for option in options for flag in option.opts}
    found = {
        title: [by_flag[flag] for flag in flags if flag in by_flag]
        for title, flags in OPTIONS.items()
    }
    grouped = [option for group in found.values() for option in group]
    found[REST] = [option for option in options if option not in grouped]
    return {title: group for title, group in found.items() if group}


def _record(ctx: click.Context, option: click.Option) -> tuple[str, str]:
    """Returns an option's name and its help, with the default and the file that it is from."""
    names, text = option.get_help_record(ctx) or ("", "")
    # The default stands last, whether click wrote it or the help itself does.
    text, _, default = text.removesuffix("]").partition("[default: ")
    value, found = option.consume_value(ctx, {})
    if found in (ParameterSource.DEFAULT_MAP, ParameterSource.ENVIRONMENT):
        ctx.set_parameter_source(option.name or "", found)
        default = shown(f"{_told(value)}; from {source(ctx, option.name or '')}")
    return names, f"{text.rstrip()}  [default: {default}]" if default else text


def _told(value: Any) -> str:
    """Returns a value as one would write it in a file.

    >>> _told([32, 64]), _told(True), _told("gpu")
    ('32, 64', 'true', 'gpu')
    """
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


class TaskGroup(click.Group):
    """The group of all commands, whose help lists them by task."""

    command_class = TaskCommand

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes a line for each command: the first sentence of its help, never cut off."""
        for title, names in _by_task(self.commands).items():
            with formatter.section(title):
                formatter.write_dl([(name, _first_sentence(self.commands[name])) for name in names])


def _by_task(commands: Mapping[str, click.Command]) -> dict[str, list[str]]:
    """Returns the names of the commands by section."""
    found = {task: [name for name in names if name in commands] for task, names in COMMANDS.items()}
    return {task: names for task, names in found.items() if names}


def _first_sentence(command: click.Command) -> str:
    return command.get_short_help_str(limit=1000).rstrip(".")
