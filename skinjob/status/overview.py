"""A line for every sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from skinjob.errors import RunError
from skinjob.queues.base import Queue, open_queue
from skinjob.status.status import sweep_status
from skinjob.sweeps.layout import Sweep, sweeps
from skinjob.sweeps.records import Status, SweepInfo, filled_recipe


@dataclass(frozen=True)
class Overview:
    """A summary of a sweep."""

    name: str
    created_utc: str = ""
    recipe: str = ""
    """Trained layers, grid, and epochs or updates, in a few words."""
    statuses: Sequence[Status] = ()
    """The status of each run."""
    accuracy: float | None = None
    """The best of all runs on the test images after their last epochs, a fraction."""
    error: str = ""
    """Why its folder cannot be read; then all other fields are empty."""


def overviews(runs: Path) -> list[Overview]:
    """Returns the sweeps below *runs*: first damaged sweeps, then the others, oldest first.

    It asks each queue once for all sweeps.
    """
    queues: dict[str, Queue] = {}
    rows = [_overview(sweep, queues) for sweep in sweeps(runs)]
    return sorted(rows, key=lambda overview: (overview.created_utc, overview.name))


def _overview(sweep: Sweep, queues: dict[str, Queue]) -> Overview:
    try:
        info = sweep.info()
        name = info.asked("cluster")
        queue = queues[name] = queues.get(name) or open_queue(name)
        statuses = sweep_status(sweep, queue).runs
        return Overview(
            name=sweep.name,
            created_utc=info.created_utc,
            recipe=_recipe(info),
            statuses=[run.status for run in statuses],
            accuracy=max(
                (run.accuracy for run in statuses if run.accuracy is not None), default=None
            ),
        )
    except RunError as error:
        return Overview(name=sweep.name, error=error.message)


def _recipe(info: SweepInfo) -> str:
    """Returns the recipe of a sweep in a few words.

    >>> recipe = {"train": "head", "epochs": 20}
    >>> _recipe(SweepInfo(recipe=recipe, batch_sizes=(32, 64), seeds=(0, 1, 2), runs=()))
    'head, batch sizes 32,64, 3 seeds, 20 epochs'
    """
    sizes = ",".join(map(str, info.batch_sizes))
    words = [filled_recipe(info.recipe)["train"], f"batch sizes {sizes}"]
    for name, values in (("learning rates", info.lrs), ("seeds", info.seeds)):
        if (num := len(values)) > 1:
            words.append(f"{num} {name}")
    length = f"{info.updates:,} updates" if info.updates else f"{info.epochs} epochs"
    return ", ".join([*words, length])
