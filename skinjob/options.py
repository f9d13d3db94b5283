"""The options of `skinjob submit`; where their values come from is in `skinjob.sources`."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from skinjob.config import (
    CLUSTERS,
    DEFAULTS,
    DEVICES,
    GPU_FLAGS,
    LAYERS,
    MEM_FLAGS,
    PRECISIONS,
    SCHEDULES,
    ClusterConfig,
    FieldError,
    TrainConfig,
)
from skinjob.sources import DEFAULT_JOB, DEFAULT_SITE, SITES, read_job, read_site, with_source

TRAIN = {field.name: field.default for field in fields(TrainConfig)}
CLUSTER = {field.name: field.default for field in fields(ClusterConfig)}

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
        "--positive",
        metavar="CLASS",
        help="Class that sensitivity, specificity and AUC look for. [default: the last by name]",
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
    click.option("--constraint", help="Features that the node must have, such as 'a100&nvlink'."),
    click.option(
        "--gpus", type=int, default=CLUSTER["gpus"], show_default=True, help="GPUs per job, 0 or 1."
    ),
    click.option(
        "--gpu-flag",
        type=click.Choice(GPU_FLAGS),
        default=CLUSTER["gpu_flag"],
        show_default=True,
        help="The sbatch flag that asks for the GPU; none where the partition brings it along.",
    ),
    click.option("--gpu-type", help="Type of GPU, as sinfo -o %G names it. [default: any]"),
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
        "--mem-flag",
        type=click.Choice(MEM_FLAGS),
        default=CLUSTER["mem_flag"],
        show_default=True,
        help="The sbatch flag that asks for it; the amount stays that of the job.",
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
        "--requeue/--no-requeue",
        default=CLUSTER["requeue"],
        show_default=True,
        help="Whether a job may start again at its time limit, or when it had to make room.",
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
    click.option("--wckey", help="SLURM workload characterization key. [default: none]"),
    click.option("--reservation", help="SLURM reservation to run in."),
    click.option("--nodelist", help="The node to run on. [default: any]"),
    click.option("--exclude", help="Nodes not to run on, such as 'gpu[01-04],gpu7'."),
    click.option("--mail", help="Address that SLURM writes to. [default: nobody's]"),
    click.option(
        "--mail-type",
        default=CLUSTER["mail_type"],
        show_default=True,
        help="What it writes about, if there is an address.",
    ),
    click.option(
        "--sbatch",
        type=ShellLine(),
        multiple=True,
        metavar="FLAG",
        help="Another flag for sbatch (--sbatch=--hint=nomultithread); may be repeated.",
    ),
    click.option(
        "--trust",
        multiple=True,
        metavar="USER",
        help="A user who may own a folder above the runs, such as the project's; may be repeated.",
    ),
    click.option(
        "--allow-node-local",
        is_flag=True,
        help="Take paths below /tmp and the like: here the nodes share them.",
    ),
)


def _telling_sources(command: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the command, which tells of a refused value in which file or variable it stands."""

    @functools.wraps(command)
    def telling(*args: Any, **values: Any) -> Any:
        try:
            return command(*args, **values)
        except FieldError as error:
            raise with_source(click.get_current_context(), error) from None

    return telling


file_options = options(
    _telling_sources,
    click.option(
        "--job",
        type=click.Path(path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=read_job,
        help=f"Job file (TOML) with other defaults. [default: {DEFAULT_JOB}]",
    ),
    click.option(
        "--site",
        metavar="FILE|NAME",
        is_eager=True,
        expose_value=False,
        callback=read_site,
        help=f"Site profile: a file, or the name of one in {SITES}/. [default: {DEFAULT_SITE}]",
    ),
)
