"""Each clinical number equals scikit-learn's or a published one."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, roc_auc_score, roc_curve

from skinjob.report.clinical import (
    Confusion,
    calibration,
    confusion,
    cutoff_for,
    net_benefit,
    partial_auc,
    ppv,
)

draw = np.random.default_rng(7)
TRUTH = np.arange(200) < 90
EXACT = np.clip(draw.normal(0.45 + 0.2 * TRUTH, 0.15), 0.01, 0.99)
TIED = np.round(EXACT, 1)
"""Scores with many ties."""


@pytest.mark.parametrize("scores", [EXACT, TIED], ids=["exact", "tied"])
@pytest.mark.parametrize("wanted", [0.8, 0.9, 0.95, 1.0])
def test_specificity_at_a_sensitivity_is_the_curves(scores: np.ndarray, wanted: float) -> None:
    """It is the best specificity on scikit-learn's ROC curve that has the sensitivity."""
    false_alarms, found, _ = roc_curve(TRUTH, scores, drop_intermediate=False)
    counts = confusion(scores, TRUTH, cutoff_for(scores, TRUTH, wanted))
    assert counts.specificity == pytest.approx(1 - false_alarms[found >= wanted - 1e-12].min())
    assert counts.sensitivity >= wanted - 1e-12


@pytest.mark.parametrize("scores", [EXACT, TIED], ids=["exact", "tied"])
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
    tn, fp, fn, tp = confusion_matrix(TRUTH, TIED >= 0.5).ravel()
    assert counts == Confusion(tp, fn, fp, tn)


def test_ppv_is_bayes() -> None:
    """Sensitivity 90 %, specificity 91 %, prevalence 1 %: 9 % (Gigerenzer, mammography)."""
    assert ppv(0.9, 0.91, 0.01) == pytest.approx(0.0917, abs=1e-4)
    assert np.isnan(ppv(0.0, 1.0, 0.5))


def test_net_benefit_is_the_published_formula() -> None:
    """Vickers: of 1,000 men, 80 true and 120 false positives at a threshold of 20 %: 0.05."""
    counts = Confusion(80, 20, 120, 780)
    assert net_benefit(counts, 0.2) == pytest.approx(80 / 1000 - 120 / 1000 * 0.25)
    assert net_benefit(counts, 0.2) == pytest.approx(0.05)
