"""The clinical numbers of a sweep as tables of text, for the page and the terminal.

A number is the mean over seeds. Its 95 % interval is for new images and new seeds: the covariance
over images comes from DeLong, from the images' losses, or from samples of images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from skinjob.report.clinical import (
    LEAST_SENSITIVITY,
    Truth,
    calibration,
    confusion,
    net_benefit,
    partial_auc,
    scaled,
    temperature,
)
from skinjob.report.clinical_case import SENSITIVITIES, Case, Part, case_of, without_copies
from skinjob.report.clinical_classes import class_parts
from skinjob.report.measures import CHOSEN_ON_TEST, number, percent, scope_of, signed
from skinjob.report.predictions import Copies, Predictions, log_losses
from skinjob.report.statistics import (
    Floats,
    Interval,
    Mean,
    auc_estimates,
    mean_estimates,
    orh_difference,
    orh_mean,
)
from skinjob.report.tables import Series
from skinjob.words import pluralize

MAIN = 0.90
"""The sensitivity of PPV, of the counts, and of the terminal's table."""
PREVALENCE = 0.02
"""Of the stated PPV: in a practice, malignant lesions are far rarer than in the test folder."""
THRESHOLD = 0.10
"""The probability of malignancy from which one would act, for net benefit."""

Cells = dict[str, str]


@dataclass(frozen=True)
class Clinical:
    """The clinical numbers of a sweep."""

    parts: Sequence[Part]
    short: Part | None = None
    """For the terminal: a row for each batch size."""


def clinical(
    all_series: Sequence[Series],
    test: Mapping[str, Predictions],
    val: Mapping[str, Predictions],
    copies: Copies | None,
) -> Clinical:
    """Returns the clinical numbers of series of a sweep; empty without predictions.

    *test* and *val* are predictions by run name. Where images.csv names copies, all numbers are
    there a second time without the test images that have a copy in train.
    """
    cases = [case for s in all_series if (case := case_of(s, test, val, copies))]
    if not cases:
        return Clinical(())
    positive = all_series[0].table.positive_class
    whole = _part(f"“{positive}” against the rest", cases)
    parts = [whole, *class_parts(cases)]
    if num_copies := int(cases[0].is_copy.sum()):
        num = pluralize(num_copies, "test image")
        verb = "has" if num_copies == 1 else "have"
        alone = [case for each in cases if (case := without_copies(each))]
        title = f"“{positive}” against the rest, without the {num} that {verb} a copy in train"
        parts += [_part(title, alone)] if len(alone) == len(cases) else []
    elif copies:
        parts[0] = replace(parts[0], note=f"{parts[0].note} No test image has a copy in train.")
    return Clinical(parts, _short(positive, cases, whole))


def _part(title: str, cases: Sequence[Case]) -> Part:
    cells = [_cells(case, cases[0]) for case in cases]
    names = dict.fromkeys(name for own in cells for name in own)
    rows = [[name, *(own.get(name, "-") for own in cells)] for name in names]
    rows = [row for row in rows if any(cell != "-" for cell in row[1:])]
    columns = ["batch size", *(str(case.batch_size) for case in cases)]
    scope = scope_of(len(case.seeds) for case in cases)
    note = f"{_origin(cases)} Means over seeds, after the last epoch; 95 % is for {scope}."
    return Part(title, columns, rows, note)


def _origin(cases: Sequence[Case]) -> str:
    """Returns a sentence on which images chose the cutoffs."""
    if all(case.val for case in cases):
        return "The cutoffs were chosen with the validation images."
    return f"{CHOSEN_ON_TEST} The cutoff was chosen with the test images: too good for new ones."


def _cells(case: Case, first: Case) -> Cells:
    """Returns the numbers of a batch size by name."""
    return {
        **_discrimination(case, first),
        **_at_sensitivities(case),
        **_utility(case),
        **_calibration(case),
        **_counts(case),
    }


def _discrimination(case: Case, first: Case) -> Cells:
    """Returns how well the scores separate the classes, and the accuracies."""
    auc = auc_estimates(case.scores, case.truth).grouped(case.groups)
    losses = mean_estimates(np.array([log_losses(run) for run in case.test])).grouped(case.groups)
    right = np.array([run.probabilities.argmax(1) == run.labels for run in case.test], np.float64)
    accuracy = mean_estimates(right).grouped(case.groups)
    cells = {"AUC (95 %)": _number(orh_mean(auc.values, auc.covariance), 3)}
    difference, limits = ("-", "-") if case is first else _difference(case, first)
    cells[f"AUC minus that of {first.batch_size}"] = difference
    cells["its 95 % interval"] = limits  # a row of its own keeps the columns narrow
    cells["log loss (95 %)"] = _number(orh_mean(losses.values, losses.covariance), 3)
    share = orh_mean(accuracy.values, accuracy.covariance)
    cells["accuracy % of the most probable class (95 %)"] = _share(share, len(case.truth))
    if len(case.test[0].classes) == 2:
        cutoffs = [_matched(*case.choosing(run)) for run in range(len(case.test))]
        counts = case.counts(cutoffs)
        shares = [(c.true_positives + c.true_negatives) / len(case.truth) for c in counts]
        name = "accuracy % if as many images are called positive as are positive"
        cells[name + _mark(case)] = percent(float(np.mean(shares)))
    return cells


def _difference(case: Case, first: Case) -> tuple[str, str]:
    """Returns the AUC less that of another case, and its interval, over the seeds of both."""
    seeds = [seed for seed in first.seeds if seed in case.seeds]
    if not seeds:
        return "-", "-"
    scores = [each.scores[each.seeds.index(seed)] for each in (first, case) for seed in seeds]
    auc = auc_estimates(np.array(scores), case.truth).grouped(case.groups)
    difference = orh_difference(auc.values.reshape(2, -1), auc.covariance)
    low, high = difference.interval()
    return signed(difference.mean), f"{signed(low)} to {signed(high)}"


def _matched(scores: Floats, is_positive: Truth) -> float:
    """Returns the cutoff at which as many images are called positive as there are."""
    return float(np.sort(scores)[::-1][int(is_positive.sum()) - 1])


def _at_sensitivities(case: Case) -> Cells:
    """Returns the specificity for each sensitivity; with val, the sensitivity that was reached."""
    cells = {}
    for wanted in SENSITIVITIES:
        reached, specificity = _rates(case, wanted)
        asked = f"sensitivity {percent(wanted, 0)} %"
        if case.val:
            cells[f"{asked} asked: reached % (95 %)"] = reached
            cells[f"{asked} asked: specificity % (95 %)"] = specificity
        else:
            cells[f"specificity % at {asked}{_mark(case)} (95 %)"] = specificity
    return cells


def _rates(case: Case, wanted: float) -> tuple[str, str]:
    """Returns the sensitivity that was reached and the specificity, with their intervals."""
    counts, samples = case.counts(case.cutoffs[wanted]), case.samples[wanted]
    num = int(case.truth.sum())
    return (
        _share(_mean([count.sensitivity for count in counts], samples[0]), num),
        _share(_mean([count.specificity for count in counts], samples[1]), len(case.truth) - num),
    )


def _utility(case: Case) -> Cells:
    """Returns partial AUC, PPV and net benefit."""
    partial = [partial_auc(own, case.truth) for own in case.scores]
    benefits = [net_benefit(c, THRESHOLD) for c in case.counts([THRESHOLD] * len(case.test))]
    all_called = confusion(np.ones(len(case.truth)), case.truth, 0.5)
    name = f"PPV % at a prevalence of {percent(PREVALENCE, 0)} %"
    of_all = net_benefit(all_called, THRESHOLD)
    return {
        f"partial AUC above sensitivity {percent(LEAST_SENSITIVITY, 0)} % (of 0.2)": number(
            float(np.mean(partial)), 3
        ),
        f"{name}{_mark(case)} (95 %)": _ppv(case),
        f"net benefit at {percent(THRESHOLD, 0)} % (calling all: {of_all:.3f})": number(
            float(np.mean(benefits)), 3
        ),
    }


def _ppv(case: Case) -> str:
    """Returns the PPV at the stated prevalence and the main sensitivity, with its interval.

    Both are those of the mean log odds, which are those of the prevalence plus the log of the
    positive likelihood ratio. Half an image is added to each count, so that no ratio is infinite.

    Source: Simel et al. (1991), "Likelihood ratios with confidence".
    """
    counts = case.counts(case.cutoffs[MAIN])
    own = np.array([(count.sensitivity, count.specificity) for count in counts])
    num = int(case.truth.sum())
    num_other = len(case.truth) - num

    def log_odds(sensitivity: Floats, specificity: Floats) -> Floats:
        hits = (num * sensitivity + 0.5) / (num + 1)
        alarms = (num_other * (1 - specificity) + 0.5) / (num_other + 1)
        odds: Floats = special.logit(PREVALENCE) + np.log(hits / alarms)
        return odds

    mean = _mean(log_odds(*own.T), log_odds(*case.samples[MAIN]))
    value, *limits = special.expit([mean.value, *mean.interval()])
    return f"{percent(value)} ({'-'.join(map(percent, limits))})"


def _calibration(case: Case) -> Cells:
    """Returns intercept and slope; with val, also after temperature scaling."""
    fits = np.array([calibration(own, case.truth) for own in case.scores])
    intercept, slope = fits.mean(axis=0)
    cells = {
        "calibration intercept (0 is perfect)": number(intercept, 2),
        "calibration slope (1 is perfect)": number(slope, 2),
    }
    if case.val:
        by = [temperature(run.probabilities, run.labels) for run in case.val]
        probabilities = [scaled(run.probabilities, t) for run, t in zip(case.test, by, strict=True)]
        after = [replace(o, probabilities=p) for o, p in zip(case.test, probabilities, strict=True)]
        slopes = [calibration(p[:, case.positive], case.truth)[1] for p in probabilities]
        losses = [log_losses(run).mean() for run in after]
        cells |= {
            "temperature that val asks for (1: none)": number(float(np.mean(by)), 2),
            "with this temperature: calibration slope": number(float(np.mean(slopes)), 2),
            "with this temperature: log loss": number(float(np.mean(losses)), 3),
        }
    return cells


def _counts(case: Case) -> Cells:
    """Returns the confusion matrix at two cutoffs, as means over seeds."""
    cells = {}
    asked = f"sensitivity {percent(MAIN, 0)} %{_mark(case)}"
    for name, cutoffs in (
        ("cutoff 0.5", [0.5] * len(case.test)),
        (asked, case.cutoffs[MAIN]),
    ):
        counts = case.counts(cutoffs)
        for kinds, words in (
            (("true_positives", "false_negatives"), "positives found / missed"),
            (("true_negatives", "false_positives"), "others cleared / false alarms"),
        ):
            means = [float(np.mean([getattr(count, kind) for count in counts])) for kind in kinds]
            cells[f"{name}: {words}"] = " / ".join(number(mean, 1) for mean in means)
    return cells


def _short(positive: str, cases: Sequence[Case], whole: Part) -> Part:
    """Returns the table of the terminal: some rows of the whole table, as columns."""
    has_val, asked = all(case.val for case in cases), f"sensitivity {percent(MAIN, 0)} %"
    mark = "" if has_val else CHOSEN_ON_TEST
    columns = {
        f"{asked} asked: reached": f"sensitivity %\n(asked: {percent(MAIN, 0)})",
        f"{asked} asked: specificity": "specificity %\n(95 %)",
        f"specificity % at {asked}": f"specificity %{mark}\nat {asked}",
        "PPV": f"PPV %{mark} where\n{percent(PREVALENCE, 0)} % are positive",
        "calibration slope": "calibration\nslope",
    }
    chosen = {
        column: row[1:]
        for start, column in columns.items()
        for row in whole.rows
        if row[0].startswith(start)
    }
    sizes = [str(case.batch_size) for case in cases]
    scope = scope_of(len(case.seeds) for case in cases)
    title = f"“{positive}” against the rest (95 %, {scope}):"
    rows = [list(cells) for cells in zip(sizes, *chosen.values(), strict=True)]
    return Part(title, ["batch\nsize", *chosen], rows)


def _mean(values: Sequence[float] | Floats, samples: Floats) -> Mean:
    return orh_mean(np.array(values), np.atleast_2d(np.cov(samples)))


def _mark(case: Case) -> str:
    return "" if case.val else CHOSEN_ON_TEST


def _number(mean: Mean, digits: int) -> str:
    return f"{number(mean.value, digits)} ({_limits(mean.interval(), digits)})"


def _share(mean: Mean, num: int) -> str:
    low, high = mean.share_interval(num)
    return f"{percent(mean.value)} ({percent(low)}-{percent(high)})"


def _limits(interval: Interval, digits: int) -> str:
    return "-".join(number(bound, digits) for bound in interval)
