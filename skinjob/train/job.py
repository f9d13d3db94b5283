"""What a job does with its runs' folders: check, train, write. The folders alone say what to do."""

from __future__ import annotations

import logging
import os
import platform
import shlex
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from skinjob import __version__
from skinjob.config import TrainConfig
from skinjob.console import counted, progress
from skinjob.data.images import ImageSet, read_index
from skinjob.errors import ConfigError, ImagesError, SkinjobError, WeightsError
from skinjob.files import sha256_file
from skinjob.sweeps.layout import Run, Sweep
from skinjob.train.cache import ViewCache
from skinjob.train.checkpoint import Checkpoint, read_checkpoint, remove_checkpoints
from skinjob.train.course import Course, T
from skinjob.train.device import Device, choose_device
from skinjob.train.features import Features
from skinjob.train.finetune import FullTraining
from skinjob.train.forward import Forward, choose_forward
from skinjob.train.holding import Hold, TakenError
from skinjob.train.loop import Epoch, HeadTraining
from skinjob.train.model import build_backbone
from skinjob.train.outputs import write_predictions, write_trained
from skinjob.train.pixels import TEST, Pixels
from skinjob.train.reporter import Reporter, logging_to
from skinjob.train.streams import Streams
from skinjob.train.telling import take, tell_done, tell_failed, telling
from skinjob.train.views import Views
from skinjob.weights.file import read_backbone
from skinjob.words import list_first

log = logging.getLogger("skinjob")


@dataclass(frozen=True)
class Job:
    """Runs of one sweep, and what they have in common, checked and ready."""

    configs: Mapping[Run, TrainConfig]
    info: dict[str, Any]
    """sweep.json."""
    hold: Hold
    checkpoints: Mapping[Run, Checkpoint]
    """Where each run goes on."""
    device: Device
    images: ImageSet
    weights: Path
    pixels: Pixels

    @property
    def recipe(self) -> TrainConfig:
        """One run's config, for what is the same in all."""
        return next(iter(self.configs.values()))

    @property
    def sweep(self) -> Sweep:
        return next(iter(self.configs)).sweep


def run_job(
    folders: Sequence[Path],
    job_id: str | None = None,
    why_queued: Callable[[], str | None] = lambda: None,
) -> list[str]:
    """Trains the runs in *folders*, of one sweep; writes their metrics, predictions and layers.

    Each goes on after its last finished epoch. Heads are trained side by side on the same views,
    those in the cache not computed again. Each folder's state.json says how its run goes; one that
    fails does not stop the others. Runs that are done, or in another process's hands, are left
    alone: returns why, a sentence for each.

    Raises: what went wrong first, after it is written to the state and the log.
    """
    runs = [Run(folder) for folder in folders]
    _require_one_sweep(runs)
    configs = {run: run.config() for run in runs}
    hold = take(runs, job_id)
    with logging_to(hold.runs):
        for run, why in hold.left_alone.items():
            log.info("left alone: %s", why, extra={"run": run.name})
        if hold.runs:
            with telling(hold, why_queued):
                job = _prepare({run: configs[run] for run in hold.runs}, hold)
                faults = _train_heads(job) if job.recipe.train == "head" else _train_all(job)
                if faults:
                    raise faults[0]
    return list(hold.left_alone.values())


def _require_one_sweep(runs: Sequence[Run]) -> None:
    sweeps = sorted({str(run.sweep.folder.resolve()) for run in runs})
    if len(sweeps) > 1:
        raise ConfigError(
            f"runs of {len(sweeps)} sweeps in one job: {', '.join(sweeps)}",
            "skinjob train RUN..., for each sweep by itself",
        )


def _prepare(configs: Mapping[Run, TrainConfig], hold: Hold) -> Job:
    """Returns the job, its images listed and its weights checked."""
    sweep, recipe = next(iter(configs)).sweep, next(iter(configs.values()))
    info = sweep.info()
    checkpoints = {run: read_checkpoint(run, config) for run, config in configs.items()}
    device = _device(recipe, checkpoints.values())
    images = read_index(sweep.images_file, Path(recipe.data), tuple(info["images"]["classes"]))
    if images.fingerprint() != info["images"]["fingerprint"]:  # a cut would be a smaller data set
        raise ImagesError(
            f"{sweep.images_file} is not what {sweep.sweep_file} was submitted with",
            "skinjob submit --name ANOTHER",
        )
    _introduce(configs, device, images)
    for run in configs:
        hold.note(run, device=device.type, precision=device.precision)
    weights = _checked_weights(recipe, info["weights"]["sha256"])
    pixels = Pixels(
        images,
        recipe.augmentation_seed,
        sweep.cache_folder,
        keeps_test=recipe.train == "all",
        preprocessing=read_backbone(weights).preprocessing,
    )
    return Job(configs, info, hold, checkpoints, device, images, weights, pixels)


def _device(recipe: TrainConfig, checkpoints: Iterable[Checkpoint]) -> Device:
    """Returns the recipe's device, in the arithmetic of the epochs that are done already."""
    for checkpoint in checkpoints:
        if checkpoint.precision:
            device = choose_device(recipe.device, checkpoint.precision)
            return replace(device, precision_reason="as in the epochs before")
    return choose_device(recipe.device, recipe.precision)


def _train_heads(job: Job) -> list[SkinjobError]:
    """Trains a head for each run, epoch by epoch on the same views; returns what failed."""
    torch.set_num_threads(1)  # a head is too small to share out; the cores belong to the views
    first = 1 + min(checkpoint.epoch for checkpoint in job.checkpoints.values())
    epochs, faults = job.recipe.epochs, []
    num_test, num_train = (len(job.images.split(split)) for split in ("test", "train"))
    names = [run.name for run in job.configs]
    label = list_first(names, 1)
    with progress(label, num_test + (epochs - first + 1) * num_train, unit="images") as draw:
        reporter = Reporter(job.hold, next(iter(job.configs)), epochs, first, draw)
        views = _views(job, num_test + epochs * num_train, reporter)
        with closing(views.in_turn([TEST, *range(first, epochs + 1)])) as coming:
            courses = _heads(job, next(coming))
            for number, (features, waited_s) in enumerate(_timed(coming), first):
                at_work = [course for course in courses if course.done < number]
                for course in at_work:
                    try:
                        epoch = course.training.epoch(number, features)
                        epoch.row["seconds"] += waited_s / len(at_work)
                        is_kept = _keep(job, course, epoch, reporter)
                    except SkinjobError as error:
                        faults.append(error)
                        tell_failed(job.hold, course.run, error)
                        is_kept = False
                    if not is_kept:
                        courses.remove(course)
                if not courses:
                    break
            for course in courses:
                _finish(job, course, course.training.test_logits())
    return faults


def _views(job: Job, num_images: int, reporter: Reporter) -> Views:
    """Returns the views that the job's runs share with the other jobs of the sweep.

    *num_images* is what the views of the sweep come to, whoever computes them and when.
    """

    def choose() -> Forward:
        backbone = build_backbone(job.weights)
        folder, side = job.sweep.cache_folder / "compiled", job.pixels.preprocessing.crop
        return choose_forward(backbone, job.device, num_images, folder, side)

    return Views(
        Streams(choose, job.device, job.pixels),
        images=job.images,
        weights_sha256=job.info["weights"]["sha256"],
        epochs=job.recipe.epochs,
        cache=ViewCache(job.sweep.views_folder),
        watcher=reporter,
    )


def _heads(job: Job, test_features: Features) -> list[Course[HeadTraining]]:
    """Returns the course of each run, from its checkpoint on."""
    labels, test_labels = job.pixels.labels(1), job.pixels.labels(TEST)
    courses = []
    for run, config in job.configs.items():
        training = HeadTraining(
            config,
            num_classes=len(job.images.classes),
            positive=job.images.positive_label(config.positive),
            labels=labels,
            test_features=test_features,
            test_labels=test_labels,
        )
        with suppress(TakenError):
            courses.append(_begin(job, run, training))
    return courses


def _timed(coming: Iterable[Features]) -> Iterator[tuple[Features, float]]:
    """Yields features and the seconds that were waited for them."""
    asked = time.perf_counter()
    for features in coming:
        yield features, time.perf_counter() - asked
        asked = time.perf_counter()


def _train_all(job: Job) -> list[SkinjobError]:
    """Trains all layers of the runs, one after another; returns what failed."""
    faults = []
    for run in job.configs:
        try:
            _train_layers(job, run)
        except TakenError:
            continue
        except SkinjobError as error:
            faults.append(error)
            tell_failed(job.hold, run, error)
    return faults


def _train_layers(job: Job, run: Run) -> None:
    """Trains all layers of one run. Raises: TakenError once another process has it."""
    config = job.configs[run]
    training = FullTraining(
        config,
        weights=job.weights,
        device=job.device,
        pixels=job.pixels,
        num_classes=len(job.images.classes),
        positive=job.images.positive_label(config.positive),
    )
    course = _begin(job, run, training)
    first, test_logits = course.done + 1, None
    num_images = (config.epochs - course.done) * len(job.images.split("train"))
    with progress(run.name, num_images, unit="images") as draw:
        reporter = Reporter(job.hold, run, config.epochs, first, draw)
        for number in range(first, config.epochs + 1):
            epoch = training.epoch(number, reporter.training)
            if not _keep(job, course, epoch, reporter):
                raise TakenError(run)
            test_logits = epoch.test_logits
    _finish(job, course, training.test_logits() if test_logits is None else test_logits)


def _begin(job: Job, run: Run, training: T) -> Course[T]:
    """Returns a run's course from its checkpoint on. Raises: TakenError if it is another's now."""
    checkpoint = job.checkpoints[run]
    if not job.hold.say(run, epoch=checkpoint.epoch, resumed_epoch=checkpoint.epoch):
        raise TakenError(run)
    job.hold.remove_partials(run)
    return Course(run, training, checkpoint, job.device.precision)


def _keep(job: Job, course: Course[T], epoch: Epoch, reporter: Reporter) -> bool:
    """Writes an epoch, unless another process has the run by now; returns whether it did."""
    if not job.hold.check(course.run):
        return False
    course.keep(epoch)
    reporter.epoch(course.run, epoch)
    return True


def _finish(job: Job, course: Course[T], test_logits: Tensor) -> None:
    """Writes what the last epoch left, (num_test, num_classes) *test_logits* among it."""
    run = course.run
    if not job.hold.check(run):
        return
    write_predictions(run, job.pixels.files(TEST), test_logits, job.images.classes)
    write_trained(run, course.training.trained, job.info)
    run.write_metrics(course.rows)
    if tell_done(job.hold, run):
        remove_checkpoints(run)


def _checked_weights(config: TrainConfig, sha256: str) -> Path:
    weights = Path(config.weights)
    if not weights.is_file():
        raise WeightsError(
            f"{weights}: no such file on {socket.gethostname()}",
            f"ls {shlex.quote(str(weights.parent))}",
        )
    found = sha256_file(weights)
    if found != sha256:
        raise WeightsError(
            f"{weights} has SHA-256 {found[:16]}..., submitted was {sha256[:16]}...",
            f"cd {shlex.quote(str(weights.parent))} && sha256sum -c SHA256SUMS",
        )
    return weights


def _introduce(configs: Mapping[Run, TrainConfig], device: Device, images: ImageSet) -> None:
    """Logs what is going to be trained, on what and why."""
    num_train, num_test = len(images.split("train")), len(images.split("test"))
    log.info(
        "job: process %d on %s, %s",
        os.getpid(),
        socket.gethostname(),
        counted(len(configs), "run"),
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
