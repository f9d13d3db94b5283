"""Numbers for a clinical reader, from predictions.csv: the positive class against the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import special

from skinjob.report.measures import number, percent
from skinjob.report.predictions import LOWEST_P, Predictions
from skinjob.report.statistics import Floats, wilson_interval
from skinjob.report.tables import Series

SENSITIVITIES = (0.80, 0.90, 0.95)
PREVALENCE = 0.02
"""Of the stated PPV: in a practice, malignant lesions are far rarer than in the test folder."""
THRESHOLD = 0.10
"""The probability of malignancy from which one would act, for net benefit."""
LEAST_SENSITIVITY = 0.80
"""Of the partial AUC, as in the ISIC 2024 challenge."""

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


def partial_auc(scores: Floats, is_positive: Truth, least: float = LEAST_SENSITIVITY) -> float:
    """Returns the area under the ROC curve and above a sensitivity: 0 to 1 - *least*.

    Source: ISIC 2024, whose score this is; its chance level is (1 - least)**2 / 2.
    """
    order = np.argsort(scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=np.inf))  # ties are passed together
    # The curve from the other end: of the positives missed, of the others cleared.
    x = np.r_[0, np.cumsum(is_positive[order])[ends]] / is_positive.sum()
    y = np.r_[0, np.cumsum(~is_positive[order])[ends]] / (~is_positive).sum()
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


def ppv(sensitivity: float, specificity: float, prevalence: float) -> float:
    """Returns the share of positive calls that are right, by Bayes' theorem."""
    right = sensitivity * prevalence
    wrong = (1 - specificity) * (1 - prevalence)
    return right / (right + wrong) if right + wrong else math.nan


def net_benefit(counts: Confusion, threshold: float) -> float:
    """Returns true positives per image, less false positives at the odds of the threshold.

    Source: Vickers & Elkin (2006), "Decision curve analysis".
    """
    num: int = sum(vars(counts).values())
    odds = threshold / (1 - threshold)
    return counts.true_positives / num - counts.false_positives / num * odds


def clinical_table(
    all_series: Sequence[Series], predictions: Mapping[str, Predictions]
) -> tuple[list[str], list[list[str]]]:
    """Returns columns and rows of text: a row for each number, a column for each series.

    Numbers are means over seeds. Series without predictions have no column; empty if none has any.
    """
    columns, cells = [], []
    for series in all_series:
        found = [predictions[name] for name in series.run_of_seed.values() if name in predictions]
        positive = series.table.positive_class
        if found and positive in found[0].classes:
            place = found[0].classes.index(positive)
            truth = found[0].labels == place
            if truth.any() and not truth.all():
                columns.append(str(series.batch_size))
                cells.append(_column([one.probabilities[:, place] for one in found], truth))
    if not cells:
        return [], []
    return ["", *columns], [[name, *(own[name] for own in cells)] for name in cells[0]]


def _column(scores: Sequence[Floats], truth: Truth) -> dict[str, str]:
    """Returns the numbers of a series by name."""

    def mean(function: Callable[[Floats], float]) -> float:
        return float(np.mean([function(own) for own in scores]))

    def at(sensitivity: float, own: Floats) -> Confusion:
        return confusion(own, truth, cutoff_for(own, truth, sensitivity))

    found = {}
    for wanted in SENSITIVITIES:
        specificity = mean(lambda own, wanted=wanted: at(wanted, own).specificity)  # type: ignore[misc]
        low, high = wilson_interval(specificity, int((~truth).sum()))
        name = f"specificity % at sensitivity {percent(wanted, 0)} % (95 %, images)"
        found[name] = f"{percent(specificity)} ({percent(low)}-{percent(high)})"
    counts = [confusion(own, truth, 0.5) for own in scores]
    fits = [calibration(own, truth) for own in scores]
    return found | {
        f"partial AUC above sensitivity {percent(LEAST_SENSITIVITY, 0)} % (at most 0.2)": number(
            mean(partial(partial_auc, is_positive=truth)), 3
        ),
        f"PPV % at a prevalence of {percent(PREVALENCE, 0)} %, sensitivity 90 %": percent(
            mean(lambda own: ppv(at(0.9, own).sensitivity, at(0.9, own).specificity, PREVALENCE))
        ),
        f"net benefit at {percent(THRESHOLD, 0)} % (calling all: {_of_all(truth):.3f})": number(
            mean(lambda own: net_benefit(confusion(own, truth, THRESHOLD), THRESHOLD)), 3
        ),
        "calibration intercept (0 is perfect)": number(float(np.mean([a for a, _ in fits])), 2),
        "calibration slope (1 is perfect)": number(float(np.mean([b for _, b in fits])), 2),
        "at cutoff 0.5: positives found / missed": " / ".join(
            number(float(np.mean([getattr(one, kind) for one in counts])), 1)
            for kind in ("true_positives", "false_negatives")
        ),
        "at cutoff 0.5: others cleared / false alarms": " / ".join(
            number(float(np.mean([getattr(one, kind) for one in counts])), 1)
            for kind in ("true_negatives", "false_positives")
        ),
    }


def _of_all(truth: Truth) -> float:
    return net_benefit(confusion(np.ones(len(truth)), truth, 0.5), THRESHOLD)


def _share(part: int, rest: int) -> float:
    return part / (part + rest) if part + rest else math.nan
