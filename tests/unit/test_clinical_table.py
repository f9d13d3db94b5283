"""The clinical tables: which images choose a cutoff, what copies change, and several classes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from sklearn import metrics

from skinjob.report.clinical import cutoff_for, temperature
from skinjob.report.clinical_table import MAIN, PREVALENCE, Clinical, clinical
from skinjob.report.predictions import Copies, Predictions

TRUTH = np.arange(120) % 2


def predictions(seed: int, truth: np.ndarray = TRUTH, classes: str = "bm") -> Predictions:
    """Returns noisy predictions of a run, right more often than not."""
    draw = np.random.default_rng(seed)
    odds = draw.normal(size=(len(truth), len(classes))) + 1.3 * np.eye(len(classes))[truth]
    p = np.exp(odds) / np.exp(odds).sum(axis=1, keepdims=True)
    names = tuple(f"{number}.jpg" for number in range(len(truth)))
    return Predictions(names, tuple(classes), truth, p)


def series(batch_size: int, runs: dict[int, str], positive: str = "m") -> Any:
    table = SimpleNamespace(positive_class=positive)
    return cast(Any, SimpleNamespace(batch_size=batch_size, run_of_seed=runs, table=table))


ALL = [series(32, {0: "a0", 1: "a1", 2: "a2"}), series(64, {0: "b0", 1: "b1", 2: "b2"})]
RUNS = ("a0", "a1", "a2", "b0", "b1", "b2")
TEST = {name: predictions(number) for number, name in enumerate(RUNS)}
VAL = {name: predictions(10 + number) for number, name in enumerate(TEST)}


def rows(tables: Clinical, part: int = 0) -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in tables.parts[part].rows}


def first_number(cell: str) -> float:
    return float(cell.split(" ")[0])


def test_with_val_nothing_is_chosen_with_test_labels() -> None:
    """With other labels in test, cutoffs and temperature stay; the numbers on test change."""
    other = {name: replace(run, labels=1 - run.labels) for name, run in TEST.items()}
    before, after = (rows(clinical(ALL, test, VAL, None)) for test in (TEST, other))
    chosen = [name for name in before if name.startswith("temperature")]
    assert [before[name] for name in chosen] == [after[name] for name in chosen]
    sensitivity = "sensitivity 90 % asked: reached % (95 %)"
    specificity = "sensitivity 90 % asked: specificity % (95 %)"
    for name, labels, table in ((sensitivity, 1, before), (specificity, 0, before)):
        expected = [
            np.mean((TEST[run].probabilities[labels == TRUTH, 1] >= cutoff) == labels)
            for run in ("a0", "a1", "a2")
            for cutoff in [cutoff_for(VAL[run].probabilities[:, 1], TRUTH == 1, 0.9)]
        ]
        assert first_number(table[name][0]) == pytest.approx(100 * np.mean(expected), abs=0.05)
    # The same images are called: what was found of the positives is now alarms of the others.
    assert first_number(after[specificity][0]) == pytest.approx(
        100 - first_number(before[sensitivity][0]), abs=0.11
    )
    (name,) = chosen
    expected = [temperature(VAL[run].probabilities, TRUTH) for run in ("a0", "a1", "a2")]
    assert float(before[name][0]) == pytest.approx(np.mean(expected), abs=0.005)


def test_a_mark_is_at_each_number_that_test_images_chose() -> None:
    """With val there is no mark, on the page or in the terminal; without, each has its note."""
    with_val, without = clinical(ALL, TEST, VAL, None), clinical(ALL, TEST, {}, None)
    assert "*" not in str(with_val)
    marked = [name for name in rows(without) if "*" in name]
    assert len(marked) == 7
    starts = ("specificity", "sensitivity", "PPV", "accuracy % if as many")
    assert all(name.startswith(starts) for name in marked)
    assert "*" in without.parts[0].note
    assert without.short is not None
    assert [("*" in column) for column in without.short.columns] == [False, True, True, False]
    partly = clinical(ALL, TEST, {name: VAL[name] for name in ("a0", "a1", "b0")}, None)
    assert partly.parts == without.parts


def test_the_numbers_are_there_without_the_copies() -> None:
    """They are those of a test set without these images."""
    groups = {f"{number}.jpg": number + 1 for number in range(20)}
    trained = frozenset(range(1, 11))
    tables = clinical(ALL, TEST, VAL, Copies(groups, trained))
    assert "without the 10 test images that have a copy in train" in tables.parts[1].title
    kept = np.arange(120) >= 10
    alone = clinical(ALL, {name: run.of(kept) for name, run in TEST.items()}, VAL, None)
    assert tables.parts[1].rows == alone.parts[0].rows
    assert tables.parts[0].rows == clinical(ALL, TEST, VAL, None).parts[0].rows
    clean = clinical(ALL, TEST, VAL, Copies({}, frozenset()))
    assert len(clean.parts) == 1
    assert "No test image has a copy in train." in clean.parts[0].note


def test_copies_in_test_are_worth_one_image() -> None:
    """If each test image is there twice, intervals are as wide as with each once."""
    once = predictions(0)
    names = (*once.images, *(f"copy-{name}" for name in once.images))
    twice = Predictions(
        names, once.classes, np.tile(once.labels, 2), np.tile(once.probabilities, (2, 1))
    )
    copies = Copies({name: 1 + number % 120 for number, name in enumerate(names)}, frozenset())
    grouped = replace(twice, groups=copies.numbers(names))
    widths = [
        [width(cell[0]) for name, cell in rows(tables).items() if "(95 %)" in name]
        for tables in (
            clinical([series(32, {0: "a0"})], {"a0": test}, {}, None)
            for test in (once, grouped, twice)
        )
    ]
    assert len(widths[0]) == 7
    assert widths[1] == pytest.approx(widths[0], rel=0.06)
    assert np.divide(widths[2], widths[0]) == pytest.approx(0.5**0.5, rel=0.12)


def width(cell: str) -> float:
    low, high = cell.split("(")[1].rstrip(")").split("-")
    return float(high) - float(low)


def test_many_seeds_have_the_intervals_of_a_sample_of_them() -> None:
    """Of 60 seeds that are alike, 20 tell how images vary: the intervals are those of one seed."""
    runs = dict.fromkeys(range(60), "a0")
    many = rows(clinical([series(32, runs)], TEST, VAL, None))
    assert many == rows(clinical([series(32, {0: "a0"})], TEST, VAL, None))


def test_ppv_is_bayes_and_within_its_interval() -> None:
    """Half an image is added to each count. Separated classes have no infinite odds."""
    name = f"PPV % at a prevalence of {100 * PREVALENCE:.0f} %* (95 %)"
    table = rows(clinical([series(32, {0: "a0"})], TEST, {}, None))
    scores = TEST["a0"].probabilities[:, 1]
    called = scores >= cutoff_for(scores, TRUTH == 1, MAIN)
    hits, alarms = ((called[kind == TRUTH].sum() + 0.5) / 61 for kind in (1, 0))
    right, wrong = PREVALENCE * hits, (1 - PREVALENCE) * alarms
    assert first_number(table[name][0]) == pytest.approx(100 * right / (right + wrong), abs=0.05)

    halves = {run: (p.probabilities + np.eye(2)[TRUTH]) / 2 for run, p in TEST.items()}
    apart = {run: replace(TEST[run], probabilities=p) for run, p in halves.items()}
    for tables in (table, rows(clinical(ALL, apart, {}, None))):
        for cell in tables[name]:
            low, high = map(float, cell.split("(")[1].rstrip(")").split("-"))
            assert low <= first_number(cell) <= high


def test_several_classes_have_macro_averages() -> None:
    """Each class against the rest, and their means, are scikit-learn's."""
    truth = np.arange(150) % 3
    test = {"a0": predictions(1, truth, "bmn")}
    tables = clinical([series(32, {0: "a0"})], test, {}, None)
    p = test["a0"].probabilities
    called = p.argmax(axis=1)
    numbers = rows(tables, 1)
    assert float(numbers["AUC: macro average"][0]) == pytest.approx(
        metrics.roc_auc_score(truth, p, multi_class="ovr", average="macro"), abs=5e-4
    )
    for kind, recall in (
        ("sensitivity", metrics.recall_score(truth, called, average=None)),
        ("specificity", [metrics.recall_score(truth != c, called != c) for c in range(3)]),
    ):
        names = ("b", "m", "n", "macro average")
        for name, value in zip(names, [*recall, np.mean(recall)], strict=True):
            own = float(numbers[f"{kind} %: {name}"][0])
            assert own == pytest.approx(100 * value, abs=0.05)
    calls = rows(tables, 2)
    matrix = metrics.confusion_matrix(truth, called)
    assert [float(cell) for (cell,) in calls.values()] == matrix.ravel().tolist()
    assert list(calls)[1] == "b called m"


def test_without_a_positive_test_image_there_are_no_clinical_numbers() -> None:
    """Nothing is divided by zero; nor without predictions."""
    negatives = {name: p.of(p.labels == 0) for name, p in TEST.items()}
    assert clinical(ALL, negatives, VAL, None) == clinical(ALL, {}, {}, None) == Clinical(())
