"""What the runs of a batch size predict, and the cutoffs that are chosen from it.

With a validation split, the predictions for its images choose the cutoffs; without, those for the
test images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from skinjob.report.clinical import (
    Confusion,
    Truth,
    confusion,
    cutoff_for,
    rates_at,
    rates_for,
)
from skinjob.report.predictions import Copies, Predictions
from skinjob.report.statistics import Floats, image_draws
from skinjob.report.tables import Series

SENSITIVITIES = (0.80, 0.90, 0.95)
MOST_SAMPLED = 20  # seeds whose covariance is computed: 190 pairs are enough


@dataclass(frozen=True)
class Part:
    """A table of text with its title and a note below it."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass(frozen=True)
class Case:
    """The runs of a batch size, what they predict, and what chooses their cutoffs."""

    batch_size: int
    seeds: tuple[int, ...]
    test: tuple[Predictions, ...]
    val: tuple[Predictions, ...]
    """Of the same runs; empty without a validation split."""
    positive: int
    """The place of the positive class."""
    copies: Copies | None

    @cached_property
    def truth(self) -> Truth:
        return np.asarray(self.test[0].labels == self.positive)

    @cached_property
    def scores(self) -> Floats:
        """(runs, images)"""
        return np.array([run.probabilities[:, self.positive] for run in self.test])

    @cached_property
    def groups(self) -> NDArray[np.int64]:
        groups = self.test[0].groups
        return np.arange(len(self.truth)) if groups is None else groups

    @cached_property
    def is_copy(self) -> Truth:
        """Whether each test image has a copy in train; none where that is not known."""
        images = self.test[0].images
        return self.copies.is_trained(images) if self.copies else np.zeros(len(images), bool)

    @cached_property
    def draws(self) -> Floats:
        return image_draws(self.test[0].labels, self.groups)

    def choosing(self, run: int) -> tuple[Floats, Truth]:
        """Returns the scores and the truth that choose a run's cutoffs: of val if it can be."""
        if not self.val:
            return self.scores[run], self.truth
        chosen = self.val[run]
        return chosen.probabilities[:, self.positive], np.asarray(chosen.labels == self.positive)

    @cached_property
    def cutoffs(self) -> dict[float, list[float]]:
        """The cutoff of each run, by sensitivity."""
        runs = range(len(self.test))
        return {s: [cutoff_for(*self.choosing(run), s) for run in runs] for s in SENSITIVITIES}

    def counts(self, cutoffs: Sequence[float]) -> list[Confusion]:
        """Returns the counts of test images of each run."""
        runs = zip(self.scores, cutoffs, strict=True)
        return [confusion(own, self.truth, cutoff) for own, cutoff in runs]

    @cached_property
    def samples(self) -> dict[float, tuple[Floats, Floats]]:
        """Sensitivities and specificities in samples of images, (runs, samples), by sensitivity."""
        by_run = []
        for run, own in enumerate(self.scores[:MOST_SAMPLED]):
            if self.val:
                cutoffs = [self.cutoffs[wanted][run] for wanted in SENSITIVITIES]
                by_run.append([rates_at(own, self.truth, c, self.draws) for c in cutoffs])
            else:
                by_run.append(rates_for(own, self.truth, SENSITIVITIES, self.draws))
        rates = np.array(by_run)  # (runs, sensitivities, 2, samples)
        return {s: (rates[:, n, 0], rates[:, n, 1]) for n, s in enumerate(SENSITIVITIES)}


def case_of(
    series: Series,
    test: Mapping[str, Predictions],
    val: Mapping[str, Predictions],
    copies: Copies | None,
) -> Case | None:
    """Returns the case of a series; None without predictions or without both kinds of images."""
    positive = series.table.positive_class
    runs = {seed: name for seed, name in series.run_of_seed.items() if name in test}
    first = test[next(iter(runs.values()))] if runs else None
    if first is None or positive not in first.classes:
        return None
    place = first.classes.index(positive)
    has_val = all(name in val and _has_both(val[name], place) for name in runs.values())
    case = Case(
        batch_size=series.batch_size,
        seeds=tuple(runs),
        test=tuple(test[name] for name in runs.values()),
        val=tuple(val[name] for name in runs.values()) if has_val else (),
        positive=place,
        copies=copies,
    )
    return case if _has_both(first, place) else None


def _has_both(predictions: Predictions, positive: int) -> bool:
    is_positive = predictions.labels == positive
    return bool(is_positive.any() and not is_positive.all())


def without_copies(case: Case) -> Case | None:
    """Returns a case without the test images that have a copy in train; None if too few are left.

    There must be a positive and another image.
    """
    test = tuple(run.of(~case.is_copy) for run in case.test)
    return replace(case, test=test) if _has_both(test[0], case.positive) else None
