"""The options of `skinjob submit`, and where their defaults come from.

A flag wins over its SKINJOB_SUBMIT_* variable, that over the job file, that over the dataclass.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from skinjob.config import (
    CLUSTERS,
    DEFAULTS,
    DEVICES,
    LAYERS,
    PRECISIONS,
    SCHEDULES,
    ClusterConfig,
    TrainConfig,
    read_job_file,
)
from skinjob.errors import ConfigError

DEFAULT_JOB = Path("jobs/default.toml")
JOB_FILE = "skinjob.job_file"  # click keeps the one that was read under this name
JOB_FILE_KEYS = {
    "train": {
        "train",
        "data",
        "skip_bad_images",
        "weights",
        "batch_sizes",
        "epochs",
        "lr",
        "schedule",
        "seeds",
        "device",
        "precision",
    },
    "cluster": {field.name for field in fields(ClusterConfig)},
}
TRAIN = {field.name: field.default for field in fields(TrainConfig)}
CLUSTER = {field.name: field.default for field in fields(ClusterConfig)}

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
}
"""The same of the keys that take one value or a list; text in it is read as on the command line."""
SINGLE = {
    f.name: KINDS[str(f.type)]
    for c in (TrainConfig, ClusterConfig)
    for f in fields(c)
    if f.name not in LISTS
} | {"skip_bad_images": KINDS["bool"]}


MOST = 10_000  # numbers that a range may stand for; more is a slip, and fills the memory


class ShellLine(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """A line for the job's shell, as it is; an environment variable may hold several lines."""

    name = "line"
    envvar_list_splitter = "\n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)


class IntegerList(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """Whole numbers: 32,64 or 0-9 or both; in a job file also a list."""

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
            if not first <= last < first + MOST:
                self.fail(
                    f"{part.strip()!r} in {value!r} is no list of whole numbers (as 32,64 or 0-9)",
                    param,
                    ctx,
                )
            numbers += range(first, last + 1)
        return tuple(numbers)


class NumberList(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """Numbers: 0.01 or 0.01,0.1; in a job file also a list."""

    name = "list"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        if isinstance(value, (list, tuple)):
            value = ",".join(map(str, value))
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers (as 0.01,0.1)", param, ctx)


def read_job(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """Makes the job file's values the defaults of the other options."""
    file = value or (DEFAULT_JOB if os.access(DEFAULT_JOB, os.F_OK) else None)
    if file is not None:
        ctx.meta[JOB_FILE] = file
        values = read_job_file(file, JOB_FILE_KEYS)
        for name, value in values.items():
            _require_kind(file, name, value)
        if isinstance(values.get("setup"), str):
            values["setup"] = [values["setup"]]
        ctx.default_map = values | dict(ctx.default_map or {})
    return file


def _require_kind(file: Path, name: str, value: Any) -> None:
    """Returns when a value is of its option's type: click would take 2.9 for 2, and true for 1."""
    kinds, words = LISTS[name] if name in LISTS else SINGLE[name]
    items = value if name in LISTS and isinstance(value, list) else [value]
    if not all(type(item) in kinds for item in items):
        raise ConfigError(
            f"job file {file}: {name} is {value!r}, and must be {words}",
            f"${{EDITOR:-vi}} {shlex.quote(str(file))}",
        )


def told_in(fault: click.UsageError) -> str:
    """Returns where the value at fault was written, with a colon, unless on the command line."""
    if not isinstance(fault, click.BadParameter) or not fault.ctx or not fault.param:
        return ""
    context, option = fault.ctx, fault.param
    source = context.get_parameter_source(option.name or "")
    if source == ParameterSource.DEFAULT_MAP:
        return f"job file {context.meta[JOB_FILE]}: "
    if source == ParameterSource.ENVIRONMENT:
        return f"{option.envvar or f'{context.auto_envvar_prefix}_{option.name}'.upper()}: "
    return ""


def options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Returns one decorator that does what all of them do, the first on top in the help."""

    def decorate(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def _by_layers(name: str) -> str:
    """Returns the note on a default that depends on the layers that are trained."""
    return f"[default: {DEFAULTS['head'][name]}; of --train all {DEFAULTS['all'][name]}]"


recipe_options = options(
    click.option(
        "--train",
        type=click.Choice(LAYERS),
        default=TRAIN["train"],
        show_default=True,
        help="The layers to train: the new head on a frozen ResNet18, or all.",
    ),
    click.option(
        "--data",
        default="skin_cancer",
        show_default=True,
        help="Image folder: {train,test}/<class>/*.jpg.",
    ),
    click.option(
        "--skip-bad-images",
        is_flag=True,
        help="Go on without the images that are faulty.",
    ),
    click.option(
        "--weights",
        default="weights/resnet18.safetensors",
        show_default=True,
        help="The fetched weights.",
    ),
    click.option(
        "--batch-sizes",
        type=IntegerList(),
        default="32,64,128,256",
        show_default=True,
        help="Images per update; a job for each.",
    ),
    click.option(
        "--epochs",
        type=int,
        default=TRAIN["epochs"],
        show_default=True,
        help="Passes over the training images.",
    ),
    click.option(
        "--lr",
        type=NumberList(),
        help=f"Learning rate; a run for each, such as 0.01,0.1. {_by_layers('lr')}",
    ),
    click.option(
        "--schedule",
        type=click.Choice(SCHEDULES),
        help=f"Learning rate over the updates. {_by_layers('schedule')}",
    ),
    click.option(
        "--seeds",
        type=IntegerList(),
        default="0",
        show_default=True,
        help="A run for each, such as 0-4.",
    ),
    click.option(
        "--device",
        type=click.Choice(DEVICES),
        default=TRAIN["device"],
        show_default=True,
        help="auto: cuda where a GPU is asked for.",
    ),
    click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default=TRAIN["precision"],
        show_default=True,
        help="Arithmetic before the head; auto: bf16 where the hardware has it.",
    ),
)

cluster_options = options(
    click.option(
        "--cluster",
        type=click.Choice(CLUSTERS),
        default=CLUSTER["cluster"],
        show_default=True,
        help="auto: slurm where there is sbatch, else this machine.",
    ),
    click.option("--partition", help="SLURM partition. [default: the cluster's]"),
    click.option("--account", help="SLURM account. [default: yours]"),
    click.option("--qos", help="SLURM quality of service. [default: yours]"),
    click.option(
        "--gpus", type=int, default=CLUSTER["gpus"], show_default=True, help="GPUs per job, 0 or 1."
    ),
    click.option(
        "--cpus", type=int, default=CLUSTER["cpus"], show_default=True, help="CPU cores per job."
    ),
    click.option(
        "--mem",
        "mem_gb",
        envvar="SKINJOB_SUBMIT_MEM",
        type=float,
        default=CLUSTER["mem_gb"],
        show_default=True,
        help="Memory per job, GB.",
    ),
    click.option(
        "--time",
        "time_min",
        envvar="SKINJOB_SUBMIT_TIME",
        type=int,
        default=CLUSTER["time_min"],
        show_default=True,
        help="Time limit per job, minutes.",
    ),
    click.option(
        "--requeues",
        type=int,
        default=CLUSTER["requeues"],
        show_default=True,
        help="Times that a job at its time limit is queued again, to go on.",
    ),
    click.option(
        "--setup",
        type=ShellLine(),
        multiple=True,
        metavar="LINE",
        help="A line for the job's shell, run first, as it is (module load cuda); may be repeated.",
    ),
    click.option(
        "--python",
        help="Words for the job's shell that start Python. [default: the Python that submits]",
    ),
    click.option(
        "--array-parallelism",
        type=int,
        default=CLUSTER["array_parallelism"],
        show_default=True,
        help="Jobs that may work at the same time.",
    ),
    click.option(
        "--allow-node-local",
        is_flag=True,
        help="Take paths below /tmp and the like: here the nodes share them.",
    ),
)
