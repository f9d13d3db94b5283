"""The folders of a sweep: made for a plan, told of its jobs, removed where nothing came of it."""

from __future__ import annotations

import platform
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from skinjob import __version__
from skinjob.config import ClusterConfig
from skinjob.errors import RunError
from skinjob.files import locked, make_private, write_json
from skinjob.images import write_index
from skinjob.runs import Run, RunState, Sweep, utc_now
from skinjob.submit.plan import Plan

FORMAT = 1


@contextmanager
def submitting(runs: Path) -> Iterator[None]:
    """Keeps others from queueing, cancelling or clearing up below *runs* at the same time."""
    with locked(runs / ".submit.lock"):
        yield


def recorded_cluster(sweep: Sweep, **changes: Any) -> ClusterConfig:
    """Returns what the sweep's jobs asked for last, with *changes*.

    sweep.json may be older than a field, which then has its default.

    Raises: ConfigError for a value that cannot be, RunError when sweep.json does not read.
    """
    known = {field.name for field in fields(ClusterConfig)}
    recorded = sweep.info()["cluster"].items()
    values = {
        name: tuple(value) if isinstance(value, list) else value  # JSON has no tuples
        for name, value in recorded
        if name in known
    }
    try:
        return ClusterConfig(**values | changes)
    except TypeError as fault:
        show = f"cat {shlex.quote(str(sweep.sweep_file))}"
        raise RunError(f"{sweep.sweep_file}: cluster: {fault}", show) from None


def write_plan(plan: Plan, queued: Sequence[str] = ()) -> None:
    """Makes the sweep's folder and a folder for each run, and says queued of those in *queued*.

    Raises: RunError when the folder cannot be written, or others can write where jobs execute code.
    """
    sweep = plan.sweep
    try:
        sweep.folder.mkdir(parents=True, exist_ok=True)
        # Jobs execute the pickles in here: whoever can write to it runs code as the user.
        make_private(sweep.submission_folder)
        for name, config in plan.configs.items():
            run = Run(sweep.folder / name)
            if not run.config_file.exists():
                run.folder.mkdir(exist_ok=True)
                write_json(run.config_file, asdict(config))
                run.log_file.touch()  # so that it can be followed from now on
        if plan.is_new:
            write_index(plan.images, sweep.images_file)
        write_json(sweep.sweep_file, _sweep_info(plan))
        for name in queued:
            run = Run(sweep.folder / name)
            # Its holder is forgotten: a process that still has the run leaves it.
            before = run.state()
            state = RunState(
                queued_utc=utc_now(), epoch=before.epoch, test_accuracy=before.test_accuracy
            )
            write_json(run.state_file, asdict(state))
    except OSError as fault:
        raise RunError(
            f"sweep folder {sweep.folder}: {fault.strerror}",
            f"df -h {shlex.quote(str(sweep.folder.parent))}; or choose another --runs",
        ) from None


def record_jobs(sweep: Sweep, jobs: dict[str, str]) -> None:
    """Adds run name -> job id to sweep.json."""
    info = sweep.info()
    write_json(sweep.sweep_file, info | {"jobs": info["jobs"] | jobs})


def discard(plan: Plan) -> None:
    """Removes the folder of a new sweep of which nothing was queued."""
    shutil.rmtree(plan.sweep.folder, ignore_errors=True)


def _sweep_info(plan: Plan) -> dict[str, Any]:
    old = {} if plan.is_new else plan.sweep.info()
    names = sorted({*old.get("runs", []), *plan.configs})
    configs = [Run(plan.sweep.folder / name).config() for name in names]
    return {
        "format": FORMAT,
        "name": plan.sweep.name,
        "created_utc": old.get("created_utc", utc_now()),
        "identity": plan.identity,
        "recipe": configs[0].recipe(),
        "batch_sizes": sorted({config.batch_size for config in configs}),
        "lrs": sorted({config.lr for config in configs}),
        "seeds": sorted({config.seed for config in configs}),
        "runs": names,
        "weights": {
            "path": configs[0].weights,
            "sha256": plan.weights.sha256,
            "architecture": plan.weights.architecture,
            "source": plan.weights.source,
            "source_sha256": plan.weights.source_sha256,
            "untrained": plan.weights.untrained,
        },
        "images": {
            "root": str(plan.images.root.resolve()),
            "fingerprint": plan.images.fingerprint(),
            "classes": list(plan.images.classes),
            "counts": plan.images.counts(),
            "skipped": [asdict(fault) for fault in plan.images.skipped],
            "repeated": {
                "test_in_train": len(plan.images.in_train_too()),
                "in_two_classes": len(plan.images.in_two_classes()),
            },
        },
        "cluster": asdict(plan.cluster),
        "jobs": old.get("jobs", {}),
        "versions": {"skinjob": __version__, "python": platform.python_version()},
    }
