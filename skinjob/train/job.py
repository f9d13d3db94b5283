"""What a job does with its runs' folders: check, train, write. The folders alone say what to do."""

from __future__ import annotations

import logging
import os
import platform
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from skinjob import __version__
from skinjob.config import TrainConfig
from skinjob.console import progress
from skinjob.errors import ConfigError, ImagesError, SkinjobError, WeightsError
from skinjob.files import sha256_file
from skinjob.images import ImageSet, read_index
from skinjob.runs import Run
from skinjob.train.cache import ViewCache
from skinjob.train.checkpoint import restore_checkpoint, save_checkpoint
from skinjob.train.device import Device, choose_device
from skinjob.train.features import Features
from skinjob.train.finetune import FullTraining
from skinjob.train.forward import Forward, choose_forward
from skinjob.train.loop import Epoch, HeadTraining
from skinjob.train.model import build_backbone
from skinjob.train.outputs import csv_row, write_predictions, write_trained
from skinjob.train.pixels import TEST, Pixels
from skinjob.train.reporter import Reporter, logging_to
from skinjob.train.streams import Streams
from skinjob.train.telling import tell_done, tell_failed, telling
from skinjob.train.views import Views

log = logging.getLogger("skinjob")


@dataclass(frozen=True)
class Job:
    """Runs of one sweep, and what they have in common, checked and ready."""

    configs: Mapping[Run, TrainConfig]
    info: dict[str, Any]
    """sweep.json."""
    device: Device
    images: ImageSet
    weights: Path
    pixels: Pixels

    @property
    def runs(self) -> list[Run]:
        return list(self.configs)

    @property
    def recipe(self) -> TrainConfig:
        """One run's config, for what is the same in all."""
        return next(iter(self.configs.values()))

    @property
    def cache(self) -> Path:
        return self.runs[0].sweep.cache_folder


def run_job(folders: Sequence[Path], job_id: str | None = None) -> None:
    """Trains the runs in *folders*, of one sweep; writes their metrics, predictions and layers.

    Heads are trained side by side on the same views, those in the cache not computed again. Each
    folder's state.json says how its run goes; one that fails does not stop the others.

    Raises: what went wrong first, after it is written to the state and the log.
    """
    runs = [Run(folder) for folder in folders]
    _require_one_sweep(runs)
    if os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
        runs = _left_over(runs, job_id)
    configs = {run: run.config() for run in runs}
    with logging_to(runs), telling(runs, job_id):
        if not runs:
            return
        job = _prepare(configs)
        faults = _train_heads(job) if job.recipe.train == "head" else _train_all(job)
        if faults:
            raise faults[0]


def _require_one_sweep(runs: Sequence[Run]) -> None:
    sweeps = sorted({str(run.sweep.folder.resolve()) for run in runs})
    if len(sweeps) > 1:
        raise ConfigError(
            f"runs of {len(sweeps)} sweeps in one job: {', '.join(sweeps)}",
            "skinjob train RUN..., for each sweep by itself",
        )


def _left_over(runs: Sequence[Run], job_id: str | None) -> list[Run]:
    """Returns the runs that are still this job's, once SLURM has started it again.

    Others are done, or failed and were submitted again: then another job has them.
    """
    jobs = runs[0].sweep.info()["jobs"]
    return [
        run for run in runs if run.state().state != "done" and jobs.get(run.name, job_id) == job_id
    ]


def _prepare(configs: Mapping[Run, TrainConfig]) -> Job:
    """Returns the job, its images listed and its weights checked."""
    sweep, recipe = next(iter(configs)).sweep, next(iter(configs.values()))
    info = sweep.info()
    device = choose_device(recipe.device, recipe.precision)
    images = read_index(sweep.images_file, Path(recipe.data), tuple(info["images"]["classes"]))
    if images.fingerprint() != info["images"]["fingerprint"]:  # a cut would be a smaller data set
        raise ImagesError(
            f"{sweep.images_file} is not what {sweep.sweep_file} was submitted with",
            "skinjob submit --name ANOTHER",
        )
    _introduce(configs, device, images)
    for run in configs:
        run.update_state(device=device.type, precision=device.precision)
    weights = _checked_weights(recipe, info["weights"]["sha256"])
    pixels = Pixels(
        images, recipe.augmentation_seed, sweep.cache_folder, keeps_test=recipe.train == "all"
    )
    return Job(configs, info, device, images, weights, pixels)


def _train_heads(job: Job) -> list[SkinjobError]:
    """Trains a head for each run, epoch by epoch on the same views; returns what failed."""
    torch.set_num_threads(1)  # a head is too small to share out; the cores belong to the views
    epochs, faults = job.recipe.epochs, []
    num_images = len(job.images.split("test")) + epochs * len(job.images.split("train"))
    label = job.runs[0].name + (f" and {len(job.runs) - 1} more" if len(job.runs) > 1 else "")
    with progress(label, num_images, unit="images") as draw:
        reporter = Reporter(job.runs, epochs, draw)
        views = _views(job, num_images, reporter)
        with closing(views.in_turn([TEST, *range(1, epochs + 1)])) as coming:
            trainings = _new_heads(job, next(coming))
            for number, (features, waited_s) in enumerate(_timed(coming), 1):
                share_s = waited_s / len(trainings)
                for run, training in list(trainings.items()):
                    try:
                        epoch = training.epoch(number, features)
                    except SkinjobError as fault:
                        faults.append(fault)
                        reporter.ended(run)
                        tell_failed(run, fault)
                        del trainings[run]
                    else:
                        _write_epoch(job, run, epoch, share_s, reporter)
                        if number == epochs:
                            reporter.ended(run)
                            _finish(job, run, epoch, training.head)
                if not trainings:
                    break
    return faults


def _views(job: Job, num_images: int, reporter: Reporter) -> Views:
    """Returns the views that the job's runs share with the other jobs of the sweep."""

    def choose() -> Forward:
        backbone = build_backbone(job.weights)
        return choose_forward(backbone, job.device, num_images, job.cache / "compiled")

    return Views(
        Streams(choose, job.device, job.pixels),
        images=job.images,
        weights_sha256=job.info["weights"]["sha256"],
        epochs=job.recipe.epochs,
        cache=ViewCache(job.runs[0].sweep.views_folder),
        watcher=reporter,
    )


def _new_heads(job: Job, test_features: Features) -> dict[Run, HeadTraining]:
    """Returns the training of each run before its first epoch, and makes its metrics.csv."""
    labels, test_labels = job.pixels.labels(1), job.pixels.labels(TEST)
    for run in job.runs:
        run.start_metrics()
    return {
        run: HeadTraining(
            config,
            num_classes=len(job.images.classes),
            labels=labels,
            test_features=test_features,
            test_labels=test_labels,
        )
        for run, config in job.configs.items()
    }


def _timed(coming: Iterable[Features]) -> Iterator[tuple[Features, float]]:
    """Yields features and the seconds that were waited for them."""
    asked = time.perf_counter()
    for features in coming:
        yield features, time.perf_counter() - asked
        asked = time.perf_counter()


def _train_all(job: Job) -> list[SkinjobError]:
    """Trains all layers of the runs, one after another; returns what failed."""
    faults = []
    for run in job.runs:
        try:
            _train_layers(job, run)
        except SkinjobError as fault:
            faults.append(fault)
            tell_failed(run, fault)
    return faults


def _train_layers(job: Job, run: Run) -> None:
    """Trains all layers of one run, from its checkpoint where there is one."""
    config = job.configs[run]
    training = FullTraining(
        config,
        weights=job.weights,
        device=job.device,
        pixels=job.pixels,
        num_classes=len(job.images.classes),
    )
    done = restore_checkpoint(run, training)
    run.start_metrics(keep=done)
    num_images = config.epochs * len(job.images.split("train"))
    with progress(run.name, num_images, unit="images") as draw:
        reporter = Reporter([run], config.epochs, draw, done=done)
        for number in range(done + 1, config.epochs + 1):
            epoch = training.epoch(number, reporter.training)
            _write_epoch(job, run, epoch, 0.0, reporter)
            if number < config.epochs:
                save_checkpoint(run, training, number)
        reporter.ended(run)
    _finish(job, run, epoch, training.model)
    run.checkpoint_file.unlink(missing_ok=True)


def _write_epoch(job: Job, run: Run, epoch: Epoch, shared_s: float, reporter: Reporter) -> None:
    """Writes an epoch to metrics.csv; *shared_s* is the run's share of the time for its view."""
    epoch.row["seconds"] += shared_s
    run.append_metrics(csv_row(run, job.configs[run], epoch))
    reporter.epoch(run, epoch)


def _finish(job: Job, run: Run, epoch: Epoch, trained: nn.Module) -> None:
    """Writes what the last epoch left."""
    write_predictions(run, job.pixels.files(TEST), epoch, job.images.classes)
    write_trained(run, trained, job.info)
    tell_done(run)


def _checked_weights(config: TrainConfig, sha256: str) -> Path:
    weights = Path(config.weights)
    if not weights.is_file():
        raise WeightsError(
            f"{weights}: no such file on {socket.gethostname()}", f"ls {weights.parent}"
        )
    found = sha256_file(weights)
    if found != sha256:
        raise WeightsError(
            f"{weights} has SHA-256 {found[:16]}..., submitted was {sha256[:16]}...",
            f"cd {weights.parent} && sha256sum -c SHA256SUMS",
        )
    return weights


def _introduce(configs: Mapping[Run, TrainConfig], device: Device, images: ImageSet) -> None:
    """Logs what is going to be trained, on what and why."""
    num_train, num_test = len(images.split("train")), len(images.split("test"))
    log.info(
        "job: process %d on %s, %d run%s",
        os.getpid(),
        socket.gethostname(),
        len(configs),
        "s" if len(configs) > 1 else "",
    )
    log.info(
        "versions: skinjob %s, python %s, torch %s, torchvision %s",
        __version__,
        platform.python_version(),
        torch.__version__,
        torchvision.__version__,
    )
    log.info("device: %s, %s (%s)", device.type, device.name, device.device_reason)
    log.info("precision: %s (%s)", device.precision, device.precision_reason)
    log.info(
        "images: %d train, %d test, classes %s", num_train, num_test, ", ".join(images.classes)
    )
    for run, config in configs.items():
        own = {"run": run.name}
        log.info("run: %s", run.folder, extra=own)
        log.info("weights: %s", config.weights, extra=own)
        log.info(
            "recipe: %s trained, batch size %d, %d epochs of ceil(%d / %d) = %d updates, "
            "%s lr %g, seed %d",
            "head" if config.train == "head" else "all layers",
            config.batch_size,
            config.epochs,
            num_train,
            config.batch_size,
            -(-num_train // config.batch_size),
            config.schedule,
            config.lr,
            config.seed,
            extra=own,
        )
