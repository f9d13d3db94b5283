"""The layout of help: commands by task, options by section, defaults with their source."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click
from click.core import ParameterSource

from skinjob.console import printable

THIS_CALL = "This call"
MAX_UNGROUPED = 8  # a longer list of options gets sections


class TaskGroup(click.Group):
    """A group that lists its commands by task, and imports a command only when it is called."""

    def __init__(
        self, *args: Any, tasks: Mapping[str, Mapping[str, tuple[str, str]]], **kwargs: Any
    ) -> None:
        """*tasks* are the sections of the help, each with its commands by name.

        A command is given as MODULE:FUNCTION in skinjob.commands, and its help's first sentence.
        """
        super().__init__(*args, **kwargs)
        self.tasks = tasks

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for commands in self.tasks.values() for name in commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for commands in self.tasks.values():
            if cmd_name in commands:
                module, function = commands[cmd_name][0].split(":")
                command: click.Command = getattr(
                    import_module(f"skinjob.commands.{module}"), function
                )
                return command
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes a line for each command: the first sentence of its help, never cut."""
        for task, commands in self.tasks.items():
            with formatter.section(task):
                formatter.write_dl([(name, words) for name, (_, words) in commands.items()])


class SectionOption(click.Option):
    """An option that knows its section of the help."""

    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class TaskCommand(click.Command):
    """A command whose help groups a long list of options, and names each default's source."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options; a long list in sections."""
        from skinjob.config import SECTIONS

        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        sections: dict[str, list[click.Option]] = {title: [] for title in (*SECTIONS, THIS_CALL)}
        for option in options:
            sections[getattr(option, "section", THIS_CALL)].append(option)
        if len(options) <= MAX_UNGROUPED:
            sections = {"Options": options}
        for title, group in sections.items():
            if group:
                with formatter.section(title):
                    records = [_with_source(ctx, option).get_help_record(ctx) for option in group]
                    formatter.write_dl([record for record in records if record])
        if any(_with_source(ctx, option) is not option for option in options):
            formatter.write_paragraph()
            formatter.write_text("A default that names no file and no variable is built in.")


def _with_source(ctx: click.Context, option: click.Option) -> click.Option:
    """Returns the option; if a file or a variable sets its default, a copy that names it."""
    from skinjob.commands.sources import source
    from skinjob.config import as_text

    value, origin = option.consume_value(ctx, {})
    if origin not in (ParameterSource.DEFAULT_MAP, ParameterSource.ENVIRONMENT):
        return option
    ctx.set_parameter_source(option.name or "", origin)
    sourced = copy.copy(option)
    sourced.show_default = printable(f"{as_text(value)}; from {source(ctx, option.name or '')}")
    return sourced
