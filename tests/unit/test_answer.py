"""The answer: what it says in each case, how long it is, and what it rests on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import recorded
from sweep_maker import draw_sweep, set_column, write_scores, write_tests

from skinjob.report.answer import Answer, answer
from skinjob.report.build import build_report
from skinjob.report.comparison import (
    Comparison,
    Verdict,
    compare_sweep,
    read_all_predictions,
)
from skinjob.report.details import comparison_table, stability_table
from skinjob.report.details import tests_made as lines_on_tests  # pytest would collect its name
from skinjob.report.plots.comparison import forest_figure, seeds_figure
from skinjob.report.tables import group_runs, read_sweep
from skinjob.sweeps.layout import Sweep
from skinjob.sweeps.records import RunState

COUNTS = {
    "train": {"benign": 480, "malignant": 400},
    "test": {"benign": 120, "malignant": 100},
}
"""With them, 32, 64, 128 and 256 all have 56 updates at the end of an epoch."""


def draw(folder: Path, gaps: dict[int, float], *, seeds: int = 10, noise: float = 0.01) -> Sweep:
    """Returns a sweep whose final AUC is 0.9 less the gap of its batch size, and some noise.

    Runs of the same seed share half of the noise. After the same updates all are alike.
    """
    sweep = draw_sweep(folder, batch_sizes=list(gaps), seeds=range(seeds), counts=COUNTS)
    for run in sweep.runs():
        config = run.config()
        shared = np.random.default_rng(config.seed).normal(0, noise)
        own = np.random.default_rng(1000 * config.seed + config.batch_size).normal(0, noise)
        updates = -(-880 // config.batch_size)
        aucs = [
            0.5 + 0.4 * (1 - np.exp(-updates * epoch / 40)) + shared + own for epoch in range(1, 20)
        ]
        last = 0.9 - gaps[config.batch_size] + shared + own
        set_column(run, "test_auc", [f"{value:.6f}" for value in (*aucs, last)])
        losses = [f"{0.7 - 0.01 * epoch + shared:.6f}" for epoch in range(20)]
        set_column(run, "test_loss", losses)
    return sweep


def compared(sweep: Sweep) -> Comparison:
    table = read_sweep(sweep)
    all_series = group_runs([table])
    return compare_sweep(table, all_series, read_all_predictions(all_series))


def verdicts(comparison: Comparison, axis: str = "epochs") -> list[Verdict | None]:
    family = comparison.family(axis)
    assert family
    return [contrast.verdict for contrast in family.contrasts]


Golden = Callable[[str, str], None]
FALLING = {32: 0.0, 64: 0.03, 128: 0.05, 256: 0.1}
ALIKE = dict.fromkeys((32, 64, 128, 256), 0.0)


def check(found: Answer, golden: Golden, name: str) -> None:
    """Compares an answer with its golden text, and counts its words."""
    text = "\n".join(found.lines)
    golden(f"answers/{name}.txt", text + "\n")
    assert len(text.split()) <= 90


def test_behind(tmp_path: Path, golden: Golden) -> None:
    """Large batches whose AUC is lower in every seed are behind."""
    sweep = draw(tmp_path / "s", FALLING)
    comparison = compared(sweep)
    assert verdicts(comparison) == [Verdict.DIFFER_HERE] * 3
    check(answer(comparison), golden, "behind")


def test_behind_by_less_than_the_margin(tmp_path: Path) -> None:
    """A difference that is shown and small is told apart from those that matter."""
    gaps = {32: 0.0, 64: 0.01, 128: 0.012, 256: 0.1}
    found = answer(compared(draw(tmp_path / "s", gaps, noise=0.001))).text
    assert found.startswith(
        "Batch size 256 is behind 32 after 20 epochs on these images; "
        "64 and 128 are behind by less than the margin."
    )
    ahead = answer(compared(draw(tmp_path / "ahead", {32: 0.0, 256: -0.01}, noise=0.001))).text
    assert ahead.startswith(
        "Batch size 256 is ahead of 32 after 20 epochs on these images, by less than the margin."
    )


def test_no_difference(tmp_path: Path, golden: Golden) -> None:
    """Where seeds scatter and batch sizes do not, seeds that would settle it are named."""
    comparison = compared(draw(tmp_path / "s", ALIKE, seeds=5, noise=0.03))
    assert verdicts(comparison)[-1] == Verdict.NOT_SHOWN
    found = answer(comparison)
    assert "--seeds 0-" in found.command
    check(found, golden, "no-difference")


def test_the_same(tmp_path: Path, golden: Golden) -> None:
    """Where the whole interval is within the margin, batch sizes are called the same."""
    comparison = compared(draw(tmp_path / "s", ALIKE, noise=0.003))
    assert set(verdicts(comparison)) == {Verdict.SAME}
    found = answer(comparison)
    assert not found.command
    check(found, golden, "the-same")


def test_too_few_seeds(tmp_path: Path, golden: Golden) -> None:
    """With three seeds nothing is said of a pair, however large the gap."""
    comparison = compared(draw(tmp_path / "s", FALLING, seeds=3))
    assert set(verdicts(comparison)) == {Verdict.TOO_FEW}
    check(answer(comparison), golden, "too-few-seeds")


def test_one_seed(tmp_path: Path, golden: Golden) -> None:
    """With one seed there is an interval for new images, and no verdict."""
    sweep = draw(tmp_path / "s", {32: 0.0, 256: 0.1}, seeds=1)
    _add_predictions(sweep, {32: 2.0, 256: 1.0})
    comparison = compared(sweep)
    check(answer(comparison), golden, "one-seed")
    figure = forest_figure(comparison)
    assert figure
    assert "thin: for new images; grey" in figure.caption
    for columns in (figure.columns, comparison_table(comparison)[0]):
        assert "new images" in str(columns)
        assert "new images and seeds" not in str(columns)


def test_a_diverged_run(tmp_path: Path, golden: Golden) -> None:
    """A run whose loss is not a number is an outcome: it is counted and named, and not compared."""
    sweep = draw(tmp_path / "s", FALLING)
    state = RunState(status="failed", reason="the loss is nan at update 12, in epoch 3")
    lost = sweep.folder / "bs0256-lr0.01-seed3"
    (lost / "state.json").write_text(json.dumps({"status": state.status, "reason": state.reason}))
    _cut(lost / "metrics.csv", 3)
    comparison = compared(sweep)
    family = comparison.family("epochs")
    assert family
    assert family.contrasts[-1].dropped == (3,)
    assert comparison.diverged == {(256, 0.01): (3,)}
    check(answer(comparison), golden, "diverged")
    assert "1 of 10 (2-40 %)" in {row[-1] for row in stability_table(comparison)[1]}


def test_many_diverged_runs_are_an_instability(tmp_path: Path) -> None:
    """Where 256 diverges in seven of ten seeds and 32 in none, 256 is called less stable."""
    sweep = draw(tmp_path / "s", {32: 0.0, 256: 0.0})
    for seed in range(7):
        lost = sweep.folder / f"bs0256-lr0.01-seed{seed}"
        failed = {"status": "failed", "reason": "the loss is inf at update 12, in epoch 3"}
        (lost / "state.json").write_text(json.dumps(failed))
        _cut(lost / "metrics.csv", 3)
    found = answer(compared(sweep))
    assert "7 of 10 runs of 256 diverged (seeds 0-6). 256 is less stable." in found.text
    assert "whether a larger batch is behind." in found.text
    assert found.command == "skinjob submit --batch-sizes 32,256 --lr 0.0025,0.005,0.01 --seeds 0-9"


def test_several_lrs(tmp_path: Path, golden: Golden) -> None:
    """Each batch size is compared at its own best lr; one at the edge of the grid is named."""
    sweep = draw_sweep(
        tmp_path / "s", batch_sizes=(32, 256), lrs=(0.01, 0.1), seeds=range(8), counts=COUNTS
    )
    best = {32: 0.01, 256: 0.1}
    for run in sweep.runs():
        config = run.config()
        noise = np.random.default_rng(config.seed + config.batch_size).normal(0, 0.002)
        value = 0.9 - 0.1 * (config.lr != best[config.batch_size]) + noise
        set_column(run, "test_auc", [f"{value:.6f}"] * 20)
    comparison = compared(sweep)
    assert verdicts(comparison) == [Verdict.SAME]
    check(answer(comparison), golden, "several-lrs")
    rows = comparison_table(comparison)[1]
    assert sum(row[0] == "20 epochs, own lr*" for row in rows) == 2
    assert sum(row[0] == "20 epochs, lr 0.01" for row in rows) == 2
    figure = seeds_figure(comparison)
    assert figure
    assert {row[0] for row in figure.rows} == {"20 epochs, own lr*", "56 updates, own lr*"}
    assert lines_on_tests(comparison)[0].startswith("AUC after 20 epochs, own lr*: 1 test")

    for run in sweep.runs():  # val prefers the other lrs
        config = run.config()
        value = 0.8 + 0.1 * (config.lr != best[config.batch_size])
        for column in ("val_auc", "val_accuracy"):
            set_column(run, column, [f"{value}"] * 20)
    comparison = compared(sweep)
    lead = comparison.family("epochs")
    assert lead is not None
    assert {series.batch_size: series.lr for series in lead.series} == {32: 0.1, 256: 0.01}
    assert "Each has its best lr, chosen on the validation images" in answer(comparison).text
    assert "*" not in str(comparison_table(comparison))


def test_a_batch_size_alone_is_not_compared(tmp_path: Path) -> None:
    """With one batch size the answer says so."""
    assert answer(compared(draw(tmp_path / "s", {32: 0.0}))).text.startswith("Fewer than two")


def test_batch_sizes_at_different_epochs_are_not_compared(tmp_path: Path) -> None:
    """While 256 is behind the last epoch, nothing is said of it but that."""
    sweep = draw(tmp_path / "s", ALIKE)
    for run in sweep.runs():
        if run.config().batch_size == 256:
            _cut(run.metrics_file, 7)
    found = answer(compared(sweep)).text
    assert found.startswith("Not compared, because not at the last epoch: 256 (epoch 7).")
    assert found.count("256") == 1


def test_a_batch_size_without_a_common_seed_is_left_out(tmp_path: Path) -> None:
    """The others are compared as if it were not there, and it is named."""
    sweep = draw(tmp_path / "s", FALLING, seeds=6)
    alone = [run for run in sweep.runs() if run.config().batch_size == 128]
    for run in alone:
        config = json.loads(run.config_file.read_text("utf-8"))
        run.config_file.write_text(json.dumps({**config, "seed": config["seed"] + 6}), "utf-8")
    found = answer(compared(sweep)).text
    for run in alone:
        shutil.rmtree(run.folder)
    others = answer(compared(sweep)).text
    assert found == f"Not compared with 32, because no seed is complete in both: 128. {others}"


def test_why_nothing_is_compared(tmp_path: Path) -> None:
    """No seed in common, no outcome, or only one batch size at the last epoch."""
    sweep = draw(tmp_path / "s", {32: 0.0, 256: 0.0}, seeds=2)
    for run in sweep.runs():
        if (run.config().batch_size == 32) == (run.config().seed == 0):
            _cut(run.metrics_file, 7)
    found = answer(compared(sweep)).text
    assert found == "No batch size has a complete seed in common with the smallest, 32."
    for run in sweep.runs():
        text = run.metrics_file.read_text("utf-8")
        run.metrics_file.write_text(text.replace("test_auc", "x").replace("test_loss", "y"))
    found = answer(compared(sweep)).text
    assert found == "The runs have neither AUC nor test loss: nothing to compare."
    for run in sweep.runs():
        _cut(run.metrics_file, 7 if run.config().batch_size == 256 else 20)
    found = answer(compared(sweep)).text
    assert found == "Not compared, because not at the last epoch: 256 (epoch 7)."


def test_pairs_stay_paired(tmp_path: Path) -> None:
    """A gap that is the same in every seed is shown, however much the seeds differ."""
    sweep = draw_sweep(tmp_path / "s", batch_sizes=(32, 64), seeds=range(8), counts=COUNTS)
    for run in sweep.runs():
        config = run.config()
        value = 0.5 + 0.05 * config.seed - 0.03 * (config.batch_size == 64)
        set_column(run, "test_auc", [f"{value:.6f}"] * 20)
    assert verdicts(compared(sweep)) == [Verdict.DIFFER_HERE]


def test_new_images_are_a_second_claim(tmp_path: Path) -> None:
    """With predictions the verdict is about new images, and its interval is the wider."""
    sweep = draw(tmp_path / "s", {32: 0.0, 256: 0.1})
    _add_predictions(sweep, {32: 2.5, 256: 1.0})
    family = compared(sweep).family("epochs")
    assert family
    [contrast] = family.contrasts
    assert contrast.verdict == Verdict.DIFFER
    assert contrast.new_images
    low, high = contrast.interval
    assert low < contrast.same_images.low
    assert contrast.same_images.high < high


@pytest.mark.parametrize("damage", ["", "image,label\n", "one line only"])
def test_damaged_predictions_do_not_count(tmp_path: Path, damage: str) -> None:
    """The comparison then is about these images only."""
    sweep = draw(tmp_path / "s", {32: 0.0, 256: 0.1}, seeds=5)
    _add_predictions(sweep, {32: 2.5, 256: 1.0})
    sweep.runs()[0].predictions_file.write_text(damage)
    family = compared(sweep).family("epochs")
    assert family
    assert family.contrasts[0].new_images is None


def test_primary_and_margin_are_those_of_the_submit(tmp_path: Path) -> None:
    """Verdicts are about the declared outcome, with the declared margin."""
    sweep = draw(tmp_path / "s", ALIKE, noise=0.003)
    info = recorded(sweep)
    info["recipe"] |= {"primary": "log-loss", "margin": 0.5}
    sweep.sweep_file.write_text(json.dumps(info))
    comparison = compared(sweep)
    assert (comparison.primary, comparison.margin) == ("log-loss", 0.5)
    assert "within 0.5 of log loss" in answer(comparison).text


def test_a_trend_comes_before_pairs(tmp_path: Path) -> None:
    """No pair is tested where no trend over the batch sizes is shown, and tests are counted."""
    comparison = compared(draw(tmp_path / "s", ALIKE, seeds=8, noise=0.03))
    family = comparison.family("epochs")
    assert family
    assert family.trend is not None
    assert family.trend > 0.05
    assert family.num_tests == 0
    assert lines_on_tests(comparison)[0].endswith("; no test of pairs: no trend is shown.")
    assert all(contrast.p_here is None for contrast in family.contrasts)


def test_tests_of_pairs_are_counted(tmp_path: Path) -> None:
    """The trend is not adjusted, so it is not among them. Without any, the reason is there."""
    sweep = draw(tmp_path / "s", FALLING)
    [first, _] = lines_on_tests(compared(sweep))
    assert first == "AUC after 20 epochs: trend p <0.001; 3 tests of pairs, adjusted by Holm."
    _add_predictions(sweep, {32: 2.5, 64: 2.2, 128: 1.5, 256: 1.0})
    assert "; 6 tests of pairs, " in lines_on_tests(compared(sweep))[0]
    two = lines_on_tests(compared(draw(tmp_path / "two", {32: 0.0, 256: 0.1})))
    assert two[0] == "AUC after 20 epochs: 1 test of pairs, adjusted by Holm."
    few = lines_on_tests(compared(draw(tmp_path / "few", FALLING, seeds=3)))
    assert few[0].endswith("; no test of pairs: fewer than five seeds.")


def test_an_outlier_is_named(tmp_path: Path) -> None:
    """One seed that makes most of the spread is named in the table, with the ratio without it."""
    sweep = draw(tmp_path / "s", {32: 0.0, 256: 0.0})
    set_column(sweep.runs()[-3], "test_auc", ["0.5"] * 20)
    comparison = compared(sweep)
    family = comparison.family("epochs")
    assert family
    of_256 = family.stability[-1]
    assert of_256.outlier == 7
    assert of_256.without_one.low < 2 < of_256.ratio
    assert "Seed 7 of 256 is an outlier (AUC 0.500)." in answer(comparison).text


def test_the_page_begins_with_the_answer(tmp_path: Path) -> None:
    """It stands before every table, and the tables that it rests on are on the page."""
    sweep = draw(tmp_path / "s", FALLING)
    _add_predictions(sweep, {32: 2.5, 64: 2.2, 128: 1.5, 256: 1.0})
    report = build_report([sweep])
    page = (report.folder / "index.html").read_text("utf-8")
    assert page.index("are behind 32") < page.index("<table>")
    headings = ("The comparison", "Stability", "Clinical numbers")
    assert [f">{name}</h2>" in page for name in headings] == [True] * 3
    assert report.answers["s"].command in page


def _add_predictions(sweep: Sweep, distances: dict[int, float]) -> None:
    """Writes predictions of 220 images; a batch size's classes are so many sd apart."""
    truth = np.arange(220) < 100
    image = np.random.default_rng(5).normal(size=220)
    for run in sweep.runs():
        config = run.config()
        own = np.random.default_rng(1000 * config.seed + config.batch_size).normal(size=220)
        odds = distances[config.batch_size] * truth + image + 0.3 * own - 1
        write_scores(run, (1 / (1 + np.exp(-odds))).tolist(), truth.tolist())


def _cut(file: Path, epochs: int) -> None:
    """Cuts a metrics.csv after some epochs."""
    lines = file.read_text("utf-8").splitlines(keepends=True)
    file.write_text("".join(lines[: epochs + 1]), "utf-8")


def draw_updates(
    folder: Path,
    gaps: dict[int, float],
    *,
    updates: int = 560,
    jumps: dict[int, float] | None = None,
) -> Sweep:
    """Returns a sweep of runs with the same updates; the gap of AUC is that at their end."""
    sweep = draw_sweep(
        folder, batch_sizes=list(gaps), seeds=range(10), counts=COUNTS, updates=updates
    )
    points = np.array([*range(updates // 20, updates + 1, updates // 20)])
    for run in sweep.runs():
        config = run.config()
        noise = np.random.default_rng(1000 * config.seed + config.batch_size).normal(0, 0.003)
        draws = np.random.default_rng(1000 * config.seed + config.batch_size + 1)
        jump = (jumps or {}).get(config.batch_size, 0.001)
        losses = 0.7 - 0.3 * points / updates + draws.normal(0, jump, len(points))
        aucs = 0.9 - 0.3 * (1 - points / updates) - gaps[config.batch_size] * points / updates
        write_tests(run, points.tolist(), losses.tolist(), (aucs + noise).tolist())
        at_epochs = [0.6 - gaps[config.batch_size] + 0.01 * n for n in range(config.epochs - 1)]
        set_column(run, "test_auc", [f"{v:.6f}" for v in (*at_epochs, aucs[-1] + noise)])
    return sweep


def test_equal_updates_lead_where_the_runs_count_them(tmp_path: Path, golden: Golden) -> None:
    """All tests are compared at the end, exactly; equal epochs come second."""
    comparison = compared(draw_updates(tmp_path / "s", FALLING))
    assert comparison.lead
    assert (comparison.lead.axis, comparison.lead.at) == ("updates", 560)
    assert comparison.other
    assert (comparison.other.axis, comparison.other.at) == ("epochs", 20)
    assert not comparison.behind
    check(answer(comparison), golden, "updates")


def test_where_no_updates_are_equal_the_command_makes_them_so(tmp_path: Path) -> None:
    """Epochs of 83, 42, 21 and 11 updates share no test: stability needs a sweep with --updates."""
    comparison = compared(draw_sweep(tmp_path / "s", seeds=range(3)))
    assert comparison.family("updates") is None
    assert answer(comparison).command == "skinjob submit --updates 1660 --seeds 0-9"


def test_predictions_are_of_the_last_update(tmp_path: Path) -> None:
    """With the same updates, their end is compared for new images too; an earlier epoch is not."""
    sweep = draw_updates(tmp_path / "s", {32: 0.0, 256: 0.1})
    _add_predictions(sweep, {32: 2.5, 256: 1.0})
    comparison = compared(sweep)
    assert comparison.lead
    assert comparison.other
    assert comparison.lead.contrasts[0].new_images
    assert comparison.other.contrasts[0].new_images is None


def test_jumps_are_measured_from_tests_equally_many_updates_apart(tmp_path: Path) -> None:
    """Jumps are compared at the same updates; a last test that comes early is left out."""
    sweep = draw_updates(tmp_path / "s", {32: 0.0, 256: 0.0}, jumps={32: 0.002, 256: 0.02})
    for run in sweep.runs():
        with run.tests_file.open("a") as tests:
            tests.write("565,1,0.6,9.9,0.7,0.8\r\n")
    family = compared(sweep).family("updates")
    assert family
    assert [row.spacing for row in family.stability] == [28, 28]
    assert {row.steps for row in family.stability} == {190}
    assert family.stability[1].wobble_ratio == pytest.approx(10, rel=0.3)
    assert "256 is less stable (test loss jumps" in answer(compared(sweep)).text


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("nan,20,0.6,0.5,0.7,0.8", "update is 'nan'"),
        ("588,20,x,0.5,0.7,0.8", "train_loss is 'x'"),
        ("560,20,0.6,0.5,0.7,0.8", "update 560 after update 560"),
        ("588,20", "2 values, not 6"),
    ],
)
def test_a_damaged_row_of_tests_is_named(tmp_path: Path, row: str, says: str) -> None:
    """The run does not count, and the report names file, line and value."""
    sweep = draw_updates(tmp_path / "s", {32: 0.0, 256: 0.0})
    run = sweep.runs()[0]
    with run.tests_file.open("a") as tests:
        tests.write(f"{row}\r\n")
    table = read_sweep(sweep)
    assert table.unread[run.name].message == f"{run.tests_file}, line 22: {says}"
    assert len(table.unread) == 1


@pytest.mark.parametrize("damage", ["missing", "other updates"])
def test_tests_that_a_run_lacks_are_those_of_its_epochs(tmp_path: Path, damage: str) -> None:
    """If not all runs have the same tests, the ends of the epochs are compared."""
    sweep = draw_updates(tmp_path / "s", {32: 0.0, 256: 0.0})
    run = sweep.runs()[0]
    if damage == "missing":
        run.tests_file.unlink()
    else:
        write_tests(run, [7, 14], [0.7, 0.6], [0.7, 0.8])
    family = compared(sweep).family("updates")
    assert family
    assert (family.at, [row.spacing for row in family.stability]) == (560, [28, 28])
