"""Compares the batch sizes of a sweep: the smallest against each other, seed by seed.

A family of comparisons has the same axis (equal epochs or equal updates) and the same learning
rates. Its verdicts are about the primary outcome, which was declared at submit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from statistics import fmean

import numpy as np

from skinjob.data.images import Split
from skinjob.report.measures import CHOSEN_ON_TEST, COMPARED, scope_of
from skinjob.report.predictions import Predictions, estimates, read_copies, read_predictions
from skinjob.report.stability import Stability, diverged, stabilities
from skinjob.report.statistics import (
    Difference,
    Floats,
    Interval,
    holm,
    orh_difference,
    paired_interval,
    seeds_needed,
    sign_flip_p,
    trend_p,
)
from skinjob.report.tables import Series, SweepTable, by_lr
from skinjob.sweeps.layout import Run
from skinjob.words import pluralize

ALPHA = 0.05
FEWEST_FOR_TREND = 3
FEWEST_FOR_VERDICT = 5
NAMES = {"auc": "AUC", "log-loss": "log loss"}
COLUMNS = {"auc": "test_auc", "log-loss": "test_loss"}
VAL_COLUMNS = {"auc": "val_auc", "log-loss": "val_loss"}
"""The columns that choose a learning rate if there is a validation split."""


class Verdict(str, Enum):
    """What a comparison says."""

    DIFFER = "they differ"
    DIFFER_HERE = "they differ on these images"
    SAME = "the same within the margin"
    NOT_SHOWN = "no difference shown"
    TOO_FEW = "too few seeds to say"


@dataclass(frozen=True)
class Contrast:
    """A batch size against the smallest."""

    series: Series
    reference: Series
    outcome: str
    seeds: tuple[int, ...]
    """Complete in both."""
    dropped: tuple[int, ...]
    """Complete in only one of the two."""
    values: Floats
    """(2, seeds): the reference's, then its own."""
    new_images: Difference | None
    """None where there are no predictions of these runs."""
    p_here: float | None = None
    """For these images (sign flips), adjusted by Holm. None if no test was made: a trend over all
    batch sizes comes first, and five seeds."""
    p_new: float | None = None
    """For new images and seeds, adjusted by Holm. None as above, or without predictions."""
    verdict: Verdict | None = None
    """None for an outcome that is not primary."""
    margin: float = math.nan

    @cached_property
    def differences(self) -> Floats:
        """(seeds,)"""
        differences: Floats = self.values[1] - self.values[0]
        return differences

    @property
    def mean(self) -> float:
        return float(self.differences.mean())

    @cached_property
    def same_images(self) -> Interval:
        """The 95 % interval over seeds, for these test images."""
        return paired_interval(self.differences)

    @property
    def interval(self) -> Interval:
        """The 95 % interval for new images and seeds; for these images if that is unknown."""
        return self.new_images.interval() if self.new_images else self.same_images

    @property
    def is_better(self) -> bool:
        return self.mean > 0 if self.outcome == "auc" else self.mean < 0

    @property
    def is_shown(self) -> bool:
        return self.verdict in (Verdict.DIFFER, Verdict.DIFFER_HERE)

    @property
    def is_little(self) -> bool:
        """Whether the whole interval is within the margin."""
        return self.interval.is_inside(self.margin)

    @property
    def num_seeds_needed(self) -> int | None:
        """Seeds that would show a difference of the margin; None if over 1,000 or unknown."""
        if len(self.seeds) < FEWEST_FOR_TREND:
            return None
        return seeds_needed(float(self.differences.std(ddof=1)), self.margin)

    @property
    def needs_images(self) -> bool:
        """Whether more test images would narrow the interval more than seeds."""
        new = self.new_images
        return new is not None and new.image_part > new.seed_part

    def judged(self, p_here: float | None, p_new: float | None, margin: float) -> Contrast:
        """Returns it with its verdict."""
        new = self.new_images
        narrow = new.interval(0.90) if new else paired_interval(self.differences, 0.90)
        if len(self.seeds) < FEWEST_FOR_VERDICT:
            verdict, p_here, p_new = Verdict.TOO_FEW, None, None
        elif p_new is not None and p_new <= ALPHA:
            verdict = Verdict.DIFFER
        elif p_here is not None and p_here <= ALPHA:
            verdict = Verdict.DIFFER_HERE
        else:
            verdict = Verdict.SAME if narrow.is_inside(margin) else Verdict.NOT_SHOWN
        return replace(self, p_here=p_here, p_new=p_new, verdict=verdict, margin=margin)


@dataclass(frozen=True)
class Family:
    """The comparisons at a point that all batch sizes reached."""

    axis: str
    """epochs or updates"""
    at: int
    outcome: str
    series: Sequence[Series]
    """The batch sizes, the smallest first; with several lrs perhaps each at its own."""
    unpaired: Sequence[Series]
    """Batch sizes without a complete seed in common with the smallest, so they are not compared."""
    values: Mapping[int, Floats]
    """The outcome of each batch size, over its complete seeds."""
    contrasts: Sequence[Contrast]
    trend: float | None
    """The p of a trend over all batch sizes; None for fewer than three."""
    stability: Sequence[Stability]
    has_own_lrs: bool
    is_primary: bool

    @property
    def point(self) -> str:
        """The point in words, such as 20 epochs."""
        return pluralize(self.at, self.axis.removesuffix("s"))

    def updates_of(self, series: Series) -> int:
        """Returns the updates that a batch size had made at this point."""
        return self.at if self.axis == "updates" else series.updates[self.at - 1]

    @property
    def num_tests(self) -> int:
        """Tests of pairs, which are adjusted for their number."""
        return sum(p is not None for c in self.contrasts for p in (c.p_here, c.p_new))


@dataclass(frozen=True)
class Comparison:
    """All comparisons of a sweep."""

    table: SweepTable
    primary: str
    margin: float
    families: Sequence[Family]
    """The axis of the question comes first: updates if the runs have the same number of them."""
    sizes: Sequence[int]
    """Batch sizes at the last point that any has reached."""
    behind: Sequence[Series]
    """Batch sizes that are not at that point, so they are not compared."""
    diverged: Mapping[tuple[int, float], tuple[int, ...]]
    """Seeds whose loss was not a number, by batch size and lr."""
    lr_at_edge: Sequence[Series]
    """Batch sizes whose best lr is the smallest or largest that was run."""

    def family(self, axis: str, outcome: str | None = None) -> Family | None:
        """Returns the family that the answer rests on: each batch size at its own lr if known."""
        key = axis, outcome or self.primary
        matching = [f for f in self.families if (f.axis, f.outcome) == key]
        return next((f for f in matching if f.has_own_lrs), matching[0] if matching else None)

    def point(self, family: Family) -> str:
        """Returns the point of a family in words, with its lr if there are several."""
        if len(self.table.info.lrs) < 2:
            return family.point
        mark = CHOSEN_ON_TEST if self.table.choosing is COMPARED else ""
        lr = f"own lr{mark}" if family.has_own_lrs else f"lr {family.series[0].lr!r}"
        return f"{family.point}, {lr}"

    @property
    def scope(self) -> str:
        """The images and seeds that the intervals of pairs are for, if there are predictions."""
        pairs = [pair for family in self.families for pair in family.contrasts if pair.verdict]
        return scope_of(len(pair.seeds) for pair in pairs)

    @property
    def lead(self) -> Family | None:
        """The family whose verdicts the answer begins with."""
        return self.family(self.table.counts_in)

    @property
    def other(self) -> Family | None:
        """The family of the other axis."""
        return self.family("epochs" if self.table.counts_in == "updates" else "updates")


def compare_sweep(
    table: SweepTable, all_series: Sequence[Series], predictions: Mapping[str, Predictions]
) -> Comparison:
    """Returns the comparisons of a sweep's series. *predictions* are by run name."""
    recipe = table.info.recipe
    primary = str(recipe.get("primary") or "auc")
    if any(COLUMNS[primary] not in table.columns for _ in all_series):
        primary = "log-loss" if primary == "auc" else "auc"
    margin = float(recipe.get("margin") or 0.02)
    last = max((reached(series) for series in all_series), default=0)
    comparable = [series for series in all_series if reached(series) == last]
    groups = [(False, own) for own in by_lr(comparable).values()]
    best = _at_best_lr(comparable, primary)
    if len(groups) > 1:
        groups.insert(0, (True, best))
    families = [
        family
        for has_own_lrs, series in groups
        for outcome in (primary, *(name for name in COLUMNS if name != primary))
        if len(series) > 1 and COLUMNS[outcome] in table.columns
        for axis, at in _common_points(table, series)
        if at
        for family in [
            _family(axis, at, outcome, series, predictions, margin, outcome == primary, has_own_lrs)
        ]
        if family
    ]
    lrs = sorted({series.lr for series in comparable})
    return Comparison(
        table=table,
        primary=primary,
        margin=margin,
        families=families,
        sizes=[series.batch_size for series in best],
        behind=[series for series in all_series if reached(series) < last],
        diverged=diverged(table, all_series),
        lr_at_edge=[s for s in best if len(lrs) > 1 and s.lr in (lrs[0], lrs[-1])],
    )


def read_all_predictions(
    all_series: Sequence[Series], split: Split = Split.TEST
) -> dict[str, Predictions]:
    """Returns the predictions of the runs of a sweep that have all their epochs, by run name.

    All are on the same images, and have the groups of copies that images.csv has.
    """
    by_run: dict[str, Predictions] = {}
    copies = read_copies(all_series[0].table.sweep) if all_series else None
    groups = None
    for series in all_series:
        for name in dict.fromkeys(series.counted["run"]):
            own = read_predictions(Run(series.table.sweep.folder / name), split)
            if own and all(own.fits(other) for other in list(by_run.values())[:1]):
                if groups is None and copies:
                    groups = copies.numbers(own.images)
                by_run[name] = replace(own, groups=groups)
    return by_run


def reached(series: Series) -> int:
    """Returns the last point of a batch size, in what the runs of its sweep count."""
    return series.points[-1] if series.table.counts_in == "updates" else series.epochs


def _at_best_lr(all_series: Sequence[Series], outcome: str) -> list[Series]:
    """Returns each batch size at the lr with the best mean outcome after its last epoch.

    The outcome is that of val if there is a validation split.
    """

    def score(series: Series) -> float:
        has_val = VAL_COLUMNS[outcome] in series.table.columns
        column = (VAL_COLUMNS if has_val else COLUMNS)[outcome]
        mean = fmean(series.by_run(column)[:, -1])
        return -math.inf if math.isnan(mean) else mean if outcome == "auc" else -mean

    sizes = sorted({series.batch_size for series in all_series})
    return [max((s for s in all_series if s.batch_size == size), key=score) for size in sizes]


def _common_points(table: SweepTable, all_series: Sequence[Series]) -> list[tuple[str, int]]:
    """Returns the last point of each axis that all have reached; 0 if none.

    The axis comes first in which all complete runs have the same number.
    """
    epochs = min((series.whole_epochs for series in all_series), default=0)
    points = [set(series.points) for series in all_series]
    updates = max(set.intersection(*points), default=0) if points else 0
    axes = [("epochs", epochs), ("updates", updates)]
    return sorted(axes, key=lambda pair: pair[0] != table.counts_in)


def _family(
    axis: str,
    at: int,
    outcome: str,
    series: Sequence[Series],
    predictions: Mapping[str, Predictions],
    margin: float,
    is_primary: bool,
    has_own_lrs: bool,
) -> Family | None:
    """Returns the comparisons at a point; None if no batch size has a seed of the smallest."""
    finite = {each.batch_size: _values(axis, at, outcome, each) for each in series}
    first, *others = series
    theirs = finite[first.batch_size]
    unpaired = [each for each in others if theirs.keys().isdisjoint(finite[each.batch_size])]
    if len(unpaired) == len(others):
        return None
    for each in unpaired:
        del finite[each.batch_size]
    first, *others = series = [each for each in series if each.batch_size in finite]
    contrasts = []
    for other in others:
        mine = finite[other.batch_size]
        seeds = tuple(sorted(mine.keys() & theirs.keys()))
        is_last = all(_is_last(axis, at, each) for each in (first, other))
        contrasts.append(
            _contrast(other, first, outcome, seeds, (theirs, mine), predictions if is_last else {})
        )
    trend = None
    common = sorted(set.intersection(*(set(values) for values in finite.values())))
    if len(series) > 2 and len(common) >= FEWEST_FOR_TREND:
        trend = trend_p(np.array([[finite[s.batch_size][seed] for s in series] for seed in common]))
    if is_primary:
        is_tested = len(series) == 2 or (trend is not None and trend <= ALPHA)
        here: list[float] | list[None] = [None] * len(contrasts)
        new: list[float] | list[None] = [None] * len(contrasts)
        if is_tested:
            here = holm([sign_flip_p(c.differences) for c in contrasts])
            if all(c.new_images for c in contrasts):
                new = holm([c.new_images.p for c in contrasts if c.new_images])
        judged = zip(contrasts, here, new, strict=True)
        contrasts = [c.judged(p_here, p_new, margin) for c, p_here, p_new in judged]
    return Family(
        axis=axis,
        at=at,
        outcome=outcome,
        series=series,
        unpaired=unpaired,
        values={size: np.array(list(values.values())) for size, values in finite.items()},
        contrasts=contrasts,
        trend=trend if is_primary else None,
        stability=stabilities(axis, at, series, finite) if is_primary else [],
        has_own_lrs=has_own_lrs,
        is_primary=is_primary,
    )


def _values(axis: str, at: int, outcome: str, series: Series) -> dict[int, float]:
    """Returns the outcome of each seed at a point, if it is a number."""
    column = COLUMNS[outcome]
    if axis == "epochs":
        values = series.by_run(column)[:, at - 1]
    else:
        values = series.at_points(column)[:, series.points.index(at)]
    by_seed = zip(series.seeds, values.tolist(), strict=True)
    return {seed: value for seed, value in by_seed if math.isfinite(value)}


def _is_last(axis: str, at: int, series: Series) -> bool:
    """Returns whether a point is the end of the runs, at which they wrote predictions."""
    return at == (series.epochs if axis == "epochs" else series.updates[-1])


def _contrast(
    series: Series,
    reference: Series,
    outcome: str,
    seeds: tuple[int, ...],
    by_seed: tuple[Mapping[int, float], Mapping[int, float]],
    predictions: Mapping[str, Predictions],
) -> Contrast:
    """Returns a comparison; for new images too if all its runs have predictions of this point."""
    values = np.array([[own[seed] for seed in seeds] for own in by_seed])
    names = [each.run_of_seed[seed] for each in (reference, series) for seed in seeds]
    new = None
    if all(name in predictions for name in names):
        of_runs = [predictions[name] for name in names]
        of_images = estimates(outcome, of_runs, series.table.positive_class)
        if np.isfinite(of_images.values).all():
            values = of_images.values.reshape(2, -1)
            new = orh_difference(values, of_images.covariance)
    every = set(reference.seeds) | set(series.seeds)
    return Contrast(
        series=series,
        reference=reference,
        outcome=outcome,
        seeds=seeds,
        dropped=tuple(sorted(every - set(seeds))),
        values=values,
        new_images=new,
    )
