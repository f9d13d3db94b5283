"""The Methods paragraph, the intervals' sentence and the checklist: they say what was done."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweep_maker import draw_sweep

from skinjob.report.build import build_report
from skinjob.report.checklist import Case, checklist
from skinjob.report.comparison import Comparison, compare_sweep, read_all_predictions
from skinjob.report.details import verdict_text
from skinjob.report.methods import methods
from skinjob.report.statistics import MOST_EXACT_SEEDS
from skinjob.report.tables import group_runs, read_sweep
from skinjob.sweeps.layout import Sweep

COUNTS = {"train": {"benign": 480, "malignant": 416}, "test": {"benign": 12, "malignant": 10}}
"""With them, 4 epochs of 64 images and 2 epochs of 32 are 56 updates."""


def compared(sweep: Sweep) -> Comparison:
    table = read_sweep(sweep)
    all_series = group_runs([table])
    return compare_sweep(table, all_series, read_all_predictions(all_series))


def without_auc(sweep: Sweep) -> Sweep:
    for run in sweep.runs():
        text = run.metrics_file.read_text()
        run.metrics_file.write_text(text.replace("test_auc", "other"))
    return sweep


def test_a_paragraph_on_a_single_batch_size_compares_nothing(tmp_path: Path) -> None:
    """Without a second batch size there is no comparison, no interval and no test."""
    text = methods(compared(draw_sweep(tmp_path / "s", batch_sizes=(32,), epochs=2)))
    assert text.endswith("Batch size 32 was trained with 1 seed.")
    assert "compared" not in text


def test_a_paragraph_names_the_points_and_tests_that_there_are(tmp_path: Path) -> None:
    """Three sizes and six seeds have a trend; two of a seed have neither trend nor p."""
    sweep = draw_sweep(
        tmp_path / "s", batch_sizes=(32, 64, 128), seeds=range(6), epochs=4, has_predictions=True
    )
    text = methods(compared(sweep))
    assert "Batch sizes 32, 64, 128 were each trained with 6 seeds; runs of a seed share" in text
    assert "seed by seed, after 4 epochs. " in text
    assert "for new images and seeds follow Obuchowski" in text
    assert "only if Page's test showed a trend" in text
    pair = draw_sweep(
        tmp_path / "pair", batch_sizes=(32, 64), epochs=4, counts=COUNTS, has_predictions=True
    )
    text = methods(compared(pair))
    assert "seed by seed, after 4 epochs and after 56 updates. " in text
    assert "Intervals (95 %) for new images follow" in text
    for word in ("P values", "Page's test", "paired t", "images and seeds"):
        assert word not in text


def test_a_paragraph_says_when_sign_flips_are_exact(tmp_path: Path) -> None:
    """Above 13 seeds they are drawn."""
    sweep = draw_sweep(tmp_path / "s", batch_sizes=(32, 64), seeds=range(14), epochs=2)
    assert f"sign flips over seeds (exact up to {MOST_EXACT_SEEDS} seeds), adjusted" in methods(
        compared(sweep)
    )


@pytest.mark.parametrize("has_val", [True, False])
def test_a_paragraph_says_which_images_chose_the_learning_rate(
    tmp_path: Path, has_val: bool
) -> None:
    """With several learning rates, val or the test images chose the best."""
    sweep = draw_sweep(tmp_path / "s", batch_sizes=(32, 64), lrs=(0.01, 0.02), epochs=2)
    if has_val:
        for run in sweep.runs():
            text = run.metrics_file.read_text()
            run.metrics_file.write_text(text.replace("train_auc", "val_auc"))
    split = "validation" if has_val else "test"
    assert f"chosen by AUC on the {split} images." in methods(compared(sweep))


def test_a_paragraph_without_auc_names_the_outcome_that_was_compared(tmp_path: Path) -> None:
    """The outcome that was declared is not called the one that was compared."""
    sweep = without_auc(draw_sweep(tmp_path / "s", batch_sizes=(32, 64), epochs=2))
    text = methods(compared(sweep))
    assert "The outcome was log loss: AUC, the primary outcome, is not known." in text
    assert "fixed at submission" not in text


def test_the_checklist_ends_its_sample_size_as_the_comparison_does(tmp_path: Path) -> None:
    """What would settle the widest interval is told by its verdict, not by seeds alone."""
    sweep = draw_sweep(
        tmp_path / "s", batch_sizes=(32, 64), seeds=range(6), epochs=2, has_predictions=True
    )
    comparison = compared(sweep)
    rows = {row[0]: row[2] for row in checklist(Case(comparison, None, "", True, None))}
    assert comparison.lead
    verdict = verdict_text(comparison.lead.contrasts[0])
    assert rows["Sample size"].endswith(f"6 seeds and 660 test images; its verdict: {verdict}")


def test_the_page_says_what_intervals_of_one_seed_are_for(tmp_path: Path) -> None:
    """A single seed says nothing about other seeds."""
    sweep = draw_sweep(tmp_path / "s", batch_sizes=(32, 64), epochs=2, has_predictions=True)
    text = (build_report([sweep]).folder / "index.html").read_text()
    assert "<p>Intervals are for new images. A difference" in text
