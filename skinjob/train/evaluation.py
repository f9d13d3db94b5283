"""The metrics of logits: losses, accuracy, AUC, sensitivity and specificity."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from skinjob.errors import RunError


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


def auc(scores: NDArray[np.float32], positive: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Returns the area under the ROC curve: how often a positive scores above a negative.

    It is Mann-Whitney's U divided by the number of pairs. Ties count 0.5. NaN if there are no
    positives or no negatives. *scores* (R, N) give (R,) areas.

    >>> auc(np.array([[0.1, 0.4, 0.4, 0.8]]), np.array([False, False, True, True]))
    array([0.875])
    """
    num_positive = int(positive.sum())
    num_pairs = num_positive * (len(positive) - num_positive)
    if num_pairs == 0:
        return np.full(len(scores), np.nan)
    positions = np.argsort(scores, axis=1, kind="stable")
    ordered = np.take_along_axis(scores, positions, axis=1)
    places = np.arange(1, len(positive) + 1)
    is_first = np.diff(ordered, axis=1, prepend=np.nan) != 0
    is_last = np.diff(ordered, axis=1, append=np.nan) != 0
    lowest = np.maximum.accumulate(np.where(is_first, places, 0), axis=1)
    highest = np.where(is_last, places, len(positive))[:, ::-1]
    highest = np.minimum.accumulate(highest, axis=1)[:, ::-1]
    ranks = (lowest + highest) / 2  # ties share their mean rank
    sums = (ranks * positive[positions]).sum(axis=1)
    areas: NDArray[np.float64] = (sums - num_positive * (num_positive + 1) / 2) / num_pairs
    return areas
