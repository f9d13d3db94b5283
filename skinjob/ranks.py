"""Ranks in which equal values share their mean rank, and the area under the ROC curve by them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def ranks(values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Returns the ranks of values (..., N) along the last axis, from 1 on.

    >>> ranks(np.array([0.1, 0.4, 0.4, 0.8]))
    array([1. , 2.5, 2.5, 4. ])
    """
    positions = np.argsort(values, axis=-1, kind="stable")
    ordered = np.take_along_axis(values, positions, axis=-1)
    num = values.shape[-1]
    places = np.arange(1, num + 1)
    is_first = np.diff(ordered, axis=-1, prepend=np.nan) != 0
    is_last = np.diff(ordered, axis=-1, append=np.nan) != 0
    lowest = np.maximum.accumulate(np.where(is_first, places, 0), axis=-1)
    highest = np.where(is_last, places, num)[..., ::-1]
    highest = np.minimum.accumulate(highest, axis=-1)[..., ::-1]
    of_values = np.empty(values.shape)
    np.put_along_axis(of_values, positions, (lowest + highest) / 2, axis=-1)
    return of_values


def auc(scores: NDArray[np.floating[Any]], positive: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Returns the area under the ROC curve: how often a positive scores above a negative.

    It is Mann-Whitney's U divided by the number of pairs. Ties count 0.5. NaN if there are no
    positives or no negatives. *scores* (..., N) give (...) areas.

    >>> float(auc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, False, True, True])))
    0.875
    """
    num_positive = int(positive.sum())
    num_pairs = num_positive * (len(positive) - num_positive)
    if num_pairs == 0:
        return np.full(scores.shape[:-1], np.nan)
    sums = ranks(scores)[..., positive].sum(axis=-1)
    areas: NDArray[np.float64] = (sums - num_positive * (num_positive + 1) / 2) / num_pairs
    return areas
