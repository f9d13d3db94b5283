"""Simulates sweeps and counts how often the report's intervals and verdicts are wrong.

The images are 100 malignant and 120 benign. A score is a signal for malignant images, plus effects
of the image, of the seed, and of image and batch size together. So batch sizes can be alike on
average and yet differ on a sample of images: "new images" must allow for that, and "these images"
is simulated without it. The true AUC of every batch size is known.

Example:
  python tests/benchmarks/coverage.py --n 2000
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from skinjob.report.clinical import confusion, cutoff_for, rates_for
from skinjob.report.comparison import ALPHA, Contrast, Verdict
from skinjob.report.statistics import (
    Estimates,
    Floats,
    auc_estimates,
    holm,
    image_draws,
    mean_estimates,
    orh_difference,
    orh_mean,
    paired_interval,
    sd_ratio,
    sign_flip_p,
    trend_p,
)

TRUTH = np.arange(220) < 100
SAMPLES = image_draws(TRUTH.astype(np.int64), np.arange(len(TRUTH)))
SIGNAL, SEED, IMAGE, BOTH = 1.6, 0.25, 0.7, 0.35
"""The signal's mean and its sd over seeds, and the sd of the effects of image, and of image and
batch size. The sd of a score within its image is such that the total is 1."""


def scores(draw: np.random.Generator, seeds: int, signals: Floats, both: float) -> Floats:
    """Returns the scores of a sweep, (sizes, seeds, images); *signals* (sizes,)."""
    sizes, images = len(signals), len(TRUTH)
    own = signals[:, None, None] + draw.normal(0, SEED, (sizes, seeds, 1))
    shared = IMAGE * draw.normal(size=images) + both * draw.normal(size=(sizes, 1, images))
    rest = (1 - IMAGE**2 - both**2) ** 0.5
    return own * TRUTH + shared + rest * draw.normal(size=(sizes, seeds, images))


def true_auc(signal: float) -> float:
    """Returns the AUC over all images and seeds."""
    return NormalDist().cdf(signal / (2 + SEED**2) ** 0.5)


def aucs(all_scores: Floats) -> Estimates:
    return auc_estimates(all_scores.reshape(-1, len(TRUTH)), TRUTH)


def losses(all_scores: Floats) -> Estimates:
    """Returns mean log losses; the odds are the scores, less the middle between the classes."""
    odds = (all_scores - SIGNAL / 2).reshape(-1, len(TRUTH))
    return mean_estimates(np.logaddexp(0, np.where(TRUTH, -odds, odds)))


def misses_new(draw: np.random.Generator, seeds: int, outcome: Any, gap: float) -> bool:
    """Returns True if the interval for new images and seeds misses the true difference."""
    estimates = outcome(scores(draw, seeds, np.array([SIGNAL, SIGNAL + gap]), BOTH))
    low, high = orh_difference(estimates.values.reshape(2, -1), estimates.covariance).interval()
    return not low <= true_auc(SIGNAL + gap) - true_auc(SIGNAL) <= high


def misses_these(draw: np.random.Generator, seeds: int) -> bool:
    """Returns True if the interval for these images misses the true difference, which is 0."""
    values = aucs(scores(draw, seeds, np.array([SIGNAL, SIGNAL]), 0)).values.reshape(2, -1)
    low, high = paired_interval(values[1] - values[0])
    return not low <= 0 <= high


def misses_ratio(draw: np.random.Generator, seeds: int) -> bool:
    """Returns True if the limits of the ratio of spreads miss 1."""
    values = aucs(scores(draw, seeds, np.array([SIGNAL, SIGNAL]), 0)).values.reshape(2, -1)
    low, high = sd_ratio(*values)[1]
    return not low <= 1 <= high


def verdicts(estimates: Estimates, seeds: int, margin: float) -> list[Verdict | None]:
    """Returns the verdicts of a sweep as the report finds them: trend, Holm, equivalence."""
    table = estimates.values.reshape(-1, seeds)
    rows = range(1, len(table))
    series = cast(Any, SimpleNamespace())
    contrasts = []
    for row in rows:
        places = np.r_[0:seeds, row * seeds : (row + 1) * seeds]
        new = orh_difference(table[[0, row]], estimates.covariance[np.ix_(places, places)])
        pair = table[[0, row]]
        contrasts.append(Contrast(series, series, "auc", tuple(range(seeds)), (), pair, new))
    here: list[Any] = [None] * len(contrasts)
    of_new: list[Any] = [None] * len(contrasts)
    if len(table) == 2 or trend_p(table.T) <= ALPHA:
        here = holm([sign_flip_p(c.differences) for c in contrasts])
        of_new = holm([c.new_images.p for c in contrasts if c.new_images])
    judged = zip(contrasts, here, of_new, strict=True)
    return [c.judged(p_here, p_new, margin).verdict for c, p_here, p_new in judged]


def differs(draw: np.random.Generator, seeds: int, *, both: float, kinds: set[Verdict]) -> bool:
    """Returns True if, of four batch sizes that are alike, any is said to differ."""
    estimates = aucs(scores(draw, seeds, np.full(4, SIGNAL), both))
    return bool(kinds & set(verdicts(estimates, seeds, 0.02)))


def equals(draw: np.random.Generator, seeds: int) -> bool:
    """Returns True if a pair that differs by the margin is said to be the same within it."""
    gap = 0.5
    margin = true_auc(SIGNAL + gap) - true_auc(SIGNAL)
    estimates = aucs(scores(draw, seeds, np.array([SIGNAL, SIGNAL + gap]), BOTH))
    return verdicts(estimates, seeds, margin)[0] == Verdict.SAME


def misses_specificity(draw: np.random.Generator, seeds: int) -> bool:
    """Returns True if the interval of the specificity at a sensitivity of 90 % misses the truth."""
    own = scores(draw, seeds, np.array([SIGNAL]), BOTH)[0]
    specificities = [confusion(run, TRUTH, cutoff_for(run, TRUTH, 0.9)).specificity for run in own]
    samples = np.array([rates_for(run, TRUTH, [0.9], SAMPLES)[0][1] for run in own])
    mean = orh_mean(np.array(specificities), np.atleast_2d(np.cov(samples)))
    low, high = mean.share_interval(int((~TRUTH).sum()))
    normal = NormalDist()
    true = normal.cdf((SIGNAL + normal.inv_cdf(0.1)) / (1 + SEED**2) ** 0.5)
    return not low <= true <= high


def misses_mean(draw: np.random.Generator, seeds: int) -> bool:
    """Returns True if the interval of a mean AUC misses the truth."""
    estimates = aucs(scores(draw, seeds, np.array([SIGNAL]), BOTH))
    low, high = orh_mean(estimates.values, estimates.covariance).interval()
    return not low <= true_auc(SIGNAL) <= high


HERE = {Verdict.DIFFER, Verdict.DIFFER_HERE}
QUESTIONS: dict[str, tuple[Callable[..., bool], str]] = {
    "new images and seeds, AUC, no difference": (
        lambda draw, seeds: misses_new(draw, seeds, aucs, 0.0),
        "4.7 to 6.1",
    ),
    "new images and seeds, AUC, a difference": (
        lambda draw, seeds: misses_new(draw, seeds, aucs, 0.3),
        "4.7 to 6.1",
    ),
    "new images and seeds, log loss, no difference": (
        lambda draw, seeds: misses_new(draw, seeds, losses, 0.0),
        "4.7 to 6.1",
    ),
    "mean AUC": (misses_mean, "5"),
    "specificity at sensitivity 90 %": (misses_specificity, "5"),
    "these images, paired t, no difference": (misses_these, "4.5 to 6.2"),
    "ratio of spreads, no difference": (misses_ratio, "5"),
    "any of 3 pairs differs on these images": (
        lambda draw, seeds: differs(draw, seeds, both=0.0, kinds=HERE),
        "at most 5",
    ),
    "any of 3 pairs differs for new images": (
        lambda draw, seeds: differs(draw, seeds, both=BOTH, kinds={Verdict.DIFFER}),
        "at most 5",
    ),
    "the same, though it differs by the margin": (equals, "at most 5"),
}
"""Questions, each with a simulation that says if the report is wrong, and the % to reach."""


def main() -> None:
    """Simulates each question with 3, 5 and 10 seeds and prints percentages of wrong answers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=2000, help="simulated sweeps per number")
    parser.add_argument("--seeds", default="3,5,10", help="seeds per batch size")
    options = parser.parse_args()
    seeds = [int(number) for number in options.seeds.split(",")]
    start = time.perf_counter()
    error = 100 * 1.96 * (0.05 * 0.95 / options.n) ** 0.5
    print(f"wrong answers in %, n = {options.n} each; 5 % is met within +-{error:.1f}")
    print(f"{'':<46}" + "".join(f"{number:>9}" for number in seeds) + "  seeds; to reach")
    for name, (is_wrong, expected) in QUESTIONS.items():
        shares = list(percentages(is_wrong, seeds, options.n))
        print(f"{name:<46}" + "".join(f"{share:>9.1f}" for share in shares) + f"  {expected}")
    print(f"{time.perf_counter() - start:.0f} s")


def percentages(is_wrong: Callable[..., bool], seeds: list[int], n: int) -> Iterator[float]:
    for number in seeds:
        draw = np.random.default_rng(14)
        yield 100 * sum(is_wrong(draw, number) for _ in range(n)) / n


if __name__ == "__main__":
    main()
