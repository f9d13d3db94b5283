"""What `skinjob retry` queues again: runs that failed or were lost, with what their sweep says."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from skinjob.config import TrainConfig
from skinjob.errors import RunError
from skinjob.files import absolute
from skinjob.queues.base import recorded_cluster
from skinjob.status.status import RunStatus, run_statuses
from skinjob.submit.plan import Plan, make_plan
from skinjob.sweeps.layout import Run, Sweep
from skinjob.sweeps.records import Status

TAKEN = (Status.FAILED, Status.LOST)


@dataclass(frozen=True)
class Retry:
    """The runs that are to be queued again, and those that are not."""

    plan: Plan | None
    """None where there is nothing to queue."""
    left: Sequence[RunStatus]
    """How those stand that were meant and are left alone."""


def plan_retry(
    sweep: Sweep, names: Sequence[str], *, takes_cancelled: bool = False, **changes: Any
) -> Retry:
    """Returns what queues again those of the runs *names* that failed, were lost or cancelled.

    Without names those that failed or were lost, and those that were cancelled only if that is
    asked for: who cancelled a run need not want it back with the others. Recipe, images and weights
    are those of the runs' own folders, and jobs ask for what the sweep's did before, with
    *changes*, fields of ClusterConfig.

    Raises: RunError when the sweep is another user's, or images or weights are not those of the
    sweep any more, and what `make_plan` raises.
    """
    sweep.require_own("retry", *names)
    meant = [run for run in run_statuses(sweep) if not names or run.run in names]
    taken = (*TAKEN, Status.CANCELLED) if names or takes_cancelled else TAKEN
    configs = [_config(sweep, run.run) for run in meant if run.status in taken]
    left = [run for run in meant if run.status not in taken]
    if not configs:
        return Retry(None, left)
    plan = make_plan(
        configs=configs,
        cluster=recorded_cluster(sweep, **changes),
        runs=sweep.folder.parent,
        name=sweep.folder.name,
        skip_bad_images=bool(sweep.info().images.skipped),
    )
    return Retry(replace(plan, device_reason="as before"), left)


def _config(sweep: Sweep, name: str) -> TrainConfig:
    """Returns a run's config; its paths moved along if the project has moved with the sweep.

    Raises: RunError when images or weights are not there.
    """
    config, before = Run(sweep.folder / name).config(), sweep.info().folder
    moved: dict[str, Any] = {}
    for field in ("data", "weights"):
        path = Path(getattr(config, field))
        if path.exists():
            continue
        if before:
            path = Path(os.path.normpath(absolute(sweep.folder) / os.path.relpath(path, before)))
        if not path.exists():
            raise RunError(
                f"{getattr(config, field)} is not there, with which {sweep.folder} was submitted",
                f"skinjob submit --name {shlex.quote(sweep.name)}   # with --data, --weights and "
                "the options of then: it takes the runs up again",
            )
        moved[field] = str(path)
    return replace(config, **moved)
