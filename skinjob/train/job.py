"""A job: takes its runs, checks what they need, trains them. The folders say what to do."""

from __future__ import annotations

import logging
import os
import platform
import shlex
import socket
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import torch

from skinjob import __version__
from skinjob.config import TrainConfig
from skinjob.console import progress
from skinjob.data.images import ImageSet, Split, read_index
from skinjob.errors import ConfigError, ImagesError, SkinjobError, WeightsError
from skinjob.files import sha256_file
from skinjob.sweeps.layout import Run
from skinjob.sweeps.records import Failure
from skinjob.train.all_layers import num_at_once
from skinjob.train.checkpoint import read_checkpoint
from skinjob.train.converged import claimed, record_converged
from skinjob.train.device import Device, choose_device
from skinjob.train.extract import FeatureExtractor
from skinjob.train.features import ViewCache
from skinjob.train.forward import Forward, choose_forward, try_bf16
from skinjob.train.images import ImageBatches, ImageSource, View
from skinjob.train.lease import Lease, TakenError, take, track_run_state
from skinjob.train.log import logging_to
from skinjob.train.loop import RunLoop, train
from skinjob.train.model import build_backbone
from skinjob.train.reporter import Reporter
from skinjob.train.shared import Inputs, Job
from skinjob.train.views import Views
from skinjob.weights.file import read_backbone
from skinjob.words import list_first, pluralize

log = logging.getLogger("skinjob")


def run_job(
    folders: Sequence[Path],
    job_id: str | None = None,
    why_queued: Callable[[], Failure | None] = lambda: None,
    *,
    is_restart: bool = False,
    num_cpus: int | None = None,
) -> list[str]:
    """Trains the runs in *folders*; returns a sentence for each run that it skipped, with the why.

    All runs belong to the same sweep. Each continues after its last finished epoch. Heads are
    trained side by side on the same views. If all layers are trained, the runs follow each other,
    or a few train at the same time where that is faster (`num_at_once`). A run that fails does not
    stop the others. Runs that are done, or that another process trains,
    are skipped. Writes metrics, predictions, trained layers, log and state of each run.

    *is_restart* says that the queue has started this job before, *num_cpus* how many CPU cores it
    has given to the job, None for all that the process may use.

    Raises: the first error, after it is written to the state and the log.
    """
    runs = [Run(folder) for folder in folders]
    _require_one_sweep(runs)
    configs = {run: run.config() for run in runs}
    lease = take(runs, job_id, is_restart=is_restart)
    with logging_to(lease.runs):
        for run, reason in lease.skipped.items():
            log.info("skipped: %s", reason, extra={"run": run.name})
        if lease.runs:
            with track_run_state(lease, why_queued):
                job = _prepare({run: configs[run] for run in lease.runs}, lease, num_cpus)
                errors = [error for group in _groups(job) for error in _train_group(job, group)]
                if errors:
                    raise errors[0]
    return list(lease.skipped.values())


def _require_one_sweep(runs: Sequence[Run]) -> None:
    sweeps = sorted({str(run.sweep.folder.resolve()) for run in runs})
    if len(sweeps) > 1:
        raise ConfigError(
            f"runs of {len(sweeps)} sweeps in the same job: {', '.join(sweeps)}",
            "skinjob train RUN...   # with the runs of a single sweep",
        )


def _prepare(configs: Mapping[Run, TrainConfig], lease: Lease, num_cpus: int | None) -> Job:
    """Returns the job, with its list of images read and its weights checked."""
    sweep, recipe = next(iter(configs)).sweep, next(iter(configs.values()))
    info = sweep.info()
    checkpoints = {run: read_checkpoint(run, config) for run, config in configs.items()}
    precision = next((point.precision for point in checkpoints.values() if point.precision), None)
    images = read_index(sweep.images_file, Path(recipe.data), info.images.classes)
    if (
        images.fingerprint() != info.images.fingerprint
    ):  # a shorter list would be a smaller data set
        raise ImagesError(
            f"{sweep.images_file} has changed since the submit (see {sweep.sweep_file})",
            "skinjob submit --name ANOTHER",
        )
    images.require_in_archive()
    weights = _checked_weights(recipe, info.weights.sha256)
    backbone = read_backbone(weights)
    device = choose_device(
        recipe.device,
        precision or recipe.precision,
        num_cpus,
        trained=recipe.train,
        keeps_fp16=not backbone.needs_torchvision,
        try_bf16=lambda: try_bf16(build_backbone(backbone, weights), backbone.preprocessing.crop),
    )
    if precision:
        device = replace(device, precision_reason="as in the epochs before")
    _log_plan(configs, device, images)
    for run in configs:
        lease.note(run, device=device.type, precision=device.precision)
    source = ImageSource(
        images,
        recipe.augmentation_seed,
        sweep.decoded_folder,
        backbone.preprocessing,
        # With views, only the training images are needed again.
        kept=(Split.TRAIN,) if recipe.train == "head" else tuple(Split),
        num_cpus=device.num_threads,
    )
    return Job(configs, info, lease, checkpoints, device, source, backbone, weights)


def _groups(job: Job) -> list[list[Run]]:
    """Returns the runs that train at the same time: all heads, or a few runs of all layers."""
    if job.trains_heads:
        return [job.lease.runs]
    alike: dict[int, list[Run]] = {}
    for run in job.lease.runs:
        alike.setdefault(job.configs[run].batch_size, []).append(run)
    return [
        runs[first : first + size]
        for batch_size, runs in alike.items()
        for size in [num_at_once(job.device, batch_size)]
        for first in range(0, len(runs), size)
    ]


def _train_group(job: Job, runs: Sequence[Run]) -> list[SkinjobError]:
    """Trains runs side by side, on the same views or images; returns the errors of failed runs."""
    first = 1 + min(job.checkpoints[run].epoch for run in runs)
    epochs = range(first, max(job.configs[run].epochs for run in runs) + 1)
    tests = [View(split) for split in job.evaluated]
    views = tests + [View(Split.TRAIN, epoch) for epoch in epochs]
    if job.trains_heads:
        num_images = sum(len(job.source.files(view.split)) for view in views)
    else:
        num_images = sum(_images_left(job, run) for run in runs)
    label = list_first([run.name for run in runs], 1)
    if job.recipe.updates:
        label += f", {job.recipe.updates:,} updates"
    with progress(label, num_images, unit="images") as draw:
        reporter = Reporter(job.lease, runs[0], epochs, draw)
        of_heads = _views(job, views, reporter) if job.trains_heads else None
        with closing(_inputs(job, views, of_heads)) as inputs:
            test_inputs = {view.split: next(inputs) for view in tests}
            loops = []
            for run in runs:
                with suppress(TakenError):
                    loops.append(RunLoop(job, run, reporter))
            errors = train(job, loops, test_inputs, zip(epochs, inputs, strict=False))
    sweep, complete = runs[0].sweep, [loop for loop in loops if loop.is_going]
    num_epochs = max((loop.config.epochs for loop in complete), default=0)
    waits = bool(job.recipe.updates)  # another job's epochs may be fewer
    claim = claimed(sweep, num_epochs, waits=waits) if of_heads and complete else nullcontext(False)
    with claim as is_own:
        for loop in complete:
            loop.finish(test_inputs)
        if of_heads and is_own:
            record_converged(sweep, job, of_heads, num_epochs, test_inputs)
    return errors


def _images_left(job: Job, run: Run) -> int:
    """Returns how many training images a run will still be updated by."""
    config, num_train = job.configs[run], len(job.source.files(Split.TRAIN))
    total = num_train * config.epochs
    if config.updates:
        num_whole, num_cut = divmod(config.updates, -(-num_train // config.batch_size))
        total = num_train * num_whole + config.batch_size * num_cut
    return max(0, total - num_train * job.checkpoints[run].epoch)


def _inputs(
    job: Job, views: Sequence[View], of_heads: Views | None
) -> Generator[Inputs, None, None]:
    """Yields the inputs of the job's networks in each view: features or images."""
    if of_heads:
        torch.set_num_threads(1)  # a head is too small for two cores; the views use them
        yield from of_heads.in_turn(views)
    else:
        yield from (ImageBatches(job.source, view, job.device.type) for view in views)


def _views(job: Job, views: Sequence[View], reporter: Reporter) -> Views:
    """Returns the views of the job's heads."""

    def build() -> Forward:
        return choose_forward(build_backbone(job.backbone, job.weights), job.device)

    return Views(
        FeatureExtractor(build, job.device, job.source),
        weights_sha256=job.info.weights.sha256,
        epochs=max(config.epochs for config in job.configs.values()),
        cache=ViewCache(next(iter(job.configs)).sweep.views_folder, job.backbone.num_features),
        reporter=reporter,
    )


def _checked_weights(config: TrainConfig, sha256: str) -> Path:
    weights = Path(config.weights)
    if not weights.is_file():
        raise WeightsError(
            f"{weights}: no such file on {socket.gethostname()}",
            f"ls {shlex.quote(str(weights.parent))}",
        )
    actual = sha256_file(weights)
    if actual != sha256:
        raise WeightsError(
            f"{weights} has SHA-256 {actual[:16]}..., submitted was {sha256[:16]}...",
            f"cd {shlex.quote(str(weights.parent))} && sha256sum -c SHA256SUMS",
        )
    return weights


def _log_plan(configs: Mapping[Run, TrainConfig], device: Device, images: ImageSet) -> None:
    """Logs what will be trained, on which device, and why."""
    splits = {split: len(images.split(split)) for split in Split}
    num_train, num_runs = splits[Split.TRAIN], pluralize(len(configs), "run")
    log.info("job: process %d on %s, %s", os.getpid(), socket.gethostname(), num_runs)
    log.info(
        "versions: skinjob %s, python %s, torch %s",
        __version__,
        platform.python_version(),
        torch.__version__,
    )
    log.info("device: %s, %s (%s)", device.type, device.name, device.device_reason)
    log.info("precision: %s (%s)", device.precision, device.precision_reason)
    counts = ", ".join(f"{count} {split}" for split, count in splits.items() if count)
    log.info("images: %s, classes %s", counts, ", ".join(images.classes))
    for run, config in configs.items():
        own = {"run": run.name}
        log.info("run: %s", run.folder, extra=own)
        log.info("weights: %s", config.weights, extra=own)
        log.info(
            "recipe: %s trained, batch size %d, %s%d epochs of ceil(%d / %d) = %d updates, "
            "%s lr %g, seed %d",
            "head" if config.train == "head" else "all layers",
            config.batch_size,
            f"{config.updates} updates in " if config.updates else "",
            config.epochs,
            num_train,
            config.batch_size,
            -(-num_train // config.batch_size),
            config.schedule,
            config.lr,
            config.seed,
            extra=own,
        )
