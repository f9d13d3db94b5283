"""What the report says of a sweep: its tables, its words and its page."""

from __future__ import annotations

import csv
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from commands import recorded
from sweep_maker import draw_sweep, metric_rows, set_column, write_rows

from skinjob.commands.report import print_report
from skinjob.console import table_lines
from skinjob.errors import RunError
from skinjob.report import measures, summary, tables
from skinjob.report.build import Report, build_report
from skinjob.report.measures import MEASURES, Measure
from skinjob.report.rows import read_run
from skinjob.report.summary import DROP, readable, summarize
from skinjob.report.tables import group_runs, read_sweep
from skinjob.sweeps.layout import Run, Sweep
from skinjob.sweeps.records import METRICS, RunState


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return draw_sweep(tmp_path_factory.mktemp("runs") / "plain")


@pytest.fixture(scope="module")
def report(sweep: Sweep) -> Report:
    return build_report([sweep])


def test_a_report_is_whole(sweep: Sweep, report: Report) -> None:
    """The report is in the sweep's own folder, whole, with no half-written file beside it."""
    names = ("comparison", "accuracy", "splits", "forest", "paired", "seeds")
    pictures = {f"{name}.{suffix}" for name in names for suffix in ("png", "svg", "csv")}
    expected = pictures | {"metrics.csv", "summary.csv", "report.json", "index.html"}
    assert report.folder == sweep.report_folder.resolve()
    assert {file.name for file in report.folder.iterdir()} == expected


def test_the_merged_csv_has_every_row_as_it_was_written(sweep: Sweep, report: Report) -> None:
    """metrics.csv is the runs' files one after another under one header, byte for byte."""
    files = [run.metrics_file.read_bytes().split(b"\r\n", 1) for run in sweep.runs()]
    expected = files[0][0] + b"\r\n" + b"".join(rows for _, rows in files)
    assert (report.folder / "metrics.csv").read_bytes() == expected


def test_the_summary_holds_the_numbers_of_the_rows(sweep: Sweep, report: Report) -> None:
    """A batch size's line in summary.csv can be worked out by hand from its run's CSV."""
    rows = metric_rows(Run(sweep.folder / "bs0064-lr0.01-seed0"), 64, 0, 20)
    with (report.folder / "summary.csv").open(newline="", encoding="utf-8") as lines:
        line = next(line for line in csv.DictReader(lines) if line["batch_size"] == "64")
    accuracies = [row["test_accuracy"] for row in rows]
    assert float(line["final_test_accuracy"]) == pytest.approx(accuracies[-1], rel=1e-5)
    assert float(line["best_test_accuracy"]) == pytest.approx(max(accuracies), rel=1e-5)
    assert int(line["best_epoch"]) == accuracies.index(max(accuracies)) + 1
    assert float(line["final_train_loss"]) == pytest.approx(rows[-1]["train_loss"], rel=1e-5)
    assert float(line["final_test_loss"]) == pytest.approx(rows[-1]["test_loss"], rel=1e-5)
    changes = [abs(after - before) for before, after in itertools.pairwise(accuracies)]
    assert float(line["accuracy_change"]) == pytest.approx(sum(changes) / 19, rel=1e-5)
    assert float(line["seconds"]) == pytest.approx(sum(row["seconds"] for row in rows), rel=1e-5)
    assert int(line["updates"]) == 20 * 42  # 2637 images in batches of 64, the last one short
    assert line["final_test_accuracy_sd"] == ""  # one seed has no spread


def test_an_editor_that_drops_the_last_line_break_drops_no_epoch(tmp_path: Path) -> None:
    """A whole last line counts, although nothing follows it."""
    run = draw_sweep(tmp_path / "s", batch_sizes=[32], epochs=3).runs()[0]
    run.metrics_file.write_bytes(run.metrics_file.read_bytes().rstrip())
    assert [row[list(METRICS).index("epoch")] for row in read_run(run).values] == [1, 2, 3]


@pytest.mark.parametrize(
    ("column", "values", "fault"),
    [
        ("epoch", ["1", "2", "2", "3"], "line 4: epoch 2, but epoch 3 is next"),
        ("epoch", ["1", "3", "4", "5"], "line 3: epoch 3, but epoch 2 is next"),
        ("test_accuracy", ["0.5", "x", "0.5", "0.5"], "line 3: test_accuracy is 'x'"),
        ("test_accuracy", ["0.5", "0.5", "85.2", "0.5"], "line 4: test_accuracy is '85.2'"),
        ("run", ["bs0064-lr0.01-seed0"] * 4, "line 2: a row of run 'bs0064-lr0.01-seed0'"),
    ],
)
def test_a_damaged_csv_is_named_with_its_line(
    tmp_path: Path, column: str, values: list[str], fault: str
) -> None:
    """Where no other run is left, the error names file and line, and the fix shows it."""
    sweep = draw_sweep(tmp_path / "s", batch_sizes=[32], epochs=4)
    run = sweep.runs()[0]
    set_column(run, column, values)
    with pytest.raises(RunError) as caught:
        build_report([sweep])
    assert str(run.metrics_file.resolve()) in caught.value.message
    assert fault in caught.value.message
    line = fault.split(":")[0].removeprefix("line ")
    assert caught.value.fix == f"sed -n {line}p {run.metrics_file.resolve()}"


def test_a_line_with_a_value_too_few_is_named(tmp_path: Path) -> None:
    """A line that lost its end is damage: a job writes the file as a whole."""
    run = draw_sweep(tmp_path / "s", batch_sizes=[32], epochs=3).runs()[0]
    lines = run.metrics_file.read_bytes().split(b"\r\n")
    lines[2] = lines[2].rsplit(b",", 2)[0]
    run.metrics_file.write_bytes(b"\r\n".join(lines))
    with pytest.raises(RunError, match=r"line 3: 18 values, not 20"):
        read_run(run)


@pytest.mark.slow
def test_a_report_says_what_is_missing(tmp_path: Path) -> None:
    """Of a sweep that is partly done, each run that lacks epochs is named with its reason."""
    sweep = draw_sweep(
        tmp_path / "s",
        batch_sizes=(16, 32, 64, 128, 256),
        finished={
            "bs0032-lr0.01-seed0": 7,
            "bs0064-lr0.01-seed0": 0,
            "bs0128-lr0.01-seed0": 3,
            "bs0256-lr0.01-seed0": 5,
        },
        states={
            "bs0064-lr0.01-seed0": RunState(),
            "bs0128-lr0.01-seed0": RunState(status="failed", reason="no GPU on node7\ndetails"),
        },
    )
    (sweep.folder / "bs0256-lr0.01-seed0" / "state.json").unlink()
    report = build_report([sweep])
    assert report.missing == [
        "bs0032-lr0.01-seed0: running, 7 of 20 epochs, last heartbeat 2025-03-01T09:10:00Z",
        "bs0064-lr0.01-seed0: waiting, no epoch yet",
        "bs0128-lr0.01-seed0: failed with 3 of 20 epochs: no GPU on node7",
        "bs0256-lr0.01-seed0: 5 of 20 epochs, and no readable state.json",
    ]
    assert list(report.summary["batch_size"]) == [16, 32, 128, 256]
    page = (report.folder / "index.html").read_text(encoding="utf-8")
    assert all(sentence in page for sentence in report.missing)


def test_a_finished_sweep_misses_nothing(report: Report) -> None:
    """Where all runs have all their epochs, nothing is called missing."""
    assert report.missing == []


def test_a_sweep_without_an_epoch_is_an_error_that_shows_the_log(tmp_path: Path) -> None:
    """Before the first epoch there is nothing to report; the log tells why."""
    sweep = draw_sweep(tmp_path / "s", batch_sizes=[32], finished={"bs0032-lr0.01-seed0": 0})
    sweep.runs()[0].log_file.write_text("starting\n", encoding="utf-8")
    with pytest.raises(RunError, match="no run has finished an epoch") as caught:
        build_report([sweep])
    assert caught.value.fix == f"tail {sweep.runs()[0].log_file.resolve()}"
    assert not sweep.report_folder.exists()


def test_several_seeds_give_mean_and_spread(tmp_path: Path) -> None:
    """With several seeds a batch size's accuracy is their mean, and sd their standard deviation."""
    sweep = draw_sweep(tmp_path / "s", batch_sizes=[32], seeds=range(3), epochs=5)
    runs = sweep.runs()
    finals = [metric_rows(run, 32, seed, 5)[-1]["test_accuracy"] for seed, run in enumerate(runs)]
    [row] = summarize(group_runs([read_sweep(sweep)])).to_dict("records")
    assert row["runs"] == 3
    assert row["final_test_accuracy"] == pytest.approx(sum(finals) / 3)
    assert row["final_test_accuracy_sd"] == pytest.approx(np.std(finals, ddof=1))


def test_a_mean_never_mixes_epochs(tmp_path: Path) -> None:
    """A seed that failed early is left out of the mean, not averaged in where it stopped."""
    sweep = draw_sweep(
        tmp_path / "s",
        batch_sizes=[32],
        seeds=range(3),
        epochs=20,
        finished={"bs0032-lr0.01-seed1": 2},
    )
    [series] = group_runs([read_sweep(sweep)])
    assert (series.epochs, series.num_counted) == (20, 2)
    assert set(series.counted["run"]) == {"bs0032-lr0.01-seed0", "bs0032-lr0.01-seed2"}
    assert set(series.behind["run"]) == {"bs0032-lr0.01-seed1"}


def test_a_loss_that_diverged_is_a_dash_and_not_a_mean_of_the_others(tmp_path: Path) -> None:
    """A blank loss of one seed makes the mean unknown; passing over it would flatter."""
    sweep = draw_sweep(tmp_path / "s", batch_sizes=[32], seeds=range(2), epochs=3)
    set_column(sweep.runs()[0], "test_loss", ["0.5", "", ""])
    [series] = group_runs([read_sweep(sweep)])
    columns, [row] = readable(summarize([series]), is_complete=False)
    assert row[columns.index("test\nloss")] == "-"
    loss = next(measure for measure in MEASURES if measure.column == "test_loss")
    assert np.isnan(series.curve(loss).mean[1:]).all()


@pytest.mark.parametrize(
    ("kind", "words"), [("demo", "A demo:"), ("untrained", "The backbone is untrained")]
)
def test_weights_that_were_not_fetched_are_said_once(
    tmp_path: Path, kind: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One notice stands above all numbers, on the page and in the terminal, and in no picture."""
    sweep = draw_sweep(tmp_path / "s", batch_sizes=[32], epochs=2, kind=kind)
    print_report(build_report([sweep]))
    printed = capsys.readouterr().out
    page = (sweep.report_folder / "index.html").read_text("utf-8").partition("<script")[0]
    assert printed.startswith(words)
    assert printed.count(words) == 1
    assert page.count(words) == 1
    assert page.index(f'<p class="notice">{words}') < page.index("<table>")
    for svg in sweep.report_folder.glob("*.svg"):
        assert words not in svg.read_text("utf-8")


@pytest.mark.parametrize("kind", ["fetched", None])
def test_fetched_weights_need_no_notice(tmp_path: Path, kind: str | None) -> None:
    """A sweep.json from before kinds were written is read by what it says of random weights."""
    sweep = draw_sweep(tmp_path / "s", batch_sizes=[32], epochs=2, kind=kind)
    assert not build_report([sweep]).notice
    info = recorded(sweep)
    info["weights"].pop("kind", None)
    info["weights"]["untrained"] = True
    sweep.sweep_file.write_text(json.dumps(info), "utf-8")
    assert build_report([sweep]).notice.startswith("The backbone is untrained")


def test_names_from_outside_are_text_in_the_page(tmp_path: Path) -> None:
    """A class, a sweep or an error that holds HTML is shown, not obeyed."""
    evil = "<b>&"
    counts = {split: {"benign": 5, evil: 5} for split in ("train", "test")}
    sweep = draw_sweep(
        tmp_path / "<i>sweep",
        batch_sizes=[32],
        epochs=2,
        finished={"bs0032-lr0.01-seed0": 1},
        states={
            "bs0032-lr0.01-seed0": RunState(status="failed", reason="<script>alert(1)</script>")
        },
        counts=counts,
    )
    info = recorded(sweep)
    info["images"]["classes"] = ["benign", evil]
    sweep.sweep_file.write_text(json.dumps(info), encoding="utf-8")
    page = (build_report([sweep]).folder / "index.html").read_text(encoding="utf-8")
    assert not [tag for tag in ("<b>", "<i>", "<script>") if tag in page]
    assert "“&lt;b&gt;&amp;” as the positive class" in page
    assert "5 benign, 5 &lt;b&gt;&amp;" in page
    assert "&lt;script&gt;" in page


def test_the_page_needs_no_other_file(report: Report) -> None:
    """The page can be mailed: each picture is in it, and is told in words."""
    page = (report.folder / "index.html").read_text(encoding="utf-8")
    assert page.count('role="img"') == page.count("<svg ") == page.count("<desc ") == 6
    assert "<img" not in page
    assert page.count("<script") == page.count('<script type="application/json"') == 1
    assert "<link" not in page
    assert "not a medical device" in page
    assert "“malignant” as the positive class" in page


def test_a_folder_copied_with_only_its_numbers_can_be_reported(tmp_path: Path) -> None:
    """sweep.json with runs and epochs, and the CSVs, are enough."""
    sweep = draw_sweep(tmp_path / "s", batch_sizes=[32], epochs=4)
    info = {"runs": list(sweep.info().runs), "recipe": {"epochs": 4}}
    sweep.sweep_file.write_text(json.dumps(info), encoding="utf-8")
    for run in sweep.runs():
        run.state_file.unlink()
        run.config_file.unlink()
    report = build_report([sweep])
    assert report.missing == []
    columns, rows = readable(report.summary, is_complete=True)
    assert "(" not in rows[0][columns.index("test accuracy %\n(95 % interval)")]


@pytest.mark.parametrize("content", ['{"recipe": {"epochs": 1}}', '{"runs": []}'])
def test_a_sweep_file_that_lacks_the_runs_is_an_error(tmp_path: Path, content: str) -> None:
    """What is no sweep is said to be none, with the file to look at."""
    sweep = draw_sweep(tmp_path / "s", batch_sizes=[32], epochs=1)
    sweep.sweep_file.write_text(content, encoding="utf-8")
    with pytest.raises(RunError, match=r"sweep\.json: (runs|recipe) is missing"):
        read_sweep(sweep)


def test_several_sweeps_make_one_report(tmp_path: Path) -> None:
    """Two sweeps with the same batch sizes stay apart by name, and what differs is said."""
    first = draw_sweep(tmp_path / "one", batch_sizes=[32], epochs=3)
    second = draw_sweep(tmp_path / "two", batch_sizes=[32], epochs=4)
    report = build_report([first, second, first])
    assert report.folder == tmp_path.resolve() / "report-one-two"
    _, rows = readable(report.summary, is_complete=False)
    assert [row[:2] for row in rows] == [["one", "32"], ["two", "32"]]
    names = {file.stem for file in report.folder.glob("*.png")}
    assert names == {"comparison", "accuracy", "splits"}  # one batch size each: none to compare
    assert ">two 32<" in (report.folder / "comparison.svg").read_text("utf-8")
    assert report.notes[0] == "The sweeps differ in their epochs: compare them with care."


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("train", "all", "trained layers"),
        ("schedule", "cosine", "schedules"),
        ("precision", "fp32", "precisions"),
        ("val_fraction", 0.15, "val fraction"),
    ],
)
def test_sweeps_of_two_recipes_are_compared_with_a_warning(
    tmp_path: Path, key: str, value: str | float, words: str
) -> None:
    """What was trained, and how, is never mixed up in silence."""
    first, second = (draw_sweep(tmp_path / name, batch_sizes=[32]) for name in ("one", "two"))
    info = recorded(second)
    second.sweep_file.write_text(json.dumps(info | {"recipe": info["recipe"] | {key: value}}))
    notes = build_report([first, second]).notes
    assert f"The sweeps differ in their {words}: compare them with care." in notes


def test_the_best_epoch_is_chosen_with_validation_images(tmp_path: Path) -> None:
    """Page and table say which images chose it: a mark is at what test images chose."""
    counts = {"train": {"a": 8, "b": 8}, "val": {"a": 2, "b": 3}, "test": {"a": 5, "b": 5}}
    plain, chosen = (
        draw_sweep(tmp_path / name, batch_sizes=[32], lrs=[0.01], epochs=3, counts=counts)
        for name in ("plain", "chosen")
    )
    scores = {"val_accuracy": [0.6, 0.9, 0.9], "test_accuracy": [0.8, 0.7, 0.5]}
    rows = metric_rows(chosen.runs()[0], 32, 0, 3, counts)
    for name, values in scores.items():
        rows = [row | {name: value} for row, value in zip(rows, values, strict=True)]
    write_rows(chosen.runs()[0], rows)
    report, both = build_report([chosen]), build_report([chosen, plain])
    assert report.summary.loc[0, ["best_epoch", "best_test_accuracy"]].tolist() == [2, 0.7]
    note = (
        "What is chosen, such as the best epoch and the cutoffs, is chosen with the 5 validation "
        "images; the test images give the final numbers only."
    )
    footnote = (
        "* Chosen with the test images, so too good for new images. skinjob submit --val-fraction "
        "0.15 chooses with training images that it holds out."
    )
    assert note in report.notes
    assert "*" not in str(readable(report.summary, is_complete=True)[1])
    assert {f"chosen: {note}", f"plain: {footnote}"} <= set(both.notes)
    write_rows(chosen.runs()[0], [row | {"val_accuracy": ""} for row in rows])
    report = build_report([chosen])
    assert report.summary.loc[0, "best_epoch"] == 1
    assert footnote in report.notes
    assert "80.0* (1)" in readable(report.summary, is_complete=False)[1][0]


def test_two_sweeps_of_one_name_are_refused(tmp_path: Path) -> None:
    """Series that could not be told apart are not drawn."""
    sweeps = [draw_sweep(tmp_path / at / "s", batch_sizes=[32], epochs=1) for at in "ab"]
    with pytest.raises(RunError, match="two sweeps are called s"):
        build_report(sweeps)


@pytest.mark.parametrize("lrs", [(0.01,), (0.001, 0.01)])
@pytest.mark.parametrize("width", [80, 60, 50])
def test_the_printed_table_fits_the_terminal(
    tmp_path: Path, width: int, lrs: tuple[float, ...]
) -> None:
    """No line of the printed table is longer than the terminal, with several seeds and lrs too."""
    sweep = draw_sweep(tmp_path / "s", seeds=range(2), lrs=lrs, epochs=12)
    columns, rows = readable(summarize(group_runs([read_sweep(sweep)])), is_complete=False)
    lines = table_lines(columns, rows, width=width, drop=DROP)
    assert max(map(len, lines)) <= width
    assert "AUC" in lines[1]


def test_one_lr_is_told_only_where_a_program_reads(report: Report) -> None:
    """With one lr no label and no printed column speaks of it; summary.csv and the page have it."""
    assert "lr" not in readable(report.summary, is_complete=True)[0]
    assert not any("lr" in file.stem for file in report.folder.iterdir())
    assert list(report.summary["lr"]) == [0.01] * 4
    page = (report.folder / "index.html").read_text(encoding="utf-8")
    assert "<dt>lr</dt><dd>0.01</dd>" in page
    assert ", lr 0.01" not in page


@pytest.mark.slow
def test_several_lrs_are_several_series(tmp_path: Path) -> None:
    """A line of the summary is of one lr, and is what a sweep of that lr alone has."""
    both = build_report([draw_sweep(tmp_path / "s", lrs=(0.1, 0.001), seeds=range(2))])
    alone = build_report([draw_sweep(tmp_path / "a" / "s", lrs=(0.1,), seeds=range(2))])
    sizes = [32, 64, 128, 256]
    assert list(both.summary["lr"]) == [0.001] * 4 + [0.1] * 4
    assert list(both.summary["batch_size"]) == [*sizes, *sizes]
    assert both.summary[4:].reset_index(drop=True).equals(alone.summary)
    columns, rows = readable(both.summary, is_complete=False)
    assert [row[columns.index("lr")] for row in rows] == ["0.001"] * 4 + ["0.1"] * 4


@pytest.mark.slow
def test_several_lrs_are_told_apart_in_every_name(tmp_path: Path) -> None:
    """Labels carry the lr, and a picture of its own has the outcome by lr."""
    report = build_report([draw_sweep(tmp_path / "s", batch_sizes=[32, 64], lrs=(0.01, 0.1))])
    assert (report.folder / "rates.png").exists()
    svg = (report.folder / "comparison.svg").read_text(encoding="utf-8")
    for label in ("32, lr 0.01", "64, lr 0.01", "32, lr 0.1", "64, lr 0.1"):
        assert f">{label}<" in svg


def test_a_schedule_does_not_part_a_run(tmp_path: Path) -> None:
    """A run's lr is what it was asked for, whatever the optimizer's lr is in an epoch."""
    sweep = draw_sweep(tmp_path / "s", batch_sizes=[32], lrs=(0.1, 0.01), epochs=3)
    for run in sweep.runs():
        set_column(run, "lr", ["0.1", "0.05", "0.01"])
    series = group_runs([read_sweep(sweep)])
    assert [(each.lr, each.epochs, set(each.rows["run"])) for each in series] == [
        (0.01, 3, {"bs0032-lr0.01-seed0"}),
        (0.1, 3, {"bs0032-lr0.1-seed0"}),
    ]


def test_a_run_is_believed_more_than_its_name(tmp_path: Path) -> None:
    """The lr is that of config.json; the name says it only where that file was not copied."""
    sweep = draw_sweep(tmp_path / "s", batch_sizes=[32], lrs=(1e-05, 0.1), epochs=2)
    small, large = sweep.runs()
    small.config_file.unlink()
    config = json.loads(large.config_file.read_text(encoding="utf-8"))
    large.config_file.write_text(json.dumps(config | {"lr": 0.3}), encoding="utf-8")
    assert [series.lr for series in group_runs([read_sweep(sweep)])] == [1e-05, 0.3]


@pytest.mark.slow
def test_of_many_series_each_batch_size_has_its_best_lr(tmp_path: Path) -> None:
    """Nine lines in a picture are too many: it has the best lr of each, and rates has all."""
    sweep = draw_sweep(
        tmp_path / "s", batch_sizes=[32, 64, 128], lrs=(0.0001, 0.01, 0.001), epochs=3
    )
    auc = {0.0001: "0.6", 0.01: "0.8", 0.001: "0.7"}
    for run in sweep.runs():
        set_column(run, "test_auc", [auc[run.config().lr]] * 3)
    folder = build_report([sweep]).folder
    svg = (folder / "comparison.svg").read_text("utf-8")
    assert set(re.findall(r">([\d]+, lr [\d.]+)<", svg)) == {
        "32, lr 0.01",
        "64, lr 0.01",
        "128, lr 0.01",
    }
    with (folder / "rates.csv").open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 9
    assert {row["lr"]: float(row["mean AUC"]) for row in rows} == {
        repr(lr): float(value) for lr, value in auc.items()
    }


def test_of_many_missing_runs_the_failed_are_named(tmp_path: Path) -> None:
    """A thousand queued runs are counted, not listed, and hide no run that failed."""
    names = [f"bs0032-lr0.01-seed{seed}" for seed in range(60)]
    sweep = draw_sweep(
        tmp_path / "s",
        batch_sizes=[32],
        seeds=range(60),
        epochs=2,
        finished=dict.fromkeys(names[1:], 0),
        states=dict.fromkeys(names[1:50], RunState())
        | {names[59]: RunState(status="failed", reason="no GPU")},
    )
    missing = build_report([sweep]).missing
    assert missing[0] == "bs0032-lr0.01-seed59: failed with no epoch yet: no GPU"
    assert missing[1] == "bs0032-lr0.01-seed1: waiting, no epoch yet"
    assert missing[20:] == ["and 39 more runs: 30 waiting, 9 running"]


@pytest.mark.slow
def test_a_newer_report_replaces_the_older(tmp_path: Path) -> None:
    """Run again on a sweep that went on, the report has the newer numbers."""
    sweep = draw_sweep(tmp_path / "s", batch_sizes=[32], finished={"bs0032-lr0.01-seed0": 7})
    before = build_report([sweep], tmp_path / "out")
    run = sweep.runs()[0]
    write_rows(run, metric_rows(run, 32, 0, 20))
    after = build_report([sweep], tmp_path / "out")
    assert after.folder == before.folder == tmp_path / "out"
    assert [list(built.summary["epochs"]) for built in (before, after)] == [[7], [20]]
    assert len((after.folder / "metrics.csv").read_text("utf-8").splitlines()) == 21


@pytest.mark.slow
def test_no_cell_of_a_report_is_a_formula(tmp_path: Path) -> None:
    """A sweep's name is text in a spreadsheet, whatever it begins with."""
    names = ("=cmd|x", "@sum(a1)", "-2+3", "plain", "-2")
    sweeps = [draw_sweep(tmp_path / name, batch_sizes=[32], epochs=1) for name in names]
    folder = build_report(sweeps, tmp_path / "out").folder
    for file in ("metrics.csv", "summary.csv"):
        rows = list(csv.DictReader((folder / file).read_text().splitlines()))
        assert [row["sweep"] for row in rows] == ["'=cmd|x", "'@sum(a1)", "'-2+3", "plain", "-2"]
        assert {row["batch_size"] for row in rows} == {"32"}


def test_columns_are_read_by_name(tmp_path: Path) -> None:
    """Unknown columns are kept, in any order; missing ones are empty."""
    old, new = draw_sweep(tmp_path / "s", batch_sizes=[32, 64], epochs=2).runs()
    with old.metrics_file.open(newline="", encoding="utf-8") as lines:
        rows = [{k: v for k, v in row.items() if k != "test_auc"} for row in csv.DictReader(lines)]
    _write_csv(old, rows)
    with new.metrics_file.open(newline="", encoding="utf-8") as lines:
        rows = [{"mood": "=good", **row} for row in csv.DictReader(lines)]
    _write_csv(new, rows)
    report = build_report([old.sweep])
    with (report.folder / "metrics.csv").open(newline="", encoding="utf-8") as lines:
        merged = list(csv.DictReader(lines))
    assert [row["mood"] for row in merged] == ["", "", "'=good", "'=good"]
    assert [bool(row["test_auc"]) for row in merged] == [False, False, True, True]
    assert report.summary["final_test_auc"].isna().tolist() == [True, False]


def test_a_column_that_no_run_has_is_in_no_table(tmp_path: Path) -> None:
    """A sweep from before a metric was measured is reported without it."""
    run = draw_sweep(tmp_path / "s", batch_sizes=[32], epochs=2).runs()[0]
    with run.metrics_file.open(newline="", encoding="utf-8") as lines:
        rows = [{k: v for k, v in row.items() if k != "test_auc"} for row in csv.DictReader(lines)]
    _write_csv(run, rows)
    report = build_report([run.sweep])
    assert "AUC" not in readable(report.summary, is_complete=True)[0]
    assert "final_test_auc" not in report.summary
    assert "test_auc" not in (report.folder / "metrics.csv").read_text("utf-8")


def test_a_metric_that_a_report_needs_is_asked_for(tmp_path: Path) -> None:
    """A file without the accuracy that batch sizes are compared by is named."""
    run = draw_sweep(tmp_path / "s", batch_sizes=[32], epochs=2).runs()[0]
    content = run.metrics_file.read_text(encoding="utf-8").replace("test_accuracy", "accuracy")
    run.metrics_file.write_text(content, encoding="utf-8")
    with pytest.raises(RunError, match="line 1: no column test_accuracy"):
        read_run(run)


def test_a_validation_split_is_a_few_lines_of_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its curves and columns appear where the table of measures names them."""
    added = (Measure("val", "loss", "val\nloss"), Measure("val", "accuracy", "of val", "%"))
    for module in (measures, tables, summary):
        monkeypatch.setattr(module, "MEASURES", (*MEASURES, *added), raising=False)
    run = draw_sweep(tmp_path / "s", batch_sizes=[32], epochs=2).runs()[0]
    with run.metrics_file.open(newline="", encoding="utf-8") as lines:
        rows = [{**row, "val_loss": "0.5", "val_accuracy": "0.9"} for row in csv.DictReader(lines)]
    _write_csv(run, rows)
    report = build_report([run.sweep])
    columns, [row] = readable(report.summary, is_complete=True)
    assert row[columns.index("val\nloss")] == "0.500"
    svg = (report.folder / "splits.svg").read_text("utf-8")
    assert [f">{split}<" in svg for split in ("train", "val", "test")] == [True] * 3


def _write_csv(run: Run, rows: list[dict[str, str]]) -> None:
    """Writes a run's metrics.csv with whatever columns the rows have."""
    with run.metrics_file.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
