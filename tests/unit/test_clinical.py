"""Each clinical number equals scikit-learn's or a published one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize
from sklearn import metrics
from sklearn.calibration import calibration_curve as sklearns_calibration
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score, roc_curve

from skinjob.report import clinical
from skinjob.report.clinical import (
    Confusion,
    calibration,
    calibration_curve,
    confusion,
    cutoff_for,
    decision_curve,
    net_benefit,
    partial_auc,
    precision_recall_curve,
    rates_at,
    rates_for,
    scaled,
    temperature,
)
from skinjob.report.statistics import image_draws, wilson_interval

draw = np.random.default_rng(7)
TRUTH = np.arange(200) < 90
EXACT = np.clip(draw.normal(0.45 + 0.2 * TRUTH, 0.15), 0.01, 0.99)
TIED = np.round(EXACT, 1)
"""Scores with many ties."""


BOTH = pytest.mark.parametrize("scores", [EXACT, TIED], ids=["exact", "tied"])


@BOTH
def test_curves_are_scikit_learns(scores: np.ndarray) -> None:
    """ROC and precision-recall curves have the same points, from the highest score down."""
    expected = roc_curve(TRUTH, scores, drop_intermediate=False)
    for mine, theirs in zip(clinical.roc_curve(scores, TRUTH), expected, strict=True):
        assert mine == pytest.approx(theirs)
    precision, recall, cutoffs = metrics.precision_recall_curve(TRUTH, scores)
    curve = precision_recall_curve(scores, TRUTH)
    last = curve.cutoffs >= cutoffs[0]  # scikit-learn stops where all positives are called
    assert curve.x[last] == pytest.approx(recall[-2::-1])
    assert curve.y[last] == pytest.approx(precision[-2::-1])
    assert curve.cutoffs[last] == pytest.approx(cutoffs[::-1])


@BOTH
def test_a_calibration_curve_is_scikit_learns(scores: np.ndarray) -> None:
    """Groups between quantiles have its shares, each with Wilson's interval for its images."""
    curve = calibration_curve(scores, TRUTH)
    observed, predicted = sklearns_calibration(TRUTH, scores, n_bins=10, strategy="quantile")
    assert curve.observed == pytest.approx(observed)
    assert curve.predicted == pytest.approx(predicted)
    assert curve.num.sum() == len(TRUTH)
    first = wilson_interval(curve.observed[0], int(curve.num[0]))
    assert (curve.low[0], curve.high[0]) == pytest.approx(first)


@BOTH
def test_rates_of_samples_are_those_of_the_images_in_them(scores: np.ndarray) -> None:
    """A weight counts an image so often, at a fixed cutoff and at each sample's own."""
    samples = image_draws(TRUTH.astype(np.int64), np.arange(200), 30)
    fixed, own = (
        rates_at(scores, TRUTH, 0.5, samples),
        rates_for(scores, TRUTH, [0.8, 0.9], samples)[1],
    )
    for row, weights in enumerate(samples):
        drawn = np.repeat(np.arange(200), weights.astype(int))
        of_sample = scores[drawn], TRUTH[drawn]
        for rates, cutoff in ((fixed, 0.5), (own, cutoff_for(*of_sample, 0.9))):
            counts = confusion(*of_sample, cutoff)
            assert rates[0][row] == pytest.approx(counts.sensitivity)
            assert rates[1][row] == pytest.approx(counts.specificity)


def test_the_temperature_is_the_one_of_the_lowest_log_loss() -> None:
    """It is that of SciPy's minimizer, for two classes and for three, and its loss is lower."""
    labels = np.arange(300) % 3
    logits = draw.normal(size=(300, 3)) + 1.5 * np.eye(3)[labels]
    three = np.exp(4 * logits) / np.exp(4 * logits).sum(axis=1, keepdims=True)
    two = np.column_stack([1 - EXACT, EXACT])
    for p, truth in ((three, labels), (two, TRUTH.astype(np.int64))):
        best = optimize.minimize_scalar(
            lambda t, p=p, truth=truth: log_loss(truth, scaled(p, t)), bounds=(0.01, 20)
        )
        assert temperature(p, truth) == pytest.approx(best.x, rel=1e-3)
        assert log_loss(truth, scaled(p, best.x)) < log_loss(truth, p) - 0.01
    assert temperature(three, labels) > 1 > temperature(two, TRUTH.astype(np.int64))
    assert scaled(two, 1.0) == pytest.approx(two)
    sure = np.eye(2)[TRUTH.astype(np.int64)]
    assert np.isnan(temperature(sure, TRUTH.astype(np.int64)))


def test_a_decision_curve_has_the_net_benefit_of_each_threshold() -> None:
    """Calling all positive is worth nothing at the prevalence, and less above it."""
    thresholds = np.array([0.2, 0.45, 0.6])
    own, of_all = decision_curve(EXACT, TRUTH, thresholds)
    for t, benefit in zip(thresholds, own, strict=True):
        assert benefit == net_benefit(confusion(EXACT, TRUTH, t), t)
    assert of_all[0] > 0 > of_all[2]
    assert of_all[1] == pytest.approx(0)


def test_several_classes_have_scikit_learns_matrix() -> None:
    """Rows are the classes, columns what they are called, also for a class that never is."""
    labels, called = draw.integers(0, 3, 100), draw.integers(0, 2, 100)
    matrix = clinical.confusion_matrix(labels, called, 3)
    assert (matrix == metrics.confusion_matrix(labels, called, labels=[0, 1, 2])).all()


@BOTH
@pytest.mark.parametrize("wanted", [0.8, 0.9, 0.95, 1.0])
def test_specificity_at_a_sensitivity_is_the_curves(scores: np.ndarray, wanted: float) -> None:
    """It is the best specificity on scikit-learn's ROC curve that has the sensitivity."""
    false_alarms, recall, _ = roc_curve(TRUTH, scores, drop_intermediate=False)
    counts = confusion(scores, TRUTH, cutoff_for(scores, TRUTH, wanted))
    assert counts.specificity == pytest.approx(1 - false_alarms[recall >= wanted - 1e-12].min())
    assert counts.sensitivity >= wanted - 1e-12


@BOTH
@pytest.mark.parametrize("least", [0.8, 0.5])
def test_partial_auc_is_that_of_isic_2024(scores: np.ndarray, least: float) -> None:
    """It equals the challenge's published formula on top of scikit-learn's scaled partial AUC."""
    edge = 1 - least
    scaled = roc_auc_score(~TRUTH, -scores, max_fpr=edge)
    expected = 0.5 * edge**2 + (edge - 0.5 * edge**2) / 0.5 * (scaled - 0.5)
    assert partial_auc(scores, TRUTH, least) == pytest.approx(expected)


def test_partial_auc_has_known_ends() -> None:
    """A perfect score reaches 0.2; a constant one has the chance level."""
    assert partial_auc(TRUTH.astype(float), TRUTH) == pytest.approx(0.2)
    assert partial_auc(np.full(200, 0.5), TRUTH) == pytest.approx(0.02)


def test_calibration_is_a_logistic_model_of_the_log_odds() -> None:
    """The slope is scikit-learn's unpenalised one; with the intercept, mean p is the prevalence."""
    intercept, slope = calibration(EXACT, TRUTH)
    odds = np.log(EXACT / (1 - EXACT))
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(odds[:, None], TRUTH)
    assert slope == pytest.approx(model.coef_[0, 0], rel=1e-4)
    assert (1 / (1 + np.exp(-odds - intercept))).mean() == pytest.approx(TRUTH.mean())


def test_calibrated_probabilities_are_called_so() -> None:
    """Where labels are drawn from the probabilities, intercept and slope are near 0 and 1."""
    p = draw.random(50_000)
    intercept, slope = calibration(p, draw.random(50_000) < p)
    assert intercept == pytest.approx(0, abs=0.05)
    assert slope == pytest.approx(1, abs=0.05)


def test_separated_classes_have_no_slope() -> None:
    """No finite slope exists where no score overlaps."""
    assert np.isnan(calibration(0.2 + 0.6 * TRUTH, TRUTH)[1])


def test_counts_are_scikit_learns() -> None:
    """At a cutoff, the four counts are those of its confusion matrix."""
    counts = confusion(TIED, TRUTH, 0.5)
    tn, fp, fn, tp = metrics.confusion_matrix(TRUTH, TIED >= 0.5).ravel()
    assert counts == Confusion(tp, fn, fp, tn)


def test_net_benefit_is_the_published_formula() -> None:
    """Vickers: of 1,000 men, 80 true and 120 false positives at a threshold of 20 %: 0.05."""
    counts = Confusion(80, 20, 120, 780)
    assert net_benefit(counts, 0.2) == pytest.approx(80 / 1000 - 120 / 1000 * 0.25)
    assert net_benefit(counts, 0.2) == pytest.approx(0.05)
