"""Writes a plan to the folders of its sweep and runs, and removes a sweep that was not queued."""

from __future__ import annotations

import errno
import platform
import secrets
import shlex
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

from skinjob import __version__
from skinjob.console import print_lock_wait
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
"""The ending of a hidden folder: a sweep that a command is making or removing."""


@contextmanager
def submitting(runs: Path) -> Iterator[None]:
    """Locks *runs* against the user's other submits, cancels and cleans during the block.

    Other users have their own locks, because they cannot change the user's sweeps.
    """
    file = submit_lock(runs)
    runs.mkdir(parents=True, exist_ok=True)
    with locked(file, tell_waiting=lambda: print_lock_wait(file)) as is_locked:
        if is_locked:  # so no other command uses these
            _remove_leftovers(runs)
        yield


def _remove_leftovers(runs: Path) -> None:
    """Removes the hidden folders of a submit that was killed."""
    for folder in runs.glob(f".*{UNFINISHED}"):
        if folder.is_dir() and not folder.is_symlink() and not owner(folder):
            shutil.rmtree(folder, ignore_errors=True)


def write_plan(plan: Plan, queued: Sequence[str] = ()) -> None:
    """Makes the folders of the sweep and its runs; runs in *queued* get the status waiting.

    A new sweep has a hidden name until it is complete.

    Raises: RunError if the folder cannot be written, or if other users can write where jobs
    execute code.
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
                f"{plan.sweep.folder} exists now",
                f"skinjob submit --name {shlex.quote(plan.sweep.name + '-2')}",
            ) from None
        raise RunError(
            f"sweep folder {plan.sweep.folder}: {error.strerror}",
            f"df -h {shlex.quote(str(plan.sweep.folder.parent))}; or choose another --runs",
        ) from None


def _make_sweep(plan: Plan, queued: Sequence[str]) -> None:
    """Makes a new sweep; other processes see all of it or nothing. Raises: OSError, RunError."""
    plan.runs.mkdir(parents=True, exist_ok=True)
    hidden = Sweep(_hidden(plan.sweep.folder))
    try:
        hidden.folder.mkdir()
        _require_private(plan, hidden)
        _write_sweep(plan, hidden, queued)
        hidden.folder.rename(plan.sweep.folder)
    finally:
        shutil.rmtree(hidden.folder, ignore_errors=True)


def _hidden(folder: Path) -> Path:
    """Returns a hidden path beside a sweep's folder, which all commands ignore."""
    return folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{UNFINISHED}")


def _require_private(plan: Plan, sweep: Sweep) -> None:
    """Makes the submission folder private: jobs execute its pickles. Raises: RunError."""
    make_private(sweep.submission_folder)
    require_safe(sweep.submission_folder, plan.cluster.trust)


def _write_sweep(plan: Plan, sweep: Sweep, queued: Sequence[str]) -> None:
    """Writes missing files of a sweep to the folder of *sweep*.

    A run that is queued again gets today's paths of images and weights: the project may have moved.
    """
    for name, config in plan.configs.items():
        run = Run(sweep.folder / name)
        is_new = not run.config_file.exists()
        if is_new or (name in queued and run.config() != config):
            run.folder.mkdir(exist_ok=True)
            write_record(run.config_file, config)
        if is_new:
            run.log_file.touch()  # `logs -f` can open it from now on
    if not sweep.images_file.exists():
        write_index(plan.images, sweep.images_file)
    write_record(sweep.sweep_file, _sweep_info(plan, sweep, queued))
    for name in queued:
        run = Run(sweep.folder / name)
        # The new state has no holder: a process that still trains the run leaves it.
        before = run.state()
        state = RunState(
            queued_utc=utc_now(), epoch=before.epoch, test_accuracy=before.test_accuracy
        )
        write_record(run.state_file, state)


def record_study(plan: Plan) -> None:
    """Adds what the plan states about the study to sweep.json, if it is new."""
    info = plan.sweep.info()
    study = info.study | plan.study.stated()
    if study != info.study:
        write_record(plan.sweep.sweep_file, replace(info, study=study))


def discard(plan: Plan) -> None:
    """Removes a new sweep without queued jobs."""
    hidden = _hidden(plan.sweep.folder)
    with suppress(OSError):
        # Renamed first: if this is interrupted, no command sees half a sweep.
        plan.sweep.folder.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def _sweep_info(plan: Plan, sweep: Sweep, queued: Collection[str]) -> SweepInfo:
    """Returns the new sweep.json, without the old jobs of runs that are queued again."""
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
            shortcut=_shortcut(plan) or (old.images.shortcut if old else {}),
        ),
        study=(old.study if old else {}) | plan.study.stated(),
        cluster=asdict(plan.cluster),
        jobs={run: job for run, job in jobs.items() if run not in queued},
        versions={"skinjob": __version__, "python": platform.python_version()},
    )


def _shortcut(plan: Plan) -> dict[str, float]:
    """Returns what the shortcut reaches, by column of metrics.csv; nothing if it is not known."""
    if plan.shortcut is None:
        return {}
    return {
        "test_accuracy": plan.shortcut.accuracy,
        "test_auc": plan.shortcut.class_aucs[plan.images.classes.index(plan.positive)],
        "test_loss": plan.shortcut.loss,
    }
