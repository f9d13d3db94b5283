"""Numbers and curves for a clinical reader, of one run: the positive class against the others.

*scores* (images,) are probabilities of the positive class, *is_positive* (images,) is the truth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from skinjob.report.predictions import LOWEST_P
from skinjob.report.statistics import Floats, wilson_interval

LEAST_SENSITIVITY = 0.80
"""Of the partial AUC, as in the ISIC 2024 challenge."""
NUM_BINS = 10  # of a calibration curve

Truth = NDArray[np.bool_]


@dataclass(frozen=True)
class Confusion:
    """Counts of images at a cutoff."""

    true_positives: int
    false_negatives: int
    false_positives: int
    true_negatives: int

    @property
    def sensitivity(self) -> float:
        return _share(self.true_positives, self.false_negatives)

    @property
    def specificity(self) -> float:
        return _share(self.true_negatives, self.false_positives)


def confusion(scores: Floats, is_positive: Truth, cutoff: float) -> Confusion:
    """Returns the counts if images with a score of at least *cutoff* are called positive."""
    called = scores >= cutoff
    return Confusion(
        int((called & is_positive).sum()),
        int((~called & is_positive).sum()),
        int((called & ~is_positive).sum()),
        int((~called & ~is_positive).sum()),
    )


def cutoff_for(scores: Floats, is_positive: Truth, sensitivity: float) -> float:
    """Returns the highest cutoff that has at least this sensitivity."""
    positives = np.sort(scores[is_positive])[::-1]
    # Rounded first: 0.95 * 20 is a little more than 19.
    return float(positives[math.ceil(round(sensitivity * len(positives), 9)) - 1])


class Curve(NamedTuple):
    """A curve over all cutoffs, from the highest score to the lowest: (points,) each."""

    x: Floats
    y: Floats
    cutoffs: Floats
    """At each point, images with at least this score are called positive."""


def roc_curve(scores: Floats, is_positive: Truth) -> Curve:
    """Returns the false positive rate (x) and the sensitivity (y), from (0, 0) to (1, 1)."""
    cutoffs, hits, alarms = _called(scores, is_positive)
    with np.errstate(invalid="ignore"):  # without positives or negatives, NaN
        x, y = alarms / (~is_positive).sum(), hits / is_positive.sum()
    return Curve(np.r_[0, x], np.r_[0, y], np.r_[math.inf, cutoffs])


def precision_recall_curve(scores: Floats, is_positive: Truth) -> Curve:
    """Returns the sensitivity (x) and the share of positive calls that are right (y)."""
    cutoffs, hits, alarms = _called(scores, is_positive)
    with np.errstate(invalid="ignore"):
        return Curve(hits / is_positive.sum(), hits / (hits + alarms), cutoffs)


def _called(scores: Floats, is_positive: Truth) -> tuple[Floats, Floats, Floats]:
    """Returns each different score, the highest first, and the true and false calls from it on."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # ties are called together
    hits = np.cumsum(is_positive[order])[ends].astype(np.float64)
    return scores[order][ends], hits, ends + 1 - hits


def rates_at(
    scores: Floats, is_positive: Truth, cutoff: float, samples: Floats
) -> tuple[Floats, Floats]:
    """Returns sensitivity and specificity at a cutoff in samples of the images, (samples,) each.

    *samples* (samples, images) is how often each sample has each image.
    """
    called = scores >= cutoff
    positives, others = samples[:, is_positive], samples[:, ~is_positive]
    with np.errstate(invalid="ignore"):
        return (
            positives @ called[is_positive] / positives.sum(axis=1),
            others @ ~called[~is_positive] / others.sum(axis=1),
        )


def rates_for(
    scores: Floats, is_positive: Truth, sensitivities: Sequence[float], samples: Floats
) -> list[tuple[Floats, Floats]]:
    """Returns the same for each sensitivity, each sample at its own highest cutoff that has it."""
    positives, others = np.sort(scores[is_positive])[::-1], np.sort(scores[~is_positive])[::-1]
    order = np.argsort(-scores, kind="stable")
    hits, alarms = (
        samples[:, order[kind[order]]].cumsum(axis=1) for kind in (is_positive, ~is_positive)
    )  # (samples, positives) and (samples, others), from the highest score on
    rows, total = np.arange(len(samples)), hits[:, -1]
    rates = []
    for sensitivity in sensitivities:
        first = (hits >= np.round(sensitivity * total, 9)[:, None]).argmax(axis=1)
        cutoffs = positives[first]  # (samples,)
        # Equal scores are called together: up to the last that has the cutoff.
        last = np.searchsorted(-positives, -cutoffs, side="right") - 1
        num = np.searchsorted(-others, -cutoffs, side="right")
        called = np.where(num > 0, alarms[rows, num - 1], 0)
        rates.append((hits[rows, last] / total, 1 - called / alarms[:, -1]))
    return rates


def partial_auc(scores: Floats, is_positive: Truth, least: float = LEAST_SENSITIVITY) -> float:
    """Returns the area under the ROC curve and above a sensitivity: 0 to 1 - *least*.

    Source: ISIC 2024, whose score this is; its chance level is (1 - least)**2 / 2.
    """
    alarms, hits, _ = roc_curve(scores, is_positive)
    x, y = 1 - hits[::-1], 1 - alarms[::-1]  # from the other end: positives missed, others cleared
    edge = 1 - least
    stop = int(np.searchsorted(x, edge, side="right"))
    y = np.r_[y[:stop], np.interp(edge, x[stop - 1 : stop + 1], y[stop - 1 : stop + 1])]
    return float(((y[1:] + y[:-1]) / 2 * np.diff(np.r_[x[:stop], edge])).sum())


def calibration(scores: Floats, is_positive: Truth) -> tuple[float, float]:
    """Returns intercept and slope of the calibration; 0 and 1 are perfect.

    The intercept is that of a logistic model with the log odds as offset: above 0, probabilities
    are too low on average. A slope above 1 means that they are too close to each other, below 1
    too extreme. NaN if the classes are perfectly separated.

    Source: Van Calster et al. (2019), "Calibration: the Achilles heel of predictive analytics".
    """
    odds = special.logit(np.clip(scores, LOWEST_P, 1 - LOWEST_P))
    intercept = _logistic(np.ones((len(odds), 1)), is_positive, odds)[0]
    slope = _logistic(np.column_stack([np.ones(len(odds)), odds]), is_positive, 0 * odds)[1]
    return float(intercept), float(slope)


def _logistic(inputs: Floats, is_positive: Truth, offset: Floats) -> Floats:
    """Returns the coefficients of an unpenalised logistic model, by Newton's method."""
    weights = np.zeros(inputs.shape[1])
    for _ in range(50):
        p = special.expit(inputs @ weights + offset)
        curvature = (inputs * (p * (1 - p))[:, None]).T @ inputs
        try:
            step = np.linalg.solve(curvature, inputs.T @ (is_positive - p))
        except np.linalg.LinAlgError:
            break
        weights += np.clip(step, -5, 5)
        if abs(step).max() < 1e-9:
            return weights
    return np.full(len(weights), np.nan)


class CalibrationCurve(NamedTuple):
    """Groups of images of about equal number, by their score: (groups,) each."""

    predicted: Floats
    """The mean score."""
    observed: Floats
    """The share of positives."""
    low: Floats
    """The 95 % interval of that share (Wilson)."""
    high: Floats
    num: NDArray[np.int64]
    """Images in the group."""


def calibration_curve(
    scores: Floats, is_positive: Truth, num_bins: int = NUM_BINS
) -> CalibrationCurve:
    """Returns predicted and observed shares in groups between quantiles of the scores."""
    edges = np.quantile(scores, np.linspace(0, 1, num_bins + 1)[1:-1])
    bins = np.searchsorted(edges, scores)
    num = np.bincount(bins, minlength=num_bins)
    is_used = num > 0  # with many equal scores, a group may be empty
    num = num[is_used]
    predicted = np.bincount(bins, scores, num_bins)[is_used] / num
    observed = np.bincount(bins, is_positive, num_bins)[is_used] / num
    limits = [wilson_interval(share, count) for share, count in zip(observed, num, strict=True)]
    low, high = np.array(limits).T
    return CalibrationCurve(predicted, observed, low, high, num)


def temperature(probabilities: Floats, labels: NDArray[np.int64]) -> float:
    """Returns the number by which log odds are divided for the lowest log loss on these images.

    Above 1, the probabilities were too extreme; below 1, too close to each other. NaN if no number
    is best, as when no image is on the wrong side. *probabilities* (images, classes).

    Source: Guo et al. (2017), "On calibration of modern neural networks".
    """
    logits = np.log(np.maximum(probabilities, LOWEST_P))
    own = logits[np.arange(len(labels)), labels]

    def bend(sharpness: float) -> tuple[float, float]:
        """Returns the slope and the curvature of the loss at 1 / temperature."""
        p = special.softmax(sharpness * logits, axis=1)
        mean = (p * logits).sum(axis=1)
        variance = (p * logits**2).sum(axis=1) - mean**2
        return float((mean - own).mean()), float(variance.mean())

    # The loss is convex in it: Newton's method, within limits that close in on the best.
    low, high, sharpness = 1e-3, 1e3, 1.0
    if bend(low)[0] >= 0 or bend(high)[0] <= 0:
        return math.nan
    for _ in range(100):
        slope, curvature = bend(sharpness)
        low, high = (low, sharpness) if slope > 0 else (sharpness, high)
        step = slope / curvature if curvature > 0 else math.inf
        before, sharpness = sharpness, sharpness - step
        if not low < sharpness < high:
            sharpness = (low * high) ** 0.5
        if abs(sharpness - before) < 1e-9 * before:
            break
    return 1 / sharpness


def scaled(probabilities: Floats, by: float) -> Floats:
    """Returns probabilities whose log odds are divided by a temperature, (images, classes)."""
    logits = np.log(np.maximum(probabilities, LOWEST_P))
    p: Floats = special.softmax(logits / by, axis=1)
    return p


def net_benefit(counts: Confusion, threshold: float) -> float:
    """Returns true positives per image, less false positives at the odds of the threshold.

    Source: Vickers & Elkin (2006), "Decision curve analysis".
    """
    num: int = sum(vars(counts).values())
    odds = threshold / (1 - threshold)
    return counts.true_positives / num - counts.false_positives / num * odds


def decision_curve(scores: Floats, is_positive: Truth, thresholds: Floats) -> tuple[Floats, Floats]:
    """Returns the net benefit at each threshold, of the scores and of calling all positive."""
    everything = np.ones(len(scores))
    own, of_all = (
        np.array([net_benefit(confusion(used, is_positive, t), t) for t in thresholds.tolist()])
        for used in (scores, everything)
    )
    return own, of_all


def confusion_matrix(
    labels: NDArray[np.int64], called: NDArray[np.int64], num_classes: int
) -> NDArray[np.int64]:
    """Returns how many images of each class (rows) are called each class (columns)."""
    counts = np.bincount(labels * num_classes + called, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def _share(part: int, rest: int) -> float:
    return part / (part + rest) if part + rest else math.nan
