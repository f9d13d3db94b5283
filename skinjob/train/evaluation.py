"""The metrics of logits: losses, accuracy, AUC, sensitivity and specificity."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from skinjob.errors import RunError
from skinjob.ranks import auc


def train_scores(logits: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns each image's loss, (R, N), and the metrics of an epoch, (R,) each.

    Each batch counts before its update. *logits* (R, N, num_classes), *labels* (R, N) int64.
    """
    losses = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    losses = losses.view_as(labels)  # (R, N)
    accuracy = (logits.argmax(dim=2) == labels).double().mean(dim=1)
    return losses, {"train_loss": losses.double().mean(dim=1), "train_accuracy": accuracy}


def loss_errors(losses: Tensor, epoch: int, first: int, batch_size: int) -> list[RunError | None]:
    """Returns an error for each run with an update whose loss is not a number; else None.

    *losses* (R, N) of the images, in their order in the updates after the *first*.
    """
    parts = losses.split(batch_size, dim=1)
    means = torch.stack([part.mean(dim=1) for part in parts], dim=1)  # (R, num_updates)
    errors: list[RunError | None] = [None] * len(losses)
    for index, update in (~means.isfinite()).nonzero().flip(0).tolist():  # the first is last
        errors[index] = RunError(
            f"the loss is {means[index, update]} at update {first + update + 1}, in epoch {epoch}",
            "submit again with a smaller --lr",
        )
    return errors


def evaluate(logits: Tensor, labels: Tensor, positive: int) -> dict[str, Tensor]:
    """Returns the metrics of a split by name, (R,) each; the last three are of class *positive*.

    *logits* (R, N, num_classes) float32 of R networks, *labels* (N,) int64.
    """
    losses, scores = train_scores(logits, labels.expand(len(logits), -1))
    is_positive = labels == positive
    called = logits.argmax(dim=2) == positive  # (R, N)
    probabilities = logits.softmax(dim=2)[:, :, positive].numpy()
    return {
        "loss": losses.mean(dim=1),
        "accuracy": scores["train_accuracy"],
        "auc": torch.from_numpy(auc(probabilities, is_positive.numpy())),
        "sensitivity": called[:, is_positive].double().mean(dim=1),
        "specificity": (~called[:, ~is_positive]).double().mean(dim=1),
    }
