"""Plans `skinjob retry`: which runs it queues again, with the settings of their sweep."""

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
    """The runs to queue again, and the others."""

    plan: Plan | None
    """None if there is nothing to queue."""
    left: Sequence[RunStatus]
    """The statuses of chosen runs that stay as they are."""


def plan_retry(
    sweep: Sweep, names: Sequence[str], *, takes_cancelled: bool = False, **changes: Any
) -> Retry:
    """Returns the plan that queues failed and lost runs again.

    Cancelled runs are queued if *names* lists them, or with *takes_cancelled*. Recipe, images and
    weights come from the runs' folders. Jobs ask for the same as before, except for *changes*:
    fields of ClusterConfig.

    Raises: RunError if the sweep belongs to another user, or if images or weights have changed;
    and the errors of `make_plan`.
    """
    sweep.require_own("retry", *names)
    chosen = [run for run in run_statuses(sweep) if not names or run.run in names]
    taken = (*TAKEN, Status.CANCELLED) if names or takes_cancelled else TAKEN
    configs = [_config(sweep, run.run) for run in chosen if run.status in taken]
    left = [run for run in chosen if run.status not in taken]
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
    """Returns a run's config, with new paths if the project was moved together with the sweep.

    Raises: RunError if images or weights are missing.
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
                f"{getattr(config, field)} is missing: {sweep.folder} was submitted with it",
                f"skinjob submit --name {shlex.quote(sweep.name)}   # with --data, --weights and "
                "the same options as before: it continues the runs",
            )
        moved[field] = str(path)
    return replace(config, **moved)
