"""The training loop of a head, from top to bottom."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
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


class Tally:
    """What an epoch comes to, as its batches are met: before each update, as the recipe's loop."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.start = time.perf_counter()
        self.num_images, self.num_correct, self.loss_sum = 0, 0, 0.0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor, update: int) -> None:
        """Counts a batch in; *logits* (B, num_classes), *labels* (B,) int64.

        Raises: RunError when the loss is not a number.
        """
        if not loss.isfinite():
            raise RunError(
                f"the loss is {loss.item()} at update {update}, in epoch {self.number}",
                "submit again with a smaller --lr",
            )
        self.num_images += len(labels)
        self.num_correct += int((logits.argmax(dim=1) == labels).sum())
        self.loss_sum += loss.item() * len(labels)

    def epoch(
        self,
        optimizer: torch.optim.Optimizer,
        updates: int,
        test_logits: Tensor,
        test_labels: Tensor,
        positive: int,
    ) -> Epoch:
        """Returns the epoch, with what its test says: (num_test, num_classes) and (num_test,).

        *positive* is the label of the positive class.
        """
        row = {
            "epoch": self.number,
            "updates": updates,
            "lr": optimizer.param_groups[0]["lr"],
            "train_loss": self.loss_sum / self.num_images,
            "train_accuracy": self.num_correct / self.num_images,
            **evaluate(test_logits, test_labels, positive),
            "seconds": time.perf_counter() - self.start,
        }
        return Epoch(
            number=self.number, row=row, num_train=self.num_images, test_logits=test_logits
        )


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
        positive: int,
        labels: Tensor,
        test_features: Features,
        test_labels: Tensor,
    ) -> None:
        self.config = config
        self.positive = positive  # the label of the class that metrics look for
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
        tally = Tally(number)
        config, labels = self.config, self.labels
        num_updates = config.epochs * math.ceil(len(labels) / config.batch_size)
        for batch in order(len(labels), config.seed, number).split(config.batch_size):
            logits = self.head(features.rows(batch))  # (B, num_classes)
            loss = functional.cross_entropy(logits, labels[batch])
            set_lr(self.optimizer, config, self.updates, num_updates)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.updates += 1
            tally.add(loss, logits, labels[batch], self.updates)

        return tally.epoch(
            self.optimizer, self.updates, self.test_logits(), self.test_labels, self.positive
        )

    @property
    def trained(self) -> nn.Module:
        return self.head

    @torch.inference_mode()
    def test_logits(self) -> Tensor:
        """Returns what the head says of all test images, (num_test, num_classes) float32."""
        return torch.cat([self.head(part) for part in self.test_features.in_turn()])

    def state(self) -> dict[str, Any]:
        """Returns what `restore` needs to go on as if nothing had happened."""
        return {
            "updates": self.updates,
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])


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
