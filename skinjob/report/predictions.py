"""Reads predictions.csv: a run's probabilities for the test images after its last epoch."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from skinjob.files import csv_text
from skinjob.report.statistics import (
    Estimates,
    Floats,
    auc_estimates,
    macro_auc_estimates,
    mean_estimates,
)
from skinjob.sweeps.layout import Run

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

    def fits(self, other: Predictions) -> bool:
        """Returns True if both are on the same images, labels and classes."""
        return (self.images, self.classes) == (other.images, other.classes) and bool(
            (self.labels == other.labels).all()
        )


def read_predictions(run: Run) -> Predictions | None:
    """Returns a run's predictions; None if the file is missing or cannot be read."""
    try:
        with run.predictions_file.open(newline="", encoding="utf-8", errors="replace") as lines:
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

    With more than two classes AUC is the mean of each class against the rest.
    """
    first = of_runs[0]
    if outcome == "log-loss":
        return mean_estimates(np.array([log_losses(one) for one in of_runs]))
    probabilities = np.array([one.probabilities for one in of_runs])
    if len(first.classes) > 2:
        return macro_auc_estimates(probabilities, first.labels)
    place = first.classes.index(positive) if positive in first.classes else 1
    return auc_estimates(probabilities[:, :, place], first.labels == place)
