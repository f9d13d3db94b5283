"""The folders of a sweep: made for a plan, told of its jobs, removed where nothing came of it."""

from __future__ import annotations

import errno
import platform
import secrets
import shlex
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from skinjob import __version__
from skinjob.console import tell_waiting
from skinjob.data.images import write_index
from skinjob.errors import RunError
from skinjob.files import absolute
from skinjob.locks import locked
from skinjob.ownership import make_private, owner, require_safe
from skinjob.submit.plan import Plan
from skinjob.sweeps.layout import Run, Sweep, submit_lock
from skinjob.sweeps.records import (
    ImagesRecord,
    RunState,
    SweepInfo,
    WeightsRecord,
    utc_now,
    write_record,
)

UNFINISHED = ".part"
"""Ends the hidden name of a sweep's folder that is being made or removed."""


@contextmanager
def submitting(runs: Path) -> Iterator[None]:
    """Keeps the user's other submits, cancels and clearings below *runs* out meanwhile.

    Other users have locks of their own: nobody changes the sweeps of another user.
    """
    file = submit_lock(runs)
    runs.mkdir(parents=True, exist_ok=True)
    with locked(file, tell_waiting=lambda: tell_waiting(file)) as is_locked:
        if is_locked:  # so nobody is at work on these
            _remove_leftovers(runs)
        yield


def _remove_leftovers(runs: Path) -> None:
    """Removes what a submit that was killed has left of a sweep that never came to be."""
    for folder in runs.glob(f".*{UNFINISHED}"):
        if folder.is_dir() and not folder.is_symlink() and not owner(folder):
            shutil.rmtree(folder, ignore_errors=True)


def write_plan(plan: Plan, queued: Sequence[str] = ()) -> None:
    """Makes the sweep's folder and a folder for each run, and says queued of those in *queued*.

    A new sweep is made under a hidden name and gets its own when it is whole.

    Raises: RunError when the folder cannot be written, or others can write where jobs execute code.
    """
    try:
        if plan.is_new:
            _make_sweep(plan, queued)
        else:
            _require_private(plan, plan.sweep)
            _write_sweep(plan, plan.sweep, queued)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.EFBIG, errno.EIO, errno.ESTALE):
            raise
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise RunError(
                f"{plan.sweep.folder} is there by now",
                f"skinjob submit --name {shlex.quote(plan.sweep.name + '-2')}",
            ) from None
        raise RunError(
            f"sweep folder {plan.sweep.folder}: {error.strerror}",
            f"df -h {shlex.quote(str(plan.sweep.folder.parent))}; or choose another --runs",
        ) from None


def _make_sweep(plan: Plan, queued: Sequence[str]) -> None:
    """Makes a new sweep in one step, as others see it. Raises: OSError, RunError."""
    plan.runs.mkdir(parents=True, exist_ok=True)
    made = Sweep(_hidden(plan.sweep.folder))
    try:
        made.folder.mkdir()
        _require_private(plan, made)
        _write_sweep(plan, made, queued)
        made.folder.rename(plan.sweep.folder)
    finally:
        shutil.rmtree(made.folder, ignore_errors=True)


def _hidden(folder: Path) -> Path:
    """Returns a path beside a sweep's folder that no command takes for a sweep."""
    return folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{UNFINISHED}")


def _require_private(plan: Plan, sweep: Sweep) -> None:
    """Makes the folder of which jobs execute the pickles: who can write there runs as the user."""
    make_private(sweep.submission_folder)
    require_safe(sweep.submission_folder, plan.cluster.trust)


def _write_sweep(plan: Plan, sweep: Sweep, queued: Sequence[str]) -> None:
    """Writes what the folder of the sweep does not hold yet; *sweep* is where it is written.

    A run that is queued again gets the paths of images and weights that were checked now: the
    project may have moved.
    """
    for name, config in plan.configs.items():
        run = Run(sweep.folder / name)
        is_new = not run.config_file.exists()
        if is_new or (name in queued and run.config() != config):
            run.folder.mkdir(exist_ok=True)
            write_record(run.config_file, config)
        if is_new:
            run.log_file.touch()  # so that it can be followed from now on
    if not sweep.images_file.exists():
        write_index(plan.images, sweep.images_file)
    write_record(sweep.sweep_file, _sweep_info(plan, sweep, queued))
    for name in queued:
        run = Run(sweep.folder / name)
        # Its holder is forgotten: a process that still has the run leaves it.
        before = run.state()
        state = RunState(
            queued_utc=utc_now(), epoch=before.epoch, test_accuracy=before.test_accuracy
        )
        write_record(run.state_file, state)


def discard(plan: Plan) -> None:
    """Removes the folder of a new sweep of which nothing was queued."""
    hidden = _hidden(plan.sweep.folder)
    with suppress(OSError):
        # In one step, as others see it: broken off, it leaves nothing that is half a sweep.
        plan.sweep.folder.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def _sweep_info(plan: Plan, sweep: Sweep, queued: Collection[str]) -> SweepInfo:
    """Returns what sweep.json is to hold. A run that is queued again has no job until it has."""
    old = None if plan.is_new else sweep.info()
    names = sorted({*(old.runs if old else ()), *plan.configs})
    configs = [Run(sweep.folder / name).config() for name in names]
    jobs = old.jobs if old else {}
    return SweepInfo(
        name=plan.sweep.name,
        folder=str(absolute(plan.sweep.folder)),
        created_utc=(old and old.created_utc) or utc_now(),
        recipe=configs[0].recipe(),
        batch_sizes=tuple(sorted({config.batch_size for config in configs})),
        lrs=tuple(sorted({config.lr for config in configs})),
        seeds=tuple(sorted({config.seed for config in configs})),
        runs=tuple(names),
        weights=WeightsRecord(
            path=plan.config.weights,
            sha256=plan.weights.sha256,
            architecture=plan.weights.backbone.name,
            source=plan.weights.source,
            source_sha256=plan.weights.source_sha256,
            kind=plan.weights.kind,
            untrained=plan.weights.untrained,
        ),
        images=ImagesRecord(
            root=plan.config.data,
            fingerprint=plan.images.fingerprint(),
            classes=plan.images.classes,
            positive=plan.positive,
            counts=plan.images.counts(),
            skipped=tuple(asdict(bad) for bad in plan.images.skipped),
            repeated={
                "test_in_train": len(plan.images.in_train_too()),
                "in_two_classes": len(plan.images.in_two_classes()),
            },
        ),
        cluster=asdict(plan.cluster),
        jobs={run: job for run, job in jobs.items() if run not in queued},
        versions={"skinjob": __version__, "python": platform.python_version()},
    )
