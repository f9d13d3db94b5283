"""Each number of the comparison equals SciPy's, scikit-learn's or a published one."""

from __future__ import annotations

import itertools
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import log_loss, roc_auc_score

from skinjob.report.predictions import Predictions, estimates
from skinjob.report.statistics import (
    Interval,
    Mean,
    auc_estimates,
    geometric_ratio,
    holm,
    image_draws,
    mean_estimates,
    orh_difference,
    orh_mean,
    paired_interval,
    sd_ratio,
    seeds_needed,
    setbacks,
    sign_flip_p,
    t_quantile,
    trend_p,
    two_sided_p,
    wilson_interval,
    wobble,
)

draw = np.random.default_rng(14)


def test_the_interval_of_a_share_is_wilsons() -> None:
    """The interval of 81 right of 263 is Newcombe's (1998, table I, method 3): 0.2553 to 0.3662."""
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(1.0, 10).high == 1.0
    assert np.isnan(wilson_interval(0.5, 0)).all()


@pytest.mark.parametrize("df", [2, 4.7, 15.26, math.inf])
def test_t_is_scipys(df: float) -> None:
    """Quantiles and p values are those of SciPy, with broken degrees of freedom too."""
    assert t_quantile(0.975, df) == pytest.approx(stats.t.ppf(0.975, df), rel=1e-9)
    assert two_sided_p(2.1, df) == pytest.approx(2 * stats.t.sf(2.1, df), rel=1e-9)


def test_the_interval_over_seeds_is_the_paired_ts() -> None:
    """For these images the interval is SciPy's, at both levels."""
    d = draw.normal(0.1, 1, 8)
    for level in (0.90, 0.95):
        expected = stats.ttest_1samp(d, 0).confidence_interval(level)
        assert paired_interval(d, level) == pytest.approx(tuple(expected), rel=1e-9)
    assert np.isnan(paired_interval(d[:1])).all()


@pytest.mark.parametrize("num", [3, 8, 13])
def test_sign_flips_are_scipys(num: int) -> None:
    """Exact up to 13 seeds, as SciPy's permutation of paired samples."""
    a, b = draw.normal(size=(2, num))
    expected = stats.permutation_test(
        (a, b), lambda x, y, axis: (x - y).mean(axis=axis), permutation_type="samples", axis=0
    )
    assert sign_flip_p(b - a) == pytest.approx(expected.pvalue, abs=1e-12)


def test_many_seeds_flip_at_random_and_alike() -> None:
    """With 40 seeds the p is close to the paired t's and the same each time."""
    d = draw.normal(0.3, 1, 40)
    assert sign_flip_p(d) == sign_flip_p(d)
    assert sign_flip_p(d) == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=0.02)
    assert sign_flip_p(np.full(40, 1.0)) == pytest.approx(1e-4)


@pytest.mark.parametrize("shape", [(3, 3), (5, 4), (10, 4), (4, 6)])
def test_the_trend_is_pages(shape: tuple[int, int]) -> None:
    """Twice the smaller of SciPy's exact p values, up and down."""
    values = draw.normal(size=shape) + 0.3 * np.arange(shape[1])
    one_sided = [stats.page_trend_test(table, method="exact").pvalue for table in (values, -values)]
    assert trend_p(values) == pytest.approx(min(1, 2 * min(one_sided)), abs=1e-9)
    assert trend_p(values) == trend_p(-values)


def test_a_trend_with_ties_or_many_sizes_is_asymptotic() -> None:
    """Where the exact distribution is out of reach, the p is SciPy's asymptotic p, doubled."""
    for values in (draw.normal(size=(6, 9)), draw.integers(0, 3, (9, 4)).astype(float)):
        tests = [stats.page_trend_test(v, method="asymptotic").pvalue for v in (values, -values)]
        assert trend_p(values) == pytest.approx(2 * min(tests), abs=1e-9)


def test_holm_is_the_published_example() -> None:
    """Holm's procedure on four tests: 0.01, 0.04, 0.03, 0.005 (Wikipedia's, by hand)."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_seeds_needed_is_least() -> None:
    """The advised number reaches 80 % power by the formula, and one fewer does not."""
    num = seeds_needed(0.03, 0.02)
    assert num is not None
    power = [
        (stats.t.ppf(0.975, n - 1) + stats.t.ppf(0.8, n - 1)) * 0.03 / n**0.5
        for n in (num - 1, num)
    ]
    assert power[0] > 0.02 >= power[1]
    assert seeds_needed(1.0, 0.001) is None


@pytest.mark.parametrize("digits", [6, 1])
def test_auc_and_its_covariance_are_delongs(digits: int) -> None:
    """Areas equal scikit-learn's; the covariance is DeLong's definition, with ties."""
    is_positive = np.arange(30) < 12
    scores = np.round(draw.random((3, 30)) + 0.4 * is_positive, digits)
    auc = auc_estimates(scores, is_positive)
    assert auc.values == pytest.approx([roc_auc_score(is_positive, own) for own in scores])
    wins = np.array(
        [
            [[(x > y) + 0.5 * (x == y) for y in own[~is_positive]] for x in own[is_positive]]
            for own in scores
        ]
    )  # (3, 12, 18)
    expected = np.cov(wins.mean(axis=2)) / 12 + np.cov(wins.mean(axis=1)) / 18
    assert auc.covariance == pytest.approx(expected, abs=1e-12)


def test_of_several_classes_the_positive_is_taken_against_the_rest() -> None:
    """AUC with three classes is that of metrics.csv; log loss is that of all classes."""
    labels = np.arange(30) % 3
    p = draw.dirichlet(np.ones(3), (2, 30))
    names = tuple(f"{n}.jpg" for n in range(30))
    runs = [Predictions(names, ("a", "b", "c"), labels, own) for own in p]
    for place, positive in enumerate("abc"):
        expected = [roc_auc_score(labels == place, own[:, place]) for own in p]
        assert estimates("auc", runs, positive).values == pytest.approx(expected)
    losses = estimates("log-loss", runs, "c")
    assert losses.values == pytest.approx([log_loss(labels, own) for own in p], rel=1e-6)


def test_the_covariance_of_means_is_the_sample_covariance() -> None:
    """Over images: the covariance of the losses, divided by their number."""
    losses = draw.normal(size=(3, 50))
    means = mean_estimates(losses)
    assert means.values == pytest.approx(losses.mean(axis=1))
    assert means.covariance == pytest.approx(np.cov(losses) / 50)


VAN_DYKE = np.array(
    [
        [0.91964573, 0.85877617, 0.90386473, 0.97310789, 0.82979066],
        [0.94782609, 0.90531401, 0.92173913, 0.99935588, 0.92995169],
    ]
)
"""AUCs of five readers with two modalities, 114 cases (Van Dyke et al., 1993)."""


def test_new_images_and_seeds_are_the_published_example() -> None:
    """The analysis of Van Dyke's readers equals RJafroc's and OR-DBM MRMC's published output.

    RJafroc's book (Chakraborty), random readers and random cases: Cov2 0.00034407483, Cov3
    0.00023902837, df 15.259675, p 0.051665686, interval -0.087959499 to 0.00035885444.
    """
    covariance = np.full((2, 5, 2, 5), 0.00023902837)
    covariance[0, :, 0] = covariance[1, :, 1] = 0.00034407483
    difference = orh_difference(VAN_DYKE, covariance.reshape(10, 10))
    assert difference.mean == pytest.approx(0.043800322, abs=1e-8)
    assert difference.seed_part == pytest.approx(0.00055103062, abs=1e-10)
    assert difference.seed_part + difference.image_part == pytest.approx(0.0010762629, abs=1e-9)
    assert difference.df == pytest.approx(15.259675, abs=1e-4)
    assert difference.p == pytest.approx(0.051665686, abs=1e-6)
    assert difference.interval() == pytest.approx((-0.00035885444, 0.087959499), abs=1e-7)


@pytest.mark.parametrize(
    ("modality", "covariance", "df", "limits"),
    [
        (0, 0.00048396180, 12.744648, (0.82522360, 0.96885048)),
        (1, 0.00020418785, 12.710190, (0.89413783, 0.98753689)),
    ],
)
def test_a_mean_for_new_images_and_seeds_is_the_published_example(
    modality: int, covariance: float, df: float, limits: tuple[float, float]
) -> None:
    """The interval of each of Van Dyke's modalities equals RJafroc's published output."""
    mean = orh_mean(VAN_DYKE[modality], np.full((5, 5), covariance))
    assert mean.df == pytest.approx(df, abs=1e-4)
    assert mean.interval() == pytest.approx(limits, abs=1e-7)


def test_the_mean_of_one_seed_has_delongs_interval() -> None:
    """Of several seeds that are all alike, too: they say nothing about other seeds."""
    is_positive = np.arange(40) < 20
    scores = draw.random(40) + 0.3 * is_positive
    for seeds in (1, 3):
        auc = auc_estimates(np.array([scores] * seeds), is_positive)
        error = auc.covariance[0, 0] ** 0.5
        limits = stats.norm.interval(0.95, auc.values[0], error)
        assert orh_mean(auc.values, auc.covariance).interval() == pytest.approx(limits)


def test_a_share_of_independent_images_has_wilsons_interval() -> None:
    """It is SciPy's where the error is that of a plain share, and at 0 and 1, and it is wider
    where seeds differ.
    """
    for count in (0, 37, 50):
        share = count / 50
        mean = Mean(share, (share * (1 - share) / 50) ** 0.5, np.inf)
        limits = stats.binomtest(count, 50).proportion_ci(method="wilson")
        assert mean.share_interval(50) == pytest.approx(tuple(limits))
    low, high = Mean(0.98, 0.02, 9).share_interval(50)
    assert 0 < low < 0.98 < high < 1
    assert high - low > 4 * 0.02
    for share in (0.0, 1.0):  # samples of images may vary where the images themselves do not
        assert Mean(share, 0.01, np.inf).share_interval(50) == Mean(
            share, 0, np.inf
        ).share_interval(50)


def test_copies_count_as_a_group() -> None:
    """Images that are there twice add nothing to what is known about new images."""
    is_positive = np.arange(200) < 90
    scores = 0.7 * draw.random((3, 200)) + 0.3 * is_positive
    once = auc_estimates(scores, is_positive)
    twice = auc_estimates(np.tile(scores, 2), np.tile(is_positive, 2))
    numbers = np.arange(200)
    assert twice.covariance == pytest.approx(once.covariance / 2, rel=0.02)
    assert twice.grouped(np.tile(numbers, 2)).covariance == pytest.approx(once.covariance, rel=0.02)
    assert once.grouped(numbers).covariance == pytest.approx(once.covariance)

    p = np.tile(np.column_stack([1 - scores[0], scores[0]]), (2, 1))
    labels = np.tile(is_positive, 2).astype(np.int64)
    single = Predictions(tuple(map(str, range(400))), ("a", "b"), labels, p)
    grouped = Predictions(single.images, single.classes, labels, p, np.tile(numbers, 2))
    for outcome in ("auc", "log-loss"):
        by_group, plain = (estimates(outcome, [run], "b").covariance for run in (grouped, single))
        assert by_group == pytest.approx(2 * plain)


def test_samples_of_images_have_the_variance_of_new_images() -> None:
    """Each class keeps its size, copies are drawn together, and a mean's variance is right."""
    labels, groups = np.repeat([0, 1], [120, 80]), np.r_[0, 0, 1:199]
    samples = image_draws(labels, groups, 4000)
    assert (samples[:, 120:].sum(axis=1) == 80).all()
    assert (samples[:, 0] == samples[:, 1]).all()
    assert (samples[:, 1:120].sum(axis=1) == 119).all()
    values = draw.normal(size=80)
    variance = (samples[:, 120:] @ values / 80).var()
    assert variance == pytest.approx(values.var() / 80, rel=0.1)


def test_without_noise_of_images_it_is_the_paired_t() -> None:
    """Where images add nothing, the same readers give the published fixed-case interval."""
    difference = orh_difference(VAN_DYKE, np.zeros((10, 10)))
    assert difference.df == 4
    assert difference.interval() == pytest.approx((0.0025804202, 0.085020224), abs=1e-7)
    assert difference.interval() == pytest.approx(paired_interval(VAN_DYKE[1] - VAN_DYKE[0]))


def test_a_single_seed_has_the_interval_of_images() -> None:
    """With one seed, the error is DeLong's for the difference of two correlated areas."""
    is_positive = np.arange(40) < 20
    both = auc_estimates(draw.random((2, 40)) + 0.3 * is_positive, is_positive)
    difference = orh_difference(both.values[:, None], both.covariance)
    variance = both.covariance @ [-1, 1] @ [-1, 1]
    assert difference.error == pytest.approx(variance**0.5)
    assert difference.interval() == pytest.approx(
        tuple(stats.norm.interval(0.95, np.diff(both.values)[0], variance**0.5))
    )


def test_the_ratio_of_spreads_has_pitmans_limits() -> None:
    """A ratio is inside the limits exactly if Pitman's test does not reject it."""
    a, b = draw.normal(size=(2, 12))
    b = 2 * b + a
    ratio, (low, high) = sd_ratio(a, b)
    assert ratio == pytest.approx(b.std(ddof=1) / a.std(ddof=1))
    for limit in (low, high):  # Pitman: scaled to equal variances, sum and difference correlate
        assert stats.pearsonr(b + limit * a, b - limit * a).pvalue == pytest.approx(0.05, abs=1e-9)
    assert low < ratio < high


def test_wobble_is_the_noise_around_a_trend() -> None:
    """A straight line wobbles by 0; noise of sd 0.3 on it by 0.3."""
    line = np.linspace(1, 0, 20_000)[None]
    assert wobble(line)[0] == pytest.approx(0, abs=1e-12)
    noisy = line + draw.normal(0, 0.3, line.shape)
    assert wobble(noisy)[0] == pytest.approx(0.3, rel=0.03)
    assert wobble(np.array([[0.0, 3, 0]]))[0] == pytest.approx((2 / 3 * 9) ** 0.5)


def test_setbacks_are_counted() -> None:
    """Of five steps two rise; the largest rise above the lowest loss before is 0.3."""
    assert setbacks(np.array([[1.0, 0.5, 0.6, 0.8, 0.4, 0.4]])) == (2, 5, pytest.approx(0.3))


def test_a_ratio_over_seeds_is_geometric() -> None:
    """The mean ratio and its limits are those of the logarithms."""
    a, b = draw.random((2, 6)) + 0.5
    ratio, limits = geometric_ratio(a, b)
    assert ratio == pytest.approx(stats.gmean(b / a))
    expected = stats.ttest_1samp(np.log(b / a), 0).confidence_interval()
    assert np.log(limits) == pytest.approx(tuple(expected))
    assert np.isnan(geometric_ratio(a, 0 * b)[0])


def test_the_simulation_of_errors_runs() -> None:
    """The command behind the percentages in docs/reading-the-report.md still asks each question."""
    simulation = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks/coverage.py"))
    for is_wrong, _ in simulation["QUESTIONS"].values():
        assert 0 <= next(simulation["percentages"](is_wrong, [5], 3)) <= 100


def test_an_interval_is_inside_a_margin_only_as_a_whole() -> None:
    """The limits count, not the middle."""
    assert Interval(-0.01, 0.019).is_inside(0.02)
    assert not Interval(-0.01, 0.021).is_inside(0.02)
    assert not Interval(math.nan, math.nan).is_inside(0.02)


def test_intervals_need_no_order_of_seeds() -> None:
    """Sorting the seeds changes no number."""
    values = draw.normal(size=(5, 3))
    for order in itertools.islice(itertools.permutations(range(5)), 5):
        assert trend_p(values[list(order)]) == trend_p(values)
