"""The options of `submit`, `doctor` and `config`, made from the fields of the two records."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
from click.core import ParameterSource

from skinjob.commands import sources
from skinjob.commands.help import SectionOption, TaskCommand
from skinjob.commands.sources import (
    DEFAULT_JOB,
    DEFAULT_SITE,
    JOB_TABLES,
    SITES,
    ValueFile,
    drop_replaced,
    read_file,
    value_files,
    with_source,
)
from skinjob.config import (
    ARCHS,
    FILES,
    SITE,
    VARIABLES,
    ClusterConfig,
    FieldError,
    Option,
    StudyConfig,
    TrainConfig,
    grid,
    options_of,
)
from skinjob.console import printable
from skinjob.errors import ConfigError

MAX_RANGE = 10_000  # numbers in a range; more is a typing error, and would fill the memory


class FileCommand(TaskCommand):
    """A command with the options of `submit`: files and variables set their defaults."""

    def __init__(self, name: str | None, **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self.context_settings["auto_envvar_prefix"] = VARIABLES

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Reads the files, then the options: click handles --help before it would read files.

        A broken file does not stop --help, which the user needs to mend the file.
        """
        given = self._given(ctx, args)
        files: list[ValueFile] = []
        job, site = (self._set_value(ctx, given, name) for name in ("job", "site"))
        for kind, path, tables in value_files(job, site):
            try:
                files.append(read_file(kind, path, tables))
            except ConfigError as error:
                if not ctx.resilient_parsing and not set(ctx.help_option_names).intersection(args):
                    raise
                ctx.meta[sources.BROKEN] = error
        ctx.meta[sources.FILES] = files
        ctx.default_map = {k: v for file in reversed(files) for k, v in file.values.items()}
        rest = super().parse_args(ctx, args)
        if not ctx.resilient_parsing:
            drop_replaced(ctx)
        return rest

    def _given(self, ctx: click.Context, args: Sequence[str]) -> Mapping[str, Any]:
        """Returns the values of the command line by option, unchecked: click checks them later."""
        was_resilient, ctx.resilient_parsing = ctx.resilient_parsing, True
        given, _, _ = self.make_parser(ctx).parse_args(list(args))
        ctx.resilient_parsing = was_resilient
        return given

    def _set_value(self, ctx: click.Context, given: Mapping[str, Any], name: str) -> str | None:
        """Returns the value of --job or --site, if the command line or a variable sets it."""
        (option,) = (param for param in self.params if param.name == name)
        value, origin = option.consume_value(ctx, given)
        is_set = origin in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
        return str(value) if is_set else None

    def invoke(self, ctx: click.Context) -> Any:
        """Calls the command. An error about a value names the file or the variable that set it."""
        try:
            return super().invoke(ctx)
        except FieldError as error:
            raise with_source(ctx, error) from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        if error := ctx.meta.get(sources.BROKEN):
            formatter.write_paragraph()
            formatter.write_text(
                f"The defaults of a broken file are missing: {printable(error.message)}"
            )


class Line(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """A line, unchanged; a variable may hold several lines."""

    name = "line"
    envvar_list_splitter = "\n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)


class IntegerList(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """Whole numbers, such as 32,64 or 0-9; a job file may also have a list."""

    name = "list"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, (list, tuple)):
            value = ",".join(map(str, value))
        numbers: list[int] = []
        for part in str(value).split(","):
            match = re.fullmatch(r"\s*(\d{1,30})(?:-(\d{1,30}))?\s*", part)
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
            if not first <= last < first + MAX_RANGE:
                example = "(such as 32,64 or 0-9)"
                self.fail(
                    f"{part.strip()!r} in {value!r} is no list of whole numbers {example}",
                    param,
                    ctx,
                )
            numbers += range(first, last + 1)
        return tuple(numbers)


class NumberList(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """Numbers, such as 0.01 or 0.01,0.1; a job file may also have a list."""

    name = "list"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        if isinstance(value, (list, tuple)):
            value = ",".join(map(str, value))
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers (such as 0.01,0.1)", param, ctx)


def stacked(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Returns a decorator that applies all of them; help lists their options in this order."""

    def decorate(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def click_option(option: Option, *, is_change: bool = False) -> Callable[[Any], Any]:
    """Returns the decorator that adds an option to a command.

    If it *is_change* of a recorded value of a sweep, it has no default and no variable.
    """
    default = option.command_default
    flags = f"{option.flag}/--no-{option.flag[2:]}" if default is True else option.flag
    return click.option(
        flags,
        option.key,
        cls=SectionOption,
        section=option.section,
        type=_click_type(option),
        is_flag=option.kind is bool,
        multiple=option.is_many,
        default=default,
        show_default=False
        if is_change
        else option.help_default or not (default is None or default is False or default == ()),
        envvar=None if is_change else option.variable,
        allow_from_autoenv=False,
        metavar=option.metavar,
        help=option.help,
    )


def _click_type(option: Option) -> Any:
    if option.axis:
        return IntegerList() if option.kind is int else NumberList()
    if option.choices:
        return click.Choice(option.choices)
    return (
        Line() if option.is_many and not option.pattern else option.kind
    )  # a line may have spaces


changed_cluster_options = stacked(
    *(
        click_option(option, is_change=True)
        for name, option in JOB_TABLES["cluster"].items()
        if name != "cluster"
    )
)
"""Options of `retry` that change what a sweep's jobs ask for."""

submit_options = stacked(
    click.option(
        "--job",
        type=click.Path(),
        expose_value=False,
        show_default=str(DEFAULT_JOB),
        help="Job file (TOML) with other defaults.",
    ),
    click.option(
        "--site",
        cls=SectionOption,
        section=SITE,
        metavar="FILE|NAME",
        expose_value=False,
        show_default=str(DEFAULT_SITE),
        help=f"Site profile: a file, or a name in {SITES}/.",
    ),
    *(click_option(option) for table in JOB_TABLES.values() for option in table.values()),
)
"""The options that `submit`, `doctor` and `config` share."""

name_option = click.option(
    "--name",
    cls=SectionOption,
    section=FILES,
    show_default="made from date and recipe",
    help="Name of the sweep's folder.",
)


def with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Returns options' values, with the defaults that depend on the network or its layers."""
    filled = dict(values)
    if values["weights"] is None:
        filled["weights"] = f"weights/{values['arch'] or ARCHS[0]}.safetensors"
    for option in options_of(TrainConfig).values():
        if option.default_all is not None and values[option.key] is None:
            default = option.default_all if values["train"] == "all" else option.default
            filled[option.key] = (default,) if option.axis else default
    return filled


def replaced(values: Mapping[str, Any]) -> dict[str, str]:
    """Returns the options that do not count, each with the option that replaces it."""
    options = JOB_TABLES["train"].values()
    return {o.replaces: o.key for o in options if o.replaces and values[o.key] is not None}


def configs(values: dict[str, Any]) -> tuple[list[TrainConfig], ClusterConfig]:
    """Returns the runs and the cluster that options' values describe.

    Raises: ConfigError when a value cannot work.
    """
    values = with_defaults(values)
    cluster = ClusterConfig(**{name: values[name] for name in options_of(ClusterConfig)})
    given = {name: values[option.key] for name, option in options_of(TrainConfig).items()}
    axes = {name: given[name] for name, option in options_of(TrainConfig).items() if option.axis}
    first = {name: axis[0] for name, axis in axes.items()}
    return grid(TrainConfig(**given | first), **axes), cluster


def study(values: dict[str, Any]) -> StudyConfig:
    """Returns what options' values state about the study. Raises: ConfigError."""
    return StudyConfig(**{name: values[name] for name in options_of(StudyConfig)})


def plan_arguments(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `make_plan` for options' values.

    Raises: ConfigError when a value cannot work.
    """
    runs, cluster = configs(values)
    others = {name: values[name] for name in ("runs", "name", "arch", "skip_bad_images")}
    return {"configs": runs, "cluster": cluster, "study": study(values), **others}
