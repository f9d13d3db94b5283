"""What a job does with its runs' folders: check, train, write. The folders alone say what to do."""

from __future__ import annotations

import logging
import os
import platform
import socket
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

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
from skinjob.train.checkpoint import restore_checkpoint, save_checkpoint
from skinjob.train.device import Device, choose_device
from skinjob.train.finetune import FullTraining
from skinjob.train.forward import choose_forward
from skinjob.train.loop import Epoch, HeadTraining
from skinjob.train.model import build_backbone
from skinjob.train.outputs import csv_row, write_predictions, write_trained
from skinjob.train.pixels import TEST, Pixels
from skinjob.train.reporter import Reporter, logging_to
from skinjob.train.streams import Streams
from skinjob.train.views import Views

log = logging.getLogger("skinjob")


def run_job(folders: Sequence[Path], job_id: str | None = None) -> None:
    """Trains the runs in *folders*, of one sweep; writes their metrics, predictions and layers.

    Heads are trained side by side on the same views, those in the cache not computed again. Each
    folder's state.json says how its run goes; one that fails does not stop the others.

    Raises: what went wrong first, after it is written to the state and the log.
    """
    runs = [Run(folder) for folder in folders]
    configs = {run: run.config() for run in runs}
    with logging_to(runs), telling(runs, job_id):
        faults = _train(configs)
        if faults:
            raise faults[0]


@contextmanager
def telling(runs: Sequence[Run], job_id: str | None) -> Iterator[None]:
    """Writes the runs' states: running, and, of those without a last word, failed or queued."""
    for run in runs:
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
    except SystemExit:  # submitit leaves so once it has requeued a preempted job
        for run in _at_work(runs):
            run.update_state(state="queued", pid=None)
        raise
    except BaseException as fault:
        for run in _at_work(runs):
            _fail(run, fault)
        raise


def _at_work(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.state().state == "running"]


def _fail(run: Run, fault: BaseException) -> None:
    """Writes what went wrong to a run's log and state."""
    if isinstance(fault, SkinjobError):
        log.error("error: %s", fault.message, extra={"run": run.name})
        log.error("fix:   %s", fault.remedy, extra={"run": run.name})
        error, remedy = fault.message, fault.remedy
    else:
        log.error("%s", "".join(traceback.format_exception(fault)), extra={"run": run.name})
        reason = str(fault).strip().split("\n")[-1]
        error = f"{type(fault).__name__}: {reason}".rstrip(": ")
        remedy = f"tail -n 40 {run.log_file}"
    run.update_state(state="failed", error=error, remedy=remedy, finished_utc=utc_now())


def _train(configs: dict[Run, TrainConfig]) -> list[SkinjobError]:
    """Trains the runs and returns what went wrong with single ones."""
    first, config = next(iter(configs.items()))
    info = first.sweep.info()
    device = choose_device(config.device, config.precision)
    images = read_index(
        first.sweep.images_file, Path(config.data), tuple(info["images"]["classes"])
    )
    _introduce(configs, device, images)
    for run in configs:
        run.update_state(device=device.type, precision=device.precision)
    weights = _checked_weights(config, info["weights"]["sha256"])
    pixels = Pixels(
        images,
        config.augmentation_seed,
        first.sweep.cache_folder,
        keeps_test=config.train == "all",
    )
    if config.train == "all":
        for run in configs:
            _train_all(run, configs[run], info, weights, device, pixels)
        return []
    return _train_heads(configs, info, weights, device, images, pixels)


def _train_heads(
    configs: dict[Run, TrainConfig],
    info: dict[str, Any],
    weights: Path,
    device: Device,
    images: ImageSet,
    pixels: Pixels,
) -> list[SkinjobError]:
    """Trains a head for each run, epoch by epoch on the same views; returns what failed."""
    torch.set_num_threads(1)  # a head is too small to share out; the cores belong to the views
    first, epochs = next(iter(configs)), next(iter(configs.values())).epochs
    num_images = len(images.split("test")) + epochs * len(images.split("train"))
    faults: list[SkinjobError] = []
    with progress(_label(configs), num_images, unit="images") as draw:
        reporter = Reporter(list(configs), epochs, draw)
        compiled_folder = first.sweep.cache_folder / "compiled"
        forward = choose_forward(build_backbone(weights), device, num_images, compiled_folder)
        streams = Streams(forward, device, pixels)
        views = Views(
            streams,
            images=images,
            weights_sha256=info["weights"]["sha256"],
            epochs=epochs,
            cache=ViewCache(first.sweep.views_folder),
            watcher=reporter,
        )
        with closing(views.in_turn([TEST, *range(1, epochs + 1)])) as coming:
            test_features = next(coming)
            labels, test_labels = pixels.labels(1), pixels.labels(TEST)
            trainings = {
                run: HeadTraining(
                    config,
                    num_classes=len(images.classes),
                    labels=labels,
                    test_features=test_features,
                    test_labels=test_labels,
                )
                for run, config in configs.items()
            }
            for run in trainings:
                run.start_metrics()
            asked = time.perf_counter()
            for number, features in enumerate(coming, 1):
                shared_s = (time.perf_counter() - asked) / len(trainings)
                for run, training in list(trainings.items()):
                    try:
                        epoch = training.epoch(number, features)
                    except SkinjobError as fault:
                        _fail(run, fault)
                        faults.append(fault)
                        reporter.ended(run)
                        del trainings[run]
                        continue
                    _write_epoch(run, configs[run], epoch, shared_s, reporter)
                    if number == epochs:
                        reporter.ended(run)
                        _finish(run, training.head, "head", epoch, info, pixels)
                if not trainings:
                    break
                asked = time.perf_counter()
    return faults


def _train_all(
    run: Run,
    config: TrainConfig,
    info: dict[str, Any],
    weights: Path,
    device: Device,
    pixels: Pixels,
) -> None:
    """Trains all layers of one run, from its checkpoint where there is one."""
    training = FullTraining(
        config,
        weights=weights,
        device=device,
        pixels=pixels,
        num_classes=len(info["images"]["classes"]),
    )
    done = restore_checkpoint(run, training)
    run.start_metrics(keep=done)
    num_images = config.epochs * len(pixels.files(1))
    with progress(run.name, num_images, unit="images") as draw:
        reporter = Reporter([run], config.epochs, draw)
        for number in range(done + 1, config.epochs + 1):
            epoch = training.epoch(number, reporter.training)
            _write_epoch(run, config, epoch, 0.0, reporter)
            if number < config.epochs:
                save_checkpoint(run, training, number)
        reporter.ended(run)
    _finish(run, training.model, "model", epoch, info, pixels)
    run.checkpoint_file.unlink(missing_ok=True)


def _write_epoch(
    run: Run, config: TrainConfig, epoch: Epoch, shared_s: float, reporter: Reporter
) -> None:
    """Writes an epoch to metrics.csv; *shared_s* is the run's share of the time for its view."""
    epoch.row["seconds"] += shared_s
    run.append_metrics(csv_row(run, config, epoch))
    reporter.epoch(run, epoch)


def _finish(
    run: Run,
    trained: torch.nn.Module,
    part: str,
    epoch: Epoch,
    info: dict[str, Any],
    pixels: Pixels,
) -> None:
    write_predictions(run, pixels.files(TEST), epoch, info["images"]["classes"])
    write_trained(run, trained, part, info)
    run.update_state(state="done", finished_utc=utc_now())
    log.info("done: %s", run.folder, extra={"run": run.name})


def _label(configs: dict[Run, TrainConfig]) -> str:
    first = next(iter(configs))
    return first.name if len(configs) == 1 else f"{first.name} and {len(configs) - 1} more"


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


def _introduce(configs: dict[Run, TrainConfig], device: Device, images: ImageSet) -> None:
    num_train, num_test = len(images.split("train")), len(images.split("test"))
    log.info("process %d on %s, %d runs", os.getpid(), socket.gethostname(), len(configs))
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
        updates = -(-num_train // config.batch_size)
        log.info(
            "run: %s, weights %s, batch size %d, %d epochs of ceil(%d / %d) = %d updates, %s",
            run.folder,
            config.weights,
            config.batch_size,
            config.epochs,
            num_train,
            config.batch_size,
            updates,
            f"{config.train} trained, {config.schedule} lr {config.lr:g}, seed {config.seed}",
            extra={"run": run.name},
        )
