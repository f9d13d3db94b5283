"""The training loop of one run, from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from skinjob.config import TrainConfig
from skinjob.errors import RunError
from skinjob.train.metrics import evaluate
from skinjob.train.model import build_head
from skinjob.train.views import TEST, Views


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What an epoch left: its row of metrics, and the test set's logits."""

    number: int
    row: dict[str, float | int]
    test_logits: Tensor  # (num_test, num_classes) float32
    head: nn.Linear


def train(config: TrainConfig, views: Views, num_classes: int) -> Iterator[Epoch]:
    """Trains a new head and yields after every epoch.

    On the CPU whatever computes the views: a head of a few thousand numbers is a matter of
    microseconds an update, and from the same views its CSV is then the same everywhere.

    Raises: RunError at the first loss that is not a number.
    """
    head = build_head(num_classes, config.seed)
    optimizer = torch.optim.Adadelta(head.parameters(), lr=config.lr)
    labels, test_labels = views.labels(1), views.labels(TEST)  # (num_images,) int64
    test_features = views.get(TEST)  # (num_test, 512) float32
    updates = 0

    for number in range(1, config.epochs + 1):
        start = time.perf_counter()
        features = views.get(number)  # (num_train, 512) float32
        loss_sum, num_correct = 0.0, 0
        for batch in order(len(labels), config.seed, number).split(config.batch_size):
            logits = head(features[batch])  # (B, num_classes)
            loss = functional.cross_entropy(logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            updates += 1
            require_finite(loss, number, updates)
            loss_sum += loss.item() * len(batch)
            num_correct += int((logits.argmax(dim=1) == labels[batch]).sum())

        with torch.inference_mode():
            test_logits = head(test_features)  # (num_test, num_classes)
        test = evaluate(test_logits, test_labels)
        seconds = time.perf_counter() - start
        row = {
            "epoch": number,
            "updates": updates,
            "lr": optimizer.param_groups[0]["lr"],
            # As they were met in training, before each update: what the recipe's loop adds up.
            "train_loss": loss_sum / len(labels),
            "train_accuracy": num_correct / len(labels),
            **{f"test_{name}": value for name, value in test.items()},
            "seconds": seconds,
            "images_per_s": len(labels) / seconds,
        }
        yield Epoch(number=number, row=row, test_logits=test_logits, head=head)


def order(num_images: int, seed: int, epoch: int) -> Tensor:
    """Returns the order of the images in an epoch, (num_images,) int64, by its arguments alone."""
    state = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0]
    return torch.randperm(
        num_images, generator=torch.Generator().manual_seed(int(state >> np.uint64(1)))
    )


def require_finite(loss: Tensor, epoch: int, update: int) -> None:
    if not loss.isfinite():
        raise RunError(
            f"the loss is {loss.item()} at update {update}, in epoch {epoch}",
            "submit again with a smaller --lr",
        )
