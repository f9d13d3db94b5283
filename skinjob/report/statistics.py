"""Intervals, standard deviations and a test of differences."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist, fmean

import numpy as np
from numpy.typing import NDArray

Z_95 = NormalDist().inv_cdf(0.975)  # 1.96
SHUFFLES = 9_999


def wilson_interval(accuracy: float, num_images: int) -> tuple[float, float]:
    """Returns the 95 % interval of a proportion of *num_images*; NaN without images.

    Unlike accuracy +- 1.96 standard errors, it is inside 0..1 and correct near 0 and 1.

    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference".

    >>> [round(bound, 4) for bound in wilson_interval(0.5, 100)]
    [0.4038, 0.5962]
    """
    if not num_images:
        return float("nan"), float("nan")
    spread = Z_95**2 / num_images
    centre = (accuracy + spread / 2) / (1 + spread)
    half = (accuracy * (1 - accuracy) * spread + spread**2 / 4) ** 0.5 / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Returns mean and sample standard deviation, which is NaN for fewer than two values."""
    return fmean(values), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def permutation_p(groups: Sequence[Sequence[float]]) -> float:
    """Returns how often shuffled groups differ at least as much as the real groups, 0..1.

    The difference is the sum of squares between groups, as in an analysis of variance. For two
    groups it gives the same p as the difference of their means. The shuffles are always the same.
    The real grouping counts as a shuffle.

    Source: Phipson & Smyth (2010), "Permutation P-values should never be zero".
    """
    values = np.concatenate([np.asarray(group, np.float64) for group in groups])
    labels = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    counts = np.bincount(labels)
    centred = values - values.mean()
    draw = np.random.default_rng(0)

    def between(labels: NDArray[np.int64]) -> float:
        sums = np.bincount(labels, centred)
        return float(sums @ (sums / counts))

    real = between(labels) - 1e-12  # in another order, sums differ in the last digits
    hits = sum(between(draw.permutation(labels)) >= real for _ in range(SHUFFLES))
    return (1 + hits) / (1 + SHUFFLES)
