"""What a test set says of a head."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


def evaluate(logits: Tensor, labels: Tensor, positive: int) -> dict[str, float]:
    """Returns the test columns of metrics.csv: loss, accuracy, AUC, sensitivity, specificity.

    *logits* (N, num_classes) float32, *labels* (N,) int64. The last three set the class whose label
    is *positive* against all others.
    """
    is_positive = labels == positive
    predicted = logits.argmax(dim=1)
    called = predicted == positive
    return {
        "test_loss": functional.cross_entropy(logits, labels).item(),
        "test_accuracy": (predicted == labels).double().mean().item(),
        "test_auc": auc(logits.softmax(dim=1)[:, positive].numpy(), is_positive.numpy()),
        "test_sensitivity": called[is_positive].double().mean().item(),
        "test_specificity": (~called[~is_positive]).double().mean().item(),
    }


def auc(scores: NDArray[np.float32], positive: NDArray[np.bool_]) -> float:
    """Returns the area under the ROC curve: how often a positive scores above a negative.

    Ties count one half (Mann-Whitney's U over the number of pairs); NaN where a side is empty.

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
