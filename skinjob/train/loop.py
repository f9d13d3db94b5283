"""The training loop of a head, from top to bottom."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from skinjob.config import TrainConfig
from skinjob.errors import RunError
from skinjob.train.features import Features
from skinjob.train.metrics import evaluate
from skinjob.train.model import build_head


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What an epoch left: its row of metrics, and the test set's logits."""

    number: int
    row: dict[str, float | int]
    """Columns of metrics.csv, as numbers. `seconds` is the epoch's own time."""
    num_train: int
    test_logits: Tensor  # (num_test, num_classes) float32


class HeadTraining:
    """A new head in training, an epoch at a time.

    On the CPU whatever computes the views: a head of a few thousand numbers is a matter of
    microseconds an update, and from the same views its CSV is then the same everywhere.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        num_classes: int,
        labels: Tensor,
        test_features: Features,
        test_labels: Tensor,
    ) -> None:
        self.config = config
        self.labels = labels  # (num_train,) int64
        self.test_features = test_features  # (num_test, 512) float32
        self.test_labels = test_labels  # (num_test,) int64
        self.head = build_head(num_classes, config.seed)
        self.optimizer = torch.optim.Adadelta(self.head.parameters(), lr=config.lr)
        self.updates = 0

    def epoch(self, number: int, features: Features) -> Epoch:
        """Trains on one view and returns what it left.

        Raises: RunError at the first loss that is not a number.
        """
        start = time.perf_counter()
        config, labels = self.config, self.labels
        num_updates = config.epochs * math.ceil(len(labels) / config.batch_size)
        loss_sum, num_correct = 0.0, 0
        for batch in order(len(labels), config.seed, number).split(config.batch_size):
            logits = self.head(features.rows(batch))  # (B, num_classes)
            loss = functional.cross_entropy(logits, labels[batch])
            set_lr(self.optimizer, config, self.updates, num_updates)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.updates += 1
            require_finite(loss, number, self.updates)
            loss_sum += loss.item() * len(batch)
            num_correct += int((logits.argmax(dim=1) == labels[batch]).sum())

        with torch.inference_mode():
            parts = [self.head(part) for part in self.test_features.in_turn()]
        test_logits = torch.cat(parts)  # (num_test, num_classes)
        row = {
            "epoch": number,
            "updates": self.updates,
            "lr": self.optimizer.param_groups[0]["lr"],
            # As they were met in training, before each update: what the recipe's loop adds up.
            "train_loss": loss_sum / len(labels),
            "train_accuracy": num_correct / len(labels),
            **evaluate(test_logits, self.test_labels),
            "seconds": time.perf_counter() - start,
        }
        return Epoch(number=number, row=row, num_train=len(labels), test_logits=test_logits)


def order(num_images: int, seed: int, epoch: int) -> Tensor:
    """Returns the order of the images in an epoch, (num_images,) int64, by its arguments alone."""
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


def require_finite(loss: Tensor, epoch: int, update: int) -> None:
    if not loss.isfinite():
        raise RunError(
            f"the loss is {loss.item()} at update {update}, in epoch {epoch}",
            "submit again with a smaller --lr",
        )
