"""What runs are read against: where its numbers stand, and what older sweeps lack."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from commands import recorded
from sweep_maker import draw_sweep
from trees import make_sweep, make_tree

from skinjob.commands.report import print_report
from skinjob.data.audit import shortcut
from skinjob.data.scan import scan
from skinjob.data.validation import hold_out
from skinjob.report.baselines import baseline_lines, baselines
from skinjob.report.build import build_report
from skinjob.report.summary import readable, summarize
from skinjob.report.tables import group_runs, read_sweep
from skinjob.sweeps.layout import Sweep
from skinjob.sweeps.records import FORMAT, Converged, write_record

REACHED = {"test_accuracy": 0.782, "test_auc": 0.853, "test_loss": 0.512}
BEST = {"train_loss": 0.25, "test_accuracy": 0.891, "test_auc": 0.95, "test_loss": 0.31}
EXCESS = "train loss\nabove the\nconverged head"


def draw(
    folder: Path, record: Converged | None = None, finished: Mapping[str, int] | None = None
) -> Sweep:
    """Returns a drawn sweep with the numbers above in its records."""
    sweep = draw_sweep(folder, batch_sizes=[32, 256], seeds=range(2), epochs=5, finished=finished)
    info = recorded(sweep)
    info["images"]["shortcut"] = REACHED
    sweep.sweep_file.write_text(json.dumps(info))
    write_record(sweep.converged_file, record or Converged(metrics=BEST, views=5, epochs=5))
    return sweep


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return draw(tmp_path_factory.mktemp("runs") / "s")


def test_the_page_and_the_terminal_show_the_baselines(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page has them in the table of the runs, the terminal in sentences below its table."""
    print_report(build_report([sweep]))
    page = (sweep.report_folder / "index.html").read_text("utf-8")
    for name, accuracy, loss in (
        ("converged head", "89.1", "0.310"),
        ("without lesion", "78.2", "0.512"),
        ("without image", "54.5", "0.689"),
    ):
        assert page.index(f">{name}</th>") < page.index(f"<td>{accuracy}</td>")
        assert f"<td>{loss}</td>" in page
    with (sweep.report_folder / "summary.csv").open(newline="") as lines:
        small, large = csv.DictReader(lines)
    above = [float(row["train_loss_above_converged"]) for row in (small, large)]
    assert above[0] == pytest.approx(float(small["final_train_loss"]) - 0.25, abs=1e-5)
    printed = capsys.readouterr().out.splitlines()
    assert (
        "Converged head: accuracy 89.1 %, AUC 0.950, test loss 0.310, train loss 0.250. The runs "
        f"ended {above[0]:.3f} (32) to {above[1]:.3f} (256) above its train loss."
    ) in printed
    assert (
        "File size, image size, border and mean colour alone, without the lesion: accuracy 78.2 %, "
        "AUC 0.853, test loss 0.512."
    ) in printed
    assert (
        "The largest class, without the image: accuracy 54.5 %, AUC 0.500, test loss 0.689."
    ) in printed


def test_the_excess_is_a_column_of_the_complete_table(sweep: Sweep) -> None:
    """A narrow terminal does not have it; a baseline has none."""
    table = read_sweep(sweep)
    summary = summarize(group_runs([table]))
    assert EXCESS not in readable(summary, is_complete=False)[0]
    columns, rows = readable(summary, is_complete=True, baselines=baselines(table))
    assert [bool(row[columns.index(EXCESS)]) for row in rows] == [True, True, False, False, False]


def test_runs_that_go_on_have_not_ended(tmp_path: Path) -> None:
    """Only batch sizes with complete runs are told to be above the converged head."""
    finished = dict.fromkeys(("bs0256-lr0.01-seed0", "bs0256-lr0.01-seed1"), 2)
    table = read_sweep(draw(tmp_path / "s", finished=finished))
    line = baseline_lines(table, summarize(group_runs([table])))[0]
    assert "(32)" in line
    assert "(256)" not in line


def test_without_a_best_head_the_loss_falls_to_zero(tmp_path: Path) -> None:
    """Then the whole train loss is above it, and the report says why there is no such head."""
    record = Converged(exists=False, metrics={"train_loss": 0.0})
    table = read_sweep(draw(tmp_path / "s", record))
    summary = summarize(group_runs([table]))
    assert baseline_lines(table, summary)[0].startswith("There is no converged head: ")
    assert list(summary["train_loss_above_converged"]) == list(summary["final_train_loss"])


def test_an_older_sweep_has_the_prevalence_only(tmp_path: Path) -> None:
    """Without converged.json, and without a shortcut in sweep.json, nothing else changes."""
    table = read_sweep(draw_sweep(tmp_path / "s", batch_sizes=[32], epochs=2))
    summary = summarize(group_runs([table]))
    assert [baseline.name for baseline in baselines(table)] == ["without image"]
    assert len(baseline_lines(table, summary)) == 1
    assert "train_loss_above_converged" not in summary


@pytest.mark.parametrize("content", ["{", '{"metrics": 1}', json.dumps({"format": FORMAT + 1})])
def test_a_damaged_record_is_named_and_stops_nothing(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The report is made without the converged head, and says which file it could not read."""
    sweep = draw(tmp_path / "s")
    sweep.converged_file.write_text(content)
    print_report(build_report([sweep], tmp_path / "out"))
    printed = capsys.readouterr().out
    assert "Converged head: accuracy" not in printed
    assert "The converged head is not shown: " in printed
    assert "converged.json" in printed


def test_submit_records_what_the_shortcut_reaches(tmp_path: Path, weights: Path) -> None:
    """The report may be made where the images are not. Val has no part in it."""
    data = make_tree(tmp_path / "data", num_train=12, num_test=5)
    sweep = make_sweep(data, weights, tmp_path / "runs", val_fraction=0.25)
    images = hold_out(scan(data), 0.25)
    reached = shortcut(images)
    assert sweep.info().images.shortcut == {
        "test_accuracy": reached.accuracy,
        "test_auc": reached.class_aucs[1],
        "test_loss": reached.loss,
    }
    is_used = [file.split != "val" for file in images.files]
    files = tuple(file for file in images.files if file.split != "val")
    assert images.sketches is not None
    assert len(files) == 28
    assert shortcut(replace(images, files=files, sketches=images.sketches[is_used])) == reached
