"""Curves over all cutoffs of one run: *scores* (images,) are of the positive class."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from skinjob.report.clinical import Truth, confusion, net_benefit
from skinjob.report.statistics import Floats

NUM_BINS = 10


class Curve(NamedTuple):
    """A curve over all cutoffs, from the highest score to the lowest: (points,) each."""

    x: Floats
    y: Floats
    cutoffs: Floats


class CalibrationCurve(NamedTuple):
    """Groups of images of about equal number, by their score: (groups,) each."""

    predicted: Floats
    observed: Floats


def roc_curve(scores: Floats, is_positive: Truth) -> Curve:
    """Returns the false positive rate (x) and the sensitivity (y), from (0, 0) to (1, 1)."""
    cutoffs, found, alarms = _called(scores, is_positive)
    x, y = alarms / (~is_positive).sum(), found / is_positive.sum()
    return Curve(np.r_[0, x], np.r_[0, y], np.r_[math.inf, cutoffs])


def precision_recall_curve(scores: Floats, is_positive: Truth) -> Curve:
    """Returns the sensitivity (x) and the share of positive calls that are right (y)."""
    cutoffs, found, alarms = _called(scores, is_positive)
    return Curve(found / is_positive.sum(), found / (found + alarms), cutoffs)


def _called(scores: Floats, is_positive: Truth) -> tuple[Floats, Floats, Floats]:
    """Returns each different score, the highest first, and the true and false calls from it on."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # ties are called together
    found = np.cumsum(is_positive[order])[ends].astype(np.float64)
    return scores[order][ends], found, ends + 1 - found


def calibration_curve(scores: Floats, is_positive: Truth) -> CalibrationCurve:
    """Returns predicted and observed shares in groups between quantiles of the scores."""
    edges = np.quantile(scores, np.linspace(0, 1, NUM_BINS + 1)[1:-1])
    bins = np.searchsorted(edges, scores)
    num = np.bincount(bins, minlength=NUM_BINS)
    used = num > 0
    predicted = np.bincount(bins, scores, NUM_BINS)[used] / num[used]
    return CalibrationCurve(predicted, np.bincount(bins, is_positive, NUM_BINS)[used] / num[used])


def decision_curve(scores: Floats, is_positive: Truth, thresholds: Floats) -> tuple[Floats, Floats]:
    """Returns the net benefit at each threshold, of the scores and of calling all positive."""
    own, of_all = (
        np.array([net_benefit(confusion(used, is_positive, t), t) for t in thresholds.tolist()])
        for used in (scores, np.ones(len(scores)))
    )
    return own, of_all
