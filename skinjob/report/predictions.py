"""Reads a run's probabilities after its last epoch, and which images are copies."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from skinjob.data.images import Split
from skinjob.files import csv_text
from skinjob.report.statistics import (
    Estimates,
    Floats,
    auc_estimates,
    mean_estimates,
)
from skinjob.sweeps.layout import Run, Sweep

LOWEST_P = 5e-7  # the file has six digits: 0.000000 is any probability below


@dataclass(frozen=True)
class Predictions:
    """What one run predicts."""

    images: tuple[str, ...]
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    """(images,) positions in `classes`."""
    probabilities: Floats
    """(images, classes)"""
    groups: NDArray[np.int64] | None = None
    """(images,) numbers, the same for copies of each other; None if copies are not known."""

    def fits(self, other: Predictions) -> bool:
        """Returns True if both are on the same images, labels and classes."""
        return (self.images, self.classes) == (other.images, other.classes) and bool(
            (self.labels == other.labels).all()
        )

    def of(self, is_kept: NDArray[np.bool_]) -> Predictions:
        """Returns those of some images, (images,)."""
        images = tuple(name for name, kept in zip(self.images, is_kept, strict=True) if kept)
        labels, probabilities = self.labels[is_kept], self.probabilities[is_kept]
        groups = None if self.groups is None else self.groups[is_kept]
        return Predictions(images, self.classes, labels, probabilities, groups)


def read_predictions(run: Run, split: Split = Split.TEST) -> Predictions | None:
    """Returns a run's predictions for test or val; None if the file is missing or unreadable."""
    file = run.predictions_file if split == Split.TEST else run.val_predictions_file
    try:
        with file.open(newline="", encoding="utf-8", errors="replace") as lines:
            header, *rows = csv.reader(lines)
        classes = tuple(name.removeprefix("p_") for name in header[3:])
        places = {csv_text(name): place for place, name in enumerate(classes)}
        labels = np.array([places[row[1]] for row in rows], np.int64)
        probabilities = np.array([row[3:] for row in rows], np.float64)
    except (OSError, ValueError, KeyError, IndexError, csv.Error):
        return None
    is_whole = probabilities.shape == (len(labels), len(classes)) and len(classes) > 1
    if not is_whole or not ((probabilities >= 0) & (probabilities <= 1)).all():
        return None
    return Predictions(tuple(row[0] for row in rows), classes, labels, probabilities)


def log_losses(predictions: Predictions) -> Floats:
    """Returns the log loss of each image, (images,)."""
    rows = np.arange(len(predictions.labels))
    own = predictions.probabilities[rows, predictions.labels]
    losses: Floats = -np.log(np.maximum(own, LOWEST_P))
    return losses


def estimates(outcome: str, of_runs: Sequence[Predictions], positive: str) -> Estimates:
    """Returns an outcome, auc or log-loss, of several runs on the same images.

    AUC is that of the class *positive* against the rest, as in metrics.csv; of the last class if no
    class has this name. Copies count as one image.
    """
    by_image, groups = _independent(outcome, of_runs, positive), of_runs[0].groups
    return by_image if groups is None else by_image.grouped(groups)


def _independent(outcome: str, of_runs: Sequence[Predictions], positive: str) -> Estimates:
    first = of_runs[0]
    if outcome == "log-loss":
        return mean_estimates(np.array([log_losses(run) for run in of_runs]))
    last = len(first.classes) - 1
    place = first.classes.index(positive) if positive in first.classes else last
    scores = np.array([run.probabilities[:, place] for run in of_runs])
    return auc_estimates(scores, first.labels == place)


class Copies(NamedTuple):
    """What images.csv says of the copies among the images of a sweep."""

    groups: Mapping[str, int]
    """The number of its group, for each image that has a copy."""
    trained: frozenset[int]
    """Groups with an image in train."""

    def numbers(self, images: Sequence[str]) -> NDArray[np.int64]:
        """Returns a number for each image, (images,): the same for copies of each other."""
        return np.array([self.groups.get(name, -1 - n) for n, name in enumerate(images)], np.int64)

    def is_trained(self, images: Sequence[str]) -> NDArray[np.bool_]:
        """Returns whether each image has a copy in train, (images,)."""
        return np.array([self.groups.get(name) in self.trained for name in images], bool)


def read_copies(sweep: Sweep) -> Copies | None:
    """Returns the copies that images.csv has; None if it does not say, or cannot be read."""
    groups, trained = {}, set()
    try:
        with sweep.images_file.open(newline="", encoding="utf-8", errors="replace") as lines:
            for row in csv.DictReader(lines):
                if number := int(row["copies"] or 0):
                    groups[row["path"]] = number
                    if row["split"] == Split.TRAIN:
                        trained.add(number)
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return None
    return Copies(groups, frozenset(trained))
