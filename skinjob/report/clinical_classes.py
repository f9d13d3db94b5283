"""The clinical tables of more than two classes: each against the rest, and what is called what."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from skinjob.report.clinical import confusion_matrix
from skinjob.report.clinical_case import Case, Part
from skinjob.report.measures import number, percent
from skinjob.report.statistics import Floats, auc_estimates

MOST_CLASSES = 10  # of a table of calls


def class_parts(cases: Sequence[Case]) -> list[Part]:
    """Returns the tables of batch sizes; none for two classes. The most probable class is called.

    Numbers are means over seeds. A macro average is the mean over classes, all of equal weight.
    """
    classes = cases[0].test[0].classes
    if len(classes) == 2:
        return []
    columns = ["batch size", *(str(case.batch_size) for case in cases)]
    matrices = [_matrix(case) for case in cases]
    rows = []
    for name, text, values_of in NUMBERS:
        values = np.array([values_of(c, m) for c, m in zip(cases, matrices, strict=True)])
        rows += [
            [f"{name}: {c}", *map(text, own)] for c, own in zip(classes, values.T, strict=True)
        ]
        rows.append([f"{name}: macro average", *map(text, values.mean(axis=1))])
    note = "Each image is called its most probable class."
    parts = [Part("Each class against the rest", columns, rows, note)]
    if len(classes) <= MOST_CLASSES:
        calls = [
            [f"{label} called {other}", *(number(float(m[i, j]), 1) for m in matrices)]
            for i, label in enumerate(classes)
            for j, other in enumerate(classes)
        ]
        note = "Numbers of test images, means over seeds."
        parts.append(Part("What is called what", columns, calls, note))
    return parts


def _matrix(case: Case) -> Floats:
    """Returns the mean over seeds of the images of each class (rows) called each class."""
    labels, num = case.test[0].labels, len(case.test[0].classes)
    called = [run.probabilities.argmax(axis=1) for run in case.test]
    matrix: Floats = np.mean([confusion_matrix(labels, own, num) for own in called], axis=0)
    return matrix


def _aucs(case: Case, _: Floats) -> list[float]:
    probabilities, labels = np.array([run.probabilities for run in case.test]), case.test[0].labels
    return [
        float(auc_estimates(probabilities[:, :, place], labels == place).values.mean())
        for place in range(probabilities.shape[2])
    ]


def _sensitivities(_: Case, matrix: Floats) -> Floats:
    with np.errstate(invalid="ignore"):  # NaN for a class without test images
        shares: Floats = matrix.diagonal() / matrix.sum(axis=1)
    return shares


def _specificities(_: Case, matrix: Floats) -> Floats:
    alarms = matrix.sum(axis=0) - matrix.diagonal()
    with np.errstate(invalid="ignore"):
        shares: Floats = 1 - alarms / (matrix.sum() - matrix.sum(axis=1))
    return shares


NUMBERS: Sequence[
    tuple[str, Callable[[float], str], Callable[[Case, Floats], Sequence[float] | Floats]]
] = (
    ("AUC", lambda value: number(value, 3), _aucs),
    ("sensitivity %", percent, _sensitivities),
    ("specificity %", percent, _specificities),
)
