"""Intervals and tests for paired runs. Each equals a library's or a published value in the tests.

A seed is a block: its runs share the head's first values and the order of the images. Differences
are therefore taken within seeds. No function here draws random numbers, but for `sign_flip_p` with
many seeds, whose draws are always the same.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special  # scipy.stats would add 1.1 s to every report

from skinjob.ranks import ranks

Floats = NDArray[np.float64]

Z_95 = NormalDist().inv_cdf(0.975)  # 1.96
POWER = 0.8
MOST_EXACT_SEEDS = 13  # 2**13 sign flips
MOST_EXACT_SIZES = 7  # 7! orders of batch sizes
FLIPS = 9_999
MOST_SEEDS = 1_000  # that advice asks for
IMAGE_DRAWS = 1_000  # their variances are within 10 % of the true ones, in 19 of 20 cases


class Interval(NamedTuple):
    """The lower and upper limit of an interval."""

    low: float
    high: float

    def is_inside(self, margin: float) -> bool:
        """Returns True if the interval lies between -margin and margin."""
        return -margin < self.low and self.high < margin


NO_INTERVAL = Interval(math.nan, math.nan)


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Returns mean and sample standard deviation, which is NaN for fewer than two values."""
    return fmean(values), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def wilson_interval(share: float, num: float) -> Interval:
    """Returns the 95 % interval of a share of *num* images or runs; NaN without any.

    Unlike share +- 1.96 standard errors, it is inside 0..1 and correct near 0 and 1.

    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference".

    >>> [round(bound, 4) for bound in wilson_interval(0.5, 100)]
    [0.4038, 0.5962]
    """
    if not num:
        return NO_INTERVAL
    spread = Z_95**2 / num
    centre = (share + spread / 2) / (1 + spread)
    half = (share * (1 - share) * spread + spread**2 / 4) ** 0.5 / (1 + spread)
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def t_quantile(p: float, df: float) -> float:
    """Returns the p-quantile of Student's t distribution; of the normal one if *df* is infinite."""
    return NormalDist().inv_cdf(p) if math.isinf(df) else float(special.stdtrit(df, p))


def two_sided_p(t: float, df: float) -> float:
    """Returns how often |t| is at least as large by chance."""
    return 2 * float(special.ndtr(-abs(t)) if math.isinf(df) else special.stdtr(df, -abs(t)))


def paired_interval(differences: Floats, level: float = 0.95) -> Interval:
    """Returns the interval of a mean difference over seeds, for the same images (paired t)."""
    num = len(differences)
    if num < 2:
        return NO_INTERVAL
    error = differences.std(ddof=1) / num**0.5
    half = t_quantile((1 + level) / 2, num - 1) * error
    return Interval(float(differences.mean() - half), float(differences.mean() + half))


def sign_flip_p(differences: Floats) -> float:
    """Returns how often random signs make the mean difference at least as large, two-sided.

    Exact up to 13 seeds; with more, 9,999 draws, and the real signs count as a draw.

    Source: Phipson & Smyth (2010), "Permutation P-values should never be zero".

    >>> sign_flip_p(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    0.0625
    """
    num = len(differences)
    real = abs(differences.sum()) * (1 - 1e-12)  # in another order, sums differ in the last digits
    if num <= MOST_EXACT_SEEDS:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=num)))
        return float((abs(signs @ differences) >= real).mean())
    signs = np.random.default_rng(0).choice((1.0, -1.0), (FLIPS, num))
    return (1 + int((abs(signs @ differences) >= real).sum())) / (1 + FLIPS)


def trend_p(values: Floats) -> float:
    """Returns the p of Page's test for a trend over ordered batch sizes, up or down.

    *values* (seeds, batch sizes). The distribution of L is exact up to 7 batch sizes without ties
    and 50 seeds, and normal beyond.

    Source: Page (1963), "Ordered hypotheses for multiple treatments".
    """
    seeds, sizes = values.shape
    places = np.arange(1, sizes + 1)
    score = float((ranks(values) @ places).sum())
    middle = seeds * sizes * (sizes + 1) ** 2 / 4
    extreme = middle + abs(score - middle)
    has_ties = any(len(np.unique(row)) < sizes for row in values)
    if sizes > MOST_EXACT_SIZES or seeds > 50 or has_ties:
        sd = (seeds * sizes**2 * (sizes + 1) * (sizes**2 - 1) / 144) ** 0.5
        return two_sided_p((extreme - middle) / sd, math.inf)
    counts = Counter(int(places @ order) for order in itertools.permutations(places.tolist()))
    lowest = min(counts)
    of_seed = np.array([counts[lowest + n] for n in range(max(counts) - lowest + 1)], np.float64)
    of_seed /= of_seed.sum()
    all_seeds = np.ones(1)
    for _ in range(seeds):
        all_seeds = np.convolve(all_seeds, of_seed)
    scores = seeds * lowest + np.arange(len(all_seeds))
    return min(1.0, 2 * float(all_seeds[scores >= extreme].sum()))


def holm(ps: Sequence[float]) -> list[float]:
    """Returns the p values, adjusted for their number.

    Source: Holm (1979), "A simple sequentially rejective multiple test procedure".

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(ps), 0.0
    for step, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - step) * ps[place]))
        adjusted[place] = largest
    return adjusted


def seeds_needed(sd: float, margin: float) -> int | None:
    """Returns how many seeds show a difference of *margin* with 80 % power; None if over 1,000.

    *sd* is the standard deviation of the differences over seeds.
    """
    for num in range(3, MOST_SEEDS + 1):
        factor = t_quantile(0.975, num - 1) + t_quantile(POWER, num - 1)
        if factor * sd / num**0.5 <= margin:
            return num
    return None


class Estimates(NamedTuple):
    """An outcome of several runs on the same images."""

    values: Floats
    """(runs,)"""
    components: Floats
    """(runs, images): the share of each image. components @ components.T is the covariance of the
    values over samples of images."""

    @property
    def covariance(self) -> Floats:
        covariance: Floats = self.components @ self.components.T
        return covariance

    def grouped(self, groups: NDArray[np.int64]) -> Estimates:
        """Returns them with one share for each group of images that are not independent.

        *groups* (images,) are numbers. Source: Obuchowski (1997), "Nonparametric analysis of
        clustered ROC curve data", without its correction for few groups.
        """
        _, places = np.unique(groups, return_inverse=True)
        sums = np.zeros((int(places.max()) + 1, len(self.values)))
        np.add.at(sums, places, self.components.T)
        return Estimates(self.values, sums.T)


def mean_estimates(losses: Floats) -> Estimates:
    """Returns the means over images of *losses* (runs, images), such as log losses."""
    num, means = losses.shape[1], losses.mean(axis=1)
    return Estimates(means, (losses - means[:, None]) / max(1, num * (num - 1)) ** 0.5)


def auc_estimates(scores: Floats, is_positive: NDArray[np.bool_]) -> Estimates:
    """Returns the areas under the ROC curves of *scores* (runs, images), with DeLong's components.

    *is_positive* (images,). Source: DeLong et al. (1988), "Comparing the areas under two or more
    correlated receiver operating characteristic curves"; ranks as in Sun & Xu (2014).
    """
    num = len(is_positive)
    positives = int(is_positive.sum())
    negatives = num - positives
    if not positives or not negatives:
        return Estimates(np.full(len(scores), np.nan), np.zeros((len(scores), num)))
    areas, components = np.empty(len(scores)), np.empty((len(scores), num))
    for row, own in enumerate(scores):
        ranked = ranks(own)
        above, below = ranked[is_positive], ranked[~is_positive]
        # The share of negatives below each positive, and of positives above each negative.
        wins = (above - ranks(own[is_positive])) / negatives
        losses = 1 - (below - ranks(own[~is_positive])) / positives
        areas[row] = wins.mean()
        components[row, is_positive] = (wins - areas[row]) / max(
            1, positives * (positives - 1)
        ) ** 0.5
        components[row, ~is_positive] = (losses - areas[row]) / max(
            1, negatives * (negatives - 1)
        ) ** 0.5
    return Estimates(areas, components)


@dataclass(frozen=True)
class Difference:
    """A mean difference of two treatments, for new images and new seeds."""

    mean: float
    error: float
    """Its standard error."""
    df: float
    seed_part: float
    """MSTR: the variance due to seeds."""
    image_part: float
    """R * max(Cov2 - Cov3, 0): the variance due to images."""

    def interval(self, level: float = 0.95) -> Interval:
        half = t_quantile((1 + level) / 2, self.df) * self.error
        return Interval(self.mean - half, self.mean + half)

    @property
    def p(self) -> float:
        if not self.error:
            return float(self.mean == 0)
        return two_sided_p(self.mean / self.error, self.df)


def orh_difference(values: Floats, covariance: Floats) -> Difference:
    """Returns the second treatment minus the first, by Obuchowski, Rockette and Hillis.

    *values* (2, seeds), *covariance* (2 * seeds, 2 * seeds) over images, in the order of
    values.ravel(). With a single seed, the error is that of the images alone.

    Sources: Obuchowski & Rockette (1995); Hillis (2007), "A comparison of denominator degrees of
    freedom methods for multiple observer ROC analysis".
    """
    seeds = values.shape[1]
    differences = values[1] - values[0]
    mean = float(differences.mean())
    if seeds == 1:
        variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
        return Difference(mean, max(0.0, variance) ** 0.5, math.inf, math.nan, variance)
    blocks = covariance.reshape(2, seeds, 2, seeds)
    others = ~np.eye(seeds, dtype=bool)
    same = (blocks[0, :, 0][others].mean() + blocks[1, :, 1][others].mean()) / 2  # Cov2
    different = blocks[0, :, 1][others].mean()  # Cov3; its transpose has the same mean
    seed_part = float(differences.var(ddof=1)) / 2
    image_part = seeds * max(float(same - different), 0.0)
    both = seed_part + image_part
    df = (seeds - 1) * (both / seed_part) ** 2 if seed_part else math.inf
    return Difference(mean, (2 * both / seeds) ** 0.5, df, seed_part, image_part)


class Mean(NamedTuple):
    """A mean over seeds, for new images and new seeds."""

    value: float
    error: float
    """Its standard error."""
    df: float

    def interval(self) -> Interval:
        half = t_quantile(0.975, self.df) * self.error
        return Interval(self.value - half, self.value + half)

    def share_interval(self, num: int) -> Interval:
        """Returns the interval of a share of *num* images: Wilson's, inside 0..1.

        It has as many images as a plain share with this error. A share of 0 or 1, or without an
        error, has *num*.

        Source: Franco et al. (2019), "Comparative study of confidence intervals for proportions in
        complex sample surveys".
        """
        t = t_quantile(0.975, self.df)
        has_spread = self.error and 0 < self.value < 1
        alike = self.value * (1 - self.value) / self.error**2 if has_spread else num
        return wilson_interval(self.value, alike * (Z_95 / t) ** 2)


def orh_mean(values: Floats, covariance: Floats) -> Mean:
    """Returns the mean of an outcome over seeds, by Obuchowski, Rockette and Hillis.

    *values* (seeds,), *covariance* over images of these seeds, or of some of them. With a single
    seed, the error is that of the images alone.

    Source: Hillis (2007), "A comparison of denominator degrees of freedom methods for multiple
    observer ROC analysis", for a single treatment.
    """
    seeds = len(values)
    if seeds == 1:
        return Mean(float(values[0]), float(covariance[0, 0]) ** 0.5, math.inf)
    seed_part = float(values.var(ddof=1))
    image_part = seeds * max(float(covariance[~np.eye(len(covariance), dtype=bool)].mean()), 0.0)
    both = seed_part + image_part
    df = (seeds - 1) * (both / seed_part) ** 2 if seed_part else math.inf
    return Mean(float(values.mean()), (both / seeds) ** 0.5, df)


def image_draws(
    labels: NDArray[np.int64], groups: NDArray[np.int64], num: int = IMAGE_DRAWS
) -> Floats:
    """Returns how often each image is in each of *num* samples with replacement, (num, images).

    A sample has whole groups, as many of each class as there are. A group has the class of its
    first image. *labels* and *groups* (images,) are numbers. The samples are always the same.
    """
    draw = np.random.default_rng(0)
    _, firsts, places = np.unique(groups, return_index=True, return_inverse=True)
    firsts, places = np.unique(firsts[places], return_inverse=True)  # whatever the numbers are
    counts = np.zeros((num, len(firsts)))
    for label in np.unique(labels[firsts]):
        own = np.flatnonzero(labels[firsts] == label)
        counts[:, own] = draw.multinomial(len(own), np.full(len(own), 1 / len(own)), num)
    return counts[:, places]


def sd_ratio(a: Floats, b: Floats) -> tuple[float, Interval]:
    """Returns the standard deviation of *b* divided by that of *a*, paired, with 95 % limits.

    Sources: Pitman (1939), "A note on normal correlation"; Morgan (1939).
    """
    num = len(a)
    if num < 3 or not a.std() or not b.std():
        return math.nan, NO_INTERVAL
    ratio = float(b.var(ddof=1) / a.var(ddof=1))
    r = float(np.corrcoef(a, b)[0, 1])
    k = 1 + 2 * max(0.0, 1 - r**2) * t_quantile(0.975, num - 2) ** 2 / (num - 2)
    root = (k**2 - 1) ** 0.5
    return ratio**0.5, Interval((ratio * (k - root)) ** 0.5, (ratio * (k + root)) ** 0.5)


def wobble(curves: Floats) -> Floats:
    """Returns how much each curve (curves, points) jumps around its own trend.

    It is the standard deviation of the noise that is left when each point is compared with the mean
    of its neighbours, so that a steady rise or fall does not count.
    """
    bends = curves[:, 1:-1] - (curves[:, :-2] + curves[:, 2:]) / 2
    sizes: Floats = np.sqrt(2 / 3 * (bends**2).mean(axis=1))
    return sizes


def geometric_ratio(a: Floats, b: Floats) -> tuple[float, Interval]:
    """Returns the geometric mean of b / a over seeds, with 95 % limits; all values above 0."""
    if len(a) < 2 or not (np.all(a > 0) and np.all(b > 0)):
        return math.nan, NO_INTERVAL
    logs = np.log(b / a)
    low, high = paired_interval(logs)
    return math.exp(logs.mean()), Interval(math.exp(low), math.exp(high))


def setbacks(losses: Floats) -> tuple[int, int, float]:
    """Returns rises, steps, and the largest rise above the lowest loss before.

    *losses* (runs, points).
    """
    steps = np.diff(losses, axis=1)
    above = losses - np.minimum.accumulate(losses, axis=1)
    return int((steps > 0).sum()), steps.size, float(above.max()) if above.size else 0.0
