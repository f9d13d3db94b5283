"""Jobs that are too many for SLURM: why, and which of them it would take."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from skinjob.config import TrainConfig
from skinjob.console import counted
from skinjob.queues.slurm.joblimits import JobLimit
from skinjob.submit.plan import jobs_of

AXES = {"batch_size": "--batch-sizes", "seed": "--seeds", "lr": "--lr"}


WAIT = "squeue --user=$USER   # wait until some have ended, and the same again"


def number_words(configs: Mapping[str, TrainConfig], limits: Sequence[JobLimit]) -> tuple[str, int]:
    """Returns why these runs' jobs are too many, and how many would not be."""
    num = counted(len(jobs_of(configs)), "job")
    if not limits or limits[0].left >= len(jobs_of(configs)):  # SLURM does not tell the limit
        return f"SLURM does not take {num} now", len(jobs_of(configs)) // 2
    return f"{num}, and {limits[0]}", limits[0].left


def fewer(configs: Mapping[str, TrainConfig], most: int, command: str, name: str) -> str:
    """Returns a command for the first of these runs, of no more than *most* jobs.

    Options are added to *command*. Submitted part by part under one *name*, the runs come into
    one sweep.
    """
    options = f"{_options(configs, most)} --name {shlex.quote(name)}"
    return f"{command} {options}   # then the others, under the same name"


def _options(configs: Mapping[str, TrainConfig], most: int) -> str:
    """Returns options for the first of these runs, of no more than *most* jobs."""
    options: list[str] = []
    for field, option in AXES.items():
        values = list(dict.fromkeys(getattr(one, field) for one in configs.values()))
        for count in range(len(values), 0, -1):
            kept = {k: one for k, one in configs.items() if getattr(one, field) in values[:count]}
            if len(jobs_of(kept)) <= most:
                return " ".join([*options, f"{option} {','.join(map(str, values[:count]))}"])
        options.append(f"{option} {values[0]}")
        configs = kept
    return " ".join(options)
