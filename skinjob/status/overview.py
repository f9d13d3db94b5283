"""All sweeps at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skinjob.errors import RunError
from skinjob.queues.slurm.client import Answers
from skinjob.status.status import survey
from skinjob.sweeps.layout import Sweep, sweeps


@dataclass(frozen=True)
class Overview:
    """A sweep in a line."""

    name: str
    created_utc: str = ""
    recipe: str = ""
    """What is trained, on which grid, for how long."""
    states: Sequence[str] = ()
    """One of each run."""
    accuracy: float | None = None
    """The best of its runs' last ones on the test images, a fraction."""
    error: str = ""
    """What is wrong with its folder; then all else is empty."""


def overviews(runs: Path) -> list[Overview]:
    """Returns the sweeps below *runs*, those that do not read first, then the oldest first.

    SLURM's queue is asked once for all of them.
    """
    slurm = Answers()
    found = [_overview(sweep, slurm) for sweep in sweeps(runs)]
    return sorted(found, key=lambda one: (one.created_utc, one.name))


def _overview(sweep: Sweep, slurm: Answers) -> Overview:
    try:
        info, stand = sweep.info(), survey(sweep, slurm).runs
        return Overview(
            name=sweep.name,
            created_utc=info.get("created_utc", ""),
            recipe=_recipe(info),
            states=[one.state for one in stand],
            accuracy=max((one.accuracy for one in stand if one.accuracy is not None), default=None),
        )
    except RunError as error:
        return Overview(name=sweep.name, error=error.message)
    except KeyError as missing:
        return Overview(name=sweep.name, error=f"{sweep.sweep_file}: no {missing} in it")


def _recipe(info: dict[str, Any]) -> str:
    """Returns what a sweep trains, in a few words.

    >>> recipe = {"train": "head", "epochs": 20}
    >>> _recipe({"recipe": recipe, "batch_sizes": [32, 64], "lrs": [0.01], "seeds": [0, 1, 2]})
    'head, batch sizes 32,64, 3 seeds, 20 epochs'
    """
    sizes = ",".join(map(str, info.get("batch_sizes", ())))
    words = [info["recipe"].get("train", "head"), f"batch sizes {sizes}"]
    for name, axis in (("learning rates", "lrs"), ("seeds", "seeds")):
        if (num := len(info.get(axis, ()))) > 1:
            words.append(f"{num} {name}")
    return ", ".join([*words, f"{info['recipe']['epochs']} epochs"])
