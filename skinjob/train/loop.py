"""The training loop, of a head or of all layers, from top to bottom.

`train` goes through the epochs. `RunLoop.train_epoch` goes through the batches of an epoch:
forward, loss, update. Then it evaluates, and writes checkpoint, metrics.csv and state.json.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from skinjob.config import TrainConfig
from skinjob.data.images import ImageFile, Split
from skinjob.errors import RunError, SkinjobError
from skinjob.files import csv_text, replacing, sorted_safetensors
from skinjob.sweeps.layout import Run
from skinjob.sweeps.records import METRICS, SweepInfo, utc_now
from skinjob.train.checkpoint import Checkpoint, remove_checkpoints, save_checkpoint
from skinjob.train.device import Device
from skinjob.train.images import ImageSource
from skinjob.train.lease import Lease, TakenError, record_done, record_failure
from skinjob.train.model import Network, new_network
from skinjob.train.reporter import Reporter
from skinjob.weights.backbones import Backbone

EVALUATED = (Split.TEST,)
"""The splits that are evaluated after each epoch. Each has columns in metrics.csv."""


class Inputs(Protocol):
    """The inputs of a network in a view: features for a head, images for all layers."""

    def batches(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yields the inputs of each part, (B, ...) float32; a part is (B,) int64 positions."""


@dataclass(frozen=True)
class Job:
    """Runs of the same sweep, and what they share."""

    configs: Mapping[Run, TrainConfig]
    info: SweepInfo
    """sweep.json."""
    lease: Lease
    checkpoints: Mapping[Run, Checkpoint]
    """The point from which each run continues."""
    device: Device
    source: ImageSource
    backbone: Backbone
    weights: Path

    @property
    def recipe(self) -> TrainConfig:
        """The config of a run, for the fields that all runs share."""
        return next(iter(self.configs.values()))

    @property
    def trains_heads(self) -> bool:
        return self.recipe.train == "head"


def train(
    loops: list[RunLoop], tests: Mapping[Split, Inputs], epochs: Iterable[tuple[int, Inputs]]
) -> list[SkinjobError]:
    """Trains runs side by side, each epoch on the same inputs; returns the errors of failed runs.

    *tests* are the inputs of the evaluated splits. A run that fails, or that another process has
    taken, does not stop the others.
    """
    errors: list[SkinjobError] = []
    asked = time.perf_counter()
    for epoch, inputs in epochs:  # meanwhile the next view is computed
        waited_s = time.perf_counter() - asked
        unfinished = [loop for loop in loops if loop.epoch < epoch]
        for loop in unfinished:
            try:
                loop.train_epoch(epoch, inputs, tests, waited_s / len(unfinished))
            except TakenError:
                loops.remove(loop)
            except SkinjobError as error:
                record_failure(loop.job.lease, loop.run, error)
                errors.append(error)
                loops.remove(loop)
        if not loops:
            break
        asked = time.perf_counter()
    for loop in loops:
        loop.finish(tests)
    return errors


class RunLoop:
    """A run in training: its network, its finished epochs, and its files."""

    def __init__(self, job: Job, run: Run, reporter: Reporter) -> None:
        """Continues after the run's checkpoint, and cuts metrics.csv to its epochs.

        Raises: TakenError if another process has taken the run.
        """
        self.job, self.run, self.reporter = job, run, reporter
        self.config = job.configs[run]
        images, checkpoint = job.source.images, job.checkpoints[run]
        self.positive = images.positive_label(self.config.positive)
        self.network = new_network(
            self.config, job.backbone, job.weights, len(images.classes), job.device
        )
        if not job.lease.say(run, epoch=checkpoint.epoch, resumed_epoch=checkpoint.epoch):
            raise TakenError(run)
        job.lease.remove_partials(run)
        if checkpoint.epoch:
            self.network.restore(checkpoint.state)
        self.rows = [list(row) for row in checkpoint.rows]
        self.last_logits: dict[Split, Tensor] = {}  # (num_images, num_classes) float32 each
        run.write_metrics(self.rows)

    @property
    def epoch(self) -> int:
        """The number of epochs that are finished and on disk."""
        return len(self.rows)

    def train_epoch(
        self, epoch: int, inputs: Inputs, tests: Mapping[Split, Inputs], waited_s: float
    ) -> None:
        """Trains on every image once, evaluates, and writes checkpoint, metrics.csv and state.json.

        *waited_s* is the run's share of the waiting time for its inputs.

        Raises: RunError at the first loss that is not a number; TakenError if another process has
        taken the run.
        """
        start, metrics = time.perf_counter(), EpochMetrics()
        config, network, lease = self.config, self.network, self.job.lease
        optimizer = network.optimizer
        labels = self.job.source.labels(Split.TRAIN)  # (num_train,) int64
        parts = order(len(labels), config.seed, epoch).split(config.batch_size)
        network.module.train()
        for part, batch in zip(parts, inputs.batches(parts), strict=True):
            targets = labels[part].to(network.device)  # (B,) int64
            logits = network(batch)  # (B, num_classes) float32
            loss = functional.cross_entropy(logits, targets)
            set_lr(optimizer, config, network.updates, config.epochs * len(parts))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            network.updates += 1
            if not loss.isfinite():
                raise RunError(
                    f"the loss is {loss.item()} at update {network.updates}, in epoch {epoch}",
                    "submit again with a smaller --lr",
                )
            metrics.add(loss, logits, targets)
            if not lease.has(self.run):  # a heartbeat has read the token of another process
                raise TakenError(self.run)
            if config.train == "all":  # a head's epoch takes milliseconds
                seconds = time.perf_counter() - start
                self.reporter.trained(epoch, metrics.num_images, len(labels), seconds)

        row: dict[str, Any] = {
            "epoch": epoch,
            "updates": network.updates,
            "lr": optimizer.param_groups[0]["lr"],
            "train_loss": metrics.loss,
            "train_accuracy": metrics.accuracy,
        }
        for split, test in tests.items():
            logits = self.last_logits[split] = self.logits(split, test)
            scores = evaluate(logits, self.job.source.labels(split), self.positive)
            row |= {f"{split}_{name}": value for name, value in scores.items()}
        row["seconds"] = time.perf_counter() - start + waited_s
        row["images_per_s"] = metrics.num_images / row["seconds"]

        if not lease.check(self.run):
            raise TakenError(self.run)
        self.rows.append(metrics_row(self.run, config, row))
        checkpoint = Checkpoint(self.rows, network.state(), self.job.device.precision)
        save_checkpoint(self.run, config, checkpoint)  # first: it can restore the other files
        self.run.write_metrics(self.rows, is_durable=False)
        self.reporter.finished_epoch(self.run, row)

    @torch.no_grad()
    def logits(self, split: Split, inputs: Inputs) -> Tensor:
        """Returns the logits of all images of a split, (num_images, num_classes) float32, CPU."""
        self.network.module.eval()
        num_images = len(self.job.source.files(split))
        parts = torch.arange(num_images).split(self.network.batch_size)
        return torch.cat([self.network(batch).cpu() for batch in inputs.batches(parts)])

    def finish(self, tests: Mapping[Split, Inputs]) -> None:
        """Writes predictions, trained layers, and the status done."""
        run, job = self.run, self.job
        if not job.lease.check(run):
            return
        if Split.TEST not in self.last_logits:  # the checkpoint has all epochs
            self.last_logits[Split.TEST] = self.logits(Split.TEST, tests[Split.TEST])
        logits = self.last_logits[Split.TEST]
        write_predictions(run, job.source.files(Split.TEST), logits, job.source.images.classes)
        write_trained(run, self.network, job.backbone, job.info)
        run.write_metrics(self.rows)
        if record_done(job.lease, run):
            remove_checkpoints(run)


class EpochMetrics:
    """Loss and accuracy over an epoch; each batch counts before its update."""

    def __init__(self) -> None:
        self.num_images, self.num_correct, self.loss_sum = 0, 0, 0.0

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Adds a batch; *logits* (B, num_classes), *targets* (B,) int64."""
        self.num_images += len(targets)
        self.num_correct += int((logits.argmax(dim=1) == targets).sum())
        self.loss_sum += loss.item() * len(targets)

    @property
    def loss(self) -> float:
        return self.loss_sum / self.num_images

    @property
    def accuracy(self) -> float:
        return self.num_correct / self.num_images


def order(num_images: int, seed: int, epoch: int) -> Tensor:
    """Returns the order of the images in an epoch, (num_images,) int64."""
    state = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0]
    return torch.randperm(
        num_images, generator=torch.Generator().manual_seed(int(state >> np.uint64(1)))
    )


def set_lr(
    optimizer: torch.optim.Optimizer, config: TrainConfig, update: int, num_updates: int
) -> None:
    """Sets the learning rate of an update, counted from 0, by the config's schedule."""
    share = 1.0
    if config.schedule == "cosine":
        share = 0.5 * (1 + math.cos(math.pi * update / num_updates))
    for group in optimizer.param_groups:
        group["lr"] = config.lr * share


def evaluate(logits: Tensor, labels: Tensor, positive: int) -> dict[str, float]:
    """Returns the metrics of a split by name; the last three are of the class *positive*.

    *logits* (N, num_classes) float32, *labels* (N,) int64.
    """
    is_positive = labels == positive
    predicted = logits.argmax(dim=1)
    called = predicted == positive
    return {
        "loss": functional.cross_entropy(logits, labels).item(),
        "accuracy": (predicted == labels).double().mean().item(),
        "auc": auc(logits.softmax(dim=1)[:, positive].numpy(), is_positive.numpy()),
        "sensitivity": called[is_positive].double().mean().item(),
        "specificity": (~called[~is_positive]).double().mean().item(),
    }


def auc(scores: NDArray[np.float32], positive: NDArray[np.bool_]) -> float:
    """Returns the area under the ROC curve: how often a positive scores above a negative.

    It is Mann-Whitney's U divided by the number of pairs. Ties count 0.5. NaN if there are no
    positives or no negatives.

    >>> auc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, False, True, True]))
    0.875
    """
    num_positive = int(positive.sum())
    num_pairs = num_positive * (len(positive) - num_positive)
    if num_pairs == 0:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # ties share their mean rank
    return float((ranks[positive].sum() - num_positive * (num_positive + 1) / 2) / num_pairs)


def metrics_row(run: Run, config: TrainConfig, row: Mapping[str, Any]) -> list[str]:
    """Returns a row of metrics.csv, in the order of METRICS; NaN leaves a cell empty."""
    formats = {"lr": "g", "seconds": ".3f", "images_per_s": ".1f", "epoch": "d", "updates": "d"}
    cells = {
        column: "" if math.isnan(value) else format(value, formats.get(column, ".6f"))
        for column, value in row.items()
    }
    cells |= {
        "sweep": csv_text(run.sweep.name),
        "run": run.name,
        "batch_size": str(config.batch_size),
        "seed": str(config.seed),
        "time_utc": utc_now(),
    }
    return [cells[column] for column in METRICS]


def write_predictions(
    run: Run, files: Sequence[ImageFile], logits: Tensor, classes: Sequence[str]
) -> None:
    """Writes predictions.csv: the probabilities of every test image after the last epoch.

    *logits* (num_test, num_classes), in the order of *files*.
    """
    probabilities = logits.softmax(dim=1)  # (num_test, num_classes)
    with (
        replacing(run.predictions_file) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as rows,
    ):
        writer = csv.writer(rows)
        writer.writerow(["image", "label", "predicted", *(f"p_{name}" for name in classes)])
        for file, p in zip(files, probabilities.tolist(), strict=True):
            names = csv_text(classes[file.label]), csv_text(classes[p.index(max(p))])
            writer.writerow([file.path, *names, *(f"{value:.6f}" for value in p)])


def write_trained(run: Run, network: Network, backbone: Backbone, info: SweepInfo) -> None:
    """Writes head.safetensors or model.safetensors; tensors are named as in torchvision."""
    metadata = {
        "architecture": backbone.name,
        "classes": ",".join(info.images.classes),
        "backbone_sha256": info.weights.sha256,
        "run": f"{run.sweep.name}/{run.name}",
    }
    prefix = f"{backbone.head}." if network.part == "head" else ""
    state = network.module.state_dict()
    tensors = {f"{prefix}{name}": tensor.cpu().contiguous() for name, tensor in state.items()}
    with replacing(run.trained_file(network.part)) as partial:
        partial.write_bytes(sorted_safetensors(save(tensors, metadata)))
