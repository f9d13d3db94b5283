"""What a job does with a run's folder: check, train, write. The folder alone says what to do."""

from __future__ import annotations

import logging
import os
import platform
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torchvision

from skinjob import __version__
from skinjob.config import TrainConfig
from skinjob.console import progress
from skinjob.errors import SkinjobError, WeightsError
from skinjob.files import sha256_file
from skinjob.images import ImageSet, read_index
from skinjob.runs import Run, utc_now
from skinjob.train.cache import ViewCache
from skinjob.train.device import Device, choose_device
from skinjob.train.loop import train
from skinjob.train.model import build_backbone
from skinjob.train.outputs import csv_row, write_head, write_predictions
from skinjob.train.reporter import Reporter
from skinjob.train.views import Views

log = logging.getLogger("skinjob")


def run_job(folder: Path, job_id: str | None = None) -> None:
    """Trains the run in *folder* from its first epoch; writes metrics, predictions and head.

    The folder's state.json says how it goes; views that are in the cache are not computed again.

    Raises: what went wrong, after it is written to the state and the log.
    """
    run = Run(folder)
    config = run.config()
    with logging_to(run.log_file), telling(run, job_id):
        _train(run, config)


@contextmanager
def telling(run: Run, job_id: str | None) -> Iterator[None]:
    """Writes the run's state: running, then done, failed, or queued when it is preempted."""
    run.update_state(
        state="running",
        job_id=job_id,
        host=socket.gethostname(),
        pid=os.getpid(),
        epoch=0,
        views_computed=0,
        views_read=0,
        started_utc=utc_now(),
        finished_utc=None,
        error=None,
        remedy=None,
    )
    try:
        yield
    except SkinjobError as fault:
        log.error("error: %s", fault.message)
        log.error("fix:   %s", fault.remedy)
        run.update_state(
            state="failed", error=fault.message, remedy=fault.remedy, finished_utc=utc_now()
        )
        raise
    except SystemExit:  # submitit leaves so once it has requeued a preempted job
        run.update_state(state="queued", pid=None)
        raise
    except BaseException as fault:
        log.error("%s", traceback.format_exc())
        reason = str(fault).strip().split("\n")[-1]
        run.update_state(
            state="failed",
            error=f"{type(fault).__name__}: {reason}".rstrip(": "),
            remedy=f"tail -n 40 {run.log_file}",
            finished_utc=utc_now(),
        )
        raise
    run.update_state(state="done", finished_utc=utc_now())


def _train(run: Run, config: TrainConfig) -> None:
    info = run.sweep.info()
    classes = tuple(info["images"]["classes"])
    device = choose_device(config.device, config.precision)
    images = read_index(run.sweep.images_file, Path(config.data), classes)
    _introduce(run, config, device, images)
    run.update_state(device=device.type, precision=device.precision)

    num_images = len(images.split("test")) + config.epochs * len(images.split("train"))
    with progress(run.name, num_images, unit="images") as draw:
        reporter = Reporter(run, config.epochs, draw)
        views = Views(
            backbone=build_backbone(_checked_weights(config, info["weights"]["sha256"])),
            device=device,
            images=images,
            weights_sha256=info["weights"]["sha256"],
            augmentation_seed=config.augmentation_seed,
            epochs=config.epochs,
            cache=ViewCache(run.sweep.views_folder),
            watcher=reporter,
        )
        run.start_metrics()
        for epoch in train(config, views, len(classes)):
            run.append_metrics(csv_row(run, config, epoch))
            reporter.epoch(epoch)
    write_predictions(run, views, epoch, classes)
    write_head(run, epoch, info)
    log.info("done: %s", run.folder)


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


def _introduce(run: Run, config: TrainConfig, device: Device, images: ImageSet) -> None:
    num_train, num_test = len(images.split("train")), len(images.split("test"))
    log.info("run: %s on %s, process %d", run.folder, socket.gethostname(), os.getpid())
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
    log.info("weights: %s", config.weights)
    updates = -(-num_train // config.batch_size)
    log.info(
        "recipe: batch size %d, %d epochs of ceil(%d / %d) = %d updates, Adadelta lr %g, seed %d",
        config.batch_size,
        config.epochs,
        num_train,
        config.batch_size,
        updates,
        config.lr,
        config.seed,
    )


@contextmanager
def logging_to(file: Path) -> Iterator[None]:
    """Sends the log to *file*, after what earlier attempts left in it, and to stdout."""
    handlers = [logging.FileHandler(file, encoding="utf-8"), _Printer()]
    for handler in handlers:
        handler.setFormatter(_utc_formatter())
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


class _Printer(logging.Handler):
    """Prints to what stdout is at the time: a progress bar takes its place while it is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)


def _utc_formatter() -> logging.Formatter:
    formatter = logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    return formatter
