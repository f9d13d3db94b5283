"""The metrics of logits: losses, accuracy, AUC, sensitivity and specificity."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from skinjob.errors import RunError
from skinjob.ranks import auc


def train_scores(logits: Tensor, labels: Tensor, positive: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns each image's loss, (R, N), and the metrics of an epoch by name, (R,) each.

    Each batch counts before its update, so a metric is over the networks of a whole epoch.
    *logits* (R, N, num_classes), *labels* (R, N) int64.
    """
    losses, scores = _scores(logits, labels, positive)
    return losses, {f"train_{name}": values for name, values in scores.items()}


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
    return _scores(logits, labels.expand(len(logits), -1), positive)[1]


def _scores(logits: Tensor, labels: Tensor, positive: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns losses (R, N), and the metrics by name; *labels* (R, N)."""
    losses = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    losses = losses.view_as(labels)  # (R, N)
    predicted, is_positive = logits.argmax(dim=2), labels == positive
    called = predicted == positive
    others = [label for label in range(logits.shape[2]) if label != positive]
    # The probability of the positive class; a softmax would take five times as long.
    odds = logits[:, :, positive] - logits[:, :, others].logsumexp(dim=2)
    areas = auc(odds.sigmoid().numpy(), is_positive.numpy())
    num_positive = is_positive.sum(dim=1).double()
    return losses, {
        "loss": losses.double().mean(dim=1),
        "accuracy": (predicted == labels).double().mean(dim=1),
        "auc": torch.from_numpy(areas),
        "sensitivity": (called & is_positive).sum(dim=1) / num_positive,
        "specificity": (~(called | is_positive)).sum(dim=1) / (labels.shape[1] - num_positive),
    }
